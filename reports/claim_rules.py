"""What a claim's rule asks of a run, and the answer: yes, no, open, or that the run cannot tell.

A rule has entries: the values of one metric on the backends it is about, or pairs of backends. An entry says yes if all
of its 95 % interval lies on the asked side of the limit and no if all of it lies on the other; single values that
need no interval (a largest, a count, a size) are compared as they are. Where one entry alone can settle a rule of
many, its interval is widened for their number (Bonferroni), so that no luck of many looks settles it.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Literal

import msgspec

from bench.model import Direction, Manifest
from bench.stats import LEVEL, compare, summarise
from bench.units import Unit, format_value
from reports.analysis import Analysis, Backend, CellResult, Row, Subject
from reports.foreign import one_line
from reports.wording import format_ratio, is_cost

_KVM, _TCG = "kvm", "tcg"

Reference = Literal["envelope_memory", "envelope_cpus", "host_cpus", "image_tree", "image_disk"]


class Answer(StrEnum):
    """What a run says to a rule. ``absent`` means that it holds nothing that could decide."""

    YES = "yes"
    NO = "no"
    OPEN = "open"
    ABSENT = "absent"


class Kind(StrEnum):
    """What a rule can be about. A guest is hardware or emulated by the acceleration it was seen to run under."""

    BARE_METAL = "bare-metal"
    CONTAINER = "container"
    VM = "vm"
    HARDWARE_VM = "hardware-vm"
    EMULATED_VM = "emulated-vm"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule as ``claims.toml`` has it; exactly one of ``above`` and ``below`` is given.

    ``decides`` says which answer counts: a rule that only ``fails`` never makes its claim hold, and ``otherwise`` says
    why. ``emulation_adds`` marks quantities that an emulator makes larger: under it a yes to ``above`` is no answer.
    """

    says: str
    of: Kind = Kind.CONTAINER
    against: Kind | None = None
    experiment: str = ""
    metric: str = ""
    quantity: Literal["value", "slowdown", "most", "least", "memory", "image"] = "value"
    above: float | dict[Reference, float] | None = None
    below: float | dict[Reference, float] | None = None
    across: Literal["every", "most", "any"] = "every"
    decides: Literal["both", "fails"] = "both"
    otherwise: str = ""
    emulation_adds: bool = False


class RuleResult(msgspec.Struct, frozen=True):
    """The answer to one rule with the figures behind it, the deciding ones first; ``why`` if it is absent or open."""

    says: str
    answer: Answer
    figures: list[str]
    why: str = ""


class _Range(msgspec.Struct, frozen=True):
    """What is known of a quantity: the centre, and bounds where there are any."""

    centre: float
    low: float | None
    high: float | None


class _Entry(msgspec.Struct, frozen=True):
    """One thing that a rule is asked of. ``at`` gives the quantity at a level; ``show`` writes a value of it."""

    name: str
    at: Callable[[float], _Range]
    show: Callable[[float], str]
    emulated: bool


def kinds_of(manifest: Manifest, backend: str) -> frozenset[Kind]:
    """What a backend of a run is, by its facts and by its type in the suite; empty if they do not tell."""
    described = manifest.backends.get(backend)
    facts: Mapping[str, str] = described.facts if described is not None else {}
    accel = facts.get("accel", "")
    if accel or facts.get("kind") == "vm":
        own = {_KVM: {Kind.HARDWARE_VM}, _TCG: {Kind.EMULATED_VM}}.get(accel, set())
        return frozenset({Kind.VM, *own})
    if facts.get("kind") == "container" or "pid" in facts.get("namespaces", "").replace(" ", "").split(","):
        return frozenset({Kind.CONTAINER})
    if _type_of(manifest, backend) == "bare-metal":
        return frozenset({Kind.BARE_METAL})
    return frozenset()


def evaluate(rule: Rule, analysis: Analysis) -> RuleResult:
    """The answer of a run to a rule."""
    entries = list(_entries(rule, analysis))
    limit, missing = _limit(rule, analysis.manifest)
    if limit is None or not entries:
        return RuleResult(rule.says, Answer.ABSENT, [], missing if entries else _why_nothing(rule, analysis))
    single = 1 - (1 - LEVEL) / len(entries)
    level_yes, level_no = {"every": (LEVEL, single), "any": (single, LEVEL), "most": (LEVEL, LEVEL)}[rule.across]
    answers = [_ask(entry, limit, level_yes, level_no, above=rule.above is not None) for entry in entries]
    answer = _settle(rule.across, answers)
    figures = _figures(entries, answers, answer, rule, limit)
    if answer is Answer.YES and rule.decides == "fails":
        return RuleResult(rule.says, Answer.ABSENT, figures, rule.otherwise)
    if answer is Answer.YES and rule.emulation_adds and rule.above is not None and any(one.emulated for one in entries):
        why = "the guest ran under emulation, which adds to it"
        return RuleResult(rule.says, Answer.ABSENT, figures, why)
    why = "" if answer is not Answer.OPEN else _why_open(entries, answers, rule)
    return RuleResult(rule.says, answer, figures, why)


def _ask(entry: _Entry, limit: float, level_yes: float, level_no: float, *, above: bool) -> Answer:
    """On which side of the limit the entry lies; a value at the limit itself says neither."""
    for answer, level, wants_above in ((Answer.YES, level_yes, above), (Answer.NO, level_no, not above)):
        found = entry.at(level)
        if (
            found.low is not None
            and found.high is not None
            and (found.low > limit if wants_above else found.high < limit)
        ):
            return answer
    return Answer.OPEN


def _settle(across: str, answers: list[Answer]) -> Answer:
    yes, no, n = answers.count(Answer.YES), answers.count(Answer.NO), len(answers)
    match across:
        case "every":
            return Answer.NO if no else Answer.YES if yes == n else Answer.OPEN
        case "any":
            return Answer.YES if yes else Answer.NO if no == n else Answer.OPEN
        case _:
            return Answer.YES if 2 * yes > n else Answer.NO if 2 * no >= n else Answer.OPEN


def _figures(entries: list[_Entry], answers: list[Answer], answer: Answer, rule: Rule, limit: float) -> list[str]:
    """Up to three entries in words, those that decided first and the nearest to the limit among them."""
    ranked = sorted(
        zip(entries, answers, strict=True),
        key=lambda pair: (pair[1] is not answer, abs(pair[0].at(LEVEL).centre - limit)),
    )
    words = []
    for entry, _ in ranked[:3]:
        found = entry.at(LEVEL)
        interval = ""
        if found.low is not None and found.high is not None and found.low != found.high:
            interval = f" ({LEVEL * 100:g} % interval {entry.show(found.low)} – {entry.show(found.high)})"
        words.append(f"{entry.name}: {entry.show(found.centre)}{interval}")
    if len(entries) > len(words):
        counts = [f"{answers.count(kind)} {word}" for kind, word in _COUNTED.items() if kind in answers]
        words.append(f"of {len(entries)}: {', '.join(counts)}")
    side, edge = ("above", rule.above) if rule.above is not None else ("below", rule.below)
    if isinstance(edge, dict):
        words.append(f"asked: {side} {entries[0].show(limit)}")
    return words


_COUNTED = {Answer.YES: "yes", Answer.NO: "no", Answer.OPEN: "undecided"}


def _entries(rule: Rule, analysis: Analysis) -> Iterator[_Entry]:
    if rule.quantity == "image":
        yield from _image_entry(analysis.manifest)
        return
    kinds = {backend.name: kinds_of(analysis.manifest, backend.name) for backend in analysis.backends}
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


def _rows(rule: Rule, subject: Subject) -> list[Row]:
    if rule.metric != "leading":
        return [row for row in subject.rows if row.metric.name == rule.metric]
    return [row for row in subject.rows if row.is_workload_metric and not is_cost(row.metric)][:1]


def _value_entry(rule: Rule, analysis: Analysis, subject: Subject, row: Row, cell: CellResult) -> _Entry:
    def at(level: float) -> _Range:
        match rule.quantity:
            case "most" | "least":
                values = cell.points.iterations
                exact = float(values.max() if rule.quantity == "most" else values.min())
            case "memory":
                exact = float(analysis.manifest.envelope.memory_bytes)
            case _:
                found = summarise(cell.blocks, level=level, seed=analysis.manifest.seed)
                return _Range(found.centre, found.low, found.high)
        return _Range(exact, exact, exact)

    unit = Unit.BYTE if rule.quantity == "memory" else row.metric.unit
    return _Entry(
        _name(subject, row, cell.backend), at, lambda value: format_value(value, unit), _emulated(analysis, cell)
    )


def _pair_entry(analysis: Analysis, subject: Subject, row: Row, cell: CellResult, other: CellResult) -> _Entry:
    ours, theirs = cell.blocks, other.blocks
    turned = row.metric.direction is Direction.HIGHER

    def at(level: float) -> _Range:
        pair = (theirs, ours) if turned else (ours, theirs)
        found = compare(*pair, direction=Direction.LOWER, level=level, seed=analysis.manifest.seed)
        if found.ratio is None:
            return _Range(float("nan"), None, None)
        return _Range(found.ratio, found.low, found.high)

    name = f"{_name(subject, row, cell.backend)} against {other.backend.label}"
    return _Entry(name, at, format_ratio, _emulated(analysis, cell))


def _image_entry(manifest: Manifest) -> Iterator[_Entry]:
    sizes = _image_sizes(manifest)
    if {"rootfs", "kernel", "initramfs"} <= sizes.keys() and sizes["rootfs"] > 0:
        ratio = 1 + (sizes["kernel"] + sizes["initramfs"]) / sizes["rootfs"]
        parts = ", ".join(f"{name} {format_value(sizes[name], Unit.BYTE)}" for name in sorted(sizes))
        yield _Entry(f"the image here ({parts})", lambda _: _Range(ratio, ratio, ratio), format_ratio, emulated=False)


def _limit(rule: Rule, manifest: Manifest) -> tuple[float | None, str]:
    """The rule's limit in base units, or None with the reason."""
    given = rule.above if rule.above is not None else rule.below
    if isinstance(given, dict):
        ((name, factor),) = given.items()
        known = _references(manifest)
        if name not in known:
            return None, f"this run's manifest does not hold {name.replace('_', ' ')}"
        return factor * known[name], ""
    return given, ""


def _references(manifest: Manifest) -> dict[str, float]:
    sizes = _image_sizes(manifest)
    facts = {fact.name: fact.value for fact in manifest.host}
    known: dict[str, float] = {
        "envelope_memory": manifest.envelope.memory_bytes,
        "envelope_cpus": len(manifest.envelope.cpus),
    }
    known |= {f"image_{new}": sizes[old] for new, old in (("tree", "rootfs"), ("disk", "disk")) if old in sizes}
    cpus = facts.get("cpus", "")
    return known | ({"host_cpus": float(cpus)} if cpus.isdecimal() else {})


def _image_sizes(manifest: Manifest) -> dict[str, float]:
    sizes = manifest.image.get("sizes")
    return {str(name): float(size) for name, size in sizes.items()} if isinstance(sizes, Mapping) else {}


def _emulated(analysis: Analysis, cell: CellResult) -> bool:
    return Kind.EMULATED_VM in kinds_of(analysis.manifest, cell.backend.name)


def _name(subject: Subject, row: Row, backend: Backend) -> str:
    metric = one_line(row.metric.name, 60)
    title = "" if metric.startswith(f"{subject.title}.") else f"{subject.title} "
    params = f" ({one_line(subject.params_line, 60)})" if subject.params else ""
    return f"{title}{metric}{params} on {backend.label}"


def _type_of(manifest: Manifest, backend: str) -> str:
    """A backend's type in the suite; its name where the suite does not tell, as in hand-made runs."""
    sections = manifest.suite.get("backend")
    for section in sections if isinstance(sections, list | tuple) else ():
        if isinstance(section, Mapping) and (section.get("name") or section.get("type")) == backend:
            return str(section.get("type", ""))
    return backend


_KIND_WORDS = {
    Kind.BARE_METAL: "bare metal",
    Kind.CONTAINER: "a container",
    Kind.VM: "a virtual machine",
    Kind.HARDWARE_VM: "a guest under hardware virtualization",
    Kind.EMULATED_VM: "an emulated guest",
}


def _why_nothing(rule: Rule, analysis: Analysis) -> str:
    """Why a rule has no entry: the image, the experiment, the backend or the metric is not in the run."""
    if rule.quantity == "image":
        return "this run's manifest does not hold the image's sizes"
    experiments = {subject.experiment for subject in analysis.subjects}
    if rule.experiment and rule.experiment not in experiments:
        return f"the run has no experiment {rule.experiment}"
    measured = {cell.backend.name for subject in analysis.subjects for row in subject.rows for cell in row.cells}
    kinds = {kind for name in measured for kind in kinds_of(analysis.manifest, name)}
    for wanted in (rule.of, rule.against):
        if wanted is not None and wanted not in kinds:
            if wanted is Kind.HARDWARE_VM and Kind.EMULATED_VM in kinds:
                return "the guest ran under emulation (TCG), which says nothing about hardware virtualization"
            return f"{_KIND_WORDS[wanted]} was not measured"
    if rule.metric == "leading":
        return "no workload measured a speed on it"
    return f"the run has no {rule.metric} of it"


def _why_open(entries: list[_Entry], answers: list[Answer], rule: Rule) -> str:
    open_ones = [entry for entry, answer in zip(entries, answers, strict=True) if answer is Answer.OPEN]
    if open_ones and all(entry.at(LEVEL).low is None for entry in open_ones):
        return "one block gives no interval"
    return "the interval holds the limit" if rule.across == "every" else "too few are decided"
