"""The start of an instance in its parts, as the page shows it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from tare.bench.analysis import Analysis, MeasuredBackend, Row
from tare.bench.units import Unit, format_duration
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
