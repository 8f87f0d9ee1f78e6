"""What lies in an image's folder: ``image.json`` and the files beside it; loading, the cheap check and the full one.

A folder is named by the image's digest and holds ``rootfs/``, ``disk.erofs``, ``vmlinuz``, ``initramfs``,
``manifest.txt`` (the tree's canonical list) and ``image.json``, which is written last.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from tare.bench.errors import ImageError
from tare.bench.image.manifest import digest_of, hash_file, list_tree, path_of
from tare.bench.image.recipe import Recipe
from tare.bench.model import Image, Struct

FORMAT = 1
DESCRIPTION = "image.json"
MANIFEST = "manifest.txt"
ROOTFS = "rootfs"
DISK = "disk.erofs"
KERNEL = "vmlinuz"
INITRAMFS = "initramfs"

_PROBES = 64


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
    )


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


def save_description(folder: Path, description: Description) -> None:
    """Write ``image.json``, the last file of an image."""
    (folder / DESCRIPTION).write_bytes(msgspec.json.format(msgspec.json.encode(description), indent=1) + b"\n")


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
    digest = digest_of(found, hashes.get(KERNEL, ""), hashes.get(INITRAMFS, ""))
    if changed or digest != description.digest:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise _broken(folder, f"not as it was built: {shown or 'its digest differs'}")


def _differences(recorded: list[str], found: list[str]) -> list[str]:
    if recorded == found:
        return []
    before = {path_of(line): line for line in recorded}
    after = {path_of(line): line for line in found}
    return [f"{ROOTFS}/{path}" for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]


def _check_size(folder: Path, path: Path, size: int) -> None:
    try:
        found = path.lstat().st_size
    except OSError as error:
        raise _broken(folder, f"{path.relative_to(folder)}: {error.strerror}") from error
    if found != size:
        raise _broken(folder, f"{path.relative_to(folder)} has {found} bytes instead of {size}")


def _broken(folder: Path, problem: str) -> ImageError:
    return ImageError(
        f"the image {folder.name[:12]} is broken: {problem} (in {folder})",
        remedy=f"run `tare image remove {folder.name[:12]}`, then build or import it again",
    )
