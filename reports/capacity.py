"""How many instances the measured host holds, and the curves that say so: memory, start latency, throughput."""

from collections.abc import Iterator

import msgspec
import numpy as np

from tare.bench.analysis import Analysis, MeasuredBackend
from tare.bench.analysis.density import DensityCell, DensityResult
from tare.bench.analysis.scaling import Refusal, Scaling
from tare.bench.capacity.hosts import find_measured_host
from tare.bench.capacity.instances import make_type
from tare.bench.capacity.plan import HostPlan, plan_host
from tare.bench.capacity.words import host_sentence, instances_words, interval_words, notes_of, scaling_sentence
from tare.bench.catalogue import DensityMetric
from tare.bench.units import Unit, format_duration, format_size, format_value
from tare.reports.capacity_charts import Curve, curve_chart
from tare.reports.charts import Chart
from tare.reports.density_costs import in_order, words_of

_STEPS = 60


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
    interval: str
    binds: str
    memory: str
    limit: str
    cpu: str
    found: list[int | None]


class CapacityView(msgspec.Struct, frozen=True):
    """The capacity of the measured host. ``lines`` is empty if the run does not tell its host's size."""

    sentence: str
    lines: list[CapacityLine]
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
    pairs = zip(results, plans, strict=False)
    curves = []
    for number, result in enumerate(results):
        backend = backends[result.cell.backend]
        if views := list(_curves(result, backend, f"k{number}")):
            curves.append((backend, words_of(result.cell), views))
    return CapacityView(
        sentence="" if host is None else f"By what one more instance cost here, on {host_sentence(host)}.",
        lines=[_line(plan, result.cell, backends[result.cell.backend]) for result, plan in pairs],
        curves=curves,
        notes=notes_of(plans),
    )


def _line(plan: HostPlan, cell: DensityCell, backend: MeasuredBackend) -> CapacityLine:
    unplanned = "; its CPU is emulated and not planned" if plan.type.is_emulated else ""
    each = {(one.resource.value, one.by_limit): one.each for one in plan.capacities}
    memory, limit = each.get(("memory", False)), each.get(("memory", True))
    cpu = each.get(("cpu", False))
    return CapacityLine(
        backend=backend,
        what=words_of(cell),
        instances=instances_words(plan),
        interval=interval_words(plan.fewest, plan.most),
        binds=f"{plan.binds or '–'}{unplanned}",
        memory="–" if memory is None else format_size(memory),
        limit="–" if limit is None else format_size(limit),
        cpu="–" if cpu is None else f"{cpu:.2g}",
        found=[plan.instances, plan.fewest, plan.most],
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
    ends = np.array([0.0, float(cell.population)])
    line = [(float(n), fit.per_instance * float(n)) for n in ends]
    band = None
    words = f"{format_size(fit.per_instance)} an instance"
    if fit.low is not None and fit.high is not None:
        band = [(float(n), fit.low * float(n), fit.high * float(n)) for n in ends]
        words += f", 95 % interval {format_size(fit.low)} to {format_size(fit.high)} (band)"
    if fit.steps:
        words += "; jumps of the host are in the points and not in the line"
    if cost.host_noise_dominates:
        words += "; the host did more meanwhile than the instances, so this line says nothing"
    return "Memory that the host no longer had", f"{words}.", Curve(points, line, band, Unit.BYTE)


def _start(result: DensityResult) -> tuple[str, str, Curve] | None:
    trend = result.cost.start
    if trend is None:
        return None
    points = [(float(n), value) for n, value in result.cell.points(DensityMetric.START)]
    largest = float(result.cell.population)
    middle = largest / 2
    ends = [0.0, largest]
    line = [(n, trend.first_s + trend.per_instance_s * n) for n in ends]
    words = f"from {format_duration(trend.first_s)} to {format_duration(trend.last_s)} by the line"
    band = None
    if trend.low is not None and trend.high is not None:
        at_middle = trend.first_s + trend.per_instance_s * middle
        ways = [[at_middle + slope * (n - middle) for slope in (trend.low, trend.high)] for n in ends]
        band = [(n, min(both), max(both)) for n, both in zip(ends, ways, strict=True)]
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
    return "Throughput of all", f"{alone}; {sentence}.", Curve(points, _fitted(fit), None, unit)


def _fitted(fit: Scaling) -> list[tuple[float, float]]:
    populations = [n for n, _ in fit.points]
    return [(float(n), fit.at(float(n))) for n in np.linspace(min(populations), max(populations), _STEPS)]
