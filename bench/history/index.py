"""The index of a folder of runs, in a folder of its own beside them: Parquet files that DuckDB queries.

``index.json`` names the runs, their conditions, and the Parquet files that hold their rows; it is replaced atomically
after the rows are on disk, so that whoever reads finds the last whole state, and a killed update is as if it had not
begun. Files that it does not name are removed by the next update. Where the index itself is damaged it is made again
from the runs; rows of runs that are gone are taken over from whatever file can still be read.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tare.bench.errors import RunDirectoryError, StoreError, TareError
from tare.bench.history.entries import CellRow, Indexed, RunEntry, read_entry, stamp_of
from tare.bench.history.foreign import FOREIGN_FILE, read_foreign
from tare.bench.linux.locks import lock_within
from tare.bench.store import MANIFEST
from tare.bench.trees import replace_file, sync

if TYPE_CHECKING:
    import duckdb

FOLDER = ".tare-history"
INDEX = "index.json"
FORMAT = 1
"""Of the index: one of another format is made again from the runs."""
MOST_FILES = 16
"""Parquet files before they are merged into one."""
PATIENCE_S = 60.0

COLUMNS: Mapping[str, str] = {
    "number": "INTEGER",
    **dict.fromkeys(("run", "series", "subject", "experiment", "workload", "params", "backend"), "VARCHAR"),
    **dict.fromkeys(("envelope", "metric", "unit", "direction"), "VARCHAR"),
    **dict.fromkeys(("leads", "own"), "BOOLEAN"),
    "margin": "DOUBLE",
    "epoch": "VARCHAR",
    "blocks": "INTEGER[]",
    "medians": "DOUBLE[]",
    "iterations": "INTEGER",
    **dict.fromkeys(("level", "level_sd", "ratio", "ratio_sd"), "DOUBLE"),
    "ratio_blocks": "INTEGER",
    "failed": "INTEGER",
}


class Catalogue(msgspec.Struct, frozen=True):
    """``index.json``. ``files`` are the Parquet files with their sizes, ``conditions`` texts by field, by digest."""

    format: int = FORMAT
    next_number: int = 1
    runs: tuple[RunEntry, ...] = ()
    conditions: Mapping[str, Mapping[str, str]] = {}
    files: Mapping[str, int] = {}


class Updated(msgspec.Struct, frozen=True):
    """What an update did. ``left_out`` are runs that could not be entered, with the reason."""

    added: tuple[str, ...]
    left_out: tuple[TareError, ...]
    rebuilt: str = ""
    runs: int = 0


class History:
    """The index of a folder of runs, as it was when this was opened."""

    def __init__(self, runs: Path, catalogue: Catalogue) -> None:
        self.runs_folder = runs
        self.folder = runs / FOLDER
        self.catalogue = catalogue

    @property
    def entries(self) -> list[RunEntry]:
        """The runs in the order of their starts."""
        return sorted(self.catalogue.runs, key=lambda entry: entry.order)

    def changed_fields(self, before: str, after: str) -> dict[str, tuple[str, str]]:
        """The conditions that differ between two epochs, with both values."""
        known = self.catalogue.conditions
        ours, theirs = known.get(before, {}), known.get(after, {})
        names = dict.fromkeys((*ours, *theirs))
        pairs = {name: (ours.get(name, "not recorded"), theirs.get(name, "not recorded")) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @contextlib.contextmanager
    def start_query(self) -> Iterator["duckdb.DuckDBPyConnection"]:
        """A connection in which ``cells`` are the rows of the runs in the index.

        Raises RunDirectoryError if a file of it cannot be read.
        """
        import duckdb

        with _open_duckdb() as connection:
            try:
                self._define_cells(connection)
                yield connection
            except (duckdb.IOException, duckdb.InvalidInputException) as error:
                raise RunDirectoryError(
                    f"the index {self.folder} is damaged: {error}", remedy="`tare history update` makes it again"
                ) from error

    def _define_cells(self, connection: "duckdb.DuckDBPyConnection") -> None:
        paths = [str(self.folder / name) for name in self.catalogue.files]
        if not paths:
            columns = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in COLUMNS.items())
            connection.execute(f"CREATE VIEW cells AS SELECT {columns} WHERE false")
            return
        connection.execute("CREATE TABLE entered (number INTEGER)")
        numbers = [entry.number for entry in self.catalogue.runs]
        connection.execute("INSERT INTO entered SELECT unnest(?::INTEGER[])", [numbers])
        listed = ", ".join(quoted(path) for path in paths)
        connection.execute(
            f"CREATE VIEW cells AS SELECT * FROM read_parquet([{listed}]) "  # noqa: S608 - quoted names
            "WHERE number IN (SELECT number FROM entered)"
        )


@contextlib.contextmanager
def _open_duckdb() -> Iterator["duckdb.DuckDBPyConnection"]:
    """An in-memory database that never reaches for the network or leaves files."""
    import duckdb

    connection = duckdb.connect(
        config={"autoinstall_known_extensions": False, "autoload_known_extensions": False, "memory_limit": "300MB"}
    )
    try:
        yield connection
    finally:
        connection.close()


def copy_to(connection: "duckdb.DuckDBPyConnection", query: str, target: Path, form: str) -> None:
    """Write the rows of a query to a file. Raises StoreError if it cannot be written."""
    import duckdb

    try:
        connection.execute(f"COPY ({query}) TO {quoted(str(target))} {form}")
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        target.unlink(missing_ok=True)
        if target.name not in str(error):  # it is what could not be read
            raise
        raise StoreError(f"cannot write {target}: {error}", remedy=_SPACE) from error


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def open_history(runs: Path) -> History:
    """The index of a folder of runs. Raises RunDirectoryError if there is none, or if it is damaged."""
    found = _find_catalogue(runs)
    if isinstance(found, str):
        raise RunDirectoryError(
            f"{runs} has no usable history: {found}", remedy=f"`tare history update {runs}` makes it from the runs"
        )
    return History(runs, found)


def _find_catalogue(runs: Path) -> Catalogue | str:
    """The index as it stands, or why it cannot be used."""
    file = runs / FOLDER / INDEX
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return "it was never indexed"
    except OSError as error:
        return f"{file}: {error.strerror}"
    try:
        catalogue = msgspec.json.decode(content, type=Catalogue)
    except msgspec.DecodeError as error:
        return f"{file} is damaged ({error})"
    if catalogue.format != FORMAT:
        return f"its index is of format {catalogue.format}, and this tare writes {FORMAT}"
    for name, size in catalogue.files.items():
        path = file.parent / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or damaged"
    return catalogue


def update_history(runs: Path, say: Callable[[str], None] = lambda _: None) -> Updated:
    """Enter what is new in a folder of runs, and what has changed; make the index if there is none.

    Raises RunDirectoryError for what is no folder, StoreError if the index cannot be written.
    """
    if not runs.is_dir():
        raise RunDirectoryError(f"{runs} is not a folder", remedy="name the folder that holds the runs")
    with _written_alone(runs / FOLDER):
        found = _find_catalogue(runs)
        rebuilt = ""
        if isinstance(found, str):
            rebuilt = found if (runs / FOLDER / INDEX).exists() else ""
            found = _salvaged(runs / FOLDER) if rebuilt else Catalogue()
        return _Update(runs, found, say).update(rebuilt)


class _Update:
    """One update, which has the index to itself."""

    def __init__(self, runs: Path, catalogue: Catalogue, say: Callable[[str], None]) -> None:
        self.runs = runs
        self.folder = runs / FOLDER
        self.before = catalogue
        self.say = say
        self.left_out: list[TareError] = []

    def update(self, rebuilt: str) -> Updated:
        known = {entry.folder: entry for entry in self.before.runs}
        found = [indexed for folder, number in self._changed(known) if (indexed := self._read(folder, number))]
        fresh = self._without_doubles(found, known)
        catalogue = self.before
        if fresh or rebuilt or not (self.folder / INDEX).exists():
            catalogue = self._entered(fresh)
        if len(catalogue.files) > MOST_FILES:
            catalogue = self._merged(catalogue)
        self._remove_strangers(catalogue)
        names = tuple(indexed.entry.run for indexed in fresh)
        return Updated(names, tuple(self.left_out), rebuilt, len(catalogue.runs))

    def _changed(self, known: Mapping[str, RunEntry]) -> Iterator[tuple[Path, int]]:
        """The folders of runs that are not in the index as they are now, with the number of their rows."""
        number = self.before.next_number
        found = (*self.runs.glob(f"*/{MANIFEST}"), *self.runs.glob(f"*/{FOREIGN_FILE}"))
        for folder in sorted({path.parent for path in found}, key=_order_of):
            entry = known.get(folder.name)
            with contextlib.suppress(OSError):  # said when it is read
                if entry is not None and ("samples" in entry.pruned or entry.stamp == _stamp(folder)):
                    continue
            yield folder, number
            number += 1

    def _read(self, folder: Path, number: int) -> Indexed | None:
        self.say(f"reading {folder.name}")
        try:
            if (folder / FOREIGN_FILE).exists():
                return read_foreign(folder, number, _stamp(folder))
            return read_entry(folder, number)
        except TareError as error:
            self.left_out.append(error)
            return None

    def _without_doubles(self, found: Sequence[Indexed], known: Mapping[str, RunEntry]) -> list[Indexed]:
        """Without copies of runs under another name: one night would count twice."""
        owners = {entry.run: name for name, entry in known.items() if (self.runs / name).exists()}
        kept = []
        for indexed in found:
            owner = owners.setdefault(indexed.entry.run, indexed.entry.folder)
            if owner == indexed.entry.folder:
                kept.append(indexed)
            else:
                problem = f"{self.runs / indexed.entry.folder} is a copy of {owner}: both are run {indexed.entry.run}"
                self.left_out.append(RunDirectoryError(problem, remedy="remove one of them"))
        return kept

    def _entered(self, fresh: Sequence[Indexed]) -> Catalogue:
        replaced = {indexed.entry.folder for indexed in fresh} | {indexed.entry.run for indexed in fresh}
        kept = [one for one in self.before.runs if one.folder not in replaced and one.run not in replaced]
        conditions = dict(self.before.conditions)
        for indexed in fresh:
            conditions |= indexed.texts
        number = max((indexed.entry.number + 1 for indexed in fresh), default=self.before.next_number)
        files = dict(self.before.files)
        rows = [row for indexed in fresh for row in indexed.rows]
        if rows:
            name = f"cells-{number - 1:06d}.parquet"
            files[name] = _write_rows(self.folder / name, rows)
        entries = (*kept, *(indexed.entry for indexed in fresh))
        return self._saved(Catalogue(FORMAT, number, entries, conditions, files))

    def _merged(self, catalogue: Catalogue) -> Catalogue:
        """The same rows in one file, without those that no run has any more."""
        name = f"cells-{catalogue.next_number:06d}-merged.parquet"
        target = self.folder / name
        with History(self.runs, catalogue).start_query() as connection, _named_failures(self.folder):
            copy_to(connection, "SELECT * FROM cells ORDER BY number", target, "(FORMAT parquet)")
            sync(target)
        number = catalogue.next_number + 1
        return self._saved(msgspec.structs.replace(catalogue, next_number=number, files={name: target.stat().st_size}))

    def _saved(self, catalogue: Catalogue) -> Catalogue:
        with _named_failures(self.folder):
            replace_file(self.folder / INDEX, msgspec.json.encode(catalogue))
        return catalogue

    def _remove_strangers(self, catalogue: Catalogue) -> None:
        for path in self.folder.glob("cells-*"):
            if path.name not in catalogue.files:
                path.unlink(missing_ok=True)


class _Started(msgspec.Struct):
    started_utc: str = ""


def _order_of(folder: Path) -> tuple[str, str]:
    """By start, as far as it can be read: numbers of runs that are entered together follow their order."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Started).started_utc, folder.name
    return "", folder.name


def _stamp(folder: Path) -> str:
    file = folder / FOREIGN_FILE
    return f"{file.stat().st_size}.{file.stat().st_mtime_ns}" if file.exists() else stamp_of(folder)


def save_entries(runs: Path, change: Callable[[RunEntry], RunEntry]) -> History:
    """Change what the index says of its runs. Raises as ``update_history`` and ``open_history``."""
    with _written_alone(runs / FOLDER):
        history = open_history(runs)
        entries = tuple(change(entry) for entry in history.catalogue.runs)
        catalogue = msgspec.structs.replace(history.catalogue, runs=entries)
        with _named_failures(history.folder):
            replace_file(history.folder / INDEX, msgspec.json.encode(catalogue))
        return History(runs, catalogue)


def add_indexed(runs: Path, make: Callable[[int], Sequence[Indexed]]) -> Updated:
    """Enter what was made elsewhere, from the number on that ``make`` is given. Raises as ``update_history``."""
    with _written_alone(runs / FOLDER):
        found = _find_catalogue(runs)
        before = Catalogue() if isinstance(found, str) else found
        update = _Update(runs, before, lambda _: None)
        fresh = update._without_doubles(make(before.next_number), {one.folder: one for one in before.runs})  # noqa: SLF001 - of this module
        catalogue = update._entered(fresh)  # noqa: SLF001 - of this module
        return Updated(tuple(one.entry.run for one in fresh), tuple(update.left_out), runs=len(catalogue.runs))


def _write_rows(path: Path, rows: Iterable[CellRow]) -> int:
    """Write rows as Parquet, on disk when this returns; its size in bytes. Raises StoreError."""
    lines = path.with_name(f"{path.name}.jsonl")
    kinds = ", ".join(f"'{name}': '{kind}'" for name, kind in COLUMNS.items())
    with _named_failures(path.parent), _open_duckdb() as connection:
        try:
            lines.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
            source = f"read_json({quoted(str(lines))}, format = 'newline_delimited', columns = {{{kinds}}})"
            copy_to(connection, f"SELECT * FROM {source}", path, "(FORMAT parquet)")  # noqa: S608 - names of our own
        finally:
            lines.unlink(missing_ok=True)
        sync(path)
        return path.stat().st_size


def _salvaged(folder: Path) -> Catalogue:
    """What a damaged index still holds of runs that are gone: those of ``index.json`` whose rows can be read.

    Runs whose folders are there are read again, so that only those are kept here.
    """
    runs = folder.parent
    try:
        old = msgspec.json.decode((folder / INDEX).read_bytes(), type=Catalogue)
    except (msgspec.DecodeError, OSError):
        return Catalogue(next_number=_unused_number(folder))
    if old.format != FORMAT:
        return Catalogue(next_number=_unused_number(folder))
    files = {name: size for name in old.files if (size := _readable_size(folder / name)) is not None}
    here = {path.parent.name for name in (MANIFEST, FOREIGN_FILE) for path in runs.glob(f"*/{name}")}
    gone = [entry for entry in old.runs if entry.folder not in here]
    numbers = _numbers_in(folder, files)
    kept = tuple(entry for entry in gone if entry.number in numbers)
    return Catalogue(FORMAT, old.next_number, kept, old.conditions, files)


def _unused_number(folder: Path) -> int:
    """A number above those of all files: their rows may still be there when new ones are written."""
    found = [int(path.name[6:12]) for path in folder.glob("cells-*") if path.name[6:12].isdigit()]
    return max(found, default=0) + 2


def _readable_size(path: Path) -> int | None:
    import duckdb

    with _open_duckdb() as connection:
        try:
            connection.execute(f"SELECT count(*) FROM read_parquet({quoted(str(path))})").fetchall()  # noqa: S608 - quoted
            return path.stat().st_size
        except (duckdb.Error, OSError):
            return None


def _numbers_in(folder: Path, files: Mapping[str, int]) -> set[int]:
    if not files:
        return set()
    listed = ", ".join(quoted(str(folder / name)) for name in files)
    with _open_duckdb() as connection:
        found: list[Any] = connection.execute(f"SELECT DISTINCT number FROM read_parquet([{listed}])").fetchall()  # noqa: S608 - quoted
        return {number for (number,) in found}


_SPACE = "free some space, or make the folder writable; the runs themselves are untouched"


def save_beside(history: History, name: str, content: bytes) -> None:
    """Replace a file next to the index. Raises StoreError."""
    with _named_failures(history.folder):
        replace_file(history.folder / name, content)


@contextlib.contextmanager
def _named_failures(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write the index {folder}: {error.strerror or error}", remedy=_SPACE) from error


@contextlib.contextmanager
def _written_alone(folder: Path) -> Iterator[None]:
    """Hold the index against other writers; wait for one that is at it. Raises StoreError."""
    with _named_failures(folder):
        folder.mkdir(exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        if not lock_within(lock.fileno(), PATIENCE_S):
            raise StoreError(
                f"{folder}: another tare process has been updating this history for {PATIENCE_S:.0f} s",
                remedy="wait until it has finished",
            )
        yield
