"""The page of a capacity plan: the answer, how full hosts are then, and what follows in tables and curves.

Heads, rows and sentences are those of every form of a plan (``tare.bench.capacity``); only pictures are made here.
Numbers that a picture shows name their place in the JSON form, such as ``plans.0.headroom.1.share``.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tare.bench.analysis import GradeLevel, MeasuredBackend
from tare.bench.capacity.growth import HORIZON_MONTHS
from tare.bench.capacity.hosts import Resource
from tare.bench.capacity.instances import InstanceType, name_by_ids
from tare.bench.capacity.packing import Filled
from tare.bench.capacity.plan import HostPlan, Use, name_of
from tare.bench.capacity.planned import MIX, Outlook, Plan
from tare.bench.capacity.prices import BreakEven
from tare.bench.capacity.tables import (
    CAPACITY_HEAD,
    PACKING_HEAD,
    TOGETHER,
    Section,
    SectionKind,
    amount_words,
    break_even_sentence,
    capacity_rows,
    further,
    packing_rows,
    packing_sentences,
    summary_head,
    summary_rows,
)
from tare.bench.capacity.words import (
    answer,
    basis_sentences,
    grade_words,
    host_sentence,
    interval_sentences,
    notes_of,
    reserve_sentences,
)
from tare.bench.catalogue import DECIDES_NOTHING, Builtin
from tare.bench.readable import one_line
from tare.reports.charts import Chart, accent, finished, named, rounded
from tare.reports.drawing import end_drawing
from tare.reports.html import render_template
from tare.reports.names import Names
from tare.reports.picture import Axis, PanelView, Strip

if TYPE_CHECKING:
    import altair as alt

MOST_PANELS = 4
MOST_CAVEATS = 3
MOST_LABEL = 48
"""Letters of a type's name in a legend."""
_REACH = 1.5
"""Limits that add up to more than this are drawn to the end of the axis, with an arrow."""
_HEIGHT = 220
_LEAST_MONTHS = 12


class TableView(msgspec.Struct, frozen=True):
    """A table in words. ``marked`` is the row that was asked for; ``file`` is what it is saved as."""

    title: str
    file: str
    head: tuple[str, ...]
    rows: list[list[str]]
    lines: list[str]
    marked: int | None = None

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it begins with a number."""
        return [
            bool(self.rows) and (self.rows[0][place][:1].isdigit() or self.rows[0][place] == "–")
            for place in range(len(self.head))
        ]


class CurveView(msgspec.Struct, frozen=True):
    """A curve: ``sentence`` says what it shows."""

    title: str
    sentence: str
    chart: Chart


class SectionView(msgspec.Struct, frozen=True):
    """What follows from the plan, with its curves; ``is_beyond``: it is extrapolated, and shown as that."""

    table: TableView
    curves: list[CurveView]
    is_beyond: bool


def render_plan(plan: Plan) -> str:
    """The page."""
    context = plan_context(named_plan(plan))
    end_drawing()
    return render_template("plan.html.j2", context)


def named_plan(plan: Plan) -> Plan:
    """The plan with the names that people know in place of ids; what a fleet's file named stays as it is."""
    types = list(dict.fromkeys(one.type.name for one in plan.plans))
    kinds = {one.type.name: one.type for one in plan.plans}
    words = {name: _words_of(kinds[name], list(kinds.values())) for name in types}
    if len(set(words.values())) < len(words):
        return plan
    words = {name: word for name, word in words.items() if name != word}
    found = _renamed(plan, words)
    assert isinstance(found, Plan)
    return found


def _words_of(kind: InstanceType, among: Sequence[InstanceType]) -> str:
    """``container (tare) with CPU (sysbench)``, and the parameters by which it differs from others of its workload."""
    cell, manifest = kind.result.cell, kind.manifest
    if manifest is None or not cell.workload or kind.name != name_by_ids(kind.result, kind.backend):
        return kind.name
    alike = [one.result.cell.params for one in among if one.result.cell.workload == cell.workload]
    varying = {
        name: value
        for name, value in cell.params.items()
        if name != "count" and any(params.get(name) != value for params in alike)
    }
    names = Names(manifest)
    given = names.params_line(Builtin.DENSITY, cell.workload, varying)
    return f"{kind.backend.label} with {names.workload(cell.workload)}{f' ({given})' if given else ''}"


def _renamed(value: Any, words: Mapping[str, str]) -> Any:
    """``value`` with each text that is a name replaced, also as a key; the same object where there is none.

    Measurements are not looked into.
    """
    if isinstance(value, str):
        return words.get(value, value)
    if isinstance(value, InstanceType):
        parts = {"name": value.name}
    elif isinstance(value, msgspec.Struct):
        parts = {name: getattr(value, name) for name in value.__struct_fields__}
    elif isinstance(value, dict):
        pairs = {_renamed(key, words): _renamed(one, words) for key, one in value.items()}
        return value if all(pairs.get(key) is one for key, one in value.items()) else pairs
    elif isinstance(value, tuple):
        ones = tuple(_renamed(one, words) for one in value)
        return value if all(new is old for new, old in zip(ones, value, strict=True)) else ones
    else:
        return value
    changed = {name: new for name, old in parts.items() if (new := _renamed(old, words)) is not old}
    return msgspec.structs.replace(value, **changed) if changed else value


def plan_context(plan: Plan) -> dict[str, Any]:
    """Everything the template needs."""
    first, *others = answer(plan)
    notes = notes_of(plan.plans)
    fences = [note for note in notes if ": emulated (TCG)" in note or DECIDES_NOTHING in note]
    sections = [(one.kind, _section(plan, one, number)) for number, one in enumerate(further(plan))]
    reserves = [view for kind, view in sections if kind is SectionKind.RESERVES]
    beside = reserves if len(reserves) == 1 else []
    return {
        "title": "Capacity plan",
        "hosts": [host_sentence(host) for host in plan.hosts],
        "answer": first,
        "also": [*others, *reserve_sentences(plan), *interval_sentences(plan)],
        "grade": None if plan.grade is None else plan.grade[1],
        "grade_words": grade_words(plan),
        "is_unusable": plan.grade is not None and plan.grade[1].level is GradeLevel.NOT_USABLE,
        "panels": list(_panels(plan))[:MOST_PANELS],
        "beside": beside,
        "fences": fences,
        "caveats": sorted((note for note in notes if note not in fences), key=_is_aside)[:MOST_CAVEATS],
        "basis": basis_sentences(plan),
        "types": list(_type_tables(plan)),
        "packing": _packing_table(plan),
        "sections": [view for _, view in sections if view not in beside],
        "notes": notes,
    }


def _is_aside(note: str) -> bool:
    """Whether a note is of less weight than that a figure is no answer."""
    return ": *: " not in note


def _type_tables(plan: Plan) -> Iterator[TableView]:
    """All types on a host in one table, then what one of each takes."""
    for place, host in enumerate(plan.hosts):
        own = [one for one in plan.plans if one.host is host]
        title = f"How many fit on a host: {host.name}"
        yield TableView(title, f"fits-{place}", tuple(summary_head(own)), list(summary_rows(own)), [])
    for place, one in enumerate(plan.plans):
        on = f" on {one.host.name}" if len(plan.hosts) > 1 else ""
        yield TableView(f"What one takes: {one.type.name}{on}", f"takes-{place}", CAPACITY_HEAD, capacity_rows(one), [])


def _packing_table(plan: Plan) -> TableView | None:
    if plan.packing is None:
        return None
    lines = list(packing_sentences(plan, plan.packing))
    return TableView(TOGETHER, "packing", PACKING_HEAD, packing_rows(plan.packing), lines)


def _section(plan: Plan, section: Section, number: int) -> SectionView:
    outlook, marked, curves = section.outlook, None, []
    if section.kind is SectionKind.RESERVES and outlook is not None and outlook.survived is not None:
        marked = outlook.reserves.index(outlook.survived)
    if section.kind is SectionKind.GROWTH and outlook is not None:
        curves = list(_growth_curves(plan, outlook, section.lines, f"g{number}"))
    if section.kind is SectionKind.COSTS:
        curves = [_break_even_curve(plan, one, f"c{place}") for place, one in enumerate(plan.break_evens)]
    file = f"{section.kind}-{number}"
    table = TableView(section.title, file, section.head, section.rows, section.lines, marked)
    return SectionView(table, curves, outlook is not None and plan.is_extrapolated(outlook.of))


# --- how full a host is ---------------------------------------------------------------------------


def _panels(plan: Plan) -> Iterator[PanelView]:
    """Of each type alone, or of each kind of host in a mix."""
    if plan.packing is not None:
        for place, filled in enumerate(plan.packing.filled):
            yield _mixed_panel(plan, filled, f"packing.filled.{place}")
        return
    backends = list(dict.fromkeys(one.type.result.cell.backend for one in plan.plans))
    for place, one in enumerate(plan.plans):
        if one.headroom:
            bars = _bars(one.headroom, f"plans.{place}.headroom", _binding([one]))
            colour = backends.index(one.type.result.cell.backend)
            panel = _panel(f"A host with {one.instances:,} of {one.type.name}", bars, colour, one.is_extrapolated)
            yield msgspec.structs.replace(panel, note=f"runs out first: {one.binds}")


class _Bar(msgspec.Struct, frozen=True):
    """A resource that is ``share`` full (None: there is none of it); ``counts``: by this, hosts are filled."""

    name: str
    share: float | None
    more: str
    key: str
    counts: bool


def _mixed_panel(plan: Plan, filled: Filled, key: str) -> PanelView:
    """A host of a mix. What fills it is the use of some types and the limits of others: the sum comes first."""
    held = ", ".join(f"{count:,} {name}" for name, count in filled.instances.items())
    title = f"{filled.hosts:,} × {filled.host}, each with {held}"
    binding = _binding(one for one in plan.plans if one.type.name in filled.instances)
    pooled = {use.resource for use in filled.headroom} - {Resource.CPU, Resource.CGROUPS}
    sums = [one for one in filled.shares if one[0] in pooled] if len(filled.instances) > 1 else []
    bars = [
        _Bar(f"{_capital(resource)}, as planned", share, "", f"{key}.shares.{resource}", counts=True)
        for resource, _, share in sums
    ]
    of_sums = {resource for resource, *_ in sums}
    bars += _bars(filled.headroom, f"{key}.headroom", {one for one in binding if one[0] not in of_sums})
    return _panel(title, bars, 0, plan.is_extrapolated(MIX))


def _binding(plans: Iterable[HostPlan]) -> set[tuple[Resource, bool]]:
    """What fills a host with instances of these."""
    return {(need.resource, need.by_limit) for one in plans for need in one.type.needs if need.binds}


def _bars(uses: Sequence[Use], key: str, binding: set[tuple[Resource, bool]]) -> list[_Bar]:
    """By resource, measured before limits."""
    shown = [(place, use) for place, use in enumerate(uses) if use.resource is not Resource.CGROUPS or use.share > 0.5]
    shown.sort(key=lambda one: (list(Resource).index(one[1].resource), one[1].by_limit))
    return [
        _Bar(
            _capital(name_of(use.resource, by_limit=use.by_limit)),
            use.share if use.usable else None,
            f"{amount_words(use.resource, use.used)} of {amount_words(use.resource, use.usable)}",
            f"{key}.{place}.share",
            (use.resource, use.by_limit) in binding,
        )
        for place, use in shown
    ]


def _capital(name: str) -> str:
    return f"CPU{name[3:]}" if name.startswith(Resource.CPU) else f"{name[:1].upper()}{name[1:]}"


def _panel(title: str, bars: Sequence[_Bar], colour: int, is_beyond: bool) -> PanelView:  # noqa: FBT001 - of two callers
    axis = _fill_axis([bar.share for bar in bars if bar.share is not None])
    backend = MeasuredBackend("", "", colour + 1, is_baseline=False)
    strips = tuple(_strip(bar, axis, backend) for bar in bars)
    title = f"{title} (extrapolated: no answer)" if is_beyond else title
    kind = "fill beyond" if is_beyond else "fill"
    return PanelView(title, "", ((backend, strips),), axis.ticks, ("", ""), kind)


def _fill_axis(shares: Sequence[float]) -> Axis:
    """From empty to full, and beyond where limits add up to more than there is."""
    high = _REACH if any(share > 1 + 1e-6 for share in shares) else 1.0
    ticks = [(0.0, "0"), (0.5, "50 %"), (1.0, "full"), *([(_REACH, f"{100 * _REACH:.0f} %")] if high > 1 else [])]
    return Axis(0.0, high, tuple((round(100 * share / high, 2), words) for share, words in ticks))


def _strip(bar: _Bar, axis: Axis, backend: MeasuredBackend) -> Strip:
    said = "none there" if bar.share is None else f"{100 * bar.share:,.0f} %"
    exact, key = (math.inf, "") if bar.share is None else (bar.share, bar.key)
    return Strip(bar.name, backend, _fill_svg(exact, axis, counts=bar.counts), said, bar.more, bar.name, key, exact)


def _fill_svg(share: float, axis: Axis, *, counts: bool) -> str:
    full, end = axis.place(1.0), axis.place(share)
    kind = "used" if counts else "used aside"
    parts = [f"<rect class='band' x='0' y='4' width='{full}%' height='16'/>"]
    parts.append(f"<rect class='{kind}' x='0' y='4' width='{end}%' height='16'/>")
    parts.append(f"<line class='zero' x1='{full}%' x2='{full}%' y1='0' y2='24'/>")
    if share > axis.high:
        parts.append("<svg x='100%' overflow='visible'><path class='more' d='M-14,5l9,7l-9,7z'/></svg>")
    return "".join(("<svg class='strip' width='100%' height='24' aria-hidden='true'>", *parts, "</svg>"))


# --- curves ---------------------------------------------------------------------------------------


def _growth_curves(plan: Plan, outlook: Outlook, lines: Sequence[str], identifier: str) -> Iterator[CurveView]:
    """The demand of each type over months; against what the hosts hold where they hold that type only."""
    full = outlook.exhaustion
    wanted = HORIZON_MONTHS if full is None or full.months is None else math.ceil(1.5 * (full.latest or full.months))
    months = min(HORIZON_MONTHS, max(_LEAST_MONTHS, wanted))
    for number, (name, expected) in enumerate(outlook.expected.items()):
        held = None if plan.packing is not None else next((one for one in plan.plans if one.type.name == name), None)
        chart = _growth_chart(expected[:months], held, None if full is None else full.months, f"{identifier}-{number}")
        title = f"Demand of {name}" + (" against what the hosts hold" if held is not None else "")
        yield CurveView(title, " ".join(lines), chart)


def _growth_chart(
    expected: Sequence[tuple[float, float, float]], plan: HostPlan | None, full: int | None, identifier: str
) -> Chart:
    import altair as alt

    months, counts = alt.Axis(tickMinStep=1, grid=False), alt.Axis(tickCount=5, format=",.6~r")
    x = alt.X("x:Q", title="months from now", scale=alt.Scale(nice=False), axis=months)
    y = alt.Y("v:Q", title="instances", scale=alt.Scale(zero=True, nice=True), axis=counts)
    rows = [
        {"x": month, "v": rounded(middle), "l": rounded(low), "h": rounded(high)}
        for month, (middle, low, high) in enumerate(expected, 1)
    ]
    last, known = rows[-1], full is not None and full <= len(rows)
    data: dict[str, list[dict[str, Any]]] = {
        "band": rows if any(row["l"] < row["h"] for row in rows) else [],
        "heldband": [],
        "held": [],
        "heldwords": [],
        "full": [{"x": full}] if known else [],
        "fullwords": [{"x": full, "t": f"full: month {full}"}] if known else [],
        "demand": rows,
        "words": [{"x": last["x"], "v": last["v"], "t": "demand"}],
    }
    if plan is not None and plan.instances is not None and plan.host.count is not None:
        count = plan.host.count
        value = plan.instances * count
        ends = [value if one is None else one * count for one in (plan.fewest, plan.most)]
        data["held"] = [{"x": month, "v": value} for month in (1, len(rows))]
        data["heldband"] = [{"x": month, "v": ends[0], "h": ends[1]} for month in (1, len(rows)) if ends[0] < ends[1]]
        what = f"{count:,} host{'' if count == 1 else 's'} hold{'s' if count == 1 else ''} {value:,}"
        data["heldwords"] = [{"x": 1, "v": value, "t": what}]
    colour, ink = accent(1), "var(--ink)"
    text: dict[str, Any] = {"aria": False, "fontSize": 12, "baseline": "bottom", "dy": -5}
    layers: dict[str, alt.Chart] = {
        "band": named("band").mark_area(color=colour, opacity=0.16, aria=False).encode(x=x, y=alt.Y("l:Q"), y2="h:Q"),
        "heldband": named("heldband").mark_area(color=ink, opacity=0.1, aria=False).encode(x=x, y=y, y2="h:Q"),
        "full": named("full").mark_rule(color="var(--worse)", strokeDash=[4, 3], aria=False).encode(x=x),
        "fullwords": named("fullwords")
        .mark_text(**text, align="left", dx=4, color=ink)
        .encode(x=x, y=alt.value(16), text="t:N"),
        "held": named("held").mark_line(color=ink, strokeWidth=1.5, strokeDash=[6, 3], aria=False).encode(x=x, y=y),
        "demand": named("demand").mark_line(color=colour, strokeWidth=2.5, aria=False).encode(x=x, y=y),
        "heldwords": named("heldwords").mark_text(**text, align="left", color=ink).encode(x=x, y=y, text="t:N"),
        "words": named("words").mark_text(**text, align="right", dx=-6, color=colour).encode(x=x, y=y, text="t:N"),
    }
    return _layered(layers, data, identifier)


def _break_even_curve(plan: Plan, found: BreakEven, identifier: str) -> CurveView:
    """The monthly cost of whole hosts for numbers of instances, of two types."""
    import altair as alt

    names = [one_line(name, MOST_LABEL) for name in (found.cheaper, found.dearer)]
    rows = [
        {"x": number, "v": rounded(cost), "b": name}
        for number, *both in found.curve
        for name, cost in zip(names, both, strict=True)
    ]
    currency = next(cost.currency for cost in plan.costs if cost is not None)
    axis = alt.Axis(format=",.6~r", grid=False, tickCount=5)
    x = alt.X("x:Q", title="instances", scale=alt.Scale(nice=False), axis=axis)
    y = alt.Y("v:Q", title=f"{one_line(currency, 12)} a month", axis=alt.Axis(format=",.6~r", tickCount=5))
    legend = alt.Legend(orient="top", title=None, direction="vertical", labelLimit=330, symbolType="stroke")
    colour = alt.Color("b:N", legend=legend, scale=alt.Scale(domain=names, range=[accent(1), accent(2)]))
    dash = alt.StrokeDash("b:N", legend=None, scale=alt.Scale(domain=names, range=[[1, 0], [6, 3]]))
    line = named("costs").mark_line(strokeWidth=2, aria=False).encode(x=x, y=y, color=colour, strokeDash=dash)
    chart = _layered({"costs": line}, {"costs": rows}, identifier)
    title = f"Cost per month of {found.cheaper} and of {found.dearer}"
    return CurveView(title, break_even_sentence(plan, found), chart)


def _layered(layers: "dict[str, alt.Chart]", data: dict[str, list[dict[str, Any]]], identifier: str) -> Chart:
    import altair as alt

    drawn = alt.layer(*(layer for name, layer in layers.items() if data[name]))
    chart = drawn.properties(width="container", height=_HEIGHT)
    return finished(chart, {name: rows for name, rows in data.items() if rows}, identifier)
