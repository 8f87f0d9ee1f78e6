"""``steady``: iterations of a workload in a fresh instance, with what each cost the host."""

from bench.errors import WorkloadError
from bench.experiments.base import Experiment, InstanceRun, lower, record_known, record_span
from bench.interfaces import Instance, Workload
from bench.model import Completed, Metric, Phase, Usage
from bench.units import Unit

DURATION = lower(
    "command.duration", Unit.SECOND, "The measured command from start to end, on the host's monotonic clock."
)
GUEST_DURATION = lower("command.guest_duration", Unit.SECOND, "The same command by the instance's own clock.")
CPU = lower(
    "host.cpu", Unit.SECOND, "CPU seconds, user and system, the host spent on the instance during the iteration."
)
IO_READ = lower(
    "host.io_read", Unit.BYTE, "Bytes the instance read from the host's block devices during the iteration."
)
IO_WRITE = lower(
    "host.io_write", Unit.BYTE, "Bytes the instance wrote to the host's block devices during the iteration."
)
MEMORY_PEAK = lower(
    "host.memory_peak", Unit.BYTE, "The most memory the instance's cgroup was charged with in its life."
)
START = lower("instance.start", Unit.SECOND, "Requested until ready to execute.")
STOP = lower("instance.stop", Unit.SECOND, "Asked to stop until its last process and host resource were gone.")


class Steady(Experiment):
    """Runs the workload's set-up once, its measured command each iteration, its teardown once."""

    name = "steady"
    summary = "iterations of a workload in fresh instances, with what each cost the host"
    needs_workload = True
    metrics = (DURATION, GUEST_DURATION, CPU, IO_READ, IO_WRITE, MEMORY_PEAK, START, STOP)

    def run(self, run: InstanceRun) -> None:
        """One instance with all its iterations."""
        workload = run.workload
        if workload is None:
            raise WorkloadError("steady was planned without a workload")
        commands = workload.commands(run.params, run.envelope)
        with run.start() as instance:
            for command in commands.setup:
                run.execute(instance, command, "setup")
            for iteration in range(run.iterations):
                before = instance.usage()
                completed, raw = run.execute(instance, commands.measured, "measured")
                _record_cost(run, before, instance.usage(), iteration)
                _record_iteration(run, workload, completed, iteration, raw)
            for command in commands.teardown:
                run.execute(instance, command, "teardown")
            self._record_life(run, instance)
        record_span(run, STOP, instance.timeline, Phase.STOP_REQUESTED, Phase.STOPPED)

    def _record_life(self, run: InstanceRun, instance: Instance) -> None:
        record_span(run, START, instance.timeline, Phase.REQUESTED, Phase.READY)
        record_known(run, MEMORY_PEAK, instance.usage().memory_peak_bytes)


def _record_iteration(run: InstanceRun, workload: Workload, completed: Completed, iteration: int, raw: str) -> None:
    run.record(DURATION, completed.duration_s, iteration=iteration, raw=raw)
    if completed.guest_duration_s is not None:
        run.record(GUEST_DURATION, completed.guest_duration_s, iteration=iteration, raw=raw)
    known: dict[str, Metric] = {metric.name: metric for metric in workload.metrics}
    for measurement in workload.parse(completed):
        if measurement.metric not in known:
            raise WorkloadError(
                f"the workload {workload.name} returned {measurement.metric!r}, which it does not declare"
            )
        run.record(known[measurement.metric], measurement.value, iteration=iteration, raw=raw)


def _record_cost(run: InstanceRun, before: Usage, after: Usage, iteration: int) -> None:
    """What the host's meter counted between two readings; a meter this host lacks is left out."""
    pairs = (
        (CPU, _cpu(before), _cpu(after)),
        (IO_READ, before.io_read_bytes, after.io_read_bytes),
        (IO_WRITE, before.io_write_bytes, after.io_write_bytes),
    )
    for metric, first, second in pairs:
        if first is not None and second is not None:
            run.record(metric, second - first, iteration=iteration)


def _cpu(usage: Usage) -> float | None:
    if usage.cpu_user_s is None or usage.cpu_system_s is None:
        return None
    return usage.cpu_user_s + usage.cpu_system_s
