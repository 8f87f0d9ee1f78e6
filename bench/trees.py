"""Folders for instances: making one that fills quickly, and removing what they have written to, also without root.

And files and folders that are on disk when the function that writes them returns.
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tare.bench.errors import TareError
from tare.bench.locations import WORK_VARIABLE, require_own
from tare.bench.process import run

_AS_ROOT_OF_A_RANGE = ("unshare", "--user", "--map-root-user", "--map-auto", "--")


_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
"""As on most architectures; elsewhere they are other requests, which a folder refuses (see linux/fs.h)."""
_FS_TOPDIR_FL = 0x00020000
_FLAGS = struct.Struct("=q")
_PRIVATE = 0o700
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_work_folder(folder: Path) -> None:
    """Make ``folder``, open to its owner alone, and what is missing above it, for a folder for each of a few purposes.

    Files that an instance makes keep their modes, setuid among them, so nobody else may get at them. Raises OSError,
    and TareError if others decide what is above ``folder``.

    ext4 puts a new file near its folder, and a folder near its parent. Where that part of the disk has no inode left,
    each new file makes it look through the whole disk: 0.3 to 1 ms instead of 0.03 on a disk of 250 GB, and a container
    is ten new files. The flag (``chattr +T``) asks for each subfolder to be put where there is room. File systems
    without it do as usual.
    """
    base = require_own(folder.parent, WORK_VARIABLE)
    base.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    above = os.open(os.path.realpath(require_own(base, WORK_VARIABLE)), _FOLDER)
    try:
        os.mkdir(folder.name, _PRIVATE, dir_fd=above)
        descriptor = os.open(folder.name, _FOLDER, dir_fd=above)
    finally:
        os.close(above)
    try:
        os.fchmod(descriptor, _PRIVATE)  # whatever the umask
        with contextlib.suppress(OSError):
            (flags,) = _FLAGS.unpack(fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(_FLAGS.size)))
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, _FLAGS.pack(flags | _FS_TOPDIR_FL))
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file, complete or not at all; on disk when this returns. Raises OSError."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync(path.parent)


def make_folders(folder: Path) -> None:
    """Make a folder and what is missing above it, if need be; their names are on disk when this returns.

    Raises OSError.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, however deep; a link is removed and not followed. Raises OSError.

    What cannot be removed is left, the rest goes, and the first error is raised. An ordinary user's containers leave
    folders that overlayfs made unreadable, and files of the identities that ``/etc/subuid`` lends the user, which only
    root of such a user namespace can remove.
    """
    removal = _Removal(folder.parent)
    try:
        removal.remove(folder.name)
    finally:
        removal.close()
    refused = removal.refused
    if isinstance(refused, PermissionError) and os.geteuid() != 0:
        try:
            run([*_AS_ROOT_OF_A_RANGE, "rm", "-rf", "--", str(folder)], timeout_s=60)
        except TareError:
            raise refused from None
    elif refused is not None:
        raise refused


class _Level(msgspec.Struct):
    """A folder on the way to the one being emptied: device and inode, its name, and its folders that are left."""

    identity: tuple[int, int]
    name: str
    folders: list[str]


class _Removal:
    """Walks a tree with one descriptor: down by name, never through a link, and up by ``..``."""

    def __init__(self, parent: Path) -> None:
        self.refused: OSError | None = None
        self._here = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._levels = [_Level(_identity(self._here), str(parent), [])]

    def close(self) -> None:
        os.close(self._here)

    def remove(self, name: str) -> None:
        self._enter(name)
        while len(self._levels) > 1:
            folders = self._levels[-1].folders
            if folders:
                self._enter(folders.pop())
            else:
                self._leave()

    def _enter(self, name: str) -> None:
        """Go into a folder and remove its files; a file that has taken its place is removed."""
        with self._noting(name):
            try:
                inner = self._open(name)
            except NotADirectoryError:
                os.unlink(name, dir_fd=self._here)
                return
            self._move_to(inner)
            self._levels.append(_Level(_identity(inner), name, []))
            with os.scandir(inner) as found:
                entries = list(found)
            for entry in entries:
                with self._noting(entry.name):
                    if entry.is_dir(follow_symlinks=False):
                        self._levels[-1].folders.append(entry.name)
                    else:
                        os.unlink(entry.name, dir_fd=inner)

    def _open(self, name: str) -> int:
        if os.geteuid() == 0:
            return os.open(name, _FOLDER, dir_fd=self._here)
        # Its owner may take away the right to list or to change it, and give it back.
        with contextlib.suppress(PermissionError):
            os.close(os.open(name, _FOLDER | os.O_PATH, dir_fd=self._here))  # a folder, no link
            os.chmod(name, 0o700, dir_fd=self._here)
        return os.open(name, _FOLDER, dir_fd=self._here)

    def _leave(self) -> None:
        name = self._levels.pop().name
        self._move_to(os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._here))
        if _identity(self._here) != self._levels[-1].identity:
            raise OSError(errno.ESTALE, "was moved while it was being removed", name)
        with self._noting(name):
            os.rmdir(name, dir_fd=self._here)

    def _move_to(self, descriptor: int) -> None:
        os.close(self._here)
        self._here = descriptor

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Keep the first error, with the path; what is gone already is none."""
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as error:
            if self.refused is None:
                parts = [level.name for level in self._levels]
                error.filename = str(Path(*(parts if len(parts) < 20 else [*parts[:8], "..."]), name))
                self.refused = error


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
