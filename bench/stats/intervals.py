"""The interval for the centre of a few independent values: one a block.

Which interval was chosen by simulation with known truth (``docs/decisions/0050-intervals.md``):

- up to 15 blocks, the mean with Student's t. A bootstrap of four or five values cannot know the tails of what they
  came from: its percentile interval covers 85 to 93 % where it says 95, even expanded.
- from 16 blocks, the mean trimmed by 20 % on each side with a percentile bootstrap over blocks (Wilcox 2012, ch. 4),
  its quantiles expanded for the narrowness of small samples (Hesterberg 2015, section 3.2). One block in ten that went
  astray does not move it, and skewness does not spoil its coverage as it does that of t.

A block is resampled whole, with its instances and iterations. Resampling these again inside it would count
their noise twice (Davison and Hinkley 1997, section 3.8): in simulation such intervals cover 100 %.
"""

import functools
import math
from collections.abc import Callable

import msgspec
import numpy as np

from tare.bench.stats.medians import Floats, Integers

LEVEL = 0.95
MANY_BLOCKS = 16
ALIKE_BLOCKS = 4
"""So many blocks with one and the same reading say that it is steady; fewer, that the tool's steps are coarse."""
TRIMMED = 0.2
RESAMPLES = 4000
_CHUNK = 4_000_000


class Interval(msgspec.Struct, frozen=True):
    """A centre with its interval, and the two-sided p-value of the centre being 0.

    ``low``, ``high`` and ``p_value`` are None where one value alone, or a few that are alike, do not allow them.
    """

    centre: float
    low: float | None
    high: float | None
    p_value: float | None
    method: str


def centre_interval(values: Floats, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """The centre of independent values and its interval. Raises ValueError if there are none."""
    n = len(values)
    if n == 0:
        raise ValueError("there is no value to estimate from")
    if n == 1:
        return Interval(float(values[0]), None, None, None, "one block: no interval")
    if n < MANY_BLOCKS:
        return _student(values, level)
    return _trimmed_bootstrap(values, level, seed)


def trimmed_mean(values: Floats) -> Floats:
    """The mean without the lowest and highest fifth, along the last axis."""
    n = values.shape[-1]
    cut = int(TRIMMED * n)
    middle: Floats = np.partition(values, (cut, n - cut - 1), axis=-1)[..., cut : n - cut].mean(axis=-1)
    return middle


def expanded_tail(n: int, level: float) -> float:
    """The tail probability of a percentile interval over ``n`` values that reaches as far as Student's t.

    Hesterberg 2015: the bootstrap's standard error is too small by sqrt((n-1)/n), and its quantiles are normal ones.
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2)))


def bootstrap_centres(values: Floats, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Trimmed means of resamples with replacement. The same seed gives the same resamples for the same length."""
    n = len(values)
    rows = max(1, _CHUNK // n)
    if resamples <= rows:
        return trimmed_mean(values[_choices(n, resamples, seed)])
    random = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, rows):
        chosen = random.integers(0, n, (min(rows, resamples - start), n))
        parts.append(trimmed_mean(values[chosen]))
    return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _choices(n: int, resamples: int, seed: int) -> Integers:
    return np.random.default_rng(seed).integers(0, n, (resamples, n))


def _student(values: Floats, level: float) -> Interval:
    from scipy.special import stdtr, stdtrit

    n = len(values)
    centre = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(n)
    if error == 0 and n < ALIKE_BLOCKS:
        return Interval(centre, None, None, None, f"{n} blocks with the same reading: no interval")
    half = float(stdtrit(n - 1, (1 + level) / 2)) * error
    p = _p_of_ratio(centre, error, lambda t: 2 * float(stdtr(n - 1, -t)))
    return Interval(centre, centre - half, centre + half, p, f"t over {n} blocks")


def _trimmed_bootstrap(values: Floats, level: float, seed: int) -> Interval:
    from scipy.special import stdtr

    n = len(values)
    cut = int(TRIMMED * n)
    centre = float(trimmed_mean(values))
    tail = expanded_tail(n, level)
    low, high = np.quantile(bootstrap_centres(values, seed=seed), (tail, 1 - tail))
    # Yuen's test: the standard error of a trimmed mean comes from the winsorised values.
    ordered = np.sort(values)
    winsorised = np.clip(values, ordered[cut], ordered[n - cut - 1])
    error = float(winsorised.std(ddof=1)) / ((1 - 2 * cut / n) * math.sqrt(n))
    p = _p_of_ratio(centre, error, lambda t: 2 * float(stdtr(n - 2 * cut - 1, -t)))
    return Interval(centre, float(low), float(high), p, f"bootstrap of the trimmed mean over {n} blocks")


def _p_of_ratio(centre: float, error: float, tail: Callable[[float], float]) -> float:
    if error == 0:
        return 1.0 if centre == 0 else 0.0
    return tail(abs(centre) / error)
