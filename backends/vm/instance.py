"""A live guest."""

import time

import msgspec

from tare.backends.vm.accounting import memory_parts, vcpu_seconds
from tare.backends.vm.boot import AGENT_DEADLINE_S
from tare.backends.vm.commands import GUEST_PROGRAM, CommandPort, GuestSilentError
from tare.backends.vm.disks import allocated_bytes
from tare.backends.vm.domain_xml import Accelerator
from tare.backends.vm.guest import GuestSetup, Running
from tare.bench.errors import BackendError
from tare.bench.interfaces import Instance
from tare.bench.linux.memory import tree_bytes
from tare.bench.model import Command, Completed, Footprint, StartTimeline, Usage

_KILL_DEADLINE_S = 20.0
_CAUSE_DEADLINE_S = 0.5


class VmInstance(Instance):
    """Runs commands through the guest agent, which starts a helper that then speaks over a port of its own.

    ``Completed.started_s`` is when the host heard, from the process that was about to become the program, that
    it would; ``ended_s`` when it heard that the program had ended. The guest waits until the host's QEMU has
    taken each of these messages, so that they lie just outside the program's run.
    """

    def __init__(self, running: Running, setup: GuestSetup, timeline: StartTimeline) -> None:
        self.timeline = timeline
        self.address = running.address
        self._running = running
        self._setup = setup
        self._tells_steal = True
        assert running.watch.command_port is not None
        self._port = CommandPort(running.watch.command_port, running.watch.failed)

    @property
    def pid(self) -> int:
        """QEMU's process on the host."""
        assert self._running.watch.pid is not None
        return self._running.watch.pid

    def execute(self, command: Command) -> Completed:
        """See ``Instance.execute``. A guest that does not answer is destroyed."""
        self._refuse_failed()
        try:
            self._running.domain.ask_agent(
                "guest-exec", {"path": GUEST_PROGRAM, "arg": ["command"]}, timeout_s=AGENT_DEADLINE_S
            )
        except BackendError as error:
            raise self._destroyed(error.message) from error
        try:
            return self._port.run(command)
        except GuestSilentError as error:
            raise self._destroyed(str(error)) from error

    def usage(self) -> Usage:
        # The part before the whole, so that it is never the larger.
        vcpus = vcpu_seconds(self.pid)
        used = self._running.cgroup.meter.usage()
        missing = (
            used.missing if vcpus is not None else {**used.missing, "cpu_vcpu_s": "QEMU names no thread as a vCPU"}
        )
        return msgspec.structs.replace(used, cpu_vcpu_s=vcpus, missing=missing)

    def guest_steal_s(self) -> float | None:
        """See ``Instance.guest_steal_s``; a guest agent before 7.1 does not report it."""
        if not self._tells_steal:
            return None
        self._refuse_failed()
        try:
            cpus = self._running.domain.ask_agent("guest-get-cpustats", timeout_s=AGENT_DEADLINE_S)
        except BackendError as error:
            if "has not been found" in error.message:
                self._tells_steal = False
                return None
            raise self._destroyed(error.message) from error
        return sum(float(cpu.get("steal", 0)) for cpu in cpus) / 1000

    def footprint(self) -> Footprint:
        meter = self._running.cgroup.meter
        translates = self._setup.acceleration.accelerator is Accelerator.TCG
        parts = memory_parts(self.pid, meter.members(), self._running.memory_bytes, translates=translates)
        return msgspec.structs.replace(
            meter.footprint(),
            disk_owned_bytes=self._owned_bytes(),
            disk_shared_bytes=sum(map(allocated_bytes, self._setup.image.guest_files.values())),
            **parts,
        )

    def _owned_bytes(self) -> int:
        scratch = self._running.scratch
        return tree_bytes(scratch) if scratch.is_dir() else allocated_bytes(scratch)

    def gone_descriptor(self) -> int | None:
        return self._running.watch.failed

    def end(self) -> None:
        self._running.stopping.begin()

    def _refuse_failed(self) -> None:
        if self._running.watch.failure is not None:
            raise self._running.failure(f"the guest is gone: {self._running.watch.failure}")

    def _destroyed(self, reason: str) -> BackendError:
        watch = self._running.watch
        # Another thread reports its end than the one that noticed its silence.
        watch.wait(lambda: watch.failure is not None, time.monotonic() + _CAUSE_DEADLINE_S)
        cause = watch.failure
        error = self._running.failure(f"{reason}: {cause}" if cause else f"{reason}; it was destroyed")
        watch.kill(time.monotonic() + _KILL_DEADLINE_S)
        return error
