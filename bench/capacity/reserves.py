"""Hosts in reserve: how many are needed so that everything still runs after some are lost.

Nothing is divided: instances are placed. They are spread over all hosts, as schedulers do; then the hosts that carry
most are lost, and only what ran on them is placed again, into what is free on the others. Free capacity in pieces that
are too small for an instance counts for nothing. Instances that survive are not moved.
"""

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from tare.bench.capacity.hosts import HostType
from tare.bench.capacity.packing import Demand, Item, Packing, items_of
from tare.bench.capacity.plan import EXACT
from tare.bench.errors import SuiteError

_Counts = npt.NDArray[np.int64]
_Shares = npt.NDArray[np.float64]

MOST_HOSTS = 100_000
"""The most hosts among which a reserve is looked for."""


class Reserve(msgspec.Struct, frozen=True):
    """What must be survivable at once: ``lost`` hosts, or one of ``domains`` failure domains (None: there are none).

    A share ``maintenance`` of the hosts is out of service meanwhile.
    """

    lost: int = 0
    domains: int | None = None
    domain: str = "domain"
    maintenance: float = 0.0

    def out_of(self, hosts: int, lost: int) -> int:
        """How many of ``hosts`` may be missing: lost ones, or the largest domain, and those in maintenance."""
        largest = 0 if self.domains is None else math.ceil(hosts / self.domains)
        return max(lost, largest) + math.ceil(self.maintenance * hosts - EXACT)


class Reserved(msgspec.Struct, frozen=True):
    """A row of the table over lost hosts: what it takes to survive the loss of ``lost`` hosts (or of a domain).

    ``hosts`` are to be bought, by type. ``missing`` of them may be out at once. Afterwards the others are ``share``
    full of what is fullest, and ``placeable`` are the demands of which one more instance would still find a place.
    """

    lost: int
    hosts: dict[str, int]
    missing: int
    share: float
    placeable: tuple[str, ...]

    @property
    def total(self) -> int:
        """Hosts of all types."""
        return sum(self.hosts.values())


def reserve_table(
    demands: Sequence[Demand], hosts: Sequence[HostType], packing: Packing, reserve: Reserve, *, rows: int = 4
) -> tuple[Reserved, ...]:
    """A row for each number of lost hosts from 0 on, to ``reserve.lost`` and at least ``rows`` of them.

    Raises SuiteError if not everything finds a place with all hosts there, or if all hosts are counted and too few are
    left after a loss that ``reserve`` asks for; further rows end there.
    """
    found: list[Reserved] = []
    if packing.left:
        rest = ", ".join(f"{count:,} of {name}" for name, count in packing.left.items())
        raise SuiteError(
            "spare",
            f"without any loss, {rest} find no place",
            remedy="raise the count of a host type, or place fewer instances",
        )
    for lost in range(max(reserve.lost + 1, rows)):
        try:
            found.append(_survive(demands, hosts, packing, reserve, lost))
        except SuiteError:
            if lost <= reserve.lost:
                raise
            break
    return tuple(found)


def _survive(
    demands: Sequence[Demand], hosts: Sequence[HostType], packing: Packing, reserve: Reserve, lost: int
) -> Reserved:
    """The fewest hosts, those of the packing and more of the last type that is not counted, that survive the loss."""
    items = items_of(demands)
    counts = {host.name: 0 for host in hosts}
    for one in packing.filled:
        counts[one.host] += one.hosts
    for added in _growing(reserve, sum(counts.values()), lost):
        bought = _with_more(hosts, counts, added)
        fleet = _Placed(items, [host for host in hosts for _ in range(bought[host.name])])
        missing = reserve.out_of(len(fleet.hosts), lost)
        if missing >= len(fleet.hosts) or not fleet.spread():
            continue
        fleet.lose(missing)
        if fleet.place_again():
            return Reserved(lost, {name: n for name, n in bought.items() if n}, missing, fleet.share, fleet.placeable())
    raise SuiteError("spare", f"no {MOST_HOSTS:,} hosts survive the loss of {lost}")


def _growing(reserve: Reserve, needed: int, lost: int) -> Iterator[int]:
    """How many hosts to add to ``needed``: at least as many as will be missing, then one more at a time."""
    added = 0
    while needed + added - reserve.out_of(needed + added, lost) < needed and needed + added < MOST_HOSTS:
        added += 1
    # Where what is lost leaves the last host a part empty, fewer may do: the placing decides.
    yield from range(max(0, added - 1), MOST_HOSTS - needed)


def _with_more(hosts: Sequence[HostType], counts: dict[str, int], added: int) -> dict[str, int]:
    """Raises SuiteError if there are no more hosts to be had."""
    bought = dict(counts)
    for host in (*(one for one in hosts if one.count is not None), *(one for one in hosts if one.count is None)):
        more = added if host.count is None else min(added, host.count - bought[host.name])
        bought[host.name] += more
        added -= more
    if added:
        there = ", ".join(f"{host.count} {host.name}" for host in hosts)
        verb = "is" if added == 1 else "are"
        raise SuiteError(
            "spare",
            f"too few hosts are left after the loss: {added} more {verb} needed than there are ({there})",
            remedy="raise the count of a host type, ask for a smaller reserve, or place fewer instances",
        )
    return bought


class _Placed:
    """Hosts with what is on them. ``used`` is a share by host and pool, ``counts`` instances by host and item."""

    def __init__(self, items: Sequence[Item], hosts: Sequence[HostType]) -> None:
        self.items = items
        self.hosts = list(hosts)
        self.pools = list(dict.fromkeys(pool for item in items for pool in item.shares(hosts[0], item.each)))
        self.each, self.once = (self._shares(name) for name in ("each", "once"))
        largest = self.each.max(axis=(0, 2), initial=0.0)
        self.order = [int(place) for place in np.argsort(-largest, kind="stable")]
        self.used: _Shares = np.zeros((len(hosts), len(self.pools)))
        self.counts: _Counts = np.zeros((len(hosts), len(items)), dtype=np.int64)
        self.displaced: _Counts = np.zeros(len(items), dtype=np.int64)

    def _shares(self, name: str) -> _Shares:
        """What one instance takes each, or all of an item once: by host, item and pool."""
        found = np.zeros((len(self.hosts), len(self.items), len(self.pools)))
        known: dict[int, _Shares] = {}
        for row, host in enumerate(self.hosts):
            if id(host) not in known:
                block = np.zeros((len(self.items), len(self.pools)))
                for place, item in enumerate(self.items):
                    for pool, share in item.shares(host, getattr(item, name)).items():
                        block[place, self.pools.index(pool)] = share
                known[id(host)] = block
            found[row] = known[id(host)]
        return found

    def spread(self) -> bool:
        """Place all that is wanted, evenly over all hosts, the largest first; False if not all found a place."""
        return all(self._place(place, self.items[place].wanted, evenly=True) == 0 for place in self.order)

    def lose(self, missing: int) -> None:
        """Lose the hosts that carry most."""
        fullest = np.argsort(-self.used.max(axis=1, initial=0.0), kind="stable")[:missing]
        self.displaced = self.counts[fullest].sum(axis=0)
        kept = np.setdiff1d(np.arange(len(self.hosts)), fullest)
        self.hosts = [self.hosts[int(row)] for row in kept]
        self.used, self.counts = self.used[kept], self.counts[kept]
        self.each, self.once = self.each[kept], self.once[kept]

    def place_again(self) -> bool:
        """Place what the lost hosts carried on the others, where there is least free; False if some found no place."""
        return all(self._place(place, int(self.displaced[place]), evenly=False) == 0 for place in self.order)

    @property
    def share(self) -> float:
        """How full the fullest pool is over all hosts together."""
        return float(self.used.mean(axis=0).max(initial=0.0))

    def placeable(self) -> tuple[str, ...]:
        """The demands of which one more instance would find a place."""
        return tuple(item.type.name for place, item in enumerate(self.items) if self._fitting(place).any())

    def _place(self, place: int, wanted: int, *, evenly: bool) -> int:
        """Place instances of an item on hosts; how many found no place."""
        while wanted:
            fitting = self._fitting(place)
            open_rows = np.flatnonzero(fitting)
            if not open_rows.size:
                return wanted
            if evenly:
                each = max(1, wanted // open_rows.size)
                rows = open_rows[: min(open_rows.size, wanted)]
                given = np.minimum(fitting[rows], each)
            else:
                fullest = open_rows[np.argmax(self.used[open_rows].max(axis=1))]
                rows, given = np.array([fullest]), np.minimum(fitting[[fullest]], wanted)
            self.used[rows] += given[:, None] * self.each[rows, place]
            self.used[rows] += np.where(self.counts[rows, place, None] == 0, self.once[rows, place], 0.0)
            self.counts[rows, place] += given
            wanted -= int(given.sum())
        return 0

    def _fitting(self, place: int) -> _Counts:
        """How many more instances of an item fit on each host."""
        once = np.where(self.counts[:, place, None] == 0, self.once[:, place], 0.0)
        free = 1.0 + EXACT - self.used - once
        with np.errstate(divide="ignore", invalid="ignore"):
            fitting = np.where(self.each[:, place] > 0, free / self.each[:, place], np.inf)
        fitting = np.where(free < 0, 0.0, fitting).min(axis=1, initial=float(self.items[place].wanted))
        most = self.items[place].most
        if most is not None:
            fitting = np.minimum(fitting, most - self.counts[:, place])
        whole: _Counts = np.floor(np.maximum(fitting, 0.0)).astype(np.int64)
        return whole
