"""``interference``: a victim alone, and the same victim next to more and more aggressors in other instances.

Each number of aggressors is compared with the same live victim alone, minutes before: what differs from boot to boot
and from hour to hour is on both sides. Each block has a fresh victim. An aggressor is stress-ng in an instance of its
own, bounded in time.

``iteration`` of each sample is the number of aggressors; 0 is the victim alone. The victim's own metrics are kept under
``interference.value.NAME``, one sample a repetition, and compared with the median of the same victim alone under
``interference.ratio.NAME``, one sample a number of aggressors.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tare.bench.catalogue import RATIO_PREFIX, TRAITS, VALUE_PREFIX, Builtin
from tare.bench.errors import BackendError, WorkloadError
from tare.bench.experiments.work import Background, Work, difference, prime_work, total
from tare.bench.interfaces import Experiment, InstanceRun, Workload
from tare.bench.model import SCRATCH, Command, Direction, Envelope, Metric, lower
from tare.bench.units import Duration, Unit

DURATION = lower("duration", Unit.SECOND, "The victim's measured command from start to end.", "Run time of the command")
AGGRESSOR_CPU = Metric(
    "interference.aggressor_cpu",
    Unit.CPU,
    Direction.HIGHER,
    "CPUs that all aggressors together used meanwhile.",
    "CPUs the neighbours used",
)


def value_of(metric: Metric) -> Metric:
    """The victim's own metric, as this experiment keeps it."""
    return Metric(f"{VALUE_PREFIX}{metric.name}", metric.unit, metric.direction, metric.description, metric.title)


def ratio_of(metric: Metric) -> Metric:
    """How much worse it got: above 1 is worse, whichever way the metric goes."""
    return lower(
        f"{RATIO_PREFIX}{metric.name}",
        Unit.RATIO,
        f"How many times worse than alone (median to median): {metric.description}",
        f"{metric.title}, compared with alone" if metric.title else "",
    )


_FILE_BYTES = "64m"
_MOST_BYTES = 2**28
"""More than a last-level cache holds, where the envelope allows."""

# ``{cpus}`` is the number of CPUs of the aggressor's envelope, ``{part}`` what each gets of a quarter of its memory.
_ARGUMENTS: Mapping[str, str] = {
    "cpu": "--cpu {cpus} --cpu-method matrixprod",
    "memory": "--memrate {cpus} --memrate-bytes {part}",
    "page-cache": "--readahead {cpus} --readahead-bytes " + _FILE_BYTES,
    "disk": "--hdd 1 --hdd-opts fsync --hdd-bytes " + _FILE_BYTES,
    "fork": "--fork {cpus} --fork-max 8",
    "network": "--sock {cpus}",
}
KINDS = tuple(sorted(_ARGUMENTS))
"""``network`` loads the network stack over lo, not a device."""


def aggressor_argv(kind: str, envelope: Envelope, bound_s: float) -> tuple[str, ...]:
    """The program of an aggressor, which ends by itself after ``bound_s``."""
    cpus = len(envelope.cpus)
    part = min(_MOST_BYTES, envelope.memory_bytes // 4 // cpus)
    arguments = _ARGUMENTS[kind].format(cpus=cpus, part=part).split()
    return ("stress-ng", *arguments, "--timeout", f"{bound_s:.0f}s", "--temp-path", SCRATCH)


_SPARE_S = 60.0
"""An aggressor outlives the commands of all repetitions by this much, should nobody stop it."""


class InterferenceOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[experiment.options]`` of ``interference``.

    ``aggressor`` is what they do (a list makes a cell of each), ``aggressors`` how many there are at last. ``cpus``:
    ``same`` puts them on the victim's own CPUs, ``other`` on those that tare has for itself. ``bound`` ends an
    aggressor that nobody stops; without it, it is what the victim's own time limits add up to.
    """

    aggressor: str = "cpu"
    aggressors: Annotated[int, Meta(ge=1, le=64)] = 1
    cpus: Literal["same", "other"] = "same"
    bound: Duration | None = None

    def __post_init__(self) -> None:
        if self.aggressor not in KINDS:
            raise ValueError(f"aggressor: there is no {self.aggressor!r}; there are: {', '.join(KINDS)}")


class Interference(Experiment):
    """Measures a victim next to 0, 1, 2, … aggressors. ``iteration`` is their number."""

    name = Builtin.INTERFERENCE
    traits = TRAITS[name]
    summary = "how much worse a workload gets next to aggressors in other instances"
    needs_workload = True
    metrics = (AGGRESSOR_CPU,)
    Options = InterferenceOptions

    @classmethod
    def metrics_with(cls, workload: type[Workload] | None) -> tuple[Metric, ...]:
        victim = (DURATION, *(() if workload is None else workload.metrics))
        return (AGGRESSOR_CPU, *map(value_of, victim), *map(ratio_of, victim))

    def prime(self, run: InstanceRun) -> None:
        if run.workload is not None:
            prime_work(run, run.workload)

    def run(self, run: InstanceRun) -> None:
        if run.workload is None:
            raise WorkloadError("interference was planned without a workload")
        _Victim(run, run.workload).run()


class _Victim:
    def __init__(self, run: InstanceRun, workload: Workload) -> None:
        self._run = run
        self._workload = workload
        self._options: InterferenceOptions = run.options
        self._commands = workload.commands(run.params, run.envelope)
        own = () if workload.fixed_time else (DURATION,)
        self._metrics = {metric.name: metric for metric in (*own, *workload.metrics)}
        self._alone: dict[str, float] = {}

    def run(self) -> None:
        envelope = _choose_envelope(self._run.envelope, self._options)
        with self._run.start() as victim, contextlib.ExitStack() as stack:
            work = Work(self._run, self._commands, victim)
            self._alone = self._measure(work, 0)
            aggressors: list[Background] = []
            kind, argv = self._options.aggressor, aggressor_argv(self._options.aggressor, envelope, self._bound_s())
            for _ in range(self._options.aggressors):
                instance = stack.enter_context(self._run.start(envelope))
                command = Command(argv, cwd=SCRATCH)
                aggressors.append(Background(instance, f"the aggressor {kind}", "aggressor", command))
                self._measure_beside(work, aggressors)
            work.end()

    def _measure_beside(self, work: Work, aggressors: list[Background]) -> None:
        before, began = [one.instance.usage().cpu_s for one in aggressors], time.monotonic()
        beside = self._measure(work, len(aggressors))
        after, took = [one.instance.usage().cpu_s for one in aggressors], time.monotonic() - began
        for one in aggressors:
            if not one.is_alive():
                raise WorkloadError(
                    f"{one.what} ended while the victim was measured",
                    remedy="give the envelope more memory, pids or scratch, or let the victim's command take less time",
                    evidence=one.said(),
                )
        for name, value in beside.items():
            metric = self._metrics[name]
            ratio = degradation(metric.direction, self._alone.get(name, 0.0), value)
            self._run.record(ratio_of(metric), ratio, iteration=len(aggressors))
        used = total(map(difference, before, after))
        self._run.record(AGGRESSOR_CPU, None if used is None else used / took, iteration=len(aggressors))

    def _measure(self, work: Work, number: int) -> dict[str, float]:
        """The medians of the victim's metrics next to ``number`` aggressors, without warm-ups."""
        values: dict[str, list[float]] = {}
        for repetition in range(self._run.iterations):
            warmup = self._run.is_warmup(repetition)
            role = f"{'warmup-' if warmup else ''}beside-{number}"
            completed, raw = work.measure(role)
            if warmup:
                continue
            read = {DURATION.name: completed.duration_s}
            read |= {one.metric: one.value for one in self._workload.parse(completed)}
            for name, value in read.items():
                if name in self._metrics:
                    values.setdefault(name, []).append(value)
                    self._run.record(value_of(self._metrics[name]), value, iteration=number, raw=raw)
        return {name: statistics.median(own) for name, own in values.items()}

    def _bound_s(self) -> float:
        if self._options.bound is not None:
            return self._options.bound
        each = self._run.iterations * self._commands.measured.timeout_s + _SPARE_S
        return each * self._options.aggressors


def degradation(direction: Direction, alone: float, beside: float) -> float | None:
    """How many times worse ``beside`` is than ``alone``; None where a value of 0 allows no ratio."""
    worse, better = (beside, alone) if direction is Direction.LOWER else (alone, beside)
    return worse / better if better > 0 and worse > 0 else None


def _choose_envelope(envelope: Envelope, options: InterferenceOptions) -> Envelope:
    """The aggressors' envelope: the victim's, on its CPUs or on others. Raises BackendError where there are none."""
    if options.cpus == "same":
        return envelope
    others = sorted(os.sched_getaffinity(0) - set(envelope.cpus))
    if not others:
        raise BackendError(
            "the aggressors are to be on other CPUs than the victim, and the envelope has all of them",
            remedy="give the envelope fewer CPUs, or state cpus = 'same'",
        )
    return msgspec.structs.replace(envelope, cpus=tuple(others[-len(envelope.cpus) :]))
