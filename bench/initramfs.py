"""What an initramfs holds: files in a newc cpio archive, and kernel modules in the order in which they are loaded."""

import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tare.bench.errors import ImageError


class UnsupportedKernelError(ImageError):
    """A kernel package that lacks a module, or has it in a form that the guest cannot load."""


class Member(msgspec.Struct, frozen=True):
    """A file or folder of an archive; ``mode`` holds the type too."""

    path: str
    mode: int
    data: bytes = b""


def pack(members: Sequence[Member]) -> bytes:
    """A newc cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst), which is what an initramfs is.

    The same members give the same bytes: owner root, time 0, inodes counted from 1.
    """
    parts = []
    for inode, member in enumerate([*members, Member("TRAILER!!!", 0)], start=1):
        name = member.path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(member.mode) else 1
        fields = (inode, member.mode, 0, 0, links, 0, len(member.data), 0, 0, 0, 0, len(name), 0)
        header = ("070701" + "".join(f"{value:08x}" for value in fields)).encode()
        parts += [_padded(header + name), _padded(member.data)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def order_modules(modules_dep: str, modules_builtin: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of the wanted modules and all they depend on, each after what it depends on. Built-in ones are left out.

    A line of ``modules.dep`` is ``path: dependency dependency``, all dependencies included, the first to load last.
    """
    lines = (line.partition(":") for line in modules_dep.splitlines())
    dependencies = {path: tuple(reversed(needs.split())) for path, _, needs in lines}
    by_name = {_name(path): path for path in dependencies}
    built_in = {_name(line) for line in modules_builtin.splitlines()}
    ordered: dict[str, None] = {}
    for module in wanted:
        if module in by_name:
            ordered.update(dict.fromkeys((*dependencies[by_name[module]], by_name[module])))
        elif module not in built_in:
            raise UnsupportedKernelError(
                f"the guest's kernel has no module {module}, and it is not built in",
                remedy="use Debian's linux-image-cloud-amd64, or a kernel with the same virtio drivers",
            )
    compressed = [path for path in ordered if not path.endswith(".ko")]
    if compressed:
        raise UnsupportedKernelError(
            f"the guest's kernel has compressed modules ({compressed[0]}), which the guest's init cannot load",
            remedy="decompress them and run depmod again",
        )
    return tuple(ordered)


def _name(path: str) -> str:
    """A module's name from its file: without folder and endings, with ``_`` for ``-``."""
    return Path(path).name.partition(".ko")[0].replace("-", "_")
