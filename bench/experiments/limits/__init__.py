"""``limits``: how little is enough, what an instance sees of what it was given, and whether its limits hold."""

import math
import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tare.bench.catalogue import TRAITS, Builtin, NoteCode
from tare.bench.catalogue import LimitsMetric as Name
from tare.bench.errors import BackendError, TareError, WorkloadError
from tare.bench.experiments.limits import probes
from tare.bench.experiments.work import Work, difference
from tare.bench.interfaces import Experiment, Instance, InstanceRun
from tare.bench.model import Command, Direction, Envelope, Metric, lower
from tare.bench.units import Duration, Size, Unit, format_size

START_MEMORY = lower(Name.START_MEMORY, Unit.BYTE, "The least memory with which an instance started each time.")
WORKLOAD_MEMORY = lower("limits.workload_memory", Unit.BYTE, "The least memory with which the workload always passed.")
CPUS_SEEN = lower(Name.CPUS_SEEN, Unit.RATIO, "CPUs that a program inside sees, as a share of those given.")
MEMORY_SEEN = lower(Name.MEMORY_SEEN, Unit.RATIO, "Memory that a program inside sees, as a share of that given.")
CPU_REACHED = lower(Name.CPU_REACHED, Unit.RATIO, "Share of its CPU limit that twice as many busy processes used.")
MEMORY_REACHED = lower(
    Name.MEMORY_REACHED, Unit.RATIO, "Share of its memory limit a process obtained when it asked for twice the limit."
)
PIDS_REACHED = lower(Name.PIDS_REACHED, Unit.RATIO, "Share of its limit on processes reached when asking for twice it.")
DISK_REACHED = lower(Name.DISK_REACHED, Unit.RATIO, "Share of its scratch folder's size written when trying twice it.")
MEMORY_GROWN = lower("limits.memory_grown", Unit.BYTE, "Growth of the host's charge while a process held memory.")
MEMORY_RETURNED = Metric(
    "limits.memory_returned", Unit.RATIO, Direction.HIGHER, "Share of that growth the host had back once it settled."
)
MEMORY_RETURN_TIME = lower("limits.memory_return_time", Unit.SECOND, "From the process's end until that was back.")

_TRUE = Command(("/bin/true",))
_ALMOST_ALL = 0.9
_PAGE = 4096
_HELD_PART = 4
"""A process holds this part of the memory: a guest has its own kernel in it, and its root."""


class LeastSize(Size):
    """Where the search for the least memory ends."""

    least = 2**16


class LimitsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[experiment.options]`` of ``limits``.

    The least memory is searched between ``lowest`` and the envelope's, by bisection until it is at most ``resolution``
    (0.1: a tenth) above a size that fails; a size passes if it does ``repeats`` times in a row. ``search = false``
    leaves that out. ``return_interval`` and ``return_deadline`` are for the waiting until the host has freed memory
    back.
    """

    search: bool = True
    lowest: LeastSize = LeastSize("256KiB")
    resolution: Annotated[float, Meta(ge=0.005, le=1)] = 0.1
    repeats: Annotated[int, Meta(ge=1, le=100)] = 3
    return_interval: Duration = Duration("1s")
    return_deadline: Duration = Duration("15s")


class Limits(Experiment):
    """Looks at one instance in the suite's envelope, then searches in others."""

    name = Builtin.LIMITS
    traits = TRAITS[name]
    summary = "least memory to start and to work, what an instance sees, whether its limits hold"
    needs_workload = False
    takes_workload = True
    metrics = (
        *(START_MEMORY, WORKLOAD_MEMORY, CPUS_SEEN, MEMORY_SEEN),
        *(CPU_REACHED, MEMORY_REACHED, PIDS_REACHED, DISK_REACHED),
        *(MEMORY_GROWN, MEMORY_RETURNED, MEMORY_RETURN_TIME),
    )
    Options = LimitsOptions

    def run(self, run: InstanceRun) -> None:
        """All of it. A limit that does not hold is a result, not a failure."""
        with run.start() as instance:
            _record_elasticity(run, instance)
        with run.start() as instance:
            _record_seen(run, instance)
            _record_cpu(run, instance)
            _record_reached(run, instance)
        if run.options.search:
            _record_least(run)


def _record_seen(run: InstanceRun, instance: Instance) -> None:
    completed, raw = run.execute(instance, probes.seen_command(), "seen")
    seen = probes.read_seen(completed)
    run.record(CPUS_SEEN, float(seen["cpus"]) / len(run.envelope.cpus), raw=raw)
    run.record(MEMORY_SEEN, float(seen["memory_bytes"]) / run.envelope.memory_bytes, raw=raw)
    run.note(
        NoteCode.LIMITS_SEEN,
        f"a program inside sees {seen['cpus']} CPUs, may use {seen['allowed']}, sees "
        f"{format_size(float(seen['memory_bytes']))} of memory and Linux {seen['kernel']}",
        seen,
    )


def _record_cpu(run: InstanceRun, instance: Instance) -> None:
    before = instance.usage().cpu_s
    completed, raw = run.execute(instance, probes.cpu_command(run.envelope), "cpu")
    after = instance.usage().cpu_s
    given = run.envelope.cpu_quota or len(run.envelope.cpus)
    used = difference(before, after)
    run.record(CPU_REACHED, None if used is None else used / completed.duration_s / given, raw=raw)


def _record_reached(run: InstanceRun, instance: Instance) -> None:
    """Processes, disk, and memory at last, as asking for too much of it may cost the instance its other processes."""
    envelope = run.envelope
    for metric, command, given, role in (
        (PIDS_REACHED, probes.pids_command(envelope), envelope.pids_max, "pids"),
        (DISK_REACHED, probes.disk_command(envelope), envelope.scratch_bytes, "disk"),
        (MEMORY_REACHED, probes.memory_command(envelope), envelope.memory_bytes, "memory"),
    ):
        completed = instance.execute(command)
        run.record(metric, probes.read_last(completed) / given)
        try:
            run.keep(command, completed, role)
        except WorkloadError as error:
            # One that stalls at its limit (a guest that reads its own programs again and again) has met it, too.
            run.note(NoteCode.LIMITS_STALLED, f"asking for too much {role}: {error.message}", {"what": role})


def _record_elasticity(run: InstanceRun, instance: Instance) -> None:
    """What the host gets back of memory that a process inside has freed."""
    run.execute(instance, probes.warm_command(), "warm")
    before = _charge(instance)
    if before is None:
        return
    size = run.envelope.memory_bytes // _HELD_PART
    run.execute(instance, probes.hold_command(size), "hold")
    answer, _ = run.execute(instance, probes.held_command(), "held")
    if answer.stdout.strip() != b"held":
        run.note(
            NoteCode.LIMITS_NOT_HELD,
            f"the instance could not hold {format_size(size)}, so no memory came back",
            {"bytes": size},
        )
        return
    held = _charge(instance) or before
    run.execute(instance, probes.release_command(), "release")
    released_s = time.monotonic()
    readings = _watch_return(run.options, instance, released_s)
    grown = held - before
    if grown <= 0:
        raise BackendError(
            "the host's charge did not grow while a process held memory inside",
            evidence=f"{before} bytes before, {held} bytes while {size} were held",
        )
    back = held - readings[-1][1]
    run.record(MEMORY_GROWN, grown)
    run.record(MEMORY_RETURNED, max(0.0, back / grown))
    when = next((at_s for at_s, charge in readings if held - charge >= _ALMOST_ALL * back), None)
    if back > 0 and when is not None:
        run.record(MEMORY_RETURN_TIME, when)


def _watch_return(options: LimitsOptions, instance: Instance, released_s: float) -> list[tuple[float, int]]:
    """(seconds since the release, charge), until it has not changed from one reading to the next, or for so long."""
    interval_s, deadline_s = options.return_interval, options.return_deadline
    readings: list[tuple[float, int]] = []
    while True:
        charge = _charge(instance)
        assert charge is not None
        readings.append((time.monotonic() - released_s, charge))
        unchanged = len(readings) >= 3 and len({value for _, value in readings[-2:]}) == 1
        if unchanged or readings[-1][0] >= deadline_s:
            return readings
        time.sleep(interval_s)


def _charge(instance: Instance) -> int | None:
    footprint = instance.footprint()
    return footprint.pss_bytes if footprint.cgroup_bytes is None else footprint.cgroup_bytes


def _record_least(run: InstanceRun) -> None:
    """The least memory to start with, and the least for the workload."""
    options: LimitsOptions = run.options
    start = _search(run, int(options.lowest), lambda envelope: _try_start(run, envelope), "a start")
    run.record(START_MEMORY, start)
    if run.workload is not None:
        least = _search(run, start, lambda envelope: _try_workload(run, envelope), "the workload")
        run.record(WORKLOAD_MEMORY, least)


def _search(run: InstanceRun, lowest: int, attempt: Callable[[Envelope], None], what: str) -> int:
    """The least memory that passes. Raises what the envelope's own size fails with."""
    tried: list[dict[str, Any]] = []

    def passes(size: int) -> bool:
        envelope = msgspec.structs.replace(run.envelope, memory_bytes=size)
        for _ in range(run.options.repeats):
            try:
                attempt(envelope)
            except (BackendError, WorkloadError) as error:
                tried.append({"memory_bytes": size, "passed": False, "reason": error.message})
                return False
        tried.append({"memory_bytes": size, "passed": True, "reason": ""})
        return True

    attempt(run.envelope)  # what fails there is the reason that the cell fails with
    least = bisect_size(lowest, run.envelope.memory_bytes, run.options.resolution, passes)
    or_less = " or less" if least == lowest else ""
    run.note(
        NoteCode.LIMITS_SEARCH,
        f"the least memory for {what} is {format_size(least)}{or_less}",
        {"what": what, "tried": tried},
    )
    return least


def bisect_size(lowest: int, highest: int, resolution: float, passes: Callable[[int], bool]) -> int:
    """The least size that passes, at most that share above one that does not; ``highest`` is known to pass.

    Takes for granted that what passes with less passes with more. It is halved first until it fails: what fails by far
    may take long to do so (a guest that hangs), and is not tried.
    """
    low, high = highest, highest
    while low > lowest:
        low = max(lowest, low // 2 // _PAGE * _PAGE)
        if not passes(low):
            break
        high = low
    if high == low:
        return high
    while high > low * (1 + resolution) and high - low > _PAGE:
        middle = math.isqrt(low * high) // _PAGE * _PAGE
        middle = min(max(middle, low + _PAGE), high - _PAGE)
        if passes(middle):
            high = middle
        else:
            low = middle
    return high


def _try_start(run: InstanceRun, envelope: Envelope) -> None:
    with run.start(envelope) as instance:
        run.execute(instance, _TRUE, "start")


def _try_workload(run: InstanceRun, envelope: Envelope) -> None:
    assert run.workload is not None
    commands = run.workload.commands(run.params, envelope)
    with run.start(envelope) as instance:
        completed, _ = Work(run, commands, instance).measure()
        try:
            run.workload.parse(completed)
        except TareError as error:
            raise WorkloadError(error.message) from error
