"""What experiments about instances show on the page: a start in its parts, limits that held, a victim's slowdown."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from tare.bench.analysis import Analysis, CellResult, MeasuredBackend, Row, Subject
from tare.bench.catalogue import RATIO_PREFIX, Builtin, LimitsMetric
from tare.bench.model import Envelope
from tare.bench.stats import Interval
from tare.bench.units import Unit, format_duration, format_value
from tare.reports.charts import PARTS, PHASES, Chart, phase_chart
from tare.reports.wording import describe, format_estimate, format_value_range


class PhaseBar(msgspec.Struct, frozen=True):
    """A backend's start in its ``parts``, which are names of ``PHASES`` and ``PARTS``."""

    backend: MeasuredBackend
    chart: Chart
    parts: list[str]
    name: str
    total: str
    words: str


class PhaseTime(msgspec.Struct, frozen=True):
    """A part of a start on one backend; ``seconds`` is None where it was not measured."""

    text: str
    interval: str
    seconds: float | None


class PhaseView(msgspec.Struct, frozen=True):
    """The start of an instance, backend by backend, and the times behind it.

    ``legend`` holds for each part its name, its strength and its description; ``times`` for each metric its name, its
    description, and a time for each bar's backend.
    """

    bars: list[PhaseBar]
    sentence: str
    legend: list[tuple[str, float, str]]
    times: list[tuple[str, str, list[PhaseTime]]]


def phase_view(analysis: Analysis) -> PhaseView | None:
    """The start phases of every backend that has all three, or None."""
    for subject in analysis.subjects:
        rows = {row.metric.name: row for row in subject.rows}
        if not all(metric in rows for metric, _, _ in PHASES):
            continue
        bars = list(_phase_bars(rows))
        if bars:
            drawn = {name for bar in bars for name in bar.parts}
            legend = [
                (name, strength, describe(rows[metric].metric))
                for metric, name, strength in itertools.chain(*((phase, *PARTS.get(phase[0], ())) for phase in PHASES))
                if name in drawn
            ]
            sentence = "; ".join(f"{bar.backend.label}: {bar.words}" for bar in bars) + "."
            times = [_phase_times(row, bars) for row in subject.rows if row.metric.unit is Unit.SECOND]
            return PhaseView(bars, sentence, legend, times)
    return None


def _phase_bars(rows: Mapping[str, Row]) -> Iterator[PhaseBar]:
    for cell in rows[PHASES[0][0]].cells:
        phases = _times_of(cell.backend, PHASES, rows)
        if len(phases) != len(PHASES) or any(seconds < 0 for _, seconds in phases):
            continue
        for place, (metric, _, _) in reversed(list(enumerate(PHASES))):
            parts = _times_of(cell.backend, PARTS.get(metric, ()), rows)
            if parts and len(parts) == len(PARTS[metric]) and all(seconds >= 0 for _, seconds in parts):
                phases[place : place + 1] = parts
        total = sum(seconds for _, seconds in phases)
        longest = max(phases, key=lambda phase: phase[1])
        name = f"p{cell.backend.place}"
        share = "most of it" if longest[1] > total / 2 else "the longest part"
        words = f"{format_duration(total)}, {share} {longest[0]} ({format_duration(longest[1])})"
        chart = phase_chart(phases, cell.backend.place, name)
        yield PhaseBar(cell.backend, chart, [part for part, _ in phases], name, format_duration(total), words)


def _times_of(
    backend: MeasuredBackend, phases: Sequence[tuple[str, str, float]], rows: Mapping[str, Row]
) -> list[tuple[str, float]]:
    """Those of these phases that the backend has a time for, by name."""
    return [
        (name, cell.estimate.centre)
        for metric, name, _ in phases
        if metric in rows
        for cell in rows[metric].cells
        if cell.backend == backend
    ]


def _phase_times(row: Row, bars: list[PhaseBar]) -> tuple[str, str, list[PhaseTime]]:
    cells = {cell.backend.name: cell.estimate for cell in row.cells}
    times = []
    for bar in bars:
        found = cells.get(bar.backend.name)
        if found is None:
            times.append(PhaseTime("–", "", None))
            continue
        text = format_estimate(found.centre, found.low, found.high, row.metric.unit)
        interval = format_value_range(found.low, found.high, row.metric.unit)
        times.append(PhaseTime(text, interval, found.centre))
    return row.metric.name, describe(row.metric), times


TOLERANCE = 0.05
"""A limit that let this share more through still held: kernels count CPU time by periods and memory by batches."""

_LIMITS = (
    ("CPUs", LimitsMetric.CPU_REACHED, LimitsMetric.CPUS_SEEN),
    ("memory", LimitsMetric.MEMORY_REACHED, LimitsMetric.MEMORY_SEEN),
    ("processes", LimitsMetric.PIDS_REACHED, ""),
    ("scratch disk", LimitsMetric.DISK_REACHED, ""),
)


class HeldLine(msgspec.Struct, frozen=True):
    """One limit on one backend. ``verdict`` is ``held``, ``exceeded``, ``uncertain`` or ``not tried``."""

    backend: MeasuredBackend
    what: str
    limit: str
    promised: str
    seen: str
    reached: str
    interval: str
    ratio: float | None
    verdict: str


class HeldView(msgspec.Struct, frozen=True):
    """The limits of a run; ``tolerance`` is in words."""

    lines: list[HeldLine]
    tolerance: str


def held_view(analysis: Analysis) -> HeldView | None:
    """The limits of a run's ``limits`` cells, or None without any."""
    lines = [
        line
        for subject in analysis.subjects
        for name, reached, seen in _LIMITS
        for line in _lines(subject, name, reached, seen, _promised(analysis.manifest.envelope))
    ]
    return HeldView(lines, f"{TOLERANCE:.0%}") if lines else None


def _promised(envelope: Envelope) -> Mapping[str, str]:
    """The envelope in words, by limit."""
    cpus = str(len(envelope.cpus))
    return {
        "CPUs": cpus if envelope.cpu_quota is None else f"{cpus}, quota {envelope.cpu_quota:g}",
        "memory": format_value(envelope.memory_bytes, Unit.BYTE),
        "processes": f"{envelope.pids_max:,}",
        "scratch disk": format_value(envelope.scratch_bytes, Unit.BYTE),
    }


def _lines(subject: Subject, name: str, reached: str, seen: str, promised: Mapping[str, str]) -> list[HeldLine]:
    rows = {row.metric.name: row for row in subject.rows}
    sights = {cell.backend: cell for cell in rows[seen].cells} if seen in rows else {}
    tries = {cell.backend: cell for cell in rows[reached].cells} if reached in rows else {}
    return [
        _line(subject, name, backend, tries.get(backend), sights.get(backend), promised.get(name, "–"))
        for backend in dict.fromkeys((*tries, *sights))
    ]


def _verdict(found: Interval) -> str:
    """By the whole interval; by the value where there is no interval."""
    low, high = (found.centre if end is None else end for end in (found.low, found.high))
    if high <= 1 + TOLERANCE:
        return "held"
    return "exceeded" if low > 1 + TOLERANCE else "uncertain"


def _line(
    subject: Subject,
    name: str,
    backend: MeasuredBackend,
    tried: CellResult | None,
    sight: CellResult | None,
    promised: str,
) -> HeldLine:
    found = None if tried is None else tried.estimate
    verdict = "not tried" if found is None else _verdict(found)
    interval = ""
    if found is not None and found.low is not None and found.high is not None:
        interval = f"{format_value(found.low, Unit.RATIO)} to {format_value(found.high, Unit.RATIO)}"
    return HeldLine(
        backend=backend,
        what=subject.workload or "",
        limit=name,
        promised=promised,
        seen="–" if sight is None else format_value(sight.estimate.centre, Unit.RATIO),
        reached="–" if found is None else format_value(found.centre, Unit.RATIO),
        interval=interval,
        ratio=None if found is None else found.centre,
        verdict=verdict,
    )


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
        for subject, row in analysis.rows
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
