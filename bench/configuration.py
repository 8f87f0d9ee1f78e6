"""The user's configuration file: folders of tare, and defaults of its options.

``$TARE_CONFIG``, or ``~/.config/tare/config.toml`` (``$XDG_CONFIG_HOME``). A file that is not there configures nothing.
What the environment and the command line say wins.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.errors import SuiteError

CONFIG_VARIABLE = "TARE_CONFIG"


class Folders(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[folders]``: of images, of the ledger, of instances' layers, of runs; the usual ones where empty."""

    cache: str = ""
    state: str = ""
    work: str = ""
    runs: str = ""


class Configuration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file as written. ``defaults`` has a table a command: its options, by their names on the command line."""

    folders: Folders = Folders()
    defaults: Mapping[str, Mapping[str, Any]] = {}


def configuration_file() -> Path:
    """Where the configuration is read from; there may be none."""
    if given := os.environ.get(CONFIG_VARIABLE):
        return Path(given).absolute()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(os.path.expanduser(base)) / "tare/config.toml"  # noqa: PTH111 - without a home, a path stays as it is


def load_configuration() -> Configuration:
    """The user's configuration. Raises SuiteError with the key, also for a file that another user can write."""
    path = configuration_file()
    try:
        text = path.read_text("utf-8")
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        if CONFIG_VARIABLE in os.environ:
            raise SuiteError(str(path), f"is named by {CONFIG_VARIABLE} and cannot be read") from None
        return Configuration()
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(str(path), f"cannot be read: {error}") from None
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o002:
        raise SuiteError(str(path), "belongs to another user, or others may write to it", remedy="make it your own")
    try:
        return msgspec.convert(tomllib.loads(text), Configuration)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        raise SuiteError(f"{path}: {where.rstrip('`').lstrip('.') or 'top level'}", problem) from None
    except (ValueError, RecursionError) as error:
        raise SuiteError(str(path), f"is not TOML: {error}") from None
