"""A plan as tables for a terminal, as Markdown, and as JSON."""

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tare.bench.capacity.hosts import OVERCOMMITTED, HostType, Resource
from tare.bench.capacity.packing import Packing
from tare.bench.capacity.plan import HostPlan, Use
from tare.bench.capacity.words import host_sentence, instances_words, interval_words, notes_of, plan_notes
from tare.bench.units import format_size

_RIGHT = ("per host", "fits", "hosts")
_CAPACITY_HEAD = ("resource", "by", "one takes", "there is", "fits", "95 % interval", "binds")
_PACKING_HEAD = ("hosts", "type of host", "holds", "used then")
_TOGETHER = "All of them together"


class Plan(msgspec.Struct, frozen=True):
    """Each type on each host, and the packing of a fleet's mix."""

    hosts: tuple[HostType, ...]
    plans: tuple[HostPlan, ...]
    packing: Packing | None = None


def print_plan(console: Console, plan: Plan) -> None:
    """Tables, a host type each, and what has to be known about them."""
    for host in plan.hosts:
        own = [one for one in plan.plans if one.host is host]
        console.print()
        console.print(Text(host_sentence(host), style="bold"))
        console.print(_table(_summary_head(own), _summary_rows(own)))
        for one in own:
            console.print(Text(f"\n{one.type.name}", style="bold"))
            console.print(_table(_CAPACITY_HEAD, _capacity_rows(one)))
    if plan.packing is not None:
        console.print()
        console.print(Text(_TOGETHER, style="bold"))
        console.print(_table(_PACKING_HEAD, _packing_rows(plan.packing)))
        for line in _packing_sentences(plan.packing):
            console.print(Text(line))
    console.print()
    for line in notes_of(plan.plans):
        console.print(Text(f"- {line}"))


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
    return "\n".join([*lines, "", *(f"- {_escaped(line)}" for line in notes_of(plan.plans)), ""])


def plan_document(plan: Plan) -> dict[str, Any]:
    """The same as JSON, in base units."""
    return {
        "hosts": [_host_document(host) for host in plan.hosts],
        "plans": [_one_document(one) for one in plan.plans],
        "packing": None if plan.packing is None else _packing_document(plan.packing),
    }


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
        interval = interval_words(plan.fewest, plan.most)
        row = [plan.type.name, instances_words(plan), interval, plan.binds or "–", _shares(plan)]
        if plan.demand is not None:
            hosts = "–" if plan.hosts is None else f"{plan.hosts:,}"
            if plan.hosts_most is not None:
                fewest = "?" if plan.hosts_fewest is None else f"{plan.hosts_fewest:,}"
                hosts += f" ({fewest} to {plan.hosts_most:,})"
            row += [f"{plan.demand:,}", hosts]
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


def _table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name, overflow="fold", justify="right" if name in _RIGHT else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _markdown(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines]


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
