"""What disturbed an instance while it lived: the host's counters, read before it is asked for and before it is stopped.

Read between what is measured, never during it: a few small files, about half a millisecond here (``/proc/stat`` grows
with the number of CPUs). What this host does not count is None, never 0.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.linux.cpus import CpuTimes, read_cpu_times
from tare.bench.linux.files import HERE, HostRoots, find_text
from tare.bench.linux.pressure import read_stalls
from tare.bench.model import Usage
from tare.bench.records import Event

_CPUS = Path("devices/system/cpu")
_CLOCK_SOURCE = Path("devices/system/clocksource/clocksource0/current_clocksource")


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """What came about between two readings, ``span_s`` seconds apart.

    ``cpus`` is how many CPUs the envelope has; ``busy_s``, ``steal_s`` and ``interrupt_s`` are CPU seconds on them, and
    ``other_s`` is what of ``busy_s`` the instance's own accounting does not explain: other processes, and the kernel's
    work outside of its cgroup. The stalls are the host's PSI ("some"), in seconds. ``frequency_hz`` is the lowest of
    the envelope's CPUs at the end. ``throttles`` counts thermal throttling of their cores and packages.
    ``clock_step_s`` is how far the wall clock was set (CLOCK_REALTIME against CLOCK_MONOTONIC), ``clock_slew`` the rate
    by which NTP bent CLOCK_MONOTONIC (against CLOCK_MONOTONIC_RAW; 1e-6 is 1 ppm). ``clock_source`` is ``old to new``
    if it changed.
    """

    span_s: float
    cpus: int = 0
    busy_s: float | None = None
    steal_s: float | None = None
    interrupt_s: float | None = None
    other_s: float | None = None
    cpu_stall_s: float | None = None
    memory_stall_s: float | None = None
    io_stall_s: float | None = None
    frequency_hz: float | None = None
    throttles: int | None = None
    clock_step_s: float = 0.0
    clock_slew: float = 0.0
    clock_source: str = ""
    load: tuple[float, ...] = ()


class Reading(msgspec.Struct, frozen=True):
    """The counters at one moment.

    ``at_s`` is CLOCK_MONOTONIC, ``raw_s`` CLOCK_MONOTONIC_RAW, ``wall_s`` how far CLOCK_REALTIME is ahead of the first.
    """

    at_s: float
    raw_s: float
    wall_s: float
    times: CpuTimes | None
    stalls: dict[str, float]
    frequency_hz: float | None
    throttles: int | None
    clock_source: str


def read_counters(cpus: Iterable[int], roots: HostRoots = HERE) -> Reading:
    """The counters now, of the given CPUs."""
    wanted = tuple(cpus)
    before, raw, real, after = (
        time.monotonic(),
        time.clock_gettime(time.CLOCK_MONOTONIC_RAW),
        time.clock_gettime(time.CLOCK_REALTIME),
        time.monotonic(),
    )
    at = (before + after) / 2
    return Reading(
        at_s=at,
        raw_s=raw,
        wall_s=real - at,
        times=read_cpu_times(wanted, roots),
        stalls=read_stalls(roots),
        frequency_hz=_lowest_frequency(wanted, roots),
        throttles=_throttles(wanted, roots),
        clock_source=find_text(roots.sys / _CLOCK_SOURCE) or "",
    )


def between(first: Reading, last: Reading, cpus: int, explained_s: float | None) -> Disturbance:
    """What came about from ``first`` to ``last``; ``explained_s`` are the instance's own CPU seconds, if known."""
    span = last.at_s - first.at_s
    seconds: dict[str, Any] = {
        f"{name}_stall_s": last.stalls[name] - first.stalls[name] for name in first.stalls if name in last.stalls
    }
    if first.times and last.times:
        for name in ("busy_s", "steal_s", "interrupt_s"):
            seconds[name] = getattr(last.times, name) - getattr(first.times, name)
        if explained_s is not None:  # ticks are coarser than the cgroup's meter: less than nothing is nothing
            seconds["other_s"] = max(0.0, seconds["busy_s"] - explained_s)
    throttles = None
    if first.throttles is not None and last.throttles is not None:
        throttles = last.throttles - first.throttles
    raw = last.raw_s - first.raw_s
    changed = first.clock_source != last.clock_source
    return Disturbance(
        span_s=round(span, 6),
        cpus=cpus,
        **{name: round(value, 6) for name, value in seconds.items()},
        frequency_hz=last.frequency_hz,
        throttles=throttles,
        clock_step_s=round(last.wall_s - first.wall_s, 6),
        clock_slew=round((span - raw) / raw, 9) if raw > 0.1 else 0.0,
        clock_source=f"{first.clock_source} to {last.clock_source}" if changed else "",
        load=tuple(round(value, 2) for value in os.getloadavg()),
    )


class DisturbanceMeter:
    """Watches the envelope's CPUs over one planned instance, or over all that an experiment starts in its place."""

    def __init__(self, cpus: tuple[int, ...], roots: HostRoots = HERE) -> None:
        """Reads the counters: make it right before the instance is asked for."""
        self._cpus = cpus
        self._roots = roots
        self._explained_s: float | None = 0.0
        self._first = read_counters(cpus, roots)
        self._last: Reading | None = None

    def instance_ends(self, usage: Usage | None) -> None:
        """Read the counters right before an instance is stopped; ``usage`` is its cost, None if unknown."""
        used = None if usage is None else usage.cpu_s
        self._explained_s = None if used is None or self._explained_s is None else self._explained_s + used
        self._last = read_counters(self._cpus, self._roots)

    def result(self) -> Disturbance:
        """What disturbed it, up to the last ``instance_ends``, or up to now if none started."""
        last, explained = self._last, self._explained_s
        if last is None:
            last, explained = read_counters(self._cpus, self._roots), None
        return between(self._first, last, len(self._cpus), explained)


def disturbance_of(event: Event, started_s: float | None) -> Disturbance | None:
    """The disturbance recorded in an INSTANCE_DONE or INSTANCE_FAILED event; None if there is none.

    Runs of before this was recorded hold the host's PSI stalls alone; ``started_s`` is when the instance began.
    """
    told: Any = event.details.get("disturbance")
    if told is None:
        if started_s is None or event.at_s <= started_s or "cpu_stall_s" not in event.details:
            return None
        stalls = {name: event.details.get(name) for name in ("cpu_stall_s", "memory_stall_s", "io_stall_s")}
        told = {"span_s": event.at_s - started_s, **stalls}
    try:
        return msgspec.convert(told, Disturbance)
    except msgspec.ValidationError:
        return None


def _lowest_frequency(cpus: Iterable[int], roots: HostRoots) -> float | None:
    """In Hz; cpufreq has kHz."""
    told = _numbers(cpus, roots, "cpufreq/scaling_cur_freq")
    return min(told) * 1e3 if told else None


def _throttles(cpus: Iterable[int], roots: HostRoots) -> int | None:
    told = _numbers(cpus, roots, "thermal_throttle/core_throttle_count", "thermal_throttle/package_throttle_count")
    return sum(told) if told else None


def _numbers(cpus: Iterable[int], roots: HostRoots, *names: str) -> list[int]:
    texts = (find_text(roots.sys / _CPUS / f"cpu{cpu}" / name) for cpu in cpus for name in names)
    return [int(text) for text in texts if text and text.isdigit()]
