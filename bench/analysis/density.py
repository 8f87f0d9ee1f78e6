"""The ramps of a run, what is fitted to them, and from that what an instance costs and where it goes.

``analyse_density`` is called once a run; whatever prints or plans uses its results.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from tare.bench.analysis.cost import Cost, Estimate, Ramp, combined, fit_cost
from tare.bench.analysis.scaling import Refusal, Scaling, fit_scaling
from tare.bench.catalogue import Builtin, DensityMetric, NoteCode, StopReason
from tare.bench.records import Event
from tare.bench.samples import SampleTable
from tare.bench.stats.comparisons import LEVEL
from tare.bench.units import Unit

THROUGHPUT: Mapping[str, Unit] = {
    DensityMetric.THROUGHPUT: Unit.OPERATIONS_PER_SECOND,
    DensityMetric.BYTE_THROUGHPUT: Unit.BYTES_PER_SECOND,
}
METERS: Mapping[str, str] = {
    "slab": DensityMetric.SLAB,
    "kernel_other": DensityMetric.KERNEL_OTHER,
    "pss": DensityMetric.PSS,
    "rss": DensityMetric.RSS,
    "private": DensityMetric.PRIVATE,
    "guest": DensityMetric.GUEST_RAM,
    "translated": DensityMetric.TCG_CACHE,
    "charge": DensityMetric.CHARGE,
    "disk": DensityMetric.DISK_OWNED,
    "idle_cpu": DensityMetric.IDLE_CPU,
}
"""The first two are read for the whole host, the others for some of the instances now and then and scaled to all."""
_OF_MEMORY = (
    DensityMetric.AT,
    DensityMetric.MEMORY_AVAILABLE,
    DensityMetric.PSS,
    DensityMetric.SLAB,
    DensityMetric.KERNEL_OTHER,
)
_LEAST: Mapping[str, int] = {"private": 2}
"""A single instance shares pages with nobody: all of its memory is private, which is off the line."""
GROUPS = 6
"""Neighbouring starts resemble each other, and outliers occur: a ramp is cut into this many parts, and the line goes
through their medians (batch means)."""
VAGUE = 0.2
"""Attributed memory replaces a MemAvailable figure with a wider relative half interval, if it lies in that."""
LEAST_HALVED = 20
"""Ramps of fewer instances are too short to tell their last half from the whole."""


class Ending(msgspec.Struct, frozen=True):
    """How one ramp ended, as its note says; ``dead`` instances did not answer at the end.

    Watts are the host's without and with all instances idle; None without counters of energy.
    """

    instance: str
    population: int
    reason: str
    message: str
    resource: str
    remedy: str
    dead: int
    idle_watts: float | None = None
    populated_watts: float | None = None

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

    def readings(self, metric: str) -> Iterator[list[tuple[int, float]]]:
        """The readings of ``metric`` of each ramp that has any."""
        return (list(own) for ramp in self.ramps if (own := ramp.get(metric)))

    def points(self, metric: str) -> list[tuple[int, float]]:
        """The readings of ``metric`` of all ramps together."""
        return [reading for own in self.readings(metric) for reading in own]

    def ramps_of(self, metric: str, *, sign: float = 1.0, least: int = 0) -> list[Ramp]:
        """The readings of ``metric`` from ``least`` instances on, as ramps.

        Where not each has its time, they count as equally far apart.
        """
        found = []
        for readings in self.ramps:
            own = [reading for reading in readings.get(metric, ()) if reading[0] >= least]
            times = [value for _, value in readings.get(DensityMetric.AT, ())]
            if own:
                population, values = np.array(own, dtype=np.float64).T
                at_s = np.array(times if len(times) == len(own) else range(len(own)), dtype=np.float64)
                found.append(Ramp(population, at_s, sign * values))
        return found

    def between(self, least: float, most: float, metrics: Collection[str] = ()) -> "DensityCell":
        """The same ramps, of the readings at ``least`` to ``most`` instances, of these metrics if any are named."""
        ramps = tuple(
            {
                metric: tuple(one for one in own if least <= one[0] <= most)
                for metric, own in ramp.items()
                if metric in metrics or not metrics
            }
            for ramp in self.ramps
        )
        return msgspec.structs.replace(self, ramps=ramps)

    @property
    def population(self) -> int:
        """The largest population of its ramps, those included that were interrupted."""
        return max((number for number, _ in self.points(DensityMetric.START)), default=0)


class StartTrend(msgspec.Struct, frozen=True):
    """Start latency in seconds as ``first_s + per_instance_s * population``, with the slope's interval.

    ``first_s`` is that of an empty host, ``last_s`` at the largest population, both by the line. The interval is None
    where there are too few starts.
    """

    first_s: float
    last_s: float
    per_instance_s: float
    low: float | None
    high: float | None
    starts: int


class MemoryCost(Estimate, frozen=True):
    """Memory that one more instance takes; ``source`` is the meter that the figure is by."""

    source: str


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
    def kernel(self) -> Estimate | None:
        """Memory of an instance that no process maps: MemAvailable's figure less PSS's."""
        return combined((self.memory, 1), (self.pss, -1))

    @property
    def attributed(self) -> Estimate | None:
        """Memory of an instance that is counted by name: PSS, slab, and the kernel's other objects.

        It misses what no counter holds; unlike MemAvailable, it is not disturbed by other programs.
        """
        return combined((self.pss, 1), (self.slab, 1), (self.kernel_other, 1))

    @property
    def shared(self) -> float | None:
        """Memory of an instance that it only maps because others do too: RSS's figure less PSS's."""
        return None if self.rss is None or self.pss is None else self.rss.per_instance - self.pss.per_instance

    @property
    def host_noise_dominates(self) -> bool:
        """Whether MemAvailable says nothing: the host did more meanwhile than the instances."""
        memory = self.memory
        return memory is not None and memory.low is not None and memory.high is not None and memory.low <= 0

    @property
    def best_memory(self) -> MemoryCost | None:
        """By MemAvailable, which misses nothing; by attributed memory where that agrees and is far better known."""
        memory, attributed = self.memory, self.attributed
        if memory is not None and not self.host_noise_dominates and memory.per_instance > 0:
            is_vague = memory.half_width is not None and memory.half_width > VAGUE * memory.per_instance
            agrees = attributed is not None and (memory.low or 0.0) <= attributed.per_instance <= (memory.high or 0.0)
            if not (is_vague and agrees):
                return MemoryCost(memory.per_instance, memory.low, memory.high, "MemAvailable")
        if attributed is not None and attributed.per_instance > 0:
            return MemoryCost(attributed.per_instance, attributed.low, attributed.high, "PSS, slab, other kernel")
        return None


class DensityResult(msgspec.Struct, frozen=True):
    """A density cell with all that is fitted to its ramps.

    ``late_memory`` is that of the last half of the ramps, where those instances cost more for certain, else None.
    ``scaling`` is the fit of its throughput, which is in ``unit``, or why there is none; None for idle instances.
    """

    cell: DensityCell
    cost: InstanceCost
    late_memory: MemoryCost | None
    scaling: Scaling | Refusal | None
    unit: Unit | None

    @property
    def planned_memory(self) -> MemoryCost | None:
        """Memory of an instance to plan with: that of later ones, where they cost more."""
        return self.late_memory or self.cost.best_memory

    @property
    def measured_on(self) -> int:
        """How many instances there were in all ramps, at most."""
        return max(1, len(self.cell.ramps)) * self.cell.population


def analyse_density(samples: SampleTable, events: Iterable[Event]) -> tuple[DensityResult, ...]:
    """Fit the ramps of a run, but for those without any instance."""
    return tuple(fit_cell(cell) for cell in find_density(samples, events) if cell.population)


def fit_cell(cell: DensityCell) -> DensityResult:
    """All that is fitted to the ramps of a cell."""
    cost = fit_instance_cost(cell)
    metric = next((name for name in THROUGHPUT if cell.points(name)), "")
    scaling = None
    if metric:
        ramps = np.repeat(*np.array([(place, len(own)) for place, own in enumerate(cell.readings(metric))]).T)
        scaling = fit_scaling(*np.array(cell.points(metric), dtype=np.float64).T, ramps=ramps)
    return DensityResult(cell, cost, _late_memory(cell, cost.best_memory), scaling, THROUGHPUT.get(metric))


def fit_instance_cost(cell: DensityCell) -> InstanceCost:
    """Fit every meter of a cell, and its start latency."""
    by_meter = {name: _fit(cell.ramps_of(metric, least=_LEAST.get(name, 0))) for name, metric in METERS.items()}
    memory = _fit(cell.ramps_of(DensityMetric.MEMORY_AVAILABLE, sign=-1.0))
    return InstanceCost(memory=memory, start=fit_start(list(cell.readings(DensityMetric.START))), **by_meter)


def _late_memory(cell: DensityCell, whole: MemoryCost | None) -> MemoryCost | None:
    if whole is None or whole.high is None or cell.population < LEAST_HALVED:
        return None
    late = fit_instance_cost(cell.between(cell.population // 2, math.inf, _OF_MEMORY)).best_memory
    if late is None or late.low is None or late.low <= whole.high:
        return None
    return msgspec.structs.replace(late, source=f"{late.source}, last half")


def _fit(ramps: Sequence[Ramp]) -> Cost | None:
    """The cost by one meter, or None if it was not read often enough for a line."""
    told = [ramp for ramp in ramps if len(ramp.values) >= 2 and np.ptp(ramp.population) > 0]
    return fit_cost(told) if told else None


def fit_start(ramps: Sequence[Sequence[tuple[int, float]]]) -> StartTrend | None:
    """The trend over ramps of (population, seconds), a line through the medians of their parts; None without any."""
    points = [point for ramp in ramps for point in _medians(ramp)]
    if not points:
        return None
    from scipy.special import stdtrit

    x, y = np.array(points).T
    largest = max(population for ramp in ramps for population, _ in ramp)
    starts = sum(len(ramp) for ramp in ramps)
    if np.ptp(x) == 0:
        return StartTrend(float(y.mean()), float(y.mean()), 0.0, None, None, starts)
    # As scipy.stats.linregress, the import of which takes 25 MB.
    if len(x) > 2:
        (slope, first), covariance = np.polyfit(x, y, 1, cov=True)
        half = float(stdtrit(len(x) - 2, (1 + LEVEL) / 2) * np.sqrt(covariance[0, 0]))
    else:
        (slope, first), half = np.polyfit(x, y, 1), None
    low, high = (None, None) if half is None else (float(slope) - half, float(slope) + half)
    return StartTrend(float(first), float(first + slope * largest), float(slope), low, high, starts)


def _medians(ramp: Sequence[tuple[int, float]]) -> Iterator[tuple[float, float]]:
    for part in np.array_split(np.array(ramp, dtype=np.float64), min(GROUPS, len(ramp))):
        yield float(part[:, 0].mean()), float(np.median(part[:, 1]))


def find_density(samples: SampleTable, events: Iterable[Event]) -> list[DensityCell]:
    """The density cells of a run, in the order in which they began."""
    readings: dict[tuple[str, str, str], dict[str, dict[str, list[tuple[int, float]]]]] = {}
    params: dict[tuple[str, str, str], Mapping[str, object]] = {}
    # One by one, a million samples of other experiments would take ten seconds to be passed over.
    for sample in samples.where("experiment", Builtin.DENSITY):
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
                event.instance,
                int(details["population"]),
                reason=str(details["reason"]),
                message=str(details["message"]),
                resource=str(details["resource"]),
                remedy=str(details["remedy"]),
                dead=dead.get(event.instance, 0),
                idle_watts=details.get("idle_watts"),
                populated_watts=details.get("populated_watts"),
            )
