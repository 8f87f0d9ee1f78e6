"""A run on disk: a directory that is appended to while the run goes on, and read back afterwards.

``manifest.json`` is replaced atomically; ``samples.jsonl``, ``histograms.jsonl`` and ``events.jsonl`` only ever grow, a
record a line; ``raw/INSTANCE/`` holds the compressed outputs of each command. A half-written last line, as a crash or a
full disk leaves it, is dropped with a warning; everything before it counts.

What survives a power cut follows from the order in which things are written and synced (decision 0160):

1. the run's folder, the manifest, the empty files, and the names of all these, before the first record;
2. of an instance its raw outputs, then the names of these and of their folder, then samples, then distributions;
3. only then the event that says that the instance is done, with the number of its records; and that event is on disk
   before anybody is told, and before the next instance starts.

No single file is trusted. An instance is done if its event says so and the records that it states are there; attempts
are counted from events, samples, distributions and raw outputs; a record has a number within its instance.
"""

import contextlib
import errno
import fcntl
import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

import msgspec

from tare.bench.errors import RunDirectoryError, StoreError
from tare.bench.model import Completed
from tare.bench.records import SCHEMA_VERSION, Event, EventKind, HistogramRecord, Manifest, Sample
from tare.bench.stored import read_lines, unknown_fields_warning, upgraded, without_unknown
from tare.bench.trees import make_folders, replace_file, sync

if TYPE_CHECKING:
    from tare.bench.samples import SampleTable

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"
EVENTS = "events.jsonl"
HISTOGRAMS = "histograms.jsonl"
RAW = "raw"
_ENDED = (EventKind.INSTANCE_DONE, EventKind.INSTANCE_FAILED)
_RECORDS = "records"
"""In the details of the event that says that an instance is done: how many records it has, by ``SAMPLES`` and so on."""


class LoadedRun(msgspec.Struct, frozen=True):
    """A run read back. ``warnings`` say what could not be read and was left out.

    ``samples`` are those of the attempts that count, one a planned instance, which ``counting`` has by its identifier;
    ``attempts`` is the last attempt that samples or events name. ``lacking`` are the instances that are said to be done
    and whose samples are not all there.
    """

    path: Path
    manifest: Manifest
    samples: "SampleTable"
    events: list[Event]
    warnings: list[str]
    counting: Mapping[str, int] = {}
    attempts: Mapping[str, int] = {}
    lacking: frozenset[str] = frozenset()


class Progress(msgspec.Struct, frozen=True):
    """How far a run has come: the planned instances that ended, and how often each was begun."""

    done: frozenset[str]
    attempts: Mapping[str, int]


def attempt_of(instance: str) -> tuple[str, int]:
    """The planned instance and the attempt in an instance's name: ``b00-1f3a~2`` is ``b00-1f3a`` measured again."""
    planned, _, attempt = instance.partition("~")
    if attempt.isascii() and attempt.isdigit() and len(attempt) < _DIGITS:
        return planned, int(attempt)
    return planned, 1


_DIGITS = 10


class RunStore:
    """The writing side of a run directory. One process writes at a time; a lock holds that."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Open ``path`` for writing, making it if needed. Raises RunDirectoryError if another process writes to it."""
        self.path = path
        self.manifest = manifest
        self._unsynced: dict[Path, None] = {}
        self._numbers: Counter[tuple[str, str]] = Counter()
        with _named_failures(path):
            make_folders(path / RAW)
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
        """Append a sample, without its host and with its number. It is on disk after the next ``sync``."""
        number = self._numbers[SAMPLES, sample.instance] + 1
        self._append(self._samples, msgspec.structs.replace(sample, host="", number=number))
        self._numbers[SAMPLES, sample.instance] = number

    def add_event(self, event: Event) -> None:
        """Append an event. It is on disk after the next ``sync``, the end of an instance only after all else of it.

        The event of an instance that is done also states how many records it has.
        """
        if event.kind in _ENDED:
            with _named_failures(self.path):
                self._sync_data()
        if event.kind is EventKind.INSTANCE_DONE:
            records = {name: self._numbers[name, event.instance] for name in (SAMPLES, HISTOGRAMS)}
            event = msgspec.structs.replace(event, details={**event.details, _RECORDS: records})
        self._append(self._events, event)

    def add_histogram(self, record: HistogramRecord) -> None:
        """Append a distribution with its number. It is on disk after the next ``sync``."""
        number = self._numbers[HISTOGRAMS, record.instance] + 1
        self._append(self._histograms, msgspec.structs.replace(record, number=number))
        self._numbers[HISTOGRAMS, record.instance] = number

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
                    if (whole := completed.whole.get(suffix)) is None:
                        path.write_bytes(gzip.compress(content, compresslevel=6, mtime=0))
                    else:
                        _compress(whole, path)
                    self._unsynced[path] = None
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
        folders = dict.fromkeys(path.parent for path in self._unsynced)
        for path in (*self._unsynced, *folders, *dict.fromkeys(folder.parent for folder in folders)):
            sync(path)
        self._unsynced.clear()
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

    Of each planned instance only one attempt counts: the last that ended with all its samples, or else the last.
    Raises RunDirectoryError if there is no run there, or one of a schema that this version does not know.
    """
    from tare.bench.samples import SampleTable

    warnings: list[str] = []
    manifest = load_manifest(path, warnings)
    samples = SampleTable.read(path / SAMPLES, warnings, manifest.fingerprint.digest)
    read: list[Event] = []
    read_lines(path / EVENTS, Event, read.extend, warnings)
    events = list(
        {(event.kind, event.at_s, event.utc, event.instance, event.message): event for event in read}.values()
    )
    held = samples.count_by("instance")
    lacking = _lacking(events, SAMPLES, held)
    if lacking:
        warnings.append(
            f"{len(lacking)} instances are said to be done and their samples are not all there; "
            "`tare run --resume` measures them again"
        )
    begun = [*held, *(event.instance for event in events if event.instance)]
    counting = _counting(begun, events, lacking)
    replaced = _replaced(held, counting)
    if replaced:
        warnings.append(f"{len(replaced)} unfinished instances were measured again; their first samples are left out")
    return LoadedRun(
        path, manifest, samples.without(replaced), events, warnings, counting, _last_attempts(begun), lacking
    )


def load_histograms(run: LoadedRun) -> list[HistogramRecord]:
    """The distributions of a run, of the attempts that count.

    Runs from before there were any have none; what cannot be read, or is there twice, is left out with a warning among
    the run's. Raises RunDirectoryError.
    """
    records = _read_histograms(run)
    replaced = _replaced({record.instance for record in records}, run.counting)
    return [record for record in records if record.instance not in replaced]


def find_progress(run: LoadedRun) -> Progress:
    """How far a run has come, by all its files. Raises RunDirectoryError.

    An instance is done if an event says so and the records that it states are there. An attempt was begun if any file
    names it, so that none is begun twice under one name.
    """
    held = Counter(record.instance for record in _read_histograms(run))
    lacking = run.lacking | _lacking(run.events, HISTOGRAMS, held)
    ended = {event.instance for event in run.events if event.kind in _ENDED} - lacking
    raw = run.path / RAW
    folders = [folder.name for folder in raw.iterdir()] if raw.is_dir() else []
    attempts = Counter(run.attempts) | Counter(_last_attempts([*held, *folders]))
    return Progress(frozenset(attempt_of(instance)[0] for instance in ended), attempts)


def _read_histograms(run: LoadedRun) -> list[HistogramRecord]:
    records: list[HistogramRecord] = []
    file = run.path / HISTOGRAMS
    if file.exists():
        read_lines(file, HistogramRecord, records.extend, run.warnings)
    places = {(one.instance, one.number or -place): one for place, one in reversed([*enumerate(records, start=1)])}
    if len(places) < len(records):
        run.warnings.append(
            f"{HISTOGRAMS}: {len(records) - len(places)} lines are there twice; the first of each counts"
        )
    return [msgspec.structs.replace(record, number=0) for record in reversed(places.values())]


def _lacking(events: Iterable[Event], name: str, held: Mapping[str, int]) -> frozenset[str]:
    """The instances that are said to be done and have fewer records in the file ``name`` than stated.

    Runs from before the number was stated have at least one sample an instance.
    """
    usual = {_RECORDS: {SAMPLES: 1}}
    done = (event for event in events if event.kind is EventKind.INSTANCE_DONE)
    stated = ((event.instance, {**usual, **event.details}[_RECORDS]) for event in done)
    wanted = ((instance, records.get(name)) for instance, records in stated if isinstance(records, Mapping))
    return frozenset(one for one, count in wanted if isinstance(count, int) and held.get(one, 0) < count)


def _last_attempts(instances: Iterable[str]) -> dict[str, int]:
    """By planned instance, the highest attempt among these names."""
    return dict(sorted(map(attempt_of, instances)))


def _counting(begun: Iterable[str], events: Iterable[Event], lacking: Collection[str]) -> dict[str, int]:
    """By planned instance, the attempt that counts."""
    ended = {event.instance for event in events if event.kind in _ENDED}.difference(lacking)
    ranked = sorted((planned, one in ended, attempt) for one in begun for planned, attempt in [attempt_of(one)])
    return {planned: attempt for planned, _, attempt in ranked}


def _replaced(instances: Collection[str], counting: Mapping[str, int]) -> set[str]:
    """Those of other attempts than count; where none is known to, the last does."""
    counts = {**_last_attempts(instances), **counting}
    attempts = {instance: attempt_of(instance) for instance in instances}
    return {instance for instance, (planned, attempt) in attempts.items() if attempt != counts[planned]}


def load_manifest(path: Path, warnings: list[str] | None = None) -> Manifest:
    """Read the manifest of a run directory, of this schema or an older one. Raises RunDirectoryError.

    Fields that this version does not know are left out, with a warning.
    """
    file = path / MANIFEST
    try:
        raw = json.loads(file.read_text("utf-8"))
        version = raw["schema_version"]
        if type(version) is not int or version < 1:  # JSON's true is an int of Python's
            raise TypeError  # noqa: TRY301 - as what is damaged otherwise
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


def _compress(whole: BinaryIO, path: Path) -> None:
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
        shutil.copyfileobj(whole, packed, 1 << 20)
    whole.seek(0)


def _open_for_append(path: Path) -> int:
    """Open a file of lines, cutting off a half-written last line so that the next record starts on its own."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)
        os.fsync(descriptor)  # before anything is written where that was
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
