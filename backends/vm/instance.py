"""A live guest."""

import contextlib
import time
from collections.abc import Iterable

import msgspec

from tare.backends.vm.boot import AGENT_DEADLINE_S
from tare.backends.vm.commands import GUEST_PROGRAM, CommandPort, GuestSilentError
from tare.backends.vm.disks import allocated_bytes
from tare.backends.vm.domain_xml import Accelerator
from tare.backends.vm.guest import GuestSetup, Running
from tare.backends.vm.pinning import VCPU
from tare.bench.errors import BackendError
from tare.bench.interfaces import Instance
from tare.bench.linux.files import HERE, HostRoots, read_text
from tare.bench.linux.memory import Mapping, read_mappings, tree_bytes
from tare.bench.linux.processes import threads_of
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
        self._port = CommandPort(running.watch.command_port, running.watch.failed, running.scratch.parent)

    @property
    def pid(self) -> int:
        """QEMU's process on the host."""
        assert self._running.watch.pid is not None
        return self._running.watch.pid

    def execute(self, command: Command) -> Completed:
        """A guest that does not answer is destroyed."""
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
        """A guest agent before 7.1 does not report it."""
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


_TRANSLATED = "rwxp"


def vcpu_seconds(pid: int, roots: HostRoots = HERE) -> float | None:
    """CPU time of QEMU's threads that run vCPUs; None if it is gone or does not name them.

    ``schedstat`` counts nanoseconds, where ``stat`` counts hundredths. libvirt has QEMU name its threads.
    """
    total: int | None = None
    for task in threads_of(pid, roots):
        with contextlib.suppress(OSError):
            if VCPU.match(read_text(task / "comm")):
                total = (total or 0) + int(read_text(task / "schedstat").split()[0])
    return None if total is None else total / 1e9


def memory_parts(
    pid: int, helpers: Iterable[int], memory_bytes: int, *, translates: bool, roots: HostRoots = HERE
) -> dict[str, int | None]:
    """Parts of the PSS of QEMU (``pid``) and of the helpers that map its guest's RAM, by field of ``Footprint``.

    None where nobody can tell; translated code is TCG's, None under KVM.
    """
    own = read_mappings(pid, roots)
    others = [mapping for helper in helpers if helper != pid for mapping in read_mappings(helper, roots)]
    ram = find_guest_ram(own, memory_bytes)
    shared = sum(other.resident for other in others if ram is not None and ram.name and other.name == ram.name)
    return {
        # A huge page that both have touched is counted for each, as it has no proportional share.
        "guest_ram_bytes": None if ram is None else min(ram.resident + shared, ram.size),
        "tcg_cache_bytes": find_tcg_cache(own) if translates and own else None,
    }


def find_guest_ram(mappings: Iterable[Mapping], memory_bytes: int) -> Mapping | None:
    """The smallest mapping of at least ``memory_bytes``.

    QEMU maps the RAM of a guest as one piece, and nothing else of its size: TCG's cache and the arenas of its threads
    have 64 MiB at most, less than the least memory of a guest.
    """
    large = [mapping for mapping in mappings if mapping.size >= memory_bytes]
    return min(large, key=lambda mapping: mapping.size, default=None)


def find_tcg_cache(mappings: Iterable[Mapping]) -> int:
    """What translated code holds: the memory without a name that may be both written and executed."""
    return sum(one.resident for one in mappings if one.permissions == _TRANSLATED and not one.name)
