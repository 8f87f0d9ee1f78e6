"""Which cgroup hierarchies this process has: v1, v2, or v1 controllers beside an empty v2 tree (hybrid)."""

import os
import stat
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from tare.backends.cgroups.delegation import find_handed_on, find_parent
from tare.bench.model import Confound

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

    def missing(self, given: frozenset[str] | None = None) -> tuple[str, ...]:
        """The controllers that an envelope needs and are not among ``given`` (by default, ``available``)."""
        io = "io" if self.version is Version.V2 else "blkio"
        have = self.available() if given is None else given
        return tuple(name for name in (*WANTED, io) if name not in have)

    def confounds(self, backend: str, given: frozenset[str] | None = None) -> tuple[Confound, ...]:
        """What ``backend`` cannot enforce or account for here; ``given`` as in ``missing``."""
        return tuple(
            Confound(f"no-{name}-controller", f"no {name} cgroup controller, so not {_NEEDED_FOR[name]}", backend)
            for name in self.missing(given)
        )


def find_layout(root: Path = Path("/")) -> Layout:
    """The hierarchies by ``/proc/self/mountinfo`` and ``/proc/self/cgroup``, both below ``root``."""
    try:
        mounts = (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape")
        membership = (root / "proc/self/cgroup").read_text("utf-8", "surrogateescape")
    except OSError:
        return Layout(Version.NONE, {}, None, unprivileged=os.geteuid() != 0)
    own = _parse_membership(membership)
    controllers: dict[str, Path] = {}
    unified = unified_root = None
    for kind, mounted_root, point, options in _parse_cgroup_mounts(mounts):
        here = root / point.lstrip("/")
        if kind == "cgroup2" and "" in own:
            unified, unified_root = _below(here, mounted_root, own[""]), here
        for name in options if kind == "cgroup" else ():
            if name in own:
                controllers.setdefault(name, _below(here, mounted_root, own[name]))
    controllers = {name: folder for name, folder in controllers.items() if _is_ours(folder)}
    if unified is not None and not _is_ours(unified):
        unified = None
    return Layout(_version(controllers, unified), controllers, unified, unified_root, unprivileged=os.geteuid() != 0)


def _is_ours(folder: Path) -> bool:
    """Whether this user may make a group there: root, or one that the group was delegated to."""
    return folder.is_dir() and os.access(folder, os.W_OK)


def _version(controllers: Mapping[str, Path], unified: Path | None) -> Version:
    # A hierarchy without a controller (name=systemd) does not make a host v1.
    if any(name in controllers for name in (*WANTED, "blkio")):
        return Version.HYBRID if unified is not None else Version.V1
    return Version.V2 if unified is not None else Version.NONE


def _parse_membership(text: str) -> dict[str, str]:
    """Controller to our path in its hierarchy; the v2 tree is ``""``."""
    own: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        own.update(dict.fromkeys(names.split(","), path))
    return own


def _parse_cgroup_mounts(text: str) -> list[tuple[str, str, str, list[str]]]:
    """(type, root within the hierarchy, mount point, super options) of every cgroup mount."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) > 4 and len(rest) >= 3 and rest[0] in {"cgroup", "cgroup2"}:
            found.append((rest[0], _unescape(fields[3]), _unescape(fields[4]), rest[2].split(",")))
    return found


def _unescape(field: str) -> str:
    """A mountinfo field with its octal escapes undone."""
    for escape, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        field = field.replace(escape, character)
    return field


def _below(point: Path, mounted_root: str, path: str) -> Path:
    """Where our cgroup ``path`` is under a mount of the hierarchy's subtree ``mounted_root``."""
    if mounted_root != "/" and path.startswith(mounted_root):
        path = path[len(mounted_root) :]
    return point / path.strip("/")


def find_block_device(path: Path, root: Path = Path("/")) -> str | None:
    """``major:minor`` of the whole disk under the file system of ``path``; None for tmpfs, overlay and the like.

    ``root`` holds the ``sys`` and ``proc`` that are read.
    """
    device = path.stat().st_dev
    if os.major(device) == 0:
        source = _mount_source(device, root)
        try:
            status = Path(source).stat()
        except OSError:
            return None
        if not stat.S_ISBLK(status.st_mode):
            return None
        device = status.st_rdev
    entry = root / f"sys/dev/block/{os.major(device)}:{os.minor(device)}"
    if not (entry / "partition").exists():
        return f"{os.major(device)}:{os.minor(device)}" if entry.exists() else None
    return (entry.resolve().parent / "dev").read_text().strip()


def _mount_source(device: int, root: Path) -> str:
    """The source of the mount whose superblock has this anonymous device number (btrfs), or ``""``."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return _unescape(after.split()[1])
    return ""
