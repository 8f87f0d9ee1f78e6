"""Metrics that were taken at several sizes: how many instances lived, how many aggressors there were.

``iteration`` of their samples is the size. See ``tare.bench.analysis.cells`` for what is estimated at which.
"""

import msgspec
import numpy as np

from tare.bench.analysis import MeasuredBackend, Row
from tare.bench.units import format_value

_MOST_ROWS = 16


class GrowthView(msgspec.Struct, frozen=True):
    """A metric by size: ``what`` counts the size; a line a size, a value (in words, exact) a backend."""

    what: str
    backends: list[MeasuredBackend]
    lines: list[tuple[int, list[tuple[str, float | None]]]]


def growth_view(row: Row, what: str) -> GrowthView:
    """A growing metric by size: the median of each backend at sizes that are evenly chosen if they are many."""

    def shown(value: float | None) -> tuple[str, float | None]:
        return ("–" if value is None else format_value(value, row.metric.unit), value)

    every = sorted({size for cell in row.cells for size in cell.sizes})
    places = np.unique(np.linspace(0, len(every) - 1, min(len(every), _MOST_ROWS)).round().astype(int))
    chosen = [every[place] for place in places]
    lines = [(size, [shown(cell.median_at(size)) for cell in row.cells]) for size in chosen]
    return GrowthView(what, [cell.backend for cell in row.cells], lines)


def growth_sentence(row: Row, what: str, compared: str) -> str:
    """What a growing metric was at the largest size that all reached, and what is compared of it."""
    size = max(set.intersection(*(set(cell.sizes) for cell in row.cells)), default=None)
    if size is None:
        return f"No number of {what} was measured on every backend."
    at = [(cell.backend.label, cell.median_at(size)) for cell in row.cells]
    values = ", ".join(f"{label} {format_value(value, row.metric.unit)}" for label, value in at if value is not None)
    most = all(cell.sizes[-1] == size for cell in row.cells)
    sentence = f"With {size:,} {what} ({'the most measured' if most else 'the most that all reached'}): {values}."
    if not compared:
        return sentence
    return f"{sentence} {compared}" if row.size is not None else f"{sentence} Over all sizes: {compared}"
