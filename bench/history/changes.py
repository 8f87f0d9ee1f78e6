"""Whether the newest nights of many series differ from the nights before them. Pure functions over arrays.

``values`` has a row a night and a column a series: the log of a ratio or of a level, NaN where a series was not
measured. For each series the last k nights are compared with all before them, for k of ``WINDOWS``, by a t-test:

- The variance is that between runs which the history itself shows, within the two parts of the series, moderated by
  what all series show together (Smyth 2004): twenty nights of one series know their own spread badly, three hundred
  series know it well if they are alike, and not if they are not.
- Nights are not independent. Their lag-one correlation is estimated over all series (and for a series of its own as far
  as series differ in it), with the correction for short series of Marriott and Pope (1954), and the variance of both
  means is that of means of an AR(1) process.
- Single nights go astray. Before the change, values are drawn in to three robust standard deviations. After it, a
  change has to stand without the m nights that speak most for it, where m is the largest number of such nights that
  this history produces by chance. With no night astray yet, m is 0, and half of the change has to stand without one
  night.
- The windows overlap and are weighted (Genovese, Roeder and Wasserman 2006): most weight is at four and five nights. By
  simulation (``benchmarks/nightly_alarms.py``) the smallest weighted p of a series without change falls below a small a
  for the first time in about one night of 1 / a.

False discoveries are controlled over the series of a night (Benjamini and Hochberg 1995).
"""

import functools
import math
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.stats.comparisons import Floats, Integers

WINDOWS: Mapping[int, float] = {
    2: 0.1,
    3: 0.4,
    4: 0.8,
    5: 0.8,
    7: 0.2,
    10: 0.2,
    14: 0.1,
    20: 0.1,
    28: 0.1,
    40: 0.1,
    57: 0.1,
    80: 0.1,
    113: 0.1,
    160: 0.1,
    226: 0.1,
    320: 0.1,
    453: 0.1,
    640: 0.1,
    905: 0.1,
}
"""Lengths of the newest part in nights, with their weights."""
LEAST_BEFORE = 8
"""Nights before a change, below which the history does not know its own spread."""
FALSE_DISCOVERIES = 1 / 42
"""Level of the control over a night's series. Each night looks again through overlapping windows: by simulation this
level gives a finding without any change in one night of thirty-five (1 / 30 gave one of twenty-five)."""
_ASTRAY = 5.0
_SURELY_ASTRAY = 6.5
"""From twenty nights the scale of a series may come out at half of what it is: then 5 of it are 4, which one history in
six has somewhere by chance, and 6.5 are 5. The newest night, which is judged, does not count.
"""
_DRAWN_IN = 3.0
_BY_CHANCE = 0.01
"""Of a night's series, how many may be expected to have more nights astray in a window than are left out."""
_MOST_CORRELATION = 0.95
_LEAST_SQUARES = 1e-12
"""Below this, nights differ by rounding alone."""

Mask = NDArray[np.bool_]


class Noise(msgspec.Struct, frozen=True):
    """What the nights show of themselves: correlation from night to night by series, and the share of nights astray.

    ``surely_astray`` is the share of those that are so far off that no chance explains them.
    """

    correlation: Floats
    astray: float
    surely_astray: float = 0.0


class Scan(msgspec.Struct, frozen=True):
    """One entry a series, over its newest part that speaks most for a change.

    ``p`` is the weighted p-value (1 where there are too few nights), ``window`` the length of that part in nights,
    ``size`` the difference of the means (of logs) with its standard ``error``, ``freedom`` of the error, ``counts`` the
    nights that a series has. ``deviation`` is the standard deviation of one night. ``alone`` is the p-value of the
    newest night alone, which is no change yet; ``is_astray`` says whether it is five robust deviations off.
    """

    p: Floats
    window: Integers
    size: Floats
    error: Floats
    freedom: Floats
    counts: Integers
    deviation: Floats
    alone: Floats
    is_astray: Mask
    noise: Noise

    @property
    def q(self) -> Floats:
        """The p-values adjusted over all series that could be judged; 1 for the others."""
        return adjusted(self.p, self.is_judged)

    @property
    def is_judged(self) -> Mask:
        """Which series have enough nights."""
        return self.counts >= LEAST_BEFORE + 2

    def detectable(self, nights: int = 5, power: float = 0.9) -> Floats:
        """The smallest change (of logs) that is found within so many nights with this probability; NaN if not judged.

        As if it were the only one among the series that are judged.
        """
        from scipy.special import ndtri, stdtrit

        judged = self.is_judged
        level = FALSE_DISCOVERIES / max(1, int(judged.sum())) * WINDOWS.get(nights, 0.8)
        before = np.maximum(self.counts, 1)
        factor = _variance_of_mean(nights, self.noise.correlation) + _variance_of_mean(before, self.noise.correlation)
        size = (-stdtrit(np.maximum(self.freedom, 1), level / 2) + ndtri(power)) * self.deviation * np.sqrt(factor)
        return np.where(judged, size, np.nan)


def expected_detectable(deviation: Floats, *, before: int = 10, nights: int = 5, power: float = 0.9) -> Floats:
    """What ``Scan.detectable`` will be after this many nights with these standard deviations of a night (of logs).

    As if the nights were independent and their deviation known: less cannot be promised.
    """
    from scipy.special import ndtri

    level = FALSE_DISCOVERIES / max(1, len(deviation)) * WINDOWS[nights]
    size: Floats = (ndtri(1 - level / 2) + ndtri(power)) * deviation * math.sqrt(1 / nights + 1 / before)
    return size


def adjusted(p: Floats, judged: Mask) -> Floats:
    """Benjamini and Hochberg's q-values of those that are judged; 1 for the others."""
    from scipy.stats import false_discovery_control

    q = np.ones(len(p))
    if judged.any():
        q[judged] = false_discovery_control(np.minimum(p[judged], 1))
    return q


def scan(values: Floats) -> Scan:
    """Compare the newest nights of each series with those before them. See the module for the method."""
    series = _Aligned(values if len(values) else np.full((1, values.shape[1]), np.nan))
    noise = series.noise()
    found = _nothing_found(series, noise)
    most = int(series.counts.max(initial=0)) - LEAST_BEFORE
    for window, weight in WINDOWS.items():
        if window <= most:
            found = _better(found, series.compared(window, noise), window, weight)
    alone = series.compared(1, noise) if most >= 1 else None
    if alone is None:
        return found
    return msgspec.structs.replace(found, alone=np.where(np.isfinite(alone.p), alone.p, 1.0))


def scan_ratios(values: Floats, subjects: Integers) -> tuple[Scan, Scan]:
    """As ``scan``, of ratios: the noise that ratios of a subject share is taken off first. Second, the plain scan.

    All ratios of a subject are to the same blocks of bare metal, whose noise is in each of them. What the others of the
    subject show of it in a night is taken off (analysis of covariance), which is worth an eighth of the noise and more.
    A series that changed would move the others: none is judged by one that changed, and what is found has to show, at a
    lower level, in the plain ratio too. ``subjects`` has a number a series.
    """
    plain = scan(values)
    steady = scan(steadied(values, subjects, np.zeros(values.shape[1], dtype=bool)))
    steady = msgspec.structs.replace(steady, p=np.where(plain.p <= _PLAIN, steady.p, 1.0))
    changed = steady.q <= FALSE_DISCOVERIES
    if changed.any():
        steady = scan(steadied(values, subjects, changed))
        steady = msgspec.structs.replace(steady, p=np.where(plain.p <= _PLAIN, steady.p, 1.0))
    return steady, plain


_PLAIN = 0.02


def steadied(values: Floats, subjects: Integers, changed: Mask) -> Floats:
    """The values without what others of the same subject say of their common noise; ``changed`` ones say nothing."""
    if not len(values) or len(np.unique(subjects)) == len(subjects):
        return values
    middle = np.nan_to_num(_median(values))
    apart = values - middle
    scale = 1.4826 * np.nan_to_num(_median(np.abs(apart)))
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.clip(np.nan_to_num(np.where(scale > 0, apart / scale, 0.0)), -_DRAWN_IN, _DRAWN_IN)
    _, group = np.unique(subjects, return_inverse=True)
    share = _common_shares(inside, group)[group]
    inside[:, changed] = 0.0
    others = np.bincount(group)[group] - 1
    sums = _group_sums(inside, group)[:, group] - inside
    steady: Floats = values - share / (1 + np.maximum(others - 1, 0) * share) * sums * scale
    return steady


def _group_sums(values: Floats, group: Integers) -> Floats:
    """The sums over the columns of each group; groups are numbered from 0 without gaps."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    sums: Floats = np.add.reduceat(values[:, order], starts, axis=1)
    return sums


def _common_shares(inside: Floats, group: Integers) -> Floats:
    """The correlation among the series of each subject, drawn towards that of all as far as subjects are alike.

    ``group`` numbers the subject of each series.
    """
    sizes = np.bincount(group)
    here = _group_sums((inside != 0).astype(np.float64), group) > 1
    nights = here.sum(axis=0)
    sums = _group_sums(inside, group) ** 2
    squares = _group_sums(inside**2, group)
    known = (nights >= LEAST_BEFORE) & ((squares * here).sum(axis=0) > 0)
    if not known.any():
        return np.zeros(len(sizes))
    own = np.zeros(len(sizes))
    size = np.maximum(1, sizes - 1)
    own[known] = (((sums - squares) * here).sum(axis=0) / size)[known] / (squares * here).sum(axis=0)[known]
    together = float(np.average(own[known], weights=nights[known]))
    chance = float(((1 - together**2) ** 2 / nights[known]).mean())
    differing = max(0.0, 1 - chance / max(float(own[known].var()), 1e-12)) if known.sum() >= LEAST_BEFORE else 0.0
    return np.where(known, np.clip(together + differing * (own - together), 0, _MOST_CORRELATION), 0.0)


class _Compared(msgspec.Struct, frozen=True):
    """A window against what was before it. ``p`` is NaN where a series has too few nights."""

    p: Floats
    size: Floats
    error: Floats
    freedom: Floats
    deviation: Floats


class _Aligned:
    """The nights of each series moved together towards the newest: row -1 is the last night of every series."""

    def __init__(self, values: Floats) -> None:
        order = np.argsort(~np.isnan(values), axis=0, kind="stable")
        self.values = np.take_along_axis(values, order, axis=0)
        self.here = ~np.isnan(self.values)
        self.counts: Integers = self.here.sum(axis=0)
        centre, robust = self._robust()
        self.reach = _DRAWN_IN * robust
        apart = np.abs(np.where(self.here, self.values - centre, 0.0))
        self.is_astray = apart > _ASTRAY * robust
        self._is_far = (apart > _SURELY_ASTRAY * robust)[:-1]
        self.drawn_in = np.clip(np.where(self.here, self.values, 0.0), centre - self.reach, centre + self.reach)

    def _robust(self) -> tuple[Floats, Floats]:
        """Median and scale of each series; the scale half its own, half that of a middling series."""
        with np.errstate(all="ignore"):
            centre = _median(self.values)
            own = 1.4826 * _median(np.abs(self.values - centre))
            # A median deviation of 0, as of a count of pages that is mostly the same, says that the metric is coarse,
            # not that it is steady: the other nights are no strays.
            mean = np.nansum(self.values, axis=0) / np.maximum(1, self.counts)
            own = np.where(
                own > 0, own, np.sqrt(np.nansum((self.values - mean) ** 2, axis=0) / np.maximum(1, self.counts))
            )
        own = np.nan_to_num(own)
        middle = float(np.median(own[own > 0])) if (own > 0).any() else 0.0
        # A series of few nights, or of a tool with coarse steps, may show no spread at all.
        return np.nan_to_num(centre), np.sqrt((own**2 + np.minimum(middle, 3 * own + 1e-3) ** 2) / 2)

    def noise(self) -> Noise:
        n = np.maximum(self.counts, 1)
        mean = (self.drawn_in * self.here).sum(axis=0) / n
        apart = np.where(self.here & ~self.is_astray, self.drawn_in - mean, 0.0)
        squares = (apart**2).sum(axis=0)
        products = (apart[1:] * apart[:-1]).sum(axis=0)
        enough = (self.counts >= LEAST_BEFORE) & (squares > 0)
        astray, surely = (
            float(off[:, enough].sum() / max(1, self.counts[enough].sum())) for off in (self.is_astray, self._is_far)
        )
        if not enough.any():
            return Noise(np.zeros(len(n)), astray, surely)
        own = np.zeros(len(n))
        own[enough] = (products[enough] / squares[enough] + 1 / n[enough]) / (1 - 3 / n[enough])
        together = float(np.average(own[enough], weights=n[enough]))
        chance = float((1 / n[enough] / (1 - 3 / n[enough]) ** 2).mean())
        if together < 2 / math.sqrt(n[enough].sum()):
            together = 0.0
        differing = max(0.0, 1 - chance / max(float(own[enough].var()), 1e-12)) if enough.sum() >= LEAST_BEFORE else 0.0
        correlation = np.where(enough, together + differing * (own - together), together)
        return Noise(np.clip(correlation, 0, _MOST_CORRELATION), astray, surely)

    def compared(self, window: int, noise: Noise) -> _Compared:
        """The last ``window`` nights of each series against all before them."""
        from scipy.special import stdtr

        fits = self.counts - window >= LEAST_BEFORE
        before_n = np.where(fits, self.counts - window, LEAST_BEFORE)
        here = self.here[:-window]
        before = self.drawn_in[:-window]
        centre = (before * here).sum(axis=0) / before_n
        after = self.values[-window:]
        middle = after.mean(axis=0)
        inside = np.clip(after, middle - self.reach, middle + self.reach)
        squares = (((before - centre) * here) ** 2).sum(axis=0) + ((inside - middle) ** 2).sum(axis=0)
        squares = np.maximum(squares, _LEAST_SQUARES)
        rho = noise.correlation
        lost = window * _variance_of_mean(window, rho) + before_n * _variance_of_mean(before_n, rho)
        n = before_n + window
        own_freedom = np.maximum(1.0, (n - 2) * (1 - rho) / (1 + rho))
        variance, prior = moderated(squares / np.maximum(n - lost, 1), own_freedom, fits)
        left_out = _left_out(window, noise.astray, int(fits.sum())) if window > 1 else 0
        explained = left_out >= max(1, window - 1)  # nights astray alone make such a window
        left_out = 0 if explained else left_out
        size = _standing(after - centre, left_out)
        kept = window - left_out
        spread = _variance_of_mean(kept, rho) + _variance_of_mean(before_n, rho) - 2 * _covariance(kept, before_n, rho)
        error = np.sqrt(variance * np.maximum(spread, 0))
        freedom = own_freedom + prior
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(error > 0, np.abs(size) / error, np.where(size == 0, 0.0, np.inf))
        if explained:
            t = np.zeros(len(n))
        elif window > 1 and not left_out:
            rest = _standing(after - centre, 1)
            t = np.where(rest * size >= 0.5 * size**2, t, 0.0)
        p = np.where(fits, 2 * stdtr(freedom, -t), np.nan)
        return _Compared(p, size, error, freedom, np.sqrt(variance))


def _nothing_found(series: _Aligned, noise: Noise) -> Scan:
    n = len(series.counts)
    nothing = {name: np.full(n, np.nan) for name in ("size", "error", "freedom", "deviation")}
    return Scan(
        p=np.ones(n),
        window=np.zeros(n, dtype=np.int64),
        counts=series.counts,
        alone=np.ones(n),
        is_astray=series.is_astray[-1:].any(axis=0) & (series.counts > LEAST_BEFORE),
        noise=noise,
        **nothing,
    )


def _better(found: Scan, one: _Compared, window: int, weight: float) -> Scan:
    """The series keep what speaks more for a change."""
    p = np.where(np.isnan(one.p), np.inf, one.p / weight)
    first = np.isnan(found.deviation) & np.isfinite(p)
    take = (p < found.p) | first
    return msgspec.structs.replace(
        found,
        p=np.where(take, np.minimum(p, 1), found.p),
        window=np.where(take, window, found.window),
        **{
            name: np.where(take, getattr(one, name), getattr(found, name))
            for name in ("size", "error", "freedom", "deviation")
        },
    )


def _median(values: Floats) -> Floats:
    """The median of each column without its NaN; NaN for a column without others."""
    ordered = np.sort(values, axis=0)  # NaN last
    n = (~np.isnan(values)).sum(axis=0)
    low, high = np.maximum(n - 1, 0) // 2, np.minimum(n // 2, np.maximum(n - 1, 0))
    columns = np.arange(values.shape[1])
    middle: Floats = (ordered[low, columns] + ordered[high, columns]) / 2
    return middle


def _standing(apart: Floats, left_out: int) -> Floats:
    """The mean difference without the nights that speak most for it; 0 where the rest says the opposite or nothing."""
    if left_out == 0:
        means: Floats = apart.mean(axis=0)
        return means
    ordered = np.sort(apart, axis=0)
    low, high = ordered[:-left_out].mean(axis=0), ordered[left_out:].mean(axis=0)
    return np.where(low > 0, low, np.where(high < 0, high, 0.0))


@functools.lru_cache(maxsize=256)
def _left_out(window: int, astray: float, n_series: int) -> int:
    """How many nights of a window may be astray by chance, in one of the series or other."""
    from scipy.special import bdtrc

    if astray <= 0 or n_series == 0:
        return 0
    found = 0
    while found < window and n_series * float(bdtrc(found, window, astray)) > _BY_CHANCE:
        found += 1
    return found


def _variance_of_mean(n: "int | Integers", rho: Floats) -> Floats:
    """Of n values of an AR(1) process of variance 1: (1 + 2 sum (1 - j / n) rho^j) / n, in closed form."""
    powers = rho**n
    inner: Floats = (1 + rho) / (1 - rho) - 2 * rho * (1 - powers) / (np.asarray(n) * (1 - rho) ** 2)
    return inner / n


def _covariance(after: int, before: Integers, rho: Floats) -> Floats:
    """Of the mean of the last ``after`` values and that of the ``before`` values right before them."""
    found: Floats = rho * (1 - rho**after) * (1 - rho**before) / ((1 - rho) ** 2 * after * before)
    return found


def moderated(variance: Floats, freedom: Floats, fits: Mask) -> tuple[Floats, float]:
    """Variances drawn towards what all of them show, and the degrees of freedom which that is worth (Smyth 2004).

    The variances are taken to be scattered like s0^2 d0 / chi^2 (d0) around a common value; d0 is estimated by the
    moments of their logs. Without enough of them, they are left as they are.
    """
    from scipy.special import digamma, polygamma

    known = fits & (variance > 0)
    if known.sum() < LEAST_BEFORE:
        return variance, 0.0
    logs = np.log(variance[known]) - digamma(freedom[known] / 2) + np.log(freedom[known] / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, freedom[known] / 2).mean())
    if excess <= 0:
        prior, common = _ALIKE, float(np.exp(logs.mean()))
    else:
        half = _inverse_trigamma(excess)
        prior, common = min(_ALIKE, 2 * half), float(np.exp(logs.mean() + digamma(half) - np.log(half)))
    return (prior * common + freedom * variance) / (prior + freedom), prior


_ALIKE = 1000.0
"""Degrees of freedom of what all series show together where they do not differ at all."""


def _inverse_trigamma(value: float) -> float:
    """By Newton's method on its reciprocal, which is convex (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    if value > 1e7:
        return 1 / math.sqrt(value)
    x = 0.5 + 1 / value
    for _ in range(50):
        ratio = float(polygamma(1, x))
        step = ratio * (1 - ratio / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x
