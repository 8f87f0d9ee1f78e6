"""What people have said about findings: a text file next to the suite, under version control.

Only an acknowledgement moves the baseline of a series; deleting its lines puts it back. ``[[renamed]]`` says what a
series is called now, so that it goes on. Whatever is wrong in the file is one message with the key.
"""

import datetime as dt
import json
from pathlib import Path

import msgspec

import tare
from tare.bench.errors import StoreError
from tare.bench.suite_file import Section, convert, read_toml
from tare.bench.trees import replace_file

SUFFIX = ".acks.toml"
_HEAD = """\
# What is known about findings of `tare gate`. Only an entry here moves the baseline of a series; delete it to undo.
"""


class Acknowledgement(Section, frozen=True):
    """``[[acknowledged]]``: the change of ``series`` since the night ``since`` is meant, until a date (none: for good).

    ``what`` and ``change`` are for people.
    """

    finding: str
    series: str
    since: str
    reason: str
    who: str = ""
    until: dt.date | None = None
    what: str = ""
    change: str = ""

    def is_in_force(self, day: dt.date) -> bool:
        """Whether it still holds on a day."""
        return self.until is None or day <= self.until


class Renaming(Section, frozen=True):
    """``[[renamed]]``: the series that was ``old`` is now ``new``."""

    old: str
    new: str


class AckFile(Section, frozen=True):
    """The file as a whole."""

    acknowledged: tuple[Acknowledgement, ...] = ()
    renamed: tuple[Renaming, ...] = ()

    @property
    def new_names(self) -> dict[str, str]:
        """What each renamed series is called now."""
        return {one.old: one.new for one in self.renamed}


def file_next_to(suite: Path) -> Path:
    """The file of a suite: ``nightly.acks.toml`` next to ``nightly.toml``."""
    return suite.with_name(suite.name.removesuffix(".toml") + SUFFIX)


def acks_file_of(suite_file: str, runs: Path) -> Path:
    """The file of the suite that a run was read from; for a suite that comes with tare, in the folder of runs."""
    suite = Path(suite_file or "history.toml")
    own = suite.is_absolute() and suite.resolve().parent != (Path(tare.__file__).parent / "suites").resolve()
    return file_next_to(suite if own else runs / suite.name)


def load_acks(path: Path | None) -> AckFile:
    """The file, or an empty one where there is none. Raises SuiteError with the key at fault."""
    if path is None or not path.exists():
        return AckFile()
    return convert(read_toml(path), AckFile, path, "")


def add_acknowledgement(path: Path, new: Acknowledgement) -> None:
    """Append an entry; what is there, comments too, stays as it is. Raises SuiteError, StoreError."""
    load_acks(path)
    fields = {name: value for name, value in msgspec.structs.asdict(new).items() if value not in (None, "")}
    lines = ["", "[[acknowledged]]", *(f"{name} = {_written(value)}" for name, value in fields.items()), ""]
    try:
        before = path.read_text("utf-8") if path.exists() else _HEAD
        replace_file(path, (before.rstrip("\n") + "\n" + "\n".join(lines)).encode())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}", remedy="name another file with --acks") from error


def _written(value: object) -> str:
    """A value as TOML has it: its strings are JSON's, but for the escape of DEL."""
    if isinstance(value, dt.date):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
