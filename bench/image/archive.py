"""Imports a root file system tar, an OCI archive or a docker archive as an image.

Formats: OCI image-layout.md, manifest.md and layer.md (v1.1); for docker the ``manifest.json`` that `docker save` and
`podman save` write.

Layers are applied without ever leaving the tree, whatever the archive says: every path is resolved as if the tree were
the root, absolute links start there and ``..`` stops there. Whiteouts: ``.wh.NAME`` removes NAME of the layers below,
``.wh..wh..opq`` all they have in its folder.
"""

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from tare.bench.errors import ImageError
from tare.bench.image import stored
from tare.bench.image.boot import Kernel
from tare.bench.image.build import BUILD_TOOLS, Workspace, finish, with_kernel
from tare.bench.image.recipe import Recipe, host_architecture
from tare.bench.image.stored import hash_file
from tare.bench.process import DEVNULL, PIPE, Popen, require_tool
from tare.bench.trees import remove_tree

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


_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_MOST_LINKS = 40
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar file for reading from front to back, whatever compresses it. Raises ImageError, MissingToolError."""
    with path.open("rb") as file:
        is_zstd = file.read(len(_ZSTD_MAGIC)) == _ZSTD_MAGIC
    # Opened anew: zstd is given the descriptor, and reads on from where that stands.
    with path.open("rb") as file:
        try:
            if is_zstd:
                with _zstd(file) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                    yield tar
            else:
                with tarfile.open(fileobj=file, mode="r|*") as tar:
                    yield tar
        except (tarfile.TarError, EOFError) as error:
            raise ImageError(f"{path.name} cannot be read as a tar archive: {error}") from error


@contextlib.contextmanager
def _zstd(file: IO[bytes]) -> Iterator[IO[bytes]]:
    with Popen([str(require_tool("zstd")), "-dcq"], stdin=file, stdout=PIPE, stderr=DEVNULL) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
            while process.stdout.read(1 << 20):
                pass
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise EOFError("zstd says that its data is damaged")


def resolve(root: Path, path: str, *, follow_last: bool = False) -> Path:
    """Where ``path`` of a tree lies on this host, links followed inside ``root`` only.

    The last part is not followed unless ``follow_last``. What does not exist yet is taken as it is. Raises
    ImageError for a circle of links.
    """
    pending = [part for part in path.split("/") if part not in ("", ".")]
    at: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part == "..":
            at = at[:-1]
            continue
        here = root.joinpath(*at, part)
        if here.is_symlink() and (pending or follow_last):
            links += 1
            if links > _MOST_LINKS:
                raise ImageError(f"the archive has a circle of symbolic links at {path!r}")
            target = str(here.readlink())
            at = [] if target.startswith("/") else at
            pending = [part for part in target.split("/") if part not in ("", ".")] + pending
        else:
            at.append(part)
    return root.joinpath(*at)


def apply_layer(root: Path, layer: Path) -> None:
    """Unpack ``layer`` over the tree at ``root``, whiteouts applied. Raises ImageError, OSError.

    Without root the files become the user's, and device nodes and extended attributes that only root may set
    (``security.*``, ``trusted.*``) are left out.
    """
    made: set[Path] = set()
    folder_times: dict[Path, float] = {}
    with open_tar(layer) as tar:
        for member in tar:
            path = _place(root, member)
            if path == root and not member.isdir():
                raise ImageError(f"{layer.name} has {member.name!r}, which is no place for a file")
            if path.name == _OPAQUE:
                _empty(path.parent, made)
            elif path.name.startswith(_WHITEOUT):
                hidden = path.with_name(path.name.removeprefix(_WHITEOUT))
                if hidden.name in ("", ".", ".."):
                    raise ImageError(f"{layer.name} has the impossible whiteout {member.name!r}")
                if hidden not in made:
                    _remove(hidden)
            else:
                _make(root, path, member, tar)
                made.add(path)
                if member.isdir():
                    folder_times[path] = member.mtime
    for path, time_s in folder_times.items():
        if path.is_dir() and not path.is_symlink():
            os.utime(path, (time_s, time_s))


def _place(root: Path, member: tarfile.TarInfo) -> Path:
    if ".." in member.name.split("/"):
        raise ImageError(f"the archive wants to write outside the tree: {member.name!r}")
    path = resolve(root, member.name)
    parent = path.parent
    if path != root and not parent.is_dir():
        if parent.exists():
            raise ImageError(f"the archive has {member.name!r} below something that is not a folder")
        _make_missing(root, parent)
    return path


def _make_missing(root: Path, folder: Path) -> None:
    """Make a folder that the archive does not name itself, and those above it, whatever the umask."""
    for path in reversed([folder, *folder.parents]):
        if path.is_relative_to(root) and not path.is_dir():
            path.mkdir()
            path.chmod(0o755)


def _make(root: Path, path: Path, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    if os.geteuid() != 0 and (member.ischr() or member.isblk()):
        return
    if not (member.isdir() and path.is_dir() and not path.is_symlink()):
        _remove(path)
        _create(root, path, member, tar)
    if member.islnk():
        return
    if os.geteuid() == 0:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        path.chmod(stat.S_IMODE(member.mode))
    for name, value in member.pax_headers.items():
        if name.startswith(_XATTR):
            attribute = name.removeprefix(_XATTR)
            if os.geteuid() != 0 and not attribute.startswith("user."):
                continue
            os.setxattr(path, attribute, value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
    os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def _create(root: Path, path: Path, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    if member.isdir():
        path.mkdir()
    elif member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        target = resolve(root, member.linkname)
        if not target.is_symlink() and not target.is_file():
            raise ImageError(f"{member.name!r} is a hard link to {member.linkname!r}, which the archive does not have")
        os.link(target, path, follow_symlinks=False)
    elif member.isfile():
        source = tar.extractfile(member)
        assert source is not None
        with path.open("xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    elif member.isfifo():
        os.mkfifo(path)
    elif member.ischr() or member.isblk():
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))
    else:
        raise ImageError(f"{member.name!r} is of a kind that cannot be unpacked (tar type {member.type!r})")


def _empty(folder: Path, made: set[Path]) -> None:
    """Remove what lower layers have in ``folder``, however deep, and keep what this layer made."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path in made or any(path in other.parents for other in made):
            if path.is_dir() and not path.is_symlink():
                _empty(path, made)
        else:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
