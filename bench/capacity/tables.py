"""A plan in tables: heads, rows of words, and the sentences beneath them; the same in every form of a plan."""

import math
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import msgspec

from tare.bench.capacity.audit import Audit, Checked, track_record
from tare.bench.capacity.growth import HORIZON_MONTHS
from tare.bench.capacity.hosts import OVERCOMMITTED, Resource
from tare.bench.capacity.overhead import SizedOverhead
from tare.bench.capacity.packing import Packing
from tare.bench.capacity.plan import EXTRAPOLATED, HostPlan
from tare.bench.capacity.planned import MIX, Outlook, Plan
from tare.bench.capacity.prices import BreakEven
from tare.bench.capacity.reserves import Reserved
from tare.bench.capacity.words import hosts_words, instances_words, interval_words, plan_interval_words
from tare.bench.units import format_size

CAPACITY_HEAD = ("resource", "by", "one takes", "there is", "fits", "95 % interval", "binds")
PACKING_HEAD = ("hosts", "type of host", "holds", "used then")
TOGETHER = "All of them together"
_RESERVE_HEAD = ("lost", "out of service", "hosts to have", "full then", "one more still fits of")
_COST_HEAD = ("instances", "host", "a host", "an instance", "95 % interval", "all that is wanted")
CASE_HEAD = ("case", "instances", "host", "per host", "95 % interval", "runs out first", "hosts", "a month")
_OVERHEAD_HEAD = ("memory", "overhead", "95 % interval", "from")


class SectionKind(StrEnum):
    """What follows from a plan."""

    RESERVES = "reserves"
    GROWTH = "growth"
    OVERHEAD = "overhead"
    RECORD = "record"
    COSTS = "costs"
    WHAT_IF = "what-if"
    AUDIT = "audit"


class Section(msgspec.Struct, frozen=True):
    """One thing that follows from a plan: a table, which may be empty, and sentences.

    ``outlook`` is what it shows, None for what is of no outlook.
    """

    kind: SectionKind
    title: str
    head: tuple[str, ...]
    rows: list[list[str]]
    lines: list[str]
    outlook: Outlook | None = None


def summary_head(plans: Sequence[HostPlan]) -> list[str]:
    """The head of the table over types."""
    demand = ["wanted", "hosts"] if any(plan.demand is not None for plan in plans) else []
    return ["instances", "per host", "95 % interval", "runs out first", "used then", *demand]


def summary_rows(plans: Sequence[HostPlan]) -> Iterator[list[str]]:
    """A line a type: how many fit, what runs out, how full the host is then, hosts for the demand."""
    for plan in plans:
        interval = plan_interval_words(plan)
        row = [plan.type.name, instances_words(plan), interval, plan.binds or "–", _shares(plan)]
        if plan.demand is not None:
            row += [f"{plan.demand:,}", hosts_words(plan)]
        yield row


def _shares(plan: HostPlan) -> str:
    """How full the host is, by the needs that fill it."""
    binding = {(one.resource, one.by_limit) for one in plan.capacities if one.binds}
    shown = [use for use in plan.headroom if use.resource in OVERCOMMITTED and (use.resource, use.by_limit) in binding]
    named = ((f"{use.resource} {'limits' if use.by_limit else 'measured'}", use) for use in shown)
    return ", ".join(f"{name} {100 * use.share:.0f} %" if use.usable else f"{name}: none there" for name, use in named)


def capacity_rows(plan: HostPlan) -> list[list[str]]:
    """A line a resource: what one takes, and how many that is enough for."""
    rows = [
        [
            one.name,
            one.source,
            amount_words(one.resource, one.each),
            "not stated" if math.isinf(one.usable) else amount_words(one.resource, one.usable),
            "no end" if one.instances is None else f"{one.instances:,}",
            "–" if one.instances is None or one.fewest == one.most else interval_words(one.fewest, one.most),
            "yes" if one.binds else "no",
        ]
        for one in plan.capacities
        if one.resource in OVERCOMMITTED
    ]
    limits = plan.type.host_limits
    return rows + [[one.resource, "the ramp ended there", "", "", f"{one.population:,}", "–", "yes"] for one in limits]


def amount_words(resource: Resource, value: float) -> str:
    """So much of a resource."""
    if resource is Resource.CGROUPS or (resource is Resource.CPU and value >= 1000):
        return f"{value:,.0f}"
    return f"{value:.3g}" if resource is Resource.CPU else format_size(value)


def packing_rows(packing: Packing) -> list[list[str]]:
    """A line a kind of filled host."""
    return [
        [
            f"{one.hosts:,}",
            one.host,
            ", ".join(f"{count:,} {name}" for name, count in one.instances.items()),
            ", ".join(
                f"{resource}{' limits' if by_limit else ''} {100 * share:.0f} %"
                for resource, by_limit, share in one.shares
                if resource is not Resource.CGROUPS
            ),
        ]
        for one in packing.filled
    ]


def packing_sentences(plan: Plan, packing: Packing) -> Iterator[str]:
    """How good the packing is, and what found no place."""
    if plan.is_extrapolated(MIX):
        yield f"It is not answered *: hosts are filled with more than {EXTRAPOLATED} times what was measured."
    interval = ""
    if packing.hosts_fewest is not None and packing.hosts_most is not None:
        interval = f" ({packing.hosts_fewest:,} to {packing.hosts_most:,} by the intervals of the costs)"
    yield f"{packing.hosts:,} hosts{interval}, packed by first fit decreasing, a heuristic: an upper bound."
    if packing.bound is not None:
        yield f"No packing needs fewer than {packing.bound:,}: each resource alone, as if instances could be cut."
    for name, count in packing.left.items():
        yield f"{count:,} of {name} find no place."


def further(plan: Plan) -> Iterator[Section]:
    """What follows from the plan, a section each."""
    for outlook in plan.outlooks:
        beyond = plan.is_extrapolated(outlook.of)
        if outlook.reserves:
            rows = list(_reserve_rows(outlook.reserves, beyond=beyond))
            yield Section(SectionKind.RESERVES, f"Losing hosts: {outlook.of}", _RESERVE_HEAD, rows, [], outlook)
        if outlook.growth:
            head = ("in months", *(f"{name}, 95 % interval" for name in outlook.expected))
            rows, lines = list(_growth_rows(outlook)), list(_growth_sentences(outlook, beyond=beyond))
            yield Section(SectionKind.GROWTH, f"Growth: {outlook.of}", head, rows, lines, outlook)
    for line in plan.overheads:
        rows, lines = list(_overhead_rows(line, plan.size)), [_overhead_sentence(line)]
        yield Section(SectionKind.OVERHEAD, f"Overhead by size: {line.name}", _OVERHEAD_HEAD, rows, lines)
    if plan.cases:
        rows = [row for name, case in plan.cases for row in case_rows(name, case)]
        yield Section(SectionKind.WHAT_IF, "What if", CASE_HEAD, rows, [])
    if plan.audit is not None:
        title, lines = f"Audit of {plan.audit.plan}", [f"By the ramp of {plan.audit.run}.", track_record([plan.audit])]
        yield Section(SectionKind.AUDIT, title, AUDIT_HEAD, audit_rows(plan.audit), [one for one in lines if one])
    if plan.track_record:
        yield Section(SectionKind.RECORD, "How past plans did", (), [], [plan.track_record])
    if plan.price_source:
        lines = [break_even_sentence(plan, one) for one in plan.break_evens] + [f"Prices: {plan.price_source}."]
        yield Section(SectionKind.COSTS, "Cost per month", _COST_HEAD, list(_cost_rows(plan)), lines)


def _reserve_rows(reserves: Sequence[Reserved], *, beyond: bool) -> Iterator[list[str]]:
    for one in reserves:
        bought = ", ".join(f"{count:,} {name}" for name, count in one.hosts.items()) + _mark(beyond)
        more = ", ".join(one.placeable) or "nothing"
        yield [f"{one.lost}", f"{one.missing}", bought, f"{100 * one.share:.0f} %", more]


def _growth_rows(outlook: Outlook) -> Iterator[list[str]]:
    """Every third month of the first year, then every year."""
    for month in (3, 6, 9, 12, 24, 36, 48, 60):
        ends = [expected[month - 1] for expected in outlook.expected.values() if month <= len(expected)]
        yield [f"{month}", *(_expected_words(*one) for one in ends)]


def _expected_words(middle: float, low: float, high: float) -> str:
    return f"{middle:,.0f}" if low == high else f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


def _growth_sentences(outlook: Outlook, *, beyond: bool) -> Iterator[str]:
    yield from (f"{name}: {model}." for name, model in outlook.growth.items())
    if any("months" in model for model in outlook.growth.values()):
        yield "Such an interval held the truth in 93 to 99 of 100 simulated demands, in 80 to 88 if growth changes."
    full = outlook.exhaustion
    if full is None:
        yield "When the hosts are full is not said: how many there are is not stated."
    elif beyond:
        when = f"more than {HORIZON_MONTHS} months" if full.months is None else _months(full.months)
        yield f"When the hosts are full is not answered (extrapolated: {when}) *."
    elif full.months is None:
        least = "" if full.earliest is None else f"; {_months(full.earliest)} at the earliest"
        yield f"The hosts last longer than {HORIZON_MONTHS} months{least}."
    else:
        least = "now" if full.earliest is None else _months(full.earliest)
        most = f"more than {HORIZON_MONTHS} months" if full.latest is None else _months(full.latest)
        interval = "" if full.earliest == full.latest else f" (95 % interval: {least} to {most})"
        yield f"The hosts are full in {_months(full.months)}{interval}."


def _months(number: int) -> str:
    return f"{number} month{'' if number == 1 else 's'}"


def _mark(beyond: bool) -> str:  # noqa: FBT001 - a mark or none
    """The asterisk of what is no answer, which a note explains."""
    return " *" if beyond else ""


def _cost_rows(plan: Plan) -> Iterator[list[str]]:
    for one, cost in zip(plan.plans, plan.costs, strict=True):
        if cost is None:
            yield [one.type.name, one.host.name, "no price, or no bound is known", "–", "–", "–"]
            continue
        low, high = (
            None if end is None else money(end, cost.currency) for end in (cost.instance_least, cost.instance_most)
        )
        interval = "–" if low is None or high is None else f"{low} to {high}"
        demand = "–" if cost.demand is None else money(cost.demand, cost.currency)
        each, mark = money(cost.instance, cost.currency), _mark(one.is_extrapolated)
        name, host = one.type.name, money(cost.host, cost.currency)
        interval = "–" if one.is_extrapolated else interval
        yield [name, one.host.name, host, f"{each}{mark}", interval, f"{demand}{mark}"]


def _overhead_rows(line: SizedOverhead, size: int | None) -> Iterator[list[str]]:
    """The measured sizes, and the one that was asked for, by the line."""
    rows = [(one.size, one.overhead, one.run) for one in line.measured]
    if size is not None:
        rows.append((float(size), line.at(size), "the line"))
    for memory, found, source in sorted(rows, key=lambda one: one[0]):
        interval = (
            "–" if found.low is None or found.high is None else f"{format_size(found.low)} to {format_size(found.high)}"
        )
        yield [format_size(memory), format_size(found.per_instance), interval, source]


def _overhead_sentence(line: SizedOverhead) -> str:
    fit = "" if line.misfit is None else f" The ramps lie {line.misfit:.1f} standard errors from it."
    return f"A line: {format_size(line.base)} and {100 * line.share:.2g} % of the memory.{fit}"


def money(amount: float, currency: str) -> str:
    """An amount, with cents while they count."""
    return f"{amount:,.2f} {currency}" if amount < 100 else f"{amount:,.0f} {currency}"


def break_even_sentence(plan: Plan, found: BreakEven) -> str:
    """From where on one type is the cheaper, and by how much."""
    beyond = plan.is_extrapolated(found.cheaper) or plan.is_extrapolated(found.dearer)
    start = "For any number of instances" if found.instances <= 1 else f"From {found.instances:,} instances on"
    return (
        f"{start}, {found.cheaper} costs no more than {found.dearer}; on full hosts its host may cost "
        f"{found.host_price_ratio:.2f} times as much until both cost the same{_mark(beyond)}."
    )


AUDIT_HEAD = ("instances", "what", "predicted", "95 % interval", "measured", "the plan was")


def audit_rows(audit: Audit) -> list[list[str]]:
    """One line a prediction: predicted against measured."""
    rows = []
    for one in audit.checked:
        words = _audited_amount(one)
        interval = (
            "–" if one.low is None else f"{words(one.low)} to {'no end known' if one.high is None else words(one.high)}"
        )
        held = f"not tested: {one.why}" if one.held is None else ("right" if one.held else "wrong")
        measured = "–" if one.measured is None else words(one.measured)
        rows.append([one.type, one.what, words(one.predicted), interval, measured, held])
    return rows


def _audited_amount(one: Checked) -> Callable[[float], str]:
    if one.what.startswith(Resource.MEMORY):
        return format_size
    return (lambda value: f"{value:,.0f}") if one.what.startswith("instances") else (lambda value: f"{value:.3g}")


def case_rows(name: str, plan: Plan) -> Iterator[list[str]]:
    """The rows of a case in a table over cases."""
    for place, one in enumerate(plan.plans):
        cost = plan.costs[place] if plan.costs else None
        month = "–" if cost is None or cost.demand is None else money(cost.demand, cost.currency)
        month += _mark(one.is_extrapolated)
        row = [name, one.type.name, one.host.name, instances_words(one), plan_interval_words(one)]
        yield [*row, one.binds or "–", hosts_words(one), month]
    if plan.packing is not None:
        mark = _mark(plan.is_extrapolated(MIX))
        yield [name, TOGETHER, "", "", "", "", f"{plan.packing.hosts:,}{mark}", ""]
