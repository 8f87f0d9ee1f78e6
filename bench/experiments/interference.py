"""``interference``: a victim alone, and the same victim beside more and more aggressors in other instances.

Each number of aggressors is compared with the same live victim alone, minutes before: what differs from boot to boot
and from hour to hour is on both sides. Each block has a fresh victim.
"""

import contextlib
import os
import statistics
import time
from typing import Literal

import msgspec

from tare.bench.errors import BackendError, WorkloadError
from tare.bench.experiments import interference_metrics as metrics
from tare.bench.experiments.base import Experiment, InstanceRun
from tare.bench.experiments.interference_aggressors import KINDS, Aggressor
from tare.bench.experiments.work import Work
from tare.bench.interfaces import Workload
from tare.bench.model import Direction, Envelope, Metric
from tare.bench.units import parse_duration

MOST = 64
_SPARE_S = 60.0
"""An aggressor outlives the commands of all repetitions by this much, should nobody stop it."""


class InterferenceOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[experiment.options]`` of ``interference``.

    ``aggressor`` is what they do (a list makes a cell of each), ``aggressors`` how many there are at last. ``cpus``:
    ``same`` puts them on the victim's own CPUs, ``other`` on those that tare has for itself. ``bound`` ends an
    aggressor that nobody stops; without it, it is what the victim's own time limits add up to.
    """

    aggressor: str = "cpu"
    aggressors: int = 1
    cpus: Literal["same", "other"] = "same"
    bound: str = ""

    def __post_init__(self) -> None:
        if self.aggressor not in KINDS:
            raise ValueError(f"aggressor: there is no {self.aggressor!r}; there are: {', '.join(KINDS)}")
        if not 1 <= self.aggressors <= MOST:
            raise ValueError(f"aggressors: must be from 1 to {MOST}, not {self.aggressors}")
        if self.bound:
            parse_duration(self.bound)


class Interference(Experiment):
    """Measures a victim beside 0, 1, 2, … aggressors. ``iteration`` is their number."""

    name = "interference"
    summary = "how much worse a workload gets beside aggressors in other instances"
    needs_workload = True
    warms_up = False
    metrics = (metrics.AGGRESSOR_CPU,)
    Options = InterferenceOptions

    @classmethod
    def metrics_with(cls, workload: type[Workload] | None) -> tuple[Metric, ...]:
        """The victim's metrics, as values and as ratios."""
        return metrics.metrics_of(() if workload is None else workload.metrics)

    def run(self, run: InstanceRun) -> None:
        """One victim, alone and beside each number of aggressors."""
        if run.workload is None:
            raise WorkloadError("interference was planned without a workload")
        _Victim(run, run.workload).run()


class _Victim:
    def __init__(self, run: InstanceRun, workload: Workload) -> None:
        self._run = run
        self._workload = workload
        self._options: InterferenceOptions = run.options
        self._commands = workload.commands(run.params, run.envelope)
        own = () if workload.fixed_time else (metrics.DURATION,)
        self._metrics = {metric.name: metric for metric in (*own, *workload.metrics)}
        self._alone: dict[str, float] = {}

    def run(self) -> None:
        envelope = _choose_envelope(self._run.envelope, self._options)
        with self._run.start() as victim, contextlib.ExitStack() as stack:
            work = Work(self._run, self._commands, victim)
            self._alone = self._measure(work, 0)
            aggressors: list[Aggressor] = []
            for _ in range(self._options.aggressors):
                instance = stack.enter_context(self._run.start(envelope))
                aggressors.append(Aggressor(instance, self._options.aggressor, envelope, self._bound_s()))
                self._measure_beside(work, aggressors)
            work.end()

    def _measure_beside(self, work: Work, aggressors: list[Aggressor]) -> None:
        before, began = [one.cpu_s() for one in aggressors], time.monotonic()
        beside = self._measure(work, len(aggressors))
        after, took = [one.cpu_s() for one in aggressors], time.monotonic() - began
        for one in aggressors:
            one.check()
        for name, value in beside.items():
            ratio = degradation(self._metrics[name].direction, self._alone.get(name, 0.0), value)
            if ratio is not None:
                self._run.record(metrics.ratio_of(self._metrics[name]), ratio, iteration=len(aggressors))
        used = [
            last - first for first, last in zip(before, after, strict=True) if first is not None and last is not None
        ]
        if len(used) == len(aggressors):
            self._run.record(metrics.AGGRESSOR_CPU, sum(used) / took, iteration=len(aggressors))

    def _measure(self, work: Work, number: int) -> dict[str, float]:
        """The medians of the victim's metrics beside ``number`` aggressors; warm-ups of each number are left out."""
        values: dict[str, list[float]] = {}
        for repetition in range(self._run.iterations):
            warmup = self._run.is_warmup(repetition)
            role = f"{'warmup-' if warmup else ''}beside-{number}"
            completed, raw = work.measure(role)
            if warmup:
                continue
            read = {metrics.DURATION.name: completed.duration_s}
            read |= {one.metric: one.value for one in self._workload.parse(completed)}
            for name, value in read.items():
                if name in self._metrics:
                    values.setdefault(name, []).append(value)
                    self._run.record(metrics.value_of(self._metrics[name]), value, iteration=number, raw=raw)
        return {name: statistics.median(own) for name, own in values.items()}

    def _bound_s(self) -> float:
        if self._options.bound:
            return parse_duration(self._options.bound)
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
