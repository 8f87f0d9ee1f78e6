"""The noise floor: what a run says of bare metal against itself, and the smallest difference it could have shown.

Where the suite runs the baseline's type twice (two backends of one type with the same options), that is the A/A
comparison, paired by block as any other. Otherwise the baseline's own blocks are split at random: neighbouring blocks
are paired, so that slow drift cancels as it does within a block, and chance decides which of a pair is A, the earlier
one in half of the pairs. A host whose level jumps from block to block then looks noisier than its ratios are, as such
jumps fall on both sides of a ratio in one block: the floor is an upper bound. It costs no extra measurement.
"""

import functools
import math
from enum import StrEnum

import msgspec
import numpy as np

from tare.bench.model import Direction
from tare.bench.settings import DEFAULT_MARGIN
from tare.bench.stats.comparisons import (
    LEVEL,
    SKEWED_BLOCKS,
    CellBlocks,
    Comparison,
    Floats,
    compare,
    skewed_by,
    skewness_error,
)
from tare.bench.stats.dependence import LEAST as TESTED_BLOCKS
from tare.bench.stats.dependence import LEVEL as DEPENDENT_BY_CHANCE

POWER = 0.9
_POINTS = 400
_DRAWS = 20_000


class NoiseSource(StrEnum):
    """What was compared with what."""

    TWIN = "twin"
    SPLIT = "split"


class NoiseFloor(msgspec.Struct, frozen=True):
    """One metric's A/A comparison.

    ``comparison`` is A against B; a verdict of faster or slower is a false alarm. ``noise`` is the standard deviation
    of the log ratio of two blocks that measured the same. ``detectable`` is the smallest ratio above 1 that a run with
    as many blocks calls a difference with probability ``POWER``, with all that is not known of the noise. None: too few
    blocks to say.
    """

    source: NoiseSource
    comparison: Comparison
    n_blocks: int
    noise: float | None
    detectable: float | None


def noise_floor(
    baseline: CellBlocks,
    twin: CellBlocks | None = None,
    *,
    direction: Direction,
    margin: float = DEFAULT_MARGIN,
    seed: int = 0,
) -> NoiseFloor:
    """The noise floor of one metric from the baseline's blocks, or from it and its ``twin``. Never raises."""
    if twin is not None:
        source, (a, b) = NoiseSource.TWIN, (twin, baseline)
        shared = np.intersect1d(twin.blocks, baseline.blocks)
        n_blocks, noise = len(shared), _of_twins(_logs(twin.at(shared), baseline.at(shared)))
    else:
        source, (a, b) = NoiseSource.SPLIT, split_blocks(baseline, seed=seed)
        n_blocks, noise = len(baseline.blocks), _of_neighbours(baseline)
    found = compare(a, b, direction=direction, margin=margin)
    detectable = None if noise is None else detectable_ratio(noise, n_blocks, source, margin=margin)
    return NoiseFloor(source, found, n_blocks, noise, detectable)


def split_blocks(cell: CellBlocks, *, seed: int = 0) -> tuple[CellBlocks, CellBlocks]:
    """Blocks split in two: of each two neighbours one to each side, at random. An odd one is left out.

    The earlier one goes to either side equally often, so that what drifts from block to block favours neither.
    """
    pairs = len(cell.blocks) // 2
    random = np.random.default_rng((seed, len(cell.blocks)))
    coins = random.permutation((np.arange(pairs) + random.integers(0, 2)) % 2)
    order = np.argsort(cell.blocks)
    first = order[2 * np.arange(pairs) + coins]
    second = order[2 * np.arange(pairs) + 1 - coins]
    numbers = np.arange(pairs)
    a, b = (
        CellBlocks(numbers, cell.values[side], cell.instances[side], cell.iterations[side]) for side in (first, second)
    )
    return a, b


def detectable_ratio(
    noise: float, n_blocks: int, source: NoiseSource, *, margin: float = DEFAULT_MARGIN
) -> float | None:
    """The smallest ratio that ``n_blocks`` blocks call a difference with probability ``POWER``.

    The ``noise`` was itself estimated, from as many blocks of this ``source``: the probability is over what it may be,
    not at its estimate. Both conditions of ``judge`` count: the interval must lie beyond 1, and the ratio beyond the
    margin. None below 2 blocks.
    """
    if n_blocks < 2:
        return None
    significant, relevant = _distances(n_blocks, source)
    error = noise / math.sqrt(n_blocks)
    return math.exp(min(max(significant * error, math.log(1 + margin) + relevant * error), 700.0))


@functools.lru_cache(maxsize=256)
def _distances(n_blocks: int, source: NoiseSource) -> tuple[float, float]:
    """By how many *estimated* standard errors a mean must differ, to lie beyond 1 and beyond the margin.

    The first by the noncentral t, with what skewness and dependence found by chance take from the power.
    """
    from scipy.optimize import brentq
    from scipy.special import nctdtr, ndtr, stdtrit

    sizes = _sizes(n_blocks, source)
    critical = float(stdtrit(n_blocks - 1, (1 + LEVEL) / 2))
    critical += skewed_by(_skewness_by_chance(n_blocks), n_blocks, critical, 1)
    wanted = min(0.999, POWER / (1 - DEPENDENT_BY_CHANCE)) if n_blocks >= TESTED_BLOCKS else POWER

    def certain(distance: float) -> float:
        missed = nctdtr(n_blocks - 1, distance * sizes, critical)  # no number where it is next to 0
        return 1 - float(np.nan_to_num(missed, nan=0.0).mean()) - wanted

    def beyond(distance: float) -> float:
        return float(ndtr(distance * sizes).mean()) - POWER

    first, second = (float(brentq(missing, 0.0, 1e6, xtol=1e-9)) for missing in (certain, beyond))
    return first, second


def _skewness_by_chance(n: int) -> float:
    """What is seen of it on one side on average in ``n`` values without any (0.4 of its standard deviation)."""
    if n < SKEWED_BLOCKS:
        return 0.0
    return skewness_error(n) / math.sqrt(2 * math.pi)


def _sizes(n_blocks: int, source: NoiseSource) -> Floats:
    """Quantiles of what is estimated for a noise of 1."""
    random = np.random.default_rng(n_blocks)
    values = random.standard_normal((_DRAWS, n_blocks))
    if source is NoiseSource.TWIN:
        found = values.std(axis=1, ddof=1)
    else:
        found = np.sqrt((np.diff(values, axis=1) ** 2).mean(axis=1) / 2)
    sizes: Floats = np.quantile(found, (np.arange(_POINTS) + 0.5) / _POINTS)
    return sizes


def _of_neighbours(cell: CellBlocks) -> float | None:
    """The spread of log ratios of neighbouring blocks, from all neighbours: their mean is 0 without drift."""
    if len(cell.values) < 3 or cell.values.min() <= 0:
        return None
    steps: Floats = np.diff(np.log(cell.values[np.argsort(cell.blocks)]))
    return math.sqrt(float((steps**2).mean()))


def _logs(one: CellBlocks, other: CellBlocks) -> Floats | None:
    if not len(one.values) or min(one.values.min(), other.values.min()) <= 0:
        return None
    return np.log(one.values) - np.log(other.values)


def _of_twins(values: Floats | None) -> float | None:
    return float(values.std(ddof=1)) if values is not None and len(values) > 1 else None
