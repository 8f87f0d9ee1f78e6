"""What one more instance costs, by regression over ramps, with an interval.

A ramp is read once a step, and each reading holds all that came before it: errors of one step stay in all later ones.
Ordinary least squares assumes that they are independent, and its interval is far too narrow. The model
here is of the differences between successive readings,

    y[k] - y[k-1] = cost * (n[k] - n[k-1]) + drift * (t[k] - t[k-1]) + own[k] + host[k] + error[k] - error[k-1]

with ``own`` the instances' differences from one another (variance grows with the instances between two readings),
``host`` what else the host does (variance grows with the time between them), and ``error`` that of a reading, which
the next difference takes back. The three variances are not known. Each point of a grid of their ratios is weighted by
its restricted likelihood (REML), and the interval is that of the mixture: it is as wide as not knowing them makes it.

A single jump of the host (another program took 200 MiB) is a step: a difference that stands out by its externally
studentised residual at 1 % after Bonferroni. It gets a parameter of its own, and is reported.

What this covers in simulations with known truth is in ``docs/decisions/0081-cost-of-an-instance.md``.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.stats.comparisons import LEVEL, centre_interval

Floats = NDArray[np.float64]

MANY_RAMPS = 5
"""From this many ramps on, the interval is of how the ramps differ."""
LEAST_FREEDOM = 2
"""With fewer degrees of freedom there is no interval."""
_STEP_LEVEL = 0.01
_MOST_STEPS = 5
_EXACT = 1e-20
"""A sum of squares, in units of the largest range of a ramp: less is rounding."""
_OWN, _HOST = (
    ratios.reshape(-1, 1)
    for ratios in np.meshgrid(
        np.concatenate(([0.0], np.geomspace(1e-3, 1e4, 15))),
        np.concatenate(([0.0], np.geomspace(1e-2, 1e4, 7))),
        indexing="ij",
    )
)
"""The grid: variances of what instances differ by and of what the host does, in units of a reading's."""


class Ramp(msgspec.Struct, frozen=True):
    """Readings of one quantity in the order in which they were taken: the population then, the time, the value.

    The reading before the first instance is one of them, with a population of 0.
    """

    population: Floats
    at_s: Floats
    values: Floats


_Told = tuple[float, float | None, float | None, str]
"""An estimate, the ends of its interval, and the method."""


class Step(msgspec.Struct, frozen=True):
    """A jump that no instance explains, between two readings of ramp ``ramp``."""

    ramp: int
    population_before: int
    population_after: int
    size: float


class Estimate(msgspec.Struct, frozen=True):
    """What one more instance costs, with its interval; ``low`` and ``high`` are None where there is none."""

    per_instance: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width; None without an interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def combined(*parts: tuple[Estimate | None, int]) -> Estimate | None:
    """The sum of independent figures, each with its sign; None if one is missing, no interval if one has none."""
    known = [(part, sign) for part, sign in parts if part is not None]
    if len(known) < len(parts):
        return None
    value = sum(sign * part.per_instance for part, sign in known)
    halves = [part.half_width for part, _ in known if part.half_width is not None]
    if len(halves) < len(parts):
        return Estimate(value, None, None)
    return Estimate(value, value - math.hypot(*halves), value + math.hypot(*halves))


class Cost(Estimate, frozen=True):
    """What one more instance costs by one meter, in the unit of its readings.

    ``base`` is what there was before the first instance, by the fit. There is no interval where there are too few
    readings. ``drift_per_s`` is None where time passed only as instances were started.
    """

    base: float
    drift_per_s: float | None
    ramps: int
    readings: int
    largest_population: int
    steps: tuple[Step, ...]
    method: str


def fit_cost(ramps: Sequence[Ramp]) -> Cost:
    """Fit the cost of an instance over one or more ramps. Raises ValueError if no population ever changed."""
    told = [ramp for ramp in ramps if len(ramp.values) > 1 and np.ptp(ramp.population) > 0]
    if not told:
        raise ValueError("there is no ramp: the population never changed")
    scale = max(float(np.ptp(ramp.values)) for ramp in told) or 1.0
    differences = _differences(told, scale)
    drifting = [bool((np.diff(ramp.population) == 0).sum() >= 2) for ramp in told]
    fit, steps = _fit_with_steps(differences, drifting)
    means = fit.weight @ fit.coefficients
    estimate, low, high, method = _mixture_interval(fit, float(means[0]))
    if len(told) > 1:
        estimate, low, high, method = _across(told, scale, estimate, low, high)
    drifts = means[1 : 1 + sum(drifting)] * scale
    return Cost(
        per_instance=estimate * scale,
        low=None if low is None else low * scale,
        high=None if high is None else high * scale,
        base=_base(told, estimate * scale, drifting, drifts),
        drift_per_s=float(drifts.mean()) if len(drifts) else None,
        ramps=len(told),
        readings=sum(len(ramp.values) for ramp in told),
        largest_population=int(max(ramp.population.max() for ramp in told)),
        steps=tuple(
            Step(int(differences.ramp[k]), int(differences.before[k]), int(differences.after[k]), size * scale)
            for k, size in steps
        ),
        method=method,
    )


class _Differences(msgspec.Struct, frozen=True):
    """The differences of all ramps below one another: of the readings, the populations and the times.

    ``ramp`` is the number of the ramp, ``before`` and ``after`` are populations.
    """

    y: Floats
    n: Floats
    t: Floats
    ramp: NDArray[np.int64]
    before: Floats
    after: Floats

    def covariance(self) -> tuple[Floats, Floats]:
        """In units of a reading's variance: the diagonal (grid by differences), and the one next to it.

        It is tridiagonal, as a difference shares the error of a reading with the next one of its ramp only.
        """
        n, t = np.abs(self.n), np.abs(self.t)
        diagonal = 2.0 + _OWN * (n / (n.mean() or 1.0)) + _HOST * (t / (t.mean() or 1.0))
        beside = np.where(np.diff(self.ramp, append=-1) == 0, -1.0, 0.0)
        return diagonal, beside[: max(1, len(beside) - 1)]  # LAPACK takes no empty array


def _differences(ramps: Sequence[Ramp], scale: float) -> _Differences:
    return _Differences(
        y=np.concatenate([np.diff(ramp.values / scale) for ramp in ramps]),
        n=np.concatenate([np.diff(ramp.population) for ramp in ramps]),
        t=np.concatenate([np.diff(ramp.at_s) for ramp in ramps]),
        ramp=np.repeat(np.arange(len(ramps)), [len(ramp.values) - 1 for ramp in ramps]),
        before=np.concatenate([ramp.population[:-1] for ramp in ramps]),
        after=np.concatenate([ramp.population[1:] for ramp in ramps]),
    )


class _Fit(msgspec.Struct, frozen=True):
    """At each point of the grid: the coefficients, the standard error of the first, the scale, the weight."""

    coefficients: Floats
    error: Floats
    scale: Floats
    weight: Floats
    freedom: int


def _fit_with_steps(differences: _Differences, drifting: Sequence[bool]) -> tuple[_Fit, list[tuple[int, float]]]:
    """Fit the cost and the drift of each ramp that stood still for a while (``drifting``).

    Each difference that stands out gets a parameter of its own: which, and its size.
    """
    drifts = [np.where(differences.ramp == number, differences.t, 0.0) for number, yes in enumerate(drifting) if yes]
    columns = np.stack([differences.n, *drifts], axis=1)
    found: list[int] = []
    most = min(_MOST_STEPS, len(differences.y) // 10)
    while True:
        design = np.concatenate((columns, np.arange(len(differences.y))[:, None] == found), axis=1)
        fit = _fit(differences, design)
        if len(found) >= most or (step := _find_step(differences, design, fit, found)) is None:
            break
        found.append(step)
    sizes = (fit.weight @ fit.coefficients)[columns.shape[1] :]
    return fit, list(zip(found, sizes.tolist(), strict=True))


def _fit(differences: _Differences, design: Floats) -> _Fit:
    """Generalised least squares at every point of the grid, by LAPACK's solver for tridiagonal covariances.

    ``dptsv`` is what ``scipy.linalg.solveh_banded`` calls for these; it returns the pivots too, of which the
    determinant is the product.
    """
    from scipy.linalg.lapack import dptsv

    diagonal, beside = differences.covariance()
    rows, width = design.shape
    data = np.concatenate((design, differences.y[:, None]), axis=1)
    products, log_determinant = np.empty((len(diagonal), width + 1, width + 1)), np.empty(len(diagonal))
    for point, own in enumerate(diagonal):
        pivots, _, solved, _ = dptsv(own, beside, data)
        products[point] = data.T @ solved
        log_determinant[point] = np.log(pivots).sum()
    information = products[:, :width, :width]
    inverse = np.linalg.pinv(information, hermitian=True)
    coefficients = np.einsum("gij,gj->gi", inverse, products[:, :width, width])
    # By the residuals themselves: as a difference of products it would be rounding where a step is large.
    residuals = differences.y - coefficients @ design.T
    squares = [left @ dptsv(own, beside, left)[2] for own, left in zip(diagonal, residuals, strict=True)]
    residual = np.maximum(squares, _EXACT)
    freedom = max(rows - width, 1)
    _, log_information = np.linalg.slogdet(information)
    likelihood = -0.5 * (log_determinant + log_information + freedom * np.log(residual))
    weight = np.exp(likelihood - likelihood.max())
    scale = np.sqrt(residual / freedom)
    error = scale * np.sqrt(np.maximum(inverse[:, 0, 0], 0.0))
    return _Fit(coefficients, error, scale, weight / weight.sum(), rows - width)


def _find_step(differences: _Differences, design: Floats, fit: _Fit, found: Sequence[int]) -> int | None:
    """The difference that stands out most of those not yet ``found``, if it does, where the variances are likeliest."""
    from scipy.linalg.lapack import dptsv, dpttrf
    from scipy.special import stdtr

    freedom, best = fit.freedom, int(np.argmax(fit.weight))
    if freedom < 3 or fit.scale[best] ** 2 * freedom <= _EXACT:
        return None
    every, beside = differences.covariance()
    diagonal = every[best]
    # The diagonal of the inverse is in the pivots of the elimination from either end.
    down, up = dpttrf(diagonal, beside)[0], dpttrf(diagonal[::-1], beside[::-1])[0][::-1]
    solved = dptsv(diagonal, beside, np.concatenate((design, differences.y[:, None]), axis=1))[2]
    half = solved[:, :-1]
    middle = np.linalg.pinv(design.T @ half, hermitian=True)
    variance = 1.0 / (down + up - diagonal) - np.einsum("ki,ij,kj->k", half, middle, half)
    projected = solved[:, -1] - half @ (middle @ (half.T @ differences.y))
    usable = variance > 1e-9 * variance.max()
    # What is left of one that has a parameter of its own is rounding, however large it is studentised.
    usable[list(found)] = False
    inside = np.where(usable, projected / np.sqrt(np.where(usable, variance, 1.0)) / fit.scale[best], 0.0)
    outside = np.abs(inside) * np.sqrt((freedom - 1) / np.maximum(freedom - inside**2, 1e-12))
    step = int(np.argmax(outside))
    p_value = 2 * float(stdtr(freedom - 1, -float(outside[step]))) * len(differences.y)
    return step if p_value < _STEP_LEVEL else None


def _mixture_interval(fit: _Fit, estimate: float) -> _Told:
    """The quantiles of the mixture of Student's t over the grid."""
    if fit.freedom < LEAST_FREEDOM:
        return estimate, None, None, f"{fit.freedom} degrees of freedom: no interval"
    method = f"REML over {fit.freedom} degrees of freedom"
    if float(fit.error.max()) <= math.sqrt(_EXACT):
        return estimate, estimate, estimate, method
    return estimate, _quantile(fit, (1 - LEVEL) / 2), _quantile(fit, (1 + LEVEL) / 2), method


def _quantile(fit: _Fit, probability: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import stdtr

    centres, errors = fit.coefficients[:, 0], np.maximum(fit.error, 1e-300)
    counted = fit.weight > 1e-9
    reach = 1e3 * float(errors[counted].max())

    def excess(value: float) -> float:
        return float((fit.weight * stdtr(fit.freedom, (value - centres) / errors)).sum()) - probability

    low, high = float(centres[counted].min()) - reach, float(centres[counted].max()) + reach
    return float(brentq(excess, low, high, xtol=1e-15 * reach))


def _across(ramps: Sequence[Ramp], scale: float, pooled: float, low: float | None, high: float | None) -> _Told:
    """The interval over several ramps: wider where they differ by more than each one's own interval allows."""
    single = [fit_cost([ramp]) for ramp in ramps]
    centres = np.array([cost.per_instance / scale for cost in single])
    if len(ramps) >= MANY_RAMPS:
        interval = centre_interval(centres, level=LEVEL)
        return interval.centre, interval.low, interval.high, f"{interval.method}, one ramp each"
    halves = np.array([math.nan if cost.half_width is None else cost.half_width / scale for cost in single])
    if low is None or high is None or not np.isfinite(halves).all():
        return pooled, None, None, "ramps too short for an interval"
    errors = np.maximum(halves / 2, 1e-12)
    excess = float((((centres - pooled) / errors) ** 2).sum()) / (len(ramps) - 1)
    wider = math.sqrt(max(1.0, excess))
    method = f"REML over {len(ramps)} ramps, {wider:.2g} times as wide for how they differ"
    return pooled, pooled - (pooled - low) * wider, pooled + (high - pooled) * wider, method


def _base(ramps: Sequence[Ramp], slope: float, drifting: Sequence[bool], drifts: Floats) -> float:
    """What there was before the first instance: the mean over the ramps of the readings less what the fit explains."""
    bases, number = [], 0
    for ramp, yes in zip(ramps, drifting, strict=True):
        drift = float(drifts[number]) if yes else 0.0
        number += yes
        empty = ramp.population == 0
        # Before the first instance the readings say it themselves; what errors add up to on the ramp is not part of it.
        chosen = empty if empty.any() else np.ones(len(ramp.values), dtype=np.bool_)
        rest = ramp.values - slope * ramp.population - drift * (ramp.at_s - ramp.at_s[0])
        bases.append(float(rest[chosen].mean()))
    return float(np.mean(bases))
