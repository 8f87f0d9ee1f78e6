"""Sentences about a plan, the same in ``tare plan`` and in a report."""

import math
from collections.abc import Iterator, Sequence

from tare.bench.analysis.scaling import Parameter, Refusal, Scaling
from tare.bench.capacity.hosts import HostType, Resource
from tare.bench.capacity.instances import Basis, InstanceType, loaded_cpu
from tare.bench.capacity.packing import Packing
from tare.bench.capacity.plan import EXTRAPOLATED, HostPlan
from tare.bench.capacity.planned import MIX, Plan
from tare.bench.catalogue import DECIDES_NOTHING
from tare.bench.units import format_size


def host_sentence(host: HostType) -> str:
    """What the host has, what it keeps, and how far it is overcommitted."""
    disk = "" if host.disk is None else f", {format_size(host.disk)} of disk"
    count = "" if host.count is None else f"{host.count} of them; "
    kept = f"{host.reserved(Resource.CPU):.3g} CPUs, {format_size(host.reserved(Resource.MEMORY))} of memory"
    kept += "" if host.disk is None else f" and {format_size(host.reserved(Resource.DISK))} of disk"
    factors = ", ".join(f"{resource.value} {factor:g} times" for resource, factor in host.overcommit.items())
    overcommitted = f"; overcommitted by limits: {factors}" if factors else ""
    return (
        f"{host.name}: {count}{host.cpus:g} CPUs, {format_size(host.memory)} of memory{disk}; kept for the host: {kept}"
        f"{overcommitted}"
    )


def interval_words(fewest: int | None, most: int | None) -> str:
    """The interval of a number of instances."""
    if fewest is None:
        return "–"
    return f"{fewest:,} to {'no end known' if most is None else format(most, ',')}"


def instances_words(plan: HostPlan) -> str:
    """The number of instances; what lies far beyond the ramp is no answer, and is shown as what it is."""
    if plan.instances is None:
        return "no bound is known"
    return f"not answered (extrapolated: {plan.instances:,}) *" if plan.is_extrapolated else f"{plan.instances:,}"


def hosts_words(plan: HostPlan) -> str:
    """The hosts for a demand, with their interval; no answer where the instances of a host are none."""
    if plan.hosts is None:
        return "–"
    if plan.is_extrapolated:
        return f"not answered (extrapolated: {plan.hosts:,}) *"
    if plan.hosts_most is None:
        return f"{plan.hosts:,}"
    fewest = "?" if plan.hosts_fewest is None else f"{plan.hosts_fewest:,}"
    return f"{plan.hosts:,} ({fewest} to {plan.hosts_most:,})"


def plan_interval_words(plan: HostPlan) -> str:
    """The interval of the number of instances; none of what is no answer."""
    return "–" if plan.is_extrapolated else interval_words(plan.fewest, plan.most)


MOST_ANSWERS = 3


def answer(plan: Plan) -> list[str]:
    """What a plan answers, in sentences: the headline of every form."""
    if plan.packing is not None:
        return list(_answer_of_mix(plan, plan.packing))
    sentences = [sentence for one in plan.plans[:MOST_ANSWERS] for sentence in _answer_of_type(one)]
    if (more := len(plan.plans) - MOST_ANSWERS) > 0:
        sentences.append(f"{more} more type{'' if more == 1 else 's'} of instances below.")
    return sentences


def _answer_of_type(plan: HostPlan) -> Iterator[str]:
    name, instances = plan.type.name, plan.instances
    if instances is None:
        yield f"How many instances of {name} fit on a host is not known: nothing that was measured bounds them."
    elif plan.is_extrapolated:
        population = plan.type.result.cell.population
        yield f"How many instances of {name} fit on a host is not answered."
        yield f"{instances:,} would be more than {EXTRAPOLATED} times the {population:,} that were measured."
    else:
        hosts = "" if not plan.hosts else f", {plan.hosts:,} host{'' if plan.hosts == 1 else 's'} for {plan.demand:,}"
        yield f"{instances:,} instance{'' if instances == 1 else 's'} of {name} per host{hosts}."


def _answer_of_mix(plan: Plan, packing: Packing) -> Iterator[str]:
    for name, count in packing.left.items():
        yield f"{count:,} of {name} find no place."
    if plan.is_extrapolated(MIX):
        yield "How many hosts the demands need together is not answered."
        yield f"Hosts would be filled with more than {EXTRAPOLATED} times what was measured."
    elif not packing.left:
        yield f"{packing.hosts:,} host{'' if packing.hosts == 1 else 's'} for all demands together."


def reserve_sentences(plan: Plan) -> list[str]:
    """How many hosts survive the losses that were asked for; none of what is no answer."""
    rows = ((one.of, one.survived) for one in plan.outlooks if not plan.is_extrapolated(one.of))
    return [
        f"{row.total:,} hosts of which {row.missing:,} may be out of service, for {of}."
        for of, row in rows
        if row is not None and row.missing
    ]


def interval_sentences(plan: Plan) -> list[str]:
    """The intervals of what is answered, one a sentence."""
    if plan.packing is not None:
        low, high = plan.packing.hosts_fewest, plan.packing.hosts_most
        if low is None or high is None or low == high or plan.is_extrapolated(MIX):
            return []
        return [f"By the intervals of the costs, {low:,} to {high:,} hosts."]
    first = [one for one in plan.plans[:MOST_ANSWERS] if one.instances is not None and not one.is_extrapolated]
    named = len(plan.plans) > 1
    known = [_interval_of_type(one, named=named) for one in first if one.fewest not in (None, one.most)]
    unknown: dict[str, list[str]] = {}
    for one in first:
        if one.fewest is None:
            unknown.setdefault(one.binds, []).append(one.type.name)
    return known + [
        f"The interval of this number{' of ' + '; '.join(names) if named else ''} is not known: {binds} was measured "
        "without one."
        for binds, names in unknown.items()
    ]


def _interval_of_type(plan: HostPlan, *, named: bool) -> str:
    of = f" of {plan.type.name}" if named else ""
    hosts = ""
    if plan.hosts_most is not None and plan.hosts_fewest != plan.hosts_most:
        hosts = f", which is {interval_words(plan.hosts_fewest, plan.hosts_most)} hosts"
    return f"95 % interval: {interval_words(plan.fewest, plan.most)}{of} per host{hosts}."


def grade_words(plan: Plan) -> str:
    """How far the plan can be relied on: as far as the least reliable of its runs. Empty without grades."""
    if plan.grade is None:
        return ""
    run, grade = plan.grade
    return f"{grade.sentence} (Of {run}.)" if len(plan.grades) > 1 else grade.sentence


def basis_sentences(plan: Plan) -> list[str]:
    """By what each type is planned, and on what measurement, once for all that are alike."""
    basis = {Basis.MEASURED: "measured use", Basis.LIMITS: "limits"}
    found = []
    for one in plan.plans:
        population = f"{one.type.result.cell.population:,} ran at once when it was measured ({one.type.run})"
        found.append((one.type.name, f"planned by {basis[one.type.basis]}; {population}."))
    return _said_once(plan.plans, found)


def notes_of(plans: Sequence[HostPlan]) -> list[str]:
    """What has to be known about plans, each said once."""
    notes: list[tuple[str, str]] = []
    for plan in plans:
        own = []
        if plan.is_extrapolated:
            population = plan.type.result.cell.population
            wanted = math.ceil((plan.instances or 0) / EXTRAPOLATED)
            own.append(
                f"*: more than {EXTRAPOLATED} times the {population} instances that were measured is an extrapolation "
                "and no answer: limits that only show beyond them are not in it. A ramp to "
                f"{wanted:,} (tare density --count {wanted}) would support it"
            )
        if plan.remedy:
            own.append(f"{plan.binds}: {plan.remedy}; with --raised it no longer counts")
        own += plan_notes(plan)
        if (scaling := plan.type.result.scaling) is not None:
            own.append(scaling_sentence(scaling))
        notes += [(plan.type.name, note) for note in own]
    return _said_once(plans, notes)


def _said_once(plans: Sequence[HostPlan], said: Sequence[tuple[str, str]]) -> list[str]:
    """What is said of types by (name, sentence), each sentence once, after all the types that it is of."""
    names = {plan.type.name for plan in plans}
    of: dict[str, dict[str, None]] = {}
    for name, sentence in said:
        of.setdefault(sentence, {})[name] = None
    return [
        f"{'all types' if len(own) == len(names) > 1 else '; '.join(own)}: {sentence}" for sentence, own in of.items()
    ]


def plan_notes(plan: HostPlan) -> list[str]:
    """What a reader of a plan must not overlook."""
    return [*_type_notes(plan.type), *_host_notes(plan)]


def _type_notes(kind: InstanceType) -> Iterator[str]:
    result, memory = kind.result, format_size(kind.limits.memory)
    whole, late = result.cost.best_memory, result.late_memory
    if whole is None:
        yield "its memory could not be told from what the host did meanwhile: memory bounds nothing"
    elif late is not None:
        yield (
            f"later instances cost more memory ({format_size(late.per_instance)} each in the last half of the ramp, "
            f"{format_size(whole.per_instance)} over all of it): the first ones may have reused free objects in the "
            "kernel's slabs; the plan uses the later ones"
        )
    if result.cell.workload and loaded_cpu(result)[0] is None:
        yield "this run has no CPU figures of its loaded instances: their use bounds nothing"
    if kind.host_emulated:
        yield (
            "measured on a host whose own processor is emulated: its CPU figures and start latency carry over to no "
            f"other host and bound nothing, and the plan {DECIDES_NOTHING}; its memory and disk space carry over"
        )
    elif kind.is_emulated:
        cache = kind.backend.texts.get("tcg_tb_cache", "")
        yield (
            "emulated (TCG): its CPU figures and start latency are the emulator's, carry over to no other host and "
            "bound nothing. Of its memory, the guest's RAM and QEMU's own carry over; the translation cache"
            f"{f' of {cache}' if cache else ''} does not: guests under KVM need less than is planned here"
        )
    if kind.backend.kind.is_guest:
        split = (
            ""
            if kind.limited_memory is not None
            else "; the run does not tell the RAM that it had touched from QEMU's own memory, so all of it is counted "
            "as QEMU's, on the safe side"
        )
        yield (
            f"a guest never gives back what it once touched: it is planned with its whole RAM of {memory}, and what "
            f"QEMU takes in addition{split}"
        )
    if not result.cell.workload:
        yield (
            "measured while idle: what your workload needs is not in the measured figures; "
            "`tare density --workload` measures it"
        )


def _host_notes(plan: HostPlan) -> Iterator[str]:
    kind, host, instances = plan.type, plan.host, plan.instances
    limits = next((use.share for use in plan.headroom if use.resource is Resource.MEMORY and use.by_limit), 0.0)
    if instances and kind.basis is Basis.MEASURED and limits > 1:
        yield (
            f"the memory limits of {instances:,} add up to {limits:,.1f} times what is there: if all come to use "
            "theirs, it is not enough; --basis limits plans for that"
        )
    if host.disk is None:
        yield "the host's disk was not stated: disk bounds nothing"
    scaling = kind.result.scaling
    if isinstance(scaling, Scaling) and scaling.peak is not None and kind.cpus_measured:
        scaled = scaling.peak * host.cpus / kind.cpus_measured
        more = ", which is fewer than planned" if instances is not None and scaled < instances else ""
        yield (
            f"throughput was largest with {scaling.peak:.3g} instances on {kind.cpus_measured} "
            f"{'CPU' if kind.cpus_measured == 1 else 'CPUs'}; if it grows with CPUs, that is {scaled:.3g} on this host"
            f"{more}"
        )


_ONE_RAMP = "; of one ramp: if its readings share an error, the interval of one instance's rate covers 23 to 77 %"


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
        f"coherency {_parameter(scaling.coherency)}; {peak}{_ONE_RAMP if scaling.ramps == 1 else ''}"
    )


def _parameter(found: Parameter) -> str:
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"
