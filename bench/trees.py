"""Folders for instances: making one that fills quickly, and removing what they have written to, also without root."""

import contextlib
import fcntl
import os
import shutil
import struct
from pathlib import Path

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


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it. Raises OSError.

    An ordinary user's containers leave folders that overlayfs made unreadable, and files of the identities that
    ``/etc/subuid`` lends the user, which only root of such a user namespace can remove.
    """
    try:
        shutil.rmtree(folder)
    except PermissionError:
        if os.geteuid() == 0:
            raise
    else:
        return
    for parent, names, _ in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(PermissionError):
                if not path.is_symlink():
                    path.chmod(0o700)
    try:
        shutil.rmtree(folder)
    except PermissionError as error:
        try:
            run([*_AS_ROOT_OF_A_RANGE, "rm", "-rf", "--", str(folder)], timeout_s=60)
        except TareError:
            raise error from None
