"""Neighbouring blocks that resemble each other: a test for it, and how much wider an interval is then.

On some hosts the ratio of two backends wanders over minutes. Neighbouring blocks are then no independent witnesses, and
an interval that takes them for such is too narrow. The model is the simplest that wanders, AR(1) with the lag-1
correlation *rho* on the log scale. Within n blocks around their own mean the correlation looks smaller than it is: what
is seen is compared with what rho leads to in n blocks, not in the limit.

The test is one-sided, of the lag-1 correlation of one series or of several of one pair of backends together (Moran 1948
for its moments in independent values). Where it says that blocks depend on one another, the standard error is taken as
that of an AR(1) mean, with the degrees of freedom of the effective sample size n(1-rho)/(1+rho) (Bayley and Hammersley
1946).
"""

import functools
import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.05
"""Share of independent series in which dependence is found by chance."""
LEAST = 8
"""Blocks below which a series by itself is not tested: so short a one hardly shows anything."""
LEAST_TOGETHER = 4
"""The same for one of several series that are tested together."""
_CLEAR = 0.6
MISSED = 0.05
"""Share of series with a correlation of ``_CLEAR`` in which the test may not find it, where they count as tested."""
_GRID = np.linspace(0.0, 0.9, 19)
_DRAWS = 200_000


class Dependence(msgspec.Struct, frozen=True):
    """Whether neighbouring blocks depend on one another.

    ``lag1`` is the correlation, 0 where the test does not show any. ``is_tested``: as strong a one as ``_CLEAR`` would
    have been found in nineteen of twenty cases.
    """

    lag1: float = 0.0
    p_value: float | None = None
    is_tested: bool = False


UNTESTED = Dependence()


def find_dependence(series: Sequence[Floats]) -> Dependence:
    """The dependence that several series of log ratios have in common, or that one has."""
    least = LEAST if len(series) == 1 else LEAST_TOGETHER
    kept = [values for values in series if len(values) >= least and float(np.ptp(values)) > 0]
    if not kept:
        return UNTESTED
    from scipy.special import ndtr

    lengths = [len(values) for values in kept]
    seen = [_lag1(values) for values in kept]
    z = sum(_standardised(lag1, n) for lag1, n in zip(seen, lengths, strict=True)) / math.sqrt(len(kept))
    expected = sum(_standardised(float(np.interp(_CLEAR, _GRID, _seen_by_rho(n))), n) for n in lengths) / math.sqrt(
        len(kept)
    )
    p_value = float(ndtr(-z))
    is_tested = expected >= _quantile(LEVEL) + _quantile(MISSED)
    if p_value > LEVEL:
        return Dependence(0.0, p_value, is_tested)
    weights = np.array(lengths, dtype=np.float64)
    curve = np.average([_seen_by_rho(n) for n in lengths], axis=0, weights=weights)
    return Dependence(float(np.interp(np.average(seen, weights=weights), curve, _GRID)), p_value, is_tested)


def widening(n: int, lag1: float) -> tuple[float, float]:
    """By what to multiply the standard error of a mean of ``n`` such values, and its degrees of freedom."""
    if lag1 <= 0:
        return 1.0, n - 1.0
    lags = np.arange(1, n)
    variance = 1 + 2 * float(((1 - lags / n) * lag1**lags).sum())
    seen = (n - variance) / (n - 1)
    return math.sqrt(variance / seen), max(1.0, n * (1 - lag1) / (1 + lag1) - 1)


def _lag1(values: Floats) -> float:
    apart = values - values.mean()
    return float((apart[1:] * apart[:-1]).sum() / (apart**2).sum())


def _standardised(lag1: float, n: int) -> float:
    return (lag1 + 1 / n) * n * math.sqrt(n - 1) / (n - 2)


@functools.lru_cache(maxsize=256)
def _seen_by_rho(n: int) -> Floats:
    """What the lag-1 correlation around the mean of ``n`` values is on average, for each rho of the grid, rising.

    Drawn, with a seed of its own: the ratio of the expectations is 0.1 less than the expected ratio of 12 values.
    """
    steps = np.random.default_rng(n).standard_normal((max(200, _DRAWS // n), n))
    found = np.empty(len(_GRID))
    for place, rho in enumerate(_GRID):
        values = steps.copy()
        for block in range(1, n):
            values[:, block] = rho * values[:, block - 1] + math.sqrt(1 - rho**2) * steps[:, block]
        apart = values - values.mean(axis=1, keepdims=True)
        found[place] = ((apart[:, 1:] * apart[:, :-1]).sum(axis=1) / (apart**2).sum(axis=1)).mean()
    return np.maximum.accumulate(found)


def _quantile(tail: float) -> float:
    from scipy.special import ndtri

    return -float(ndtri(tail))
