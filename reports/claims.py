"""The field's folklore, judged by a run: each claim held, did not hold, is undecided, or was not measured here.

``claims.toml`` holds the claims with their sources and rules. A claim about how fast a virtual machine is asks for
hardware virtualization, so that a guest under emulation never decides it.

A rule has entries: the values of one metric on the backends it is about, or pairs of backends. An entry says yes if all
of its 95 % interval lies on the asked side of the limit and no if all of it lies on the other; single values that
need no interval (a largest, a count, a size) are compared as they are. Where one entry alone can settle a rule of
many, its interval is widened for their number (Bonferroni), so that no luck of many looks settles it.
"""

import functools
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Literal

import msgspec

from tare.bench.analysis import Analysis
from tare.bench.records import Manifest
from tare.bench.stats.comparisons import LEVEL
from tare.reports.claim_entries import (
    KIND_WORDS,
    Entry,
    Kind,
    Reference,
    entries_of,
    kinds_of,
    ran_out,
    references,
)


class Answer(StrEnum):
    """What a run says to a rule. ``absent`` means that it holds nothing that could decide."""

    YES = "yes"
    NO = "no"
    OPEN = "open"
    ABSENT = "absent"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule as ``claims.toml`` has it; exactly one of ``above`` and ``below`` is given.

    ``decides`` says which answers count: of a rule that ``fails`` a yes decides nothing, of one that ``holds`` a no, of
    ``exhausted`` a no only where each ramp ended because the host ran out of something; ``otherwise`` says why not.
    ``emulation_adds`` marks quantities that an emulator makes larger: under it a yes to ``above`` is no answer.
    """

    says: str
    of: Kind = Kind.CONTAINER
    against: Kind | None = None
    experiment: str = ""
    metric: str = ""
    quantity: Literal["value", "slowdown", "most", "least", "each", "memory", "kernel", "image"] = "value"
    above: float | dict[Reference, float] | None = None
    below: float | dict[Reference, float] | None = None
    across: Literal["every", "most", "any"] = "every"
    decides: Literal["both", "holds", "fails", "exhausted"] = "both"
    otherwise: str = ""
    emulation_adds: bool = False


class RuleResult(msgspec.Struct, frozen=True):
    """The answer to one rule with the figures behind it, the deciding ones first; ``why`` if it is absent or open."""

    says: str
    answer: Answer
    figures: list[str]
    why: str = ""


def evaluate(rule: Rule, analysis: Analysis) -> RuleResult:
    """The answer of a run to a rule."""
    entries = list(entries_of(rule, analysis))
    limit, missing = _limit(rule, analysis.manifest)
    if limit is None or not entries:
        return RuleResult(rule.says, Answer.ABSENT, [], missing if entries else _why_nothing(rule, analysis))
    single = 1 - (1 - LEVEL) / len(entries)
    level_yes, level_no = {"every": (LEVEL, single), "any": (single, LEVEL), "most": (LEVEL, LEVEL)}[rule.across]
    answers = [_ask(entry, limit, level_yes, level_no, above=rule.above is not None) for entry in entries]
    answer = _settle(rule.across, answers)
    figures = _figures(entries, answers, answer, rule, limit)
    if why := _why_not_decided(rule, answer, entries, analysis):
        return RuleResult(rule.says, Answer.ABSENT, figures, why)
    why = "" if answer is not Answer.OPEN else _why_open(entries, answers, rule)
    return RuleResult(rule.says, answer, figures, why)


def _why_not_decided(rule: Rule, answer: Answer, entries: list[Entry], analysis: Analysis) -> str:
    """Why an answer does not count; empty if it does."""
    if analysis.manifest.is_host_emulated:
        return "this host's own processor is emulated in software, so that its figures decide no claim"
    unwanted = {"both": None, "fails": Answer.YES, "holds": Answer.NO, "exhausted": Answer.NO}[rule.decides]
    if answer is unwanted and not (
        rule.decides == "exhausted" and all(ran_out(analysis, entry.backend) for entry in entries)
    ):
        return rule.otherwise
    adds = rule.emulation_adds and rule.above is not None
    if answer is Answer.YES and adds and any(entry.emulated for entry in entries):
        return "the guest ran under emulation, which adds to it"
    return ""


def _ask(entry: Entry, limit: float, level_yes: float, level_no: float, *, above: bool) -> Answer:
    """On which side of the limit the entry lies; a value at the limit itself says neither."""
    for answer, level, wants_above in ((Answer.YES, level_yes, above), (Answer.NO, level_no, not above)):
        found = entry.at(level)
        low, high = found.low, found.high
        if low is not None and high is not None and (low > limit if wants_above else high < limit):
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


def _figures(entries: list[Entry], answers: list[Answer], answer: Answer, rule: Rule, limit: float) -> list[str]:
    """Up to three entries in words, those that decided first and the nearest to the limit among them."""
    ranked = sorted(
        zip(entries, answers, strict=True),
        key=lambda pair: (pair[1] is not answer, abs(pair[0].at(LEVEL).centre - limit)),
    )
    words = []
    for entry, _ in ranked[:3]:
        found, interval = entry.at(LEVEL), ""
        if found.low is not None and found.high is not None and found.low != found.high:
            interval = f" ({LEVEL * 100:g} % interval {entry.show(found.low)} – {entry.show(found.high)})"
        words.append(f"{entry.name}: {entry.show(found.centre)}{interval}")
    if len(entries) > len(words):
        counts = [f"{answers.count(kind)} {_WORDS[kind]}" for kind in Answer if kind in answers]
        words.append(f"of {len(entries)}: {', '.join(counts)}")
    side, edge = ("above", rule.above) if rule.above is not None else ("below", rule.below)
    if isinstance(edge, dict):
        words.append(f"asked: {side} {entries[0].show(limit)}")
    return words


def _limit(rule: Rule, manifest: Manifest) -> tuple[float | None, str]:
    """The rule's limit in base units, or None with the reason."""
    given = rule.above if rule.above is not None else rule.below
    if isinstance(given, dict):
        ((name, factor),) = given.items()
        known = references(manifest)
        if name not in known:
            return None, f"this run's manifest does not hold {name.replace('_', ' ')}"
        return factor * known[name], ""
    return given, ""


def _why_nothing(rule: Rule, analysis: Analysis) -> str:
    """Why a rule has no entry: the image, the experiment, the backend or the metric is not in the run."""
    if rule.quantity == "image":
        return "this run's manifest does not hold the image's sizes"
    experiments = {subject.experiment for subject in analysis.subjects}
    if rule.experiment and rule.experiment not in experiments:
        return f"the run has no experiment {rule.experiment}"
    kinds = {kind for name in analysis.measured for kind in kinds_of(analysis.manifest, name)}
    for wanted in (rule.of, rule.against):
        if wanted is not None and wanted not in kinds:
            if wanted is Kind.HARDWARE_VM and Kind.EMULATED_VM in kinds:
                return "the guest ran under emulation (TCG), which says nothing about hardware virtualization"
            return f"{KIND_WORDS[wanted]} was not measured"
    if rule.metric == "leading":
        return "no workload measured a speed on it"
    return f"the run has no {rule.metric} of it"


def _why_open(entries: list[Entry], answers: list[Answer], rule: Rule) -> str:
    open_ones = [entry for entry, answer in zip(entries, answers, strict=True) if answer is Answer.OPEN]
    if open_ones and all(entry.at(LEVEL).low is None for entry in open_ones):
        return "one block gives no interval"
    return "the interval holds the limit" if rule.across == "every" else "too few are decided"


CLAIMS = Path(__file__).with_name("claims.toml")


class ClaimVerdict(StrEnum):
    """What a run says of a claim."""

    HELD = "held"
    DID_NOT_HOLD = "did not hold"
    NOT_MEASURED = "not measured here"
    UNDECIDED = "undecided"


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A claim as ``claims.toml`` has it."""

    id: str
    statement: str
    source: str
    rule: tuple[Rule, ...]


class ClaimResult(msgspec.Struct, frozen=True):
    """A claim with its verdict. ``reason`` is one or more sentences with the figures; ``parts`` the same by rule."""

    id: str
    statement: str
    source: str
    verdict: ClaimVerdict
    reason: str
    parts: list[RuleResult]


@functools.cache
def load_claims(path: Path = CLAIMS) -> tuple[Claim, ...]:
    """The claims of a file. Raises ValueError where a rule makes no sense."""
    content = tomllib.loads(path.read_text("utf-8"))
    claims = msgspec.convert(content["claim"], tuple[Claim, ...])
    for claim in claims:
        for rule in claim.rule:
            if (rule.above is None) == (rule.below is None):
                raise ValueError(f"{path}: {claim.id}: a rule needs either above or below")
            if (rule.quantity == "slowdown") != (rule.against is not None):
                raise ValueError(f"{path}: {claim.id}: a slowdown needs against, and nothing else has it")
    return claims


def judge(analysis: Analysis) -> list[ClaimResult]:
    """Every claim with its verdict, in the order of the file. Works on any run, also an empty one."""
    return [_judge(claim, analysis) for claim in load_claims()]


def _judge(claim: Claim, analysis: Analysis) -> ClaimResult:
    parts = [evaluate(rule, analysis) for rule in claim.rule]
    # A rule that can only fail a claim is not missed where another one answers.
    answers = {
        part.answer
        for rule, part in zip(claim.rule, parts, strict=True)
        if part.answer is not Answer.ABSENT or rule.decides != "fails"
    } or {Answer.ABSENT}
    if Answer.NO in answers:
        verdict = ClaimVerdict.DID_NOT_HOLD
    elif Answer.ABSENT in answers:
        verdict = ClaimVerdict.NOT_MEASURED
    elif Answer.OPEN in answers:
        verdict = ClaimVerdict.UNDECIDED
    else:
        verdict = ClaimVerdict.HELD
    return ClaimResult(claim.id, claim.statement, claim.source, verdict, " ".join(map(_sentence, parts)), parts)


_WORDS = {Answer.YES: "yes", Answer.NO: "no", Answer.OPEN: "undecided", Answer.ABSENT: "not measured here"}


def _sentence(part: RuleResult) -> str:
    says = f"{part.says[:1].upper()}{part.says[1:]}"
    word = f"{_WORDS[part.answer]}, {part.why}" if part.why else _WORDS[part.answer]
    return f"{says}: {word}{' – ' if part.figures else ''}{'; '.join(part.figures)}."
