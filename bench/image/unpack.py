"""Applies tar layers to a tree without ever leaving it, whatever the archive says.

Every path is resolved inside the tree as if the tree were the root: absolute links start there and ``..`` stops
there. Whiteouts follow the OCI image specification (layer.md): ``.wh.NAME`` removes NAME of the layers below,
``.wh..wh..opq`` all they have in its folder.
"""

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tare.bench.errors import ImageError
from tare.bench.process import DEVNULL, PIPE, Popen, require_tool
from tare.bench.trees import remove_tree

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
