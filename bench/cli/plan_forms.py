"""A plan as tables for a terminal, as Markdown, and as JSON: the same figures and sentences in each."""

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tare.bench.analysis import GradeLevel
from tare.bench.capacity.audit import Audit, track_record
from tare.bench.capacity.hosts import OVERCOMMITTED, HostType
from tare.bench.capacity.packing import Packing
from tare.bench.capacity.plan import HostPlan, Use
from tare.bench.capacity.planned import MIX, Outlook, Plan
from tare.bench.capacity.tables import (
    AUDIT_HEAD,
    CAPACITY_HEAD,
    CASE_HEAD,
    PACKING_HEAD,
    TOGETHER,
    audit_rows,
    capacity_rows,
    case_rows,
    further,
    packing_rows,
    packing_sentences,
    summary_head,
    summary_rows,
)
from tare.bench.capacity.words import answer, grade_words, host_sentence, notes_of, plan_notes, reserve_sentences
from tare.bench.readable import one_line, readable

_RIGHT = ("per host", "fits", "hosts", "lost", "out of service", "full then")


def print_plan(console: Console, plan: Plan) -> None:
    """The answer and its grade, then tables, a host type each, and what has to be known about them."""
    _print_answer(console, plan)
    for host in plan.hosts:
        own = [one for one in plan.plans if one.host is host]
        console.print()
        console.print(Text(readable(host_sentence(host)), style="bold"))
        console.print(_table(summary_head(own), summary_rows(own)))
        for one in own:
            console.print(Text(readable(f"\n{one.type.name}"), style="bold"))
            console.print(_table(CAPACITY_HEAD, capacity_rows(one)))
    if plan.packing is not None:
        console.print()
        console.print(Text(TOGETHER, style="bold"))
        console.print(_table(PACKING_HEAD, packing_rows(plan.packing)))
        for line in packing_sentences(plan, plan.packing):
            console.print(Text(readable(line)))
    for section in further(plan):
        console.print()
        console.print(Text(readable(section.title), style="bold"))
        if section.rows:
            console.print(_table(section.head, section.rows))
        for line in section.lines:
            console.print(Text(readable(line)))
    console.print()
    for line in notes_of(plan.plans):
        console.print(Text(readable(f"- {line}")))


def _print_answer(console: Console, plan: Plan) -> None:
    for line in (*answer(plan), *reserve_sentences(plan)):
        console.print(Text(readable(line), style="bold"))
    if plan.grade is not None:
        style = "bold red" if plan.grade[1].level is GradeLevel.NOT_USABLE else ""
        console.print(Text(readable(grade_words(plan)), style=style))


def plan_text(plan: Plan) -> str:
    """The tables as text without colours."""
    console = Console(width=120, record=True, file=io.StringIO(), color_system=None)
    print_plan(console, plan)
    return console.export_text()


def plan_markdown(plan: Plan) -> str:
    """The same as Markdown."""
    lines = ["# Capacity plan", "", *(f"**{_escaped(line)}**\n" for line in (*answer(plan), *reserve_sentences(plan)))]
    lines += [_escaped(grade_words(plan))] if plan.grade is not None else []
    for host in plan.hosts:
        own = [one for one in plan.plans if one.host is host]
        lines += ["", f"## {_escaped(host.name)}", "", _escaped(host_sentence(host)), ""]
        lines += _markdown(summary_head(own), summary_rows(own))
        for one in own:
            lines += ["", f"**{_escaped(one.type.name)}**", "", *_markdown(CAPACITY_HEAD, capacity_rows(one))]
    if plan.packing is not None:
        lines += ["", f"## {TOGETHER}", "", *_markdown(PACKING_HEAD, packing_rows(plan.packing)), ""]
        lines += [f"{_escaped(line)}\n" for line in packing_sentences(plan, plan.packing)]
    for section in further(plan):
        table = _markdown(section.head, section.rows) if section.rows else ()
        lines += ["", f"## {_escaped(section.title)}", "", *table, ""]
        lines += [f"{_escaped(line)}\n" for line in section.lines]
    return "\n".join([*lines, "", *(f"- {_escaped(line)}" for line in notes_of(plan.plans)), ""])


def plan_document(plan: Plan) -> dict[str, Any]:
    """The same as JSON, in base units."""
    return {
        "answer": [*answer(plan), *reserve_sentences(plan)],
        "grades": msgspec.to_builtins(plan.grades),
        "hosts": [_host_document(host) for host in plan.hosts],
        "plans": [_one_document(one) for one in plan.plans],
        "packing": None if plan.packing is None else _packing_document(plan, plan.packing),
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


def _packing_document(plan: Plan, packing: Packing) -> dict[str, Any]:
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
    return {**msgspec.to_builtins(packing), "filled": filled, "extrapolated": plan.is_extrapolated(MIX)}


def _host_document(host: HostType) -> dict[str, Any]:
    reserve = {resource.value: host.reserved(resource) for resource in OVERCOMMITTED}
    return {**msgspec.to_builtins(host), "reserve": reserve}


def _use_document(use: Use) -> dict[str, Any]:
    return {**msgspec.to_builtins(use), "share": use.share if use.usable else None, "left": use.left}


def what_if_text(cases: Sequence[tuple[str, Plan]], form: str) -> str:
    """One table over the cases, in a form of plans."""
    if form == "json":
        return json.dumps({"cases": [{"name": name, **plan_document(plan)} for name, plan in cases]}, indent=2) + "\n"
    rows = [row for name, plan in cases for row in case_rows(name, plan)]
    return as_form(form, "What if", CASE_HEAD, rows, [])


def audit_text(audit: Audit, form: str) -> str:
    """What a later ramp says of a plan, in a form of plans."""
    if form == "json":
        return json.dumps(msgspec.to_builtins(audit), indent=2) + "\n"
    return as_form(
        form, f"Audit of {audit.plan} by {audit.run}", AUDIT_HEAD, audit_rows(audit), [track_record([audit])]
    )


def as_form(form: str, title: str, head: Sequence[str], rows: list[list[str]], lines: Sequence[str]) -> str:
    """One table with its title and what follows it, as text or Markdown."""
    if form == "markdown":
        return "\n".join([f"# {_escaped(title)}", "", *_markdown(head, rows), "", *map(_escaped, lines), ""])
    console = Console(width=120, record=True, file=io.StringIO(), color_system=None)
    console.print(Text(readable(title), style="bold"))
    console.print(_table(head, rows))
    for line in lines:
        console.print(Text(readable(line)))
    return console.export_text()


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
