"""The suites that are installed with tare: found by name, read like anybody's file."""

import re
from collections.abc import Mapping
from pathlib import Path

import tare
from tare.bench.errors import UnknownNameError
from tare.bench.suite_file import read_toml

_FOLDER = Path(tare.__file__).parent / "suites"
_NAME = re.compile(r"[\w-]+")


def ready_suites() -> dict[str, Path]:
    """The files of the ready suites by their names, in the order of the names."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


def describe_ready_suites() -> Mapping[str, str]:
    """What each ready suite asks, by its name. Raises SuiteError if one cannot be read."""
    return {name: str(read_toml(path).get("suite", {}).get("description", "")) for name, path in ready_suites().items()}


def find_suite(named: Path) -> Path:
    """The file that ``named`` means: a file, or else a ready suite of that name.

    A path (anything with a slash or a suffix) is returned as it is: reading it says what is wrong with it. Raises
    UnknownNameError with the names of the ready suites.
    """
    return named if named.is_file() or not _NAME.fullmatch(str(named)) else require_ready_suite(str(named))


def require_ready_suite(name: str) -> Path:
    """The file of the ready suite ``name``. Raises UnknownNameError with the names there are."""
    ready = ready_suites()
    if name not in ready:
        raise UnknownNameError(
            f"there is no suite {name!r}, neither a file nor a ready one",
            remedy=f"ready suites are: {', '.join(ready)}",
        )
    return ready[name]
