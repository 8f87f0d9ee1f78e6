"""How many instances of one type a host holds, with an interval, and what runs out first.

A resource has room for ``(usable - once) / each`` instances. That falls as ``each`` rises, so the ends of the interval
of ``each`` are those of the room, whatever their distribution. The instances on a planned host are not those that were
measured, and differ from them by as much as those differ from one another; the interval of a mean over ``n`` measured
ones holds that variance at least once in ``n``, so for ``N`` others it is widened by ``sqrt(1 + n / N)``.

A host holds the least of its rooms. The ends are the least of all lower and of all upper ends: they miss the truth at
most as often as those of all binding resources together, and as often as one's where one clearly runs out first.
"""

import math
from collections.abc import Iterable, Sequence

import msgspec

from tare.bench.analysis.scaling import Scaling
from tare.bench.capacity.hosts import HostType, Resource
from tare.bench.capacity.instance_types import Bound, InstanceType
from tare.bench.capacity.needs import Need

EXTRAPOLATED = 10
"""Beyond so many times the measured population a figure is marked."""
_EXACT = 1e-9


class Room(msgspec.Struct, frozen=True):
    """How many instances one need of theirs leaves room for; None where it bounds nothing, or has no interval."""

    resource: Resource
    promised: bool
    binds: bool
    source: str
    each: float
    usable: float
    instances: int | None
    fewest: int | None
    most: int | None


class Use(msgspec.Struct, frozen=True):
    """What so many instances use of a resource: ``share`` of what is there for them, and what is left, in its unit."""

    resource: Resource
    promised: bool
    used: float
    usable: float

    @property
    def share(self) -> float:
        """1 means full."""
        return self.used / self.usable if self.usable else math.inf

    @property
    def left(self) -> float:
        """The headroom."""
        return self.usable - self.used


class HostPlan(msgspec.Struct, frozen=True):
    """Instances of one type on a host of one type.

    ``instances`` is None if nothing that is known ends. ``binds`` is what runs out first. ``hosts`` are those
    for a demand.
    """

    type: InstanceType
    host: HostType
    instances: int | None
    fewest: int | None
    most: int | None
    binds: str
    remedy: str
    rooms: tuple[Room, ...]
    headroom: tuple[Use, ...]
    is_extrapolated: bool
    demand: int | None
    hosts: int | None
    hosts_fewest: int | None
    hosts_most: int | None
    notes: tuple[str, ...]


def plan_host(kind: InstanceType, host: HostType, *, demand: int | None = None) -> HostPlan:
    """Fill a host with instances of one kind."""
    rooms = tuple(_room(need, host) for need in kind.needs)
    binding = [room for room in rooms if room.binds and room.instances is not None]
    candidates: list[tuple[int, str, str]] = [(room.instances or 0, _named(room), "") for room in binding]
    candidates += [(cap.population, f"{cap.resource}, as on the measured host", cap.remedy) for cap in kind.caps]
    instances, binds, remedy = min(candidates, key=lambda one: one[0], default=(None, "", ""))
    first = next((room for room in binding if room.instances == instances), None)
    told = first is None or first.fewest is not None
    # A room without an interval that is not the first to run out counts with its value.
    lower = [room.fewest if room.fewest is not None else room.instances for room in binding]
    upper = [room.most if room.fewest is not None else room.instances for room in binding]
    caps = [cap.population for cap in kind.caps]
    fewest = min([*(one for one in lower if one is not None), *caps], default=None) if told else None
    most = min([*(one for one in upper if one is not None), *caps], default=None) if told else None
    return HostPlan(
        type=kind,
        host=host,
        instances=instances,
        fewest=fewest,
        most=most,
        binds=binds,
        remedy=remedy,
        rooms=rooms,
        headroom=() if instances is None else tuple(uses([(kind, instances)], host)),
        is_extrapolated=instances is not None and instances > EXTRAPOLATED * kind.population,
        demand=demand,
        hosts=_hosts(demand, instances),
        hosts_fewest=_hosts(demand, most),
        hosts_most=_hosts(demand, fewest),
        notes=(*kind.notes, *_advice(kind, host, instances)),
    )


def interval_of(need: Need, others: float) -> tuple[float | None, float | None]:
    """The interval of what ``others`` other instances take each; see the module."""
    if need.low is None or need.high is None:
        return None, None
    wider = math.sqrt(1 + need.measured_on / others) if others > 0 else 1.0
    return need.each - (need.each - need.low) * wider, need.each + (need.high - need.each) * wider


def _room(need: Need, host: HostType) -> Room:
    usable = host.usable(need.resource, promised=need.promised)
    free = usable - need.once
    instances = _fit(free, need.each)
    low, high = interval_of(need, instances or 1)
    return Room(
        resource=need.resource,
        promised=need.promised,
        binds=need.binds,
        source=need.source,
        each=need.each,
        usable=usable,
        instances=instances,
        fewest=None if high is None else _fit(free, high),
        most=None if low is None else _fit(free, low),
    )


def _fit(free: float, each: float) -> int | None:
    """How many of ``each`` there is room for; None if they never end."""
    if each <= 0 or not math.isfinite(free):
        return None
    return max(0, math.floor(free / each * (1 + _EXACT)))


def _named(room: Room) -> str:
    if room.resource not in _TWOFOLD:
        return room.resource.value
    return f"{room.resource.value} ({'promised' if room.promised else 'measured'})"


_TWOFOLD = (Resource.MEMORY, Resource.CPU, Resource.DISK)


def uses(placed: Iterable[tuple[InstanceType, int]], host: HostType) -> list[Use]:
    """What is used of each resource, of what was measured and of what was promised, by instances side by side."""
    used: dict[tuple[Resource, bool], float] = {}
    for kind, count in placed:
        for need in kind.needs:
            key = (need.resource, need.promised)
            used[key] = used.get(key, 0.0) + (need.once + count * need.each if count else 0.0)
    return [
        Use(resource, promised, amount, host.usable(resource, promised=promised))
        for (resource, promised), amount in used.items()
        if math.isfinite(host.has(resource))
    ]


def _hosts(demand: int | None, instances: int | None) -> int | None:
    return math.ceil(demand / instances) if demand is not None and instances else None


def _advice(kind: InstanceType, host: HostType, instances: int | None) -> Sequence[str]:
    notes = []
    placed = uses([(kind, instances)], host) if instances and kind.bound is Bound.MEASURED else []
    limits = next((use.share for use in placed if use.resource is Resource.MEMORY and use.promised), 0.0)
    if limits > 1:
        notes.append(
            f"the memory limits of {instances:,} add up to {limits:,.1f} times what is there: if all come to use "
            "theirs, it is not enough; --bound promised plans for that"
        )
    if host.disk is None:
        notes.append("the host's disk was not stated: disk bounds nothing")
    if isinstance(kind.scaling, Scaling) and kind.scaling.peak is not None and kind.cpus_measured:
        peak = kind.scaling.peak
        scaled = peak * host.cpus / kind.cpus_measured
        more = ", which is fewer than planned" if instances is not None and scaled < instances else ""
        notes.append(
            f"throughput was largest with {peak:.3g} instances on {kind.cpus_measured} "
            f"{'CPU' if kind.cpus_measured == 1 else 'CPUs'}; if it grows with CPUs, that is {scaled:.3g} on this host"
            f"{more}"
        )
    return notes
