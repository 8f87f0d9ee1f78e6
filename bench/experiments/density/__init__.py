"""``density``: starts instances next to one another until a resource or a limit ends it, and reads the host meanwhile.

All of them stay alive until the end, when each has to execute a command. A failure ends the ramp with what it has: the
reason, and the resource that ran out where the error shows it, is a note of the run with the code ``density-stop``.
"""

import contextlib
import math
import time
from typing import Annotated

import msgspec
from msgspec import Meta

from tare.bench.catalogue import TRAITS, Builtin, NoteCode, StopReason
from tare.bench.errors import BackendError, StoreError, TareError, WorkloadError
from tare.bench.experiments.density import metrics
from tare.bench.experiments.density.exhausted import Stop, failed
from tare.bench.experiments.density.load import Load
from tare.bench.experiments.density.neighbours import Neighbours
from tare.bench.experiments.density.population import (
    Alive,
    SampledInstances,
    Settled,
    Stalls,
    Starts,
    default_floor,
    many_files,
    settle,
)
from tare.bench.experiments.interference import KINDS
from tare.bench.experiments.work import prime_work
from tare.bench.interfaces import Experiment, Instance, InstanceRun
from tare.bench.linux.energy import EnergyMeter
from tare.bench.linux.host_memory import HostMemory, read_memory
from tare.bench.model import Command, Commands, Phase
from tare.bench.units import Duration, Size, format_duration, format_size

SLOW_STARTS = 3
"""So many starts in a row have to be above the limit: one alone may be the host's doing."""
IDLE_S = 0.5
"""CPU use is measured over at least this long: a shorter interval may hold little but the end of a start."""
_CHECK = Command(("/bin/true",), timeout_s=60.0)
_TOLD = 5


class DensityOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[experiment.options]`` of ``density``.

    The ramp ends at ``count`` instances, or earlier: when the next would leave less than ``memory_floor`` available
    (if not stated a tenth of the host's memory, at least 1 GiB), when three starts in a row took longer than
    ``start_limit``, when the workload's p99 is above ``objective``, or when something failed.

    With ``search``, the population doubles until the ``objective`` is broken; then the largest that meets it is found
    by bisection, to one instance in twenty, and the ramp ends with it.

    Memory is read after each ``batch`` of starts. ``rate`` is in starts a second (0: one after another).
    ``meters_every`` is how many instances lie between readings of the instances' own meters (0: ``count`` / 20).
    With ``neighbour`` (what aggressors of ``interference`` do) only the first ``services`` instances run the workload;
    all others do that while it is measured, and ``objective`` is about the services.

    ``latency`` and ``throughput`` name metrics of the workload (empty: its first p99 and its first rate).
    ``settle_interval`` and ``settle_deadline`` are for the waiting until memory no longer changes.
    """

    count: Annotated[int, Meta(ge=1, le=100_000)] = 50
    batch: Annotated[int, Meta(ge=1)] = 1
    rate: Annotated[float, Meta(ge=0)] = 0.0
    memory_floor: Size | None = None
    start_limit: Duration | None = None
    objective: Duration | None = None
    search: bool = False
    neighbour: str = ""
    services: Annotated[int, Meta(ge=1, le=1000)] = 1
    latency: str = ""
    throughput: str = ""
    meters_every: Annotated[int, Meta(ge=0)] = 0
    settle_interval: Duration = Duration("1s")
    settle_deadline: Duration = Duration("30s")

    def __post_init__(self) -> None:
        if not math.isfinite(self.rate):
            raise ValueError(f"rate: must be a number of starts a second, not {self.rate}")
        if self.batch > self.count:
            raise ValueError(f"batch: must be from 1 to the count, {self.count}, not {self.batch}")
        if self.search and self.objective is None:
            raise ValueError("search: needs an objective that the population has to meet")
        if self.neighbour and self.neighbour not in KINDS:
            raise ValueError(f"neighbour: there is no {self.neighbour!r}; there are: {', '.join(KINDS)}")
        if self.services > 1 and not self.neighbour:
            raise ValueError("services: without a neighbour all instances run the workload")

    @property
    def every(self) -> int:
        """How many instances lie between two readings of the instances' own meters."""
        return self.meters_every or max(1, self.count // 20)


class Density(Experiment):
    """Ramps the population up, checks it, takes it down."""

    name = Builtin.DENSITY
    traits = TRAITS[name]
    summary = "instances next to one another until a resource runs out, and what each costs the host"
    needs_workload = False
    takes_workload = True
    metrics = metrics.ALL
    Options = DensityOptions

    @classmethod
    def check(cls, options: DensityOptions, commands: Commands | None) -> None:
        for name in ("objective", "neighbour", "latency", "throughput"):
            if commands is None and getattr(options, name):
                raise ValueError(f"{name}: needs a workload, whose metrics it is about")

    def prime(self, run: InstanceRun) -> None:
        if run.workload is None:
            super().prime(run)
        else:
            prime_work(run, run.workload)

    def run(self, run: InstanceRun) -> None:
        """One ramp. Raises BackendError if not a single instance started."""
        with many_files():
            _Ramp(run).run()


class _Ramp:
    def __init__(self, run: InstanceRun) -> None:
        self._run = run
        self._options: DensityOptions = run.options
        self._load = None if run.workload is None else Load(run, run.workload)
        self._neighbours = None
        if self._load is not None and self._options.neighbour:
            self._neighbours = Neighbours(run, self._options.neighbour, self._load.measured)
        self._instances: list[Instance] = []
        self._sampled = SampledInstances()
        self._alive = Alive()
        self._stalls = Stalls()
        self._loaded_s = 0.0
        self._ramp_s = 0.0
        self._slow = 0
        self._first_s = 0.0
        self._stack = contextlib.ExitStack()

    @property
    def _population(self) -> int:
        return len(self._instances)

    def run(self) -> None:
        self._run.expect_starts(min(self._options.batch, self._options.count, self._run.concurrent_starts))
        self._energy = EnergyMeter()
        before = self._settle()
        self._idle_watts = self._energy.watts_since_last()
        self._baseline = before.readings[-1]
        self._began_s = before.readings[0].at_s
        self._floor = self._options.memory_floor or default_floor(self._baseline.total)
        self._keep(before)
        with self._stack, contextlib.closing(self._alive):
            stop = self._climb()
            if not self._instances:
                raise BackendError(
                    f"no instance could be started: {stop.message}", remedy=stop.remedy or None, evidence=stop.evidence
                )
            self._run.record(metrics.RAMP, self._ramp_s)
            self._energy.watts_since_last()  # of the ramp: only what the living take counts
            self._keep(self._settle())
            self._populated_watts = self._energy.watts_since_last()
            self._read_instances()
            self._check(stop)
            stopping = time.monotonic()
            for instance in self._instances:
                instance.end()
        self._run.record(metrics.STOP_ALL, time.monotonic() - stopping)
        self._record_return()

    def _climb(self) -> Stop:
        """Start instances until something says stop."""
        starts = Starts(self._run, self._options.rate, self._alive, self._stack)
        self._first_s = time.monotonic()
        memory = self._baseline
        while self._population < self._options.count:
            before = self._population
            fitting = self._count_fitting(memory)
            if not fitting:
                return self._below_floor(memory)
            try:
                if stop := self._start_some(starts, min(self._step, self._options.count - before, fitting)):
                    return stop
                for instance in self._instances[before:]:
                    instance.await_idle()
                memory = self._read_host()
                if self._is_due(before) and (stop := self._measure()):
                    searches = self._options.search and stop.reason is StopReason.OBJECTIVE and before
                    return self._search(starts, before) if searches else stop
                if stop := self._find_dead():
                    return stop
            except StoreError:
                raise
            except (TareError, OSError) as error:
                return failed(error, self._population)
        return Stop(StopReason.COUNT, f"all {self._options.count} instances were started")

    @property
    def _step(self) -> int:
        """How many to start before the next reading: with a search as many as there are, so that they double."""
        return max(1, self._population) if self._options.search else self._options.batch

    def _search(self, starts: Starts, met: int) -> Stop:
        """The largest population that meets the objective, between the last that did and the first that did not."""
        load, objective, broken = self._load, self._options.objective, self._population
        assert load is not None
        assert objective is not None
        while broken - met > max(1, met // 20):
            middle = (met + broken) // 2
            if stop := self._resize(starts, middle):
                return stop
            worst = self._measure_load(load)
            if worst is None or worst > objective:
                broken = middle
            else:
                met = middle
        if stop := self._resize(starts, met):
            return stop
        return Stop(
            StopReason.OBJECTIVE,
            f"a worst p99 of {format_duration(objective)} is met with {met} instances, and not with {broken}",
            resource="service latency",
        )

    def _resize(self, starts: Starts, population: int) -> Stop | None:
        """End the newest instances, or start more, until ``population`` are alive."""
        assert self._load is not None
        for instance in self._instances[population:]:
            self._alive.discard(instance)
            instance.end()
        del self._instances[population:]
        self._load.keep(min(population, self._services))
        self._sampled.begin_idle(self._instances)
        return self._start_some(starts, population - self._population) if population > self._population else None

    def _each(self, memory: HostMemory) -> float:
        """What an instance takes: as much as those before it, or all that it may while there are none."""
        if not self._population:
            return float(self._run.envelope.memory_bytes)
        return max(1.0, (self._baseline.unused - memory.unused) / self._population)

    def _count_fitting(self, memory: HostMemory) -> int:
        """How many more leave as much memory as is to stay free. The first one is tried wherever that much is free."""
        room = memory.available - self._floor
        first = 1 if room >= 0 and not self._population else 0
        return max(first, int(room / self._each(memory)))

    def _below_floor(self, memory: HostMemory) -> Stop:
        takes = f"an instance takes {format_size(self._each(memory))}, " if self._population else ""
        return Stop(
            StopReason.MEMORY_FLOOR,
            f"{format_size(memory.available)} of memory are available, {takes}and "
            f"{format_size(self._floor)} are to stay free",
            resource="memory",
            remedy="state a lower memory_floor, or add memory to the host",
        )

    def _start_some(self, starts: Starts, number: int) -> Stop | None:
        for group in starts.start(number):
            stops = [self._take(instance) for instance in group]
            if stop := next(filter(None, stops), None):
                return stop
        return None

    def _take(self, instance: Instance) -> Stop | None:
        """Count a new instance in, and keep how its start went."""
        self._instances.append(instance)
        self._ramp_s = time.monotonic() - self._first_s - self._loaded_s
        timeline, number = instance.timeline, self._population
        self._alive.add(instance, number)
        total = timeline.between(Phase.REQUESTED, Phase.READY)
        marks = (Phase.REQUESTED, Phase.CREATED, Phase.FIRST_INSTRUCTION, Phase.READY)
        for metric, first, second in zip(metrics.START_PHASES, marks, marks[1:], strict=False):
            self._run.record(metric, timeline.between(first, second), iteration=number)
        self._run.record(metrics.START, total, iteration=number)
        if self._load is not None and number <= self._services:
            self._load.begin(instance)
        return self._too_slow(total)

    def _find_dead(self) -> Stop | None:
        """Whether one has ended by itself, and why, as far as its backend knows."""
        number = self._alive.find_gone()
        if number is None:
            return None
        what = f"instance {number} of {self._population} died"
        try:
            self._instances[number - 1].execute(_CHECK)
        except (BackendError, WorkloadError) as error:
            return Stop(StopReason.DIED, f"{what}: {error.message}", remedy=error.remedy or "", evidence=error.evidence)
        return Stop(StopReason.DIED, what)

    def _too_slow(self, start_s: float | None) -> Stop | None:
        limit = self._options.start_limit
        if limit is None or start_s is None:
            return None
        self._slow = self._slow + 1 if start_s > limit else 0
        if self._slow < SLOW_STARTS:
            return None
        return Stop(
            StopReason.START_LIMIT,
            f"{SLOW_STARTS} starts in a row took longer than {format_duration(limit)}, the last "
            f"{format_duration(start_s)}",
            resource="start latency",
        )

    def _is_due(self, before: int) -> bool:
        every = self._options.every
        return self._options.search or not before or before // every < self._population // every

    def _measure(self) -> Stop | None:
        """The meters of the instances themselves, and the workload in all of them."""
        if stop := self._read_instances():
            return stop
        if self._load is None:
            return None
        began = time.monotonic()
        worst = self._measure_load(self._load)
        self._sampled.begin_idle(self._instances)
        self._loaded_s += time.monotonic() - began
        objective = self._options.objective
        if objective is None or worst is None or worst <= objective:
            return None
        return Stop(
            StopReason.OBJECTIVE,
            f"the worst p99 was {format_duration(worst)}, the objective is {format_duration(objective)}",
            resource="service latency",
        )

    @property
    def _services(self) -> int:
        """How many instances may run the workload."""
        return self._options.services if self._neighbours is not None else self._options.count

    def _measure_load(self, load: Load) -> float | None:
        """The workload in the services, next to neighbours that are at work if there are any."""
        if self._neighbours is None:
            return load.measure(self._instances)
        services, others = self._instances[: self._services], self._instances[self._services :]
        with self._neighbours.at_work(others):
            return load.measure(services, len(others))

    def _read_host(self) -> HostMemory:
        """What is cheap to read, and so read at every step."""
        memory = read_memory()
        self._record_memory(memory)
        stalls = self._stalls.since_last()
        for metric, resource in metrics.STALLS.items():
            self._run.record(metric, stalls.get(resource), iteration=self._population)
        return memory

    def _record_memory(self, memory: HostMemory) -> None:
        self._run.record(metrics.AT, memory.at_s - self._began_s, iteration=self._population)
        for metric, field in metrics.HOST.items():
            self._run.record(metric, getattr(memory, field), iteration=self._population)

    def _read_instances(self) -> Stop | None:
        """PSS and the like of those sampled, scaled to all."""
        number = self._population
        idle = self._sampled.idle_cpus(self._instances, IDLE_S)
        self._run.record(metrics.IDLE_CPU, None if idle is None else idle * number, iteration=number)
        read = self._sampled.footprints(self._instances)
        self._run.record(metrics.SAMPLED, len(read), iteration=number)
        for metric, field in metrics.TOTALS.items():
            values = [value for _, footprint in read if (value := getattr(footprint, field)) is not None]
            if values:
                self._run.record(metric, sum(values) / len(values) * number, iteration=number)
        self._run.record(
            metrics.DISK_SHARED, max(footprint.disk_shared_bytes for _, footprint in read), iteration=number
        )
        self._record_engine()
        dead = [place + 1 for place, footprint in read if footprint.processes == 0]
        if not dead:
            return None
        return Stop(StopReason.DIED, f"instance {dead[0]} of {number} died: it has no process left")

    def _record_engine(self) -> None:
        """What the engine that made them holds: its helpers, scaled to all, and its daemon."""
        number = self._population
        shares = self._sampled.engine_shares(self._instances)
        helpers = [share.memory_bytes for share in shares if share.memory_bytes is not None]
        daemons = [share.daemon_memory_bytes for share in shares if share.daemon_memory_bytes is not None]
        if helpers:
            self._run.record(metrics.MEMORY_ENGINE, sum(helpers) / len(helpers) * number, iteration=number)
        if daemons:
            self._run.record(metrics.MEMORY_DAEMON, max(daemons), iteration=number)

    def _settle(self) -> Settled:
        settled = settle(self._options.settle_interval, self._options.settle_deadline)
        if not settled.steady:
            self._run.note(
                NoteCode.DENSITY_UNSETTLED,
                f"with {self._population} instances, memory still changed after {format_duration(settled.waited_s)}",
                {"population": self._population},
            )
        return settled

    def _keep(self, settled: Settled) -> None:
        for memory in settled.readings:
            self._record_memory(memory)
        self._run.record(metrics.SETTLE, settled.waited_s, iteration=self._population)

    def _check(self, stop: Stop) -> None:
        """Each instance has to execute a command; then a note says how the ramp ended."""
        dead: list[str] = []
        for number, instance in enumerate(self._instances, start=1):
            try:
                completed = instance.execute(_CHECK)
            except (BackendError, WorkloadError) as error:
                dead.append(f"instance {number}: {error.message}")
            else:
                if completed.returncode != 0:
                    dead.append(f"instance {number}: /bin/true ended with {completed.returncode}")
        population = self._population
        self._run.record(metrics.POPULATION, population)
        self._run.record(metrics.DEAD, len(dead))
        if dead:
            told = "\n".join(dead[:_TOLD])
            self._run.note(
                NoteCode.DENSITY_DEAD,
                f"{len(dead)} of {population} instances were dead at the end; {dead[0]}",
                {"dead": len(dead), "evidence": told},
            )
        self._run.note(
            NoteCode.DENSITY_STOP,
            f"the ramp ended with {population} instances: {stop.message}",
            {"population": population, **msgspec.to_builtins(stop), **self._watts()},
        )

    def _watts(self) -> dict[str, float]:
        """The host's power without and with all instances idle; empty where it has no counters."""
        if self._idle_watts is None or self._populated_watts is None:
            return {}
        return {"idle_watts": self._idle_watts, "populated_watts": self._populated_watts}

    def _record_return(self) -> None:
        """What the host has back once all are gone, and when."""
        population = self._population
        self._instances.clear()
        after = self._settle()
        self._run.record(metrics.MEMORY_KEPT, self._baseline.unused - after.readings[-1].unused)
        self._run.record(metrics.MEMORY_RETURN, after.waited_s)
        if not after.steady:
            self._run.note(
                NoteCode.DENSITY_NOT_RETURNED,
                f"{population} instances were stopped, and the host's memory was not back after "
                f"{format_duration(after.waited_s)}",
                {"population": population},
            )
