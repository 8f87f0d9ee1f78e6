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
    MANY_BLOCKS,
    CellBlocks,
    Comparison,
    Floats,
    compare,
    winsorised_deviation,
)

POWER = 0.9


class NoiseSource(StrEnum):
    """What was compared with what."""

    TWIN = "twin"
    SPLIT = "split"


class NoiseFloor(msgspec.Struct, frozen=True):
    """One metric's A/A comparison.

    ``comparison`` is A against B; a verdict of faster or slower is a false alarm. ``noise`` is the standard deviation
    of the log ratio of two blocks that measured the same (with many blocks, without those that went astray, as the
    estimate is). ``detectable`` is the smallest ratio above 1 that this run, with its ``n_blocks``, would have called a
    difference with probability ``POWER``. None: too few blocks to say.
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
        n_blocks, noise = len(shared), _spread(_logs(twin.at(shared), baseline.at(shared)), len(shared))
    else:
        source, (a, b) = NoiseSource.SPLIT, split_blocks(baseline, seed=seed)
        n_blocks, noise = len(baseline.blocks), _neighbours(baseline)
    found = compare(a, b, direction=direction, margin=margin, seed=seed)
    detectable = None if noise is None else detectable_ratio(noise, n_blocks, margin=margin)
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


def detectable_ratio(noise: float, n_blocks: int, *, margin: float = DEFAULT_MARGIN) -> float | None:
    """The smallest ratio that ``n_blocks`` blocks with this ``noise`` call a difference with probability ``POWER``.

    Both conditions of ``judge`` count: the interval must lie beyond 1 (power of the t test, by the noncentral t), and
    the ratio beyond the margin. None below 2 blocks.
    """
    from scipy.special import ndtri

    if n_blocks < 2:
        return None
    error = noise / math.sqrt(n_blocks)
    significant = _noncentrality(n_blocks - 1) * error
    relevant = math.log(1 + margin) + float(ndtri(POWER)) * error
    return math.exp(min(max(significant, relevant), 700.0))


@functools.lru_cache(maxsize=256)
def _noncentrality(df: int) -> float:
    """By how many standard errors a mean must differ for a t test to see it with probability ``POWER``."""
    from scipy.special import nctdtrinc, stdtrit

    return float(nctdtrinc(df, 1 - POWER, float(stdtrit(df, (1 + LEVEL) / 2))))


def _neighbours(cell: CellBlocks) -> float | None:
    """The spread of log ratios of neighbouring blocks, from all neighbours: their mean is 0 without drift."""
    if len(cell.values) < 3 or cell.values.min() <= 0:
        return None
    steps: Floats = np.diff(np.log(cell.values[np.argsort(cell.blocks)]))
    # Of either sign alike, as it is chance which of two neighbours comes first.
    return _spread(np.concatenate((steps, -steps)), len(cell.values))


def _logs(one: CellBlocks, other: CellBlocks) -> Floats | None:
    if not len(one.values) or min(one.values.min(), other.values.min()) <= 0:
        return None
    return np.log(one.values) - np.log(other.values)


def _spread(values: Floats | None, n_blocks: int) -> float | None:
    """What the standard error of a centre is the root of ``n_blocks`` of: with many blocks that of a trimmed mean."""
    if values is None or len(values) < 2:
        return None
    if n_blocks < MANY_BLOCKS:
        return float(values.std(ddof=1))
    return winsorised_deviation(values)
