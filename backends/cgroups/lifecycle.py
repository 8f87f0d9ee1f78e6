"""The life of a cgroup of tare's own: made, limited, joined, emptied and removed. What it costs, its meter says."""

import contextlib
import errno
import os
import secrets
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tare.backends.cgroups.layout import Layout, Version, find_layout, prepare_parent
from tare.backends.cgroups.limits import NO_DEVICE, RULES, Limits, describe_limit
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.ledger import Ledger, ResourceKind
from tare.bench.linux.cgroups import begin_kill, find_memory_limit, has_met_memory_limit, kill_members, remove_cgroup
from tare.bench.linux.files import read_text, write_text
from tare.bench.linux.metering import NO_CGROUP, CgroupMeter, Meter, ProcessTreeMeter
from tare.bench.linux.processes import kill_all, signal_all, threads_of

PREFIX = "tare-"
NEVER_REACHED = 2**64 - 2
"""The largest rate that blkio takes: a device's bytes are counted only in a group that has a rule for it.

Linux 6.1 counts what is read by a rule for reading and what is written by one for writing (``blk_should_throtl``)."""


class Cgroup:
    """One live cgroup: a folder in each hierarchy that takes part. Made by ``start_cgroup``.

    On v2 it is one folder below our own cgroup, or below the nearest above that can hand controllers on. On v1 it is a
    folder for each controller of ``choose_controllers``, and one in the v2 tree if there is one (hybrid): that has no
    controllers, yet counts CPU time exactly, says how long its processes waited (PSI), kills and freezes in one write.

    A process joins by writing ``0`` into each of ``join_files``, itself and while it has one thread: moving itself
    takes tens of microseconds, being moved by another waits for an RCU grace period (7 to 15 ms after idling).
    ``clone_into`` is the folder for ``CLONE_INTO_CGROUP``; a process made that way only has to join
    ``join_files_after_clone``.
    ``emptied_s`` is when its last process was gone, on the host's monotonic clock, once it was stopped.
    """

    def __init__(self, layout: Layout, name: str) -> None:
        self._parents = layout.controllers
        self._of: dict[str, Path] | None = None  # v1: our folder by controller
        self.emptied_s: float | None = None
        if layout.version is Version.V2:
            assert layout.unified is not None
            assert layout.unified_root is not None
            self.clone_into: Path | None = prepare_parent(layout.unified, layout.unified_root) / name
            v1_folders: tuple[Path, ...] = ()
        else:
            self._of = {controller: layout.controllers[controller] / name for controller in choose_controllers(layout)}
            self.clone_into = None if layout.unified is None else layout.unified / name
            v1_folders = tuple(dict.fromkeys(self._of.values()))
        unified = () if self.clone_into is None else (self.clone_into,)
        self.folders = (*unified, *v1_folders)
        self.join_files_after_clone = tuple(folder / "tasks" for folder in v1_folders)
        self.join_files = (*(folder / "cgroup.procs" for folder in unified), *self.join_files_after_clone)
        self.meter: Meter = CgroupMeter(self.folders)

    def set_limits(self, limits: Limits) -> dict[str, str]:
        """Write the limits of a group just made. Raises OSError with the file that was refused.

        Returns those that nothing here can enforce: the limit to the reason.
        """
        self._complete_v1(limits)
        # Without one on swap, a limit on memory is a limit on what is not swapped out yet.
        asked = {"swap_bytes": 0, **limits} if "memory_bytes" in limits else limits
        reasons = {name: self._set(name, asked) for name in RULES if name in asked}
        return {name: reason for name, reason in reasons.items() if reason}

    def _set(self, name: str, limits: Limits) -> str:
        """Write one limit; the reason why it is not enforced, or nothing."""
        rule = RULES[name]
        file, text = rule.v2 if self._of is None else rule.v1
        controller = file.partition(".")[0]
        folder = self.clone_into if self._of is None else self._of.get(controller)
        if folder is None:
            return f"no {controller} cgroup controller"
        if name.startswith("io_") and "io_device" not in limits:
            return NO_DEVICE
        if name == "swap_bytes" and "memory_bytes" not in limits and self._of is not None:
            return "v1 limits swap only together with memory"
        try:
            write_text(folder / file, text(limits[name], limits))
        except FileNotFoundError:
            if self._of is not None and not rule.without:
                raise
            return f"the cgroup has no {file}" if self._of is None else rule.without
        return ""

    def _complete_v1(self, limits: Limits) -> None:
        """v1 needs more than limits: a cpuset takes no process before it has CPUs and nodes, blkio counts by rules."""
        if self._of is None:
            return
        if cpuset := self._of.get("cpuset"):
            for file in ("cpuset.mems", *(() if "cpus" in limits else ("cpuset.cpus",))):
                write_text(cpuset / file, read_text(self._parents["cpuset"] / file))
        if (blkio := self._of.get("blkio")) and "io_device" in limits:
            for way in ("read", "write"):
                if f"io_{way}_bytes_per_s" not in limits:
                    rule = f"{limits['io_device']} {NEVER_REACHED}"
                    write_text(blkio / f"blkio.throttle.{way}_bps_device", rule)

    def adopt(self, pid: int) -> None:
        """Take the host pid of the instance's first process; only a ``ProcessTree`` needs it to know its members."""

    def move(self, pid: int) -> None:
        """Move a whole process that runs already into it, each thread with the affinity it has. Raises OSError.

        Older kernels give what is moved to another cpuset the affinity of all its CPUs.
        """
        affinities = {int(thread.name): os.sched_getaffinity(int(thread.name)) for thread in threads_of(pid)}
        for file in self.join_files:
            write_text(file.with_name("cgroup.procs"), str(pid))
        for thread, affinity in affinities.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, affinity)

    def outer_memory_limit(self) -> str:
        """What killed for memory, if it was not the group's own limit: that was never met."""
        folder = next((folder for folder in self.folders if (folder / "memory.stat").exists()), None)
        if folder is None or has_met_memory_limit(folder):
            return ""
        limit = find_memory_limit(folder.parent)
        return "host's lack of memory" if limit is None else describe_limit(limit)

    def members(self) -> list[int]:
        """The host pids of its processes, those in groups that it has made itself too. Empty once it is gone."""
        return self.meter.members()

    def kill(self, *, keep: Collection[int] = ()) -> None:
        """SIGKILL every member but ``keep`` (host pids), and return when they have ended.

        Raises BackendError if some do not end within 10 s.
        """
        try:
            self._kill(keep)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise BackendError(
                f"{error.strerror} (cgroup {self.folders[0] if self.folders else 'none'})",
                remedy="they are stuck inside the kernel; /proc/PID/stack shows where",
            ) from error

    def _kill(self, keep: Collection[int]) -> None:
        kill_members(self.folders[0], keep=keep, freezer=(self._of or {}).get("freezer"))

    def begin_kill(self) -> None:
        """SIGKILL every member and return at once. What forks meanwhile may escape until the group is stopped."""
        if self.clone_into is None or not begin_kill(self.clone_into):
            for descriptor in signal_all(self.members()):
                os.close(descriptor)


class ProcessTree(Cgroup):
    """Instead of a cgroup, where this user may make none: the instance's first process and all below it.

    Enforces nothing.
    """

    def __init__(self) -> None:
        self.folders = self.join_files = self.join_files_after_clone = ()
        self.clone_into = None
        self.emptied_s = None
        self.meter = self._tree = ProcessTreeMeter()

    def adopt(self, pid: int) -> None:
        """Take a process for the first of the instance."""
        self._tree.adopt(pid)

    def set_limits(self, limits: Limits) -> dict[str, str]:
        """None is enforced. CPUs are those that the processes are pinned to."""
        return {name: NO_CGROUP for name in limits if name in RULES}

    def _kill(self, keep: Collection[int]) -> None:
        """Stopped first, so that what forks without end does not outrun the signals."""

        def victims() -> list[int]:
            return [pid for pid in self.members() if pid not in keep]

        @contextlib.contextmanager
        def stopped() -> Iterator[None]:
            for pid in victims():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            yield

        kill_all(victims, hold=stopped)


def choose_controllers(layout: Layout) -> tuple[str, ...]:
    """The v1 controllers that an instance gets; each costs a mkdir, a join and a rmdir.

    ``cpuacct`` and ``freezer`` only where no v2 tree does their work better.
    """
    wanted = ["pids", "memory", "cpuset", "cpu", "blkio"]
    if layout.unified is None:
        wanted += ["cpuacct", "freezer"]
    return tuple(name for name in wanted if name in layout.controllers)


@contextlib.contextmanager
def start_cgroup(ledger: Ledger, name: str, limits: Limits, layout: Layout | None = None) -> Iterator[Cgroup]:
    """A cgroup ``tare-<name>`` below our own in each hierarchy, with ``limits`` set.

    A name that begins with ``tare-`` is taken as it is. Its folders are in the ledger before they are made. On
    exit whatever is left in it is killed and it is removed. Raises UnavailableError where there are no cgroups,
    BackendError if the kernel refuses one.
    """
    with begin_cgroup(ledger, name, layout) as cgroup:
        complete_cgroup(cgroup, limits)
        yield cgroup


@contextlib.contextmanager
def begin_cgroup(ledger: Ledger, name: str, layout: Layout | None = None) -> Iterator[Cgroup]:
    """``start_cgroup`` as far as a process can be cloned into it: nothing but ``clone_into`` is made.

    The rest, and every limit, is for ``complete_cgroup``, which can run while the kernel makes the process. Where an
    ordinary user may make no cgroup, it is a ``ProcessTree``.
    """
    layout = find_layout() if layout is None else layout
    if layout.version is Version.NONE and not layout.unprivileged:
        raise UnavailableError("no cgroup hierarchy is mounted", remedy="mount -t cgroup2 none /sys/fs/cgroup")
    full_name = name if name.startswith(PREFIX) else PREFIX + name
    cgroup = ProcessTree() if layout.version is Version.NONE else Cgroup(layout, full_name)
    entries = ledger.enter_all(ResourceKind.CGROUP, cgroup.folders)
    try:
        if cgroup.clone_into is not None:
            _make(cgroup.clone_into)
        yield cgroup
    finally:
        stop_cgroup(cgroup)
        ledger.strike_all(entries)


def complete_cgroup(cgroup: Cgroup, limits: Limits) -> dict[str, str]:
    """Make what ``begin_cgroup`` left out, and set the limits. Raises BackendError if the kernel refuses.

    Returns those that are not enforced, and why, as ``Cgroup.set_limits`` does.
    """
    for folder in cgroup.folders:
        if folder != cgroup.clone_into:
            _make(folder)
    try:
        return cgroup.set_limits(limits)
    except OSError as error:
        raise _refused(error) from error


def try_limits(ledger: Ledger, limits: Limits, layout: Layout) -> Mapping[str, str]:
    """What a cgroup made for trial cannot enforce: the limit to the reason.

    Raises BackendError if the kernel refuses a limit.
    """
    with begin_cgroup(ledger, f"trial-{secrets.token_hex(4)}", layout) as cgroup:
        return complete_cgroup(cgroup, limits)


def _make(folder: Path) -> None:
    try:
        os.mkdir(folder)  # noqa: PTH102 - on the measured start path
    except OSError as error:
        raise _refused(error) from error


def _refused(error: OSError) -> BackendError:
    return BackendError(
        f"the kernel refused a cgroup: {error.strerror}: {error.filename}",
        remedy="check that tare runs as root, and that the limits fit those of the cgroup tare itself is in",
    )


def stop_cgroup(cgroup: Cgroup) -> None:
    """Kill what is left in a cgroup and remove it. Safe on one half made or already removed. Raises BackendError."""
    cgroup.kill()
    cgroup.emptied_s = time.monotonic()
    for folder in cgroup.folders:
        try:
            os.rmdir(folder)  # noqa: PTH106 - on the measured stop path
        except FileNotFoundError:
            continue
        except OSError:  # it has children of its own, or the kernel has not let go of its last process yet
            try:
                remove_cgroup(folder)
            except OSError as error:
                raise BackendError(f"could not remove the cgroup {folder}: {error.strerror}") from error
