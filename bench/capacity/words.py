"""A plan in words: the lines of its tables and the sentences below them, the same in every form."""

import math
from collections.abc import Iterator, Sequence

from tare.bench.analysis.scaling import Parameter, Refusal, Scaling
from tare.bench.capacity.hosts import OVERCOMMITTED, HostType, Resource
from tare.bench.capacity.packing import Packing
from tare.bench.capacity.plan import EXTRAPOLATED, HostPlan, Room, Use
from tare.bench.units import format_size

_MARK = " *"


def host_sentence(host: HostType) -> str:
    """What the host has, what it keeps, and what may be promised more often."""
    disk = "" if host.disk is None else f", {format_size(host.disk)} of disk"
    count = "" if host.count is None else f"{host.count} of them; "
    kept = f"{host.reserved(Resource.CPU):.3g} CPUs, {format_size(host.reserved(Resource.MEMORY))} of memory"
    kept += "" if host.disk is None else f" and {format_size(host.reserved(Resource.DISK))} of disk"
    factors = ", ".join(f"{resource.value} {factor:g} times" for resource, factor in host.overcommit.items())
    promised = f"; promised more often than it is there: {factors}" if factors else ""
    return (
        f"{host.name}: {count}{host.cpus:g} CPUs, {format_size(host.memory)} of memory{disk}; kept for the host: {kept}"
        f"{promised}"
    )


def summary_head(plans: Sequence[HostPlan]) -> list[str]:
    """The columns of ``summary_rows``."""
    demand = ["wanted", "hosts"] if any(plan.demand is not None for plan in plans) else []
    return ["instances", "per host", "95 % interval", "runs out first", "used then", *demand]


def summary_rows(plans: Sequence[HostPlan]) -> list[list[str]]:
    """A line a type: how many fit, what runs out, how full the host is then, hosts for the demand."""
    rows = []
    for plan in plans:
        mark = _MARK if plan.is_extrapolated else ""
        row = [
            plan.type.name,
            "no bound is known" if plan.instances is None else f"{plan.instances:,}{mark}",
            "–" if plan.fewest is None else f"{plan.fewest:,} to {_most(plan.most)}",
            plan.binds or "–",
            _shares(plan),
        ]
        if plan.demand is not None:
            hosts = "–" if plan.hosts is None else f"{plan.hosts:,}"
            if plan.hosts_most is not None:
                hosts += (
                    f" ({'?' if plan.hosts_fewest is None else format(plan.hosts_fewest, ',')} to {plan.hosts_most:,})"
                )
            row += [f"{plan.demand:,}", hosts]
        rows.append(row)
    return rows


def _most(most: int | None) -> str:
    return "no end known" if most is None else f"{most:,}"


def _shares(plan: HostPlan) -> str:
    """How full the host is, by the needs that fill it."""
    binding = {(room.resource, room.promised) for room in plan.rooms if room.binds}
    shown = [use for use in plan.headroom if use.resource in OVERCOMMITTED and (use.resource, use.promised) in binding]
    return ", ".join(_share(use) for use in shown)


def _share(use: Use) -> str:
    kind = "promised" if use.promised else "measured"
    return f"{use.resource.value} {kind} {100 * use.share:.0f} %" if use.usable else f"{use.resource.value}: none there"


ROOM_HEAD = ("resource", "by", "one takes", "there is", "room for", "95 % interval", "binds")
"""The columns of ``room_rows``."""


def room_rows(plan: HostPlan) -> list[list[str]]:
    """A line a resource: what one takes, and how many that leaves room for."""
    rows = [
        [
            f"{room.resource.value} {'promised' if room.promised else 'measured'}",
            room.source,
            _amount(room.resource, room.each),
            "not stated" if math.isinf(room.usable) else _amount(room.resource, room.usable),
            "no end" if room.instances is None else f"{room.instances:,}",
            _interval(room),
            "yes" if room.binds else "no",
        ]
        for room in plan.rooms
        if room.resource in OVERCOMMITTED
    ]
    caps = [[cap.resource, "the ramp ended there", "", "", f"{cap.population:,}", "–", "yes"] for cap in plan.type.caps]
    return rows + caps


def _interval(room: Room) -> str:
    if room.instances is None or room.fewest is None or room.fewest == room.most:
        return "–"
    return f"{room.fewest:,} to {_most(room.most)}"


def _amount(resource: Resource, value: float) -> str:
    return f"{value:.3g}" if resource is Resource.CPU else format_size(value)


PACKING_HEAD = ("hosts", "type of host", "holds", "used then")
"""The columns of ``packing_rows``."""


def packing_rows(packing: Packing) -> list[list[str]]:
    """A line a kind of filled host."""
    return [
        [
            f"{one.hosts:,}",
            one.host,
            ", ".join(f"{count:,} {name}" for name, count in one.instances.items()),
            ", ".join(f"{name} {100 * share:.0f} %" for name, share in one.shares.items() if name != Resource.CGROUPS),
        ]
        for one in packing.filled
    ]


def packing_sentences(packing: Packing) -> Iterator[str]:
    """How good the packing is, and what found no place."""
    interval = ""
    if packing.hosts_fewest is not None and packing.hosts_most is not None:
        interval = f" ({packing.hosts_fewest:,} to {packing.hosts_most:,} by the intervals of the costs)"
    yield f"{packing.hosts:,} hosts{interval}, packed by first fit decreasing, a heuristic: an upper bound."
    if packing.bound is not None:
        yield f"No packing needs fewer than {packing.bound:,}: each resource alone, as if instances could be cut."
    for name, count in packing.left.items():
        yield f"{count:,} of {name} find no place."


def notes_of(plans: Sequence[HostPlan]) -> list[str]:
    """What has to be known about a plan, each said once."""
    notes: list[str] = []
    for plan in plans:
        own = [*plan.notes]
        if plan.is_extrapolated:
            own.append(
                f"*: more than {EXTRAPOLATED} times the {plan.type.population} instances that were measured: an "
                "extrapolation; limits that only show beyond them are not in it"
            )
        if plan.remedy:
            own.append(f"{plan.binds}: {plan.remedy}; with --raised it no longer counts")
        if (scaling := plan.type.scaling) is not None:
            own.append(scaling_sentence(scaling))
        notes += [f"{plan.type.name}: {note}" for note in own]
    return list(dict.fromkeys(notes))


def scaling_sentence(scaling: Scaling | Refusal) -> str:
    """The fit of the Universal Scalability Law, or why there is none."""
    if isinstance(scaling, Refusal):
        return f"no scaling law of its throughput: {scaling.reason}"
    if scaling.peak is None:
        peak = "throughput does not fall"
    else:
        low = "?" if scaling.peak_low is None else f"{scaling.peak_low:.3g}"
        high = "no end known" if scaling.peak_high is None else f"{scaling.peak_high:.3g}"
        peak = f"largest throughput with {scaling.peak:.3g} instances ({low} to {high})"
    fit = f"errs by {100 * scaling.error:.1f} %"
    if scaling.r_squared is not None:
        fit += f", R² {scaling.r_squared:.3f}"
    return (
        f"throughput by the Universal Scalability Law ({fit}, {len(scaling.points)} points): one instance "
        f"{_parameter(scaling.rate)}, contention {_parameter(scaling.contention)}, "
        f"coherency {_parameter(scaling.coherency)}; {peak}"
    )


def _parameter(found: Parameter) -> str:
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"
