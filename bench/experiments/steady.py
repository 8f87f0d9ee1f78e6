"""``steady``: iterations of a workload in a fresh instance, with what each cost the host."""

import contextlib
from collections.abc import Callable, Sequence

import msgspec

from tare.bench.catalogue import TRAITS, Builtin
from tare.bench.catalogue import SteadyMetric as Name
from tare.bench.errors import ParseError, WorkloadError
from tare.bench.experiments.engines import STEADY_METRICS as ENGINE
from tare.bench.experiments.engines import record_share
from tare.bench.experiments.work import Work, difference, prime_work, total
from tare.bench.interfaces import Experiment, Instance, InstanceRun, Workload
from tare.bench.model import Commands, Completed, Metric, Phase, Usage, lower
from tare.bench.network_path import ServerPlace
from tare.bench.units import Unit

DURATION = lower(
    Name.DURATION,
    Unit.SECOND,
    "The measured command from start to end, on the host's monotonic clock.",
    title="Run time of the command",
)
GUEST_DURATION = lower(
    Name.GUEST_DURATION,
    Unit.SECOND,
    "The same command by the instance's own clock.",
    title="Run time by the guest's clock",
)
CPU = lower(
    Name.CPU,
    Unit.SECOND,
    "CPU seconds, user and system, the host spent on the instance in the iteration.",
    title="CPU time on the host",
)
CPU_OVERHEAD = lower(
    Name.CPU_OVERHEAD,
    Unit.SECOND,
    "The part of host.cpu in which no vCPU ran: QEMU's main loop, I/O threads, helpers.",
    "CPU time of the hypervisor itself",
)
STEAL = lower(
    "guest.steal",
    Unit.SECOND,
    "CPU seconds that others had when the guest's vCPUs wanted them, as its kernel counts. Only KVM reports them.",
    "CPU time stolen from the guest",
)
IO_READ = lower(
    Name.IO_READ,
    Unit.BYTE,
    "Bytes the instance read from the host's block devices in the iteration.",
    title="Bytes read from the host's disk",
)
IO_WRITE = lower(
    Name.IO_WRITE,
    Unit.BYTE,
    "Bytes the instance wrote to the host's block devices in the iteration, also through the page cache.",
    title="Bytes written to the host's disk",
)
MEMORY_PEAK = lower(
    Name.MEMORY_PEAK,
    Unit.BYTE,
    "The most memory charged to the instance's cgroup in its life.",
    title="Peak memory on the host",
)
START = lower(
    "instance.start", Unit.SECOND, "From the request until it can execute.", title="Time to start this instance"
)
STOP = lower(
    "instance.stop",
    Unit.SECOND,
    "From the request to stop until nothing of it was left on the host.",
    title="Time to stop this instance",
)


class SteadyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[experiment.options]`` of ``steady``.

    ``server`` is where a workload's services run: in the instance that the measured command runs in, in another of the
    same backend, or on the host's side of the backend's network, where they cost nothing that is counted.
    """

    server: ServerPlace = ServerPlace.SAME_INSTANCE


class Steady(Experiment):
    """Runs the workload's set-up once, its measured command each iteration, its teardown once.

    Where its services run in another instance, ``host.*`` are sums over both.
    """

    name = Builtin.STEADY
    traits = TRAITS[name]
    summary = "iterations of a workload in fresh instances, with what each cost the host"
    needs_workload = True
    metrics = (DURATION, GUEST_DURATION, CPU, CPU_OVERHEAD, STEAL, IO_READ, IO_WRITE, MEMORY_PEAK, START, STOP, *ENGINE)
    Options = SteadyOptions

    @classmethod
    def check(cls, options: SteadyOptions, commands: Commands | None) -> None:
        """Only what serves can be elsewhere."""
        if options.server is not ServerPlace.SAME_INSTANCE and (commands is None or not commands.services):
            raise ValueError(f"server: the workload has no service that could run in {options.server.value!r}")

    @classmethod
    def server_place(cls, options: SteadyOptions) -> ServerPlace:
        return options.server

    def prime(self, run: InstanceRun) -> None:
        if run.workload is not None:
            prime_work(run, run.workload)

    def run(self, run: InstanceRun) -> None:
        workload = run.workload
        if workload is None:
            raise WorkloadError("steady was planned without a workload")
        commands = workload.commands(run.params, run.envelope)
        with contextlib.ExitStack() as servers:
            serving = _start_server(run, servers)
            with run.start() as instance:
                work = Work(run, commands, instance, serving=serving)
                is_host = run.options.server is ServerPlace.HOST
                counted = [instance] if serving is None or is_host else [instance, serving]
                for iteration in range(run.iterations):
                    stolen = total(one.guest_steal_s() for one in counted)
                    share = instance.engine_share()
                    before = [one.usage() for one in counted]
                    completed, raw = work.measure()
                    _record_cost(run, before, [one.usage() for one in counted], iteration)
                    record_share(run, share, instance.engine_share(), iteration)
                    if stolen is not None:
                        now = total(one.guest_steal_s() for one in counted)
                        run.record(STEAL, difference(stolen, now), iteration=iteration)
                    try:
                        _record_iteration(run, workload, completed, iteration, raw)
                    except ParseError:
                        work.check()
                        raise
                work.end()
                run.record(START, instance.timeline.between(Phase.REQUESTED, Phase.READY))
                run.record(MEMORY_PEAK, total(one.usage().memory_peak_bytes for one in counted))
            run.record(STOP, instance.timeline.between(Phase.STOP_REQUESTED, Phase.STOPPED))


def _start_server(run: InstanceRun, stack: contextlib.ExitStack) -> Instance | None:
    """Where the services run, if not in the instance of the measured command."""
    match run.options.server:
        case ServerPlace.OTHER_INSTANCE:
            return stack.enter_context(run.start())
        case ServerPlace.HOST:
            return stack.enter_context(run.start_host_side())
        case _:
            return None


def _record_iteration(run: InstanceRun, workload: Workload, completed: Completed, iteration: int, raw: str) -> None:
    run.record(DURATION, completed.duration_s, iteration=iteration, raw=raw)
    run.record(GUEST_DURATION, completed.guest_duration_s, iteration=iteration, raw=raw)
    known: dict[str, Metric] = {metric.name: metric for metric in workload.metrics}
    for measurement in workload.parse(completed):
        if measurement.metric not in known:
            raise WorkloadError(
                f"the workload {workload.name} returned {measurement.metric!r}, which it does not declare"
            )
        run.record(known[measurement.metric], measurement.value, iteration=iteration, raw=raw)
    for histogram in workload.histograms(completed):
        run.record_histogram(histogram, iteration=iteration, raw=raw)


def _record_cost(run: InstanceRun, before: Sequence[Usage], after: Sequence[Usage], iteration: int) -> None:
    """What the host's meters counted between two readings; a meter this host lacks is left out."""
    meters: tuple[tuple[Metric, Callable[[Usage], float | None]], ...] = (
        (CPU, lambda usage: usage.cpu_s),
        (CPU_OVERHEAD, _cpu_overhead),
        (IO_READ, lambda usage: usage.io_read_bytes),
        (IO_WRITE, lambda usage: usage.io_write_bytes),
    )
    for metric, meter in meters:
        run.record(metric, difference(total(map(meter, before)), total(map(meter, after))), iteration=iteration)


def _cpu_overhead(usage: Usage) -> float | None:
    return difference(usage.cpu_vcpu_s, usage.cpu_s)
