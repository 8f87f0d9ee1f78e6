"""Primes a run: what its instances will use is used once on each backend before the first measured block.

Whoever reads the image, starts a hypervisor or runs a program first on a host pays for all who come later: pages and
inodes are read from the disk and charged to the first instance, and its first command takes twice as long. So each
backend starts an instance, and each workload runs once in it, unmeasured. What the instances of priming record is not
kept; an event for each backend says what was primed.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from tare.bench.catalogue import NoteCode
from tare.bench.errors import StoreError, TareError
from tare.bench.interfaces import Backend, Experiment, Instance, Workload
from tare.bench.interrupts import check
from tare.bench.limits_met import raise_if_failed
from tare.bench.model import Command, Completed, Envelope, Histogram, Image, InstanceSpec, Metric
from tare.bench.readable import readable
from tare.bench.records import EventKind
from tare.bench.runner import make_event
from tare.bench.store import RunStore
from tare.bench.suite import Scenario, Suite


class Primed(msgspec.Struct, frozen=True):
    """How a backend was primed: by how many instances, in which time, with which scenarios (by their keys).

    ``failed`` has the reason by key. Where no instance could be started, the rest was not tried.
    """

    backend: str
    instances: int
    seconds: float
    scenarios: tuple[str, ...]
    failed: Mapping[str, str]


def prime(
    suite: Suite,
    image: Image,
    backends: Mapping[str, Backend],
    store: RunStore,
    say: Callable[[str], None],
    name: str,
    images: Mapping[str, Image] = {},
) -> None:
    """Prime each of the prepared ``backends``. ``name`` is unique to this process on this host.

    ``images`` has those of backends that have one of their own.

    What fails is kept in the backend's event: its measured instances will fail with the same reason, or not.
    """
    if not suite.sampling.prime:
        return
    scenarios = choose_scenarios(suite)
    for place, (backend, maker) in enumerate(backends.items()):
        say(f"priming {backend}: each workload once, unmeasured")
        specs = _specs(f"tare-{name}-p{place}", images.get(backend, image), suite.envelope)
        with contextlib.ExitStack() as stack:
            primer = _Primer(maker, specs, stack)
            found = primer.prime(backend, scenarios, image, suite.envelope)
        text = f"{backend} was primed in {found.seconds:.1f} s by {found.instances} instances that were not measured"
        problems = "; ".join(f"{key}: {why}" for key, why in found.failed.items())
        details = {"code": NoteCode.PRIMED, **msgspec.to_builtins(found)}
        store.add_event(
            make_event(EventKind.NOTE, readable(f"{text}; failed: {problems}" if problems else text), details=details)
        )


def choose_scenarios(suite: Suite) -> list[Scenario]:
    """One scenario, the shortest, of each experiment with each of its workloads."""
    chosen: dict[tuple[type[Experiment], type[Workload] | None], Scenario] = {}
    for scenario in suite.scenarios:
        kind = scenario.experiment, scenario.workload
        known = chosen.get(kind)
        if known is None or _duration_s(scenario) < _duration_s(known):
            chosen[kind] = scenario
    return list(chosen.values())


def _duration_s(scenario: Scenario) -> float:
    return 0.0 if scenario.workload is None else scenario.workload.duration_s(scenario.params)


def _specs(name: str, image: Image, envelope: Envelope) -> Iterator[InstanceSpec]:
    number = 0
    while True:
        yield InstanceSpec(f"{name}i{number:02d}", image, envelope)
        number += 1


class _Primer:
    """Runs scenarios on one backend, one after another in one instance as long as that is of use."""

    def __init__(self, backend: Backend, specs: Iterator[InstanceSpec], stack: contextlib.ExitStack) -> None:
        self.backend = backend
        self.started = 0
        self.cannot_start = False
        self._specs = specs
        self._stack = stack
        self._instance: Instance | None = None

    def prime(self, name: str, scenarios: list[Scenario], image: Image, envelope: Envelope) -> Primed:
        began, failed = time.monotonic(), {}
        done = []
        for scenario in scenarios:
            check()
            done.append(scenario.key)
            if reason := self._prime_one(_PrimingRun(self, scenario, image, envelope), scenario):
                failed[scenario.key] = readable(reason)
            if self.cannot_start:
                break
        if reason := self._drop():
            failed[done[-1]] = readable(reason)
        return Primed(name, self.started, round(time.monotonic() - began, 3), tuple(done), failed)

    def _prime_one(self, run: "_PrimingRun", scenario: Scenario) -> str:
        """Why a scenario failed, if it did: in an instance of its own, where it failed in one used before."""
        was_used = self._instance is not None
        reason = self._try(run, scenario)
        return self._try(run, scenario) if reason and was_used else reason

    def _try(self, run: "_PrimingRun", scenario: Scenario) -> str:
        try:
            scenario.experiment().prime(run)
            commands = None if run.workload is None else run.workload.commands(run.params, run.envelope)
            serves = commands is not None and bool(commands.services or commands.image_service)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - a defect of a plug-in is told by its measured instances
            self._drop()
            return error.message if isinstance(error, TareError) else f"{type(error).__name__}: {error}"
        return self._drop() if serves else ""  # services would be in the way of the next

    def _drop(self) -> str:
        """Stop the instance, if one is live; why that failed, if it did."""
        self._instance = None
        try:
            self._stack.close()
        except TareError as error:
            return error.message
        return ""

    def instance(self) -> Instance:
        """The live instance, or a fresh one."""
        if self._instance is None:
            self.cannot_start = True
            self._instance = self._stack.enter_context(self.backend.start(next(self._specs)))
            self.cannot_start = False
            self.started += 1
        return self._instance

    def start_apart(self, envelope: Envelope) -> AbstractContextManager[Instance]:
        """An instance in an envelope of its own."""
        self.started += 1
        return self.backend.start(msgspec.structs.replace(next(self._specs), envelope=envelope))

    def start_host_side(self) -> AbstractContextManager[Instance]:
        return self.backend.host_side(next(self._specs))


class _PrimingRun:
    """What an experiment gets to prime with (``tare.bench.interfaces.InstanceRun``). It keeps nothing."""

    iterations = 1
    concurrent_starts = 1

    def __init__(self, primer: _Primer, scenario: Scenario, image: Image, envelope: Envelope) -> None:
        self._primer = primer
        self.image = image
        self.workload: Workload | None = scenario.workload() if scenario.workload else None
        self.params = scenario.params
        self.options = scenario.options
        self.envelope = envelope

    @contextlib.contextmanager
    def start(self, envelope: Envelope | None = None) -> Iterator[Instance]:
        """The shared instance, which goes on living, or one in an envelope of its own."""
        if envelope is None:
            yield self._primer.instance()
        else:
            with self._primer.start_apart(envelope) as instance:
                yield instance

    def start_host_side(self) -> AbstractContextManager[Instance]:
        return self._primer.start_host_side()

    def execute(self, instance: Instance, command: Command, role: str) -> tuple[Completed, str]:
        completed = instance.execute(command)
        return completed, self.keep(command, completed, role)

    def keep(self, command: Command, completed: Completed, role: str) -> str:
        del role
        raise_if_failed(command, completed, self.envelope)
        return ""

    def is_warmup(self, iteration: int) -> bool:
        del iteration
        return False

    def expect_starts(self, at_once: int) -> None:
        """Nothing: one at a time."""

    def balanced_order(self, count: int) -> tuple[int, ...]:
        return tuple(range(count))

    def note(self, code: str, message: str, details: Mapping[str, Any]) -> None:
        """Nothing is kept."""

    def record(self, metric: Metric, value: float | None, *, iteration: int | None = None, raw: str = "") -> None:
        """Nothing is kept."""

    def record_histogram(self, histogram: Histogram, *, iteration: int, raw: str) -> None:
        """Nothing is kept."""
