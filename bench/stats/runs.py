"""Two sets of runs: what changed from one to the other, beside what two runs of the same thing differ by.

Blocks of different runs share nothing that the host did. Each run contributes one value a block on the log scale:
the ratio to the baseline of the same block, in which what the host did to the run cancels, or the level itself.

With enough runs the run is the unit (Kalibera and Jones 2013: the top level decides): each is reduced to the centre of
its blocks, and the two sides are compared by Welch's t over runs where both have ``ENOUGH_RUNS``, by Student's t with
the pooled variance where one has fewer and the variance between runs still rests on ``LEAST_FREEDOM`` degrees of
freedom. With fewer runs the variance between runs is not known. The blocks of each side then are one sample, the
interval holds the variation of blocks alone, and ``knows_runs`` is False: a level has no verdict there, and that of a
ratio says nothing of what two runs of the same thing differ by.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from tare.bench.model import Direction
from tare.bench.settings import DEFAULT_MARGIN
from tare.bench.stats.comparisons import (
    ALIKE_BLOCKS,
    LEVEL,
    CellBlocks,
    Comparison,
    Floats,
    Interval,
    centre_interval,
    decided,
    exponential,
    undecided,
    why_no_ratio,
)
from tare.bench.stats.dependence import find_dependence, widening

ENOUGH_RUNS = 3
"""Runs on a side from which its variance between runs is its own."""
LEAST_FREEDOM = 4
"""Degrees of freedom (runs of both sides less two) below which the variance between runs is not estimated."""


def knows_runs(second: int, first: int) -> bool:
    """Whether so many runs on the two sides show how much two runs of the same thing differ."""
    return second + first - 2 >= LEAST_FREEDOM


def compare_runs(
    second: Sequence[CellBlocks],
    first: Sequence[CellBlocks],
    *,
    direction: Direction,
    margin: float = DEFAULT_MARGIN,
) -> Comparison:
    """The ratio of a cell in the second runs to the same in the first. Never raises for too little data.

    ``n_blocks`` of the result are those of the side that has fewer; instances and iterations are the second's.
    """
    n_blocks = min(sum(len(run.values) for run in side) for side in (first, second))
    n_instances, n_iterations = (
        sum(int(one.sum()) for one in each)
        for each in ((run.instances for run in second), (run.iterations for run in second))
    )
    counts = (n_blocks, n_instances, n_iterations)
    if any(len(run.values) == 0 for run in (*first, *second)):
        return undecided(counts, "no block on one side: no ratio", margin)
    if note := why_no_ratio([run.values for run in (*first, *second)]):
        return undecided(counts, note, margin)
    ours, theirs = ([np.log(run.values) for run in side] for side in (second, first))
    if knows_runs(len(second), len(first)):
        found = _between_runs(ours, theirs)
    else:
        found = difference_interval(np.concatenate(ours), np.concatenate(theirs))
    return decided(found, counts, direction, margin, LEVEL, found.method)


def summarise_runs(runs: Sequence[CellBlocks]) -> Interval:
    """The centre of a cell over runs with its interval: over blocks of one run, over the centres of several."""
    values = [run.values for run in runs]
    logs = min(one.min(initial=math.inf) for one in values) > 0
    kept = [np.log(one) if logs else one for one in values if len(one)]
    if not kept:
        return Interval(math.nan, None, None, None, "no block")
    centres = kept[0] if len(kept) == 1 else np.array([one.mean() for one in kept])
    found = centre_interval(centres)
    return exponential(found) if logs else found


def difference_interval(second: Floats, first: Floats) -> Interval:
    """The difference of two means, second minus first, with its interval and the p-value of it being 0.

    Welch's t; a side whose neighbouring blocks depend on one another has the larger error and the fewer degrees of
    freedom of such values.
    """
    counts = f"{len(second)} and {len(first)} blocks"
    centre = float(second.mean() - first.mean())
    if min(len(second), len(first)) < 2:
        return Interval(centre, None, None, None, f"{counts}: no interval")
    is_alike = centre != 0 and min(float(np.ptp(second)), float(np.ptp(first))) == 0  # as runs do differ by a page
    if is_alike or any(_is_coarse(side) for side in (second, first)):
        return Interval(centre, None, None, None, f"{counts}, a side with one reading only: no interval")
    found = [find_dependence([side]) for side in (second, first)]
    sides = [(side, *widening(len(side), one.lag1)) for side, one in zip((second, first), found, strict=True)]
    variances = [(float(side.var(ddof=1)) / len(side) * wider**2, freedom) for side, wider, freedom in sides]
    strongest = max(found, key=lambda one: one.lag1)
    method = f"Welch's t over {counts}"
    if strongest.lag1 > 0:
        method += f", neighbours correlated ({strongest.lag1:.2g})"
    return msgspec.structs.replace(_welch(centre, variances, method), dependence=strongest)


def _between_runs(second: Sequence[Floats], first: Sequence[Floats]) -> Interval:
    ours, theirs = (np.array([run.mean() for run in side]) for side in (second, first))
    centre, freedom = float(ours.mean() - theirs.mean()), len(ours) + len(theirs) - 2
    counts = f"{len(ours)} and {len(theirs)} runs"
    if all(_is_coarse(np.concatenate(side)) for side in (second, first)):
        return Interval(centre, None, None, None, f"{counts} with one reading only: no interval")
    if min(len(ours), len(theirs)) >= ENOUGH_RUNS:
        variances = [(float(side.var(ddof=1)) / len(side), len(side) - 1.0) for side in (ours, theirs)]
        return _welch(centre, variances, f"Welch's t over {counts}")
    pooled = sum(float(((side - side.mean()) ** 2).sum()) for side in (ours, theirs)) / freedom
    variance = pooled * (1 / len(ours) + 1 / len(theirs))
    return _welch(centre, [(variance, float(freedom))], f"pooled t over {counts}")


def _welch(centre: float, variances: Sequence[tuple[float, float]], method: str) -> Interval:
    """Of a difference whose variance is the sum of these, each with its degrees of freedom (Satterthwaite 1946)."""
    from scipy.special import stdtr, stdtrit

    error = math.sqrt(sum(variance for variance, _ in variances))
    if error == 0:
        return Interval(centre, centre, centre, 1.0 if centre == 0 else 0.0, method)
    freedom = error**4 / sum(variance**2 / freedom for variance, freedom in variances)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    p_value = 2 * float(stdtr(freedom, -abs(centre) / error))
    return Interval(centre, centre - half, centre + half, p_value, method)


def _is_coarse(values: Floats) -> bool:
    """Whether a few readings are alike because the tool's steps are coarse, as far as can be seen."""
    return len(values) < ALIKE_BLOCKS and float(np.ptp(values)) == 0
