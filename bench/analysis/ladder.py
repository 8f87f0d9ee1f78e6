"""What each layer below an engine adds: the kernel's floor, the runtime, the shim, the daemon, the call.

The layers are rungs that were measured themselves: what a runtime adds is the difference between a container that it
started and the floor, of the same block. Differences are taken of arithmetic means over the blocks that all rungs of a
chain have, so that the steps add up to the whole exactly; each has the interval of its differences, block by block. A
layer whose rung was not measured is part of the next one's step, and named in it. Memory is read by its parts on one
instance, by cgroup, so nothing is subtracted there but what is part of a sum.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.analysis.results import Analysis, MeasuredBackend, Subject
from tare.bench.catalogue import BootMetric, Builtin, EngineMetric
from tare.bench.stats.comparisons import CellBlocks, Interval, centre_interval
from tare.bench.units import Unit

__all__ = ["ENDS", "Ends", "Layer", "Waterfall", "ends_of", "memory_of", "starts_of"]

ENDS = (
    EngineMetric.BY_RETURN,
    EngineMetric.BY_INSTRUCTION,
    EngineMetric.BY_EXEC,
    EngineMetric.BY_SERVICE,
    EngineMetric.BY_EVENT,
)
"""The ends of a start, in the order in which they are shown."""

_FLOORS = ("native", "bubblewrap", "bare-metal")
"""What starts with the least above the kernel, the best first."""
_RUNTIMES: Mapping[str, tuple[str, str]] = {
    "containerd": ("binary", "runc"),
    "docker": ("runtime", "runc"),
    "podman": ("runtime", "crun"),
}
"""The option that says which runtime an engine uses, and the one that it uses without."""
_BELOW: Mapping[str, tuple[tuple[str, str], ...]] = {
    "runc": (),
    "crun": (),
    "containerd": (("runtime", "@runtime"),),
    "docker": (("runtime", "@runtime"), ("shim", "containerd")),
    "podman": (("runtime", "@runtime"),),
}
"""The layers below an engine and the backend that ends with each; ``@runtime`` is the one that it is told to use."""
_OWN: Mapping[str, str] = {
    "runc": "runtime",
    "crun": "runtime",
    "containerd": "shim",
    "docker": "daemon",
    "podman": "conmon and podman",
}

Floats = NDArray[np.float64]


class Layer(msgspec.Struct, frozen=True):
    """What a layer adds, with its interval where blocks allow one. ``after`` is the sum up to it."""

    name: str
    found: Interval
    after: float

    @property
    def is_told(self) -> bool:
        """Whether the run could tell it from nothing."""
        low, high = self.found.low, self.found.high
        return low is not None and high is not None and (low > 0 or high < 0)


class Waterfall(msgspec.Struct, frozen=True):
    """One backend's layers, the floor first; they add up to ``total``. ``blocks`` is how many each rests on."""

    backend: MeasuredBackend
    unit: Unit
    layers: list[Layer]
    total: float
    blocks: int


class Ends(msgspec.Struct, frozen=True):
    """When one backend's start ended, by each definition that it has: estimates, by metric."""

    backend: MeasuredBackend
    found: Mapping[str, Interval]


def ends_of(analysis: Analysis, subject: Subject) -> list[Ends]:
    """For each backend that has any; emulated guests, which are told apart, are left out."""
    rows = {row.metric.name: row for row in subject.rows}
    shown = [one for one in analysis.backends if not one.is_fenced]
    ends = []
    for backend in shown:
        found: dict[str, Interval] = {
            name: cell.estimate
            for name in ENDS
            for cell in (rows[name].cells if name in rows else ())
            if cell.backend.name == backend.name
        }
        if found:
            ends.append(Ends(backend, found))
    return ends


def starts_of(analysis: Analysis, subject: Subject) -> list[Waterfall]:
    """How long until the first instruction, by layers, and from there until the engine's command returned.

    For each engine below which another rung was measured. Nothing for experiments other than ``boot``.
    """
    if subject.experiment != Builtin.BOOT:
        return []
    types = _types(analysis)
    labels = {backend.name: backend.label for backend in analysis.backends}
    found = []
    for backend in analysis.backends:
        kind, options = types.get(backend.name, ("", {}))
        if backend.is_fenced or kind not in _OWN:
            continue
        chain = _chain(kind, options, types, analysis.backends)
        waterfall = _start(subject, backend, chain, _OWN[kind], labels) if chain else None
        if waterfall is not None:
            found.append(waterfall)
    return found


def memory_of(analysis: Analysis, subject: Subject) -> list[Waterfall]:
    """What one idle container holds, by layers: its own processes, its helpers, and the daemon that all share."""
    if subject.experiment != Builtin.BOOT:
        return []
    found = []
    for backend in analysis.backends:
        parts = {
            name: blocks
            for name in (BootMetric.PSS, EngineMetric.MEMORY, EngineMetric.DAEMON_MEMORY)
            if (blocks := _blocks(subject, name, backend.name)) is not None
        }
        if backend.is_fenced or BootMetric.PSS not in parts or EngineMetric.MEMORY not in parts:
            continue
        shared = _common(list(parts.values()))
        if not len(shared):
            continue
        values = {name: blocks.at(shared).values for name, blocks in parts.items()}
        helpers = values[EngineMetric.MEMORY]
        steps = [("container", values[BootMetric.PSS] - helpers), ("helpers of this container", helpers)]
        if EngineMetric.DAEMON_MEMORY in values:
            steps.append(("daemon, once for all containers", values[EngineMetric.DAEMON_MEMORY]))
        found.append(_waterfall(backend, Unit.BYTE, steps))
    return found


def _types(analysis: Analysis) -> dict[str, tuple[str, Mapping[str, object]]]:
    """Each backend's type and options, by its name in the suite."""
    found: dict[str, tuple[str, Mapping[str, object]]] = {name: (name, {}) for name in analysis.manifest.backends}
    for one in analysis.manifest.suite.get("backend") or ():
        found[str(one.get("name") or one.get("type"))] = str(one.get("type")), one.get("options") or {}
    return found


def _chain(
    kind: str,
    options: Mapping[str, object],
    types: Mapping[str, tuple[str, Mapping[str, object]]],
    backends: Sequence[MeasuredBackend],
) -> list[tuple[str, str]]:
    """The rungs below an engine that were measured, as (layer, backend), the floor first; empty without a floor."""
    measured: dict[str, str] = {}
    for backend in backends:
        of = types.get(backend.name, ("", {}))[0]
        if not backend.is_fenced:
            measured.setdefault(of, backend.name)
    floor = next((measured[one] for one in _FLOORS if one in measured), None)
    if floor is None:
        return []
    runtime = _runtime_below(kind, options)
    chain = [("kernel", floor)]
    unmeasured = []
    for layer, below in _BELOW[kind]:
        name = measured.get(runtime if below == "@runtime" else below)
        if name is None:
            unmeasured.append(layer)
        else:
            chain.append((" and ".join((*unmeasured, layer)), name))
            unmeasured = []
    return [*chain, (" and ".join(unmeasured), "")] if unmeasured else chain


def _runtime_below(kind: str, options: Mapping[str, object]) -> str:
    """The backend of the runtime that an engine with these options uses."""
    option, usual = _RUNTIMES.get(kind, ("", ""))
    return str(options.get(option) or usual)


def _start(
    subject: Subject, backend: MeasuredBackend, chain: Sequence[tuple[str, str]], own: str, labels: Mapping[str, str]
) -> Waterfall | None:
    pending = chain[-1][0] if not chain[-1][1] else ""
    rungs = [(layer, name) for layer, name in chain if name]
    rungs.append((f"{pending} and {own}" if pending else own, backend.name))
    read = [_blocks(subject, EngineMetric.BY_INSTRUCTION, name) for _, name in rungs]
    known = [blocks for blocks in read if blocks is not None]
    if len(known) < len(rungs):
        return None
    returned = _blocks(subject, EngineMetric.BY_RETURN, backend.name)
    shared = _common([*known, *([returned] if returned is not None else [])])
    if not len(shared):
        return None
    values = [blocks.at(shared).values for blocks in known]
    names = [f"{layer}: {labels[name]}" for layer, name in rungs]
    steps = [(names[0], values[0])]
    steps += [(name, after - before) for name, before, after in zip(names[1:], values, values[1:], strict=False)]
    if returned is not None:
        steps.append(("call: until the engine's command has returned", returned.at(shared).values - values[-1]))
    return _waterfall(backend, Unit.SECOND, steps)


def _waterfall(backend: MeasuredBackend, unit: Unit, steps: Sequence[tuple[str, Floats]]) -> Waterfall:
    layers = []
    total = 0.0
    for name, values in steps:
        total += float(values.mean())
        layers.append(Layer(name, centre_interval(values), total))
    return Waterfall(backend, unit, layers, total, len(steps[0][1]))


def _blocks(subject: Subject, metric: str, backend: str) -> CellBlocks | None:
    for row in subject.rows:
        if row.metric.name == metric and row.quantile is None:
            return next((cell.blocks for cell in row.cells if cell.backend.name == backend), None)
    return None


def _common(read: Sequence[CellBlocks]) -> NDArray[np.int64]:
    """The blocks that all of them have."""
    shared = read[0].blocks
    for blocks in read[1:]:
        shared = np.intersect1d(shared, blocks.blocks)
    return shared
