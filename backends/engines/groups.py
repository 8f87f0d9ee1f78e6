"""The cgroups of an engine's instance: one for all that it costs, and below it the container's own.

The engine's commands and helpers (shim, conmon, monitor) run in the upper one, so what they cost is the difference, and
whatever the engine loses track of is killed and removed with it.
"""

import contextlib
import fnmatch
import os
import struct
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from tare.backends.cgroups.layout import Layout, Version, find_handed_on, prepare_parent
from tare.backends.cgroups.lifecycle import PREFIX, Cgroup
from tare.backends.cgroups.limits import Limits
from tare.backends.native import syscalls
from tare.bench.errors import BackendError
from tare.bench.ledger import Ledger, ResourceKind
from tare.bench.linux.cgroups import begin_kill, find_folders, kill_members, members_of, remove_cgroup
from tare.bench.linux.files import read_text, write_text
from tare.bench.linux.memory import process_footprint
from tare.bench.linux.metering import CgroupMeter
from tare.bench.linux.processes import find_status
from tare.bench.model import Usage

ENGINE, CONTAINER = "engine", "container"
"""The groups below an instance's own: of the engine's processes on v2, where the upper one can have none; and the
container's, where the engine takes a name."""
_JOINED = ("cgroup.procs", "tasks")
"""Files by which a process is put into a group."""
_EVENT = struct.Struct("=iIII")


class ContainerGroup(Cgroup):
    """The container's own group: as tare made it, then as the engine did."""

    def __init__(self, layout: Layout, above: dict[str, Path], name: str) -> None:
        """``above`` is the folder of the instance by hierarchy (``""``: v2)."""
        of = {hierarchy: folder / name for hierarchy, folder in above.items()}
        self._parents = above
        self._of = None if layout.version is Version.V2 else of
        self.emptied_s = None
        self.clone_into = above.get("")
        self.folders = tuple(dict.fromkeys(of.values()))
        self.join_files_after_clone = ()
        self.join_files = tuple(folder / ("cgroup.procs" if key == "" else "tasks") for key, folder in of.items())
        self.meter = CgroupMeter(self.folders)

    def find_members(self) -> list[int]:
        """The processes in it before it is known in which hierarchies the engine has put them there."""
        named = (path for folder in self.folders for path in folder.parent.glob(folder.name))
        return next((found for folder in named if (found := members_of(folder))), [])

    def adopt(self, pid: int) -> None:
        """Take the groups that a process is in, below those of the instance. Raises BackendError if there are none."""
        folders, _ = find_folders(pid)
        found = {
            name: folder
            for name, folder in folders.items()
            if name in self._parents and self._parents[name] in folder.parents
        }
        if not found:
            raise BackendError(
                f"the engine put the container's first process (pid {pid}) into none of the instance's cgroups",
                evidence=str(sorted(map(str, folders.values()))),
            )
        if self._of is not None:
            self._of = found
        self.folders = tuple(dict.fromkeys(found[name] for name in sorted(found)))
        self.meter = CgroupMeter(self.folders)


class Groups:
    """The cgroups of one instance, named ``tare-ID`` in every hierarchy of this host. Made by ``start_groups``."""

    def __init__(self, layout: Layout, identifier: str, *, at_top: bool, container: str) -> None:
        """``at_top``: below the roots of the hierarchies, for an engine that takes one path for all of them.

        ``container`` is the name of the container's group below the instance's.
        """
        name = identifier if identifier.startswith(PREFIX) else PREFIX + identifier
        self._layout = layout
        self.name = name
        self.of = {hierarchy: folder / name for hierarchy, folder in _parents(layout, at_top=at_top).items()}
        self.folders = tuple(dict.fromkeys(self.of.values()))
        self.container = ContainerGroup(layout, self.of, container)
        self.meter = CgroupMeter(self.folders)
        self.is_killed = False
        """By the kernel's cgroup.kill: from then on, whatever is born in them is killed too (Linux 6.18)."""
        self.brought_s = (0.0, 0.0)
        """User and system CPU seconds of helpers before they were taken in."""

    @property
    def engine_files(self) -> tuple[Path, ...]:
        """What the engine's processes write 0 to, to join the instance's group."""
        if self._layout.version is Version.V2:
            return (self.of[""] / ENGINE / "cgroup.procs",)
        return tuple(folder / ("cgroup.procs" if key == "" else "tasks") for key, folder in self.of.items())

    def watch(self, *, premade: bool) -> "JoinWatch":
        """Tells when the engine puts a process into the container's group, or makes that group."""
        if premade:
            return JoinWatch(self.container.folders, _JOINED, syscalls.IN_MODIFY)
        return JoinWatch(self.folders, (self.container.folders[0].name,), syscalls.IN_CREATE)

    def make(self, limits: Limits, engine_limits: Collection[str], *, premade: bool = True) -> dict[str, str]:
        """Make all of them, with those ``limits`` on the container's that the engine does not set by itself.

        Not ``premade``: the engine makes the container's, and sets all limits. Returns those that are not enforced, and
        why, as ``Cgroup.set_limits`` does. Raises BackendError.
        """
        try:
            for folder in self.folders:
                os.mkdir(folder)  # noqa: PTH102 - on the measured start path
            self._open(limits)
            if not premade:
                return {}
            for folder in self.container.folders:
                os.mkdir(folder)  # noqa: PTH102
            rest = {name: value for name, value in limits.items() if name not in engine_limits}
            return self.container.set_limits(rest)
        except OSError as error:
            raise BackendError(
                f"the kernel refused a cgroup: {error.strerror}: {error.filename}",
                remedy="check that tare runs as root, and that the limits fit those of the cgroup tare itself is in",
            ) from error

    def _open(self, limits: Limits) -> None:
        """Let the instance's group take processes and have the container's below it."""
        if self._layout.version is Version.V2:
            top = self.of[""]
            (top / ENGINE).mkdir()
            given = " ".join(f"+{name}" for name in sorted(find_handed_on(top.parent)))
            write_text(top / "cgroup.subtree_control", given)
        elif cpuset := self.of.get("cpuset"):
            write_text(cpuset / "cpuset.mems", read_text(cpuset.parent / "cpuset.mems"))
            write_text(cpuset / "cpuset.cpus", ",".join(map(str, limits["cpus"])))

    def take_in(self, pid: int) -> float:
        """Move a helper that a daemon has started (a shim) to the engine's processes of this instance.

        Only where CPU time is counted: moving one takes the kernel 7 to 15 ms in each hierarchy. Returns the CPU
        seconds that it had used by then, with the children it has waited for, in ticks of 10 ms; 0 if it is gone.
        Raises BackendError.
        """
        status = find_status(pid)
        if status is None:
            return 0.0
        files = self.engine_files if "" not in self.of else self.engine_files[:1]
        try:
            for file in files:
                write_text(file.with_name("cgroup.procs"), str(pid))
        except ProcessLookupError:
            return 0.0
        except OSError as error:
            raise BackendError(
                f"could not move the engine's process {pid}: {error.strerror}: {error.filename}"
            ) from error
        user, system = status.user_s + status.waited_user_s, status.system_s + status.waited_system_s
        self.brought_s = self.brought_s[0] + user, self.brought_s[1] + system
        return user + system

    def find_outside(self) -> list[int]:
        """The container's processes that are not in the instance's v2 group, where CPU time is read."""
        held = members_of(self.of[""]) if "" in self.of else self.container.members()
        return [pid for pid in self.container.members() if pid not in held]

    def usage(self) -> Usage:
        """The container's, with CPU time and memory of the engine's processes for this instance."""
        whole = self.meter.usage()
        user_s, system_s = self.brought_s
        return msgspec.structs.replace(
            self.container.meter.usage(),
            cpu_user_s=None if whole.cpu_user_s is None else whole.cpu_user_s + user_s,
            cpu_system_s=None if whole.cpu_system_s is None else whole.cpu_system_s + system_s,
            memory_current_bytes=whole.memory_current_bytes,
        )

    def share(self) -> tuple[float | None, int | None]:
        """CPU seconds of the engine's processes of this instance so far, and their proportional set size now."""
        whole, own = self.meter.usage().cpu_s, self.container.meter.usage().cpu_s
        inside = set(self.container.members())
        helpers = [pid for pid in self.meter.members() if pid not in inside]
        pss = process_footprint(helpers)[0] if helpers else 0
        return (None if whole is None or own is None else max(0.0, whole - own) + sum(self.brought_s)), pss

    def begin_kill(self) -> None:
        """SIGKILL everything in them and return at once, where this kernel can."""
        if "" in self.of:
            self.is_killed = True
            begin_kill(self.of[""])

    def remove(self) -> None:
        """Kill what is left in them and remove them. Raises BackendError."""
        try:
            for folder in self.folders:
                kill_members(folder, freezer=self.of.get("freezer"))
            self.container.emptied_s = time.monotonic()
            for folder in self.folders:
                remove_cgroup(folder)
        except OSError as error:
            raise BackendError(f"could not remove the cgroup {error.filename}: {error.strerror}") from error


def _parents(layout: Layout, *, at_top: bool) -> dict[str, Path]:
    """The folder in each hierarchy below which instances get theirs."""
    unified = {}
    if layout.unified is not None and layout.unified_root is not None:
        own = layout.unified_root if at_top else layout.unified
        unified = {"": prepare_parent(own, layout.unified_root) if layout.version is Version.V2 else own}
    if layout.version is Version.V2:
        return unified
    own_folders = layout.controllers if not at_top else find_folders()[1]
    return {**unified, **{name: folder for name, folder in own_folders.items() if name}}


@contextlib.contextmanager
def start_groups(ledger: Ledger, groups: Groups, daemon: Iterable[Path] = ()) -> Iterator[Groups]:
    """``groups``, entered in the ledger and not made yet; on exit they are emptied and removed.

    ``daemon`` are the cgroup's folders of a daemon that makes groups in them. They are entered once more, after them:
    what is entered last is removed first, and a daemon that outlived its owner would make them again.
    """
    entries = ledger.enter_all(ResourceKind.CGROUP, (*groups.folders, *daemon))
    try:
        yield groups
    finally:
        groups.remove()
        ledger.strike_all(entries)


class JoinWatch:
    """Tells of the first event in cgroups' folders, by inotify: nothing is polled for."""

    def __init__(self, folders: Iterable[Path], names: Collection[str], mask: int) -> None:
        """``names`` are patterns of the files or folders that events of ``mask`` are waited for."""
        self._names = names
        self._descriptor = syscalls.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        for folder in folders:
            syscalls.inotify_add_watch(self._descriptor, str(folder), mask)

    def fileno(self) -> int:
        """The descriptor, for ``poll``."""
        return self._descriptor

    def joined(self) -> bool:
        """Whether one of the events that wait is it."""
        with contextlib.suppress(BlockingIOError):
            events = os.read(self._descriptor, 1 << 14)
            while events:
                _, _, _, length = _EVENT.unpack_from(events)
                name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                if any(fnmatch.fnmatchcase(os.fsdecode(name), wanted) for wanted in self._names):
                    return True
                events = events[_EVENT.size + length :]
        return False

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)
