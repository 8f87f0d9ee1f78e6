"""Imports a root file system tar, an OCI archive or a docker archive as an image.

Formats: OCI image-layout.md and manifest.md (v1.1); for docker the ``manifest.json`` that `docker save` and
`podman save` write.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.errors import ImageError
from tare.bench.image import stored
from tare.bench.image.boot import Kernel
from tare.bench.image.build import BUILD_TOOLS, Workspace, finish, with_kernel
from tare.bench.image.recipe import Recipe, host_architecture
from tare.bench.image.stored import hash_file
from tare.bench.image.tar import ArchiveLimits, quoted
from tare.bench.image.unpack import Unpacking, resolve
from tare.bench.process import require_tool
from tare.bench.readable import one_line
from tare.bench.service import ImageProcess, read_process
from tare.bench.trees import remove_tree
from tare.bench.units import format_size

_SEARCH_PATH = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
_AGENT = "qemu-ga"
_DEEPEST_INDEX = 4
_MOST_LAYERS = 1000
_MOST_JSON = 8 << 20


def import_parts(file: Path, workspace: Workspace, limits: ArchiveLimits) -> stored.Description:
    """Unpack ``file`` into ``workspace.image``, add a kernel if it can be a guest, describe it. Raises ImageError."""
    workspace.image.mkdir()
    tree = workspace.image / stored.ROOTFS
    kernel: Kernel | None = None
    origin = one_line(file.name)
    workspace.progress(f"unpacking {origin}")
    unpacked, process = make_imported_tree(file, tree, workspace.scratch("archive"), limits)
    if os.geteuid() != 0:
        problem = "imported without root, so that its files have no owners of their own"
    else:
        problem = guest_problem(tree, process)
    if not problem:
        for tool in BUILD_TOOLS:
            require_tool(tool)
        workspace.progress("fetching a kernel for the guest")
        kernel = with_kernel(Recipe.of(()), workspace, lambda: None)
    if process is not None:
        (workspace.image / stored.PROCESS).write_bytes(msgspec.json.encode(process, order="sorted"))
    description = finish(workspace, kernel=kernel, recipe=None, origin=origin, guest_problem=problem)
    unpacked.require_listed((workspace.image / stored.MANIFEST).read_text().splitlines())
    return description


class _Contents(msgspec.Struct, frozen=True):
    """What an outer archive says that the image is: its layers, the lowest first, and its configuration, if any."""

    layers: list[Path]
    config: Path | None


def make_imported_tree(
    file: Path, tree: Path, scratch: Path, limits: ArchiveLimits
) -> tuple[Unpacking, ImageProcess | None]:
    """Make ``tree`` of the archive ``file``, whichever of the three kinds it is; with the program that it is made for.

    None where the archive has no image configuration. Raises ImageError.
    """
    unpacked = _start(tree, limits)
    unpacked.add(file, is_lowest=True)
    if (tree / "manifest.json").is_file() and not (tree / "usr").exists():
        read_contents = _docker_contents
    elif (tree / "oci-layout").is_file():
        read_contents = _oci_contents
    else:
        if not any(resolve(tree, name, follow_last=True).exists() for name in ("bin", "usr", "sbin")):
            raise ImageError(f"{quoted(file.name)} holds no root file system: there is no bin, sbin or usr in it")
        unpacked.settle()
        return unpacked, None
    outer = scratch / "outer"
    tree.rename(outer)
    unpacked = _start(tree, limits)
    contents = read_contents(outer)
    for number, layer in enumerate(contents.layers):
        unpacked.add(layer, is_lowest=number == 0)
    unpacked.settle()
    process = None if contents.config is None else _process(contents.config)
    remove_tree(outer)
    return unpacked, process


def _start(tree: Path, limits: ArchiveLimits) -> Unpacking:
    tree.mkdir()
    tree.chmod(0o755)  # whatever the umask
    return Unpacking(tree, limits)


def guest_problem(tree: Path, process: ImageProcess | None = None) -> str:
    """Why no guest can run on ``tree``; empty if one can. A program of its own is started without the agent."""
    if process is not None and process.argv:
        return ""
    if not any(resolve(tree, f"{folder}/{_AGENT}", follow_last=True).is_file() for folder in _SEARCH_PATH):
        return (
            f"{_AGENT} is not in the image (the package qemu-guest-agent), by which the host runs commands in a guest, "
            "and the image has no entry point"
        )
    return ""


def _process(config: Path) -> ImageProcess:
    document = _decode(config)
    try:
        return read_process(document.get("config") if isinstance(document, dict) else document)
    except ValueError as error:
        raise ImageError(f"the archive's image configuration makes no sense: {error}") from None


def _docker_contents(outer: Path) -> _Contents:
    entries = _decode(_inside(outer, "manifest.json"))
    if not isinstance(entries, list) or len(entries) != 1:
        raise ImageError("the docker archive holds several images, or none", remedy="save exactly one image into it")
    layers = [_inside(outer, name) for name in _layers(entries[0], "Layers")]
    config = entries[0].get("Config")
    return _Contents(layers, None if config is None else _inside(outer, config))


def _oci_contents(outer: Path) -> _Contents:
    document = _decode(_inside(outer, "index.json"))
    for _ in range(_DEEPEST_INDEX):
        if not isinstance(document, dict) or "manifests" not in document:
            break
        document = _decode(_blob(outer, _choose(_field(document, "manifests", list))))
    layers = [_blob(outer, layer) for layer in _layers(document, "layers")]
    config = document.get("config")
    return _Contents(layers, None if config is None else _blob(outer, config))


def _layers(document: Any, name: str) -> list[Any]:
    layers: list[Any] = _field(document, name, list)
    if len(layers) > _MOST_LAYERS:
        raise ImageError(f"the archive has {len(layers)} layers; tare reads {_MOST_LAYERS} at most")
    return layers


def _choose(descriptors: list[Any]) -> Any:
    """The one image of an index, or the one for this machine of several."""
    if len(descriptors) == 1:
        return descriptors[0]
    machine = host_architecture()
    fitting = []
    for descriptor in descriptors:
        wanted = descriptor.get("platform") if isinstance(descriptor, dict) else None
        if isinstance(wanted, dict) and (wanted.get("os"), wanted.get("architecture")) == ("linux", machine):
            fitting.append(descriptor)
    if len(fitting) != 1:
        raise ImageError(
            f"the OCI archive holds {len(descriptors)} images, of which {len(fitting)} are for linux/{machine}",
            remedy="save exactly one image into it",
        )
    return fitting[0]


def _blob(outer: Path, descriptor: Any) -> Path:
    algorithm, _, value = _field(descriptor, "digest", str).partition(":")
    if algorithm != "sha256":
        raise ImageError(f"the OCI archive uses the digest {quoted(algorithm)}, and only sha256 is known")
    path = _inside(outer, f"blobs/sha256/{value}")
    if hash_file(path) != value:
        raise ImageError(f"the OCI archive is damaged: blob {quoted(value[:12])} does not have its own digest")
    return path


def _decode(path: Path) -> Any:
    if path.stat().st_size > _MOST_JSON:
        raise ImageError(f"the archive's {quoted(path.name)} is larger than {format_size(_MOST_JSON)}")
    try:
        return msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ImageError(f"the archive's {quoted(path.name)} is not JSON: {error}") from error


def _inside(outer: Path, name: Any) -> Path:
    path = resolve(outer, name, follow_last=True) if isinstance(name, str) else outer
    if not path.is_file():
        raise ImageError(f"the archive lacks {quoted(str(name))}")
    path.chmod(0o600)  # whatever the archive says, it is read
    return path


def _field(document: Any, name: str, kind: type[Any]) -> Any:
    value = document.get(name) if isinstance(document, dict) else None
    if not isinstance(value, kind):
        raise ImageError(f"the archive's description has no {name!r} where it belongs")
    return value
