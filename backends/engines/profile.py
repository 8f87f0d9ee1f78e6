"""What of /proc and /sys an engine has to hide or make read-only, as tare's own containers do, on this host."""

from pathlib import Path

import msgspec

from tare.backends.native.backend import find_thermal
from tare.backends.native.setup import MASKED, READ_ONLY


class Protection(msgspec.Struct, frozen=True):
    """Paths inside: folders that are made read-only, and folders and files that are hidden."""

    read_only: tuple[str, ...]
    folders: tuple[str, ...]
    files: tuple[str, ...]


def find_protection(root: Path = Path("/")) -> Protection:
    """What there is on this host, below ``root``, of what Docker protects.

    Root inside, without any capability, may write to what is root's: /proc/irq moves the host's interrupts.
    """
    here = tuple(path for path in READ_ONLY if (root / path[1:]).exists())
    hidden = [path for path in (*MASKED, *find_thermal(root)) if (root / path[1:]).exists()]
    folders = tuple(path for path in hidden if (root / path[1:]).is_dir())
    return Protection(here, folders, tuple(path for path in hidden if path not in folders))
