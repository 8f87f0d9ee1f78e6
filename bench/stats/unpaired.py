"""Two samples of blocks that share none: the blocks of two runs.

Nothing that the host did falls on both sides, so the blocks are taken as two independent samples, on the log scale,
with variances of their own. With fewer than ``MANY_BLOCKS`` on a side: the difference of means with Welch's t (Welch
1947, degrees of freedom by Satterthwaite). From there: the difference of means trimmed by 20 % with Yuen's t (Yuen
1974; Wilcox 2012, section 5.3), as one block that went astray moves a mean. The interval holds the variation of blocks
within either run, and not that between two runs of the same thing, of which one each was made.
"""

import math

import numpy as np

from tare.bench.model import Direction
from tare.bench.stats import DEFAULT_MARGIN
from tare.bench.stats.intervals import LEVEL, MANY_BLOCKS, TRIMMED, Interval, trimmed_mean
from tare.bench.stats.medians import CellBlocks, Floats
from tare.bench.stats.verdicts import Comparison, Verdict, judge


def compare_unpaired(
    second: CellBlocks,
    first: CellBlocks,
    *,
    direction: Direction,
    margin: float = DEFAULT_MARGIN,
    level: float = LEVEL,
) -> Comparison:
    """The ratio of a cell in one run to the same cell in another. Never raises for too little data: the note says it.

    ``n_blocks`` of the result are those of the side that has fewer; instances and iterations are the second's.
    """
    note = ""
    if not len(first.values) or not len(second.values):
        note = "no block on one side: no ratio"
    elif not (first.values.any() or second.values.any()):
        note = "0 on both sides"
    elif min(first.values.min(), second.values.min()) <= 0:
        note = "a value of 0 or below: no ratio"
    n_blocks = min(len(first.values), len(second.values))
    n_instances, n_iterations = int(second.instances.sum()), int(second.iterations.sum())
    ratio = low = high = p_value = None
    method, verdict, adjusted = "none", Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE
    if not note:
        found = difference_interval(np.log(second.values), np.log(first.values), level=level)
        method, p_value = found.method, found.p_value
        ratio = math.exp(found.centre)
        if found.low is None or found.high is None:
            note = "one block on a side: no interval"
        else:
            low, high = math.exp(found.low), math.exp(found.high)
            verdict = adjusted = judge(ratio, low, high, direction, margin)
    return Comparison(
        ratio=ratio,
        low=low,
        high=high,
        verdict=verdict,
        n_blocks=n_blocks,
        n_instances=n_instances,
        n_iterations=n_iterations,
        method=method,
        margin=margin,
        level=level,
        note=note,
        p_value=p_value,
        q_value=p_value,
        verdict_adjusted=adjusted,
    )


def difference_interval(second: Floats, first: Floats, *, level: float = LEVEL) -> Interval:
    """The difference of two centres, second minus first, with its interval and the p-value of it being 0."""
    from scipy.special import stdtr, stdtrit

    counts = f"{len(second)} and {len(first)} blocks"
    trims = min(len(second), len(first)) >= MANY_BLOCKS
    centre = float(trimmed_mean(second) - trimmed_mean(first)) if trims else float(second.mean() - first.mean())
    if min(len(second), len(first)) < 2:
        return Interval(centre, None, None, None, f"{counts}: no interval")
    sides = [_error_of_centre(side, trimmed=trims) for side in (second, first)]
    variance = sum(squared for squared, _ in sides)
    method = f"{'Yuen' if trims else 'Welch'}'s t over {counts}"
    if variance == 0:
        return Interval(centre, centre, centre, 1.0 if centre == 0 else 0.0, method)
    degrees = variance**2 / sum(squared**2 / freedom for squared, freedom in sides)
    error = math.sqrt(variance)
    half = float(stdtrit(degrees, (1 + level) / 2)) * error
    p_value = 2 * float(stdtr(degrees, -abs(centre) / error))
    return Interval(centre, centre - half, centre + half, p_value, method)


def _error_of_centre(values: Floats, *, trimmed: bool) -> tuple[float, int]:
    """The squared standard error of one side's centre, and its degrees of freedom."""
    n = len(values)
    if not trimmed:
        return float(values.var(ddof=1)) / n, n - 1
    cut = int(TRIMMED * n)
    kept = n - 2 * cut
    ordered = np.sort(values)
    winsorised = np.clip(values, ordered[cut], ordered[n - cut - 1])
    return (n - 1) * float(winsorised.var(ddof=1)) / (kept * (kept - 1)), kept - 1
