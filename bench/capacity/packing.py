"""How many hosts a mix of instance types needs: a bound from below, and a packing that is a bound from above.

*Bound*: each resource alone, as if instances could be cut; of hosts of one type there can be no fewer.

*Packing*: first fit decreasing. Types are sorted by the largest share of a host that one instance takes of anything;
each host is filled with as many of the first type as fit, then of the second, and so on. It is a heuristic: for one
resource it needs at most 11/9 of the fewest hosts (and a part of one; Johnson 1973), for several it is not known to be
so close, which is why the bound stands beside it.

Memory and disk have one pool each, from which promises of some types and the use of others are taken; a promise takes
as much less as it may be promised more often. CPUs have two, as the promised and the used ones bind at once.
"""

import math
from collections.abc import Sequence

import msgspec

from tare.bench.capacity.hosts import HostType, Resource
from tare.bench.capacity.instance_types import InstanceType
from tare.bench.capacity.plan import Use, interval_of, uses

_EXACT = 1e-9


class Demand(msgspec.Struct, frozen=True):
    """So many instances of a type."""

    type: InstanceType
    instances: int


class Filled(msgspec.Struct, frozen=True):
    """``hosts`` hosts of one type that hold the same: instances by the name of their demand.

    ``shares`` say how full each pool that binds is then, by its name: 1 is full.
    """

    host: str
    hosts: int
    instances: dict[str, int]
    shares: dict[str, float]
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


_Key = tuple[Resource, bool]


class _Item(msgspec.Struct, frozen=True):
    """Instances of one demand: what one takes by resource and kind, what all on a host take once, how many at most."""

    type: InstanceType
    each: dict[_Key, float]
    once: dict[_Key, float]
    most: int | None

    def shares(self, host: HostType, amounts: dict[_Key, float]) -> dict[_Key, float]:
        """Amounts as shares of a host's pools."""
        found: dict[_Key, float] = {}
        for (resource, promised), amount in amounts.items():
            usable = host.usable(resource, promised=promised)
            share = amount / usable if usable else (math.inf if amount > 0 else 0.0)
            pool = (resource, promised and resource is Resource.CPU)
            found[pool] = found.get(pool, 0.0) + share
        return found


def pack(demands: Sequence[Demand], hosts: Sequence[HostType]) -> Packing:
    """Fill hosts in their order, those that are counted up to their count."""
    filled, left = _pack([_item(one, 0) for one in demands], demands, hosts)
    ends: list[int | None] = []
    for end in (-1, 1):
        items = [_item(one, end) for one in demands]
        if any(item is None for item in items):
            ends.append(None)
            continue
        packed, rest = _pack(items, demands, hosts)
        ends.append(sum(one.hosts for one in packed) if sum(rest) == sum(left) == 0 else None)
    return Packing(
        filled=tuple(filled),
        hosts=sum(one.hosts for one in filled),
        hosts_fewest=ends[0],
        hosts_most=ends[1],
        bound=_bound(demands, hosts[0]) if len(hosts) == 1 else None,
        left={demand.type.name: count for demand, count in zip(demands, left, strict=True) if count},
    )


def _item(demand: Demand, end: int) -> _Item | None:
    """With costs as they are (0), or at the lower (-1) or upper (1) end of their intervals; None without one."""
    each: dict[_Key, float] = {}
    once: dict[_Key, float] = {}
    for need in demand.type.needs:
        if not need.binds:
            continue
        low, high = interval_of(need, demand.instances)
        amount = (low, need.each, high)[end + 1]
        if amount is None:
            return None
        each[need.resource, need.promised] = max(0.0, amount)
        once[need.resource, need.promised] = need.once
    caps = [cap.population for cap in demand.type.caps]
    return _Item(demand.type, each, once, min(caps, default=None))


def _pack(
    found: Sequence[_Item | None], demands: Sequence[Demand], hosts: Sequence[HostType]
) -> tuple[list[Filled], list[int]]:
    items = [item for item in found if item is not None]
    left = [demand.instances for demand in demands]
    filled: list[Filled] = []
    for host in hosts:
        order = sorted(range(len(items)), key=lambda place: -_share(items[place], host))
        free = host.count
        while any(left) and (free is None or free > 0):
            counts = _fill(items, order, left, host)
            if not any(counts):
                break
            # The same host again, as long as there is enough of all that is on it.
            same = min(left[place] // count for place, count in enumerate(counts) if count)
            same = same if free is None else min(same, free)
            left = [rest - same * count for rest, count in zip(left, counts, strict=True)]
            free = None if free is None else free - same
            placed = [(item.type, count) for item, count in zip(items, counts, strict=True) if count]
            shares = {_pool_name(pool): used for pool, used in _used(items, counts, host).items()}
            held = {kind.name: count for kind, count in placed}
            filled.append(Filled(host.name, same, held, shares, tuple(uses(placed, host))))
    return filled, left


def _share(item: _Item, host: HostType) -> float:
    """The largest share of a host that one instance takes of anything."""
    return max(item.shares(host, item.each).values(), default=0.0)


def _used(items: Sequence[_Item], counts: Sequence[int], host: HostType) -> dict[_Key, float]:
    used: dict[_Key, float] = {}
    for item, count in zip(items, counts, strict=True):
        once = item.shares(host, item.once)
        for pool, share in item.shares(host, item.each).items() if count else ():
            used[pool] = used.get(pool, 0.0) + once[pool] + count * share
    return used


def _pool_name(pool: _Key) -> str:
    resource, promised = pool
    return f"{resource.value} promised" if promised else resource.value


def _fill(items: Sequence[_Item], order: Sequence[int], left: Sequence[int], host: HostType) -> list[int]:
    """As many as fit on one empty host, the largest first."""
    free: dict[_Key, float] = {}
    counts = [0] * len(items)
    for place in order:
        item = items[place]
        each, once = item.shares(host, item.each), item.shares(host, item.once)
        count = left[place] if item.most is None else min(left[place], item.most)
        for pool, share in each.items():
            room = free.get(pool, 1.0 + _EXACT) - once[pool]
            if room < 0 or math.isinf(share):
                count = 0
            elif share > 0:
                count = min(count, math.floor(room / share))
        counts[place] = count
        for pool, share in each.items() if count else ():
            free[pool] = free.get(pool, 1.0 + _EXACT) - once[pool] - count * share
    return counts


def _bound(demands: Sequence[Demand], host: HostType) -> int | None:
    """Hosts that no packing can do without: each pool alone, instances cut where it suits."""
    total: dict[_Key, float] = {}
    fewest = 1
    for demand in demands:
        item = _item(demand, 0)
        if item is None:
            continue
        for pool, share in item.shares(host, item.each).items():
            total[pool] = total.get(pool, 0.0) + share * demand.instances
        if item.most:
            fewest = max(fewest, math.ceil(demand.instances / item.most))
    if any(math.isinf(share) for share in total.values()):
        return None
    return max([fewest, *(math.ceil(share * (1 - _EXACT)) for share in total.values())])
