"""The runs of one suite on one host side by side: matrices with a row a night and a column a series.

A series' nights under other conditions than its newest (another epoch) are there, and masked where nights are judged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.errors import RunDirectoryError
from tare.bench.history.entries import RunEntry
from tare.bench.history.index import History
from tare.bench.model import Direction
from tare.bench.readable import one_line
from tare.bench.stats.comparisons import Floats, Integers


class Series(msgspec.Struct, frozen=True):
    """One metric of one cell over many runs. ``is_baseline``: its level is what others are divided by."""

    identifier: str
    subject: str
    suite: str
    experiment: str
    workload: str
    params: str
    backend: str
    metric: str
    unit: str
    direction: Direction
    leads: bool
    own: bool
    margin: float
    is_baseline: bool

    @property
    def name(self) -> str:
        """What people call it."""
        return " · ".join(part for part in (self.subject_name, one_line(self.backend)) if part)

    @property
    def subject_name(self) -> str:
        """The same without its backend."""
        params = msgspec.json.decode(self.params or "{}")
        given = ", ".join(f"{name} {value}" for name, value in params.items())
        parts = (self.workload or self.experiment, given, self.metric)
        return one_line(" · ".join(part for part in parts if part))


class Nights(msgspec.Struct, frozen=True):
    """Nights in their order and series; the matrices have NaN where a night does not have a series.

    ``levels`` and ``ratios`` are logs (ratios NaN for baselines), ``spreads`` the log of a block's standard deviation,
    ``epochs`` numbers into ``epoch_names`` (-1: not measured), ``blocks`` the blocks behind each night's value.
    ``failed`` counts instances that failed; such values are in ``levels`` and ``ratios``, and not judged.
    ``baseline_of`` has for each series the column of its subject's baseline, -1 without. ``reruns`` are the runs that
    measured cells of a night again, by its row, as (ratios, levels) with a row a rerun.
    """

    entries: Sequence[RunEntry]
    series: Sequence[Series]
    levels: Floats
    ratios: Floats
    spreads: Floats
    blocks: Integers
    failed: Integers
    epochs: Integers
    epoch_names: Sequence[str]
    baseline_of: Integers
    reruns: Mapping[int, tuple[Floats, Floats]]

    @property
    def is_tonight_epoch(self) -> NDArray[np.bool_]:
        """Where a night was made under the conditions of the newest, by series; False for what it does not have."""
        newest = self.epochs[-1]
        alike: NDArray[np.bool_] = (self.epochs == newest) & (newest >= 0)
        return alike

    def upto(self, row: int) -> "Nights":
        """The same as it stood after the night ``row``."""
        kept = {name: getattr(self, name)[: row + 1] for name in ("entries", *_MATRICES)}
        reruns = {night: values for night, values in self.reruns.items() if night <= row}
        return msgspec.structs.replace(self, reruns=reruns, **kept)


_MATRICES = ("levels", "ratios", "spreads", "blocks", "failed", "epochs")
_FACTS = (
    "subject",
    "experiment",
    "workload",
    "params",
    "backend",
    "metric",
    "unit",
    "direction",
    "leads",
    "own",
    "margin",
)


def load_nights(
    history: History, newest: RunEntry, *, own_only: bool = True, renamed: Mapping[str, str] | None = None
) -> Nights:
    """The nights of ``newest``'s suite on its host, itself the last, and their series.

    With ``own_only`` those that the workload or experiment measures itself, and what a subject is known by. ``renamed``
    maps series that had another name to what they are called now. Raises RunDirectoryError for a damaged index.
    """
    alike = [one for one in history.entries if (one.host, one.suite) == (newest.host, newest.suite)]
    entries = [one for one in alike if one.is_night and one.order <= newest.order]
    if not entries or entries[-1].run != newest.run:
        raise RunDirectoryError(
            f"{newest.run} is not a night: it is a {newest.standing}", remedy="name a run of a night"
        )
    places = {one.number: row for row, one in enumerate(entries)}
    rows_of = {one.run: row for row, one in enumerate(entries)}
    reruns = {one.number: rows_of[one.confirms] for one in alike if one.confirms in rows_of}
    table = _read(history, [*places, *reruns], own_only=own_only)
    return _arranged(entries, places, reruns, table, newest, renamed or {})


def _read(history: History, numbers: Sequence[int], *, own_only: bool) -> dict[str, NDArray[Any]]:
    columns = ", ".join(f"any_value({name}) AS {name}" for name in _FACTS)
    wanted = "AND (own OR leads)" if own_only else ""
    with history.start_query() as connection:
        connection.execute("CREATE TABLE wanted (number INTEGER)")
        connection.execute("INSERT INTO wanted SELECT unnest(?::INTEGER[])", [list(numbers)])
        connection.execute(
            f"CREATE TABLE mine AS SELECT * FROM cells WHERE number IN (SELECT number FROM wanted) {wanted}"  # noqa: S608 - names of our own
        )
        facts = connection.execute(
            f"SELECT series, {columns} FROM mine GROUP BY series ORDER BY min(number), series"  # noqa: S608 - names of our own
        ).fetchall()
        order = {row[0]: place for place, row in enumerate(facts)}
        values: Any = connection.execute(
            "SELECT number, series, epoch, level, level_sd, ratio, ratio_sd, ratio_blocks, failed, len(blocks) AS n "
            "FROM mine"
        ).fetchnumpy()
    arrays: dict[str, NDArray[Any]] = values
    return arrays | {"facts": np.array([None, *facts], dtype=object)[1:], "order": np.array([order], dtype=object)}


def _arranged(
    entries: Sequence[RunEntry],
    places: Mapping[int, int],
    reruns: Mapping[int, int],
    table: Mapping[str, NDArray[Any]],
    newest: RunEntry,
    renamed: Mapping[str, str],
) -> Nights:
    facts = [row for row in table["facts"] if row[0] not in renamed]
    series = [_series(row, newest) for row in facts]
    column_of = {one.identifier: column for column, one in enumerate(series)}
    column_of |= {old: column_of[now] for old, now in renamed.items() if now in column_of}
    columns = np.array([column_of.get(name, -1) for name in table["series"]], dtype=np.int64)
    numbers = np.asarray(table["number"])
    rows = np.array([places.get(int(number), -1) for number in numbers], dtype=np.int64)
    names = sorted(set(table["epoch"].tolist()))
    epoch_codes = {name: code for code, name in enumerate(names)}
    codes = np.array([epoch_codes[name] for name in table["epoch"]], dtype=np.int64)
    shape = (len(entries), len(series))
    here = (rows >= 0) & (columns >= 0)
    at = rows[here], columns[here]

    def placed(values: NDArray[Any], nothing: float, kind: type) -> NDArray[Any]:
        matrix: NDArray[Any] = np.full(shape, nothing, dtype=kind)
        matrix[at] = values[here]
        return matrix

    ratio_sd, level_sd = _plain(table["ratio_sd"]), _plain(table["level_sd"])
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.log(np.where(np.isnan(ratio_sd), level_sd, ratio_sd))
    baselines = {one.subject: column for column, one in enumerate(series) if one.is_baseline}
    again = {
        night: _of_reruns([n for n, row in reruns.items() if row == night], numbers, columns, table, len(series))
        for night in sorted(set(reruns.values()))
    }
    return Nights(
        entries=entries,
        series=series,
        levels=placed(_plain(table["level"]), np.nan, float),
        ratios=placed(_plain(table["ratio"]), np.nan, float),
        spreads=placed(np.where(np.isfinite(spread), spread, np.nan), np.nan, float),
        blocks=placed(np.asarray(table["n"]), 0, int),
        failed=placed(np.asarray(table["failed"]), 0, int),
        epochs=placed(codes, -1, int),
        epoch_names=names,
        baseline_of=np.array([baselines.get(one.subject, -1) for one in series], dtype=np.int64),
        reruns=again,
    )


def _of_reruns(
    numbers: Sequence[int], all_numbers: NDArray[Any], columns: Integers, table: Mapping[str, NDArray[Any]], n: int
) -> tuple[Floats, Floats]:
    ratios, levels = np.full((len(numbers), n), np.nan), np.full((len(numbers), n), np.nan)
    for row, number in enumerate(sorted(numbers)):
        here = (all_numbers == number) & (columns >= 0)
        ratios[row, columns[here]] = _plain(table["ratio"])[here]
        levels[row, columns[here]] = _plain(table["level"])[here]
    return ratios, levels


def _plain(column: NDArray[Any]) -> Floats:
    """A column of numbers with NaN for NULL."""
    return np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan)


def _series(row: Sequence[Any], newest: RunEntry) -> Series:
    identifier, *facts = row
    named = dict(zip(_FACTS, facts, strict=True))
    named["direction"] = Direction(named["direction"])
    return Series(identifier=identifier, suite=newest.suite, is_baseline=named["backend"] == newest.baseline, **named)
