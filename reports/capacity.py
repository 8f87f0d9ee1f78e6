"""How many instances the measured host holds, and the curves that say so: memory, start latency, throughput."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from tare.bench.analysis import Analysis, MeasuredBackend
from tare.bench.analysis.density import DensityCell, DensityResult
from tare.bench.analysis.scaling import Refusal
from tare.bench.capacity.hosts import find_measured_host
from tare.bench.capacity.instances import make_type
from tare.bench.capacity.plan import EXTRAPOLATED, HostPlan, plan_host
from tare.bench.capacity.words import host_sentence, interval_words, notes_of, scaling_sentence
from tare.bench.catalogue import DensityMetric
from tare.bench.units import Unit, format_duration, format_size, format_value
from tare.reports.charts import MOST_POINTS, SHAPES, Chart, accent, display_scale, finished, named, rounded, short_label
from tare.reports.density_costs import in_order, words_of

_STEPS = 60
_HEIGHT = 180


class Curve(msgspec.Struct, frozen=True):
    """What is drawn: (population, value), the fit's line, and its band as (population, low, high); in ``unit``."""

    points: list[tuple[float, float]]
    line: list[tuple[float, float]]
    band: list[tuple[float, float, float]] | None
    unit: Unit


class CurveView(msgspec.Struct, frozen=True):
    """A curve: ``sentence`` says what the fit is; ``name`` is unique in the page."""

    title: str
    name: str
    sentence: str
    chart: Chart


class CapacityLine(msgspec.Struct, frozen=True):
    """A backend in the table of capacities, in words; ``found`` are the exact figures: how many, fewest, most."""

    backend: MeasuredBackend
    what: str
    instances: str
    by_limit: str
    interval: str
    binds: str
    is_beyond: bool
    found: list[int | None]


class CapacityView(msgspec.Struct, frozen=True):
    """The capacity of the measured host. ``lines`` is empty if the run does not tell its host's size.

    ``beyond`` says what would answer where the ramps were too short.
    """

    sentence: str
    lines: list[CapacityLine]
    beyond: str
    curves: list[tuple[MeasuredBackend, str, list[CurveView]]]
    notes: list[str]


def capacity_view(analysis: Analysis) -> CapacityView | None:
    """The capacity by a run's ramps, or None without any."""
    manifest = analysis.manifest
    backends = {backend.name: backend for backend in analysis.backends}
    results = [result for result in in_order(analysis) if result.cell.backend in manifest.backends]
    if not results:
        return None
    host = find_measured_host(manifest)
    plans = [] if host is None else [plan_host(make_type(result, manifest, manifest.run), host) for result in results]
    pairs = list(zip(results, plans, strict=False))
    curves = []
    for number, result in enumerate(results):
        backend = backends[result.cell.backend]
        if views := list(_curves(result, backend, f"k{number}")):
            curves.append((backend, words_of(result.cell), views))
    return CapacityView(
        sentence="" if host is None else f"By what one more instance cost here, on {host_sentence(host)}.",
        lines=[_line(plan, result.cell, backends[result.cell.backend]) for result, plan in pairs],
        beyond=_beyond_sentence(pairs),
        curves=curves,
        notes=notes_of(plans),
    )


def _line(plan: HostPlan, cell: DensityCell, backend: MeasuredBackend) -> CapacityLine:
    """Measured and by limits side by side. What is far beyond the ramp is no answer, and is shown as what it is."""
    measured = [one.instances for one in plan.capacities if not one.by_limit and one.instances is not None]
    by_limit = [one.instances for one in plan.capacities if one.by_limit and one.instances is not None]
    found = min(measured, default=None)
    is_beyond = found is not None and found > EXTRAPOLATED * cell.population
    instances = "–" if found is None else f"{found:,}"
    return CapacityLine(
        backend=backend,
        what=words_of(cell),
        instances=f"not answered (extrapolated: {instances})" if is_beyond else instances,
        by_limit="–" if not by_limit else f"{min(by_limit):,}",
        interval="" if is_beyond else interval_words(plan.fewest, plan.most),
        binds=f"{plan.binds or '–'}{'; its CPU is emulated and not planned' if plan.type.is_emulated else ''}",
        is_beyond=is_beyond,
        found=[found, plan.fewest, plan.most],
    )


def _beyond_sentence(pairs: Sequence[tuple[DensityResult, HostPlan]]) -> str:
    """What would answer where the ramps were too short; empty where they were not."""
    short = [(result.cell.population, plan.instances) for result, plan in pairs if plan.is_extrapolated]
    if not short:
        return ""
    most = max(population for population, _ in short)
    wanted = max(math.ceil((instances or 0) / EXTRAPOLATED) for _, instances in short)
    return (
        f"More than {EXTRAPOLATED} times the {most:,} instances that ran is no answer: limits that show only beyond "
        f"them are not in it. A ramp to {wanted:,} (count = {wanted} under [experiment.options]) would support it."
    )


def _curves(result: DensityResult, backend: MeasuredBackend, name: str) -> Iterator[CurveView]:
    makers = (("m", _memory), ("s", _start), ("t", _throughput))
    for letter, maker in makers:
        if (made := maker(result)) is not None:
            title, sentence, curve = made
            yield CurveView(title, f"{name}{letter}", sentence, curve_chart(curve, backend, f"{name}{letter}"))


def _memory(result: DensityResult) -> tuple[str, str, Curve] | None:
    cell, cost = result.cell, result.cost
    fit = cost.memory
    if fit is None:
        return None
    points = []
    for ramp in cell.ramps_of(DensityMetric.MEMORY_AVAILABLE):
        before = ramp.values[ramp.population == 0]
        start = float(before.mean()) if len(before) else float(ramp.values[0])
        points += [(float(n), start - float(value)) for n, value in zip(ramp.population, ramp.values, strict=True)]
    says = not cost.host_noise_dominates and fit.half_width is not None and fit.half_width < abs(fit.per_instance)
    line = [(n, fit.per_instance * n) for n in (0.0, float(cell.population))] if says else []
    band = None
    words = f"{format_size(fit.per_instance)} an instance" if says else "the points lie on no line"
    if says and fit.low is not None and fit.high is not None:
        low, high = fit.low, fit.high
        band = [(n, low * n, high * n) for n, _ in line]
        words += f", 95 % interval {format_size(fit.low)} to {format_size(fit.high)} (band)"
    if fit.steps:
        words += "; jumps of the host are in the points and not in the line"
    if cost.host_noise_dominates:
        words += ": the host did more meanwhile than the instances"
    return "Memory that the host no longer had", f"{words}.", Curve(points, line, band, Unit.BYTE)


def _start(result: DensityResult) -> tuple[str, str, Curve] | None:
    trend = result.cost.start
    if trend is None:
        return None
    points = [(float(n), value) for n, value in result.cell.points(DensityMetric.START)]
    middle = result.cell.population / 2
    line = [(n, trend.first_s + trend.per_instance_s * n) for n in (0.0, 2 * middle)]
    words = f"from {format_duration(trend.first_s)} to {format_duration(trend.last_s)} by the line"
    band = None
    if trend.low is not None and trend.high is not None:
        at_middle = trend.first_s + trend.per_instance_s * middle
        ends = [(n, [at_middle + slope * (n - middle) for slope in (trend.low, trend.high)]) for n, _ in line]
        band = [(n, min(both), max(both)) for n, both in ends]
        words += (
            f"; longer by {format_duration(trend.low)} to {format_duration(trend.high)} an instance "
            "(band: the slope's 95 % interval, turned about the middle)"
        )
    return "Start of an instance", f"{words}.", Curve(points, line, band, Unit.SECOND)


def _throughput(result: DensityResult) -> tuple[str, str, Curve] | None:
    fit, unit = result.scaling, result.unit
    if fit is None or unit is None:
        return None
    points, sentence = list(fit.points), scaling_sentence(fit)
    if isinstance(fit, Refusal):
        return "Throughput of all", f"{sentence}.".capitalize(), Curve(points, [], None, unit)
    alone = f"One instance alone does {format_value(fit.rate.value, unit)}"
    drawn = np.linspace(min(n for n, _ in points), max(n for n, _ in points), _STEPS)
    line = [(float(n), fit.at(float(n))) for n in drawn]
    return "Throughput of all", f"{alone}; {sentence}.", Curve(points, line, None, unit)


def curve_chart(curve: Curve, backend: MeasuredBackend, identifier: str) -> Chart:
    """A curve of one backend, on an axis of its own."""
    import altair as alt

    scale = display_scale(curve.unit, max((abs(value) for _, value in curve.points), default=0.0))
    label, colour = short_label(backend), accent(backend.place)
    x = alt.X(
        "x:Q",
        title="instances",
        scale=alt.Scale(nice=False),
        axis=alt.Axis(format=",d", grid=False, tickCount=6, tickMinStep=1),
    )
    axis = alt.Axis(tickCount=5, format=",.6~r")
    y = alt.Y("v:Q", title=scale.unit, scale=alt.Scale(zero=True, nice=True), axis=axis)
    points = curve.points[:: max(1, -(-len(curve.points) // MOST_POINTS))]
    data: dict[str, list[dict[str, Any]]] = {
        "points": [{"b": label, "x": n, "v": rounded(value / scale.factor)} for n, value in points],
        "fit": [{"b": label, "x": n, "v": rounded(value / scale.factor)} for n, value in curve.line],
        "band": [
            {"b": label, "x": n, "v": rounded(low / scale.factor), "h": rounded(high / scale.factor)}
            for n, low, high in curve.band or []
        ],
    }
    tooltip = [alt.Tooltip("x:Q", title="instances"), alt.Tooltip("v:Q", title=scale.unit)]
    mark: dict[str, Any] = {"filled": True, "size": 26, "opacity": 0.6, "aria": False}
    layers = {
        "band": named("band").mark_area(color=colour, opacity=0.16, clip=True, aria=False).encode(x=x, y=y, y2="h:Q"),
        "points": named("points")
        .mark_point(**mark, color=colour, shape=SHAPES[backend.place % len(SHAPES)])
        .encode(x=x, y=y, tooltip=tooltip),
        "fit": named("fit").mark_line(color="var(--ink)", strokeWidth=1.5, aria=False).encode(x=x, y=y),
    }
    drawn = alt.layer(*(layer for name, layer in layers.items() if data[name]))
    chart = drawn.properties(width="container", height=_HEIGHT)
    return finished(chart, {name: rows for name, rows in data.items() if rows}, identifier)
