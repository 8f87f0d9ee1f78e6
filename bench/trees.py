"""Removing a folder that instances have written to, also without root."""

import contextlib
import os
import shutil
from pathlib import Path

from bench.errors import TareError
from bench.process import run

_AS_ROOT_OF_A_RANGE = ("unshare", "--user", "--map-root-user", "--map-auto", "--")


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
