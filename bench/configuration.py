"""The user's configuration file: folders of tare, and defaults of its options.

What the environment and the command line say wins. Every command reads it first: so nothing heavy is imported here.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tare.bench.errors import SuiteError

CONFIG_VARIABLE = "TARE_CONFIG"
FOLDERS = ("cache", "state", "work", "runs")
"""``[folders]``: of images, of the ledger, of instances' layers, of runs."""


def configuration_file() -> Path:
    """Where the user's configuration is read from: ``~/.config/tare/config.toml`` unless stated. There may be none."""
    if given := os.environ.get(CONFIG_VARIABLE):
        return Path(given).absolute()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(os.path.expanduser(base)) / "tare/config.toml"  # noqa: PTH111 - without a home, a path stays as it is


def configured_folder(name: str) -> str:
    """One of ``FOLDERS`` as the file has it, or empty. Raises SuiteError."""
    return str(_load().get("folders", {}).get(name, ""))


def configured_defaults() -> Mapping[str, Mapping[str, Any]]:
    """``[defaults.COMMAND]``: options by their names on the command line. Raises SuiteError."""
    defaults: Mapping[str, Mapping[str, Any]] = _load().get("defaults", {})
    for command, options in defaults.items():
        if not isinstance(options, dict):
            raise _error(f"defaults.{command}", "must be a table of options")
    return defaults


def option_error(command: str, problem: str, known: list[str]) -> SuiteError:
    """What is wrong with ``[defaults.COMMAND]``, and which names there are."""
    return _error(f"defaults.{command}", problem, f"known names: {', '.join(known)}")


def _load() -> Mapping[str, Any]:
    """The tables of the file; none if there is no file. Raises SuiteError, also for one that another user can write."""
    path = configuration_file()
    try:
        status = path.stat()
        content = path.read_bytes()
    except OSError as error:
        if CONFIG_VARIABLE in os.environ:
            raise SuiteError(str(path), f"is named by {CONFIG_VARIABLE}: {error.strerror}") from None
        return {}
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o002:
        raise SuiteError(str(path), "belongs to another user, or others may write to it", remedy="make it your own")
    import tomllib

    try:
        tables = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise SuiteError(str(path), f"is not TOML: {error}") from None
    for key, value in tables.items():
        if key not in {"folders", "defaults"} or not isinstance(value, dict):
            raise _error(key, "must be a table: [folders] or [defaults.COMMAND]")
    for key, value in tables.get("folders", {}).items():
        if key not in FOLDERS or not isinstance(value, str):
            problem = "must be a text" if key in FOLDERS else "unknown key"
            raise _error(f"folders.{key}", problem, f"known keys: {', '.join(FOLDERS)}")
    return tables


def _error(key: str, problem: str, remedy: str | None = None) -> SuiteError:
    return SuiteError(f"{configuration_file()}: {key}", problem, remedy=remedy)
