"""What a plan costs a month: hosts bought or rented, energy, licences; and where two backends cost the same.

Prices are the user's, in a TOML file with their date and source. Money is in the file's currency, energy in kilowatt
hours, power in watts. A month is 730.5 hours, a twelfth of a year.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tare.bench.capacity.audit import SAME_SIZE
from tare.bench.capacity.hosts import Resource
from tare.bench.capacity.plan import HostPlan
from tare.bench.errors import SuiteError
from tare.bench.suite_file import Section, convert, read_toml

HOURS_A_MONTH = 730.5
MEASURED = "measured"

Amount = Annotated[float, Meta(ge=0, le=1e12)]
Text = Annotated[str, Meta(min_length=1)]


class EnergySection(Section, frozen=True):
    """``[energy]``: a price, and how many times a host's own power the site takes (power usage effectiveness)."""

    per_kwh: Amount
    pue: Annotated[float, Meta(ge=1, le=10)] = 1.0


class HostPrice(Section, frozen=True):
    """``[[host]]``: a month of a host, rented, or ``bought`` and amortised over ``months``, and what else it costs.

    Its power is ``idle_watts`` plus what its CPUs' use adds up to ``full_watts``. With ``"measured"`` it is
    what the ramp read (RAPL: processors and memory only) without and with idle instances, on a host of that size.
    """

    name: Text
    rented_per_month: Amount | None = None
    bought: Amount | None = None
    months: Annotated[int, Meta(ge=1)] | None = None
    other_per_month: Amount = 0.0
    idle_watts: Amount | Literal["measured"] = 0.0
    full_watts: Amount | None = None


class LicencePrice(Section, frozen=True):
    """``[[licence]]``: of the hosts, cores and instances of a backend, or of all of them."""

    name: Text
    backend: str = ""
    per_host_per_month: Amount = 0.0
    per_core_per_month: Amount = 0.0
    per_instance_per_month: Amount = 0.0


class Prices(Section, frozen=True):
    """A price file."""

    currency: Text
    date: Text
    source: Text
    host: Annotated[tuple[HostPrice, ...], Meta(min_length=1)]
    energy: EnergySection | None = None
    licence: tuple[LicencePrice, ...] = ()

    def of_host(self, name: str) -> HostPrice | None:
        """The price of a host type; the only one of the file holds for every host."""
        return next((one for one in self.host if one.name == name), self.host[0] if len(self.host) == 1 else None)


class MonthlyCost(msgspec.Struct, frozen=True):
    """What instances of one type cost on hosts of one type, per month.

    ``host`` is one host with all it needs, made of ``parts``; ``licences`` are each instance's own. ``instance`` is one
    on a full host, from ``instance_least`` to ``instance_most`` by the interval of how many fit; None where that has no
    end. ``demand`` is all of the demand on whole hosts, None without a demand.
    """

    currency: str
    host: float
    licences: float
    instance: float
    instance_least: float | None
    instance_most: float | None
    demand: float | None
    parts: dict[str, float]

    def total(self, instances: int, per_host: int) -> float:
        """So many instances on whole hosts that hold ``per_host`` each."""
        return -(-instances // per_host) * self.host + instances * self.licences


class BreakEven(msgspec.Struct, frozen=True):
    """Of two types of instances: from how many instances on ``cheaper`` costs no more than ``dearer``.

    ``host_price_ratio`` is how many times as much the cheaper one's host may cost until both cost the same on full
    hosts. ``curve`` has the cost of whole hosts for numbers of instances: (instances, cheaper, dearer).
    """

    cheaper: str
    dearer: str
    instances: int
    host_price_ratio: float
    curve: tuple[tuple[int, float, float], ...]


def load_prices(path: Path) -> Prices:
    """Read a price file. Raises SuiteError with the file and the key."""
    prices = convert(read_toml(path), Prices, path, "")
    for number, host in enumerate(prices.host):
        place = f"{path}: host[{number}]"
        if (host.rented_per_month is None) == (host.bought is None):
            raise SuiteError(place, "needs one of rented_per_month and bought")
        if (host.bought is None) != (host.months is None):
            raise SuiteError(f"{place}.months", "belongs to bought: over how many months it is paid")
        if host.idle_watts == MEASURED and host.full_watts is not None:
            raise SuiteError(f"{place}.full_watts", "cannot be combined with idle_watts = 'measured'")
        if host.full_watts is not None and host.full_watts < _stated(host.idle_watts):
            raise SuiteError(f"{place}.full_watts", f"is less than idle_watts ({host.idle_watts:g})")
        if host.idle_watts and prices.energy is None:
            raise SuiteError(f"{path}: energy", f"is missing: the power of {host.name!r} has no price")
    return prices


def cost_of(plan: HostPlan, prices: Prices) -> MonthlyCost | None:
    """What a plan costs; None where nothing is known to bound the instances, or the host has no price."""
    price = prices.of_host(plan.host.name)
    if price is None or not plan.instances:
        return None
    used = next((use.share for use in plan.headroom if use.resource is Resource.CPU and not use.by_limit), 0.0)
    licences = [one for one in prices.licence if one.backend in {"", plan.type.result.cell.backend}]
    parts = {
        "host": price.rented_per_month
        if price.rented_per_month is not None
        else (price.bought or 0) / (price.months or 1),
        "other": price.other_per_month,
        "energy": _energy(plan, price, prices.energy, min(1.0, used * _of_all_cpus(plan))),
        "licences": sum(one.per_host_per_month + one.per_core_per_month * plan.host.cpus for one in licences),
    }
    host, own = sum(parts.values()), sum(one.per_instance_per_month for one in licences)
    return MonthlyCost(
        currency=prices.currency,
        host=host,
        licences=own,
        instance=host / plan.instances + own,
        instance_least=host / plan.most + own if plan.most else None,
        instance_most=host / plan.fewest + own if plan.fewest else None,
        demand=None if plan.hosts is None or plan.demand is None else plan.hosts * host + plan.demand * own,
        parts={name: amount for name, amount in parts.items() if amount},
    )


def break_even(plans: tuple[HostPlan, HostPlan], prices: Prices, *, most: int) -> BreakEven | None:
    """Which of two plans is cheaper for ``most`` instances, and from how many on; None if one of them has no cost."""
    priced = [
        (plan.type.name, plan.instances, cost)
        for plan in plans
        if plan.instances and (cost := cost_of(plan, prices)) is not None
    ]
    if len(priced) < 2:
        return None
    priced.sort(key=lambda one: one[2].total(most, one[1]))
    (cheaper, fits, cost), (dearer, others, other) = priced
    numbers = _numbers(most, (fits, others))
    curve = [(number, cost.total(number, fits), other.total(number, others)) for number in numbers]
    # Whole hosts make the order change to and fro: it counts from where it does not change any more.
    undecided = [number for number, own, theirs in curve if own > theirs]
    first = next((number for number in numbers if not undecided or number > undecided[-1]), most)
    ratio = (other.instance - cost.licences) * fits / cost.host if cost.host else float("inf")
    return BreakEven(cheaper, dearer, first, ratio, tuple(curve))


def _numbers(most: int, steps: Sequence[int]) -> list[int]:
    """Numbers of instances at which a host more is needed, and just before; at most a few hundred of them."""
    edges = {1, most}
    for step in steps:
        stride = max(1, most // step // 100)
        for hosts in range(1, most // step + 1, stride):
            edges |= {hosts * step, min(most, hosts * step + 1)}
    return sorted(number for number in edges if 1 <= number <= most)


def _of_all_cpus(plan: HostPlan) -> float:
    """What part of the host's CPUs instances may use: the rest is kept for the host and taken as idle."""
    return plan.host.usable(Resource.CPU, by_limit=False) / plan.host.cpus


def _energy(plan: HostPlan, price: HostPrice, energy: EnergySection | None, share: float) -> float:
    """``share`` is how busy the CPUs are."""
    if energy is None:
        return 0.0
    idle = _stated(price.idle_watts)
    watts = idle + ((idle if price.full_watts is None else price.full_watts) - idle) * share
    if price.idle_watts == MEASURED:
        watts = _measured_watts(plan)
    return watts / 1000 * HOURS_A_MONTH * energy.per_kwh * energy.pue


def _stated(watts: float | str) -> float:
    return watts if isinstance(watts, float | int) else 0.0


def _measured_watts(plan: HostPlan) -> float:
    """The power of the measured host, and what each idle instance added to it. Raises SuiteError if nobody read it."""
    read = [
        (one.idle_watts, one.populated_watts, one.population)
        for one in plan.type.result.cell.endings
        if one.idle_watts is not None and one.populated_watts is not None and one.population
    ]
    key = "host.idle_watts"
    if not read:
        problem = f"no power was measured with {plan.type.name}: the host has no counters of energy (RAPL)"
        raise SuiteError(key, problem, remedy="state watts, or measure the ramp as root on a host that has them")
    if plan.type.host_cpus is None or abs(plan.host.cpus / plan.type.host_cpus - 1) > SAME_SIZE:
        problem = f"the ramp's host has other CPUs than {plan.host.name}: its power says nothing of that"
        raise SuiteError(key, problem, remedy="state watts")
    idle = sum(one[0] for one in read) / len(read)
    each = sum((populated - without) / population for without, populated, population in read) / len(read)
    return idle + max(0.0, each) * (plan.instances or 0)
