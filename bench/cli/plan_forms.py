"""A plan as tables for a terminal, as Markdown, and as JSON: the same figures and sentences in each."""

import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tare.bench.capacity.audit import Audit, Checked, track_record
from tare.bench.capacity.growth import HORIZON_MONTHS
from tare.bench.capacity.hosts import OVERCOMMITTED, HostType, Resource
from tare.bench.capacity.overhead import SizedOverhead
from tare.bench.capacity.packing import Packing
from tare.bench.capacity.plan import HostPlan, Use
from tare.bench.capacity.planned import Outlook, Plan
from tare.bench.capacity.prices import BreakEven
from tare.bench.capacity.reserves import Reserved
from tare.bench.capacity.words import (
    host_sentence,
    hosts_words,
    instances_words,
    interval_words,
    notes_of,
    plan_interval_words,
    plan_notes,
)
from tare.bench.readable import one_line, readable
from tare.bench.units import format_size

_RIGHT = ("per host", "fits", "hosts", "lost", "out of service", "full then")
_CAPACITY_HEAD = ("resource", "by", "one takes", "there is", "fits", "95 % interval", "binds")
_PACKING_HEAD = ("hosts", "type of host", "holds", "used then")
_RESERVE_HEAD = ("lost", "out of service", "hosts to have", "full then", "one more still fits of")
_COST_HEAD = ("instances", "host", "a host", "an instance", "95 % interval", "all that is wanted")
_TOGETHER = "All of them together"


def print_plan(console: Console, plan: Plan) -> None:
    """Tables, a host type each, and what has to be known about them."""
    for host in plan.hosts:
        own = [one for one in plan.plans if one.host is host]
        console.print()
        console.print(Text(readable(host_sentence(host)), style="bold"))
        console.print(_table(_summary_head(own), _summary_rows(own)))
        for one in own:
            console.print(Text(readable(f"\n{one.type.name}"), style="bold"))
            console.print(_table(_CAPACITY_HEAD, _capacity_rows(one)))
    if plan.packing is not None:
        console.print()
        console.print(Text(_TOGETHER, style="bold"))
        console.print(_table(_PACKING_HEAD, _packing_rows(plan.packing)))
        for line in _packing_sentences(plan.packing):
            console.print(Text(readable(line)))
    for title, head, rows, lines in _further(plan):
        console.print()
        console.print(Text(readable(title), style="bold"))
        if rows:
            console.print(_table(head, rows))
        for line in lines:
            console.print(Text(readable(line)))
    console.print()
    for line in notes_of(plan.plans):
        console.print(Text(readable(f"- {line}")))


def plan_text(plan: Plan) -> str:
    """The tables as text without colours."""
    console = Console(width=120, record=True, file=io.StringIO(), color_system=None)
    print_plan(console, plan)
    return console.export_text()


def plan_markdown(plan: Plan) -> str:
    """The same as Markdown."""
    lines = ["# Capacity plan"]
    for host in plan.hosts:
        own = [one for one in plan.plans if one.host is host]
        lines += ["", f"## {_escaped(host.name)}", "", _escaped(host_sentence(host)), ""]
        lines += _markdown(_summary_head(own), _summary_rows(own))
        for one in own:
            lines += ["", f"**{_escaped(one.type.name)}**", "", *_markdown(_CAPACITY_HEAD, _capacity_rows(one))]
    if plan.packing is not None:
        lines += ["", f"## {_TOGETHER}", "", *_markdown(_PACKING_HEAD, _packing_rows(plan.packing)), ""]
        lines += [f"{_escaped(line)}\n" for line in _packing_sentences(plan.packing)]
    for title, head, rows, sentences in _further(plan):
        lines += ["", f"## {_escaped(title)}", "", *(_markdown(head, rows) if rows else ()), ""]
        lines += [f"{_escaped(line)}\n" for line in sentences]
    return "\n".join([*lines, "", *(f"- {_escaped(line)}" for line in notes_of(plan.plans)), ""])


def plan_document(plan: Plan) -> dict[str, Any]:
    """The same as JSON, in base units."""
    return {
        "hosts": [_host_document(host) for host in plan.hosts],
        "plans": [_one_document(one) for one in plan.plans],
        "packing": None if plan.packing is None else _packing_document(plan.packing),
        "outlooks": [_outlook_document(one) for one in plan.outlooks],
        "costs": msgspec.to_builtins(plan.costs),
        "break_evens": msgspec.to_builtins(plan.break_evens),
        "price_source": plan.price_source,
        "overheads": msgspec.to_builtins(plan.overheads),
        "track_record": plan.track_record,
    }


def _outlook_document(outlook: Outlook) -> dict[str, Any]:
    reserves = [{**msgspec.to_builtins(one), "total": one.total} for one in outlook.reserves]
    return {**msgspec.to_builtins(outlook), "reserves": reserves}


def _one_document(plan: HostPlan) -> dict[str, Any]:
    kind, cell = plan.type, plan.type.result.cell
    return {
        "type": kind.name,
        "backend": cell.backend,
        "workload": cell.workload,
        "run": kind.run,
        "emulated": kind.is_emulated,
        "bound": kind.basis.value,
        "measured_population": cell.population,
        "host": plan.host.name,
        "instances": plan.instances,
        "instances_interval": None if plan.fewest is None else [plan.fewest, plan.most],
        "binds": plan.binds,
        "remedy": plan.remedy,
        "extrapolated": plan.is_extrapolated,
        "rooms": msgspec.to_builtins(plan.capacities),
        "headroom": [_use_document(use) for use in plan.headroom],
        "demand": plan.demand,
        "hosts_needed": plan.hosts,
        "hosts_interval": None if plan.hosts_fewest is None else [plan.hosts_fewest, plan.hosts_most],
        "scaling": msgspec.to_builtins(kind.result.scaling),
        "notes": plan_notes(plan),
    }


def _packing_document(packing: Packing) -> dict[str, Any]:
    filled = [
        {
            **msgspec.to_builtins(one),
            "shares": {
                f"{resource} promised" if by_limit else resource: share for resource, by_limit, share in one.shares
            },
            "headroom": [_use_document(use) for use in one.headroom],
        }
        for one in packing.filled
    ]
    return {**msgspec.to_builtins(packing), "filled": filled}


def _host_document(host: HostType) -> dict[str, Any]:
    reserve = {resource.value: host.reserved(resource) for resource in OVERCOMMITTED}
    return {**msgspec.to_builtins(host), "reserve": reserve}


def _use_document(use: Use) -> dict[str, Any]:
    return {**msgspec.to_builtins(use), "share": use.share if use.usable else None, "left": use.left}


def _summary_head(plans: Sequence[HostPlan]) -> list[str]:
    demand = ["wanted", "hosts"] if any(plan.demand is not None for plan in plans) else []
    return ["instances", "per host", "95 % interval", "runs out first", "used then", *demand]


def _summary_rows(plans: Sequence[HostPlan]) -> Iterator[list[str]]:
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


def _capacity_rows(plan: HostPlan) -> list[list[str]]:
    """A line a resource: what one takes, and how many that is enough for."""
    rows = [
        [
            one.name,
            one.source,
            _amount(one.resource, one.each),
            "not stated" if math.isinf(one.usable) else _amount(one.resource, one.usable),
            "no end" if one.instances is None else f"{one.instances:,}",
            "–" if one.instances is None or one.fewest == one.most else interval_words(one.fewest, one.most),
            "yes" if one.binds else "no",
        ]
        for one in plan.capacities
        if one.resource in OVERCOMMITTED
    ]
    limits = plan.type.host_limits
    return rows + [[one.resource, "the ramp ended there", "", "", f"{one.population:,}", "–", "yes"] for one in limits]


def _amount(resource: Resource, value: float) -> str:
    return f"{value:.3g}" if resource is Resource.CPU else format_size(value)


def _packing_rows(packing: Packing) -> list[list[str]]:
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


def _packing_sentences(packing: Packing) -> Iterator[str]:
    """How good the packing is, and what found no place."""
    interval = ""
    if packing.hosts_fewest is not None and packing.hosts_most is not None:
        interval = f" ({packing.hosts_fewest:,} to {packing.hosts_most:,} by the intervals of the costs)"
    yield f"{packing.hosts:,} hosts{interval}, packed by first fit decreasing, a heuristic: an upper bound."
    if packing.bound is not None:
        yield f"No packing needs fewer than {packing.bound:,}: each resource alone, as if instances could be cut."
    for name, count in packing.left.items():
        yield f"{count:,} of {name} find no place."


def _further(plan: Plan) -> Iterator[tuple[str, Sequence[str], list[list[str]], list[str]]]:
    """What follows from the plan, a section each: title, head, rows, sentences."""
    for outlook in plan.outlooks:
        if outlook.reserves:
            yield f"Losing hosts: {outlook.of}", _RESERVE_HEAD, list(_reserve_rows(outlook.reserves)), []
        if outlook.growth:
            head = ("in months", *(f"{name}, 95 % interval" for name in outlook.expected))
            yield f"Growth: {outlook.of}", head, list(_growth_rows(outlook)), list(_growth_sentences(outlook))
    for line in plan.overheads:
        head = ("memory", "overhead", "95 % interval", "from")
        yield f"Overhead by size: {line.name}", head, list(_overhead_rows(line, plan.size)), [_overhead_sentence(line)]
    if plan.track_record:
        yield "How past plans did", (), [], [plan.track_record]
    if plan.price_source:
        rows = list(_cost_rows(plan))
        lines = [*map(_break_even_sentence, plan.break_evens), f"Prices: {plan.price_source}."]
        yield "Cost per month", _COST_HEAD, rows, lines


def _reserve_rows(reserves: Sequence[Reserved]) -> Iterator[list[str]]:
    for one in reserves:
        bought = ", ".join(f"{count:,} {name}" for name, count in one.hosts.items())
        more = ", ".join(one.placeable) or "nothing"
        yield [f"{one.lost}", f"{one.missing}", bought, f"{100 * one.share:.0f} %", more]


def _growth_rows(outlook: Outlook) -> Iterator[list[str]]:
    """Every third month of the first year, then every year."""
    for month in (3, 6, 9, 12, 24, 36, 48, 60):
        ends = [expected[month - 1] for expected in outlook.expected.values() if month <= len(expected)]
        yield [f"{month}", *(_expected_words(*one) for one in ends)]


def _expected_words(middle: float, low: float, high: float) -> str:
    return f"{middle:,.0f}" if low == high else f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


def _growth_sentences(outlook: Outlook) -> Iterator[str]:
    yield from (f"{name}: {model}." for name, model in outlook.growth.items())
    if any("months" in model for model in outlook.growth.values()):
        yield "Such an interval held the truth in 93 to 99 of 100 simulated demands, in 80 to 88 if growth changes."
    full = outlook.exhaustion
    if full is None:
        yield "When the hosts are full is not said: how many there are is not stated."
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


def _cost_rows(plan: Plan) -> Iterator[list[str]]:
    for one, cost in zip(plan.plans, plan.costs, strict=True):
        if cost is None:
            yield [one.type.name, one.host.name, "no price, or no bound is known", "–", "–", "–"]
            continue
        low, high = (
            None if end is None else _money(end, cost.currency) for end in (cost.instance_least, cost.instance_most)
        )
        interval = "–" if low is None or high is None else f"{low} to {high}"
        demand = "–" if cost.demand is None else _money(cost.demand, cost.currency)
        each = _money(cost.instance, cost.currency)
        yield [one.type.name, one.host.name, _money(cost.host, cost.currency), each, interval, demand]


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


def what_if_text(cases: Sequence[tuple[str, Plan]], form: str) -> str:
    """One table over the cases, in a form of plans."""
    if form == "json":
        return json.dumps({"cases": [{"name": name, **plan_document(plan)} for name, plan in cases]}, indent=2) + "\n"
    head = ("case", "instances", "host", "per host", "95 % interval", "runs out first", "hosts", "a month")
    rows = [row for name, plan in cases for row in _case_rows(name, plan)]
    return _as_form(form, "What if", head, rows, [])


def _case_rows(name: str, plan: Plan) -> Iterator[list[str]]:
    for place, one in enumerate(plan.plans):
        cost = plan.costs[place] if plan.costs else None
        month = "–" if cost is None or cost.demand is None else _money(cost.demand, cost.currency)
        row = [name, one.type.name, one.host.name, instances_words(one), plan_interval_words(one)]
        yield [*row, one.binds or "–", hosts_words(one), month]
    if plan.packing is not None:
        yield [name, _TOGETHER, "", "", "", "", f"{plan.packing.hosts:,}", ""]


def audit_text(audit: Audit, form: str) -> str:
    """What a later ramp says of a plan, in a form of plans."""
    if form == "json":
        return json.dumps(msgspec.to_builtins(audit), indent=2) + "\n"
    head = ("instances", "what", "predicted", "95 % interval", "measured", "the plan was")
    rows = []
    for one in audit.checked:
        words = _audited_amount(one)
        interval = (
            "–" if one.low is None else f"{words(one.low)} to {'no end known' if one.high is None else words(one.high)}"
        )
        held = f"not tested: {one.why}" if one.held is None else ("right" if one.held else "wrong")
        measured = "–" if one.measured is None else words(one.measured)
        rows.append([one.type, one.what, words(one.predicted), interval, measured, held])
    return _as_form(form, f"Audit of {audit.plan} by {audit.run}", head, rows, [track_record([audit])])


def _audited_amount(one: Checked) -> Callable[[float], str]:
    if one.what.startswith(Resource.MEMORY):
        return format_size
    return (lambda value: f"{value:,.0f}") if one.what.startswith("instances") else (lambda value: f"{value:.3g}")


def _as_form(form: str, title: str, head: Sequence[str], rows: list[list[str]], lines: Sequence[str]) -> str:
    if form == "markdown":
        return "\n".join([f"# {_escaped(title)}", "", *_markdown(head, rows), "", *map(_escaped, lines), ""])
    console = Console(width=120, record=True, file=io.StringIO(), color_system=None)
    console.print(Text(readable(title), style="bold"))
    console.print(_table(head, rows))
    for line in lines:
        console.print(Text(readable(line)))
    return console.export_text()


def _money(amount: float, currency: str) -> str:
    return f"{amount:,.2f} {currency}" if amount < 100 else f"{amount:,.0f} {currency}"


def _break_even_sentence(found: BreakEven) -> str:
    start = "For any number of instances" if found.instances <= 1 else f"From {found.instances:,} instances on"
    return (
        f"{start}, {found.cheaper} costs no more than {found.dearer}; on full hosts its host may cost "
        f"{found.host_price_ratio:.2f} times as much until both cost the same."
    )


def _table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name, overflow="fold", justify="right" if name in _RIGHT else "left")
    for row in rows:
        table.add_row(*(Text(readable(cell)) for cell in row))
    return table


def _markdown(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines]


def _escaped(text: str) -> str:
    return one_line(text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
