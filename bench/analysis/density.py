"""The ramps of a run: read from its samples, fitted, and reconciled into what an instance costs and where it goes."""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from tare.bench.analysis.cost import Cost, Ramp, fit_cost
from tare.bench.analysis.reml import Floats
from tare.bench.analysis.start import StartTrend, fit_start
from tare.bench.catalogue import Builtin, DensityMetric, NoteCode, StopReason
from tare.bench.model import Event, Sample
from tare.bench.samples import SampleTable

_AVAILABLE = DensityMetric.MEMORY_AVAILABLE
_AT = DensityMetric.AT
_START = DensityMetric.START

HOST_METERS: Mapping[str, str] = {"slab": DensityMetric.SLAB, "kernel_other": DensityMetric.KERNEL_OTHER}
"""Read for the whole host at each step."""
INSTANCE_METERS: Mapping[str, str] = {
    "pss": DensityMetric.PSS,
    "rss": DensityMetric.RSS,
    "private": DensityMetric.PRIVATE,
    "guest": DensityMetric.GUEST_RAM,
    "translated": DensityMetric.TCG_CACHE,
    "charge": DensityMetric.CHARGE,
    "disk": DensityMetric.DISK_OWNED,
    "idle_cpu": DensityMetric.IDLE_CPU,
}
"""Read for some of the instances now and then, and scaled to all."""
_LEAST: Mapping[str, int] = {"private": 2}
"""A single instance shares with nobody: all of its memory is private then, and is not on the line."""


class Ending(msgspec.Struct, frozen=True):
    """How one ramp ended, as its note says; ``dead`` instances did not answer at the end."""

    instance: str
    population: int
    reason: str
    message: str
    resource: str
    remedy: str
    dead: int

    @property
    def was_asked_for(self) -> bool:
        """Whether nothing ran out: the ramp had no more instances to start."""
        return self.reason == StopReason.COUNT


class DensityCell(msgspec.Struct, frozen=True):
    """The ramps of one subject on one backend: ``cell`` without the backend, and the readings by metric.

    A reading of a metric is (population, value), in the order in which it was taken.
    """

    backend: str
    workload: str
    params: Mapping[str, object]
    ramps: tuple[Mapping[str, tuple[tuple[int, float], ...]], ...]
    endings: tuple[Ending, ...]

    def ramps_of(self, metric: str, *, sign: float = 1.0, least: int = 0) -> list[Ramp]:
        """The readings of ``metric`` from ``least`` instances on, as ramps.

        Where not each has its time, they count as equally far apart.
        """
        found = []
        for readings in self.ramps:
            own = [reading for reading in readings.get(metric, ()) if reading[0] >= least]
            times = [value for _, value in readings.get(_AT, ())]
            if not own:
                continue
            at_s = times if len(times) == len(own) else list(range(len(own)))
            population, values = (np.array(column, dtype=np.float64) for column in zip(*own, strict=True))
            found.append(Ramp(population, np.array(at_s, dtype=np.float64), sign * values))
        return found

    def until(self, population: int) -> "DensityCell":
        """The same ramps as if they had ended there."""
        ramps = tuple(
            {metric: tuple(one for one in own if one[0] <= population) for metric, own in ramp.items()}
            for ramp in self.ramps
        )
        return msgspec.structs.replace(self, ramps=ramps)

    def since(self, population: int) -> "DensityCell":
        """The same ramps as if they had begun there."""
        ramps = tuple(
            {metric: tuple(one for one in own if one[0] >= population) for metric, own in ramp.items()}
            for ramp in self.ramps
        )
        return msgspec.structs.replace(self, ramps=ramps)

    @property
    def population(self) -> int:
        """The largest population of its ramps, those included that were interrupted."""
        return max((number for ramp in self.ramps for number, _ in ramp.get(_START, ())), default=0)


class InstanceCost(msgspec.Struct, frozen=True):
    """What one more instance costs the host, by each meter; None where this host has no such meter.

    ``memory`` is by MemAvailable, which sees all there is. What it sees beyond the processes' PSS is ``kernel``: the
    objects, stacks and page tables that the kernel keeps for an instance, of which ``slab`` and ``kernel_other`` are
    counted by name. ``guest`` is the part of PSS that is a guest's RAM, ``translated`` the part that is
    code translated for an emulated processor. ``shared`` is the part of RSS that PSS divides
    among those that share it.
    """

    memory: Cost | None
    pss: Cost | None
    rss: Cost | None
    private: Cost | None
    guest: Cost | None
    translated: Cost | None
    charge: Cost | None
    slab: Cost | None
    kernel_other: Cost | None
    disk: Cost | None
    idle_cpu: Cost | None
    start: StartTrend | None

    @property
    def kernel(self) -> float | None:
        """Memory of an instance that no process maps: MemAvailable's figure less PSS's."""
        return None if self.memory is None or self.pss is None else self.memory.per_instance - self.pss.per_instance

    @property
    def kernel_interval(self) -> tuple[float, float] | None:
        """The interval of ``kernel``, from those of the two figures, taken as independent."""
        return _interval_of(self.kernel, self.memory, self.pss)

    @property
    def accounted(self) -> float | None:
        """Memory of an instance that has a name: PSS, slab, and the kernel's other objects.

        It misses what nobody counts, and does not mind what other programs do meanwhile, as MemAvailable does.
        """
        if self.pss is None or self.slab is None or self.kernel_other is None:
            return None
        return self.pss.per_instance + self.slab.per_instance + self.kernel_other.per_instance

    @property
    def accounted_interval(self) -> tuple[float, float] | None:
        """The interval of ``accounted``, likewise."""
        return _interval_of(self.accounted, self.pss, self.slab, self.kernel_other)

    @property
    def memory_is_drowned(self) -> bool:
        """Whether MemAvailable says nothing: the host did more meanwhile than the instances."""
        memory = self.memory
        return memory is not None and memory.low is not None and memory.high is not None and memory.low <= 0

    @property
    def shared(self) -> float | None:
        """Memory of an instance that it only maps because others do too: RSS's figure less PSS's."""
        return None if self.rss is None or self.pss is None else self.rss.per_instance - self.pss.per_instance


def _interval_of(value: float | None, *parts: Cost | None) -> tuple[float, float] | None:
    """The interval of a sum or difference of independent figures; None if one has none."""
    halves = [None if part is None else part.half_width for part in parts]
    known = [half for half in halves if half is not None]
    if value is None or len(known) < len(halves):
        return None
    half = math.hypot(*known)
    return value - half, value + half


def find_density(samples: Iterable[Sample], events: Iterable[Event]) -> list[DensityCell]:
    """The density cells of a run, in the order in which they began."""
    readings: dict[tuple[str, str, str], dict[str, dict[str, list[tuple[int, float]]]]] = {}
    params: dict[tuple[str, str, str], Mapping[str, object]] = {}
    # One by one, a million samples of other experiments would take ten seconds to be passed over.
    own = samples.where("experiment", Builtin.DENSITY) if isinstance(samples, SampleTable) else samples
    for sample in own:
        if sample.experiment != Builtin.DENSITY:
            continue
        key = (sample.backend, sample.workload, repr(sorted(sample.params.items())))
        params[key] = sample.params
        ramp = readings.setdefault(key, {}).setdefault(sample.instance, {})
        ramp.setdefault(sample.metric, []).append((sample.iteration, sample.value))
    endings = {ending.instance: ending for ending in _endings(events)}
    return [
        DensityCell(
            backend=backend,
            workload=workload,
            params=params[backend, workload, given],
            ramps=tuple({metric: tuple(own) for metric, own in ramp.items()} for ramp in ramps.values()),
            endings=tuple(endings[name] for name in ramps if name in endings),
        )
        for (backend, workload, given), ramps in readings.items()
    ]


def _endings(events: Iterable[Event]) -> Iterable[Ending]:
    dead: dict[str, int] = {}
    for event in events:
        if event.note_code == NoteCode.DENSITY_DEAD:
            dead[event.instance] = int(event.details["dead"])
        elif event.note_code == NoteCode.DENSITY_STOP:
            details = event.details
            yield Ending(
                instance=event.instance,
                population=int(details["population"]),
                reason=str(details["reason"]),
                message=str(details["message"]),
                resource=str(details["resource"]),
                remedy=str(details["remedy"]),
                dead=dead.get(event.instance, 0),
            )


def cost_of(cell: DensityCell) -> InstanceCost:
    """Fit every meter of a cell."""
    by_meter = {
        name: _fit(cell.ramps_of(metric, least=_LEAST.get(name, 0)))
        for name, metric in {**HOST_METERS, **INSTANCE_METERS}.items()
    }
    starts = [
        (np.array([n for n, _ in own], dtype=np.float64), np.array([value for _, value in own]))
        for ramp in cell.ramps
        if (own := ramp.get(_START))
    ]
    return InstanceCost(
        memory=_fit(cell.ramps_of(_AVAILABLE, sign=-1.0)), start=fit_start(starts) if starts else None, **by_meter
    )


def _fit(ramps: Sequence[Ramp]) -> Cost | None:
    """The cost by one meter, or None if it was not read often enough for a line."""
    told = [ramp for ramp in ramps if len(ramp.values) >= 2 and _varies(ramp.population)]
    return fit_cost(told) if told else None


def _varies(values: Floats) -> bool:
    return bool(np.ptp(values) > 0)
