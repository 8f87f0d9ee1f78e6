"""What an experiment is, and what the runner gives it for one instance."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import msgspec

from tare.bench.interfaces import Instance, NoOptions, Workload
from tare.bench.model import (
    Command,
    Commands,
    Completed,
    Direction,
    Envelope,
    Histogram,
    Metric,
    Phase,
    StartTimeline,
)
from tare.bench.network_path import ServerPlace
from tare.bench.units import Unit


class InstanceRun(Protocol):
    """One planned instance, as the runner offers it to an experiment.

    ``iterations`` counts the warm-ups too; ``is_warmup`` tells them apart. ``options`` is a value of the
    experiment's ``Options``. ``concurrent_starts`` is that of the cell's backend.
    """

    workload: Workload | None
    params: Any
    options: Any
    envelope: Envelope
    iterations: int
    concurrent_starts: int

    def is_warmup(self, iteration: int) -> bool:
        """Whether this iteration is a warm-up: kept, flagged, left out of estimates."""

    def start(self, envelope: Envelope | None = None) -> AbstractContextManager[Instance]:
        """Start an instance, in ``envelope`` where it is not the suite's. Leaving the context stops it.

        May be called again while earlier ones live, and entered from ``concurrent_starts`` threads at a time; all
        that enter together have one envelope, and one thread leaves them.
        """

    def expect_starts(self, at_once: int) -> None:
        """See ``Backend.expect_starts``."""

    def start_host_side(self) -> AbstractContextManager[Instance]:
        """The host's side of the cell's backend (``Backend.host_side``); what it costs is not counted.

        Raises UnsupportedError where the backend has none.
        """

    def execute(self, instance: Instance, command: Command, role: str) -> tuple[Completed, str]:
        """Run a command, keep its whole output, and return how it ended with the name of the kept output.

        Raises WorkloadError if it failed or timed out.
        """

    def keep(self, command: Command, completed: Completed, role: str) -> str:
        """Keep what ``Instance.execute`` returned elsewhere, as ``execute`` does; returns the name of the output.

        Raises WorkloadError if it failed or timed out. For one thread, whichever ran the command.
        """

    def note(self, code: str, message: str, details: Mapping[str, Any]) -> None:
        """Keep an observation that is no number, as an event. ``code`` is stable: what it is about."""

    def record(self, metric: Metric, value: float, *, iteration: int | None = None, raw: str = "") -> None:
        """Keep a value of a metric, of one iteration or (None) of the instance as a whole.

        Raises WorkloadError if it is not a finite number.
        """

    def record_histogram(self, histogram: Histogram, *, iteration: int, raw: str) -> None:
        """Keep a distribution that the tool reported in one iteration."""


class Experiment(ABC):
    """A procedure that turns one fresh instance into samples.

    ``metrics`` are the metrics that the experiment itself measures, beside the workload's. Where ``needs_workload``
    is False, ``takes_workload`` says whether it can do with one. ``warms_up`` is False where the iteration numbers of
    samples count something else than iterations. ``Options`` is what a suite can choose about it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_workload: ClassVar[bool]
    takes_workload: ClassVar[bool] = False
    warms_up: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]]
    Options: ClassVar[type[msgspec.Struct]] = NoOptions

    @classmethod
    def metrics_with(cls, workload: type[Workload] | None) -> tuple[Metric, ...]:  # noqa: ARG003 - few depend on it
        """``metrics``, and those that follow from the workload's."""
        return cls.metrics

    @classmethod
    def check(cls, options: Any, commands: Commands) -> None:
        """Called when the suite is read: raises ValueError, with the option's name, for what does not fit."""
        del options, commands

    @classmethod
    def server_place(cls, options: Any) -> ServerPlace:
        """Where a workload's services are to run."""
        del options
        return ServerPlace.SAME_INSTANCE

    @abstractmethod
    def run(self, run: InstanceRun) -> None:
        """Start the instance, measure, stop it. Raises BackendError or WorkloadError if it could not."""


def lower(name: str, unit: Unit, description: str) -> Metric:
    """A metric of which less is better."""
    return Metric(name, unit, Direction.LOWER, description)


def record_span(run: InstanceRun, metric: Metric, timeline: StartTimeline, first: Phase, second: Phase) -> None:
    """Record the time between two marks, if both were reached."""
    seconds = timeline.between(first, second)
    if seconds is not None:
        run.record(metric, seconds)


def record_known(run: InstanceRun, metric: Metric, value: float | None, *, iteration: int | None = None) -> None:
    """Record a value that the host may not be able to tell; None is left out, the reason stands in the confounds."""
    if value is not None:
        run.record(metric, value, iteration=iteration)
