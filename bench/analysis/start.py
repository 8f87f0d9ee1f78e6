"""How the start latency changes with the population."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from tare.bench.analysis.reml import Floats
from tare.bench.stats import LEVEL

GROUPS = 10
"""Starts next to one another resemble each other, and some are slow for no reason of theirs: so a ramp is cut into
this many parts, each stands for itself with its median, and the line goes through these (batch means)."""
_LEAST = 3


class StartTrend(msgspec.Struct, frozen=True):
    """Start latency in seconds as ``first_s + per_instance_s * population``, with the slope's interval.

    ``first_s`` is that of an empty host, ``last_s`` at the largest population, both by the line. The interval is None
    where there are too few starts.
    """

    first_s: float
    last_s: float
    per_instance_s: float
    low: float | None
    high: float | None
    starts: int


def fit_start(ramps: Sequence[tuple[Floats, Floats]], *, level: float = LEVEL) -> StartTrend:
    """The trend over ramps of (population, seconds). Raises ValueError without any start."""
    points = [point for population, seconds in ramps for point in _medians(population, seconds)]
    if not points:
        raise ValueError("no start was measured")
    x, y = (np.array(column) for column in zip(*points, strict=True))
    starts = sum(len(seconds) for _, seconds in ramps)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * y).sum()) / spread if spread else 0.0
    first = float(y.mean()) - slope * float(x.mean())
    largest = max(float(population.max()) for population, _ in ramps)
    low, high = _interval(x, y, slope, first, spread, level)
    return StartTrend(first, first + slope * largest, slope, low, high, starts)


def _medians(population: Floats, seconds: Floats) -> list[tuple[float, float]]:
    parts = min(GROUPS, len(seconds))
    pairs = zip(np.array_split(population, parts), np.array_split(seconds, parts), strict=True)
    return [(float(own.mean()), float(np.median(values))) for own, values in pairs]


def _interval(
    x: Floats, y: Floats, slope: float, first: float, spread: float, level: float
) -> tuple[float | None, float | None]:
    from scipy.special import stdtrit

    freedom = len(x) - 2
    if freedom < _LEAST - 2 or not spread:
        return None, None
    residual = y - first - slope * x
    error = math.sqrt(float((residual**2).sum()) / freedom / spread)
    half = float(stdtrit(freedom, (1 + level) / 2)) * error
    return slope - half, slope + half
