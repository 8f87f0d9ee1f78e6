"""What an instance costs beyond its memory limit as a function of that limit: a line through ramps of several sizes.

``overhead(size) = base + share * size``: page tables and device memory grow with a guest's RAM, what QEMU is does not.
The line is fitted by weighted least squares to the overhead of each ramp; where the ramps lie farther from it than
their intervals say, those of the line are widened by as much (Birge ratio). Sizes beyond the measured are refused.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from tare.bench.analysis.cost import Estimate
from tare.bench.capacity.hosts import Resource
from tare.bench.capacity.instances import InstanceType, Need
from tare.bench.errors import SuiteError
from tare.bench.units import format_size

LEAST_SIZES = 2
"""Sizes that a line needs; with three or more it can be said how well the line fits."""


class Measured(msgspec.Struct, frozen=True):
    """The overhead of instances of one size, in bytes, and the run it is from."""

    size: float
    overhead: Estimate
    run: str


class SizedOverhead(msgspec.Struct, frozen=True):
    """The line for one backend and workload. ``base`` is in bytes, ``share`` in bytes a byte of memory.

    ``covariance`` is that of both. ``misfit`` is the root of the mean squared deviation in standard errors of the
    ramps; None with only two sizes, through which a line always goes.
    """

    name: str
    measured: tuple[Measured, ...]
    base: float
    share: float
    covariance: tuple[tuple[float, float], tuple[float, float]]
    misfit: float | None

    def at(self, size: float) -> Estimate:
        """The overhead of instances of this size, with its 95 % interval.

        Raises SuiteError for a size below or above all that were measured.
        """
        least, most = self.measured[0].size, self.measured[-1].size
        if not least <= size <= most:
            raise SuiteError(
                "--size",
                f"{format_size(size)} is outside of what was measured ({format_size(least)} to {format_size(most)})",
                remedy="measure a ramp of that size: tare density BACKEND --memory SIZE",
            )
        value = self.base + self.share * size
        variance = float(np.array([1.0, size]) @ np.array(self.covariance) @ np.array([1.0, size]))
        half = self._quantile * math.sqrt(max(0.0, variance))
        return Estimate(max(0.0, value), max(0.0, value - half), max(0.0, value + half))

    @property
    def _quantile(self) -> float:
        """Of the t distribution where the deviations from the line widen it, else of the normal one."""
        if self.misfit is None or self.misfit <= 1:
            return 1.96
        from scipy.special import stdtrit

        return float(stdtrit(len(self.measured) - 2, 0.975))


def sized_overheads(types: Sequence[InstanceType]) -> tuple[SizedOverhead, ...]:
    """The lines of all backends and workloads that were measured with two or more limits of memory."""
    groups: dict[str, dict[float, Measured]] = {}
    for kind in types:
        need = next((one for one in kind.needs if one.resource is Resource.MEMORY and one.by_limit), None)
        if need is not None and need.each.high is not None and need.each.low is not None:
            groups.setdefault(kind.name, {})[kind.limits.memory] = Measured(
                kind.limits.memory, _beyond(need, kind), kind.run
            )
    return tuple(
        fit_overhead(name, sorted(found.values(), key=lambda one: one.size))
        for name, found in groups.items()
        if len(found) >= LEAST_SIZES
    )


def fit_overhead(name: str, measured: Sequence[Measured]) -> SizedOverhead:
    """The weighted line through the overheads of two or more sizes, in rising order."""
    sizes = np.array([one.size for one in measured])
    values = np.array([one.overhead.per_instance for one in measured])
    errors = np.array([max((one.overhead.half_width or 0.0) / 1.96, 1.0) for one in measured])
    # In units of the largest size: bytes squared would leave nothing of the precision.
    design = np.column_stack([np.ones(len(sizes)), sizes / sizes[-1]]) / errors[:, None]
    covariance = np.linalg.inv(design.T @ design)
    base, slope = covariance @ design.T @ (values / errors)
    misfit = None
    if len(sizes) > LEAST_SIZES:
        deviations = (values - base - slope * sizes / sizes[-1]) / errors
        misfit = float(np.sqrt((deviations**2).sum() / (len(sizes) - 2)))
        covariance = covariance * max(1.0, misfit) ** 2
    scale = np.array([1.0, 1.0 / sizes[-1]])
    (a, b), (_, c) = covariance * np.outer(scale, scale)
    covariances = ((float(a), float(b)), (float(b), float(c)))
    return SizedOverhead(name, tuple(measured), float(base), float(slope / sizes[-1]), covariances, misfit)


def _beyond(need: Need, kind: InstanceType) -> Estimate:
    limit, each = kind.limits.memory, need.each
    return Estimate(
        each.per_instance - limit,
        None if each.low is None else each.low - limit,
        None if each.high is None else each.high - limit,
    )
