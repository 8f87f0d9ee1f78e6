"""What a backend asks of a control group, whatever its version."""

import contextlib
import os
import select
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

import msgspec

from tare.bench.errors import BackendError
from tare.bench.model import Envelope, Usage

KILL_DEADLINE_S = 10.0


CPU_PERIOD_US = 100_000
"""The span over which a CPU quota holds, as the kernel and every container engine have it by default."""


class Limits(msgspec.Struct, frozen=True):
    """What a cgroup enforces; None leaves a resource unlimited. Fields named as in ``Envelope`` mean the same.

    ``swap_bytes`` is beside ``memory_bytes``, and nothing where only that is given. ``io_device`` (``254:0``) is the
    block device that is accounted and throttled; v1 counts nothing for a device that nobody asked about.
    """

    cpus: tuple[int, ...] = ()
    memory_bytes: int | None = None
    pids_max: int | None = None
    io_device: str | None = None
    swap_bytes: int | None = None
    cpu_quota: float | None = None
    cpu_weight: int | None = None
    io_read_bytes_per_s: int | None = None
    io_write_bytes_per_s: int | None = None
    io_read_ops_per_s: int | None = None
    io_write_ops_per_s: int | None = None

    def io_rates(self) -> dict[str, int]:
        """The rates at which I/O is throttled, by field, where there are any."""
        rates = {name: getattr(self, name) for name in IO_RATES}
        return {name: rate for name, rate in rates.items() if rate is not None}


IO_RATES = ("io_read_bytes_per_s", "io_write_bytes_per_s", "io_read_ops_per_s", "io_write_ops_per_s")


def limits_of(envelope: Envelope, io_device: str | None) -> Limits:
    """All that an envelope limits, for processes of the host's own kernel."""
    rates = {name: getattr(envelope, name) for name in IO_RATES}
    return Limits(
        cpus=envelope.cpus,
        memory_bytes=envelope.memory_bytes,
        pids_max=envelope.pids_max,
        io_device=io_device,
        swap_bytes=envelope.swap_bytes,
        cpu_quota=envelope.cpu_quota,
        cpu_weight=envelope.cpu_weight,
        **rates,
    )


class Cgroup(ABC):
    """One live cgroup: a folder in each hierarchy that takes part. Made by ``start_cgroup``.

    ``folders`` is what was made. A process joins by writing ``0`` into each of ``join_files``, itself and
    while it has one thread: moving itself takes tens of microseconds, being moved by another waits for an
    RCU grace period (7 to 15 ms after idling). ``clone_into`` is the folder for ``CLONE_INTO_CGROUP``;
    a process made that way only has to join ``join_files_after_clone``. ``emptied_s`` is when its last process was
    gone, on the host's monotonic clock, once it was stopped.
    """

    folders: tuple[Path, ...]
    join_files: tuple[Path, ...]
    clone_into: Path | None
    join_files_after_clone: tuple[Path, ...]
    emptied_s: float | None = None

    @abstractmethod
    def set_limits(self, limits: Limits) -> dict[str, str]:
        """Write the limits of a group just made. Raises OSError with the file that was refused.

        Returns those that nothing here can enforce: field of ``Limits`` to the reason.
        """

    def adopt(self, pid: int) -> None:  # noqa: B027 - a cgroup knows its members
        """Told the host pid of the instance's first process, for what has no other way to know its members."""

    def move(self, pid: int) -> None:
        """Move a whole process that runs already into it, each thread with the affinity it has. Raises OSError.

        Older kernels give what is moved to another cpuset the affinity of all its CPUs.
        """
        affinities = {thread: os.sched_getaffinity(thread) for thread in _threads_of(pid)}
        for file in self.join_files:
            write_text(file.with_name("cgroup.procs"), str(pid))
        for thread, affinity in affinities.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, affinity)

    @abstractmethod
    def usage(self) -> Usage:
        """What the processes of this cgroup, dead ones included, have used since it was made."""

    @abstractmethod
    def charge_bytes(self) -> int | None:
        """Memory charged to it now, page cache and kernel memory included; None without a memory controller."""

    @abstractmethod
    def oom_kills(self) -> int | None:
        """Processes that its memory limit has killed; None without a memory controller."""

    @abstractmethod
    def pids_refused(self) -> int | None:
        """How often its limit on processes has refused one; None without a pids controller."""

    @abstractmethod
    def _set_frozen(self, *, frozen: bool) -> bool:
        """Freeze or thaw every member; False where this kernel cannot. Returns before all have stopped."""

    def members(self) -> list[int]:
        """The host pids of its processes, those in groups that it has made itself too. Empty once it is gone."""
        return _members_below(str(self.folders[0]))

    def threads(self) -> list[int]:
        """The host thread ids of its processes. Empty once they are gone."""
        found: list[int] = []
        for pid in self.members():
            with contextlib.suppress(OSError):
                found += _threads_of(pid)
        return found

    def kill(self, *, keep: Collection[int] = ()) -> None:
        """SIGKILL every member but ``keep`` (host pids), and return when they have ended.

        The cgroup is frozen meanwhile where that is possible, so that a process that forks without end
        does not escape. Raises BackendError if some do not end within 10 s (stuck in the kernel).
        """
        deadline = time.monotonic() + KILL_DEADLINE_S
        while victims := [pid for pid in self.members() if pid not in keep]:
            frozen = self._set_frozen(frozen=True)
            try:
                descriptors = signal_all([pid for pid in self.members() if pid not in keep])
            finally:
                if frozen:
                    self._set_frozen(frozen=False)
            wait_ended(descriptors, deadline)
            if time.monotonic() > deadline:
                raise BackendError(
                    f"processes {victims} in {self.folders[0]} did not end within {KILL_DEADLINE_S:g} s of SIGKILL",
                    remedy="they are stuck inside the kernel; /proc/PID/stack tells where",
                )

    def begin_kill(self) -> None:
        """SIGKILL every member and return at once. What forks meanwhile may escape until the group is stopped."""
        if self.clone_into is not None:
            with contextlib.suppress(OSError):  # before 5.14
                write_text(self.clone_into / "cgroup.kill", "1")
                return
        for descriptor in signal_all(self.members()):
            os.close(descriptor)


def _threads_of(pid: int) -> list[int]:
    return [int(folder.name) for folder in Path(f"/proc/{pid}/task").iterdir()]


def signal_all(pids: list[int]) -> list[int]:
    """SIGKILL each process; its pidfds, which keep a reused pid from being hit."""
    descriptors = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            descriptors.append(descriptor)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    return descriptors


def wait_ended(descriptors: list[int], deadline: float) -> None:
    """Wait for the end of the processes behind these pidfds, and close them."""
    for descriptor in descriptors:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        os.close(descriptor)


def read_text(path: Path) -> str:
    """The text of a control file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, 65536):
            parts.append(part)
        return b"".join(parts).decode()
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a control file in one write. Raises OSError with its path."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise


def parse_keyed(text: str) -> dict[str, int]:
    """The numbers of a flat keyed control file (``cpu.stat``, ``memory.events``)."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def read_stall_s(file: Path) -> float | None:
    """Seconds in which some process was held up, of a pressure file; None where the kernel keeps none."""
    try:
        text = read_text(file)
    except OSError:  # absent, or EOPNOTSUPP where PSI is compiled in and switched off
        return None
    return parse_stall_s(text)


def parse_stall_s(text: str) -> float | None:
    """The total of the line ``some`` of a pressure file, in seconds."""
    for line in text.splitlines():
        if line.startswith("some "):
            return int(line.rpartition("total=")[2]) / 1e6
    return None


def _members_below(folder: str) -> list[int]:
    found: list[int] = []
    try:
        found += [int(pid) for pid in read_text(Path(folder) / "cgroup.procs").split()]
        with os.scandir(folder) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return found
    for path in below:
        found += _members_below(path)
    return found
