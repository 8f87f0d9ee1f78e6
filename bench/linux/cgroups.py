"""Cgroups of v1 and v2 by their folders: which a process is in, who is in one, and its end."""

import contextlib
import errno
import os
import re
import select
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from tare.bench.linux.files import HostRoots, find_text, read_bytes, read_text, write_text
from tare.bench.linux.mounts import read_mounts
from tare.bench.linux.processes import KILL_DEADLINE_S, kill_all


def find_folders(pid: int | str = "self", root: Path = Path("/")) -> tuple[dict[str, Path], dict[str, Path]]:
    """The folders of the cgroups that a process is in, by controller, and where the hierarchies are mounted, likewise.

    The folder in the v2 tree is ``""``, whether it has controllers or not. ``root`` is above all that is read. Nothing
    where there is no such process.
    """
    try:
        membership = os.fsdecode(read_bytes(root / f"proc/{pid}/cgroup"))
        mounts = read_mounts(HostRoots(root / "proc", root / "sys"))
    except OSError:
        return {}, {}
    paths: dict[str, str] = {}
    for line in filter(None, membership.split("\n")):
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        paths.update(dict.fromkeys(names.split(","), path))
    found: dict[str, Path] = {}
    tops: dict[str, Path] = {}
    for mount in mounts:
        point = root / str(mount.point).lstrip("/")
        for name in {"cgroup2": ("",), "cgroup": mount.options}.get(mount.kind, ()):
            if name in paths and (name not in found or not name):
                found[name], tops[name] = _below(point, mount.root, paths[name]), point
    return found, tops


def _below(point: Path, mounted_root: str, path: str) -> Path:
    """Where the cgroup ``path`` is under a mount of the hierarchy's subtree ``mounted_root``."""
    if mounted_root != "/" and path.startswith(mounted_root):
        path = path[len(mounted_root) :]
    return point / path.strip("/")


class MemoryLimit(NamedTuple):
    """A limit on memory, and whose it is: a cgroup's folder, None for one of a cgroup that cannot be seen from here."""

    size_bytes: int
    folder: Path | None


_CHARGED_AT_ONCE = 2**18
"""The kernel charges up to 64 pages at a time."""
_UNLIMITED = 2**62
"""v1 says 2**63 less a page where there is no limit."""


def find_memory_limit(folder: Path) -> MemoryLimit | None:
    """The smallest limit on memory of a cgroup and of all above it; None where there is none.

    ``folder`` is in v1's hierarchy of the memory controller, or in that of v2.
    """
    found: list[MemoryLimit] = []
    for group in (folder, *folder.parents):
        if not (group / "cgroup.procs").exists():
            break
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = find_text(group / name) or ""
            if text.isdecimal() and int(text) < _UNLIMITED:
                found.append(MemoryLimit(int(text), group))
    # In a cgroup namespace, or a container that mounts a part of the hierarchy, v1 tells of those above all the same.
    told = re.search(r"^hierarchical_memory_limit (\d+)$", find_text(folder / "memory.stat") or "", re.MULTILINE)
    if told is not None and int(told[1]) < min([_UNLIMITED, *(limit.size_bytes for limit in found)]):
        found.append(MemoryLimit(int(told[1]), None))
    return min(found, key=lambda limit: limit.size_bytes, default=None)


def has_met_memory_limit(folder: Path) -> bool:
    """Whether a cgroup has ever wanted more memory than its own limit.

    v1 does not count it in every kernel (``memory.failcnt`` stays 0 in 6.18), but its peak is at the limit then.
    """
    met = re.search(r"^max (\d+)$", find_text(folder / "memory.events") or "", re.MULTILINE)
    if met is not None:
        return met[1] != "0"
    peak, limit = (find_text(folder / f"memory.{name}_in_bytes") or "" for name in ("max_usage", "limit"))
    return peak.isdecimal() and limit.isdecimal() and int(peak) >= int(limit) - _CHARGED_AT_ONCE


def members_of(folder: Path) -> list[int]:
    """The host pids of the processes in a cgroup and in those below it; none once it is gone."""
    found: list[int] = []
    try:
        found += [int(pid) for pid in read_text(folder / "cgroup.procs").split()]
        with os.scandir(folder) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return found
    for path in below:
        found += members_of(Path(path))
    return found


def kill_members(folder: Path, *, keep: Collection[int] = (), freezer: Path | None = None) -> None:
    """SIGKILL every process in a cgroup and below it but ``keep``, and return when they have ended.

    By ``cgroup.kill`` (v2, Linux 5.14) if none is to be kept. Otherwise the group is frozen while they are signalled,
    so that a process that forks without end does not escape; ``freezer`` is its folder in v1's hierarchy of that name.
    Raises OSError (EBUSY) if some do not end within 10 s: they are stuck in the kernel.
    """
    if not keep and _kill_at_once(folder):
        return
    kill_all(
        lambda: [pid for pid in members_of(folder) if pid not in keep], hold=lambda: _frozen(folder, freezer or folder)
    )


def begin_kill(folder: Path) -> bool:
    """SIGKILL every process of a v2 cgroup without waiting for their end; False if this kernel cannot."""
    try:
        write_text(folder / "cgroup.kill", "1")
    except OSError:
        return False
    return True


def remove_cgroup(folder: Path) -> bool:
    """Kill every process in a cgroup and below it, then remove them all; False if there is none.

    Raises OSError if it cannot be emptied or removed.
    """
    if not folder.is_dir():
        return False
    groups = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    if os.getpid() in members_of(folder):
        raise OSError(errno.EBUSY, "this process is in it itself", str(folder))
    # From the top: a frozen parent keeps its children frozen, and a frozen process of v1 does not die.
    for group in groups:
        with contextlib.suppress(OSError):
            write_text(group / "freezer.state", "THAWED")
    kill_members(folder)
    deadline = time.monotonic() + KILL_DEADLINE_S
    for group in reversed(groups):
        _remove_empty(group, deadline)
    return True


def _remove_empty(group: Path, deadline: float) -> None:
    # The kernel lets go of a cgroup a moment after its last process was reaped, and has no event for it on v1.
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            kill_members(group)  # a process that was on its way here while the others were killed
            for below in _folders_in(group):  # and what it made here (LXC's monitor makes one, to be out of the way)
                _remove_empty(below, deadline)
            time.sleep(0.001)
        else:
            return


def _folders_in(group: Path) -> list[Path]:
    try:
        return [path for path in group.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


def _kill_at_once(folder: Path) -> bool:
    """Kill by ``cgroup.kill`` and wait until the group is empty; False where that cannot be done."""
    try:
        events = os.open(folder / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return begin_kill(folder) and _wait_empty(events, folder)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise
        return False  # somebody else removed it
    finally:
        os.close(events)


def _wait_empty(events: int, folder: Path) -> bool:
    """Wait for ``populated 0``; the kernel raises POLLPRI on ``cgroup.events`` at each change."""
    deadline = time.monotonic() + KILL_DEADLINE_S
    poll = select.poll()
    poll.register(events, select.POLLPRI)
    while b"populated 1" in os.pread(events, 4096, 0):
        if time.monotonic() > deadline:
            stuck = members_of(folder)
            raise OSError(errno.EBUSY, f"processes {stuck} do not end within {KILL_DEADLINE_S:g} s of SIGKILL")
        poll.poll(1000)
    return True


@contextlib.contextmanager
def _frozen(folder: Path, freezer: Path) -> Iterator[None]:
    """Every member stands still meanwhile, where this kernel can freeze them."""
    for file, freeze, thaw in (
        (folder / "cgroup.freeze", "1", "0"),
        (freezer / "freezer.state", "FROZEN", "THAWED"),
    ):
        try:
            write_text(file, freeze)
        except OSError:
            continue
        try:
            yield
        finally:
            write_text(file, thaw)
        return
    yield
