"""What is mounted where, by ``/proc/self/mountinfo`` (proc_pid_mountinfo(5))."""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tare.bench.linux.files import HERE, HostRoots, read_bytes, read_text

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(msgspec.Struct, frozen=True):
    """One mount. ``device`` is ``major:minor``, ``root`` what of the file system is seen at ``point``."""

    device: str
    root: str
    point: Path
    kind: str
    source: str
    options: tuple[str, ...]


def read_mounts(roots: HostRoots = HERE) -> list[Mount]:
    """The mounts that this process sees, in the order of mounting. Raises OSError."""
    return parse_mountinfo(read_bytes(roots.proc / "self/mountinfo"))


def parse_mountinfo(data: bytes) -> list[Mount]:
    """The mounts in a mountinfo, with the octal escapes of white space undone; ``options`` are the super block's."""
    mounts = []
    for line in data.split(b"\n"):
        before, _, after = line.partition(b" - ")
        fields, rest = (
            [os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), field)) for field in part.split(b" ")]
            for part in (before, after)
        )
        if len(fields) >= 6 and len(rest) >= 3:
            mounts.append(Mount(fields[2], fields[3], Path(fields[4]), rest[0], rest[1], tuple(rest[2].split(","))))
    return mounts


def find_mount(path: Path, mounts: Iterable[Mount]) -> Mount | None:
    """The mount that a path lies on: of the longest mount point above it, the one mounted last."""
    holding = [mount for mount in mounts if path.is_relative_to(mount.point)]
    return max(reversed(holding), key=lambda mount: len(mount.point.parts), default=None)


def find_block_device(path: Path, roots: HostRoots = HERE) -> str | None:
    """``major:minor`` of the whole disk under the file system of ``path``; None for tmpfs, overlay and the like."""
    device = path.stat().st_dev
    if os.major(device) == 0:  # an anonymous super block, as btrfs has: its source may be a disk
        wanted = f"0:{os.minor(device)}"
        sources = [mount.source for mount in read_mounts(roots) if mount.device == wanted]
        try:
            status = Path(sources[0]).stat()
        except (OSError, IndexError):
            return None
        if not stat.S_ISBLK(status.st_mode):
            return None
        device = status.st_rdev
    entry = roots.sys / f"dev/block/{os.major(device)}:{os.minor(device)}"
    if not (entry / "partition").exists():
        return f"{os.major(device)}:{os.minor(device)}" if entry.exists() else None
    return read_text(entry.resolve().parent / "dev").strip()
