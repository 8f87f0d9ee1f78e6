"""What instances were promised, what they saw of it, and whether the limits held when they asked for more."""

from collections.abc import Mapping

import msgspec

from tare.bench.analysis import Analysis, CellResult, MeasuredBackend, Subject
from tare.bench.catalogue import LimitsMetric
from tare.bench.model import Envelope
from tare.bench.stats import Interval
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
