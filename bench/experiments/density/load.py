"""All live instances at work at once: the workload's command in each, started together."""

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from tare.bench.errors import WorkloadError
from tare.bench.experiments.density import metrics
from tare.bench.experiments.work import Work, difference, total
from tare.bench.interfaces import Instance, InstanceRun, Workload
from tare.bench.interrupts import interruptible
from tare.bench.model import Command, Completed, Direction, Metric
from tare.bench.units import Unit

_RATES = {Unit.OPERATIONS_PER_SECOND: metrics.THROUGHPUT, Unit.BYTES_PER_SECOND: metrics.BYTE_THROUGHPUT}


class Load:
    """The workload of a ramp, in every instance of it.

    The command runs in a thread for each instance, as an instance serves one thread at a time.
    """

    def __init__(self, run: InstanceRun, workload: Workload) -> None:
        options = run.options
        self._run = run
        self._workload = workload
        self._commands = workload.commands(run.params, run.envelope)
        self._works: list[Work] = []
        self._is_mixed = bool(options.neighbour)
        durations = [one for one in workload.metrics if (one.unit, one.direction) == (Unit.SECOND, Direction.LOWER)]
        rates = [one for one in workload.metrics if one.unit in _RATES and one.direction is Direction.HIGHER]
        self.latency = _choose(durations, options.latency, "latency", ending="p99")
        self.throughput = _choose(rates, options.throughput, "throughput")
        if options.objective and self.latency is None:
            raise WorkloadError(
                f"an objective is stated, and {workload.name} measures no p99 latency",
                remedy="leave the objective out, or choose one of its metrics by the option latency",
            )

    def begin(self, instance: Instance) -> None:
        """What the workload wants done once in an instance: files laid out, a service started."""
        self._works.append(Work(self._run, self._commands, instance))

    def keep(self, population: int) -> None:
        """Only the first ``population`` instances go on."""
        del self._works[population:]

    @property
    def measured(self) -> Command:
        """What is measured."""
        return self._commands.measured

    def measure(self, instances: Sequence[Instance], neighbours: int = 0) -> float | None:
        """Run the command once in all of them together, and record; the worst p99, if the workload measures one.

        ``instances`` are those of ``begin``, in its order; so many others do something else meanwhile, next to which
        throughput and CPU time say nothing of a population. Raises BackendError or WorkloadError if it fails in any.
        """
        population = len(instances) + neighbours
        together = Barrier(len(instances))

        def execute(instance: Instance, work: Work) -> Completed:
            together.wait()
            return instance.execute(work.measured)

        before = [instance.usage().cpu_s for instance in instances]
        with ThreadPoolExecutor(max_workers=len(instances), thread_name_prefix="load") as threads:
            try:
                with interruptible():
                    finished = list(threads.map(execute, instances, self._works))
            except KeyboardInterrupt:
                for instance in instances:
                    instance.end()  # or the threads would go on until their commands have ended
                raise
        together_s = window_s(finished)
        busy = total(map(difference, before, [instance.usage().cpu_s for instance in instances]))
        if busy is not None and together_s > 0 and not self._is_mixed:
            self._run.record(metrics.LOADED_CPU, busy / together_s, iteration=population)
        values: dict[str, list[float]] = {}
        rates: list[float] = []
        for work, completed in zip(self._works, finished, strict=True):
            work.keep(work.measured, completed, f"loaded-{population}")
            for measurement in self._workload.parse(completed):
                values.setdefault(measurement.metric, []).append(measurement.value)
                if self.throughput is not None and measurement.metric == self.throughput.name and together_s > 0:
                    rates.append(measurement.value * completed.duration_s / together_s)
        self._run.record(
            metrics.DURATION, statistics.median(completed.duration_s for completed in finished), iteration=population
        )
        if self.throughput is not None and rates and not self._is_mixed:
            self._run.record(_RATES[self.throughput.unit], sum(rates), iteration=population)
        if self.latency is None or self.latency.name not in values:
            return None
        latencies = values[self.latency.name]
        self._run.record(metrics.LATENCY, statistics.median(latencies), iteration=population)
        self._run.record(metrics.LATENCY_WORST, max(latencies), iteration=population)
        return max(latencies)


def window_s(finished: Sequence[Completed]) -> float:
    """Seconds from the first begin to the last end.

    What one does while others have not begun, or have ended, is not what all of them can do at once: rates and CPU time
    are over this.
    """
    return max(one.ended_s for one in finished) - min(one.started_s for one in finished)


def _choose(fitting: Sequence[Metric], name: str, option: str, *, ending: str = "") -> Metric | None:
    """The metric that was named, or without a name the first with this ending."""
    for metric in fitting:
        if metric.name == name or (not name and metric.name.endswith(ending)):
            return metric
    if not name:
        return None
    known = ", ".join(metric.name for metric in fitting) or "none"
    raise WorkloadError(f"{option}: the workload has no such metric {name!r}", remedy=f"choose one of its own: {known}")
