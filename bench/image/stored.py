"""What lies in an image's folder: ``image.json`` and the files with it; loading, the cheap check and the full one.

A folder is named by the image's digest and holds ``rootfs/``, ``disk.erofs``, ``vmlinuz``, ``initramfs``,
``manifest.txt`` (the tree's canonical list), ``process.json`` (the program that an imported image is made for) and
``image.json``, which is written last.

The list has one line a file, sorted by path: type, mode, owner, size or device, SHA-256 of the content, link target,
extended attributes. Times are left out, and so are hard links (each name stands for itself): neither changes what runs.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import msgspec

from tare.bench.errors import ImageError
from tare.bench.image.recipe import Recipe
from tare.bench.model import Image, Struct
from tare.bench.service import ImageProcess

FORMAT = 1
DESCRIPTION = "image.json"
MANIFEST = "manifest.txt"
ROOTFS = "rootfs"
DISK = "disk.erofs"
KERNEL = "vmlinuz"
INITRAMFS = "initramfs"
PROCESS = "process.json"

_PROBES = 64
_LENDING = threading.Lock()
_LEFT_OUT = ("security.selinux", "security.ima", "security.evm", "trusted.")
"""Extended attributes that the host's own policy sets on any file."""


class StoredFile(Struct, frozen=True):
    """A file beside the tree, or one of the tree's largest."""

    size: int
    sha256: str = ""


class Description(Struct, frozen=True):
    """``image.json``.

    ``files`` are those beside the tree; ``probes`` the tree's largest, whose sizes are looked at before each use.
    ``recipe`` is None for an imported image, whose ``origin`` is the file's name.
    """

    format: int
    digest: str
    built_utc: str
    recipe: Recipe | None
    origin: str
    kernel_version: str
    guest_problem: str
    packages: Mapping[str, str]
    tools: Mapping[str, str]
    size_bytes: int
    files: Mapping[str, StoredFile]
    probes: Mapping[str, int]


def measure(lines: list[str]) -> tuple[dict[str, int], int]:
    """Of a manifest: its largest regular files with their sizes, and the bytes of all of them together."""
    sizes = {}
    for line in lines:
        path, kind, _mode, _owner, content = line.split(" ")[:5]
        if kind == "f":
            sizes[path] = int(content.partition(":")[0])
    largest = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    plain = [(path, size) for path, size in largest if "%" not in path]
    return dict(plain[:_PROBES]), sum(sizes.values())


def load(folder: Path, name: str = "") -> Image:
    """The image in ``folder`` after a cheap check (a few milliseconds): everything present, with its size.

    Raises ImageError that says what is wrong and what to do.
    """
    description = load_description(folder)
    for file, stored in description.files.items():
        _check_size(folder, folder / file, stored.size)
    for path, size in description.probes.items():
        _check_size(folder, folder / ROOTFS / path, size)
    files = description.files
    return Image(
        digest=description.digest,
        recipe=description.recipe.hash if description.recipe else "",
        directory=folder,
        rootfs=folder / ROOTFS,
        disk=folder / DISK if DISK in files else None,
        kernel=folder / KERNEL if KERNEL in files else None,
        initramfs=folder / INITRAMFS if INITRAMFS in files else None,
        kernel_version=description.kernel_version,
        packages=description.packages,
        size_bytes=description.size_bytes,
        name=name,
        built_utc=description.built_utc,
        tools=description.tools,
        guest_problem=description.guest_problem,
        process=load_process(folder) if PROCESS in files else None,
    )


def load_process(folder: Path) -> ImageProcess | None:
    """The program that the image in ``folder`` is made for; None if nothing says so. Raises ImageError."""
    try:
        return msgspec.json.decode((folder / PROCESS).read_bytes(), type=ImageProcess)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise _broken(folder, f"{PROCESS} cannot be read: {error}") from error


def load_description(folder: Path) -> Description:
    """``image.json`` of ``folder``. Raises ImageError if it is missing, unreadable or of another folder."""
    try:
        description = msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=Description)
    except FileNotFoundError:
        raise _broken(folder, f"{DESCRIPTION} is missing: it was not finished") from None
    except (OSError, msgspec.DecodeError) as error:
        raise _broken(folder, f"{DESCRIPTION} cannot be read: {error}") from error
    if description.format != FORMAT:
        raise _broken(folder, f"it has format {description.format}, and this tare knows {FORMAT}")
    if description.digest != folder.name:
        raise _broken(folder, f"{DESCRIPTION} is that of the image {description.digest[:12]}")
    return description


def verify(folder: Path) -> None:
    """Compare every byte of the image with what was recorded. Raises ImageError with the first files that differ."""
    description = load_description(folder)
    try:
        hashes = {name: hash_file(folder / name) for name in description.files}
        recorded = (folder / MANIFEST).read_text().splitlines()
        found = list_tree(folder / ROOTFS)
    except OSError as error:
        raise _broken(folder, f"{error.filename}: {error.strerror}") from error
    changed = [name for name, file in description.files.items() if hashes[name] != file.sha256]
    changed += _differences(recorded, found)
    digest = digest_of(found, hashes)
    if changed or digest != description.digest:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise _broken(folder, f"not as it was built: {shown or 'its digest differs'}")


def _differences(recorded: list[str], found: list[str]) -> list[str]:
    if recorded == found:
        return []
    before = {line.partition(" ")[0]: line for line in recorded}
    after = {line.partition(" ")[0]: line for line in found}
    return [f"{ROOTFS}/{path}" for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]


def _check_size(folder: Path, path: Path, size: int) -> None:
    try:
        found = path.lstat().st_size
    except PermissionError:
        return  # in a folder that its owner keeps to himself
    except OSError as error:
        raise _broken(folder, f"{path.relative_to(folder)}: {error.strerror}") from error
    if found != size:
        raise _broken(folder, f"{path.relative_to(folder)} has {found} bytes instead of {size}")


def _broken(folder: Path, problem: str) -> ImageError:
    return ImageError(
        f"the image {folder.name[:12]} is broken: {problem} (in {folder})",
        remedy=f"run `tare image remove {folder.name[:12]}`, then build or import it again",
    )


def list_tree(root: Path) -> list[str]:
    """The lines of the tree below ``root``. Raises OSError.

    What its owner, an ordinary user, may not read becomes readable for as long as that takes.
    """
    top = os.fsencode(root)
    lent: dict[bytes, int] = {}
    try:
        found = sorted(walk(top, lent), key=lambda item: item[0])
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            return list(pool.map(lambda item: _line(top, *item), found, chunksize=64))
    finally:
        for path, mode in reversed(lent.items()):
            os.chmod(path, mode)  # noqa: PTH101 - bytes


def digest_of(lines: list[str], hashes: Mapping[str, str]) -> str:
    """The image's digest: 64 hexadecimal digits over the tree, and the hashes of those files that decide what runs."""
    digest = hashlib.sha256(b"tare image 1\n")
    process = [f"process {hashes[PROCESS]}"] if PROCESS in hashes else []
    for line in (*lines, f"kernel {hashes.get(KERNEL, '')}", f"initramfs {hashes.get(INITRAMFS, '')}", *process):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def hash_file(path: Path | bytes) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:  # noqa: PTH123 - paths of a foreign tree are bytes
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(root: bytes, lent: dict[bytes, int]) -> Iterator[tuple[bytes, os.stat_result]]:
    """Every path below ``root``, relative to it, each folder before what it holds; ``b""`` is the root folder itself.

    The modes of folders that had to be made readable are entered in ``lent``.
    """
    pending = [b""]
    while pending:
        below = pending.pop()
        path = os.path.join(root, below)  # noqa: PTH118 - bytes
        status = os.lstat(path)
        yield below, status
        if stat.S_ISDIR(status.st_mode):
            mode = stat.S_IMODE(status.st_mode)
            if mode & stat.S_IRWXU != stat.S_IRWXU and status.st_uid == os.geteuid() != 0:
                lent[path] = mode
                os.chmod(path, mode | stat.S_IRWXU)  # noqa: PTH101 - bytes
            pending += [os.path.join(below, name) for name in os.listdir(path)]  # noqa: PTH118, PTH208 - bytes


def _hash_lent(path: bytes, status: os.stat_result) -> str:
    """The hash of a file that its owner may not be allowed to read."""
    mode = stat.S_IMODE(status.st_mode)
    if mode & stat.S_IRUSR or status.st_uid != os.geteuid() or os.geteuid() == 0:
        return hash_file(path)
    with _LENDING:  # another thread may read it by another name
        os.chmod(path, mode | stat.S_IRUSR)  # noqa: PTH101 - bytes
        try:
            file = open(path, "rb")  # noqa: PTH123, SIM115 - bytes; closed below
        finally:
            os.chmod(path, mode)  # noqa: PTH101 - bytes
    with file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(root: bytes, below: bytes, status: os.stat_result) -> str:
    path = os.path.join(root, below)  # noqa: PTH118 - bytes
    kind = stat.filemode(status.st_mode)[0]
    content = "-"
    match kind:
        case "-":
            kind, content = "f", f"{status.st_size}:{_hash_lent(path, status)}"
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
