"""How many hosts a mix of instance types needs: a bound from below, and a packing that is a bound from above.

*Bound*: each resource alone, as if instances could be cut; of hosts of one type there can be no fewer.

*Packing*: first fit decreasing. Types are sorted by the largest share of a host that one instance takes of anything;
each host is filled with as many of the first type as fit, then of the second, and so on. It is a heuristic: for one
resource it needs at most 11/9 of the fewest hosts (and a part of one; Johnson 1973), for several it is not known to be
so close, which is why the bound stands beside it.

Memory and disk have one pool each, from which limits of some types and the use of others are taken; a limit takes as
much less as the host is overcommitted. CPUs have two, as limits and use bind at once.
"""

import math
from collections.abc import Sequence

import msgspec

from tare.bench.capacity.hosts import HostType, Resource
from tare.bench.capacity.instances import InstanceType
from tare.bench.capacity.plan import EXACT, Use, interval_of, uses


class Demand(msgspec.Struct, frozen=True):
    """How many instances of a type are wanted."""

    type: InstanceType
    instances: int


class Filled(msgspec.Struct, frozen=True):
    """``hosts`` hosts of one type that hold the same: instances by the name of their demand.

    ``shares`` say how full each pool that binds is then, as (resource, whether by limits alone, share): 1 is full.
    """

    host: str
    hosts: int
    instances: dict[str, int]
    shares: tuple[tuple[Resource, bool, float], ...]
    headroom: tuple[Use, ...]


class Packing(msgspec.Struct, frozen=True):
    """Where a mix went. ``bound`` hosts are needed at least, None if hosts are of several types.

    ``hosts_fewest`` and ``hosts_most`` are those of packings with every cost at the lower and the upper end of its
    interval, None where one has none. ``left`` are instances that found no place, by the name of their demand.
    """

    filled: tuple[Filled, ...]
    hosts: int
    hosts_fewest: int | None
    hosts_most: int | None
    bound: int | None
    left: dict[str, int]


Pool = tuple[Resource, bool]
"""A resource, and whether by limits."""


class Item(msgspec.Struct, frozen=True):
    """Instances of one demand: what one takes by pool, what all on a host take once, how many there may be at most."""

    type: InstanceType
    wanted: int
    each: dict[Pool, float]
    once: dict[Pool, float]
    most: int | None

    def shares(self, host: HostType, amounts: dict[Pool, float]) -> dict[Pool, float]:
        """Amounts as shares of a host's pools."""
        found: dict[Pool, float] = {}
        for (resource, by_limit), amount in amounts.items():
            usable = host.usable(resource, by_limit=by_limit)
            share = amount / usable if usable else (math.inf if amount > 0 else 0.0)
            pool = (resource, by_limit and resource is Resource.CPU)
            found[pool] = found.get(pool, 0.0) + share
        return found

    def largest_share(self, host: HostType) -> float:
        """The largest share of a host that one instance takes of anything."""
        return max(self.shares(host, self.each).values(), default=0.0)


def pack(demands: Sequence[Demand], hosts: Sequence[HostType]) -> Packing:
    """Fill hosts in their order, those that are counted up to their count."""
    items = items_of(demands)
    filled, left = _pack(items, hosts)
    ends: list[int | None] = []
    for end in ("low", "high"):
        known = [item for one in demands if (item := _item(one, end)) is not None]
        packed, rest = _pack(known, hosts) if len(known) == len(demands) else ([], [1])
        ends.append(sum(one.hosts for one in packed) if sum(rest) == sum(left) == 0 else None)
    return Packing(
        filled=tuple(filled),
        hosts=sum(one.hosts for one in filled),
        hosts_fewest=ends[0],
        hosts_most=ends[1],
        bound=_bound(items, hosts[0]) if len(hosts) == 1 else None,
        left={demand.type.name: count for demand, count in zip(demands, left, strict=True) if count},
    )


def fits(demands: Sequence[Demand], hosts: Sequence[HostType], end: str = "per_instance") -> bool:
    """Whether all finds a place, with costs as estimated or at an ``end`` of their intervals (``low``, ``high``).

    A cost without an interval counts with its value.
    """
    items = [_item(one, end) or _item(one, "per_instance") for one in demands]
    return not any(_pack([item for item in items if item is not None], hosts)[1])


def items_of(demands: Sequence[Demand]) -> list[Item]:
    """The demands with what they cost as it was estimated."""
    return [item for one in demands if (item := _item(one, "per_instance")) is not None]


def _item(demand: Demand, end: str) -> Item | None:
    """With costs as they are (``per_instance``), or at an end of their intervals (``low``, ``high``); None without."""
    needs = [need for need in demand.type.needs if need.binds]
    each = {(one.resource, one.by_limit): getattr(interval_of(one, demand.instances), end) for one in needs}
    if None in each.values():
        return None
    return Item(
        type=demand.type,
        wanted=demand.instances,
        each={pool: max(0.0, amount) for pool, amount in each.items()},
        once={(one.resource, one.by_limit): one.once for one in needs},
        most=min((one.population for one in demand.type.host_limits), default=None),
    )


def _pack(items: Sequence[Item], hosts: Sequence[HostType]) -> tuple[list[Filled], list[int]]:
    left = [item.wanted for item in items]
    filled: list[Filled] = []
    for host in hosts:
        free = host.count
        while any(left) and (free is None or free > 0):
            counts, used = _fill(items, left, host)
            if not any(counts):
                break
            # The same host again, as long as there is enough of all that is on it.
            same = min(left[place] // count for place, count in enumerate(counts) if count)
            same = same if free is None else min(same, free)
            left = [rest - same * count for rest, count in zip(left, counts, strict=True)]
            free = None if free is None else free - same
            placed = [(item.type, count) for item, count in zip(items, counts, strict=True) if count]
            shares = tuple((*pool, share) for pool, share in used.items())
            held = {kind.name: count for kind, count in placed}
            filled.append(Filled(host.name, same, held, shares, tuple(uses(placed, host))))
    return filled, left


def _fill(items: Sequence[Item], left: Sequence[int], host: HostType) -> tuple[list[int], dict[Pool, float]]:
    """As many as fit on one empty host, the largest first; and how full its pools are then."""
    used: dict[Pool, float] = {}
    counts = [0] * len(items)
    for place in sorted(range(len(items)), key=lambda place: -items[place].largest_share(host)):
        item = items[place]
        each, once = item.shares(host, item.each), item.shares(host, item.once)
        count = left[place] if item.most is None else min(left[place], item.most)
        for pool, share in each.items():
            free = 1.0 + EXACT - used.get(pool, 0.0) - once[pool]
            if free < 0 or math.isinf(share):
                count = 0
            elif share > 0:
                count = min(count, math.floor(free / share))
        counts[place] = count
        for pool, share in each.items() if count else ():
            used[pool] = used.get(pool, 0.0) + once[pool] + count * share
    return counts, used


def _bound(items: Sequence[Item], host: HostType) -> int | None:
    """Hosts that no packing can do without: each pool alone, instances cut where it suits."""
    total: dict[Pool, float] = {}
    fewest = 1
    for item in items:
        for pool, share in item.shares(host, item.each).items():
            total[pool] = total.get(pool, 0.0) + share * item.wanted
        if item.most:
            fewest = max(fewest, math.ceil(item.wanted / item.most))
    if any(math.isinf(share) for share in total.values()):
        return None
    return max([fewest, *(math.ceil(share * (1 - EXACT)) for share in total.values())])
