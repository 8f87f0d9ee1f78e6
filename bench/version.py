"""Which tare this is: its version, and in a checkout the commit."""

from importlib.metadata import version
from pathlib import Path

import tare
from tare.bench.errors import TareError
from tare.bench.process import run


def tare_version() -> str:
    """The version of the installed distribution. Of a build between releases, it holds the commit."""
    return version("tarebench")


def tare_commit() -> str:
    """The commit of the checkout that is executed, with ``-dirty`` if files differ from it; otherwise empty.

    An editable installation keeps the version of the day it was installed: the commit is what it is now.
    """
    checkout = Path(tare.__file__).resolve().parents[1]
    return commit_of(checkout) if (checkout / ".git").exists() else ""


def commit_of(folder: Path) -> str:
    """The commit of the checkout that a folder is in, with ``-dirty`` if files differ from it; empty outside of one."""
    describe = ("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    try:
        return run(describe, timeout_s=10).strip()
    except TareError:  # no git, or a repository that it does not trust
        return ""
