"""How much worse a victim got, by aggressors and their number, as a heat map in a table."""

import math

import msgspec
import numpy as np

from tare.bench.analysis import Analysis, CellResult, MeasuredBackend, Subject
from tare.bench.catalogue import RATIO_PREFIX, Builtin
from tare.bench.units import Unit, format_value


class HeatCell(msgspec.Struct, frozen=True):
    """One number of aggressors: the median ratio over the blocks, their range, and its strength from 0 to 1."""

    text: str
    extent: str
    ratio: float | None
    strength: float


class HeatLine(msgspec.Struct, frozen=True):
    """A victim's metric on one backend; ``cells`` stand in the order of the map's ``numbers``."""

    backend: MeasuredBackend
    victim: str
    aggressor: str
    metric: str
    cells: list[HeatCell]


class HeatView(msgspec.Struct, frozen=True):
    """All ratios of a run. ``numbers`` are the numbers of aggressors; ``worst`` is the ratio of the full colour."""

    numbers: list[int]
    lines: list[HeatLine]
    worst: str


def heat_view(analysis: Analysis) -> HeatView | None:
    """The ratios of a run's interference, or None without any."""
    kinds = _aggressors(analysis)
    found = [
        (subject, row.metric.name.removeprefix(RATIO_PREFIX), cell)
        for subject in analysis.subjects
        for row in subject.rows
        if row.metric.name.startswith(RATIO_PREFIX)
        for cell in row.cells
    ]
    if not found:
        return None
    numbers = sorted({int(number) for *_, cell in found for number in np.unique(cell.points.iteration_numbers)})
    medians = [_median(cell, number) for *_, cell in found for number in numbers]
    worst = max((ratio for ratio in medians if ratio is not None), default=1.0)
    lines = [
        HeatLine(
            backend=cell.backend,
            victim=_victim(subject),
            aggressor=str(subject.params.get("aggressor", kinds)),
            metric=metric,
            cells=[_cell(cell, number, worst) for number in numbers],
        )
        for subject, metric, cell in found
    ]
    return HeatView(numbers, lines, format_value(worst, Unit.RATIO))


def _aggressors(analysis: Analysis) -> str:
    """What the aggressors of cells are whose parameters do not tell: those with one kind stated for all."""
    experiments = analysis.manifest.suite.get("experiment", [])
    stated = [one["options"].get("aggressor", "cpu") for one in experiments if one.get("kind") == Builtin.INTERFERENCE]
    return ", ".join(sorted({str(kind) for kind in stated if not isinstance(kind, list)})) or "–"


def _victim(subject: Subject) -> str:
    left_out = ("aggressor", "aggressors")
    given = [f"{name} {value}" for name, value in subject.params.items() if name not in left_out]
    return " ".join([subject.title, *given])


def _values(cell: CellResult, number: int) -> list[float]:
    return [float(value) for value in cell.points.iterations[cell.points.iteration_numbers == number]]


def _median(cell: CellResult, number: int) -> float | None:
    values = _values(cell, number)
    return float(np.median(values)) if values else None


def _cell(cell: CellResult, number: int, worst: float) -> HeatCell:
    values = _values(cell, number)
    ratio = _median(cell, number)
    if ratio is None:
        return HeatCell("–", "", None, 0.0)
    low, high = (format_value(end, Unit.RATIO) for end in (min(values), max(values)))
    extent = f"{low} to {high}" if len(values) > 1 else ""
    strength = math.log(ratio) / math.log(worst) if ratio > 1 and worst > 1 else 0.0
    return HeatCell(format_value(ratio, Unit.RATIO), extent, ratio, round(strength, 2))
