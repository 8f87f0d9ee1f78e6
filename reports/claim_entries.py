"""What a claim's rule is asked of: the values of a metric on some backends, pairs of backends, notes of a run."""

import functools
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from tare.bench.analysis import Analysis, CellResult, MeasuredBackend, Row, Subject
from tare.bench.catalogue import RATIO_PREFIX, Builtin, NoteCode, StopReason
from tare.bench.model import Direction, IsolationKind
from tare.bench.readable import one_line
from tare.bench.records import Manifest
from tare.bench.stats.comparisons import CellBlocks, Interval, compare, summarise
from tare.bench.units import Unit, format_value
from tare.reports.names import names_of
from tare.reports.wording import is_cost, ratio_change, worse_words

if TYPE_CHECKING:
    from tare.reports.claims import Rule

Reference = Literal["envelope_memory", "host_memory_to_envelope", "host_cpus_to_envelope", "image_tree", "image_disk"]
"""What a limit may be a multiple of: bytes, or what the host has over what the envelope gives."""


class Kind(StrEnum):
    """What a rule can be about. A guest is hardware or emulated by the acceleration it was seen to run under."""

    BARE_METAL = "bare-metal"
    CONTAINER = "container"
    VM = "vm"
    HARDWARE_VM = "hardware-vm"
    EMULATED_VM = "emulated-vm"


KIND_WORDS = {
    Kind.BARE_METAL: "bare metal",
    Kind.CONTAINER: "a container",
    Kind.VM: "a virtual machine",
    Kind.HARDWARE_VM: "a guest under hardware virtualization",
    Kind.EMULATED_VM: "an emulated guest",
}


_KINDS = {
    IsolationKind.BARE_METAL: frozenset({Kind.BARE_METAL}),
    IsolationKind.CONTAINER: frozenset({Kind.CONTAINER}),
    IsolationKind.VIRTUAL_MACHINE: frozenset({Kind.VM, Kind.HARDWARE_VM}),
    IsolationKind.EMULATED: frozenset({Kind.VM, Kind.EMULATED_VM}),
}


def kinds_of(manifest: Manifest, backend: str) -> frozenset[Kind]:
    """What rules can be about a backend of a run; empty for kinds of isolation that no rule is about."""
    described = manifest.backends.get(backend)
    if described is not None and described.kind.is_guest and manifest.is_host_emulated:
        return _KINDS[IsolationKind.EMULATED]
    return _KINDS.get(described.kind, frozenset()) if described is not None else frozenset()


def references(manifest: Manifest) -> dict[str, float]:
    """What limits may be multiples of, as far as the manifest holds it."""
    envelope, sizes = manifest.envelope, image_sizes(manifest)
    known: dict[str, float] = {"envelope_memory": envelope.memory_bytes}
    known |= {f"image_{new}": sizes[old] for new, old in (("tree", "rootfs"), ("disk", "disk")) if old in sizes}
    host = {fact.name: fact.number for fact in manifest.host}
    if (memory := host.get("memory")) is not None:
        known["host_memory_to_envelope"] = memory / envelope.memory_bytes
    if (cpus := host.get("cpus")) is not None:
        known["host_cpus_to_envelope"] = cpus / len(envelope.cpus)
    return known


def image_sizes(manifest: Manifest) -> dict[str, float]:
    """Bytes of the image's tree and of each file beside it; empty for runs of versions that did not keep them."""
    sizes = manifest.image.get("sizes")
    return {str(name): float(size) for name, size in sizes.items()} if isinstance(sizes, Mapping) else {}


def ran_out(analysis: Analysis, backend: str) -> bool:
    """Whether a density ramp of this backend ended because something of the host ran out, not because it was told."""
    return any(
        event.note_code == NoteCode.DENSITY_STOP
        and event.cell.endswith(f"/{backend}")
        and bool(event.details.get("resource"))
        and event.details.get("reason") in (StopReason.MEMORY_FLOOR, StopReason.FAILURE)
        for event in analysis.run.events
    )


def kernels_seen(analysis: Analysis, backend: str) -> list[str]:
    """The kernel releases that programs inside a backend's instances saw, as ``limits`` noted them."""
    return [
        str(event.details.get("kernel", ""))
        for event in analysis.run.events
        if event.note_code == NoteCode.LIMITS_SEEN and event.cell.endswith(f"/{backend}")
    ]


class Entry(msgspec.Struct, frozen=True):
    """One thing that a rule is asked of. ``at`` gives the quantity at a level; ``show`` writes a value of it."""

    name: str
    at: Callable[[float], Interval]
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
    def at(level: float) -> Interval:
        match rule.quantity:
            case "most" | "least":
                values = cell.points.iterations
                return _exactly(float(values.max() if rule.quantity == "most" else values.min()))
            case "memory":
                return _exactly(float(analysis.manifest.envelope.memory_bytes))
            case _:
                blocks = _each(cell) if rule.quantity == "each" else cell.blocks
                return summarise(blocks, level=level)

    unit = Unit.BYTE if rule.quantity == "memory" else row.metric.unit
    name = _name(analysis, subject, row, cell.backend) + (", for each" if rule.quantity == "each" else "")
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

    def at(level: float) -> Interval:
        pair = (theirs, ours) if turned else (ours, theirs)
        found = compare(*pair, direction=Direction.LOWER, level=level)
        ratio = float("nan") if found.ratio is None else found.ratio
        return Interval(ratio, found.low, found.high, found.p_value, found.method)

    # Turned so that above 1 is worse, whichever way the metric goes.
    name = f"{_name(analysis, subject, row, cell.backend)} against {other.backend.label}"
    show = functools.partial(worse_words, row.metric)
    return Entry(name, at, show, cell.backend.name, _emulated(analysis, cell))


def _kernel_entries(analysis: Analysis, backends: list[MeasuredBackend]) -> Iterator[Entry]:
    """1 where a program inside saw the host's kernel release, else 0."""
    hosts = next((fact.text for fact in analysis.manifest.host if fact.name == "kernel"), "")
    for backend in backends:
        for seen in dict.fromkeys(kernels_seen(analysis, backend.name)) if hosts else ():
            told = f"Linux {one_line(seen, 60)}, the host's is {one_line(hosts, 60)}"
            is_hosts = _exactly(float(seen == hosts))
            yield Entry(backend.label, lambda _, found=is_hosts: found, lambda _, told=told: told, backend.name)  # type: ignore[misc]  # mypy knows no default of a lambda


def _exactly(value: float) -> Interval:
    return Interval(value, value, value, None, "exact")


def _image_entry(manifest: Manifest) -> Iterator[Entry]:
    sizes = image_sizes(manifest)
    if {"rootfs", "kernel", "initramfs"} <= sizes.keys() and sizes["rootfs"] > 0:
        ratio = 1 + (sizes["kernel"] + sizes["initramfs"]) / sizes["rootfs"]
        parts = ", ".join(f"{name} {format_value(sizes[name], Unit.BYTE)}" for name in sorted(sizes))
        yield Entry(
            f"the image here ({parts})",
            lambda _: _exactly(ratio),
            lambda value: f"{ratio_change(value).lstrip('+')} larger",
        )


def _emulated(analysis: Analysis, cell: CellResult) -> bool:
    return Kind.EMULATED_VM in kinds_of(analysis.manifest, cell.backend.name)


def _name(analysis: Analysis, subject: Subject, row: Row, backend: MeasuredBackend) -> str:
    """``Disk (fio): Random 4 KiB reads per second on container (tare)``."""
    names = names_of(analysis)
    apart = names.told_apart(subject, analysis.subjects)
    return f"{names.subject(subject)}: {names.row(subject, row)}{f' ({apart})' if apart else ''} on {backend.label}"
