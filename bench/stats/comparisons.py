"""From values to blocks, from blocks to intervals, from intervals to verdicts.

What is estimated is the mean of one log value a block, whatever their number: an estimator that changed with it would
change what is estimated where noise is skewed (decision 0167). The interval is Student's t, which a few independent
values need: a bootstrap of four or five cannot know the tails of what they came from, and covers 85 to 93 % where it
says 95. Two things widen it. Towards the side on which values are skewed, t is too narrow by the first term of its
Edgeworth expansion (Johnson 1978, J. Am. Stat. Assoc. 73:536), of which half is added: the skewness of a few values is
mostly noise. What that leaves out is said with the verdict: it is *tentative* if it would not survive a skewness
greater than the one seen by what so few values may hide (decision 0208). And where neighbouring blocks are found to
depend on one another, the standard error and the degrees of freedom are those of such values (``dependence``).

A block counts whole, with its instances and iterations. Resampling these again inside it would count their noise twice
(Davison and Hinkley 1997, section 3.8): in simulation such intervals cover 100 %.
"""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.model import Direction
from tare.bench.settings import DEFAULT_MARGIN
from tare.bench.stats.dependence import UNTESTED, Dependence, find_dependence, widening

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def grouped_medians(values: Floats, groups: Integers, n_groups: int) -> Floats:
    """The median of each group; ``groups`` holds the number of each value's group, from 0. Empty groups give NaN."""
    ordered, filled, first, n = _by_group(values, groups, n_groups)
    medians = np.full(n_groups, np.nan)
    medians[filled] = (ordered[first + (n - 1) // 2] + ordered[first + n // 2]) / 2
    return medians


def grouped_quantiles(values: Floats, groups: Integers, n_groups: int, quantile: float) -> Floats:
    """A quantile of each group: the median-unbiased one (Hyndman and Fan 1996, definition 8). Empty groups give NaN."""
    ordered, filled, first, n = _by_group(values, groups, n_groups)
    place = np.clip(quantile * (n + 1 / 3) - 2 / 3, 0, n - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, n - 1)
    found = np.full(n_groups, np.nan)
    found[filled] = ordered[first + low] + (place - low) * (ordered[first + high] - ordered[first + low])
    return found


def _by_group(values: Floats, groups: Integers, n_groups: int) -> tuple[Floats, NDArray[np.bool_], Integers, Integers]:
    """The values in order within their groups; which groups have any; where each of those begins, and its size."""
    counts = np.bincount(groups, minlength=n_groups)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64)
    filled = counts > 0
    return values[np.lexsort((values, groups))], filled, starts[filled], counts[filled]


def least_for_quantile(quantile: float) -> int:
    """How many values a quantile needs: as many as leave one beyond it on average. 10 for p90, 100 for p99."""
    return math.ceil(1 / min(quantile, 1 - quantile) - 1e-9)


class CellBlocks(msgspec.Struct, frozen=True):
    """One metric of one cell, block by block, warm-up left out.

    ``blocks`` are the numbers of the blocks in rising order; ``values`` holds for each the median over its instances
    of the medians over their iterations, in the metric's unit; ``instances`` and ``iterations`` how many there were.
    """

    blocks: Integers
    values: Floats
    instances: Integers
    iterations: Integers

    @classmethod
    def from_instances(cls, centres: Floats, blocks: Integers, iterations: Integers) -> Self:
        """From one entry an instance: the median of its iterations, its block, how many iterations it had."""
        names, block = np.unique(blocks, return_inverse=True)
        return cls(
            names,
            grouped_medians(centres, block, len(names)),
            np.bincount(block, minlength=len(names)),
            np.bincount(block, weights=iterations, minlength=len(names)).astype(np.int64),
        )

    @classmethod
    def from_quantiles(cls, values: Floats, instances: Integers, blocks: Integers, quantile: float) -> Self:
        """From one entry a sample: ``values`` of the result are a quantile of all iterations in a block together.

        Blocks with fewer iterations than ``least_for_quantile`` are left out.
        """
        names, block = np.unique(blocks, return_inverse=True)
        iterations = np.bincount(block, minlength=len(names))
        enough = iterations >= least_for_quantile(quantile)
        pairs = np.unique(np.stack((block, instances)), axis=1)
        found = grouped_quantiles(values, block, len(names), quantile)
        n_instances = np.bincount(pairs[0], minlength=len(names))
        return cls(names[enough], found[enough], n_instances[enough], iterations[enough])

    def at(self, blocks: Integers) -> Self:
        """Only the given blocks."""
        kept = np.isin(self.blocks, blocks)
        return type(self)(self.blocks[kept], self.values[kept], self.instances[kept], self.iterations[kept])


LEVEL = 0.95
ALIKE_BLOCKS = 4
"""From this many equal blocks on, the reading counts as steady; with fewer, the tool's steps may just be coarse."""
SKEWED_BLOCKS = 5
"""Of fewer values the skewness says nothing."""
_SKEWNESS = 0.5
HIDDEN = 1.0
"""By how many of its standard errors the skewness may be greater than is seen, and a verdict has to survive it."""
HIDDEN_BY_STOPPING = 4.0
"""The same where sampling stopped because intervals were narrow, which they are before a long tail shows."""


class Interval(msgspec.Struct, frozen=True):
    """A centre with its interval, and the two-sided p-value of the centre being 0.

    ``low``, ``high`` and ``p_value`` are None where one value alone, or a few that are alike, do not allow them.
    ``p_skewed`` is the p-value if the values came from a distribution more skewed towards 0 than they are, by what so
    few may hide; None where it is not known, as between runs. ``dependence`` is that of neighbouring values, for which
    the interval is wider where it was found.
    """

    centre: float
    low: float | None
    high: float | None
    p_value: float | None
    method: str
    dependence: Dependence = UNTESTED
    p_skewed: float | None = None


def centre_interval(
    values: Floats, *, level: float = LEVEL, together: Dependence = UNTESTED, hidden: float = HIDDEN
) -> Interval:
    """The mean of values in the order of time and its interval. Raises ValueError if there are none.

    ``together`` is the dependence found in several series of which this is one; the stronger one counts. ``hidden`` is
    how much skewness ``p_skewed`` allows for beyond what is seen, in standard errors.
    """
    from scipy.special import stdtr, stdtrit

    n = len(values)
    if n == 0:
        raise ValueError("there is no value to estimate from")
    centre = float(values.mean())
    if n == 1:
        return Interval(centre, None, None, None, "one block: no interval")
    error = float(values.std(ddof=1)) / math.sqrt(n)
    if error == 0 and n < ALIKE_BLOCKS:
        return Interval(centre, None, None, None, f"{n} blocks with the same reading: no interval")
    dependence = max(find_dependence([values]), together, key=lambda one: (one.lag1, one.is_tested))
    wider, freedom = widening(n, dependence.lag1)
    error *= wider
    quantile = float(stdtrit(freedom, (1 + level) / 2))
    skewness = _skewness(values)
    below, above = (quantile + skewed_by(skewness, n, quantile, side) for side in (-1, 1))
    towards = -skewness if centre > 0 else skewness
    p, p_skewed = (
        _p_of_ratio(centre, error, lambda t: 2 * float(stdtr(freedom, -_unskewed(t, term, n))))  # noqa: B023 - called here
        for term in (_SKEWNESS * towards, towards + hidden * skewness_error(n))
    )
    method = f"t over {n} blocks" + (f", neighbours correlated ({dependence.lag1:.2g})" if wider > 1 else "")
    return Interval(centre, centre - below * error, centre + above * error, p, method, dependence, p_skewed)


def mean_error(values: Floats, dependence: Dependence) -> tuple[float, float] | None:
    """The standard error of the mean in ``centre_interval`` and its degrees of freedom; None where none is known."""
    n = len(values)
    if n < 2 or (float(np.ptp(values)) == 0 and n < ALIKE_BLOCKS):
        return None
    wider, freedom = widening(n, dependence.lag1)
    error = wider * float(values.std(ddof=1)) / math.sqrt(n)
    return (error, freedom) if error > 0 else None


def _skewness(values: Floats) -> float:
    """Fisher's, corrected for the size of the sample; 0 of too few values, and where nothing varies."""
    n, apart = len(values), values - values.mean()
    spread = float((apart**2).mean())
    if n < SKEWED_BLOCKS or spread == 0:
        return 0.0
    return float((apart**3).mean() / spread**1.5) * math.sqrt(n * (n - 1)) / (n - 2)


def skewed_by(skewness: float, n: int, quantile: float, side: int) -> float:
    """What is added to the quantile of t on a side (1 above, -1 below); the other side is left as it is."""
    return max(0.0, side * skewness) * _SKEWNESS * (1 + 2 * quantile**2) / (6 * math.sqrt(n))


def skewness_error(n: int) -> float:
    """The standard error of the skewness of ``n`` normal values (of two, which show none: that of three)."""
    n = max(n, 3)
    return math.sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3)))


def _unskewed(t: float, skewness: float, n: int) -> float:
    """The quantile that reaches ``t`` standard errors once it is widened for this much skewness on its side."""
    share = max(0.0, skewness) / (6 * math.sqrt(n))
    # Not (sqrt(1 - ...) - 1) / (4 share): of a share of rounding errors that leaves nothing, and so a p-value of 1.
    return max(0.0, 2 * (t - share) / (math.sqrt(max(0.0, 1 - 8 * share * (share - t))) + 1))


def _p_of_ratio(centre: float, error: float, tail: Callable[[float], float]) -> float:
    if error == 0:
        return 1.0 if centre == 0 else 0.0
    return tail(abs(centre) / error)


class Verdict(StrEnum):
    """What an interval says. ``faster`` means better in the metric's own direction, ``slower`` worse."""

    FASTER = "faster"
    SLOWER = "slower"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"


def differs(verdict: Verdict) -> bool:
    """Whether a verdict claims a difference."""
    return verdict in (Verdict.FASTER, Verdict.SLOWER)


class Comparison(msgspec.Struct, frozen=True):
    """One metric of one backend against the baseline.

    ``ratio`` is backend over baseline; None where a value of 0 allows none. ``low`` and ``high`` bound it at
    ``level``; None where one block alone allows no interval. ``n_blocks`` are those that hold both sides;
    ``n_instances`` and ``n_iterations`` are the backend's own in them. ``p_value`` tests a ratio of 1;
    ``q_value`` is it after ``control_false_discoveries``, and ``verdict_adjusted`` the verdict that survives among all
    that is said of one pair of backends (``family``). ``restates`` names the metric of the same reading that was
    counted for this one. ``dependence`` is that of neighbouring blocks. ``p_skewed`` is the p-value if the ratios are
    as skewed as so few blocks may hide; ``is_tentative``: the difference in ``verdict_adjusted`` would not survive it.
    ``note`` says why something is missing, or stands for the verdict where none is possible.
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
    family: str = ""
    restates: str = ""
    dependence: Dependence = UNTESTED
    p_skewed: float | None = None
    is_tentative: bool = False


def relative(backend: CellBlocks, baseline: CellBlocks) -> CellBlocks:
    """The backend over the baseline of the same block, in the blocks that hold both; 0 where there is no ratio."""
    shared = np.intersect1d(backend.blocks, baseline.blocks)
    ours, theirs = backend.at(shared), baseline.at(shared)
    has_ratio = (ours.values > 0) & (theirs.values > 0)
    ratios = np.divide(ours.values, theirs.values, out=np.zeros(len(shared)), where=has_ratio)
    return msgspec.structs.replace(ours, values=ratios)


def log_ratios(backend: CellBlocks, baseline: CellBlocks) -> Floats:
    """The log ratios block by block; empty where a value of 0 or below allows none, or no block holds both."""
    ratios = relative(backend, baseline).values
    return np.log(ratios) if ratios.min(initial=math.inf) > 0 else np.empty(0)


def compare(
    backend: CellBlocks,
    baseline: CellBlocks,
    *,
    direction: Direction,
    margin: float = DEFAULT_MARGIN,
    level: float = LEVEL,
    together: Dependence = UNTESTED,
    hidden: float = HIDDEN,
) -> Comparison:
    """Compare a cell with the baseline's, paired by block. Never raises for too little data: the note says it.

    ``together`` is the dependence of neighbouring blocks that was found in several comparisons, this one included;
    ``hidden`` is what ``centre_interval`` takes.
    """
    shared = np.intersect1d(backend.blocks, baseline.blocks)
    ours, theirs = backend.at(shared), baseline.at(shared)
    counts = (len(shared), int(ours.instances.sum()), int(ours.iterations.sum()))
    if note := "no block holds both: no ratio" if len(shared) == 0 else why_no_ratio((ours.values, theirs.values)):
        return undecided(counts, note, margin, level)
    logs = np.log(ours.values) - np.log(theirs.values)
    found = centre_interval(logs, level=level, together=together, hidden=hidden)
    return decided(found, counts, direction, margin, level, found.method)


def summarise(cell: CellBlocks, *, level: float = LEVEL) -> Interval:
    """The centre of a cell's own values, in the metric's unit, with its interval; on the log scale where it can be."""
    if cell.values.min() > 0:
        return exponential(centre_interval(np.log(cell.values), level=level))
    return centre_interval(cell.values, level=level)


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


def exponential(interval: Interval) -> Interval:
    """An interval on the log scale as one of ratios."""

    def back(value: float | None) -> float | None:
        return None if value is None else math.exp(value)

    return msgspec.structs.replace(
        interval, centre=math.exp(interval.centre), low=back(interval.low), high=back(interval.high)
    )


def undecided(counts: tuple[int, int, int], note: str, margin: float, level: float = LEVEL) -> Comparison:
    """A comparison without a ratio; ``counts`` are of blocks, instances, iterations, and the note says why."""
    return Comparison(None, None, None, Verdict.INCONCLUSIVE, *counts, "none", margin, level, note)


def why_no_ratio(values: Sequence[Floats]) -> str:
    """Why these values have no ratio; empty if they have one. None of the arrays is empty."""
    if not any(one.any() for one in values):
        return "0 on both sides"
    return "a value of 0 or below: no ratio" if min(one.min() for one in values) <= 0 else ""


def decided(
    on_logs: Interval, counts: tuple[int, int, int], direction: Direction, margin: float, level: float, no_interval: str
) -> Comparison:
    """The comparison that an interval on the log scale makes; ``no_interval`` is said where it has no ends.

    ``counts`` are of blocks, instances, iterations.
    """
    found = exponential(on_logs)
    verdict = judge(found.centre, found.low, found.high, direction, margin)
    return Comparison(
        found.centre,
        found.low,
        found.high,
        verdict,
        *counts,
        found.method,
        margin,
        level,
        note="" if found.low is not None else no_interval,
        p_value=found.p_value,
        q_value=found.p_value,
        verdict_adjusted=verdict,
        dependence=on_logs.dependence,
        p_skewed=found.p_skewed,
        is_tentative=differs(verdict) and found.p_skewed is not None and found.p_skewed > 1 - level,
    )
