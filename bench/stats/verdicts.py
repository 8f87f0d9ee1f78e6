"""From intervals to verdicts: faster, slower, equivalent, inconclusive."""

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec
import numpy as np

from tare.bench.model import Direction
from tare.bench.settings import DEFAULT_MARGIN
from tare.bench.stats.intervals import LEVEL, Interval, centre_interval
from tare.bench.stats.medians import CellBlocks, Floats


class Verdict(StrEnum):
    """What an interval says. ``faster`` means better in the metric's own direction, ``slower`` worse."""

    FASTER = "faster"
    SLOWER = "slower"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"


class Comparison(msgspec.Struct, frozen=True):
    """One metric of one backend against the baseline.

    ``ratio`` is backend over baseline; None where a value of 0 allows none. ``low`` and ``high`` bound it at
    ``level``; None where one block alone allows no interval. ``n_blocks`` are those that hold both sides;
    ``n_instances`` and ``n_iterations`` are the backend's own in them. ``p_value`` tests a ratio of 1;
    ``q_value`` is it after ``control_false_discoveries``, and ``verdict_adjusted`` the verdict that survives.
    ``note`` says why something is missing.
    """

    ratio: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    n_blocks: int
    n_instances: int
    n_iterations: int
    method: str
    margin: float
    level: float
    note: str = ""
    p_value: float | None = None
    q_value: float | None = None
    verdict_adjusted: Verdict = Verdict.INCONCLUSIVE


def compare(
    backend: CellBlocks,
    baseline: CellBlocks,
    *,
    direction: Direction,
    margin: float = DEFAULT_MARGIN,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """Compare a cell with the baseline's, paired by block. Never raises for too little data: the note says it."""
    shared = np.intersect1d(backend.blocks, baseline.blocks)
    ours, theirs = backend.at(shared), baseline.at(shared)
    counts = (len(shared), int(ours.instances.sum()), int(ours.iterations.sum()))
    if len(shared) == 0:
        return _undecided(counts, "no block holds both: no ratio", margin, level)
    if not (ours.values.any() or theirs.values.any()):
        return _undecided(counts, "0 on both sides", margin, level)
    if min(ours.values.min(), theirs.values.min()) <= 0:
        return _undecided(counts, "a value of 0 or below: no ratio", margin, level)
    interval = centre_interval(np.log(ours.values) - np.log(theirs.values), level=level, seed=seed)
    found = _exponential(interval)
    verdict = judge(found.centre, found.low, found.high, direction, margin)
    return Comparison(
        ratio=found.centre,
        low=found.low,
        high=found.high,
        verdict=verdict,
        n_blocks=counts[0],
        n_instances=counts[1],
        n_iterations=counts[2],
        method=found.method,
        margin=margin,
        level=level,
        note="" if found.low is not None else found.method,
        p_value=found.p_value,
        q_value=found.p_value,
        verdict_adjusted=verdict,
    )


def summarise(cell: CellBlocks, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """The centre of a cell's own values, in the metric's unit, with its interval; on the log scale where it can be."""
    if cell.values.min() > 0:
        return _exponential(centre_interval(np.log(cell.values), level=level, seed=seed))
    return centre_interval(cell.values, level=level, seed=seed)


def judge(ratio: float, low: float | None, high: float | None, direction: Direction, margin: float) -> Verdict:
    """The verdict of a ratio with its interval.

    Equivalent: the whole interval lies inside the margin. Faster or slower: the whole interval lies on one side of
    1, and the ratio itself outside the margin. Everything else is inconclusive, and so is a ratio without interval.
    The margin is the same factor both ways: from 1/(1+margin) to 1+margin.
    """
    if low is None or high is None:
        return Verdict.INCONCLUSIVE
    largest = 1 + margin
    if low >= 1 / largest and high <= largest:
        return Verdict.EQUIVALENT
    if low > 1 and ratio > largest:
        return Verdict.SLOWER if direction is Direction.LOWER else Verdict.FASTER
    if high < 1 and ratio < 1 / largest:
        return Verdict.FASTER if direction is Direction.LOWER else Verdict.SLOWER
    return Verdict.INCONCLUSIVE


def adjust_p_values(p_values: Sequence[float]) -> Floats:
    """Benjamini and Hochberg (1995): a difference with a value up to q is a false discovery in at most q of cases."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return adjusted


def control_false_discoveries(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with q-values over all of them.

    Of the verdicts faster and slower only those with q up to 1 - level survive in ``verdict_adjusted``. Equivalence
    needs no adjustment: it claims no difference.
    """
    tested = [index for index, comparison in enumerate(comparisons) if comparison.p_value is not None]
    q_values = adjust_p_values([comparisons[index].p_value or 0.0 for index in tested])
    result = list(comparisons)
    for index, q in zip(tested, q_values.tolist(), strict=True):
        found = comparisons[index]
        differs = found.verdict in (Verdict.FASTER, Verdict.SLOWER)
        kept = found.verdict if not differs or q <= 1 - found.level else Verdict.INCONCLUSIVE
        result[index] = msgspec.structs.replace(found, q_value=q, verdict_adjusted=kept)
    return result


def _exponential(interval: Interval) -> Interval:
    def back(value: float | None) -> float | None:
        return None if value is None else math.exp(value)

    return msgspec.structs.replace(
        interval, centre=math.exp(interval.centre), low=back(interval.low), high=back(interval.high)
    )


def _undecided(counts: tuple[int, int, int], note: str, margin: float, level: float) -> Comparison:
    return Comparison(None, None, None, Verdict.INCONCLUSIVE, *counts, "none", margin, level, note)
