"""Many comparisons: which differences survive, family by family.

A *family* is everything that one run says of one pair of backends. Forty certain differences of an emulated guest
therefore change nothing for the container beside it. Within a family the leading metrics come first: they and the other
metrics are two tiers, each corrected by itself (Benjamini and Hochberg 1995) at half of the level, so that certain
differences in details (starts, memory) neither raise nor lower what a leading metric needs. Metrics that restate one
reading (a rate and the time per operation, IOPS and bandwidth) are counted once.

Decision 0166 has the simulations, and why neither a fixed sequence nor a tree stands here.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from tare.bench.stats.comparisons import ALIKE_BLOCKS, Comparison, Floats, Verdict, differs

SAME_READING = 0.25
"""Two metrics restate one reading if their log ratios differ in no block by more than this share of their range, on
average over the pairs of backends: a rate and its reciprocal differ a little where a tool rounds, and by medians of an
even number of iterations."""
_OF_FEW = 0.05
"""The same with fewer than ``ALIKE_BLOCKS`` blocks, whose ranges are alike by chance more easily."""


class Member(msgspec.Struct, frozen=True):
    """A comparison in its family.

    ``name`` is the metric's, ``reading`` what it was read from with others: metrics of one reading are looked for among
    those with the same (the subject). ``evidence`` are its log ratios, block by block, an array for each of the run's
    pairs of backends, in the same order for all members of a reading: what restates another does so everywhere.
    """

    found: Comparison
    name: str
    reading: str = ""
    is_leading: bool = False
    evidence: tuple[Floats, ...] = ()


def control_false_discoveries(members: Sequence[Member], family: str = "") -> list[Comparison]:
    """The comparisons of one family with q-values, in the order given.

    Of the verdicts faster and slower only those with q up to 1 - level survive in ``verdict_adjusted``. Equivalence
    needs no adjustment: it claims no difference. What was too large to compute with (no finite p) is left as it is.
    A metric that restates another has the q-value of that one, and its name in ``restates``. ``is_tentative`` is of the
    verdict that survived.
    """
    from scipy.stats import false_discovery_control

    counted = _counted(members)
    tiers = [
        [place for place, one in enumerate(members) if counted[place] == place and one.is_leading is leading]
        for leading in (True, False)
    ]
    tiers = [tested for tier in tiers if (tested := [place for place in tier if _is_tested(members[place].found)])]
    q_values: dict[int, float] = {}
    for tier in tiers:
        p_values = [members[place].found.p_value for place in tier]
        q_values |= dict(zip(tier, (len(tiers) * false_discovery_control(p_values)).tolist(), strict=True))
    adjusted = []
    for place, one in enumerate(members):
        restates = members[counted[place]].name if counted[place] != place else ""
        found = msgspec.structs.replace(one.found, family=family, restates=restates)
        q_value = q_values.get(counted[place])
        adjusted.append(found if q_value is None else _survivor(found, min(1.0, q_value)))
    return adjusted


def _survivor(found: Comparison, q_value: float) -> Comparison:
    kept = found.verdict if not differs(found.verdict) or q_value <= 1 - found.level else Verdict.INCONCLUSIVE
    p_value, p_skewed = found.p_value or 0.0, found.p_skewed or 0.0
    # What the correction made of p, it makes of the p-value with hidden skewness.
    is_tentative = differs(kept) and q_value * p_skewed > (1 - found.level) * p_value
    return msgspec.structs.replace(found, q_value=q_value, verdict_adjusted=kept, is_tentative=is_tentative)


def _is_tested(found: Comparison) -> bool:
    return found.p_value is not None and math.isfinite(found.p_value)


def _counted(members: Sequence[Member]) -> list[int]:
    """For each member the place of the one that is counted for it: itself, or an earlier one of the same reading.

    Leading metrics are looked at first, so that none of them restates a detail.
    """
    counted = list(range(len(members)))
    kept: dict[str, list[int]] = {}
    for place in sorted(counted, key=lambda place: not members[place].is_leading):
        one = members[place]
        if not _is_tested(one.found):
            continue
        others = kept.setdefault(one.reading, [])
        same = (other for other in others if _is_same_reading(members[other].evidence, one.evidence))
        counted[place] = next(same, place)
        if counted[place] == place:
            others.append(place)
    return counted


def _is_same_reading(first: Sequence[Floats], second: Sequence[Floats]) -> bool:
    """Whether one is the other, or its reciprocal, on the same backends: they differ far below the noise of either."""
    if len(first) != len(second):
        return False
    pairs = [(one, other) for one, other in zip(first, second, strict=True) if len(one) == len(other) > 1]
    if not pairs:
        return False
    allowed = SAME_READING if min(len(one) for one, _ in pairs) >= ALIKE_BLOCKS else _OF_FEW
    return sum(_difference(one, other) for one, other in pairs) <= allowed * len(pairs)


def _difference(first: Floats, second: Floats) -> float:
    """By how much they differ at most, in any block, as a share of the range of the one that varies less."""
    varies = min(float(np.ptp(first)), float(np.ptp(second)))
    return float(min(np.abs(first - second).max(), np.abs(first + second).max())) / varies if varies > 0 else math.inf
