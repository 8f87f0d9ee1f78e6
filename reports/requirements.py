"""What this means for you: each requirement in words, whether each backend meets it, and what would settle it."""

import msgspec

from tare.bench.analysis import Analysis, MeasuredBackend
from tare.bench.analysis.requirements import (
    Judged,
    Judgement,
    Requirement,
    RequirementKind,
    Standing,
    judge_requirements,
)
from tare.bench.catalogue import BootMetric
from tare.bench.readable import one_line
from tare.bench.units import format_duration, format_size, format_value
from tare.reports.names import AREAS, Names, names_of
from tare.reports.wording import format_probability, plural


class AnswerView(msgspec.Struct, frozen=True):
    """A requirement on one backend. ``more`` says what was found, how far the bound may move, and what settles it."""

    backend: MeasuredBackend
    standing: str
    style: str
    likely: str
    more: str


class RequirementView(msgspec.Struct, frozen=True):
    """A requirement with its answers."""

    name: str
    is_stated: bool
    answers: list[AnswerView]


_NO_LOSS = 0.0005
"""A smaller share is no loss in the digits that are shown."""


def requirement_views(analysis: Analysis) -> list[RequirementView]:
    """Every requirement of a run, or of the ready set, judged on the backends that are not fenced."""
    names = names_of(analysis)
    return [
        RequirementView(
            requirement_name(names, judged),
            judged.requirement.is_stated,
            [_answer(names, judged.requirement, one) for one in judged.judgements if not one.backend.is_fenced],
        )
        for judged in judge_requirements(analysis)
    ]


def requirement_name(names: Names, judged: Judged) -> str:
    """The suite's own name of a requirement, or what it asks in words."""
    required = judged.requirement
    if required.name:
        return one_line(required.name, 120)
    bound = _bound(required, required.bound)
    match required.kind:
        case RequirementKind.OWN_KERNEL:
            return "Has a kernel of its own"
        case RequirementKind.INSTANCES:
            return f"{required.bound:,.0f} instances on this host"
        case RequirementKind.MEMORY:
            return f"One more instance takes at most {bound} of memory"
        case RequirementKind.LOSS if required.area:
            return f"Loses at most {bound} of its speed: {AREAS.get(required.area, required.area)}"
    if required.metric in (BootMetric.TOTAL, f"boot/{BootMetric.TOTAL}") and required.is_most:
        return f"Starts within {bound}"
    known = judged.subject is not None and judged.row is not None
    title = names.metric(judged.subject, judged.row.metric) if known else one_line(required.metric, 80)  # type: ignore[arg-type,union-attr]  # both are known
    if required.kind is RequirementKind.LOSS:
        return f"{title}: loses at most {bound}"
    return f"{title}: at {'most' if required.is_most else 'least'} {bound}"


def _answer(names: Names, required: Requirement, found: Judgement) -> AnswerView:
    likely = ""
    if found.probability is not None and required.kind is not RequirementKind.OWN_KERNEL:
        likely = f"{format_probability(found.probability)} likely to meet it"
    parts = [part for part in (_found(required, found), _moved(required, found), _settled(names, found)) if part]
    words = ". ".join(f"{part[:1].upper()}{part[1:]}" for part in parts)
    style = found.standing.value.replace(" ", "-")
    return AnswerView(found.backend, found.standing.value, style, likely, f"{words}." if words else "")


def _found(required: Requirement, found: Judgement) -> str:
    if found.why:
        return found.why.rstrip(".")
    if found.value is None or required.kind is RequirementKind.OWN_KERNEL:
        return ""
    if required.kind is RequirementKind.LOSS:
        if abs(found.value) < _NO_LOSS:
            return "no difference"
        verb = "gains" if found.value < 0 else "loses"
        return f"{verb} {_bound(required, abs(found.value))}"
    return f"measured {_bound(required, found.value)}"


def _moved(required: Requirement, found: Judgement) -> str:
    """How far the bound may move before the answer changes."""
    if found.low is None or found.high is None:
        return ""
    near, far = (found.low, found.high) if required.is_most else (found.high, found.low)
    if found.standing is Standing.MEETS:
        return f"still met at {_bound(required, max(far, 0.0))}"
    if found.standing is Standing.FAILS:
        return f"met from {_bound(required, far)} on"
    if required.is_most and near <= 0:
        return f"met from {_bound(required, far)} on"
    side = "below" if required.is_most else "above"
    return f"met from {_bound(required, far)} on, failed {side} {_bound(required, near)}"


def _settled(names: Names, found: Judgement) -> str:
    settling = found.settling
    if settling is None:
        return ""
    if settling.instances:
        return f"a ramp to {settling.instances:,} instances settles it"
    what = names.subject(found.subject) if found.subject is not None else settling.subject
    seconds = format_duration(float(f"{settling.seconds:.1g}")).replace(".0 s", " s")
    return f"about {plural(settling.blocks, 'more block')} of {what} ({seconds}) would settle it"


def _bound(required: Requirement, value: float) -> str:
    if required.kind is RequirementKind.LOSS:
        return f"{100 * value:.2g} %" if abs(value) < 1 else f"{100 * value:,.0f} %"
    text = format_size(value) if required.kind is RequirementKind.MEMORY else format_value(value, required.unit)
    number, space, unit = text.partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}{space}{unit}"
