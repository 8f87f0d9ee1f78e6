"""How many instances of one type a host holds, with an interval, and what runs out first.

A resource has a capacity of ``(usable - once) / each`` instances. That falls as ``each`` rises, so the ends of the
interval of ``each`` are those of the capacity, whatever their distribution. The instances on a planned host are not
those that were measured, and differ from them by as much as those differ from one another; the interval of a mean
over ``n`` measured ones holds that variance at least once in ``n``, so for ``N`` others it is widened by
``sqrt(1 + n / N)``.

A host holds the least of its capacities. The ends are the least of all lower and of all upper ends: they miss the
truth at most as often as those of all binding resources together, and as often as one's where one clearly runs out
first.
"""

import math
from collections.abc import Iterable

import msgspec

from tare.bench.analysis.cost import Estimate
from tare.bench.capacity.hosts import OVERCOMMITTED, HostType, Resource
from tare.bench.capacity.instances import InstanceType, Need

EXTRAPOLATED = 10
"""A figure beyond this many times the measured population is marked."""
EXACT = 1e-9
"""A part of an instance that rounding may have taken."""


class Capacity(msgspec.Struct, frozen=True):
    """How many instances there is enough of a resource for, by one need of theirs.

    None where the need bounds nothing, or has no interval.
    """

    resource: Resource
    by_limit: bool = msgspec.field(name="promised")
    binds: bool
    source: str
    each: float
    usable: float
    instances: int | None
    fewest: int | None
    most: int | None
    each_low: float | None = None
    each_high: float | None = None

    @property
    def name(self) -> str:
        """The resource, and by what it is counted where there are two."""
        return name_of(self.resource, by_limit=self.by_limit)


class Use(msgspec.Struct, frozen=True):
    """What instances use of a resource together, of what is ``usable`` for them, in its unit."""

    resource: Resource
    by_limit: bool = msgspec.field(name="promised")
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
    capacities: tuple[Capacity, ...]
    headroom: tuple[Use, ...]
    demand: int | None = None

    @property
    def is_extrapolated(self) -> bool:
        """Whether it is far more than were measured."""
        return self.instances is not None and self.instances > EXTRAPOLATED * self.type.result.cell.population

    @property
    def hosts(self) -> int | None:
        """The hosts that the demand needs."""
        return self._hosts(self.instances)

    @property
    def hosts_fewest(self) -> int | None:
        """The lower end of their interval."""
        return self._hosts(self.most)

    @property
    def hosts_most(self) -> int | None:
        """The upper end of their interval."""
        return self._hosts(self.fewest)

    def _hosts(self, instances: int | None) -> int | None:
        return math.ceil(self.demand / instances) if self.demand is not None and instances else None


def plan_host(kind: InstanceType, host: HostType, *, demand: int | None = None) -> HostPlan:
    """Fill a host with instances of one kind."""
    capacities = tuple(_capacity(need, host) for need in kind.needs)
    binding = [one for one in capacities if one.binds and one.instances is not None]
    candidates = [(one.instances or 0, one.name, "") for one in binding]
    candidates += [(one.population, f"{one.resource}, as on the measured host", one.remedy) for one in kind.host_limits]
    instances, binds, remedy = min(candidates, key=lambda one: one[0], default=(None, "", ""))
    first = next((one for one in binding if one.instances == instances), None)
    fewest = most = None
    if first is None or first.fewest is not None:
        # A capacity without an interval that is not the first to run out counts with its value.
        lower = [one.instances if one.fewest is None else one.fewest for one in binding]
        upper = [one.instances if one.fewest is None else one.most for one in binding]
        limits = [one.population for one in kind.host_limits]
        fewest = min([*(one for one in lower if one is not None), *limits], default=None)
        most = min([*(one for one in upper if one is not None), *limits], default=None)
    headroom = () if instances is None else tuple(uses([(kind, instances)], host))
    return HostPlan(kind, host, instances, fewest, most, binds, remedy, capacities, headroom, demand)


def interval_of(need: Need, others: float) -> Estimate:
    """What ``others`` other instances take each, with the interval of that; see the module."""
    each = need.each
    if each.low is None or each.high is None:
        return Estimate(each.per_instance, None, None)
    wider = math.sqrt(1 + need.measured_on / others) if others > 0 else 1.0
    value = each.per_instance
    return Estimate(value, value - (value - each.low) * wider, value + (each.high - value) * wider)


def name_of(resource: Resource, *, by_limit: bool) -> str:
    """A resource, and by what it is counted where there are two ways."""
    return f"{resource} ({'limits' if by_limit else 'measured'})" if resource in OVERCOMMITTED else resource.value


def _capacity(need: Need, host: HostType) -> Capacity:
    usable = host.usable(need.resource, by_limit=need.by_limit)
    free = usable - need.once
    instances = _fit(free, need.each.per_instance)
    each = interval_of(need, instances or 1)
    return Capacity(
        resource=need.resource,
        by_limit=need.by_limit,
        binds=need.binds,
        source=need.source,
        each=need.each.per_instance,
        usable=usable,
        instances=instances,
        fewest=None if each.high is None else _fit(free, each.high),
        most=None if each.low is None else _fit(free, each.low),
        each_low=each.low,
        each_high=each.high,
    )


def _fit(free: float, each: float) -> int | None:
    """How many of ``each`` fit; None if they never end."""
    if each <= 0 or not math.isfinite(free):
        return None
    return max(0, math.floor(free / each * (1 + EXACT)))


def uses(placed: Iterable[tuple[InstanceType, int]], host: HostType) -> list[Use]:
    """What is used of each resource, measured and by limits, by instances side by side."""
    used: dict[tuple[Resource, bool], float] = {}
    for kind, count in placed:
        for need in kind.needs:
            key = (need.resource, need.by_limit)
            used[key] = used.get(key, 0.0) + (need.once + count * need.each.per_instance if count else 0.0)
    return [
        Use(resource, by_limit, amount, host.usable(resource, by_limit=by_limit))
        for (resource, by_limit), amount in used.items()
        if math.isfinite(host.has(resource))
    ]
