"""What ``boot`` and ``steady`` measure of an engine: when it calls a container started, and what it costs itself."""

from tare.bench.catalogue import EngineMetric as Name
from tare.bench.engine import EngineShare, StartedBy
from tare.bench.experiments.work import difference
from tare.bench.interfaces import Instance, InstanceRun
from tare.bench.model import Metric, Phase, lower
from tare.bench.units import Unit

TRUE = "bin/true"
"""What a fresh instance is tried with, where the image has it."""
STARTED: dict[StartedBy, Metric] = {
    StartedBy.RETURNED: lower(
        Name.BY_RETURN,
        Unit.SECOND,
        "From the request until the engine's command, or the call to its daemon, returned.",
        "Start: until the engine's command returns",
    ),
    StartedBy.INSTRUCTION: lower(
        Name.BY_INSTRUCTION,
        Unit.SECOND,
        "From the request until the first user-space instruction inside, by the program that runs it.",
        "Start: until the first instruction of the container",
    ),
    StartedBy.EVENT: lower(
        Name.BY_EVENT,
        Unit.SECOND,
        "From the request until the engine itself reports the container as running.",
        "Start: until the engine reports it as running",
    ),
    StartedBy.EXEC: lower(
        Name.BY_EXEC,
        Unit.SECOND,
        "From the request until the engine's exec could have been answered: boot.total or boot.by_return, whichever is "
        "later, and the first exec of /bin/true by the engine's own means.",
        "Start: until the first exec is answered",
    ),
    StartedBy.SERVICE: lower(
        Name.BY_SERVICE,
        Unit.SECOND,
        "From the request until the image's service, started as soon as the instance took commands, answered its first "
        "request. It is asked every millisecond, a health check 20 ms after it ended.",
        "Start: until the service answers",
    ),
}
"""The ends of a start, by what people call it."""
EXEC = lower(
    Name.EXEC, Unit.SECOND, "The first exec of /bin/true by the engine's own means.", "The engine's exec of a program"
)
CPU = lower(
    Name.CPU,
    Unit.SECOND,
    "CPU seconds of the engine's processes for this instance (its commands, shim, conmon, monitor); part of the "
    "instance's CPU time.",
    "CPU time of the engine's helpers",
)
MEMORY = lower(
    Name.MEMORY,
    Unit.BYTE,
    "Proportional set size of the engine's processes that stay as long as this instance; part of its memory.",
    "Memory of the engine's helpers",
)
DAEMON_CPU = lower(
    Name.DAEMON_CPU,
    Unit.SECOND,
    "CPU seconds that the engine's daemon spent meanwhile (boot: from the request until the instance is ready); part "
    "of no instance's CPU time.",
    "CPU time of the engine's daemon",
)
DAEMON_MEMORY = lower(
    Name.DAEMON_MEMORY,
    Unit.BYTE,
    "Proportional set size of the engine's daemon, once for all its instances; part of no instance's memory.",
    "Memory of the engine's daemon",
)
BOOT_METRICS = (*STARTED.values(), EXEC, CPU, MEMORY, DAEMON_CPU, DAEMON_MEMORY)
STEADY_METRICS = (CPU, DAEMON_CPU)


def record_started(run: InstanceRun, instance: Instance) -> None:
    """The ends of its start, and what the engine costs where one made it."""
    marks, started = instance.timeline.marks, dict(instance.timeline.started)
    started.setdefault(StartedBy.INSTRUCTION, marks[Phase.FIRST_INSTRUCTION])
    share = instance.engine_share()
    if share is not None:
        run.record(CPU, share.cpu_s)
        run.record(MEMORY, share.memory_bytes)
        run.record(DAEMON_CPU, share.daemon_cpu_s)
        run.record(DAEMON_MEMORY, share.daemon_memory_bytes)
    running_s = instance.engine_running_s()
    if running_s is not None:
        started[StartedBy.EVENT] = running_s
    # The engine's exec is of a program of the image.
    seconds = None if run.image.lacks(TRUE) else instance.time_exec()
    if seconds is not None:
        run.record(EXEC, seconds)
        started[StartedBy.EXEC] = seconds + max(
            at_s for at_s in (marks.get(Phase.READY), started.get(StartedBy.RETURNED)) if at_s is not None
        )
    for end, metric in STARTED.items():
        if end in started:
            run.record(metric, started[end] - marks[Phase.REQUESTED])


def record_share(run: InstanceRun, before: EngineShare | None, after: EngineShare | None, iteration: int) -> None:
    """What the engine spent between two readings."""
    if before is not None and after is not None:
        run.record(CPU, difference(before.cpu_s, after.cpu_s), iteration=iteration)
        run.record(DAEMON_CPU, difference(before.daemon_cpu_s, after.daemon_cpu_s), iteration=iteration)
