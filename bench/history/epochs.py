"""Where conditions changed: the marks between the epochs of a history, and what moved with them.

What changed at once cannot be separated: the step of a ratio over a mark is no regression. Two things can be told: the
size of a step that a bridge measured with old and new in the same blocks, and a level that moved on every backend alike
with a new image, while the ratios stayed. That is the workload's or the image's.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from tare.bench.history.bridges import load_bridges
from tare.bench.history.changes import FALSE_DISCOVERIES, adjusted
from tare.bench.history.findings import Cause, Finding, Located, Shift, level_finding, located_at, shift_of, step_p
from tare.bench.history.index import History
from tare.bench.history.nights import Nights
from tare.bench.stats.comparisons import Floats

IMAGE = "image.digest"
OF_IMAGES = FALSE_DISCOVERIES / 4
"""Level for levels that move with a new image: they are told, and fail nothing."""


class EpochMark(msgspec.Struct, frozen=True):
    """A night from which on the conditions of some series were others: its run, what changed, how many series.

    ``steps`` are the changes of their ratios over the mark, by series: what changed at once cannot be separated.
    ``bridged`` are those that the run ``bridge`` measured with old and new in the same blocks; of bare metal its level.
    """

    run: str
    fields: Mapping[str, tuple[str, str]]
    series: int
    steps: Mapping[str, Shift] = {}
    bridged: Mapping[str, Shift] = {}
    bridge: str = ""


def find_marks(history: History, nights: Nights) -> list[EpochMark]:
    """The nights at which conditions changed, by what changed."""
    bridges = {(one.series, one.before, one.after): one for one in load_bridges(history, nights.entries[-1])}
    marks: dict[tuple[int, tuple[tuple[str, tuple[str, str]], ...]], list[int]] = {}
    for column in range(len(nights.series)):
        rows = np.flatnonzero(nights.epochs[:, column] >= 0)
        codes = nights.epochs[rows, column]
        for place in np.flatnonzero(np.diff(codes)):
            before, after = (nights.epoch_names[code] for code in codes[place : place + 2])
            fields = tuple(history.changed_fields(before, after).items())
            marks.setdefault((int(rows[place + 1]), fields), []).append(column)
    found = []
    for (row, fields), columns in sorted(marks.items()):
        steps = _steps(nights, columns, row)
        known = [bridges[key] for column in columns if (key := _epochs_at(nights, column, row)) in bridges]
        shifts = {one.series: one.shift for one in known}
        by = known[-1].run if known else ""
        found.append(EpochMark(nights.entries[row].run, dict(fields), len(columns), steps, shifts, by))
    return found


def _epochs_at(nights: Nights, column: int, row: int) -> tuple[str, str, str]:
    """A series, its epoch before the night ``row``, and that of the night."""
    codes = nights.epochs[: row + 1, column]
    before, after = codes[:-1][codes[:-1] >= 0][-1], codes[-1]
    return nights.series[column].identifier, nights.epoch_names[before], nights.epoch_names[after]


def _steps(nights: Nights, columns: Sequence[int], row: int) -> dict[str, Shift]:
    steps = {}
    for column in columns:
        codes = nights.epochs[:, column]
        near = np.isin(codes, [codes[row], codes[:row][codes[:row] >= 0][-1]])
        values = np.where(near, nights.ratios[:, column], np.nan)
        if (shift := shift_of(values, row)) is not None:
            steps[nights.series[column].identifier] = shift
    return steps


def image_findings(nights: Nights, marks: Sequence[EpochMark]) -> list[Finding]:
    """What moved on all backends alike, bare metal too, when the image was the only thing that changed.

    Of the newest change alone: one finding for all subjects. A subject whose ratios moved clearly is none of them.
    """
    alone = [mark for mark in marks if set(mark.fields) == {IMAGE}]
    if not alone or alone[-1] is not marks[-1]:
        return []
    row = next(place for place, one in enumerate(nights.entries) if one.run == alone[-1].run)
    moved: list[tuple[Located, int, float]] = []
    tried = [column for column, one in enumerate(nights.series) if one.is_baseline and nights.epochs[row, column] >= 0]
    values = {column: _around(nights, nights.levels, column, row) for column in tried}
    p = np.array([step_p(values[column], row) for column in tried])
    for column, q in zip(tried, adjusted(p, np.isfinite(p)).tolist(), strict=True):
        if q <= OF_IMAGES and _all_alike(nights, column, row, values[column]):
            moved.append((located_at(values[column], row), column, q))
    if not moved:
        return []
    reason = "all backends moved alike, bare metal too, with a new image, and the ratios stayed"
    return [level_finding(nights, moved, Cause.WORKLOAD, reason, of=f"image {nights.entries[row].host}")]


def _all_alike(nights: Nights, base: int, row: int, level: Floats) -> bool:
    """Whether every backend of the subject of a baseline moved the same way as it, and no ratio moved clearly."""
    bare = shift_of(level, row)
    others = np.flatnonzero((nights.baseline_of == base) & (np.arange(len(nights.series)) != base)).tolist()
    if bare is None:
        return False
    for column in others:
        own = shift_of(_around(nights, nights.levels, column, row), row)
        ratio = shift_of(_around(nights, nights.ratios, column, row), row)
        if own is None or ratio is None or ratio.is_clear or (own.ratio > 1) != (bare.ratio > 1):
            return False
    return bool(others)


def _around(nights: Nights, values: Floats, column: int, row: int) -> Floats:
    """A column of the epochs on both sides of a mark; NaN elsewhere and where instances failed."""
    codes = nights.epochs[:, column]
    earlier = codes[:row][codes[:row] >= 0]
    near = np.isin(codes, [codes[row], *earlier[-1:]]) & (nights.failed[:, column] == 0)
    return np.where(near, values[:, column], np.nan)
