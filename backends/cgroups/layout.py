"""Which cgroup hierarchies this process has: v1, v2, or v1 controllers next to an empty v2 tree (hybrid).

On v2 also which cgroup can hand controllers on to its children, and making it do so (Linux
``Documentation/admin-guide/cgroup-v2.rst``, "Top-down Constraint" and "No Internal Process Constraint").
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from tare.bench.catalogue import ConfoundCode
from tare.bench.linux.cgroups import MemoryLimit, find_folders, find_memory_limit
from tare.bench.linux.files import read_text, write_text
from tare.bench.model import Confound

CONTROLLERS = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
"""Those of v2 that enforce or account for an envelope."""
WANTED = ("cpu", "cpuset", "memory", "pids")
"""Controllers that enforce or account for an envelope; I/O is ``blkio`` on v1 and ``io`` on v2."""

_NEEDED_FOR = {
    "cpu": "a fair share of CPU time and throttled time",
    "cpuset": "keeping every process on the envelope's CPUs",
    "memory": "the memory limit, its peak and out-of-memory kills",
    "pids": "the limit on processes",
    "blkio": "I/O bytes",
    "io": "I/O bytes",
}
_PARTLY = (
    "cgroups v1 count what a process writes to the device itself; what the kernel writes back of the page cache is "
    "counted for nobody, so host.io_write is the least that was written"
)


class Version(StrEnum):
    """How a host mounts cgroups."""

    V1 = "v1"
    HYBRID = "v1 (hybrid)"
    V2 = "v2"
    NONE = "none"


class Layout(msgspec.Struct, frozen=True):
    """The folders of the cgroups that this process is in.

    ``controllers`` maps a v1 controller to our own folder in its hierarchy; ``unified`` is our own folder
    in the v2 tree, also where that tree holds no controller. ``unified_root`` is where that tree is mounted.
    Only folders that this user may make children in count; ``unprivileged`` says that it is an ordinary one.
    """

    version: Version
    controllers: Mapping[str, Path]
    unified: Path | None
    unified_root: Path | None = None
    unprivileged: bool = False

    def available(self) -> frozenset[str]:
        """The controllers that a new child of ours can have. Changes nothing: the kernel may still refuse some."""
        if self.version is not Version.V2 or self.unified is None or self.unified_root is None:
            return frozenset(self.controllers)
        return find_parent(self.unified, self.unified_root)[1]

    def granted(self) -> frozenset[str]:
        """The controllers that a child of ours has, once the first was made and the kernel has refused what it does."""
        if self.version is not Version.V2 or self.unified is None or self.unified_root is None:
            return frozenset(self.controllers)
        return find_handed_on(find_parent(self.unified, self.unified_root)[0])

    def outer_memory_limit(self) -> MemoryLimit | None:
        """The smallest limit on memory around an instance's own; None where there is none."""
        folder = self.controllers.get("memory")
        if folder is None and self.unified is not None and self.unified_root is not None:
            folder = find_parent(self.unified, self.unified_root)[0]
        return None if folder is None else find_memory_limit(folder)

    def missing(self, given: frozenset[str] | None = None) -> tuple[str, ...]:
        """The controllers that an envelope needs and are not among ``given`` (by default, ``available``)."""
        io = "io" if self.version is Version.V2 else "blkio"
        have = self.available() if given is None else given
        return tuple(name for name in (*WANTED, io) if name not in have)

    def confounds(
        self, backend: str, given: frozenset[str] | None = None, *, waits_for_all: bool = False
    ) -> tuple[Confound, ...]:
        """What ``backend`` cannot enforce or account for here.

        ``given`` as in ``missing``; ``waits_for_all`` is that of its meters.
        """
        missing = self.missing(given)
        found = [
            Confound(f"no-{name}-controller", f"no {name} cgroup controller, so not {_NEEDED_FOR[name]}", backend)
            for name in missing
        ]
        if self.version in {Version.V1, Version.HYBRID} and "blkio" not in missing and not waits_for_all:
            found.append(Confound(ConfoundCode.IO_WRITES_PARTLY, _PARTLY, backend))
        return tuple(found)


def find_layout(root: Path = Path("/")) -> Layout:
    """The hierarchies by ``/proc/self/mountinfo`` and ``/proc/self/cgroup``, both below ``root``."""
    folders, tops = find_folders("self", root)
    ours = {name: folder for name, folder in folders.items() if _is_ours(folder)}
    unified = ours.pop("", None)
    return Layout(_version(ours, unified), ours, unified, tops.get(""), unprivileged=os.geteuid() != 0)


def _is_ours(folder: Path) -> bool:
    """Whether this user may make a group there: root, or one that the group was delegated to."""
    return folder.is_dir() and os.access(folder, os.W_OK)


def _version(controllers: Mapping[str, Path], unified: Path | None) -> Version:
    # A hierarchy without a controller (name=systemd) does not make a host v1.
    if any(name in controllers for name in (*WANTED, "blkio")):
        return Version.HYBRID if unified is not None else Version.V1
    return Version.V2 if unified is not None else Version.NONE


def find_parent(own: Path, top: Path) -> tuple[Path, frozenset[str]]:
    """The group, ours or one above, whose children can have the most controllers, and which; the nearest of equals.

    Nothing is changed. Ours has processes in it, at least this one, so it hands on nothing unless it is the root.
    """
    parent, most = own, frozenset[str]()
    for folder, handed_on in _walk_down(own, top):
        if len(handed_on) >= len(most) and os.access(folder, os.W_OK):
            parent, most = folder, handed_on
    return parent, most


def prepare_parent(own: Path, top: Path) -> Path:
    """The parent that ``find_parent`` finds, made to hand on what it can. What the kernel refuses is passed over."""
    parent, possible = find_parent(own, top)
    if possible <= find_handed_on(parent):
        return parent
    for folder, handed_on in _walk_down(parent, top):
        for name in sorted(handed_on - find_handed_on(folder)):
            with contextlib.suppress(OSError):  # one refused (cpu, where there are realtime tasks) leaves the others
                write_text(folder / "cgroup.subtree_control", f"+{name}")
    return parent


def find_handed_on(folder: Path) -> frozenset[str]:
    """The controllers that children of ``folder`` have as things are."""
    try:
        return CONTROLLERS & _words(folder / "cgroup.subtree_control")
    except OSError:
        return frozenset()


def _walk_down(own: Path, top: Path) -> Iterator[tuple[Path, frozenset[str]]]:
    """Each group from ``top`` to ``own``, and what its children have or could have; up to where there is no way on."""
    steps = [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]
    with contextlib.suppress(OSError):
        given = CONTROLLERS & _words(top / "cgroup.controllers")
        for folder in reversed(steps):
            kind = folder / "cgroup.type"
            is_root = not kind.exists()
            if not is_root and read_text(kind).strip() != "domain":
                return  # threaded: its children take no process of another group
            enabled = _words(folder / "cgroup.subtree_control")
            if not given <= enabled and not (is_root or _is_free(folder)):
                given &= enabled
            yield folder, given


def _is_free(folder: Path) -> bool:
    """Whether it has no processes, and we may change it.

    The kernel would let cpu, cpuset and pids be enabled in a group with processes, and thereby make it threaded.
    """
    return not read_text(folder / "cgroup.procs").strip() and os.access(folder / "cgroup.subtree_control", os.W_OK)


def _words(file: Path) -> frozenset[str]:
    return frozenset(read_text(file).split())
