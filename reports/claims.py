"""The field's folklore, judged by a run: each claim held, did not hold, is undecided, or was not measured here.

``claims.toml`` holds the claims with their sources and rules; ``claim_rules`` evaluates a rule. A claim about how fast
a virtual machine is asks for hardware virtualization, so that a guest under emulation never decides it.
"""

import functools
import tomllib
from enum import StrEnum
from pathlib import Path

import msgspec

from tare.bench.analysis import Analysis
from tare.reports.claim_rules import Answer, Rule, RuleResult, evaluate

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
