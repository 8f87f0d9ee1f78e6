"""A guest's start and end: its kernel's arguments, the phases that tare waits for, the ways to stop.

With ``start = "restore"`` guests go on from the saved memory of one that was ready, instead of booting. libvirt saves a
guest as a file: a header, the domain's XML, and what QEMU wrote. It restores no other domain from it than the one that
was saved. So what it is given here is a pipe: a header of ours, the XML of the new domain, and then QEMU's part of the
file, which the kernel moves from the page cache without a copy.
"""

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from tare.backends.vm.commands import GUEST_PROGRAM
from tare.backends.vm.connection import Domain
from tare.backends.vm.domain_xml import Machine
from tare.backends.vm.options import Profile, VmOptions
from tare.backends.vm.watch import Watch
from tare.bench.catalogue import GuestSplit
from tare.bench.errors import BackendError
from tare.bench.model import Envelope, Phase, StartTimeline

BOOT_DEADLINE_S = 90.0
"""From asking libvirt for a guest to the last mark of init, for each guest that a CPU of its envelope starts meanwhile.
Under emulation on a busy host a boot takes some 10 s."""
SYSTEM_TIMES = 6
"""How many times as long systemd may take; it needs some 10 s where init needs 1 s."""
AGENT_DEADLINE_S = 30
SHUTDOWN_DEADLINE_S = 60.0
"""From asking a guest to power off until its QEMU is gone; a guest of 192 MiB takes 0.3 s under emulation."""
_POWER_OFF_DEADLINE_S = 10
_LAST_WORDS_S = 1.0

KERNEL_ARGUMENTS = ("console=ttyS0", "quiet", "panic=-1", "cryptomgr.notests", "no_timer_check")
"""No self-tests of ciphers at each boot (0.5 s under emulation); a panic ends the guest at once, after its message.

No check that the timer interrupts ten times within 40 ms: a kernel leaves it out by itself under KVM, and an emulated
one that has to wait for a CPU meanwhile takes its timer for broken and panics (decision 0109).
"""
SYSTEM_ARGUMENTS = (
    *("net.ifnames=0", "systemd.show_status=false"),
    f"systemd.default_timeout_start_sec={SYSTEM_TIMES * BOOT_DEADLINE_S:g}",
)
"""Interfaces keep the names that init has configured; the console is for init's marks and the kernel's errors; no
service of a slow guest is given up before the guest is."""
LOADER_ARGUMENTS = (*KERNEL_ARGUMENTS, *SYSTEM_ARGUMENTS, "tare.parameters=smbios")
"""What the boot loader hands to the kernel."""

NO_USER_SPACE = "its kernel did not reach user space"
RESET = "its machine reset or QEMU ended before the kernel had said anything"


class Failure(Protocol):
    """Makes an error about a guest, with what its console said last."""

    def __call__(self, message: str, remedy: str | None = None, /) -> BackendError:
        """Without a ``remedy``, with the one that what was said suggests."""


def kernel_arguments(options: VmOptions, envelope: Envelope) -> tuple[str, ...]:
    """The kernel's command line; with a boot loader, the machine's OEM strings."""
    modules = (f"tare.modules={','.join(options.modules)}",) if options.modules else ()
    # A kernel that looks for PCI where there is none says that as an error.
    bus = ("pci=off",) if options.machine is Machine.MICROVM else ()
    own = (*bus, f"tare.pids={envelope.pids_max}", f"tare.scratch={options.scratch}", *modules)
    match options.profile:
        case Profile.MINIMAL:
            return (*KERNEL_ARGUMENTS, *own)
        case Profile.FULL:
            return (*KERNEL_ARGUMENTS, *SYSTEM_ARGUMENTS, *own, "tare.profile=full")
        case Profile.FIRMWARE:
            return (*own, "tare.profile=full")


class ConcurrentStarts:
    """How many guests are being started at the same time, by all threads, and how long that lets a start take."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starting = 0
        self._most = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Be counted meanwhile."""
        with self._lock:
            self._starting += 1
            self._most = max(self._most, self._starting)
        try:
            yield
        finally:
            with self._lock:
                self._starting -= 1
                if not self._starting:
                    self._most = 0

    def deadline_s(self, cpus: int) -> float:
        """Seconds that a start may take now: in proportion to the most that shared ``cpus`` CPUs since the first."""
        with self._lock:
            return BOOT_DEADLINE_S * max(1.0, self._most / cpus)


concurrent_starts = ConcurrentStarts()


class _Waiting:
    """Waits for the phases of one start, all of them within one deadline since it was made."""

    def __init__(self, watch: Watch, cpus: int, failure: Failure, late: Callable[[Watch], str], times: int = 1) -> None:
        """``late`` says what has not come, ``times`` how many times as long as others this start may take."""
        self._began = time.monotonic()
        self._watch, self._cpus, self._failure, self._late, self._times = watch, cpus, failure, late, times

    def until(self, condition: Callable[[], bool]) -> None:
        """Raises BackendError, with the console's last lines, if the guest fails or the time is up."""
        # Others may be asked for while this one is waited for, and slow it down from then on.
        while not self._watch.wait(condition, self._began + (allowed_s := self._allowed_s())):
            if self._is_over():
                why = why_not(self._watch, allowed_s, self._late)
                raise self._failure(f"the guest did not start: {why}")

    def until_answered(self, domain: Domain) -> None:
        """Raises BackendError likewise. libvirt itself gives a busy guest 5 s to answer, so that it may take two."""
        while True:
            try:
                domain.ask_agent("guest-ping", timeout_s=AGENT_DEADLINE_S)
            except BackendError as error:
                # A guest that has ended has said why, which is on its way.
                self._watch.wait(lambda: False, time.monotonic() + _LAST_WORDS_S)
                if self._is_over():
                    raise self._failure(f"the guest did not start: {self._watch.failure or error.message}") from error
            else:
                return

    def _is_over(self) -> bool:
        return self._watch.failure is not None or time.monotonic() >= self._began + self._allowed_s()

    def _allowed_s(self) -> float:
        return self._times * concurrent_starts.deadline_s(self._cpus)


def await_boot(
    domain: Domain,
    watch: Watch,
    timeline: StartTimeline,
    failure: Failure,
    envelope: Envelope,
    profile: Profile,
) -> None:
    """Wait for every phase of a start and mark it. Raises BackendError."""
    times = 1 if profile is Profile.MINIMAL else SYSTEM_TIMES
    waiting = _Waiting(watch, len(envelope.cpus), failure, late_boot, times)
    waiting.until(lambda: watch.agent_connected)
    waiting.until_answered(domain)
    timeline.mark(Phase.AGENT_ANSWERED, time.monotonic())
    waiting.until(lambda: "ready" in watch.marks and watch.command_port is not None)
    timeline.mark(Phase.READY, time.monotonic())
    mark_boot(watch, timeline)


def mark_boot(watch: Watch, timeline: StartTimeline) -> None:
    """Mark the phases that the watch has seen, and the durations by the guest's own clock.

    The kernel's beginning is not seen: it is where the guest's clock, which starts with its kernel, says it was.
    """
    init, last = watch.marks["init"], watch.marks["ready"]
    loader = watch.marks.get("loader")
    seen = {
        Phase.CREATED: watch.born_s,
        Phase.VCPU_RUNNING: watch.running_s,
        Phase.LOADER: None if loader is None else loader.host_s,
        Phase.KERNEL_ENTERED: init.host_s - init.guest_s,
        Phase.FIRST_INSTRUCTION: init.host_s,
    }
    for phase, at_s in seen.items():
        if at_s is not None:
            timeline.mark(phase, at_s)
    timeline.splits[GuestSplit.KERNEL] = init.guest_s
    timeline.splits[GuestSplit.INIT] = last.guest_s - init.guest_s
    system = watch.marks.get("system")
    if system is not None:
        timeline.splits[GuestSplit.INITRAMFS] = system.guest_s - init.guest_s
        timeline.splits[GuestSplit.SYSTEM] = last.guest_s - system.guest_s


def await_restored(domain: Domain, watch: Watch, timeline: StartTimeline, failure: Failure, envelope: Envelope) -> None:
    """Wait until a guest runs on, give it the time and random numbers of its own, and mark the phases.

    Its first instruction is when libvirt reports that its CPUs run. Raises BackendError.
    """
    waiting = _Waiting(watch, len(envelope.cpus), failure, _late_agent)
    waiting.until(lambda: watch.agent_connected and watch.command_port is not None)
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    arguments = ["restored", str(seconds), str(nanoseconds), os.urandom(32).hex()]
    try:
        domain.ask_agent("guest-exec", {"path": GUEST_PROGRAM, "arg": arguments}, timeout_s=AGENT_DEADLINE_S)
    except BackendError as error:
        raise failure(f"the restored guest did not go on: {error.message}") from error
    timeline.mark(Phase.AGENT_ANSWERED, time.monotonic())
    waiting.until(lambda: "restored" in watch.marks)
    timeline.mark(Phase.READY, time.monotonic())
    waiting.until(lambda: watch.running_s is not None)
    assert watch.born_s is not None
    assert watch.running_s is not None
    timeline.mark(Phase.CREATED, watch.born_s)
    timeline.mark(Phase.VCPU_RUNNING, watch.running_s)
    timeline.mark(Phase.FIRST_INSTRUCTION, watch.running_s)


def why_not(watch: Watch, allowed_s: float, late: Callable[[Watch], str]) -> str:
    """Why a guest is not ready: what failed, or what had not come when the time was up."""
    if watch.gone and not watch.console_tail():
        return RESET
    return watch.failure or f"{late(watch)} within {allowed_s:g} s"


def late_boot(watch: Watch) -> str:
    """What of a boot has not come yet."""
    if "init" not in watch.marks:
        return NO_USER_SPACE
    if not watch.agent_connected and watch.marks.keys() & {"ready", "system"}:
        return "its guest agent did not open its port"
    if "system" in watch.marks:
        return "systemd did not reach multi-user.target"
    return "its init did not finish"


def _late_agent(watch: Watch) -> str:
    if "restored" in watch.marks:
        return "libvirt did not report that the restored guest runs"
    return "its memory was restored, and its guest agent did not go on"


class Stopping:
    """Ends one guest.

    By SIGKILL to QEMU; that it is gone is for the caller to wait for, who has to kill it in any case. Or, if ``asks``,
    by its init, which ends every process, lets go of its disks and powers the machine off.
    """

    def __init__(self, domain: Domain, watch: Watch, *, asks: bool) -> None:
        self._domain = domain
        self._watch = watch
        self._asks = asks
        self._deadline: float | None = None

    def begin(self) -> None:
        """Have it begin to end, and return at once. May be called again. A guest that cannot be asked is killed."""
        if not self._asks:
            self._watch.begin_kill()
        elif self._deadline is None and self._watch.failure is None:
            self._deadline = time.monotonic() + SHUTDOWN_DEADLINE_S
            try:
                request = {"path": GUEST_PROGRAM, "arg": ["poweroff"]}
                self._domain.ask_agent("guest-exec", request, timeout_s=_POWER_OFF_DEADLINE_S)
            except BackendError:
                self._watch.begin_kill()

    def finish(self) -> bool:
        """Begin if need be, and wait until QEMU is gone if the guest is to see to that; whether it did in time.

        One that failed before it was asked has nothing to be waited for.
        """
        self.begin()
        if self._deadline is None:
            return True
        return self._watch.wait(lambda: self._watch.gone, self._deadline) and self._watch.down_s is not None


MAGIC = b"LibvirtQemudSave"
_VERSION = 2
_HEADER = struct.Struct("<16sIIIII56x")
"""Magic, version, length of the XML with what follows it, whether it ran, compression (0: none), offset of a cookie."""
_PIPE_BYTES = 2**20


class Saved(msgspec.Struct, frozen=True):
    """A guest saved when it was ready, in ``envelope``.

    QEMU's part begins ``offset`` bytes into ``file``; ``scratch`` is the scratch disk as the guest's memory knows it.
    """

    file: Path
    offset: int
    scratch: Path
    envelope: Envelope

    def obstacle(self, envelope: Envelope) -> str | None:
        """Why no guest of ``envelope`` can go on from it, or None: its memory knows CPUs, memory and limits."""
        for name in ("memory_bytes", "pids_max", "scratch_bytes"):
            saved, wanted = getattr(self.envelope, name), getattr(envelope, name)
            if saved != wanted:
                return f"the saved guest has {name} = {saved}, and {wanted} was asked for"
        if len(self.envelope.cpus) != len(envelope.cpus):
            return f"the saved guest has {len(self.envelope.cpus)} CPUs, and {len(envelope.cpus)} were asked for"
        return None


def encode_header(xml: str) -> bytes:
    """What libvirt reads first: a running, uncompressed guest with this domain."""
    text = xml.encode() + b"\0"
    return _HEADER.pack(MAGIC, _VERSION, len(text), 1, 0, 0) + text


def find_offset(file: Path) -> int:
    """Where QEMU's part of a saved guest begins. Raises BackendError for what is no such file."""
    with file.open("rb") as reader:
        head = reader.read(_HEADER.size)
    if len(head) == _HEADER.size:
        magic, version, length, _, compressed, _ = _HEADER.unpack(head)
        if magic == MAGIC and version == _VERSION and not compressed:
            return _HEADER.size + int(length)
    raise BackendError(
        f"libvirt saved the guest in a form that is not known here: {head[:24]!r}",
        remedy='use start = "cold", and report libvirt\'s version',
    )


@contextlib.contextmanager
def start_feeding(saved: Saved, xml: str) -> Iterator[Path]:
    """A path that gives the saved guest with another domain to whom opens it once, until the exit.

    It is that of a pipe without a name, whose end is open here: opening a fifo would wait for a writer, and what a
    writer that has ended left in it would be lost.
    """
    with contextlib.ExitStack() as stack:
        end, pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, end)
        stop = os.eventfd(0, os.EFD_CLOEXEC)
        stack.callback(os.close, stop)
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        thread = threading.Thread(target=_feed, args=(saved, encode_header(xml), pipe, stop), name="restore")
        thread.start()
        stack.callback(thread.join)
        stack.callback(os.eventfd_write, stop, 1)
        yield Path(f"/proc/{os.getpid()}/fd/{end}")


def _feed(saved: Saved, head: bytes, pipe: int, stop: int) -> None:
    """Write all of it, as fast as it is read; then close the pipe, which is the end for its reader."""
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    poll.register(stop, select.POLLIN)
    try:
        with saved.file.open("rb") as source:
            at, end = saved.offset, os.fstat(source.fileno()).st_size
            while head or at < end:
                if any(descriptor == stop for descriptor, _ in poll.poll()):
                    return
                with contextlib.suppress(BlockingIOError):
                    if head:
                        head = head[os.write(pipe, head) :]
                    else:
                        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
                        at += os.splice(source.fileno(), pipe, _PIPE_BYTES, offset_src=at, flags=flags)
    finally:
        os.close(pipe)
