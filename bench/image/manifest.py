"""The canonical list of a tree, and the digest that names an image's content.

One line a file, sorted by path: type, mode, owner, size or device, SHA-256 of the content, link target, extended
attributes. Times are left out, and so are hard links (each name stands for itself): neither changes what runs.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

_LEFT_OUT = ("security.selinux", "security.ima", "security.evm", "trusted.")
"""Extended attributes that the host's own policy sets on any file."""


def list_tree(root: Path) -> list[str]:
    """The lines of the tree below ``root``. Raises OSError."""
    found = sorted(_walk(os.fsencode(root)))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(lambda path: _line(os.fsencode(root), path), found, chunksize=64))


def digest_of(lines: list[str], kernel_sha256: str, initramfs_sha256: str) -> str:
    """The image's digest: 64 hexadecimal digits over the tree, the kernel and the initramfs ("" for none)."""
    digest = hashlib.sha256(b"tare image 1\n")
    for line in (*lines, f"kernel {kernel_sha256}", f"initramfs {initramfs_sha256}"):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def path_of(line: str) -> str:
    """The quoted path in a manifest line."""
    return line.split(" ", 1)[0]


def hash_file(path: Path | bytes) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:  # noqa: PTH123 - paths of a foreign tree are bytes
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(root: bytes, below: bytes = b"") -> Iterator[bytes]:
    """Every path below ``root``, relative to it; ``b""`` is the root folder itself."""
    yield below
    with os.scandir(os.path.join(root, below)) as entries:  # noqa: PTH118 - bytes
        for entry in entries:
            path = os.path.join(below, entry.name)  # noqa: PTH118 - bytes
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, path)
            else:
                yield path


def _line(root: bytes, below: bytes) -> str:
    path = os.path.join(root, below)  # noqa: PTH118 - bytes
    status = os.lstat(path)
    kind = stat.filemode(status.st_mode)[0]
    content = "-"
    match kind:
        case "-":
            kind, content = "f", f"{status.st_size}:{hash_file(path)}"
        case "l":
            content = quote_from_bytes(os.readlink(path))  # noqa: PTH115 - bytes
        case "b" | "c":
            content = f"{os.major(status.st_rdev)},{os.minor(status.st_rdev)}"
    attributes = "".join(
        f" {quote(name)}={os.getxattr(path, name, follow_symlinks=False).hex()}"
        for name in sorted(os.listxattr(path, follow_symlinks=False))
        if not name.startswith(_LEFT_OUT)
    )
    owner = f"{status.st_uid}:{status.st_gid}"
    name = quote_from_bytes(below) or "."
    return f"{name} {kind} {stat.S_IMODE(status.st_mode):04o} {owner} {content}{attributes}"
