"""The page's own pictures: intervals and points in rows on one axis, as HTML with a strip of SVG in each row.

Names and values are text beside the strip, so that nothing is cut off or shrinks on a narrow screen; positions in the
strip are per cent of its width. A change against the baseline has 0 in the middle and more to the right; values
have an axis of their own, which is log where the largest is more than ``LOG_FROM`` times the smallest.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeGuard

import msgspec
import numpy as np

from tare.bench.analysis import Analysis, CellResult, GradeLevel, MeasuredBackend, Row, Subject
from tare.bench.analysis.answer import Mark, Panel, PanelKind, PanelLine, area_of, panels
from tare.bench.catalogue import BootMetric
from tare.bench.model import Direction
from tare.bench.stats.comparisons import Verdict
from tare.bench.units import Unit, format_value
from tare.reports.names import Names, names_of
from tare.reports.wording import (
    change_words,
    direction_words,
    extra_memory,
    format_change_range,
    format_estimate,
    format_value_range,
    longer_words,
    percent,
    reservation,
    verdict_word,
)

LOG_FROM = 20.0
MOST_POINTS = 60
MOST_UNSORTED = 5
"""Backends of one axis that stand in the suite's order."""
MOST_LABELS = 4
"""Of powers of ten on an axis: more run into each other on a strip of 230 pixels."""
NOT_USABLE = GradeLevel.NOT_USABLE.value
_FROM_ZERO = 0.4
_REACHES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
_HEIGHT = 24
_BINARY_TICKS = tuple(step * 1024**power for power in range(6) for step in (1, 10, 100))
"""Of a log axis of bytes: 1, 10 and 100 of each binary unit."""


class Axis(msgspec.Struct, frozen=True):
    """Where a value lies, in per cent of the strip's width. ``ticks`` are (per cent, words); ``margin`` is shaded."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...] = ()
    margin: tuple[float, float] | None = None
    zero: float | None = None
    is_log: bool = False

    def place(self, value: float) -> float:
        """The place of a value, not beyond the ends."""
        if self.is_log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


class Strip(msgspec.Struct, frozen=True):
    """A row: what it is called, the backend, the picture, and what it says; ``key`` names the exact values in JSON."""

    name: str
    backend: MeasuredBackend
    svg: str
    said: str
    more: str
    hint: str
    key: str
    exact: float
    is_open: bool = False
    detail: str = ""
    """What is small below the name: of a row that is called after its area, the metric."""
    why: str = ""
    """What else is to be said of it: how it differs, or why that could not be told."""

    @property
    def title(self) -> str:
        """The name with its detail on one line."""
        return f"{self.name} ({self.detail})" if self.detail else self.name

    @property
    def rest(self) -> str:
        """What stands beside what it says, on one line."""
        return "; ".join(part for part in (self.more, self.why) if part)


class PanelView(msgspec.Struct, frozen=True):
    """An axis with its rows, in groups of a backend each (``None`` where the rows need no group)."""

    title: str
    note: str
    groups: tuple[tuple[MeasuredBackend | None, tuple[Strip, ...]], ...]
    ticks: tuple[tuple[float, str], ...]
    ends: tuple[str, str]
    kind: str

    @property
    def n_rows(self) -> int:
        """How many rows all groups have."""
        return sum(len(rows) for _, rows in self.groups)


def panel_views(analysis: Analysis) -> list[PanelView]:
    """The first picture."""
    maker = _Maker(analysis)
    return [maker.panel(panel) for panel in panels(analysis)]


def value_panel(analysis: Analysis, subject: Subject, row: Row) -> PanelView:
    """One metric's values on all backends but the fenced, each with its instances as points."""
    maker = _Maker(analysis)
    marks = [_instances_of(cell) for cell in row.cells if not cell.backend.is_fenced]
    axis = value_axis(marks, row.metric.unit)
    strips = tuple(maker.value(subject, row, mark, axis) for mark in marks)
    note = f"{direction_words(row.metric)}{', log scale' if axis.is_log else ''}"
    return PanelView(maker.names.row(subject, row), note, ((None, strips),), axis.ticks, ("", ""), "value")


_PHASES = (BootMetric.CREATE, BootMetric.INIT, BootMetric.READY)


def phase_panel(subject: Subject) -> PanelView | None:
    """A start on one axis of time since the request, log where it has to hold milliseconds and seconds.

    Each phase ends at the sum of the typical phases so far, the last one at the typical total.
    """
    rows = {row.metric.name: row for row in subject.rows}
    if not {*_PHASES, BootMetric.TOTAL} <= rows.keys():
        return None
    marks: list[tuple[CellResult, list[float]]] = []
    for cell in rows[BootMetric.TOTAL].cells:
        found = [one for name in _PHASES[:2] for one in rows[name].cells if one.backend == cell.backend]
        if len(found) == len(_PHASES) - 1 and not cell.backend.is_fenced:
            total = cell.estimate.centre
            ends = np.minimum(np.cumsum([one.estimate.centre for one in found]), total)
            marks.append((cell, [*ends.tolist(), total]))
    if not marks:
        return None
    axis = value_axis([Mark(cell.backend, end, None, None) for cell, ends in marks for end in ends], Unit.SECOND)
    strips = tuple(
        Strip(
            cell.backend.label,
            cell.backend,
            _segments(ends, axis),
            format_estimate(cell.estimate.centre, cell.estimate.low, cell.estimate.high, Unit.SECOND),
            "",
            BootMetric.TOTAL,
            f"{key_of(subject, rows[BootMetric.TOTAL], cell)}#value",
            cell.estimate.centre,
        )
        for cell, ends in marks
    )
    note = "until its first process exists (strong), the first instruction inside (middle), it takes commands (light)"
    return PanelView("Time since the request", note, ((None, strips),), axis.ticks, ("", ""), "phases")


def _segments(ends: Sequence[float], axis: Axis) -> str:
    """The phases of a start, end to end."""
    parts, start = [], 0.0
    for strength, end in zip((1.0, 0.55, 0.25), (axis.place(end) for end in ends), strict=True):
        width = max(end - start, 0.0)
        parts.append(f"<rect class='phase' x='{start}%' y='6' width='{width:.2f}%' height='12' opacity='{strength}'/>")
        start = end
    return "".join(("<svg class='strip' width='100%' height='24' aria-hidden='true'>", *parts, "</svg>"))


def _instances_of(cell: CellResult) -> Mark:
    own, found = cell.estimate, cell.comparison
    verdict = None if found is None else found.verdict_adjusted
    points = tuple(float(value) for value in cell.points.instance_medians)
    return Mark(cell.backend, own.centre, own.low, own.high, points, verdict, cell)


class _Maker:
    """Makes the panels of one run."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.names: Names = names_of(analysis)
        self.baseline = analysis.baseline.label if analysis.baseline is not None else "the baseline"
        self.is_void = analysis.grade.level is GradeLevel.NOT_USABLE

    def panel(self, panel: Panel) -> PanelView:
        marks = [mark for line in panel.lines for mark in line.marks]
        if panel.kind is PanelKind.CHANGE:
            return self._changes(panel, marks)
        if panel.kind is PanelKind.NEIGHBOURS:
            return self._neighbours(panel, marks)
        axis = value_axis(marks, panel.unit)
        lines = panel.lines[:1] if panel.kind is PanelKind.MEMORY else panel.lines
        strips = [
            self.value(line.subject, line.row, mark, axis, _base_of(line), panelled=True)
            for line in lines
            for mark in _ordered(line.marks)
        ]
        titles = {PanelKind.START: "Time to start", PanelKind.MEMORY: "Memory that one more instance takes"}
        title = titles[panel.kind]
        note = f"lower is better{', log scale' if axis.is_log else ''}"
        return PanelView(title, note, ((None, tuple(strips)),), axis.ticks, ("better", "worse"), panel.kind)

    def _changes(self, panel: Panel, marks: Sequence[Mark]) -> PanelView:
        margins = {mark.cell.comparison.margin for mark in marks if mark.cell is not None and mark.cell.comparison}
        axis = change_axis(marks, max(margins))
        directions = {line.row.metric.direction for line in panel.lines if line.row is not None}
        usual = Counter(line.row.metric.direction for line in panel.lines if line.row is not None).most_common(1)[0][0]
        by_backend: dict[MeasuredBackend, list[Strip]] = {}
        for line in panel.lines:
            for mark in line.marks:
                by_backend.setdefault(mark.backend, []).append(self._change(line.subject, line.row, mark, axis, usual))
        groups = tuple((backend, tuple(strips)) for backend, strips in by_backend.items())
        note = f"within {percent(max(margins))}, the shaded part, counts as the same"
        if len(directions) > 1:
            note += f"; {usual} is better where nothing else is said"
        title = f"Compared with {self.baseline}"
        return PanelView(title, note, groups, axis.ticks, axis_ends(directions), panel.kind)

    def _change(self, subject: Subject | None, row: Row | None, mark: Mark, axis: Axis, usual: Direction) -> Strip:
        if subject is None or row is None or mark.cell is None or mark.verdict is None:
            raise ValueError("a change is of a metric that was compared")
        found = mark.cell.comparison
        said = verdict_word(row.metric, mark.verdict)
        if found is not None and found.ratio is not None and mark.verdict in (Verdict.FASTER, Verdict.SLOWER):
            said = change_words(row.metric, found.ratio, found)
        apart = self.names.told_apart(subject, self.analysis.subjects)
        better = "" if row.metric.direction is usual else direction_words(row.metric)
        return Strip(
            self.names.area(subject, area_of(subject, self.analysis)),
            mark.backend,
            strip_svg(mark, axis, is_void=self.is_void),
            NOT_USABLE if self.is_void else said,
            format_change_range(found),
            row.metric.name,
            "" if self.is_void else f"{key_of(subject, row, mark.cell)}#ratio",
            mark.centre + 1,
            is_open=self.is_void or mark.verdict is Verdict.INCONCLUSIVE,
            detail=", ".join(part for part in (self.names.row(subject, row), apart, better) if part),
            why="" if self.is_void else reservation(found),
        )

    def value(
        self,
        subject: Subject | None,
        row: Row | None,
        mark: Mark,
        axis: Axis,
        base: Mark | None = None,
        *,
        panelled: bool = False,
    ) -> Strip:
        """A row of an axis of values. ``panelled``: among those of other subjects, so that it says of which it is."""
        unit = Unit.BYTE if row is None else row.metric.unit
        said = format_estimate(mark.centre, mark.low, mark.high, unit)
        detail = ""
        if _works(subject) and (row is None or panelled):
            detail = f"with {self.names.workload(subject.workload)}"
        extra = "" if base is None or base is mark else f"{extra_memory(mark, base)} than {self.baseline}"
        key = "" if row is None or mark.cell is None or subject is None else f"{key_of(subject, row, mark.cell)}#value"
        hint = row.metric.name if row is not None else "density"
        return Strip(
            mark.backend.label,
            mark.backend,
            strip_svg(mark, axis, is_void=self.is_void),
            said,
            format_value_range(mark.low, mark.high, unit),
            hint,
            key,
            mark.centre,
            is_open=self.is_void or mark.verdict is Verdict.INCONCLUSIVE,
            detail=detail,
            why=NOT_USABLE if self.is_void else extra or _verdict_words(row, mark),
        )

    def _neighbours(self, panel: Panel, marks: Sequence[Mark]) -> PanelView:
        """The worst neighbours of each backend; the blocks have all of them."""
        axis = value_axis([_ratio(mark) for mark in marks], Unit.RATIO)
        worst: dict[MeasuredBackend, tuple[Mark, Strip]] = {}
        for line in panel.lines:
            if line.subject is None or line.row is None:
                continue
            kind = self.names.told_apart(line.subject, self.analysis.subjects)
            for mark in line.marks:
                key = "" if mark.cell is None else f"{key_of(line.subject, line.row, mark.cell)}#value"
                strip = Strip(
                    mark.backend.label,
                    mark.backend,
                    strip_svg(_ratio(mark), axis, is_void=self.is_void),
                    longer_words(1 + mark.centre),
                    "",
                    line.row.metric.name,
                    key,
                    1 + mark.centre,
                    is_open=self.is_void or mark.verdict is Verdict.INCONCLUSIVE,
                    detail=kind,
                    why=NOT_USABLE if self.is_void else self._against_baseline(mark),
                )
                if mark.backend not in worst or mark.centre > worst[mark.backend][0].centre:
                    worst[mark.backend] = mark, strip
        strips = tuple(strip for _, strip in worst.values())
        title = "At worst, next to noisy neighbours"
        return PanelView(title, "1×: as long as alone", ((None, strips),), axis.ticks, ("", ""), panel.kind)

    def _against_baseline(self, mark: Mark) -> str:
        """What a hollow point of a ratio could not be told from."""
        return f"could not tell from {self.baseline}" if mark.verdict is Verdict.INCONCLUSIVE else ""


def _ordered(marks: Sequence[Mark]) -> Sequence[Mark]:
    """The baseline first; of many the others by their value."""
    if len(marks) <= MOST_UNSORTED:
        return marks
    return sorted(marks, key=lambda mark: (not mark.backend.is_baseline, mark.centre))


def _base_of(line: PanelLine) -> Mark | None:
    """The baseline's mark where values are fitted and so are compared by nothing else."""
    return next((mark for mark in line.marks if mark.backend.is_baseline and line.row is None), None)


def _works(subject: Subject | None) -> TypeGuard[Subject]:
    return subject is not None and bool(subject.workload)


def key_of(subject: Subject, row: Row, cell: CellResult) -> str:
    """What names a cell's metric in the JSON form: ``subject/metric/backend``."""
    return f"{subject.name}/{row.metric.name}/{cell.backend.name}"


def change_axis(marks: Iterable[Mark], margin: float) -> Axis:
    """The axis of changes: 0 in the middle, and as far as the results go, intervals up to three times as far."""
    marks = list(marks)
    wanted = max((abs(mark.centre) for mark in marks), default=0.0) * 1.1
    for mark in marks:
        ends = [abs(end) for end in (mark.low, mark.high) if end is not None]
        wanted = max([wanted, *(min(end, 3 * max(abs(mark.centre), 0.03)) for end in ends)])
    reach = next((one for one in _REACHES if one >= wanted), _REACHES[-1])
    ticks = tuple((50 + 50 * place / reach, _share(place)) for place in (-reach, 0.0, reach))
    return Axis(-reach, reach, ticks, (-margin, margin), 0.0)


def value_axis(marks: Sequence[Mark], unit: Unit) -> Axis:
    """The axis of values: from 0 unless all are far from it; log where they lie far apart."""
    values = [mark.centre for mark in marks] + [point for mark in marks for point in mark.points]
    largest = max((abs(value) for value in values), default=1.0) or 1.0
    ends = [min(end, 1.6 * largest) for mark in marks for end in (mark.high,) if end is not None]
    high = max([largest, *ends])
    positive = [value for value in values if value > 0]
    if positive and len(positive) == len(values) and max(positive) > LOG_FROM * min(positive):
        low, high = 10 ** math.floor(math.log10(min(positive))), 10 ** math.ceil(math.log10(max(positive)))
        powers = range(round(math.log10(low)), round(math.log10(high)) + 1)
        marked = [10.0**power for power in powers]
        if unit in (Unit.BYTE, Unit.BYTES_PER_SECOND):
            marked = [tick for tick in _BINARY_TICKS if min(positive) / 10 < tick < 10 * max(positive)] or marked
            low, high = min(marked[0], *positive), max(marked[-1], *positive)
        shown = marked[:: math.ceil(len(marked) / MOST_LABELS)]
        axis = Axis(low, high, is_log=True)
        return msgspec.structs.replace(axis, ticks=tuple((axis.place(tick), _tick(tick, unit)) for tick in shown))
    lowest = min([*values, *(mark.low for mark in marks if mark.low is not None)])
    base = 0.0
    if lowest > _FROM_ZERO * high:  # points need no zero where they would all crowd at one end
        step = _nice((high - lowest) / 2 or high, unit)
        base = max(0.0, math.floor(lowest / step) * step)
    step = _nice((high - base) / 3 or abs(high) or 1.0, unit)
    base = math.floor(base / step) * step
    count = max(1, math.ceil((high - base) / step * 0.9999))
    ticks = tuple((100 * n / count, _tick(base + n * step, unit)) for n in range(count + 1))
    return Axis(base, base + count * step, ticks)


def _nice(value: float, unit: Unit) -> float:
    """1, 2 or 5 times a power of ten, for bytes in a binary unit."""
    binary = unit in (Unit.BYTE, Unit.BYTES_PER_SECOND) and value >= 1
    base = 1024.0 ** math.floor(math.log(value, 1024)) if binary else 1.0
    power = 10.0 ** math.floor(math.log10(value / base))
    return base * next(step * power for step in (1, 2, 5, 10) if step * power >= value / base * 0.999)


def _tick(value: float, unit: Unit) -> str:
    if value == 0:
        return "0"
    text = format_value(value, unit)
    number, space, rest = text.partition(" ")
    if "." in number and "×" not in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number}{space}{rest.replace('million', 'M')}"


def axis_ends(directions: Collection[Direction]) -> tuple[str, str]:
    """What lies at the ends of an axis of changes, on which more is to the right."""
    if len(directions) > 1:
        return ("less", "more")
    return ("worse", "better") if Direction.HIGHER in directions else ("better", "worse")


def _share(value: float) -> str:
    return "0" if value == 0 else f"{'+' if value > 0 else '−'}{100 * abs(value):g} %"


def _ratio(mark: Mark) -> Mark:
    low, high = (None if end is None else 1 + end for end in (mark.low, mark.high))
    points = tuple(1 + point for point in mark.points)
    return msgspec.structs.replace(mark, centre=1 + mark.centre, low=low, high=high, points=points)


def _verdict_words(row: Row | None, mark: Mark) -> str:
    """How a value differs from the baseline's, or why that could not be told; empty where nothing is compared."""
    found = None if mark.cell is None else mark.cell.comparison
    if row is None or found is None or mark.verdict is None or found.ratio is None:
        return ""
    words = verdict_word(row.metric, mark.verdict)
    if mark.verdict in (Verdict.FASTER, Verdict.SLOWER):
        words = change_words(row.metric, found.ratio, found)
    elif interval := format_change_range(found):
        words = f"{words} ({interval})"
    return ": ".join(part for part in (words, reservation(found)) if part)


def strip_svg(mark: Mark, axis: Axis, *, is_void: bool = False) -> str:
    """One strip. Hollow where the verdict is open, grey where the run cannot be used; arrows where it is cut off."""
    parts = _parts(mark, axis, is_void=is_void)
    kind = "strip void" if is_void else "strip"
    return "".join((f"<svg class='{kind}' width='100%' height='24' aria-hidden='true'>", *parts, "</svg>"))


def _parts(mark: Mark, axis: Axis, *, is_void: bool) -> Iterator[str]:
    middle = _HEIGHT / 2
    if axis.margin is not None:
        low, high = (axis.place(end) for end in axis.margin)
        yield f"<rect class='band' x='{low}%' y='0' width='{max(high - low, 0.6):.2f}%' height='{_HEIGHT}'/>"
    if axis.zero is not None:
        zero = axis.place(axis.zero)
        yield f"<line class='zero' x1='{zero}%' x2='{zero}%' y1='0' y2='{_HEIGHT}'/>"
    kind = "open" if is_void or mark.verdict is Verdict.INCONCLUSIVE else "told"
    for place, point in enumerate(_thinned(mark.points)):
        lane = middle + ((place * 0.618034) % 1 - 0.5) * 10
        yield f"<circle class='point' cx='{axis.place(point)}%' cy='{lane:.1f}' r='2.2'/>"
    if mark.low is not None and mark.high is not None:
        start, end = axis.place(mark.low), axis.place(mark.high)
        yield f"<line class='span {kind}' x1='{start}%' x2='{max(end, start + 0.4):.2f}%' y1='{middle}' y2='{middle}'/>"
        for is_cut, at, cut in ((mark.low < axis.low, 0, -8), (mark.high > axis.high, 100, 8)):
            if is_cut:
                arrow = f"<path class='cut {kind}' d='M0,{middle - 4}v8l{cut},-4z'/>"
                yield f"<svg x='{at}%' overflow='visible'>{arrow}</svg>"
    centre = axis.place(mark.centre)
    if axis.low <= mark.centre <= axis.high:
        yield f"<circle class='dot {kind}' cx='{centre}%' cy='{middle}' r='5'/>"
    else:
        tip = 9 if mark.centre > axis.high else -9
        arrow = f"<path class='dot {kind}' d='M{-tip},{middle - 5}v10l{tip},-5z'/>"
        yield f"<svg x='{centre}%' overflow='visible'>{arrow}</svg>"


def _thinned(points: Sequence[float]) -> Sequence[float]:
    if len(points) <= MOST_POINTS:
        return points
    ordered = sorted(points)
    return [ordered[round(place * (len(ordered) - 1) / (MOST_POINTS - 1))] for place in range(MOST_POINTS)]
