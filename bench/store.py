"""A run on disk: a directory that is appended to while the run goes on, and read back afterwards.

``manifest.json`` is replaced atomically; ``samples.jsonl``, ``histograms.jsonl`` and ``events.jsonl`` only ever grow, a
record a line; ``raw/INSTANCE/`` holds the compressed outputs of each command. All of an instance is on disk before an
event says that it is done. A half-written last line, as a crash or a full disk leaves it, is dropped with a warning;
everything before it counts.
"""

import contextlib
import errno
import fcntl
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from tare.bench.errors import RunDirectoryError, StoreError
from tare.bench.model import Completed
from tare.bench.records import SCHEMA_VERSION, Event, EventKind, HistogramRecord, Manifest, Sample
from tare.bench.stored import read_lines, unknown_fields_warning, upgraded, without_unknown
from tare.bench.trees import replace_file, sync

if TYPE_CHECKING:
    from tare.bench.samples import SampleTable

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"
EVENTS = "events.jsonl"
HISTOGRAMS = "histograms.jsonl"
RAW = "raw"
_ENDED = (EventKind.INSTANCE_DONE, EventKind.INSTANCE_FAILED)


class LoadedRun(msgspec.Struct, frozen=True):
    """A run read back. ``warnings`` say what could not be read and was left out."""

    path: Path
    manifest: Manifest
    samples: "SampleTable"
    events: list[Event]
    warnings: list[str]


def attempt_of(instance: str) -> tuple[str, int]:
    """The planned instance and the attempt in an instance's name: ``b00-1f3a~2`` is ``b00-1f3a`` measured again."""
    planned, separator, attempt = instance.partition("~")
    return planned, int(attempt) if separator else 1


class RunStore:
    """The writing side of a run directory. One process writes at a time; a lock holds that."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Open ``path`` for writing, making it if needed. Raises RunDirectoryError if another process writes to it."""
        self.path = path
        self.manifest = manifest
        self._unsynced: set[Path] = set()
        with _named_failures(path):
            (path / RAW).mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise RunDirectoryError(f"{path}: another tare process is writing to this run") from None
            self.save_manifest(manifest)
            self._samples = _open_for_append(path / SAMPLES)
            self._events = _open_for_append(path / EVENTS)
            self._histograms = _open_for_append(path / HISTOGRAMS)
            for folder in (path, path.parent):
                sync(folder)

    def save_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest atomically."""
        with _named_failures(self.path):
            text = json.dumps(msgspec.to_builtins(manifest), indent=2, ensure_ascii=False)
            replace_file(self.path / MANIFEST, f"{text}\n".encode())
        self.manifest = manifest

    def add_sample(self, sample: Sample) -> None:
        """Append a sample, without its host. It is on disk after the next ``sync``."""
        self._append(self._samples, msgspec.structs.replace(sample, host=""))

    def add_event(self, event: Event) -> None:
        """Append an event. It is on disk after the next ``sync``, the end of an instance only after all else of it."""
        if event.kind in _ENDED:
            with _named_failures(self.path):
                self._sync_data()
        self._append(self._events, event)

    def add_histogram(self, record: HistogramRecord) -> None:
        """Append a distribution. It is on disk after the next ``sync``."""
        self._append(self._histograms, record)

    def add_raw(self, instance: str, name: str, completed: Completed) -> str:
        """Keep a command's whole output, compressed; returns its name relative to the run directory.

        The returned file is standard output; standard error, if there was any, is next to it.
        """
        with _named_failures(self.path):
            folder = self.path / RAW / instance
            folder.mkdir(exist_ok=True)
            for suffix, content in (("stdout", completed.stdout), ("stderr", completed.stderr)):
                if content or suffix == "stdout":
                    path = folder / f"{name}.{suffix}.gz"
                    path.write_bytes(gzip.compress(content, compresslevel=6, mtime=0))
                    self._unsynced |= {path, folder, folder.parent}
            return f"{RAW}/{instance}/{name}.stdout.gz"

    def sync(self) -> None:
        """Wait until everything appended is on disk."""
        with _named_failures(self.path):
            self._sync_data()
            os.fsync(self._events)

    def _append(self, descriptor: int, record: msgspec.Struct) -> None:
        line = msgspec.json.encode(record) + b"\n"
        with _named_failures(self.path):
            written = os.write(descriptor, line)
            if written != len(line):  # a full disk takes a part: the rest of the line fails loudly
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _sync_data(self) -> None:
        while self._unsynced:
            sync(self._unsynced.pop())
        os.fsync(self._samples)
        os.fsync(self._histograms)

    def close(self) -> None:
        """Close the files and give up the lock."""
        os.close(self._samples)
        os.close(self._events)
        os.close(self._histograms)
        self._lock.close()
        (self.path / ".lock").unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_run(path: Path) -> LoadedRun:
    """Read a run directory, finished or not.

    Samples of an attempt that a later attempt of the same planned instance replaced are left out. Raises
    RunDirectoryError if there is no run there, or one of a schema that this version does not know.
    """
    from tare.bench.samples import SampleTable

    warnings: list[str] = []
    manifest = load_manifest(path, warnings)
    samples = SampleTable.read(path / SAMPLES, warnings, manifest.fingerprint.digest)
    events: list[Event] = []
    read_lines(path / EVENTS, Event, events.extend, warnings)
    replaced = _replaced_attempts(samples.distinct("instance"), events)
    if replaced:
        warnings.append(f"{len(replaced)} unfinished instances were measured again; their first samples are left out")
    return LoadedRun(path, manifest, samples.without(replaced), events, warnings)


def load_histograms(run: LoadedRun) -> list[HistogramRecord]:
    """The distributions of a run, without those of attempts that a later one replaced.

    Runs from before there were any have none; what cannot be read is left out with a warning among the run's. Raises
    RunDirectoryError.
    """
    records: list[HistogramRecord] = []
    file = run.path / HISTOGRAMS
    if file.exists():
        read_lines(file, HistogramRecord, records.extend, run.warnings)
    replaced = _replaced_attempts({record.instance for record in records}, run.events)
    return [record for record in records if record.instance not in replaced]


def load_manifest(path: Path, warnings: list[str] | None = None) -> Manifest:
    """Read the manifest of a run directory, of this schema or an older one. Raises RunDirectoryError.

    Fields that this version does not know are left out, with a warning.
    """
    file = path / MANIFEST
    try:
        raw = json.loads(file.read_text("utf-8"))
        version = int(raw["schema_version"])
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{path} is not a run directory: it has no {MANIFEST}", remedy="name a folder that `tare run` made"
        ) from None
    except OSError as error:
        raise RunDirectoryError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RunDirectoryError(f"{file} is not a manifest of tare: it is damaged or something else") from None
    if version > SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{file}: schema version {version} is newer than this tare knows ({SCHEMA_VERSION})",
            remedy="install the version of tare that made the run, or a newer one",
        )
    unknown: set[str] = set()
    try:
        known = without_unknown(upgraded(raw), Manifest, unknown)
        manifest = msgspec.convert(known, Manifest)
    except msgspec.ValidationError as error:
        raise RunDirectoryError(f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise RunDirectoryError(f"{file} is damaged: it is not what a run of schema {version} has") from None
    if unknown and warnings is not None:
        warnings.append(unknown_fields_warning(MANIFEST, unknown))
    return manifest


def done_instances(events: list[Event]) -> set[str]:
    """The planned instances that have ended, well or not: a resumed run does not repeat them."""
    return {attempt_of(event.instance)[0] for event in events if event.kind in _ENDED}


def _replaced_attempts(measured: Iterable[str], events: list[Event]) -> set[str]:
    started = (attempt_of(event.instance) for event in events if event.kind is EventKind.INSTANCE_STARTED)
    latest = dict(sorted(started))  # of several attempts the last stays
    attempts = {instance: attempt_of(instance) for instance in measured}
    return {instance for instance, (planned, attempt) in attempts.items() if attempt < latest.get(planned, 1)}


def _open_for_append(path: Path) -> int:
    """Open a file of lines, cutting off a half-written last line so that the next record starts on its own."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)
    return descriptor


@contextlib.contextmanager
def _named_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"cannot write to the run directory {path}: {reason}",
            remedy="free some space or choose another folder with --output; what was measured is kept, and "
            "`tare run --resume` continues from there",
        ) from error
