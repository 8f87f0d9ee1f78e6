"""What one more instance costs, by regression over ramps, with an interval.

A ramp is read once a step, and each reading holds all that came before it: errors of one step stay in all later ones.
The straight line of ordinary least squares takes them for independent, and its interval is far too narrow. The model
here is of the differences between successive readings,

    y[k] - y[k-1] = cost * (n[k] - n[k-1]) + drift * (t[k] - t[k-1]) + own[k] + host[k] + error[k] - error[k-1]

with ``own`` the instances' differences from one another (variance grows with the instances between two readings),
``host`` what else the host does (variance grows with the time between them), and ``error`` that of a reading, which
the next difference takes back. The three variances are not known. Each point of a grid of their ratios is weighted by
its restricted likelihood (REML), and the interval is that of the mixture: it is as wide as not knowing them makes it.

A single jump of the host (another program took 200 MiB) is a step: a difference that stands out by its externally
studentised residual at 1 % after Bonferroni. It gets a parameter of its own, and is told.

What this covers in simulations with known truth is in ``docs/decisions/0081-cost-of-an-instance.md``.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from tare.bench.analysis.reml import Differences, Floats, fit_with_steps, make_columns, mixture_interval
from tare.bench.stats import LEVEL, centre_interval

MANY_RAMPS = 5
"""From so many ramps on, the interval is of how the ramps differ."""


class Ramp(msgspec.Struct, frozen=True):
    """Readings of one quantity in the order in which they were taken: the population then, the time, the value.

    The reading before the first instance is one of them, with a population of 0.
    """

    population: Floats
    at_s: Floats
    values: Floats


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

    def at(self, population: float) -> float:
        """The fitted value at a population."""
        return self.base + self.per_instance * population


def fit_cost(ramps: Sequence[Ramp], *, level: float = LEVEL) -> Cost:
    """Fit the cost of an instance over one or more ramps. Raises ValueError if no population ever changed."""
    told = [ramp for ramp in ramps if len(ramp.values) > 1 and np.ptp(ramp.population) > 0]
    if not told:
        raise ValueError("there is no ramp: the population never changed")
    scale = max(float(np.ptp(ramp.values)) for ramp in told) or 1.0
    differences = _differences(told, scale)
    drifting = [bool((differences.n[differences.ramp == number] == 0).sum() >= 2) for number in range(len(told))]
    columns = make_columns(differences, drifting)
    fit, steps = fit_with_steps(differences, columns)
    estimate = float((fit.weight[:, None] * fit.coefficients).sum(axis=0)[0])
    low, high, method = mixture_interval(fit, estimate, level)
    if len(told) > 1:
        estimate, low, high, method = _across(told, estimate, low, high, level)
    means = (fit.weight[:, None] * fit.coefficients).sum(axis=0)
    drifts = means[1 : 1 + sum(drifting)]
    return Cost(
        per_instance=estimate * scale,
        low=None if low is None else low * scale,
        high=None if high is None else high * scale,
        base=_base(told, estimate * scale, drifting, drifts * scale),
        drift_per_s=float(drifts.mean()) * scale if len(drifts) else None,
        ramps=len(told),
        readings=sum(len(ramp.values) for ramp in told),
        largest_population=int(max(ramp.population.max() for ramp in told)),
        steps=tuple(
            Step(int(differences.ramp[k]), int(differences.before[k]), int(differences.after[k]), float(size) * scale)
            for k, size in steps
        ),
        method=method,
    )


def _differences(ramps: Sequence[Ramp], scale: float) -> Differences:
    def joined(parts: list[Floats]) -> Floats:
        return np.concatenate(parts).astype(np.float64)

    lengths = [len(ramp.values) - 1 for ramp in ramps]
    first = np.zeros(sum(lengths), dtype=np.bool_)
    first[np.concatenate(([0], np.cumsum(lengths)[:-1]))] = True
    return Differences(
        y=joined([np.diff(ramp.values / scale) for ramp in ramps]),
        n=joined([np.diff(ramp.population) for ramp in ramps]),
        t=joined([np.diff(ramp.at_s) for ramp in ramps]),
        ramp=np.repeat(np.arange(len(ramps)), lengths),
        first=first,
        before=joined([ramp.population[:-1] for ramp in ramps]),
        after=joined([ramp.population[1:] for ramp in ramps]),
    )


def _across(
    ramps: Sequence[Ramp], pooled: float, low: float | None, high: float | None, level: float
) -> tuple[float, float | None, float | None, str]:
    """The interval over several ramps: wider where they differ by more than each one's own interval allows."""
    scale = max(float(np.ptp(ramp.values)) for ramp in ramps) or 1.0
    single = [fit_cost([ramp], level=level) for ramp in ramps]
    centres = np.array([cost.per_instance / scale for cost in single])
    if len(ramps) >= MANY_RAMPS:
        interval = centre_interval(centres, level=level)
        return interval.centre, interval.low, interval.high, f"{interval.method}, one ramp each"
    halves = np.array([math.nan if cost.half_width is None else cost.half_width / scale for cost in single])
    if low is None or high is None or not np.isfinite(halves).all():
        return pooled, None, None, "ramps too short for an interval"
    errors = np.maximum(halves / 2, 1e-12)
    excess = float((((centres - pooled) / errors) ** 2).sum()) / (len(ramps) - 1)
    wider = math.sqrt(max(1.0, excess))
    return (
        pooled,
        pooled - (pooled - low) * wider,
        pooled + (high - pooled) * wider,
        f"REML over {len(ramps)} ramps, {wider:.2g} times as wide for how they differ",
    )


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
