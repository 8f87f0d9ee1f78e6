"""Removing what a ledger entry names: marked processes, cgroups, folders and files.

One remover a kind, all alike: it takes the entry's target, returns False if it was not there any more, and raises
OSError if it cannot be removed. What a backend entered is removed by that backend (``Backend.reclaim``).
"""

import errno
import os
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

from tare.bench.linux.cgroups import remove_cgroup
from tare.bench.linux.mounts import read_mounts
from tare.bench.linux.processes import KILL_DEADLINE_S, kill_all
from tare.bench.trees import remove_tree

Remover = Callable[[str], bool]

MARKER_VARIABLE = "TARE_RESOURCE"
"""Environment variable by which a process of ours is recognised; its value is the entry's target."""


class ResourceKind(StrEnum):
    """What tare itself can remove.

    ``process``: every process with ``TARE_RESOURCE=<target>`` in its environment; one that forks faster than /proc can
    be read is certain to be caught by a cgroup only. ``cgroup``: the absolute
    path of a cgroup folder of ours; its processes are ours too and are killed. ``directory`` and ``file``:
    absolute paths of ours, removed with all they hold.
    """

    PROCESS = "process"
    CGROUP = "cgroup"
    DIRECTORY = "directory"
    FILE = "file"


def _kill_marked(target: str) -> bool:
    """Kill until no marked process is left: one may fork between being found and being killed."""
    return kill_all(lambda: [pid for pid in _marked(target) if pid != os.getpid()])


def _marked(target: str) -> list[int]:
    """The processes marked with ``target``.

    One may have forked and ended between being listed and being looked at, and its child is not in that listing. So
    "none" is believed only of a pass in which no process ended unseen; zombies and kernel threads, whose environment is
    empty for good, count once.
    """
    wanted = f"{MARKER_VARIABLE}={target}".encode()
    deadline = time.monotonic() + KILL_DEADLINE_S
    unseen_before: set[int] = set()
    while True:
        found, unseen = _look_for(wanted)
        if found or unseen <= unseen_before or time.monotonic() > deadline:
            return found
        unseen_before = unseen


def _look_for(variable: bytes) -> tuple[list[int], set[int]]:
    """One pass over all processes: those with ``variable`` in their environment, and those that showed none at all."""
    found, unseen = [], set()
    for name in os.listdir("/proc"):  # noqa: PTH208 - a few hundred names, many times: no paths are needed
        if not name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
        except PermissionError:
            continue
        except OSError:
            environment = b""
        if not environment:
            unseen.add(int(name))
        elif variable in environment.split(b"\0"):
            found.append(int(name))
    return found, unseen


def _remove_directory(target: str) -> bool:
    path = Path(target)
    if not os.path.lexists(path):
        return False
    deadline = time.monotonic() + KILL_DEADLINE_S
    for mount in read_mounts():
        if mount.point.is_relative_to(path):  # deleting on would reach into a file system that is not ours
            raise OSError(errno.EBUSY, "something is still mounted there", str(mount.point))
    while os.path.lexists(path):
        try:
            remove_tree(path)
        except OSError as error:
            # Somebody else, such as a second `tare clean`, removes or still fills it: what is left is still ours.
            if error.errno not in {errno.ENOENT, errno.ENOTEMPTY} or time.monotonic() > deadline:
                raise
    return True


def _remove_file(target: str) -> bool:
    try:
        Path(target).unlink()
    except FileNotFoundError:
        return False
    return True


REMOVERS: Mapping[str, Remover] = {
    ResourceKind.PROCESS: _kill_marked,
    ResourceKind.CGROUP: lambda target: remove_cgroup(Path(target)),
    ResourceKind.DIRECTORY: _remove_directory,
    ResourceKind.FILE: _remove_file,
}
