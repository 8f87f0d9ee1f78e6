"""A plan in the files that schedulers read: Kubernetes, Nomad, systemd. Behind each number stands where it comes from.

What was not measured is not written, or is a default that says so. Overhead is the upper end of its interval.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from tare.bench.capacity.hosts import Resource
from tare.bench.capacity.instances import InstanceType
from tare.bench.capacity.plan import EXTRAPOLATED, HostPlan
from tare.bench.catalogue import DensityMetric
from tare.bench.errors import UnknownNameError
from tare.bench.model import IsolationKind

EVICTION_INTERVAL_S = 10.0
"""The kubelet looks at ``memory.available`` every 10 s (``housekeeping-interval``; Kubernetes documentation)."""
MIB = 2**20


class Overhead(msgspec.Struct, frozen=True):
    """What one instance costs beyond its own limits: bytes and CPUs, each with where it comes from; None: unknown."""

    memory: float | None
    memory_source: str
    cpu: float | None
    cpu_source: str


def export(plans: Sequence[HostPlan], form: str) -> str:
    """The plans in a scheduler's form. Raises UnknownNameError with the forms there are."""
    if form not in _FORMS:
        raise UnknownNameError(f"there is no export {form!r}; there are: {', '.join(_FORMS)}")
    shown = [plan for plan in plans if plan.type.backend.kind is not IsolationKind.BARE_METAL]
    if not shown:
        raise UnknownNameError("no ramp of a container or a guest is in what was named: bare metal needs no overhead")
    divider = "\n---\n" if form == "kubernetes" else "\n"
    return divider.join("\n".join(_FORMS[form](plan)) for plan in shown) + "\n"


def overhead_of(kind: InstanceType) -> Overhead:
    """What an instance of this type costs beyond its limits, at the upper ends of the intervals."""
    by_limit = next((one for one in kind.needs if one.resource is Resource.MEMORY and one.by_limit), None)
    memory, source = None, "its memory could not be told from what the host did meanwhile"
    if by_limit is not None:
        high = by_limit.each.per_instance if by_limit.each.high is None else by_limit.each.high
        memory = max(0.0, high - kind.limits.memory)
        source = f"{by_limit.source}, less its limit of {_mib(kind.limits.memory)} MiB; {_basis(kind)}"
    idle = kind.result.cost.idle_cpu
    if idle is None or kind.is_emulated:
        why = (
            "an emulator's CPU figures carry over to no other host" if kind.is_emulated else "idle CPU was not measured"
        )
        return Overhead(memory, source, None, why)
    cpu = max(0.0, idle.per_instance if idle.high is None else idle.high)
    return Overhead(memory, source, cpu, f"what an idle instance kept busy; {_basis(kind)}")


def _basis(kind: InstanceType) -> str:
    population = kind.result.cell.population
    return f"upper end of the 95 % interval, from a ramp to {population} instances ({kind.run or 'run not named'})"


_OTHER_EVICTIONS: Mapping[str, str] = {
    "nodefs.available": "10%",
    "nodefs.inodesFree": "5%",
    "imagefs.available": "15%",
}


def _kubernetes(plan: HostPlan) -> Iterator[str]:
    kind, host = plan.type, plan.host
    found, name = overhead_of(kind), _dns_name(kind.name)
    yield from _comments(f"{kind.name} on {host.name}: {_number(plan)} instances, by {plan.binds or 'nothing known'}")
    yield from ("apiVersion: node.k8s.io/v1", "kind: RuntimeClass", "metadata:", f"  name: {name}")
    yield f"handler: {name}  # the name of the handler in the nodes' containerd or CRI-O configuration"
    if found.memory is not None or found.cpu is not None:
        yield from ("overhead:", "  podFixed:")
    if found.memory is not None:
        yield from _comments(found.memory_source, "    ")
        yield f"    memory: {_mib(found.memory)}Mi"
    if found.cpu is not None:
        yield from _comments(found.cpu_source, "    ")
        yield f"    cpu: {_millis(found.cpu)}m"
    else:
        yield from _comments(f"cpu is left out: {found.cpu_source}", "  ")
    yield from ("---", *_kubelet(plan))


def _kubelet(plan: HostPlan) -> Iterator[str]:
    kind, host = plan.type, plan.host
    yield from ("apiVersion: kubelet.config.k8s.io/v1beta1", "kind: KubeletConfiguration")
    if (most := _most(plan)) is None:
        yield from _comments(f"maxPods is left out: {_not_supported(plan)}")
    else:
        yield from _comments(f"lower end of the interval of how many fit; {plan.binds} runs out first")
        yield f"maxPods: {most}"
    yield from _comments(
        "kept for the host, as the plan states it (--reserve); what system daemons take was not measured"
    )
    yield "systemReserved:"
    yield f"  memory: {_mib(host.reserved(Resource.MEMORY))}Mi"
    yield f"  cpu: {_millis(host.reserved(Resource.CPU))}m"
    if host.disk is not None:
        yield f"  ephemeral-storage: {_mib(host.reserved(Resource.DISK))}Mi"
    yield from _comments("kubeReserved is left out: no kubelet and no container runtime daemon were measured")
    growth = _growth_between_looks(kind)
    if growth is None:
        yield from _comments("evictionHard is left out: the run does not say how fast memory is taken by starts")
        return
    yield from _comments(
        f"what starts one after another can take in the {EVICTION_INTERVAL_S:g} s between two looks of the kubelet, "
        "from the ramp's start latency and memory of an instance; a workload that allocates faster needs more"
    )
    yield from ("evictionHard:", f"  memory.available: {_mib(growth)}Mi")
    yield from _comments("the kubelet's own defaults, which it drops as soon as one threshold is stated", "  ")
    yield from (f'  {signal}: "{share}"' for signal, share in _OTHER_EVICTIONS.items())


def _growth_between_looks(kind: InstanceType) -> float | None:
    """Bytes that starts, one directly after another, can take between two looks of the kubelet."""
    starts = [value for _, value in kind.result.cell.points(DensityMetric.START)]
    each = kind.result.planned_memory
    if not starts or each is None or each.per_instance <= 0:
        return None
    high = each.per_instance if each.high is None else each.high
    return max(100.0 * MIB, high * EVICTION_INTERVAL_S / float(np.median(starts)))


def _nomad(plan: HostPlan) -> Iterator[str]:
    kind, host, found = plan.type, plan.host, overhead_of(plan.type)
    yield from _comments(f"{kind.name} on {host.name}: {_number(plan)} allocations, by {plan.binds or 'nothing known'}")
    yield from ("client {", "  reserved {")
    yield from _comments("kept for the host, as the plan states it (--reserve)", "    ")
    yield f"    cores  = {math.ceil(host.reserved(Resource.CPU))}"
    yield f"    memory = {_mib(host.reserved(Resource.MEMORY))}"
    if host.disk is not None:
        yield f"    disk   = {_mib(host.reserved(Resource.DISK))}"
    yield "  }"
    if (most := _most(plan)) is None:
        yield from _comments(f"max_allocations is left out: {_not_supported(plan)}", "  ")
    else:
        yield from _comments("lower end of the interval of how many fit", "  ")
        yield f"  max_allocations = {most}"
    yield "}"
    if found.memory is not None:
        yield from _comments(
            f"Nomad knows no overhead of a driver: ask for {_mib(kind.limits.memory + found.memory)} MB in each task's "
            f"resources, {_mib(kind.limits.memory)} of its own. {found.memory_source}"
        )
    yield ""


def _systemd(plan: HostPlan) -> Iterator[str]:
    kind, host = plan.type, plan.host
    yield from _comments(f"{kind.name} on {host.name}: {_number(plan)} instances, by {plan.binds or 'nothing known'}")
    yield from _comments(f"a slice for all of them, e.g. /etc/systemd/system/{_dns_name(kind.name)}.slice")
    yield from ("[Slice]", "# all of the host but what is kept for it, as the plan states it (--reserve)")
    yield f"MemoryMax={_mib(host.usable(Resource.MEMORY, by_limit=False))}M"
    yield f"CPUQuota={math.floor(100 * host.usable(Resource.CPU, by_limit=False))}%"
    most = _most(plan)
    yield from _comments(_not_supported(plan) if most is None else f"{_number(plan)} instances fit: count on {most:,}")
    yield ""


_FORMS: Mapping[str, Callable[[HostPlan], Iterator[str]]] = {
    "kubernetes": _kubernetes,
    "nomad": _nomad,
    "systemd": _systemd,
}


def _most(plan: HostPlan) -> int | None:
    """How many instances a host can be promised for; None where nothing bounds them or it is an extrapolation."""
    return None if plan.is_extrapolated else plan.instances if plan.fewest is None else plan.fewest


def _not_supported(plan: HostPlan) -> str:
    if plan.instances is None:
        return "nothing that is known bounds the instances"
    cell, ramp = plan.type.result.cell, math.ceil(plan.instances / EXTRAPOLATED)
    return (
        f"{plan.instances:,} is an extrapolation from {cell.population} instances; "
        f"measure a ramp of at least {ramp:,}: tare density {cell.backend} --count {ramp}"
    )


def _number(plan: HostPlan) -> str:
    if plan.instances is None:
        return "no known number of"
    end = (
        ""
        if plan.fewest is None
        else f" ({plan.fewest:,} to {'no end' if plan.most is None else format(plan.most, ',')})"
    )
    return f"{plan.instances:,}{end}"


def _comments(text: str, indent: str = "") -> Iterator[str]:
    """Text as comment lines; what foreign names hold cannot end one."""
    yield f"{indent}# {' '.join(text.split())}"


def _dns_name(name: str) -> str:
    """A name as Kubernetes takes it (RFC 1123): lower case, digits, dashes, at most 63 of them."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-") or "instances"


def _mib(amount: float) -> int:
    return math.ceil(amount / MIB)


def _millis(cpus: float) -> int:
    return math.ceil(1000 * cpus)
