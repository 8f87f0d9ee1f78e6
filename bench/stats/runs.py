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

import numpy as np

from tare.bench.model import Direction
from tare.bench.settings import DEFAULT_MARGIN
from tare.bench.stats.comparisons import (
    ALIKE_BLOCKS,
    LEVEL,
    MANY_BLOCKS,
    TRIMMED,
    CellBlocks,
    Comparison,
    Floats,
    Interval,
    centre_interval,
    decided,
    exponential,
    trimmed_mean,
    undecided,
    why_no_ratio,
)

ENOUGH_RUNS = 3
"""Runs on a side from which its variance between runs is its own."""
LEAST_FREEDOM = 4
"""Degrees of freedom (runs of both sides less two) below which the variance between runs is not estimated."""

WELCH, YUEN = "Welch's", "Yuen's"


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


def summarise_runs(runs: Sequence[CellBlocks], seed: int = 0) -> Interval:
    """The centre of a cell over runs with its interval: over blocks of one run, over the centres of several."""
    values = [run.values for run in runs]
    logs = min(one.min(initial=math.inf) for one in values) > 0
    kept = [np.log(one) if logs else one for one in values if len(one)]
    if not kept:
        return Interval(math.nan, None, None, None, "no block")
    centres = kept[0] if len(kept) == 1 else np.array([_centre(one) for one in kept])
    found = centre_interval(centres, seed=seed)
    return exponential(found) if logs else found


def difference_interval(second: Floats, first: Floats) -> Interval:
    """The difference of two centres, second minus first, with its interval and the p-value of it being 0.

    Welch's t; with many on both sides Yuen's over trimmed means (Yuen 1974; Wilcox 2012, section 5.3).
    """
    from scipy.stats import ttest_ind

    fewest = min(len(second), len(first))
    counts = f"{len(second)} and {len(first)} blocks"
    trims = fewest >= MANY_BLOCKS
    centre = _centre(second) - _centre(first)
    if fewest < 2:
        return Interval(centre, None, None, None, f"{counts}: no interval")
    if any(_is_coarse(side) for side in (second, first)):
        return Interval(centre, None, None, None, f"{counts}, a side with one reading only: no interval")
    method = f"{YUEN if trims else WELCH} t over {counts}"
    if not trims and max(np.ptp(second), np.ptp(first)) == 0:  # scipy has no answer where nothing varies
        return Interval(centre, centre, centre, 1.0 if centre == 0 else 0.0, method)
    found = ttest_ind(second, first, equal_var=False, trim=TRIMMED if trims else 0)
    low, high = found.confidence_interval(LEVEL)
    return Interval(centre, float(low), float(high), float(found.pvalue), method)


def _between_runs(second: Sequence[Floats], first: Sequence[Floats]) -> Interval:
    from scipy.stats import ttest_ind

    ours, theirs = (np.array([_centre(run) for run in side]) for side in (second, first))
    centre = float(ours.mean() - theirs.mean())
    counts = f"{len(ours)} and {len(theirs)} runs"
    if all(_is_coarse(np.concatenate(side)) for side in (second, first)):
        return Interval(centre, None, None, None, f"{counts} with one reading only: no interval")
    pooled = min(len(ours), len(theirs)) < ENOUGH_RUNS
    method = f"{'pooled' if pooled else WELCH} t over {counts}"
    if max(np.ptp(ours), np.ptp(theirs)) == 0:
        return Interval(centre, centre, centre, 1.0 if centre == 0 else 0.0, method)
    found = ttest_ind(ours, theirs, equal_var=pooled)
    low, high = found.confidence_interval(LEVEL)
    return Interval(centre, float(low), float(high), float(found.pvalue), method)


def _centre(logs: Floats) -> float:
    return float(trimmed_mean(logs) if len(logs) >= MANY_BLOCKS else logs.mean())


def _is_coarse(values: Floats) -> bool:
    """Whether a few readings are alike because the tool's steps are coarse, as far as can be seen."""
    return len(values) < ALIKE_BLOCKS and float(np.ptp(values)) == 0
