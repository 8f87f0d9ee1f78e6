"""Where tare keeps what outlives one command: the cache, the state and the work folder.

Each folder has an environment variable that overrides it, and a key in the user's configuration. Nothing here makes a
folder: whoever writes there does.
What is there already must be this user's own (``require_own``): root follows whatever it finds below.
"""

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from tare.bench.configuration import configured_folder
from tare.bench.errors import TareError
from tare.bench.readable import readable

CACHE_VARIABLE = "TARE_CACHE_DIR"
STATE_VARIABLE = "TARE_STATE_DIR"
WORK_VARIABLE = "TARE_WORK_DIR"
RUNS_VARIABLE = "TARE_RUNS_DIR"


def cache_directory() -> Path:
    """Images and proofs: can be deleted at any time, and is made again at the cost of a build."""
    # platformdirs takes a few milliseconds to import, which `tare --help` should not pay.
    from platformdirs import user_cache_path

    return _own(CACHE_VARIABLE, "cache", user_cache_path("tare"))


def state_directory() -> Path:
    """What has to survive: the ledger of things that may have to be cleaned up."""
    from platformdirs import user_state_path

    return _own(STATE_VARIABLE, "state", user_state_path("tare"))


def ledger_directory() -> Path:
    """The folder of the ledger files (``tare.bench.ledger``), one a process."""
    return state_directory() / "ledger"


def work_directory() -> Path:
    """Overlays, disks and scratch folders of live instances, where the suite names no storage of its own.

    On a disk and not in /tmp, which is often a tmpfs and would turn I/O workloads into memory workloads. An ordinary
    user has one of its own, ``/var/tmp/tare-UID``.
    """
    own = "tare" if os.geteuid() == 0 else f"tare-{os.geteuid()}"
    return _own(WORK_VARIABLE, "work", Path("/var/tmp") / own)  # noqa: S108 - checked


def runs_directory() -> Path:
    """Where the folder of a run is made unless the command names one: ``runs`` in the working directory."""
    return Path(os.environ.get(RUNS_VARIABLE) or configured_folder("runs") or "runs").expanduser()


def require_own(folder: Path, variable: str) -> Path:
    """``folder`` if nobody but this user (or root) decides what is in it, or if it is not there yet.

    Raises TareError, with the environment ``variable`` that names another folder: if it belongs to another user, if
    others may write to it or to a folder above it (sticky folders like /tmp are fine), or if another user made a link
    on the way to it.
    """
    if readable(str(folder)) != str(folder):
        raise TareError(
            f"{folder} is not safe to use: its name is not printable UTF-8",
            remedy=f"set {variable} to a folder whose name is",
        )
    known = {0, os.geteuid()}
    resolved = Path(os.path.realpath(folder))
    for path in dict.fromkeys((folder, *folder.parents, resolved, *resolved.parents)):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if status.st_uid not in known and (path in {folder, resolved} or stat.S_ISLNK(status.st_mode)):
                raise _not_own(folder, f"{path} belongs to user {status.st_uid}", variable)
            if stat.S_ISDIR(status.st_mode) and _others_write(status):
                raise _not_own(folder, f"others may write to {path} (mode {stat.S_IMODE(status.st_mode):o})", variable)
    return folder


def free_bytes(folder: Path) -> int:
    """What is free where ``folder`` is, or would be made. Raises OSError if nothing can be written there."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    with tempfile.TemporaryFile(dir=existing) as file:
        free = os.fstatvfs(file.fileno())
    return free.f_bavail * free.f_frsize


_REFUSED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOTDIR))


def folder_failure(error: BaseException | None) -> TareError | None:
    """What ``error`` comes down to, if a folder of tare's or the working directory cannot be used; otherwise None."""
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        near = error.object[max(0, error.start - 40) : error.end + 40]
        return TareError(f"a name is not UTF-8: {near}", remedy="give what it names another name")
    if isinstance(error, TareError) and error.remedy is None:
        error = error.__cause__
    if not isinstance(error, OSError):
        return None
    try:
        path = Path.cwd() / str(error.filename or "")
    except FileNotFoundError:
        return TareError("the working directory does not exist any more", remedy="change to a folder that exists")
    if not error.filename:
        return None
    for variable, find in _FOLDERS.items():
        try:
            folder = find()
        except TareError as unsafe:
            return unsafe
        if folder.is_relative_to(path) or (path.is_relative_to(folder) and error.errno in _REFUSED):
            return TareError(
                f"cannot write to {folder}: {path}: {error.strerror}",
                remedy=f"make it a folder that can be written to, or set {variable} to one",
            )
    return None


_FOLDERS = {WORK_VARIABLE: work_directory, CACHE_VARIABLE: cache_directory, STATE_VARIABLE: state_directory}


def _others_write(status: os.stat_result) -> bool:
    by_group = bool(status.st_mode & stat.S_IWGRP) and status.st_gid not in {0, os.getegid()}
    return not status.st_mode & stat.S_ISVTX and (by_group or bool(status.st_mode & stat.S_IWOTH))


def _not_own(folder: Path, why: str, variable: str) -> TareError:
    return TareError(
        f"{folder} is not safe to use: {why}, and could make tare change files elsewhere",
        remedy=f"remove it or change its owner and mode, or set {variable} to a folder of your own",
    )


def _own(variable: str, setting: str, usual: Path) -> Path:
    value = os.environ.get(variable) or configured_folder(setting)
    return require_own(Path(value).expanduser().absolute() if value else usual, variable)
