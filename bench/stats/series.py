"""Tests of values in order of time: serial correlation and drift.

Both tests use ranks, so that heavy tails and outliers neither raise nor hide an alarm. Neither changes an estimate.
"""

import math

import msgspec
import numpy as np

from tare.bench.stats.comparisons import Floats, Integers, grouped_medians

MIN_SERIES = 4
"""Shorter series of one instance are not tested."""
MIN_PAIRS = 12
"""Neighbouring pairs over all series below which serial correlation is not tested."""
MIN_BLOCKS = 5
"""With fewer blocks drift cannot be detected: the smallest p-value of four is 0.083."""
_EXACT_UP_TO = 50
_LONGEST = 1000


class SeriesTest(msgspec.Struct, frozen=True):
    """A test of order. ``size`` is the effect, ``p_value`` two-sided, ``n`` how many values were used."""

    size: float
    p_value: float
    n: int


def serial_correlation(values: Floats, groups: Integers, *, seed: int = 0) -> SeriesTest | None:
    """Lag-1 correlation of ranks within the groups, over all of them; ``size`` is from -1 to 1.

    ``values`` are in the order of time within each group (the iterations of an instance). Bartels' rank version of von
    Neumann's ratio (Bartels 1982, JASA 77:377) for each group, whose mean is 2 and whose variance is known exactly if
    the order is random; groups are weighted by the inverse variance. Levels of groups do not matter, as each is ranked
    by itself. Ties are broken at random, which keeps the level. None where there is too little, or nothing varies.
    """
    if len(values) == 0:
        return None
    order = np.argsort(groups, kind="stable")
    numbers, group = np.unique(groups[order], return_inverse=True)
    ordered = values[order]
    counts = np.bincount(group)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    varies = np.minimum.reduceat(ordered, starts) < np.maximum.reduceat(ordered, starts)
    used = (counts >= MIN_SERIES) & varies
    pairs = int((counts[used] - 1).sum())
    if pairs < MIN_PAIRS:
        return None
    ties = np.random.default_rng(seed).random(len(ordered))
    by_value = np.lexsort((ties, ordered, group))
    ranks = np.empty(len(ordered))
    ranks[by_value] = np.arange(len(ordered)) - starts[group]
    neighbours = group[1:] == group[:-1]
    squares = np.bincount(group[1:][neighbours], weights=np.diff(ranks)[neighbours] ** 2, minlength=len(numbers))
    n = counts[used].astype(float)
    ratios = squares[used] / (n * (n**2 - 1) / 12)
    variances = 4 * (n - 2) * (5 * n**2 - 2 * n - 9) / (5 * n * (n + 1) * (n - 1) ** 2)
    weight = float((1 / variances).sum())
    shift = float(((ratios - 2) / variances).sum()) / weight
    return SeriesTest(-shift / 2, _two_sided(shift * math.sqrt(weight)), int(counts[used].sum()))


def drift(values: Floats) -> SeriesTest | None:
    """Mann-Kendall's test of a monotonic trend (Mann 1945), exact without ties up to 50 values, normal beyond.

    ``values`` are one a block, in the order of time. ``size`` is the change from the first to the last relative to the
    median, by the slope of Theil and Sen (Sen 1968): 0.05 is 5 % up. None below ``MIN_BLOCKS``, if nothing varies,
    and where the median is 0.
    """
    from scipy.stats import theilslopes

    n = len(values)
    centre = abs(float(np.median(values))) if n else 0.0
    if n < MIN_BLOCKS or values.min() == values.max() or centre == 0:
        return None
    if n > _LONGEST:
        values = grouped_medians(values, np.arange(n) * _LONGEST // n, _LONGEST)
    slope = float(theilslopes(values).slope)
    return SeriesTest(slope * (len(values) - 1) / centre, _trend_p_value(values), n)


def _trend_p_value(values: Floats) -> float:
    """Of Kendall's tau with the time; the normal one with a correction for continuity, which scipy has not."""
    from scipy.stats import kendalltau

    n = len(values)
    _, ties = np.unique(values, return_counts=True)
    if n <= _EXACT_UP_TO and len(ties) == n:
        return float(kendalltau(np.arange(n), values, method="exact").pvalue)
    first, second = np.triu_indices(n, 1)
    score = int(np.sign(values[second] - values[first]).sum())
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0 or score == 0:
        return 1.0
    return _two_sided((abs(score) - 1) / math.sqrt(variance))


def _two_sided(z: float) -> float:
    from scipy.special import ndtr

    return min(1.0, 2 * float(ndtr(-abs(z))))
