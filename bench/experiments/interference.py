"""``interference``: a victim alone, next to idle neighbours, and next to neighbours of which some are aggressors.

The victim is measured alone, then next to all its neighbours, of which each number from none to all are at work, and
alone again. The numbers come in an order that is balanced over the blocks, and each is compared with the same live
victim alone at that moment, between its readings before and after: what differs from boot to boot and what changes
with the time in an instance is no effect of the neighbours. That none of them is at work is a sham: it differs from
alone by what idle neighbours cost. Each block has a fresh victim. An aggressor is stress-ng in an instance of its own,
bounded in time.

``iteration`` of each sample is the number of aggressors; 0 is the victim alone. The victim's own metrics are kept under
``interference.value.NAME``, one sample a repetition, and compared with the victim alone under
``interference.ratio.NAME``, one sample a number of aggressors; of the sham under ``interference.sham.NAME``, where it
is the number of idle neighbours.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tare.bench.catalogue import RATIO_PREFIX, SHAM_PREFIX, TRAITS, VALUE_PREFIX, Builtin
from tare.bench.errors import BackendError, WorkloadError
from tare.bench.experiments.work import Background, Work, difference, prime_work, total
from tare.bench.interfaces import Experiment, Instance, InstanceRun, Workload
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


def sham_of(metric: Metric) -> Metric:
    """As ``ratio_of``, next to as many neighbours that do nothing."""
    return lower(
        f"{SHAM_PREFIX}{metric.name}",
        Unit.RATIO,
        f"How many times worse than alone next to idle neighbours (median to median): {metric.description}",
        f"{metric.title}, next to idle neighbours compared with alone" if metric.title else "",
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


_PRIMING_S = 1.0
_SPARE_S = 60.0
"""An aggressor outlives the commands of all repetitions by this much, should nobody stop it."""


class InterferenceOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[experiment.options]`` of ``interference``.

    ``aggressor`` is what they do (a list makes a cell of each), ``aggressors`` how many neighbours there are. ``cpus``:
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
    """Measures a victim alone and next to each number of aggressors. ``iteration`` is their number."""

    name = Builtin.INTERFERENCE
    traits = TRAITS[name]
    summary = "how much worse a workload gets next to aggressors in other instances"
    needs_workload = True
    metrics = (AGGRESSOR_CPU,)
    Options = InterferenceOptions

    @classmethod
    def metrics_with(cls, workload: type[Workload] | None) -> tuple[Metric, ...]:
        victim = (DURATION, *(() if workload is None else workload.metrics))
        return (AGGRESSOR_CPU, *map(value_of, victim), *map(ratio_of, victim), *map(sham_of, victim))

    def prime(self, run: InstanceRun) -> None:
        if run.workload is None:
            return
        prime_work(run, run.workload)
        with run.start() as instance:
            argv = aggressor_argv(run.options.aggressor, run.envelope, _PRIMING_S)
            run.execute(instance, Command(argv, cwd=SCRATCH), "prime")

    def run(self, run: InstanceRun) -> None:
        if run.workload is None:
            raise WorkloadError("interference was planned without a workload")
        _Victim(run, run.workload).run()


class Reading(msgspec.Struct, frozen=True):
    """The victim's metrics by name, each a median over repetitions, and the middle of the time that they took."""

    at_s: float
    values: Mapping[str, float]


class _Victim:
    def __init__(self, run: InstanceRun, workload: Workload) -> None:
        self._run = run
        self._workload = workload
        self._options: InterferenceOptions = run.options
        self._commands = workload.commands(run.params, run.envelope)
        own = () if workload.fixed_time else (DURATION,)
        self._metrics = {metric.name: metric for metric in (*own, *workload.metrics)}

    def run(self) -> None:
        envelope = _choose_envelope(self._run.envelope, self._options)
        argv = aggressor_argv(self._options.aggressor, envelope, self._bound_s())
        beside: dict[int, Reading] = {}
        with self._run.start() as victim:
            work = Work(self._run, self._commands, victim)
            before = self._measure(work, "alone-before", 0)
            with contextlib.ExitStack() as stack:
                starts = (self._run.start(envelope) for _ in range(self._options.aggressors))
                neighbours = [stack.enter_context(start) for start in starts]
                for number in self._run.balanced_order(len(neighbours) + 1):
                    beside[number] = self._measure_beside(work, neighbours[:number], argv)
            after = self._measure(work, "alone-after", 0)
            work.end()
        for number, reading in beside.items():
            self._compare(number, reading, before, after)

    def _measure_beside(self, work: Work, neighbours: list[Instance], argv: tuple[str, ...]) -> Reading:
        """A reading next to neighbours of which these are at work."""
        what, command = f"the aggressor {self._options.aggressor}", Command(argv, cwd=SCRATCH)
        aggressors = [Background(instance, what, "aggressor", command) for instance in neighbours]
        before, began = [instance.usage().cpu_s for instance in neighbours], time.monotonic()
        reading = self._measure(work, f"beside-{len(neighbours)}", len(neighbours) or None)
        after, took = [instance.usage().cpu_s for instance in neighbours], time.monotonic() - began
        for one in aggressors:
            if not one.is_alive():
                raise WorkloadError(
                    f"{one.what} ended while the victim was measured",
                    remedy="give the envelope more memory, pids or scratch, or let the victim's command take less time",
                    evidence=one.said(),
                )
        for one in aggressors:
            one.stop()
        used = total(map(difference, before, after))
        if neighbours and used is not None:
            self._run.record(AGGRESSOR_CPU, used / took, iteration=len(neighbours))
        return reading

    def _compare(self, number: int, reading: Reading, before: Reading, after: Reading) -> None:
        """Record how much worse a reading is than the victim alone at that time."""
        for name in reading.values.keys() & before.values.keys() & after.values.keys():
            metric = self._metrics[name]
            ratio = degradation(metric.direction, _between(before, after, name, reading.at_s), reading.values[name])
            if number:
                self._run.record(ratio_of(metric), ratio, iteration=number)
            else:
                self._run.record(sham_of(metric), ratio, iteration=self._options.aggressors)

    def _measure(self, work: Work, role: str, number: int | None) -> Reading:
        """The victim without warm-ups; its values are recorded under ``number``, or not at all."""
        values: dict[str, list[float]] = {}
        times: list[float] = []
        for repetition in range(self._run.iterations):
            warmup = self._run.is_warmup(repetition)
            completed, raw = work.measure(f"warmup-{role}" if warmup else role)
            if warmup:
                continue
            times += [completed.started_s, completed.ended_s]
            read = {DURATION.name: completed.duration_s}
            read |= {one.metric: one.value for one in self._workload.parse(completed)}
            for name, value in read.items():
                if name in self._metrics:
                    values.setdefault(name, []).append(value)
                    if number is not None:
                        self._run.record(value_of(self._metrics[name]), value, iteration=number, raw=raw)
        return Reading(statistics.fmean(times), {name: statistics.median(own) for name, own in values.items()})

    def _bound_s(self) -> float:
        if self._options.bound is not None:
            return self._options.bound
        return self._run.iterations * self._commands.measured.timeout_s + _SPARE_S


def _between(before: Reading, after: Reading, name: str, at_s: float) -> float:
    """What the metric of the victim alone would have been at a time between two readings, on a straight line."""
    share = (at_s - before.at_s) / (after.at_s - before.at_s) if after.at_s > before.at_s else 0.5
    return before.values[name] + share * (after.values[name] - before.values[name])


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
