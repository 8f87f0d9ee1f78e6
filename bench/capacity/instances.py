"""Types of instances, from the ramps that measured them: what one takes of a host, measured and by its limits."""

import math
from collections.abc import Mapping
from enum import StrEnum

import msgspec
import numpy as np

from tare.bench.analysis.cost import Estimate, combined
from tare.bench.analysis.density import DensityResult
from tare.bench.capacity.hosts import Resource, find_measured_host
from tare.bench.catalogue import DensityMetric, StopReason
from tare.bench.model import BackendDescription, IsolationKind
from tare.bench.records import Manifest

_KNOWN_BY_COST = ("memory", "disk")


class Basis(StrEnum):
    """Which needs fill a host: what instances used when they were measured, or what their limits let them use.

    ``auto`` is the limits for guests, which never give back what they once touched, and measured for all others.
    """

    AUTO = "auto"
    MEASURED = "measured"
    LIMITS = "limits"


class Need(msgspec.Struct, frozen=True):
    """What one instance takes of a resource, in bytes or CPUs.

    ``by_limit``: what its limit lets it take, to which overcommitment applies, not what was measured. ``once`` is
    taken a single time by all of a type on a host. ``binds``: it fills hosts; others are shown only. The interval is
    from ``measured_on`` instances.
    """

    resource: Resource
    each: Estimate
    by_limit: bool
    binds: bool = True
    once: float = 0.0
    measured_on: int = 0
    source: str = ""


class InstanceLimits(msgspec.Struct, frozen=True):
    """The most that an instance may use, in CPUs and bytes."""

    cpus: float
    memory: float
    disk: float


class HostLimit(msgspec.Struct, frozen=True):
    """A limit of the measured host at which a ramp ended: it holds for any host that has the same."""

    resource: str
    population: int
    remedy: str


class InstanceType(msgspec.Struct, frozen=True):
    """Instances of one kind: a backend with what it ran (empty: idle) when it was measured, in ``run``.

    ``manifest`` is that of the run, which has the names that people know.
    """

    name: str
    result: DensityResult
    backend: BackendDescription
    run: str
    basis: Basis
    limits: InstanceLimits
    needs: tuple[Need, ...]
    host_limits: tuple[HostLimit, ...]
    cpus_measured: int
    host_emulated: bool = False
    host_cpus: float | None = None
    manifest: Manifest | None = None

    @property
    def is_emulated(self) -> bool:
        """Whether its CPU figures are an emulator's: the guest's, or that of the host it was measured on."""
        return self.host_emulated or self.backend.kind is IsolationKind.EMULATED

    @property
    def limited_memory(self) -> Estimate | None:
        """The part of its measured memory that its limit covers: a guest's RAM, the cgroup charge of others."""
        cost = self.result.cost
        return cost.guest if self.backend.kind.is_guest else cost.charge


def make_type(
    result: DensityResult,
    manifest: Manifest,
    run: str,
    *,
    basis: Basis = Basis.AUTO,
    limits: Mapping[str, float] = {},
    cpu_by_limit: bool = False,
    raised: tuple[str, ...] = (),
) -> InstanceType:
    """The needs of a density cell's instances.

    ``limits`` replace those that they had when they were measured. ``cpu_by_limit``: overcommitment of CPUs is stated,
    so that limits of CPUs bind. ``raised`` are limits of the measured host that planned hosts do not have.
    """
    backend = manifest.backends[result.cell.backend]
    if basis is Basis.AUTO:
        basis = Basis.LIMITS if backend.kind.is_guest else Basis.MEASURED
    envelope = manifest.envelope
    cpus = envelope.cpu_quota if envelope.cpu_quota is not None else float(len(envelope.cpus))
    had = {"cpus": cpus, "memory": float(envelope.memory_bytes), "disk": float(envelope.scratch_bytes)}
    measured = find_measured_host(manifest)
    found = InstanceType(
        name=name_by_ids(result, backend),
        result=result,
        backend=backend,
        run=run,
        basis=basis,
        limits=InstanceLimits(**{**had, **limits}),
        needs=(),
        host_limits=_host_limits(result, raised),
        cpus_measured=len(envelope.cpus),
        host_emulated=manifest.is_host_emulated,
        host_cpus=None if measured is None else measured.cpus,
        manifest=manifest,
    )
    needs = (*_memory(found), *_cpu(found, by_limit=cpu_by_limit), *_disk(found), _CGROUP)
    return msgspec.structs.replace(found, needs=needs)


def name_by_ids(result: DensityResult, backend: BackendDescription) -> str:
    """What a type is called unless a fleet's file names it: ``vm (kvm) redis clients=50``."""
    cell = result.cell
    given = " ".join(f"{name}={value}" for name, value in sorted(cell.params.items()) if name != "count")
    return " ".join(part for part in (backend.label, cell.workload or "idle", given) if part)


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


_CGROUP = Need(Resource.CGROUPS, _exactly(1.0), by_limit=False, source="the kernel's numbers of memory cgroups")


def _memory(instance: InstanceType) -> list[Need]:
    """What it used, and what its limit lets it use; nothing where the host did more meanwhile than the instances."""
    each = instance.result.planned_memory
    if each is None:
        return []
    by_limit, on = instance.basis is Basis.LIMITS, instance.result.measured_on
    limit, is_guest = instance.limits.memory, instance.backend.kind.is_guest
    beyond = combined((each, 1), (instance.limited_memory, -1))
    if beyond is None:
        on_limit, outside = 0, "all it cost"
        most = Estimate(limit + each.per_instance, limit, None if each.high is None else limit + each.high)
    else:
        on_limit, outside = on, "the hypervisor" if is_guest else "what is outside"
        over, half = max(0.0, beyond.per_instance), beyond.half_width
        low, high = (None, None) if half is None else (limit + max(0.0, over - half), limit + over + half)
        most = Estimate(limit + over, low, high)
    source = f"{'its RAM' if is_guest else 'its limit'} and {outside}"
    return [
        Need(Resource.MEMORY, each, by_limit=False, binds=not by_limit, measured_on=on, source=each.source),
        Need(Resource.MEMORY, most, by_limit=True, binds=by_limit, measured_on=on_limit, source=source),
    ]


def _cpu(instance: InstanceType, *, by_limit: bool) -> list[Need]:
    """What its limit lets it use, and what it kept busy."""
    limit = _exactly(instance.limits.cpus)
    needs = [Need(Resource.CPU, limit, by_limit=True, binds=by_limit, source="its CPUs")]
    binds, idle = not instance.is_emulated, instance.result.cost.idle_cpu
    if instance.result.cell.workload:
        each, on = loaded_cpu(instance.result)
        source = "at work"
    else:
        each = None if idle is None else Estimate(max(0.0, idle.per_instance), idle.low, idle.high)
        on, source = instance.result.measured_on, "idle"
    if each is not None:
        needs.append(Need(Resource.CPU, each, by_limit=False, binds=binds, measured_on=on, source=source))
    return needs


def loaded_cpu(result: DensityResult) -> tuple[Estimate | None, int]:
    """CPUs of an instance at work at the smallest population, where others take least from it; of how many."""
    points = result.cell.points(DensityMetric.LOADED_CPU)
    least = min((number for number, _ in points), default=0)
    values = np.array([value / number for number, value in points if number == least])
    if not points:
        return None, 0
    each = float(values.mean())
    if len(values) < 3:
        return Estimate(each, None, None), len(values)
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(each, max(0.0, each - half), each + half), len(values) * least


def _disk(instance: InstanceType) -> list[Need]:
    """What it wrote, and what it may fill; the image once."""
    result, by_limit = instance.result, instance.basis is Basis.LIMITS
    once = max((value for _, value in result.cell.points(DensityMetric.DISK_SHARED)), default=0.0)
    owned = result.cost.disk
    each = _exactly(0.0) if owned is None else Estimate(max(0.0, owned.per_instance), owned.low, owned.high)
    full = _exactly(each.per_instance + instance.limits.disk)
    on, binds = result.measured_on, not by_limit
    return [
        Need(Resource.DISK, each, by_limit=False, binds=binds, once=once, measured_on=on, source="its blocks"),
        Need(Resource.DISK, full, by_limit=True, binds=by_limit, once=once, source="its scratch full"),
    ]


def _host_limits(result: DensityResult, raised: tuple[str, ...]) -> tuple[HostLimit, ...]:
    """The limits of the host, not those stated for a ramp, at which ramps ended: each with the smallest population."""
    found: dict[str, HostLimit] = {}
    for ending in result.cell.endings:
        name = ending.resource
        if ending.reason == StopReason.FAILURE and name and name not in (*raised, *_KNOWN_BY_COST):
            limit = HostLimit(name, ending.population, ending.remedy)
            found[name] = min(found.get(name, limit), limit, key=lambda one: one.population)
    return tuple(found.values())
