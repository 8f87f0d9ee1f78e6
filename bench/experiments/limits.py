"""``limits``: how little is enough, what an instance sees of what it was given, and whether its limits hold.

Programs inside look at what it was given, and ask for twice as much of it. Each prints what it got as it gets it, so
that a killed one has shown how far it came.
"""

import json
import math
import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tare.bench.catalogue import TRAITS, Builtin, NoteCode
from tare.bench.catalogue import LimitsMetric as Name
from tare.bench.errors import BackendError, TareError, WorkloadError
from tare.bench.experiments.work import Work, difference
from tare.bench.interfaces import Experiment, Instance, InstanceRun
from tare.bench.interrupts import sleep
from tare.bench.model import SCRATCH, Command, Completed, Direction, Envelope, Metric, lower
from tare.bench.units import Duration, Size, Unit, format_size

START_MEMORY = lower(
    Name.START_MEMORY,
    Unit.BYTE,
    "The least memory with which an instance started each time.",
    title="Least memory to start with",
)
WORKLOAD_MEMORY = lower(
    "limits.workload_memory",
    Unit.BYTE,
    "The least memory with which the workload always passed.",
    title="Least memory to do its work with",
)
CPUS_SEEN = lower(
    Name.CPUS_SEEN,
    Unit.RATIO,
    "CPUs that a program inside sees, as a share of those given.",
    title="CPUs it sees, of those given",
)
MEMORY_SEEN = lower(
    Name.MEMORY_SEEN,
    Unit.RATIO,
    "Memory that a program inside sees, as a share of that given.",
    title="Memory it sees, of that given",
)
CPU_REACHED = lower(
    Name.CPU_REACHED,
    Unit.RATIO,
    "Share of its CPU limit that twice as many busy processes used.",
    title="CPU time obtained, of its limit",
)
MEMORY_REACHED = lower(
    Name.MEMORY_REACHED,
    Unit.RATIO,
    "Share of its memory limit a process obtained when it asked for twice the limit.",
    "Memory obtained, of its limit",
)
PIDS_REACHED = lower(
    Name.PIDS_REACHED,
    Unit.RATIO,
    "Share of its limit on processes reached when asking for twice it.",
    title="Processes obtained, of its limit",
)
DISK_REACHED = lower(
    Name.DISK_REACHED,
    Unit.RATIO,
    "Share of its scratch folder's size written when trying twice it.",
    title="Disk space obtained, of its limit",
)
MEMORY_GROWN = lower(
    "limits.memory_grown",
    Unit.BYTE,
    "Growth of the host's charge while a process held memory.",
    title="Memory taken from the host",
)
MEMORY_RETURNED = Metric(
    "limits.memory_returned",
    Unit.RATIO,
    Direction.HIGHER,
    "Share of that growth the host had back once it settled.",
    "Memory returned to the host",
)
MEMORY_RETURN_TIME = lower(
    "limits.memory_return_time",
    Unit.SECOND,
    "From the process's end until that was back.",
    title="Time until memory was returned",
)

_TRUE = Command(("/bin/true",))
_ALMOST_ALL = 0.9
_PAGE = 4096
_HELD_PART = 4
"""A process holds this part of the memory: a guest has its own kernel in it, and its root."""


_BUSY_S = 1
_CHUNK = 2**20
_TIMEOUT_S = 120.0
_TOLERATED_S = 30.0
"""Under emulation a program takes some seconds to reach its limit; one that stalls there is not waited for."""

_SEEN = """
import json, os
memory = next(line.split()[1] for line in open("/proc/meminfo") if line.startswith("MemTotal"))
cpus = os.sysconf("SC_NPROCESSORS_ONLN")
print(json.dumps({"cpus": cpus, "allowed": len(os.sched_getaffinity(0)), "memory_bytes": int(memory) * 1024,
    "kernel": os.uname().release, "host_name": os.uname().nodename}))
"""
_MEMORY = """
import sys
held = []
for number in range(1, {chunks} + 1):
    held.append(bytearray(b"x") * {chunk})
    print(number * {chunk}, flush=True)
"""
_PIDS = """
import os, signal
children = []
try:
    while len(children) < {most}:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except OSError:
    pass
print(len(children) + 1, flush=True)
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""
_DISK = """
import os
path = "{scratch}/tare-limit"
written = 0
try:
    with open(path, "wb", buffering=0) as file:
        while written < {most}:
            written += file.write(b"x" * min({chunk}, {most} - written))
except OSError:
    pass
finally:
    os.unlink(path)
print(written)
"""
# Writes a line into a FIFO once it holds the memory, and holds it until it is killed.
_HOLD = """
import os, signal
with open("{pid}", "w") as file:
    file.write(str(os.getpid()))
held = bytearray(b"x") * {size}
with open("{fifo}", "w") as fifo:
    fifo.write("held")
signal.pause()
"""
_FIFO = f"{SCRATCH}/tare-held"
_PID = f"{SCRATCH}/tare-holder"


def _python(program: str) -> Command:
    return Command(("python3", "-c", program), timeout_s=_TIMEOUT_S)


_LOOK = _python(_SEEN)
_WARM = _python("import os, signal")
"""Reads the interpreter's files, which are charged to the first who reads them, and holds nothing."""
_HELD = Command(("cat", _FIFO), timeout_s=_TIMEOUT_S)
"""Ends when the process that was left behind holds its memory, with ``held``, or died of it, with ``gone``."""
_RELEASE = Command(("sh", "-c", f"kill -KILL $(cat {_PID})"))


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
    completed, raw = run.execute(instance, _LOOK, "seen")
    seen = _read_seen(completed)
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
    busy = ("stress-ng", "--cpu", str(2 * len(run.envelope.cpus)), "--timeout", f"{_BUSY_S}s")
    completed, raw = run.execute(instance, Command(busy, timeout_s=_TIMEOUT_S), "cpu")
    after = instance.usage().cpu_s
    given = run.envelope.cpu_quota or len(run.envelope.cpus)
    used = difference(before, after)
    run.record(CPU_REACHED, None if used is None else used / completed.duration_s / given, raw=raw)


def _record_reached(run: InstanceRun, instance: Instance) -> None:
    """Processes, disk, and memory at last, as asking for too much of it may cost the instance its other processes."""
    envelope = run.envelope
    disk = _DISK.format(scratch=SCRATCH, most=2 * envelope.scratch_bytes, chunk=_CHUNK)
    for metric, command, given, role in (
        (PIDS_REACHED, _tolerant(_PIDS.format(most=2 * envelope.pids_max)), envelope.pids_max, "pids"),
        (DISK_REACHED, _tolerant(disk), envelope.scratch_bytes, "disk"),
        (MEMORY_REACHED, _memory_command(envelope), envelope.memory_bytes, "memory"),
    ):
        completed = instance.execute(command)
        run.record(metric, _read_last(completed) / given)
        try:
            run.keep(command, completed, role)
        except WorkloadError as error:
            # One that stalls at its limit (a guest that reads its own programs again and again) has met it, too.
            run.note(NoteCode.LIMITS_STALLED, f"asking for too much {role}: {error.message}", {"what": role})


def _record_elasticity(run: InstanceRun, instance: Instance) -> None:
    """What the host gets back of memory that a process inside has freed."""
    run.execute(instance, _WARM, "warm")
    before = _charge(instance)
    if before is None:
        return
    size = run.envelope.memory_bytes // _HELD_PART
    run.execute(instance, _hold_command(size), "hold")
    answer, _ = run.execute(instance, _HELD, "held")
    if answer.stdout.strip() != b"held":
        run.note(
            NoteCode.LIMITS_NOT_HELD,
            f"the instance could not hold {format_size(size)}, so no memory came back",
            {"bytes": size},
        )
        return
    held = _charge(instance) or before
    run.execute(instance, _RELEASE, "release")
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
    run.record(MEMORY_RETURNED, back / grown)
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
        sleep(interval_s)


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


def _read_seen(completed: Completed) -> dict[str, int | str]:
    """What ``_LOOK`` printed. Raises WorkloadError."""
    try:
        seen = json.loads(completed.stdout)
    except ValueError:
        raise WorkloadError("a program inside printed no JSON", evidence=repr(completed.stdout[:200])) from None
    assert isinstance(seen, dict)
    return seen


def _memory_command(envelope: Envelope) -> Command:
    """Touches up to twice the memory, and prints after each part how much it holds. Being killed is no failure."""
    chunk = max(_CHUNK, envelope.memory_bytes // 64)
    return _tolerant(_MEMORY.format(chunks=-(-2 * envelope.memory_bytes // chunk), chunk=chunk))


def _read_last(completed: Completed) -> int:
    """The last whole number that a probe printed; 0 if it was ended before the first."""
    lines = completed.stdout.decode(errors="replace").split()
    return int(lines[-1]) if lines and lines[-1].isdigit() else 0


def _hold_command(size: int) -> Command:
    """Leaves a process behind that takes ``size`` bytes and keeps them until ``_RELEASE``."""
    program = _HOLD.format(size=size, fifo=_FIFO, pid=_PID)
    run = f'{{ python3 -c "$1"; echo gone >{_FIFO}; }} >/dev/null 2>&1 </dev/null &'
    return Command(("sh", "-c", f"rm -f {_FIFO}; mkfifo {_FIFO} || exit; {run}", "sh", program))


def _tolerant(program: str) -> Command:
    """Whatever becomes of the program, the command ends well: its output is what counts."""
    return Command(("sh", "-c", 'python3 -c "$1"; exit 0', "sh", program), timeout_s=_TOLERATED_S)
