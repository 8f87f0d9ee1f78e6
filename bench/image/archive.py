"""Imports a root file system tar, an OCI archive or a docker archive as an image.

Formats: OCI image-layout.md and manifest.md (v1.1); for docker the ``manifest.json`` that `docker save` and
`podman save` write.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.errors import ImageError
from tare.bench.image import stored
from tare.bench.image.boot import Kernel
from tare.bench.image.build import BUILD_TOOLS, Workspace, finish, with_kernel
from tare.bench.image.recipe import Recipe, host_architecture
from tare.bench.image.stored import hash_file
from tare.bench.image.unpack import apply_layer, resolve
from tare.bench.process import require_tool

_SEARCH_PATH = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
_AGENT = "qemu-ga"
_DEEPEST_INDEX = 4


def import_parts(file: Path, workspace: Workspace) -> stored.Description:
    """Unpack ``file`` into ``workspace.image``, add a kernel if it can be a guest, describe it. Raises ImageError."""
    workspace.image.mkdir()
    tree = workspace.image / stored.ROOTFS
    kernel: Kernel | None = None
    workspace.progress(f"unpacking {file.name}")
    make_imported_tree(file, tree, workspace.scratch("archive"))
    problem = guest_problem(tree)
    if not problem and os.geteuid() != 0:
        problem = "imported without root, so that its files have no owners of their own"
    if not problem:
        for tool in BUILD_TOOLS:
            require_tool(tool)
        workspace.progress("fetching a kernel for the guest")
        kernel = with_kernel(Recipe.of(()), workspace, lambda: None)
    return finish(workspace, kernel=kernel, recipe=None, origin=file.name, guest_problem=problem)


def make_imported_tree(file: Path, tree: Path, scratch: Path) -> None:
    """Make ``tree`` of the archive ``file``, whichever of the three kinds it is. Raises ImageError."""
    outer = scratch / "outer"
    outer.mkdir()
    outer.chmod(0o755)
    apply_layer(outer, file)
    if (outer / "manifest.json").is_file() and not (outer / "usr").exists():
        layers = _docker_layers(outer)
    elif (outer / "oci-layout").is_file():
        layers = _oci_layers(outer)
    else:
        outer.rename(tree)
        if not any((tree / name).exists() for name in ("bin", "usr", "sbin")):
            raise ImageError(f"{file.name} holds no root file system: there is no bin, sbin or usr in it")
        return
    tree.mkdir()
    tree.chmod(0o755)
    for layer in layers:
        apply_layer(tree, layer)
    shutil.rmtree(outer)


def guest_problem(tree: Path) -> str:
    """Why no guest can run on ``tree``; empty if one can."""
    if not any(resolve(tree, f"{folder}/{_AGENT}", follow_last=True).is_file() for folder in _SEARCH_PATH):
        return (
            f"{_AGENT} is not in the image (the package qemu-guest-agent), by which the host runs commands in a guest"
        )
    return ""


def _docker_layers(outer: Path) -> list[Path]:
    entries = _decode(_inside(outer, "manifest.json"))
    if not isinstance(entries, list) or len(entries) != 1:
        raise ImageError("the docker archive holds several images, or none", remedy="save exactly one image into it")
    return [_inside(outer, name) for name in _field(entries[0], "Layers", list)]


def _oci_layers(outer: Path) -> list[Path]:
    document = _decode(_inside(outer, "index.json"))
    for _ in range(_DEEPEST_INDEX):
        if "manifests" not in document:
            break
        document = _decode(_blob(outer, _choose(_field(document, "manifests", list))))
    return [_blob(outer, layer) for layer in _field(document, "layers", list)]


def _choose(descriptors: list[Any]) -> Any:
    """The one image of an index, or the one for this machine of several."""
    if len(descriptors) == 1:
        return descriptors[0]
    machine = host_architecture()
    fitting = []
    for descriptor in descriptors:
        wanted = descriptor.get("platform") or {}
        if wanted.get("os") == "linux" and wanted.get("architecture") == machine:
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
        raise ImageError(f"the OCI archive uses the digest {algorithm!r}, and only sha256 is known")
    path = _inside(outer, f"blobs/sha256/{value}")
    if hash_file(path) != value:
        raise ImageError(f"the OCI archive is damaged: blob {value[:12]} does not have its own digest")
    return path


def _decode(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise ImageError(f"the archive's {path.name} is not JSON: {error}") from error


def _inside(outer: Path, name: str) -> Path:
    path = resolve(outer, name, follow_last=True)
    if not path.is_file():
        raise ImageError(f"the archive lacks {name}")
    return path


def _field(document: Any, name: str, kind: type[Any]) -> Any:
    value = document.get(name) if isinstance(document, dict) else None
    if not isinstance(value, kind):
        raise ImageError(f"the archive's description has no {name!r} where it belongs")
    return value
