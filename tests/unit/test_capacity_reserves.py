"""Hosts in reserve: by hand, and against every loss that could happen."""

import itertools
import math

import numpy as np
import pytest

from tare.bench.capacity.hosts import HostType, Resource
from tare.bench.capacity.packing import Demand, pack
from tare.bench.capacity.reserves import Reserve, reserve_table
from tare.bench.errors import SuiteError
from tests.unit.test_capacity_plan import GIB, kind, need

BARE = {Resource.MEMORY: 0.0, Resource.CPU: 0.0, Resource.DISK: 0.0}


def host(memory: int, *, count: int | None = None, name: str = "h") -> HostType:
    return HostType(name, 1000, memory * GIB, count=count, reserve=BARE)


def wanted(name: str, memory: int, instances: int, **options) -> Demand:
    return Demand(kind(need(Resource.MEMORY, memory * GIB, **options), name=name), instances)


def table(demands, hosts, reserve=Reserve(), **options):  # noqa: B008 - is immutable
    return reserve_table(demands, hosts, pack(demands, hosts), reserve, **options)


def totals(rows):
    return [row.total for row in rows]


def test_a_lost_host_costs_a_host_where_hosts_are_full():
    rows = table([wanted("web", 1, 100)], [host(10)], Reserve(lost=2))
    assert totals(rows) == [10, 11, 12, 13]
    assert [row.missing for row in rows] == [0, 1, 2, 3]
    assert rows[0].share == pytest.approx(1.0)
    assert rows[1].share == pytest.approx(1.0), "the ten that are left hold all"
    assert rows[0].placeable == ()


def test_pieces_too_small_for_an_instance_are_no_room():
    # Six of 4 GiB on hosts of 6 GiB: one each, and 2 GiB that no further one fits into. Dividing would say 5 hosts.
    rows = table([wanted("large", 4, 6)], [host(6)], Reserve(lost=1))
    assert totals(rows)[:2] == [6, 7]
    # With small ones beside them, the small ones fill the pieces, and after a loss both kinds must find a place.
    rows = table([wanted("large", 4, 6), wanted("small", 1, 12)], [host(6)], Reserve(lost=1))
    assert totals(rows)[0] == 6
    assert totals(rows)[1] >= 7
    assert rows[1].placeable in ((), ("small",), ("large", "small"))


def test_a_whole_failure_domain_is_lost():
    rows = table([wanted("web", 1, 90)], [host(10)], Reserve(domains=3, domain="rack"))
    # 9 hosts are needed; of 14 in three racks the largest rack has 5, and 9 are left. Of 13 it has 5, and 8 are left.
    assert rows[0].total == 14
    assert rows[0].missing == 5


def test_maintenance_takes_its_share_besides():
    rows = table([wanted("web", 1, 90)], [host(10)], Reserve(lost=1, maintenance=0.1))
    hosts = next(n for n in itertools.count(9) if n - 1 - math.ceil(0.1 * n) >= 9)
    assert rows[1].total == hosts
    assert rows[1].missing == 1 + math.ceil(0.1 * hosts)


def test_counted_hosts_end_and_the_message_says_so():
    counted = [host(10, count=10)]
    assert totals(table([wanted("web", 1, 100)], counted)) == [10], "rows that were not asked for end there"
    with pytest.raises(SuiteError, match="too few hosts are left after the loss: 1 more is needed"):
        table([wanted("web", 1, 100)], counted, Reserve(lost=1))


def test_what_fits_nowhere_is_named():
    with pytest.raises(SuiteError, match="without any loss, 1 of huge find no place"):
        table([wanted("huge", 20, 1)], [host(10)])


@pytest.mark.parametrize("seed", range(40))
def test_whichever_hosts_are_lost_nothing_is_without_a_place(seed):
    """Every loss of so many hosts from the spread fleet, placed again by a search of our own, finds places for all."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 7, size=int(random.integers(1, 4)))
    demands = [wanted(f"d{i}", int(size), int(random.integers(1, 9))) for i, size in enumerate(sizes)]
    hosts = [host(int(random.integers(6, 14)))]
    lost = int(random.integers(1, 3))
    rows = table(demands, hosts, Reserve(lost=lost))
    row = rows[lost]
    assert row.total >= rows[lost - 1].total
    assert (
        row.total
        >= math.ceil(sum(int(s) * d.instances for s, d in zip(sizes, demands, strict=True)) / hosts[0].memory * GIB)
        + lost
    )
    everything = [int(size) for size, demand in zip(sizes, demands, strict=True) for _ in range(demand.instances)]
    assert fits(everything, row.total - lost, hosts[0].memory // GIB)


def fits(sizes, hosts, memory):
    """Whether a packing exists, by exhaustive search over hosts that differ."""
    sizes = sorted(sizes, reverse=True)

    def place(number, free):
        if number == len(sizes):
            return True
        tried = set()
        for row, room in enumerate(free):
            if room >= sizes[number] and room not in tried:
                tried.add(room)
                if place(number + 1, (*free[:row], room - sizes[number], *free[row + 1 :])):
                    return True
        return False

    return place(0, (memory,) * hosts)


def test_the_image_is_counted_once_a_host():
    disk = need(Resource.DISK, 1 * GIB, once=5 * GIB)
    demand = Demand(kind(disk, name="web"), 10)
    hosts = [HostType("h", 1000, 1000 * GIB, 10 * GIB, reserve=BARE)]
    assert totals(table([demand], hosts))[:2] == [2, 3], "five fit beside the image"
