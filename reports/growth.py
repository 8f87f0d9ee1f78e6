"""Metrics that were taken at several sizes: how many instances lived, how many aggressors there were.

``iteration`` of their samples is the size. See ``tare.bench.analysis.cells`` for what is estimated at which.
"""

import msgspec
import numpy as np

from tare.bench.analysis import CellResult, MeasuredBackend, Row
from tare.bench.units import format_value

_MOST_ROWS = 16


class GrowthView(msgspec.Struct, frozen=True):
    """A metric by size: ``what`` counts the size; a line a size, a value (in words, exact) a backend."""

    what: str
    backends: list[MeasuredBackend]
    lines: list[tuple[int, list[tuple[str, float | None]]]]


def grows(row: Row) -> bool:
    """Whether a metric was taken at several sizes (``iteration`` is one), not again and again at one."""
    return any(len(np.unique(cell.points.iteration_numbers)) > 2 for cell in row.cells)


def is_comparable(row: Row) -> bool:
    """Whether it was estimated at one size, or all backends had the same ones: typical values compare only then."""
    if row.size is not None:
        return True
    sizes = [tuple(np.unique(cell.points.iteration_numbers).tolist()) for cell in row.cells]
    return len(set(sizes)) == 1


def _growth_table(row: Row) -> list[tuple[int, list[float | None]]]:
    """The sizes of a growing metric, evenly chosen if they are many, with each cell's median there."""
    every = np.unique(np.concatenate([cell.points.iteration_numbers for cell in row.cells]))
    chosen = every[np.unique(np.linspace(0, len(every) - 1, min(len(every), _MOST_ROWS)).round().astype(int))]
    return [(int(step), [_median_at(cell, int(step)) for cell in row.cells]) for step in chosen]


def _median_at(cell: CellResult, step: int) -> float | None:
    """The median of a cell's values at one size; None if it was not that large."""
    values = cell.points.iterations[cell.points.iteration_numbers == step]
    return float(np.median(values)) if len(values) else None


def _largest_common(row: Row) -> int | None:
    """The largest size at which every backend was measured."""
    common = set.intersection(*(set(np.unique(cell.points.iteration_numbers).tolist()) for cell in row.cells))
    return max(common, default=None)


def growth_view(row: Row, what: str) -> GrowthView:
    """A growing metric by size."""

    def shown(value: float | None) -> tuple[str, float | None]:
        return ("–" if value is None else format_value(value, row.metric.unit), value)

    lines = [(step, [shown(value) for value in values]) for step, values in _growth_table(row)]
    return GrowthView(what, [cell.backend for cell in row.cells], lines)


def growth_sentence(row: Row, what: str, compared: str) -> str:
    """What a growing metric was at the largest size that all reached, and what is compared of it."""
    size = _largest_common(row)
    if size is None:
        return f"No number of {what} was measured on every backend."
    at = [(cell.backend.label, _median_at(cell, size)) for cell in row.cells]
    values = ", ".join(f"{label} {format_value(value, row.metric.unit)}" for label, value in at if value is not None)
    most = all(np.max(cell.points.iteration_numbers) == size for cell in row.cells)
    sentence = f"With {size:,} {what} ({'the most measured' if most else 'the most that all reached'}): {values}."
    if not compared:
        return sentence
    return f"{sentence} {compared}" if row.size is not None else f"{sentence} Over all sizes: {compared}"
