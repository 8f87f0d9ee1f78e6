"""A plan as one value: each type on each host, a mix together, hosts in reserve, when they are full, money."""

import math
from collections.abc import Mapping, Sequence

import msgspec

from tare.bench.analysis.grade import Grade
from tare.bench.capacity.audit import Audit
from tare.bench.capacity.growth import HORIZON_MONTHS, Exhaustion, Held, Projection, find_exhaustion
from tare.bench.capacity.hosts import HostType
from tare.bench.capacity.overhead import SizedOverhead
from tare.bench.capacity.packing import Demand, Packing, fits, pack
from tare.bench.capacity.plan import EXTRAPOLATED, HostPlan
from tare.bench.capacity.prices import BreakEven, MonthlyCost
from tare.bench.capacity.reserves import Reserve, Reserved, reserve_table

MIX = "all of them together"
"""The name of a whole mix among the demands."""


class Outlook(msgspec.Struct, frozen=True):
    """What follows for the demands ``of`` one type, or of a whole mix.

    ``reserves`` is the table over lost hosts, empty where nobody asked. By the name of the demand, ``growth`` says from
    what and ``expected`` how much is wanted in each month to come: (middle, low, high). ``exhaustion`` is None where
    the hosts are not counted. ``reserve`` is what must be survivable.
    """

    of: str
    reserves: tuple[Reserved, ...] = ()
    growth: dict[str, str] = {}
    expected: dict[str, tuple[tuple[float, float, float], ...]] = {}
    exhaustion: Exhaustion | None = None
    reserve: Reserve | None = None

    @property
    def survived(self) -> Reserved | None:
        """The row of the table that was asked for."""
        lost = None if self.reserve is None else self.reserve.lost
        return next((row for row in self.reserves if row.lost == lost), None)


class Plan(msgspec.Struct, frozen=True):
    """Each type on each host, and the packing of a fleet's mix. ``costs`` go with the plans; empty without prices.

    ``overheads`` are of backends that were measured with several sizes; ``size`` is one they are asked for, in bytes.
    ``cases`` are plans in place of this one by name, ``audit`` is that of an earlier plan by the ramp of this one.
    ``track_record`` says how past plans did. ``grades`` are by run; empty if they were not looked at.
    """

    hosts: tuple[HostType, ...]
    plans: tuple[HostPlan, ...]
    packing: Packing | None = None
    outlooks: tuple[Outlook, ...] = ()
    costs: tuple[MonthlyCost | None, ...] = ()
    break_evens: tuple[BreakEven, ...] = ()
    price_source: str = ""
    overheads: tuple[SizedOverhead, ...] = ()
    size: int | None = None
    track_record: str = ""
    cases: tuple[tuple[str, "Plan"], ...] = ()
    audit: Audit | None = None
    grades: dict[str, Grade] = {}

    def is_extrapolated(self, of: str) -> bool:
        """Whether more instances of a type, or of a mix, are on a host than an answer may have."""
        if of != MIX:
            return any(one.is_extrapolated for one in self.plans if one.type.name == of)
        most = {one.type.name: EXTRAPOLATED * one.type.result.cell.population for one in self.plans}
        filled = () if self.packing is None else self.packing.filled
        return any(count > most[name] for one in filled for name, count in one.instances.items())

    @property
    def grade(self) -> tuple[str, Grade] | None:
        """The run that can be relied on least, with its grade: a plan can be relied on as far."""
        return max(self.grades.items(), key=lambda one: one[1].level.rank, default=None)


def outlook_of_type(plan: HostPlan, reserve: Reserve | None, projection: Projection | None) -> Outlook | None:
    """What follows for one type on one type of host; None if neither a reserve nor growth was asked for.

    Raises SuiteError if the hosts are counted and too few of them are left after the losses to survive.
    """
    if reserve is None and projection is None:
        return None
    name = plan.type.name
    reserves: tuple[Reserved, ...] = ()
    if reserve is not None and plan.demand is not None:
        demands = [Demand(plan.type, plan.demand)]
        reserves = reserve_table(demands, [plan.host], pack(demands, [plan.host]), reserve)
    if projection is None:
        return Outlook(name, reserves, reserve=reserve)
    exhaustion = None
    if plan.host.count is not None and plan.instances is not None:
        count = plan.host.count
        ends = (None if one is None else float(one * count) for one in (plan.fewest, plan.most))
        exhaustion = find_exhaustion(projection, Held(float(plan.instances * count), *ends))
    return Outlook(name, reserves, {name: projection.model}, {name: projection.expected}, exhaustion, reserve)


def outlook_of_mix(
    demands: Sequence[Demand],
    hosts: Sequence[HostType],
    packing: Packing,
    reserve: Reserve | None,
    projections: Mapping[str, Projection],
) -> Outlook | None:
    """What follows for a mix: as ``outlook_of_type``, by packing the demand of each month.

    Its interval joins the high ends of all demands and costs, and the low ones: it is wider than 95 %, as they seldom
    come together. ``projections`` are by the name of the demand; one without grows no more.
    """
    if reserve is None and not projections:
        return None
    reserves = () if reserve is None else reserve_table(demands, hosts, packing, reserve)
    models = {name: one.model for name, one in projections.items()}
    expected = {name: one.expected for name, one in projections.items()}
    exhaustion = None
    if projections and all(host.count is not None for host in hosts):
        found = [_full(demands, hosts, expected, *ends) for ends in ((0, "per_instance"), (2, "high"), (1, "low"))]
        exhaustion = Exhaustion(*found)
    return Outlook(MIX, reserves, models, expected, exhaustion, reserve)


def _full(
    demands: Sequence[Demand],
    hosts: Sequence[HostType],
    expected: Mapping[str, Sequence[tuple[float, float, float]]],
    which: int,
    end: str,
) -> int | None:
    """The first month whose demand, the middle (0), low (1) or high (2) one, finds no place."""
    for month in range(HORIZON_MONTHS):
        then = [
            Demand(
                one.type,
                math.ceil(expected[one.type.name][month][which]) if one.type.name in expected else one.instances,
            )
            for one in demands
        ]
        if not fits(then, hosts, end):
            return month + 1
    return None
