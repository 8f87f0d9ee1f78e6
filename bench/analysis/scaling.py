"""How throughput grows with instances: Gunther's Universal Scalability Law, or the reason why it does not say it.

    X(N) = rate * N / (1 + contention * (N - 1) + coherency * N * (N - 1))

(N. J. Gunther, Guerrilla Capacity Planning, Springer 2007.) ``N / X(N)`` is linear in 1 / rate, contention / rate and
coherency / rate, none of which is negative: it is fitted by non-negative least squares, weighted so that relative
errors of the throughput count the same everywhere. Intervals are percentiles of a bootstrap of the relative residuals,
enlarged by what a fit to so few points makes them too small (degrees of freedom, and Student's t for the normal). From
two ramps on, what all residuals of a ramp have in common is drawn for each ramp, and the rest for each reading.
"""

import math
from typing import TypeVar

import msgspec
import numpy as np

from tare.bench.analysis.cost import Floats
from tare.bench.stats.comparisons import Integers

PARAMETERS = 3
LEAST_POPULATIONS = 5
"""Fewer different populations than this leave next to nothing that could contradict the law."""
MOST_ERROR = 0.10
"""A fit whose residuals are larger than this (root mean square, relative) is refused, and one that misses the mean at
any population by more than twice of it."""
RESAMPLES = 1000
_SEED = 20071


class Parameter(msgspec.Struct, frozen=True):
    """A fitted value with its 95 % interval."""

    value: float
    low: float
    high: float


class Scaling(msgspec.Struct, frozen=True):
    """A fit that holds.

    ``rate`` is the throughput of one instance. ``peak`` is the population with the largest throughput; None if
    throughput never falls. ``error`` is the root mean square of the relative residuals, ``r_squared`` of the
    throughput, and None where that does not change. ``points`` are (population, throughput), of ``ramps`` ramps.
    """

    rate: Parameter
    contention: Parameter
    coherency: Parameter
    peak: float | None
    peak_low: float | None
    peak_high: float | None
    peak_throughput: float | None
    error: float
    r_squared: float | None
    points: tuple[tuple[float, float], ...]
    ramps: int = 1

    def at(self, population: float) -> float:
        """The throughput at a population by the fit."""
        return throughput(population, (self.rate.value, self.contention.value, self.coherency.value))


class Refusal(msgspec.Struct, frozen=True):
    """Why nothing is said about scaling. ``points`` are (population, throughput)."""

    reason: str
    points: tuple[tuple[float, float], ...]


_Law = tuple[float, float, float]
"""Rate, contention, coherency."""
_N = TypeVar("_N", float, Floats)


def throughput(population: _N, law: _Law) -> _N:
    """The law."""
    rate, contention, coherency = law
    others = population - 1
    return rate * population / (1 + contention * others + coherency * population * others)


def fit_scaling(
    population: Floats, values: Floats, *, ramps: Integers | None = None, seed: int = _SEED
) -> Scaling | Refusal:
    """Fit throughput ``values`` at these populations (each may stand several times).

    ``ramps`` are the numbers of the ramps that the readings belong to, from 0: what a ramp's readings have in common is
    in the intervals from two ramps on. Of one ramp nobody can know it.
    """
    points = tuple(zip(population.tolist(), values.tolist(), strict=True))
    different = len(np.unique(population))
    if different < LEAST_POPULATIONS:
        return Refusal(
            f"{different} {'population was' if different == 1 else 'populations were'} measured; the law has "
            f"{PARAMETERS} parameters and needs {LEAST_POPULATIONS}",
            points,
        )
    if not (np.isfinite(values).all() and (values > 0).all()):
        return Refusal("some throughput is not above 0", points)
    coefficients = _solve(population, values)
    if coefficients[0] <= 0:
        return Refusal("throughput grows faster than the number of instances, which the law does not know", points)
    best = _parameters(coefficients)
    fitted = throughput(population, best)
    relative = values / fitted - 1
    error = float(np.sqrt((relative**2).mean()))
    misses = [float(relative[population == one].mean()) for one in np.unique(population)]
    worst = max(misses, key=abs)
    if error > MOST_ERROR or abs(worst) > 2 * MOST_ERROR:
        return Refusal(
            f"the law does not fit: it errs by {100 * error:.0f} % (root mean square) and by {100 * abs(worst):.0f} % "
            f"where it misses most; {100 * MOST_ERROR:.0f} % and {200 * MOST_ERROR:.0f} % are allowed",
            points,
        )
    spread = float(((values - values.mean()) ** 2).sum())
    flat = spread <= 1e-12 * float((values**2).sum())
    of_ramp = np.zeros(len(population), dtype=np.int64) if ramps is None else ramps
    draws = np.array([_parameters(one) for one in _bootstrap(population, fitted, relative, of_ramp, seed)])
    peak, peaks = _peak(best), [_peak(draw) for draw in draws]
    ends = [math.inf if one is None else one for one in peaks]
    low, high = (float(np.quantile(ends, level, method="nearest")) for level in (0.025, 0.975))
    return Scaling(
        rate=_parameter(best[0], draws[:, 0]),
        contention=_parameter(best[1], draws[:, 1]),
        coherency=_parameter(best[2], draws[:, 2]),
        peak=peak,
        peak_low=low if math.isfinite(low) else None,
        peak_high=high if math.isfinite(high) else None,
        peak_throughput=None if peak is None else throughput(peak, best),
        error=error,
        r_squared=None if flat else 1 - float(((values - fitted) ** 2).sum()) / spread,
        points=points,
        ramps=int(of_ramp.max()) + 1,
    )


def _solve(population: Floats, values: Floats) -> Floats:
    from scipy.optimize import nnls

    design = np.stack([np.ones_like(population), population - 1, population * (population - 1)], axis=1)
    response = population / values
    # Relative errors of N / X and of X are the same; columns of one size keep the solver exact.
    weighted = design / response[:, None]
    sizes = np.linalg.norm(weighted, axis=0)
    solution, _ = nnls(weighted / sizes, np.ones_like(response))
    return np.asarray(solution / sizes, dtype=np.float64)


def _bootstrap(population: Floats, fitted: Floats, relative: Floats, ramps: Integers, seed: int) -> list[Floats]:
    freedom = len(population) - PARAMETERS
    count = int(ramps.max()) + 1
    centred = relative - relative.mean()
    common = np.array([centred[ramps == ramp].mean() for ramp in range(count)]) if count > 1 else np.zeros(1)
    own = (centred - common[ramps]) * _larger(len(population), freedom)
    common = common * _larger(count, count - 1) if count > 1 else common
    random = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        shared = random.choice(common, count) if count > 1 else common
        drawn = np.maximum(1 + shared[ramps] + random.choice(own, len(own)), 0.05)
        coefficients = _solve(population, fitted * drawn)
        if coefficients[0] > 0:
            found.append(coefficients)
    return found


def _larger(count: int, freedom: int) -> float:
    """By what residuals of ``count`` values are too small, and Student's t is wider than the normal."""
    from scipy.special import ndtri, stdtrit

    return math.sqrt(count / freedom) * float(stdtrit(freedom, 0.975)) / float(ndtri(0.975))


def _parameters(coefficients: Floats) -> _Law:
    first, second, third = (float(one) for one in coefficients)
    return 1 / first, second / first, third / first


def _parameter(value: float, draws: Floats) -> Parameter:
    low, high = (float(one) for one in np.quantile(draws, [0.025, 0.975]))
    return Parameter(value, min(low, value), max(high, value))


def _peak(parameters: _Law | Floats) -> float | None:
    """Where throughput is largest: at 1 where others only take from it, nowhere if it never falls."""
    _, contention, coherency = parameters
    if coherency <= 1e-12:
        return None
    return max(1.0, math.sqrt(max(0.0, 1 - contention) / coherency))
