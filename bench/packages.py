"""The list of host packages in ``system-packages.toml``: what is missing, and the command that installs it."""

import os
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec

LIST = Path(__file__).with_name("system-packages.toml")


class HostPackage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Debian package, recognised by a program in PATH or a file."""

    name: str
    needed_by: tuple[str, ...]
    why: str
    tool: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        if bool(self.tool) == bool(self.file):
            raise ValueError(f"{self.name}: give either the tool or the file by which it is recognised")

    def is_present(self) -> bool:
        """Whether its program or file is here."""
        if self.tool:
            path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
            return shutil.which(self.tool, path=path) is not None
        return Path(self.file).exists()


def load_packages() -> tuple[HostPackage, ...]:
    """Every package of the list, in its order."""
    return msgspec.convert(tomllib.loads(LIST.read_text("utf-8"))["package"], tuple[HostPackage, ...])


def package_of(tool: str) -> str | None:
    """The Debian package that brings ``tool``, or None if the list does not know it."""
    return next((package.name for package in load_packages() if tool and package.tool == tool), None)


def remedy_for(names: Sequence[str]) -> str:
    """The command that installs the named packages here, or what to look for where there is no apt."""
    listed = " ".join(names)
    if shutil.which("apt-get") is None:
        return f"this host has no apt; install what Debian calls: {listed}"
    prefix = "" if os.geteuid() == 0 else "sudo "
    return f"{prefix}apt-get install --no-install-recommends {listed}"
