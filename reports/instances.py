"""What experiments about instances show on the page: limits that held, a victim's slowdown."""

import math
from collections.abc import Mapping

import msgspec

from tare.bench.analysis import Analysis, CellResult, MeasuredBackend, Subject
from tare.bench.catalogue import RATIO_PREFIX, Builtin, LimitsMetric
from tare.bench.model import Envelope
from tare.bench.stats.comparisons import Interval
from tare.bench.units import Unit, format_value

TOLERANCE = 0.05
"""A limit that let this share more through still held: kernels count CPU time by periods and memory by batches."""

_LIMITS = (
    ("CPUs", LimitsMetric.CPU_REACHED, LimitsMetric.CPUS_SEEN),
    ("memory", LimitsMetric.MEMORY_REACHED, LimitsMetric.MEMORY_SEEN),
    ("processes", LimitsMetric.PIDS_REACHED, ""),
    ("scratch disk", LimitsMetric.DISK_REACHED, ""),
)


class HeldLine(msgspec.Struct, frozen=True):
    """One limit on one backend. ``verdict`` is ``held``, ``exceeded``, ``uncertain`` or ``not tried``.

    ``ratio`` is the share of the limit that an instance obtained, with its ``interval`` in words; ``promised`` is the
    limit, ``seen`` what a program inside reads as its size.
    """

    backend: MeasuredBackend
    what: str
    limit: str
    promised: str
    seen: str
    reached: str
    interval: str
    ratio: float | None
    verdict: str


def held_lines(analysis: Analysis) -> list[HeldLine]:
    """The limits of a run's ``limits`` cells."""
    lines = []
    promised = _promised(analysis.manifest.envelope)
    for subject in analysis.subjects:
        rows = {row.metric.name: {cell.backend: cell.estimate for cell in row.cells} for row in subject.rows}
        for name, reached, seen in _LIMITS:
            tried, seen_inside = rows.get(reached, {}), rows.get(seen, {})
            for backend in dict.fromkeys((*tried, *seen_inside)):
                found = tried.get(backend), seen_inside.get(backend)
                lines.append(_line(backend, subject.workload, name, promised[name], *found))
    return lines


def _promised(envelope: Envelope) -> Mapping[str, str]:
    """The envelope in words, by limit."""
    cpus = str(len(envelope.cpus))
    return {
        "CPUs": cpus if envelope.cpu_quota is None else f"{cpus}, quota {envelope.cpu_quota:g}",
        "memory": format_value(envelope.memory_bytes, Unit.BYTE),
        "processes": f"{envelope.pids_max:,}",
        "scratch disk": format_value(envelope.scratch_bytes, Unit.BYTE),
    }


def _line(
    backend: MeasuredBackend, what: str, limit: str, promised: str, tried: Interval | None, seen: Interval | None
) -> HeldLine:
    """The verdict is by the whole interval; by the value where there is no interval."""
    inside = "–" if seen is None else format_value(seen.centre, Unit.RATIO)
    if tried is None:
        return HeldLine(backend, what, limit, promised, inside, "–", "", None, "not tried")
    low, high = (tried.centre if end is None else end for end in (tried.low, tried.high))
    least, most, reached = (format_value(value, Unit.RATIO) for value in (low, high, tried.centre))
    interval = "" if tried.low is None or tried.high is None else f"{least} to {most}"
    verdict = "held" if high <= 1 + TOLERANCE else "exceeded" if low > 1 + TOLERANCE else "uncertain"
    return HeldLine(backend, what, limit, promised, inside, reached, interval, tried.centre, verdict)


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
    numbers = sorted({number for *_, cell in found for number in cell.sizes})
    medians = [cell.median_at(number) for *_, cell in found for number in numbers]
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


def _cell(cell: CellResult, number: int, worst: float) -> HeatCell:
    ratio = cell.median_at(number)
    if ratio is None:
        return HeatCell("–", "", None, 0.0)
    values = cell.points.iterations[cell.points.iteration_numbers == number]
    low, high = (format_value(float(end), Unit.RATIO) for end in (values.min(), values.max()))
    extent = f"{low} to {high}" if len(values) > 1 else ""
    strength = math.log(ratio) / math.log(worst) if ratio > 1 and worst > 1 else 0.0
    return HeatCell(format_value(ratio, Unit.RATIO), extent, ratio, round(strength, 2))
