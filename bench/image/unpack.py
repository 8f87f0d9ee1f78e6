"""Applies tar layers to a tree without ever leaving it, whatever the archive says.

Every path is resolved inside the tree as if the tree were the root: absolute links start there and ``..`` stops
there. Whiteouts follow the OCI image specification (layer.md): ``.wh.NAME`` removes NAME of the layers below,
``.wh..wh..opq`` all they have in its folder.
"""

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes

import msgspec

from tare.bench.errors import ImageError
from tare.bench.image.stored import walk
from tare.bench.image.tar import Account, Archive, ArchiveLimits, open_archive, quoted
from tare.bench.trees import remove_tree

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_NAMESPACES = ("user.", "security.", "trusted.", "system.")
_MOST_LINKS = 40
_LATEST_S = 1 << 33
_OF_THE_HOST = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENOTSUP),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}


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
                raise ImageError(f"the archive has a circle of symbolic links at {quoted(path)}")
            target = str(here.readlink())
            at = [] if target.startswith("/") else at
            pending = [part for part in target.split("/") if part not in ("", ".")] + pending
        else:
            at.append(part)
    return root.joinpath(*at)


class _Made(msgspec.Struct):
    """What was last unpacked at a path, in the terms of ``manifest.txt``; ``mtime`` only of a folder with a member."""

    kind: str
    content: str = "-"
    mode: int = 0
    mtime: float | None = None


class Unpacking:
    """Unpacks layers over the tree at ``root``, which is a folder already. Its methods raise ImageError, OSError.

    Without root the files become the user's, and device nodes and extended attributes that only root may set
    (``security.*``, ``trusted.*``) are left out. Until ``settle`` the owner may do everything in each folder.
    """

    def __init__(self, root: Path, limits: ArchiveLimits) -> None:
        self._root = root
        self._is_root = os.geteuid() == 0
        self._account = Account(limits)
        self._whiteouts = Account(limits)
        self._made: dict[str, _Made] = {}

    def add(self, layer: Path, *, is_lowest: bool) -> None:
        """Unpack ``layer``.

        Any but the lowest is read twice: its whiteouts concern what the tree has before anything of it is unpacked.
        """
        if not is_lowest:
            self._read(layer, self._whiteouts, self._hide)
        self._read(layer, self._account, self._unpack)

    def settle(self) -> None:
        """Give the folders their modes and times, the deepest first."""
        folders = [path for path, status in walk(os.fsencode(self._root), {}) if stat.S_ISDIR(status.st_mode)]
        for below in reversed(folders):
            path = self._root / os.fsdecode(below)
            made = self._made.get(self._name(path))
            if made is not None:
                path.chmod(made.mode)
                if made.mtime is not None:
                    os.utime(path, (made.mtime, made.mtime))

    def require_listed(self, manifest: list[str]) -> None:
        """Raise ImageError unless ``manifest``, the lines of the tree, is what the archive listed."""
        left = {quote_from_bytes(os.fsencode(name)): made for name, made in self._made.items()}
        for line in manifest:
            name, kind, mode, _owner, content = line.split(" ")[:5]
            made = left.pop(name, None)
            if made is None and name == ".":
                continue
            if made is None or (kind, mode) != (made.kind, f"{made.mode:04o}") or not _is_same(content, made.content):
                raise ImageError(f"{name} is not in the tree as the archive has it; does the file system keep modes?")
        if left:
            raise ImageError(f"{next(iter(left))} is in the archive and not in the tree; is its file system whole?")

    def _read(self, layer: Path, account: Account, do: Callable[[Archive, tarfile.TarInfo, Path], None]) -> None:
        with open_archive(layer, account) as archive:
            for member in archive:
                with _blamed_on(member.name):
                    _check_fields(member)
                    path = resolve(self._root, member.name)
                    account.check_depth(len(path.relative_to(self._root).parts), member.name)
                    do(archive, member, path)

    def _hide(self, _archive: Archive, _member: tarfile.TarInfo, path: Path) -> None:
        if path.name == _OPAQUE:
            for lower in path.parent.iterdir() if path.parent.is_dir() else ():
                self._remove(lower)
        elif path.name.startswith(_WHITEOUT):
            self._remove(path.with_name(_hidden(path.name)))

    def _unpack(self, archive: Archive, member: tarfile.TarInfo, path: Path) -> None:
        if path == self._root and not member.isdir():
            raise ImageError(f"the archive has {quoted(member.name)}, which is no place for a file")
        if path.name.startswith(_WHITEOUT):
            _hidden(path.name)
            return
        self._make_parent(path, member.name)
        if self._is_root or not (member.ischr() or member.isblk()):
            self._make(archive, member, path)

    def _make_parent(self, path: Path, name: str) -> None:
        """Make the folders that the archive does not name itself, open to all whatever the umask."""
        missing = []
        parent = path.parent
        while path != self._root and not parent.is_dir():
            if os.path.lexists(parent):
                raise ImageError(f"the archive has {quoted(name)} below something that is not a folder")
            missing.append(parent)
            parent = parent.parent
        for folder in reversed(missing):
            _make_folder(folder)
            self._made[self._name(folder)] = _Made("d", mode=0o755)

    def _make(self, archive: Archive, member: tarfile.TarInfo, path: Path) -> None:
        if member.isdir() and path.is_dir() and not path.is_symlink():
            made = _Made("d")
        else:
            self._remove(path)
            made = self._create(archive, member, path)
        self._made[self._name(path)] = made
        if member.islnk():
            return
        if self._is_root:
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
        for key, value in member.pax_headers.items():
            attribute = key.removeprefix(_XATTR)
            if attribute == key:
                continue
            if not attribute.startswith(_NAMESPACES):
                raise ImageError(f"{quoted(member.name)} has the impossible extended attribute {quoted(attribute)}")
            if self._is_root or attribute.startswith("user."):
                os.setxattr(path, attribute, value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
        made.mode = 0o777 if made.kind == "l" else stat.S_IMODE(member.mode)
        if made.kind == "d":
            made.mtime = member.mtime
            return
        if made.kind != "l":
            path.chmod(made.mode)
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)

    def _create(self, archive: Archive, member: tarfile.TarInfo, path: Path) -> _Made:
        if member.isdir():
            _make_folder(path)
            return _Made("d")
        if member.issym():
            path.symlink_to(member.linkname)
            return _Made("l", quote_from_bytes(os.fsencode(member.linkname)))
        if member.islnk():
            return self._link(member, path)
        if member.isfile():
            with path.open("xb") as file:
                sha256 = archive.copy(member, file)
            return _Made("f", f"{member.size}:{sha256}")
        if member.isfifo():
            os.mkfifo(path)
            return _Made("p")
        if member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))
            return _Made("c" if member.ischr() else "b", f"{member.devmajor},{member.devminor}")
        raise ImageError(f"{quoted(member.name)} is of a kind that cannot be unpacked (tar type {member.type!r})")

    def _link(self, member: tarfile.TarInfo, path: Path) -> _Made:
        target = resolve(self._root, member.linkname)
        if not target.is_symlink() and not target.is_file():
            raise ImageError(
                f"{quoted(member.name)} is a hard link to {quoted(member.linkname)}, which the archive does not have"
            )
        os.link(target, path, follow_symlinks=False)
        return self._made[self._name(target)]

    def _remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            for below, _status in walk(os.fsencode(path), {}):
                self._made.pop(self._name(path / os.fsdecode(below)), None)
            remove_tree(path)
        else:
            self._made.pop(self._name(path), None)
            path.unlink(missing_ok=True)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._root))


def _is_same(found: str, listed: str) -> bool:
    """Whether a file's content is as listed; of a sparse file the size alone is known."""
    return found.startswith(listed) if listed.endswith(":") else found == listed


def _make_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o700)  # whatever the umask


def _hidden(name: str) -> str:
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in ("", ".", ".."):
        raise ImageError(f"the archive has the impossible whiteout {quoted(name)}")
    return hidden


def _check_fields(member: tarfile.TarInfo) -> None:
    numbers = {
        "user": (member.uid, (1 << 32) - 2),
        "group": (member.gid, (1 << 32) - 2),
        "mode": (member.mode, (1 << 32) - 1),
        "major device number": (member.devmajor, (1 << 12) - 1),
        "minor device number": (member.devminor, (1 << 20) - 1),
    }
    odd = next((f"{what} {value}" for what, (value, most) in numbers.items() if not 0 <= value <= most), "")
    if not -_LATEST_S < member.mtime < _LATEST_S:  # nan too
        odd = f"time {member.mtime:g}"
    if "\0" in member.name or "\0" in member.linkname:
        odd = "name with a NUL in it"
    if odd:
        raise ImageError(f"{quoted(member.name)} in the archive has the impossible {odd}")
    if ".." in member.name.split("/"):
        raise ImageError(f"the archive wants to write outside the tree: {quoted(member.name)}")


@contextlib.contextmanager
def _blamed_on(name: str) -> Iterator[None]:
    """Turn what the kernel refuses because of a member's fields into an ImageError with its name."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_THE_HOST or isinstance(error, PermissionError):
            raise
        raise ImageError(f"{quoted(name)} in the archive cannot be unpacked: {error.strerror or error}") from error
    except (ValueError, OverflowError) as error:
        raise ImageError(f"{quoted(name)} in the archive cannot be unpacked: {error}") from error
