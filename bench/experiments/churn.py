"""``churn``: instances come and go at a rate while others live, faster and faster, until a stated objective breaks.

A number of instances is kept alive. At each due time the oldest is stopped and a new one started: the population stays
as it is. Each step asks for more replacements a second than the one before. The last step that kept the rate and the
objective is the sustainable rate; after it, what the host did not get back is read at the same population as before.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from tare.bench.catalogue import TRAITS, Builtin, ChurnMetric, NoteCode
from tare.bench.errors import BackendError, TareError
from tare.bench.experiments.density.population import many_files, settle
from tare.bench.interfaces import Experiment, Instance, InstanceRun
from tare.bench.interrupts import sleep
from tare.bench.linux.files import HERE, HostRoots, read_text
from tare.bench.linux.host_memory import HostMemory
from tare.bench.model import Direction, Metric, Phase, lower
from tare.bench.units import Duration, Unit, format_duration

KEPT_UP = 0.95
"""A step keeps its rate if it makes at least this share of its replacements a second."""
_LEAST = 5
"""Replacements below which a step says nothing of a p99."""

_PER_SECOND = Unit.OPERATIONS_PER_SECOND

START = lower(ChurnMetric.START, Unit.SECOND, "Start of a replacement.", title="Start while instances come and go")
STOP = lower(ChurnMetric.STOP, Unit.SECOND, "Stop of the one it replaces.", title="Stop while instances come and go")
START_P99 = lower(ChurnMetric.START_P99, Unit.SECOND, "p99 of the starts of a step.", title="p99 of starts at a rate")
STOP_P99 = lower(ChurnMetric.STOP_P99, Unit.SECOND, "p99 of the stops of a step.", title="p99 of stops at a rate")
ASKED = Metric(
    "churn.asked", _PER_SECOND, Direction.HIGHER, "Replacements a second that a step asked for.", "Rate asked for"
)
RATE = Metric("churn.rate", _PER_SECOND, Direction.HIGHER, "Replacements a second that a step made.", "Rate reached")
SUSTAINED = Metric(
    ChurnMetric.SUSTAINED,
    _PER_SECOND,
    Direction.HIGHER,
    "Replacements a second of the last step that kept its rate and the objective.",
    "Sustainable rate of replacements",
)
KEPT = lower(
    ChurnMetric.MEMORY_KEPT,
    Unit.BYTE,
    "Memory the host did not get back by all replacements, at the same population as before them.",
    title="Memory not given back",
)
KEPT_EACH = lower(
    "churn.memory_kept_each",
    Unit.BYTE,
    "Memory the host did not get back, for each replacement.",
    title="Memory not given back by a replacement",
)
DENTRIES = lower(
    "churn.dentries",
    Unit.COUNT,
    "Directory entries the kernel caches more than before.",
    title="Cached directory entries left behind",
)
CGROUPS = lower(
    "churn.cgroups", Unit.COUNT, "Cgroups of memory the kernel holds more than before.", title="Cgroups left behind"
)


class ChurnOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[experiment.options]`` of ``churn``.

    ``population`` instances live. Steps ask for ``rate`` replacements a second, then ``faster`` times as many, and so
    on, each for ``step``; the last is the first that breaks the ``objective`` (p99 of a start) or does not keep its
    rate, or the one that reaches ``most``.
    """

    population: Annotated[int, Meta(ge=1, le=10_000)] = 10
    rate: Annotated[float, Meta(gt=0, le=1e5)] = 1.0
    faster: Annotated[float, Meta(gt=1, le=10)] = 1.5
    most: Annotated[float, Meta(gt=0, le=1e6)] = 1000.0
    step: Duration = Duration("10s")
    objective: Duration | None = None

    def __post_init__(self) -> None:
        if self.most < self.rate:
            raise ValueError(f"most: must be at least the rate, {self.rate:g}, not {self.most:g}")
        if self.rate * self.step < _LEAST:
            raise ValueError(f"step: {self.rate:g} a second for {self.step} are fewer than {_LEAST} replacements")


class Churn(Experiment):
    """Fills the host to the population, then replaces instances faster and faster."""

    name = Builtin.CHURN
    traits = TRAITS[name]
    summary = "instances come and go at rising rates among others, until an objective breaks; what accumulates"
    needs_workload = False
    metrics = (SUSTAINED, START_P99, STOP_P99, START, STOP, ASKED, RATE, KEPT, KEPT_EACH, DENTRIES, CGROUPS)
    Options = ChurnOptions

    def run(self, run: InstanceRun) -> None:
        """All steps. Raises BackendError if the population cannot be started."""
        with many_files(), contextlib.ExitStack() as stack:
            _Churn(run, stack).run()


class _Held(NamedTuple):
    """What the kernel holds of the host, at one population."""

    memory: HostMemory
    dentries: int | None
    cgroups: int | None


class _Churn:
    def __init__(self, run: InstanceRun, stack: contextlib.ExitStack) -> None:
        self._run = run
        self._options: ChurnOptions = run.options
        self._live: deque[tuple[Instance, contextlib.ExitStack]] = deque()
        self._stack = stack
        self._replaced = 0

    def run(self) -> None:
        for _ in range(self._options.population):
            self._start()
        before = _read_held()
        sustained, ended = 0.0, f"the fastest step that was asked for, {self._options.most:g} a second, held"
        try:
            for asked in self._rates():
                if broken := self._step(asked):
                    ended = f"{asked:.3g} a second: {broken}"
                    break
                sustained = asked
        except TareError as error:
            ended = f"a start or stop failed: {error.message}"
        finally:
            after = _read_held()
        self._run.record(SUSTAINED, sustained)
        self._record_kept(before, after)
        details = {"sustained": sustained, "replacements": self._replaced, "population": self._options.population}
        self._run.note(NoteCode.CHURN_END, f"{self._replaced} replacements; {ended}", details)

    def _rates(self) -> Iterator[float]:
        rate = self._options.rate
        while rate < self._options.most:
            yield rate
            rate *= self._options.faster
        yield self._options.most

    def _step(self, asked: float) -> str:
        """Replace at this rate for the length of a step. Returns what broke; empty if all held."""
        wanted, began = max(_LEAST, math.floor(asked * self._options.step)), time.monotonic()
        starts, stops = [], []
        for number in range(wanted):
            if (early := began + number / asked - time.monotonic()) > 0:
                sleep(early)
            stopping = time.monotonic()
            self._live[0][0].end()
            self._live.popleft()[1].close()
            stops.append(time.monotonic() - stopping)
            starts.append(self._start())
            self._replaced += 1
            self._run.record(STOP, stops[-1], iteration=self._replaced)
            self._run.record(START, starts[-1], iteration=self._replaced)
            # A rate far out of reach is given up when twice the time of the step has gone by.
            if time.monotonic() - began > 2 * self._options.step:
                break
        took = time.monotonic() - began
        rate, p99 = len(starts) / took, _p99(starts)
        figures = {ASKED: asked, RATE: rate, START_P99: p99, STOP_P99: _p99(stops)}
        for metric, value in figures.items():
            self._run.record(metric, value, iteration=self._replaced)
        return self._broken(asked, rate, p99)

    def _broken(self, asked: float, rate: float, p99: float) -> str:
        objective = self._options.objective
        if objective is not None and p99 > objective:
            return f"the p99 of a start was {format_duration(p99)}, the objective is {format_duration(objective)}"
        return "" if rate >= KEPT_UP * asked else f"only {rate:.3g} replacements a second were reached"

    def _start(self) -> float:
        """Start one more; how long it took in seconds."""
        own = contextlib.ExitStack()
        instance = own.enter_context(self._run.start())
        self._stack.callback(own.close)
        self._live.append((instance, own))
        took = instance.timeline.between(Phase.REQUESTED, Phase.READY)
        if took is None:
            raise BackendError("the backend does not say when an instance was ready")
        return took

    def _record_kept(self, before: _Held, after: _Held) -> None:
        kept = before.memory.unused - after.memory.unused
        self._run.record(KEPT, kept)
        self._run.record(KEPT_EACH, kept / self._replaced if self._replaced else None)
        changes: dict[Metric, tuple[int | None, int | None]] = {
            DENTRIES: (before.dentries, after.dentries),
            CGROUPS: (before.cgroups, after.cgroups),
        }
        for metric, (first, last) in changes.items():
            self._run.record(metric, None if first is None or last is None else last - first)


def _p99(values: list[float]) -> float:
    """The smallest value that 99 of 100 do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


def _read_held() -> _Held:
    """Once memory has stopped changing."""
    memory = settle(Duration("0.5s"), Duration("20s")).readings[-1]
    return _Held(memory, _read_dentries(), _read_cgroups())


def _read_dentries(roots: HostRoots = HERE) -> int | None:
    """``dentry-state`` (proc_sys_fs(5)): the first number is that of allocated entries."""
    try:
        return int(read_text(roots.proc / "sys/fs/dentry-state").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _read_cgroups(roots: HostRoots = HERE) -> int | None:
    """Memory cgroups, those among them that are removed and still hold pages (``/proc/cgroups``); None on v2 alone."""
    try:
        lines = read_text(roots.proc / "cgroups").splitlines()
    except OSError:
        return None
    fields = next((line.split() for line in lines if line.startswith("memory\t")), None)
    return int(fields[2]) if fields and len(fields) > 2 else None
