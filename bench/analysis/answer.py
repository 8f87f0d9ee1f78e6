"""What a run answers first: area by area what a backend costs, and the few results that the first picture shows.

An *area* is what people ask about: starting, computing, calling the kernel, reading from storage. Its answer comes from
the verdicts, after the correction for many comparisons, of the metrics by which its subjects are known. Which metrics
these are was chosen beforehand (``leading_metric``), not by what came out. Fenced backends are in neither.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

import msgspec
import numpy as np

from tare.bench.analysis.results import Analysis, CellResult, MeasuredBackend, Row, Subject
from tare.bench.catalogue import RATIO_PREFIX, BootMetric, Builtin
from tare.bench.stats.comparisons import Verdict
from tare.bench.traits import Category
from tare.bench.units import Unit

START = "start"
"""The area of starting an instance; the others are the workloads' categories."""


class Outcome(StrEnum):
    """What all measurements of an area say together."""

    SAME = "same"
    WORSE = "worse"
    BETTER = "better"
    UNKNOWN = "unknown"


class Told(NamedTuple):
    """A compared cell with where it belongs."""

    subject: Subject
    row: Row
    cell: CellResult


class AreaAnswer(msgspec.Struct, frozen=True):
    """An area on a backend. ``told`` has its comparisons, those that decided ``outcome`` first, the largest ahead."""

    area: str
    backend: MeasuredBackend
    outcome: Outcome
    told: tuple[Told, ...]
    n_deciding: int

    @property
    def first(self) -> Told:
        """What the area's sentence is about."""
        return self.told[0]


class PanelKind(StrEnum):
    """An axis of the first picture, and what lies on it."""

    CHANGE = "change"
    START = "start"
    MEMORY = "memory"
    NEIGHBOURS = "neighbours"


class Mark(msgspec.Struct, frozen=True):
    """A value with its interval and, where they exist, one point a block.

    Of a change and of neighbours all are shares (0.05: 5 % more); of the others values in the panel's unit.
    ``verdict`` is None where nothing is compared.
    """

    backend: MeasuredBackend
    centre: float
    low: float | None
    high: float | None
    points: tuple[float, ...] = ()
    verdict: Verdict | None = None
    cell: CellResult | None = None


class PanelLine(msgspec.Struct, frozen=True):
    """A metric with its marks; ``row`` is None where the value is fitted to many rows."""

    subject: Subject | None
    row: Row | None
    marks: tuple[Mark, ...]


class Panel(msgspec.Struct, frozen=True):
    """One axis with its lines."""

    kind: PanelKind
    unit: Unit
    lines: tuple[PanelLine, ...]


def area_of(subject: Subject, analysis: Analysis) -> str | None:
    """The area of a subject; None for experiments that have none."""
    if subject.experiment == Builtin.BOOT:
        return START
    if not subject.traits.of_workload:
        return None
    traits = analysis.manifest.workloads.get(subject.workload)
    return traits.category if traits is not None else Category.APPLICATION


def area_answers(analysis: Analysis) -> list[AreaAnswer]:
    """What each area says of each backend that was really compared, in the order of the suite."""
    found: dict[tuple[str, MeasuredBackend], list[Told]] = {}
    for subject, row, cell, comparison in analysis.comparisons:
        area = area_of(subject, analysis)
        if area is not None and row.is_leading and not cell.backend.is_fenced and comparison.ratio is not None:
            found.setdefault((area, cell.backend), []).append(Told(subject, row, cell))
    return [_answer(area, backend, told) for (area, backend), told in found.items()]


def _answer(area: str, backend: MeasuredBackend, told: list[Told]) -> AreaAnswer:
    by_verdict: dict[Verdict, list[Told]] = {}
    for one in told:
        if one.cell.comparison is not None:
            by_verdict.setdefault(one.cell.comparison.verdict_adjusted, []).append(one)
    outcome, verdict = Outcome.UNKNOWN, Verdict.INCONCLUSIVE
    if Verdict.SLOWER in by_verdict:
        outcome, verdict = Outcome.WORSE, Verdict.SLOWER
    elif Verdict.FASTER in by_verdict:
        outcome, verdict = Outcome.BETTER, Verdict.FASTER
    elif Verdict.INCONCLUSIVE not in by_verdict:
        outcome, verdict = Outcome.SAME, Verdict.EQUIVALENT
    deciding = sorted(by_verdict[verdict], key=_size, reverse=True)
    others = [one for one in told if one not in deciding]
    return AreaAnswer(area, backend, outcome, (*deciding, *others), len(deciding))


def _size(told: Told) -> float:
    found = told.cell.comparison
    return 0.0 if found is None or not found.ratio else abs(float(np.log(found.ratio)))


def panels(analysis: Analysis) -> list[Panel]:
    """The axes of the first picture, those without a line left out."""
    made = [
        Panel(PanelKind.CHANGE, Unit.RATIO, tuple(_change_lines(analysis))),
        Panel(PanelKind.START, Unit.SECOND, tuple(_start_lines(analysis))),
        Panel(PanelKind.MEMORY, Unit.BYTE, tuple(_memory_lines(analysis))),
        Panel(PanelKind.NEIGHBOURS, Unit.RATIO, tuple(_neighbour_lines(analysis))),
    ]
    return [panel for panel in made if panel.lines]


def _change_lines(analysis: Analysis) -> Iterator[PanelLine]:
    for subject, row in analysis.rows:
        if subject.traits.of_workload and row.is_leading and row.base is not None:
            marks = tuple(_change(row.base, cell) for cell in row.cells if _is_compared(cell))
            if marks:
                yield PanelLine(subject, row, marks)


def _is_compared(cell: CellResult) -> bool:
    return not cell.backend.is_fenced and cell.comparison is not None and cell.comparison.ratio is not None


def _change(base: CellResult, cell: CellResult) -> Mark:
    found = cell.comparison
    if found is None or found.ratio is None:
        raise ValueError("only what is compared with the baseline has changed against it")
    shared = np.intersect1d(cell.blocks.blocks, base.blocks.blocks)
    points = tuple((cell.blocks.at(shared).values / base.blocks.at(shared).values - 1).tolist())
    low, high = (None if end is None else end - 1 for end in (found.low, found.high))
    return Mark(cell.backend, found.ratio - 1, low, high, points, found.verdict_adjusted, cell)


def _start_lines(analysis: Analysis) -> Iterator[PanelLine]:
    for subject, row in analysis.rows:
        if row.metric.name == BootMetric.TOTAL:
            marks = tuple(_value(cell) for cell in row.cells if not cell.backend.is_fenced)
            if marks:
                yield PanelLine(subject, row, marks)


def _value(cell: CellResult) -> Mark:
    own, found = cell.estimate, cell.comparison
    verdict = None if found is None else found.verdict_adjusted
    return Mark(cell.backend, own.centre, own.low, own.high, tuple(cell.blocks.values.tolist()), verdict, cell)


def _memory_lines(analysis: Analysis) -> Iterator[PanelLine]:
    """What one more instance takes of the host's memory, of the largest ramp of each kind; of idle ones first."""
    by_work: dict[str, dict[str, Mark]] = {}
    backends = {one.name: one for one in analysis.backends if not one.is_fenced}
    for result in sorted(analysis.density, key=lambda one: one.cell.population):
        memory = result.planned_memory
        if memory is not None and result.cell.backend in backends:
            mark = Mark(backends[result.cell.backend], memory.per_instance, memory.low, memory.high)
            by_work.setdefault(result.cell.workload, {})[result.cell.backend] = mark
    for work, marks in sorted(by_work.items(), key=lambda entry: bool(entry[0])):
        subject = next(
            (one for one in analysis.subjects if (one.experiment, one.workload) == (Builtin.DENSITY, work)), None
        )
        ordered = tuple(marks[name] for name in backends if name in marks)
        yield PanelLine(subject, None, ordered)


def _neighbour_lines(analysis: Analysis) -> Iterator[PanelLine]:
    """How much worse than alone a victim was next to the most neighbours that every backend reached."""
    for subject, row in analysis.rows:
        if row.is_leading and row.metric.name.startswith(RATIO_PREFIX):
            marks = tuple(_above_one(_value(cell)) for cell in row.cells if not cell.backend.is_fenced)
            if marks:
                yield PanelLine(subject, row, marks)


def _above_one(mark: Mark) -> Mark:
    """A mark of ratios as shares above 1."""
    low, high = (None if end is None else end - 1 for end in (mark.low, mark.high))
    points = tuple(point - 1 for point in mark.points)
    return msgspec.structs.replace(mark, centre=mark.centre - 1, low=low, high=high, points=points)
