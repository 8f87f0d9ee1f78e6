"""What a claim's rule is asked of: the values of a metric on some backends, pairs of backends, notes of a run."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tare.bench.analysis import Analysis, CellResult, MeasuredBackend, Row, Subject
from tare.bench.catalogue import RATIO_PREFIX, Builtin
from tare.bench.model import Direction, Manifest
from tare.bench.readable import one_line
from tare.bench.stats import CellBlocks, compare, summarise
from tare.bench.units import Unit, format_value
from tare.reports.claim_facts import Kind, image_sizes, kernels_seen, kinds_of
from tare.reports.wording import format_ratio, is_cost, metric_name

if TYPE_CHECKING:
    from tare.reports.claim_rules import Rule


class Range(msgspec.Struct, frozen=True):
    """What is known of a quantity: the centre, and bounds where there are any."""

    centre: float
    low: float | None
    high: float | None


class Entry(msgspec.Struct, frozen=True):
    """One thing that a rule is asked of. ``at`` gives the quantity at a level; ``show`` writes a value of it."""

    name: str
    at: Callable[[float], Range]
    show: Callable[[float], str]
    backend: str = ""
    emulated: bool = False


def entries_of(rule: "Rule", analysis: Analysis) -> Iterator[Entry]:
    """Everything in a run that a rule is about."""
    if rule.quantity == "image":
        yield from _image_entry(analysis.manifest)
        return
    kinds = {backend.name: kinds_of(analysis.manifest, backend.name) for backend in analysis.backends}
    if rule.quantity == "kernel":
        yield from _kernel_entries(analysis, [one for one in analysis.backends if rule.of in kinds[one.name]])
        return
    for subject in analysis.subjects:
        if rule.experiment and subject.experiment != rule.experiment:
            continue
        for row in _rows(rule, subject):
            ours = [cell for cell in row.cells if rule.of in kinds[cell.backend.name]]
            if rule.against is None:
                yield from (_value_entry(rule, analysis, subject, row, cell) for cell in ours)
            else:
                theirs = [cell for cell in row.cells if rule.against in kinds[cell.backend.name]]
                yield from (_pair_entry(analysis, subject, row, one, other) for one in ours for other in theirs)


def _rows(rule: "Rule", subject: Subject) -> list[Row]:
    if rule.metric != "leading":
        return [row for row in subject.rows if row.metric.name == rule.metric]
    if subject.experiment == Builtin.INTERFERENCE:
        return [row for row in subject.rows if row.is_leading and row.metric.name.startswith(RATIO_PREFIX)]
    return [row for row in subject.rows if row.is_workload_metric and not is_cost(row.metric)][:1]


def _value_entry(rule: "Rule", analysis: Analysis, subject: Subject, row: Row, cell: CellResult) -> Entry:
    def at(level: float) -> Range:
        match rule.quantity:
            case "most" | "least":
                values = cell.points.iterations
                exact = float(values.max() if rule.quantity == "most" else values.min())
            case "memory":
                exact = float(analysis.manifest.envelope.memory_bytes)
            case _:
                blocks = _each(cell) if rule.quantity == "each" else cell.blocks
                found = summarise(blocks, level=level, seed=analysis.manifest.seed)
                return Range(found.centre, found.low, found.high)
        return Range(exact, exact, exact)

    unit = Unit.BYTE if rule.quantity == "memory" else row.metric.unit
    name = _name(subject, row, cell.backend) + (", for each" if rule.quantity == "each" else "")
    return Entry(name, at, lambda value: format_value(value, unit), cell.backend.name, _emulated(analysis, cell))


def _each(cell: CellResult) -> CellBlocks:
    """A density's total over the population when it was largest, one value a ramp."""
    points, n = cell.points, len(cell.points.instance_names)
    shares = np.zeros(n)
    for ramp in range(n):
        own = points.instance_of == ramp
        last = np.argmax(points.iteration_numbers[own])
        shares[ramp] = points.iterations[own][last] / max(1, points.iteration_numbers[own][last])
    return CellBlocks.from_instances(shares, np.arange(n), np.ones(n, dtype=np.int64))


def _pair_entry(analysis: Analysis, subject: Subject, row: Row, cell: CellResult, other: CellResult) -> Entry:
    ours, theirs = cell.blocks, other.blocks
    turned = row.metric.direction is Direction.HIGHER

    def at(level: float) -> Range:
        pair = (theirs, ours) if turned else (ours, theirs)
        found = compare(*pair, direction=Direction.LOWER, level=level, seed=analysis.manifest.seed)
        if found.ratio is None:
            return Range(float("nan"), None, None)
        return Range(found.ratio, found.low, found.high)

    # Turned so that above 1 is worse, whichever way the metric goes: not to be taken for a ratio of rates.
    name = f"slowdown of {_name(subject, row, cell.backend)} against {other.backend.label}"
    return Entry(name, at, format_ratio, cell.backend.name, _emulated(analysis, cell))


def _kernel_entries(analysis: Analysis, backends: list[MeasuredBackend]) -> Iterator[Entry]:
    """1 where a program inside saw the host's kernel release, else 0."""
    hosts = next((fact.text for fact in analysis.manifest.host if fact.name == "kernel"), "")
    for backend in backends:
        for seen in dict.fromkeys(kernels_seen(analysis, backend.name)) if hosts else ():
            told = f"Linux {one_line(seen, 60)}, the host's is {one_line(hosts, 60)}"
            yield Entry(backend.label, _exactly(float(seen == hosts)), _saying(told), backend.name)


def _exactly(value: float) -> Callable[[float], Range]:
    return lambda _: Range(value, value, value)


def _saying(text: str) -> Callable[[float], str]:
    return lambda _: text


def _image_entry(manifest: Manifest) -> Iterator[Entry]:
    sizes = image_sizes(manifest)
    if {"rootfs", "kernel", "initramfs"} <= sizes.keys() and sizes["rootfs"] > 0:
        ratio = 1 + (sizes["kernel"] + sizes["initramfs"]) / sizes["rootfs"]
        parts = ", ".join(f"{name} {format_value(sizes[name], Unit.BYTE)}" for name in sorted(sizes))
        yield Entry(f"the image here ({parts})", _exactly(ratio), format_ratio)


def _emulated(analysis: Analysis, cell: CellResult) -> bool:
    return Kind.EMULATED_VM in kinds_of(analysis.manifest, cell.backend.name)


def _name(subject: Subject, row: Row, backend: MeasuredBackend) -> str:
    name = metric_name(subject.title, one_line(subject.params_line, 60), one_line(row.metric.name, 60))
    return f"{name} on {backend.label}"
