"""The originals of what ``tare tune`` changed, on disk before the first change."""

import contextlib
import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from tare.bench.errors import TuningError
from tare.bench.linux.files import HostRoots, read_boot_id
from tare.bench.locations import state_directory
from tare.bench.model import Fact
from tare.bench.trees import replace_file, sync

_VERSION = 1


class Original(msgspec.Struct, frozen=True):
    """What stood in one file before tare changed it."""

    setting: str
    path: str
    value: str


class Journal(msgspec.Struct, frozen=True):
    """What was changed since boot ``boot_id``: originals in the order of changing, and what was asked for."""

    version: int
    boot_id: str
    originals: tuple[Original, ...]
    wanted: Mapping[str, str]


class JournalFile:
    """A journal on disk: replaced as a whole, complete or not at all, and durable when ``save`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Journal | None:
        """What is recorded, None if nothing is. Raises TuningError if it cannot be read."""
        try:
            journal = msgspec.json.decode(self.path.read_bytes(), type=Journal)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TuningError(f"{self.path} cannot be read: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise TuningError(
                f"{self.path} holds the host's original settings and is damaged: {error}",
                remedy="set them by hand from what can be read in it, then delete it; a reboot restores them all",
            ) from error
        if journal.version != _VERSION:
            raise TuningError(
                f"{self.path} was written by another version of tare (format {journal.version}, known is {_VERSION})",
                remedy="restore with the version that wrote it",
            )
        return journal

    def save(self, journal: Journal | None) -> None:
        """Replace it, or remove it for None. Raises TuningError if the disk refuses."""
        try:
            if journal is None:
                self.path.unlink(missing_ok=True)
                sync(self.path.parent)
            else:
                replace_file(self.path, msgspec.json.format(msgspec.json.encode(journal)) + b"\n")
        except OSError as error:
            raise TuningError(
                f"cannot write {error.filename or self.path}: {error.strerror}",
                remedy="make room, or set TARE_STATE_DIR to a folder that can be written",
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process changes or restores at a time. Raises TuningError if another one does now."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self.path.with_suffix(".lock").open("w")
        except OSError as error:
            raise TuningError(f"cannot write {error.filename}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TuningError("another `tare tune` is at work on this host", remedy="wait until it ends") from None
            yield


def journal_file() -> Path:
    """Where the originals are kept."""
    return state_directory() / "tune.json"


def boot_id(roots: HostRoots) -> str:
    """The running kernel's identity; settings do not outlive it. Raises TuningError."""
    try:
        return read_boot_id(roots)
    except OSError as error:
        raise TuningError(f"cannot tell this boot from another: {error.filename}: {error.strerror}") from error


def tuned_facts(path: Path, roots: HostRoots) -> tuple[Fact, ...]:
    """What ``tare tune apply`` has changed on the running kernel, as a fact of a run; nothing if that is not known."""
    try:
        journal = JournalFile(path).load()
        if journal is None or journal.boot_id != boot_id(roots):
            return ()
    except TuningError:
        return ()
    shown = ", ".join(f"{name} {value}" for name, value in sorted(journal.wanted.items()))
    return (Fact("tuned by tare", shown, str(path)),) if shown else ()
