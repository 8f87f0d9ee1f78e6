"""Types of instances, from the ramps that measured them: what they need, what limits they met, how throughput grows."""

from enum import StrEnum

import msgspec

from tare.bench.analysis.density import DensityCell, DensityResult
from tare.bench.analysis.scaling import Refusal, Scaling
from tare.bench.capacity.hosts import Resource
from tare.bench.capacity.needs import InstanceNeeds, Need, Promise
from tare.bench.catalogue import StopReason
from tare.bench.model import IsolationKind, Manifest

_CAPPING = (StopReason.FAILURE,)
"""Endings of a ramp that tell of a limit of the host, not of one that was stated for the ramp."""
_KNOWN_BY_COST = ("memory", "disk")


class Bound(StrEnum):
    """Which needs fill a host: what instances used when they were measured, or what they may come to use.

    ``auto`` is promised for guests, which never give back what they once touched, and measured for all others.
    """

    AUTO = "auto"
    MEASURED = "measured"
    PROMISED = "promised"


class Cap(msgspec.Struct, frozen=True):
    """A limit of the measuring host at which a ramp ended: it holds for any host that has the same."""

    resource: str
    population: int
    remedy: str


class InstanceType(msgspec.Struct, frozen=True):
    """Instances of one kind: a backend with what it ran (empty: idle) when it was measured."""

    name: str
    backend: str
    workload: str
    run: str
    is_guest: bool
    is_emulated: bool
    bound: Bound
    population: int
    needs: tuple[Need, ...]
    caps: tuple[Cap, ...]
    scaling: Scaling | Refusal | None
    cpus_measured: int
    notes: tuple[str, ...]


def make_type(
    result: DensityResult,
    manifest: Manifest,
    run: str,
    *,
    bound: Bound = Bound.AUTO,
    promise: Promise | None = None,
    cpu_is_promised: bool = False,
    raised: tuple[str, ...] = (),
) -> InstanceType:
    """The needs of a density cell's instances.

    ``cpu_is_promised``: somebody stated how often a CPU may be promised, so that promises of CPUs bind. ``raised`` are
    limits of the measuring host that planned hosts do not have.
    """
    cell = result.cell
    description = manifest.backends[cell.backend]
    guest, emulated = description.kind.is_guest, description.kind is IsolationKind.EMULATED
    if bound is Bound.AUTO:
        bound = Bound.PROMISED if guest else Bound.MEASURED
    promise = promise or Promise()
    maker = InstanceNeeds(result, manifest.envelope, promise, guest=guest, emulated=emulated)
    promised = bound is Bound.PROMISED
    needs = [
        *maker.memory(promised=promised),
        *maker.cpu(promised=cpu_is_promised),
        *maker.disk(promised=promised),
        Need(
            Resource.CGROUPS,
            promised=False,
            each=1.0,
            low=1.0,
            high=1.0,
            source="the kernel's numbers of memory cgroups",
        ),
    ]
    cpus = len(manifest.envelope.cpus)
    given = " ".join(f"{name}={value}" for name, value in sorted(cell.params.items()) if name != "count")
    return InstanceType(
        name=" ".join(part for part in (description.label, cell.workload or "idle", given) if part),
        backend=cell.backend,
        workload=cell.workload,
        run=run,
        is_guest=guest,
        is_emulated=emulated,
        bound=bound,
        population=cell.population,
        needs=tuple(needs),
        caps=_caps(cell, raised),
        scaling=result.scaling,
        cpus_measured=cpus,
        notes=tuple(maker.notes(description.texts.get("tcg_tb_cache", ""))),
    )


def _caps(cell: DensityCell, raised: tuple[str, ...]) -> tuple[Cap, ...]:
    found: dict[str, Cap] = {}
    for ending in cell.endings:
        name = ending.resource
        if ending.reason not in _CAPPING or not name or name in raised or name in _KNOWN_BY_COST:
            continue
        if name not in found or ending.population < found[name].population:
            found[name] = Cap(name, ending.population, ending.remedy)
    return tuple(found.values())
