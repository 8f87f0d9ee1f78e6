"""Writes the kernel's initramfs format ("newc" cpio; Documentation/driver-api/early-userspace/buffer-format.rst)."""

import stat
from collections.abc import Sequence

import msgspec

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"


class Member(msgspec.Struct, frozen=True):
    """One file of an archive; ``mode`` holds the type too. ``device`` is (major, minor) of a device node."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def pack(members: Sequence[Member]) -> bytes:
    """The archive. The same members give the same bytes: owner root, time 0, inodes counted from 1."""
    parts = []
    for inode, member in enumerate([*members, Member(_TRAILER, 0)], start=1):
        name = member.path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(member.mode) else 1
        fields = (inode, member.mode, 0, 0, links, 0, len(member.data), 0, 0, *member.device, len(name), 0)
        header = (_MAGIC + "".join(f"{value:08x}" for value in fields)).encode()
        parts += [_padded(header + name), _padded(member.data)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
