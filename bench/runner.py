"""Executes a plan: one fresh instance after another, everything kept, no failure in one cell stopping the rest."""

import contextlib
import itertools
import math
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tare.bench.catalogue import NoteCode
from tare.bench.design import balanced_order
from tare.bench.disturbance import DisturbanceMeter
from tare.bench.errors import BackendError, StoreError, TareError, WorkloadError, lack_of_descriptors
from tare.bench.interfaces import Backend, Instance, Workload
from tare.bench.interrupts import check
from tare.bench.limits_met import add_usage, have_failed, raise_if_failed
from tare.bench.model import KEPT_BYTES, Command, Completed, Envelope, Histogram, Image, InstanceSpec, Metric
from tare.bench.readable import readable
from tare.bench.records import Event, EventKind, HistogramRecord, PlannedInstance, Sample
from tare.bench.store import RunStore
from tare.bench.suite import Scenario, Suite
from tare.bench.units import format_size

CLOCK_TOLERANCE = 0.05
"""A guest's own duration may differ from the host's by this share, or by CLOCK_TOLERANCE_S, before it is flagged."""
CLOCK_TOLERANCE_S = 0.1


class Display(Protocol):
    """What a person is told of a run."""

    def step(self, text: str) -> None:
        """Say what is being done before or after the measuring."""

    def begin(self, suite: Suite, plan: Sequence[PlannedInstance], labels: Mapping[str, str]) -> None:
        """Begin showing a plan."""

    def extend(self, plan: Sequence[PlannedInstance], standing: str) -> None:
        """Show that a block follows that was not planned, and how the run stands."""

    def instance_started(self, planned: PlannedInstance, position: int, total: int) -> None:
        """The instance at ``position`` (from 1) of ``total`` begins."""

    def instance_ended(self, planned: PlannedInstance, failure: str | None, seconds: float) -> None:
        """It ended, with the reason if it failed."""

    def finished(self) -> None:
        """The measuring is over."""


class Listener(Protocol):
    """Takes note of what a run measures and how long that takes; what decides on further blocks is one."""

    def add(self, sample: Sample) -> None:
        """A sample is in the store."""

    def ended(self, cell: str, seconds: float, *, failed: bool) -> None:
        """An instance of a cell ended."""


class Outcome(msgspec.Struct, frozen=True):
    """How a run ended: instances measured and failed, and whether it was interrupted."""

    done: int
    failed: int
    interrupted: bool


class Runner:
    """Runs planned instances one after another and writes what comes out of them to the store."""

    def __init__(
        self,
        suite: Suite,
        image: Image,
        backends: Mapping[str, Backend],
        store: RunStore,
        display: Display,
        *,
        identity: str,
        unavailable: Mapping[str, str],
        listener: Listener | None = None,
        images: Mapping[str, Image] = {},
    ) -> None:
        """``backends`` are prepared, by name in the suite; ``unavailable`` has the reason for those not here.

        ``images`` has those of backends that have one of their own.

        ``identity`` is unique to this process on this host, so that instances of two runs never share a name.
        """
        self.suite = suite
        self.image = image
        self.images = images
        self.backends = backends
        self.store = store
        self.display = display
        self.identity = identity
        self.unavailable = unavailable
        self.listener = listener
        self._scenarios = {scenario.key: scenario for scenario in suite.scenarios}

    def run(self, plan: Sequence[PlannedInstance], attempts: Mapping[str, int], *, before: int = 0) -> Outcome:
        """Run what is planned. ``attempts`` says how often an instance was begun before, in a run that is resumed.

        ``before`` instances were run in this session already, of another plan.

        A KeyboardInterrupt ends the run after the live instance was stopped; everything measured is kept.
        """
        done = failed = 0
        for position, planned in enumerate(plan, start=before + 1):
            self.display.instance_started(planned, position, before + len(plan))
            started = time.monotonic()
            try:
                check()
                failure = self._run_instance(planned, attempts.get(planned.identifier, 0) + 1)
            except KeyboardInterrupt:
                self.store.sync()
                return Outcome(done, failed, interrupted=True)
            seconds = time.monotonic() - started
            done += failure is None
            failed += failure is not None
            if self.listener is not None:
                self.listener.ended(planned.cell.key, seconds, failed=failure is not None)
            self.display.instance_ended(planned, failure, seconds)
        return Outcome(done, failed, interrupted=False)

    def _run_instance(self, planned: PlannedInstance, attempt: int) -> str | None:
        """Run one instance; returns the reason if it failed."""
        name = planned.identifier if attempt == 1 else f"{planned.identifier}~{attempt}"
        cell = planned.cell
        self._event(EventKind.INSTANCE_STARTED, name, planned)
        meter = DisturbanceMeter(self.suite.envelope.cpus)
        usage: dict[str, float] = {}
        failure: str | None = None
        details: dict[str, Any] = {}
        try:
            if cell.backend not in self.backends:
                raise BackendError(f"not available: {self.unavailable[cell.backend]}")  # noqa: TRY301 - as any failure
            scenario = self._scenarios[cell.subject]
            scenario.experiment().run(_LiveRun(self, planned, name, scenario, meter, usage))
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - a defect of a plug-in fails its cell, not the run
            failure, details = _failure_of(error)
        kind = EventKind.INSTANCE_DONE if failure is None else EventKind.INSTANCE_FAILED
        details |= {"disturbance": meter.result(), "usage": usage}
        self._event(kind, name, planned, failure or "", details)
        self.store.sync()
        return failure

    def _event(
        self,
        kind: EventKind,
        instance: str,
        planned: PlannedInstance,
        message: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.store.add_event(make_event(kind, message, instance=instance, cell=planned.cell.key, details=details))


class _LiveRun:
    """What an experiment gets for one planned instance (``tare.bench.interfaces.InstanceRun``)."""

    def __init__(
        self,
        runner: Runner,
        planned: PlannedInstance,
        name: str,
        scenario: Scenario,
        meter: DisturbanceMeter,
        usage: dict[str, float],
    ) -> None:
        """``usage`` is added to: over the instances of the cell, what stands in the event that ends it."""
        self._runner = runner
        self._planned = planned
        self._name = name
        self._meter = meter
        self._usage = usage
        self._backend = runner.backends[planned.cell.backend]
        self._experiment = scenario.experiment
        self._warmup = scenario.sampling.warmup
        self._instances = scenario.sampling.instances
        self._commands = 0
        self._starts = itertools.count(1)
        cell = planned.cell
        self._of: dict[str, Any] = {"instance": name, "block": planned.block, "backend": cell.backend}
        self._of |= {"experiment": cell.experiment, "workload": cell.workload, "params": cell.params}
        self.image = runner.image
        self.workload: Workload | None = scenario.workload() if scenario.workload else None
        self.params = scenario.params
        self.options = scenario.options
        self.envelope: Envelope = runner.suite.envelope
        self._given = self.envelope
        self.iterations = scenario.sampling.warmup + scenario.sampling.iterations
        self.concurrent_starts = self._backend.concurrent_starts

    def is_warmup(self, iteration: int) -> bool:
        return self._experiment.needs_workload and iteration < self._warmup

    @contextlib.contextmanager
    def start(self, envelope: Envelope | None = None) -> Iterator[Instance]:
        started = next(self._starts)
        spec = self._spec("" if started == 1 else f"-{started}", envelope)
        self._given = spec.envelope
        with self._backend.start(spec) as instance:
            try:
                yield instance
            finally:
                usage = None
                # Whatever is wrong with it, a failing instance must fail with its own reason.
                with contextlib.suppress(Exception):
                    usage = instance.usage()
                self._meter.instance_ends(usage)
                add_usage(self._usage, usage)

    def expect_starts(self, at_once: int) -> None:
        self._backend.expect_starts(at_once)

    def balanced_order(self, count: int) -> tuple[int, ...]:
        planned, seed = self._planned, self._runner.suite.seed
        row = planned.block * self._instances + planned.index
        return balanced_order(count, row, f"{seed}/{planned.cell.subject}/within")

    def start_host_side(self) -> AbstractContextManager[Instance]:
        return self._backend.host_side(self._spec(f"-h{next(self._starts)}", None))

    def _spec(self, suffix: str, envelope: Envelope | None) -> InstanceSpec:
        identifier = f"tare-{self._runner.identity}-{self._name.replace('~', 'r')}{suffix}"
        image = self._runner.images.get(self._planned.cell.backend, self._runner.image)
        return InstanceSpec(identifier, image, self.envelope if envelope is None else envelope)

    def execute(self, instance: Instance, command: Command, role: str) -> tuple[Completed, str]:
        completed = instance.execute(command)
        return completed, self.keep(command, completed, role)

    def keep(self, command: Command, completed: Completed, role: str) -> str:
        self._commands += 1
        raw = self._runner.store.add_raw(self._name, f"{self._commands:03d}-{role}", completed)
        kept = ("argv", "returncode", "signal", "duration_s", "guest_duration_s")
        details = {"role": role, **{name: getattr(completed, name) for name in kept}, "raw": raw}
        self._runner._event(EventKind.COMMAND, self._name, self._planned, details=details)  # noqa: SLF001 - its own part
        for stream, whole in completed.whole.items():
            size = whole.seek(0, os.SEEK_END)
            said = f"{command.argv[0]} printed {format_size(size)} to {stream}"
            message = f"{said}; only the last {format_size(KEPT_BYTES)} were parsed, all of it is in {raw}"
            self.note(NoteCode.LONG_OUTPUT, message, {"stream": stream, "bytes": size, "raw": raw})
        known = self.workload.diagnose(completed) if self.workload is not None and have_failed(completed) else None
        raise_if_failed(command, completed, self._given, known)
        self._check_clock(completed, raw)
        return raw

    def note(self, code: str, message: str, details: Mapping[str, Any]) -> None:
        details = {"code": code, **details}
        self._runner._event(EventKind.NOTE, self._name, self._planned, message, details)  # noqa: SLF001 - its own part

    def record(self, metric: Metric, value: float | None, *, iteration: int | None = None, raw: str = "") -> None:
        if value is None:
            return
        if not math.isfinite(value):
            raise WorkloadError(f"{metric.name} is {value}, which is not a number that can be compared")
        sample = Sample(
            **self._of,
            metric=metric.name,
            unit=metric.unit,
            value=float(value),
            iteration=iteration or 0,
            warmup=iteration is not None and self._experiment.traits.warms_up and self.is_warmup(iteration),
            raw=raw,
            host=self._runner.store.manifest.fingerprint.digest,
        )
        self._runner.store.add_sample(sample)
        if self._runner.listener is not None:
            self._runner.listener.add(sample)

    def record_histogram(self, histogram: Histogram, *, iteration: int, raw: str) -> None:
        warmup = self.is_warmup(iteration)
        record = HistogramRecord(**self._of, iteration=iteration, warmup=warmup, histogram=histogram, raw=raw)
        self._runner.store.add_histogram(record)

    def _check_clock(self, completed: Completed, raw: str) -> None:
        """The guest's clock against the host's: a difference means that one of them cannot be believed."""
        guest, host = completed.guest_duration_s, completed.duration_s
        allowed = max(CLOCK_TOLERANCE * host, CLOCK_TOLERANCE_S)
        if guest is not None and abs(guest - host) > allowed:
            took = f"took {host:.3f} s by the host's clock and {guest:.3f} s by the guest's"
            message = f"clocks disagree: {completed.argv[0]} {took}"
            self.note(NoteCode.CLOCK, message, {"host_s": host, "guest_s": guest, "allowed_s": allowed, "raw": raw})


_OWN = tuple(Path(__file__).resolve().parents[1] / name for name in ("bench", "backends", "workloads"))


def _failure_of(raised: Exception) -> tuple[str, dict[str, Any]]:
    """The reason of a failure, and the details of its event."""
    if not isinstance(raised, (TareError, OSError)):
        evidence = readable(traceback.format_exc())
        place = traceback.extract_tb(raised.__traceback__)[-1]
        message = f"{type(raised).__name__}: {raised} ({place.filename}:{place.lineno})"
        raised_in = Path(place.filename).resolve()
        owner = "tare" if any(raised_in.is_relative_to(folder) for folder in _OWN) else "that plug-in or library"
        remedy = f"tell the authors of {owner}; the event has the whole traceback"
        return readable(message), {"evidence": evidence, "remedy": remedy, "kind": "bug"}
    error = lack_of_descriptors(raised) or raised
    if not isinstance(error, TareError):
        error = TareError(f"{type(error).__name__}: {error}")
    return error.message, {"evidence": error.evidence, "remedy": error.remedy, "kind": type(raised).__name__}


def make_event(
    kind: EventKind, message: str = "", *, instance: str = "", cell: str = "", details: Mapping[str, Any] | None = None
) -> Event:
    """An event that happens now."""
    utc = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Event(kind, time.monotonic(), utc, instance, cell, message, details or {})
