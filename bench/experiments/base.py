"""What an experiment is, and what the runner gives it for one instance."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

from bench.interfaces import Instance, Workload
from bench.model import Command, Completed, Direction, Envelope, Metric, Phase, StartTimeline
from bench.units import Unit


class InstanceRun(Protocol):
    """One planned instance, as the runner offers it to an experiment.

    ``iterations`` counts the warm-ups too; ``is_warmup`` tells them apart.
    """

    workload: Workload | None
    params: Any
    envelope: Envelope
    iterations: int

    def is_warmup(self, iteration: int) -> bool:
        """Whether this iteration is a warm-up: kept, flagged, left out of estimates."""

    def start(self) -> AbstractContextManager[Instance]:
        """Start the instance. Leaving the context stops it."""

    def execute(self, instance: Instance, command: Command, role: str) -> tuple[Completed, str]:
        """Run a command, keep its whole output, and return how it ended with the name of the kept output.

        Raises WorkloadError if it failed or timed out.
        """

    def record(self, metric: Metric, value: float, *, iteration: int | None = None, raw: str = "") -> None:
        """Keep a value of a metric, of one iteration or (None) of the instance as a whole.

        Raises WorkloadError if it is not a finite number.
        """


class Experiment(ABC):
    """A procedure that turns one fresh instance into samples.

    ``metrics`` are the metrics that the experiment itself measures, beside the workload's.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_workload: ClassVar[bool]
    metrics: ClassVar[tuple[Metric, ...]]

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


def record_known(run: InstanceRun, metric: Metric, value: float | None) -> None:
    """Record a value that the host may not be able to tell; None is left out, the reason stands in the confounds."""
    if value is not None:
        run.record(metric, value)
