"""A plan as tables for a terminal, as Markdown, and as JSON."""

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tare.bench.capacity.hosts import OVERCOMMITTED, HostType
from tare.bench.capacity.packing import Packing
from tare.bench.capacity.plan import HostPlan, Use
from tare.bench.capacity.words import (
    PACKING_HEAD,
    ROOM_HEAD,
    host_sentence,
    notes_of,
    packing_rows,
    packing_sentences,
    room_rows,
    summary_head,
    summary_rows,
)


def print_plan(console: Console, plans: Sequence[HostPlan], packing: Packing | None) -> None:
    """Tables, a host type each, and what has to be known about them."""
    for host in _hosts(plans):
        own = [plan for plan in plans if plan.host is host]
        console.print()
        console.print(Text(host_sentence(host), style="bold"))
        console.print(_table(summary_head(own), summary_rows(own)))
        for plan in own:
            console.print(Text(f"\n{plan.type.name}", style="bold"))
            console.print(_table(ROOM_HEAD, room_rows(plan)))
    if packing is not None:
        console.print()
        console.print(Text("All of them together", style="bold"))
        console.print(_table(PACKING_HEAD, packing_rows(packing)))
        for line in packing_sentences(packing):
            console.print(Text(line))
    console.print()
    for line in notes_of(plans):
        console.print(Text(f"- {line}"))


def plan_markdown(plans: Sequence[HostPlan], packing: Packing | None) -> str:
    """The same as Markdown."""
    lines = ["# Capacity plan"]
    for host in _hosts(plans):
        own = [plan for plan in plans if plan.host is host]
        lines += ["", f"## {_escaped(host.name)}", "", _escaped(host_sentence(host)), ""]
        lines += _markdown(summary_head(own), summary_rows(own))
        for plan in own:
            lines += ["", f"**{_escaped(plan.type.name)}**", "", *_markdown(ROOM_HEAD, room_rows(plan))]
    if packing is not None:
        lines += ["", "## All of them together", "", *_markdown(PACKING_HEAD, packing_rows(packing)), ""]
        lines += [f"{_escaped(line)}\n" for line in packing_sentences(packing)]
    return "\n".join([*lines, "", *(f"- {_escaped(line)}" for line in notes_of(plans)), ""])


def plan_document(hosts: Sequence[HostType], plans: Sequence[HostPlan], packing: Packing | None) -> dict[str, Any]:
    """The same as JSON, in base units."""
    return {
        "hosts": [_host_document(host) for host in hosts],
        "plans": [
            {
                "type": plan.type.name,
                "backend": plan.type.backend,
                "workload": plan.type.workload,
                "run": plan.type.run,
                "emulated": plan.type.is_emulated,
                "bound": plan.type.bound.value,
                "measured_population": plan.type.population,
                "host": plan.host.name,
                "instances": plan.instances,
                "instances_interval": None if plan.fewest is None else [plan.fewest, plan.most],
                "binds": plan.binds,
                "remedy": plan.remedy,
                "extrapolated": plan.is_extrapolated,
                "rooms": msgspec.to_builtins(plan.rooms),
                "headroom": [_use_document(use) for use in plan.headroom],
                "demand": plan.demand,
                "hosts_needed": plan.hosts,
                "hosts_interval": None if plan.hosts_fewest is None else [plan.hosts_fewest, plan.hosts_most],
                "scaling": msgspec.to_builtins(plan.type.scaling),
                "notes": list(plan.notes),
            }
            for plan in plans
        ],
        "packing": None
        if packing is None
        else {
            **msgspec.to_builtins(packing),
            "filled": [
                {
                    "host": one.host,
                    "hosts": one.hosts,
                    "instances": one.instances,
                    "shares": one.shares,
                    "headroom": [_use_document(use) for use in one.headroom],
                }
                for one in packing.filled
            ],
        },
    }


def _host_document(host: HostType) -> dict[str, Any]:
    reserve = {resource.value: host.reserved(resource) for resource in OVERCOMMITTED}
    return {**msgspec.to_builtins(host), "reserve": reserve}


def _use_document(use: Use) -> dict[str, Any]:
    return {**msgspec.to_builtins(use), "share": use.share if use.usable else None, "left": use.left}


def _hosts(plans: Sequence[HostPlan]) -> list[HostType]:
    found: list[HostType] = []
    for plan in plans:
        if not any(plan.host is host for host in found):
            found.append(plan.host)
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(
            name, overflow="fold", justify="right" if name in ("per host", "room for", "hosts") else "left"
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines]


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
