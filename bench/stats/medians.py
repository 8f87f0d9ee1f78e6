"""Medians and quantiles of many groups at once: a million samples in one sort."""

import math
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def grouped_medians(values: Floats, groups: Integers, n_groups: int) -> Floats:
    """The median of each group; ``groups`` holds the number of each value's group, from 0. Empty groups give NaN."""
    order = np.lexsort((values, groups))
    ordered = values[order]
    counts = np.bincount(groups, minlength=n_groups)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64)
    filled = counts > 0
    medians = np.full(n_groups, np.nan)
    low = starts[filled] + (counts[filled] - 1) // 2
    high = starts[filled] + counts[filled] // 2
    medians[filled] = (ordered[low] + ordered[high]) / 2
    return medians


def grouped_quantiles(values: Floats, groups: Integers, n_groups: int, quantile: float) -> Floats:
    """A quantile of each group: the median-unbiased one (Hyndman and Fan 1996, definition 8). Empty groups give NaN."""
    order = np.lexsort((values, groups))
    ordered = values[order]
    counts = np.bincount(groups, minlength=n_groups)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64)
    filled = counts > 0
    n, first = counts[filled], starts[filled]
    place = np.clip(quantile * (n + 1 / 3) - 2 / 3, 0, n - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, n - 1)
    found = np.full(n_groups, np.nan)
    found[filled] = ordered[first + low] + (place - low) * (ordered[first + high] - ordered[first + low])
    return found


def least_for_quantile(quantile: float) -> int:
    """How many values a quantile needs: as many as leave one beyond it on average. 10 for p90, 100 for p99."""
    return math.ceil(1 / min(quantile, 1 - quantile) - 1e-9)


class CellBlocks(msgspec.Struct, frozen=True):
    """One metric of one cell, block by block, warm-up left out.

    ``blocks`` are the numbers of the blocks in rising order; ``values`` holds for each the median over its instances
    of the medians over their iterations, in the metric's unit; ``instances`` and ``iterations`` how many there were.
    """

    blocks: Integers
    values: Floats
    instances: Integers
    iterations: Integers

    @classmethod
    def from_samples(cls, values: Floats, instances: Integers, blocks: Integers) -> Self:
        """From one entry a sample: its value, its instance and its block (any integers)."""
        keys, instance = np.unique(np.stack((blocks, instances)), axis=1, return_inverse=True)
        centres = grouped_medians(values, instance.reshape(-1), keys.shape[1])
        iterations = np.bincount(instance.reshape(-1), minlength=keys.shape[1])
        return cls.from_instances(centres, keys[0], iterations)

    @classmethod
    def from_instances(cls, centres: Floats, blocks: Integers, iterations: Integers) -> Self:
        """From one entry an instance: the median of its iterations, its block, how many iterations it had."""
        names, block = np.unique(blocks, return_inverse=True)
        return cls(
            names,
            grouped_medians(centres, block, len(names)),
            np.bincount(block, minlength=len(names)),
            np.bincount(block, weights=iterations, minlength=len(names)).astype(np.int64),
        )

    @classmethod
    def from_quantiles(cls, values: Floats, instances: Integers, blocks: Integers, quantile: float) -> Self:
        """From one entry a sample: ``values`` of the result are a quantile of all iterations in a block together.

        Blocks with fewer iterations than ``least_for_quantile`` are left out.
        """
        names, block = np.unique(blocks, return_inverse=True)
        iterations = np.bincount(block, minlength=len(names))
        enough = iterations >= least_for_quantile(quantile)
        pairs = np.unique(np.stack((block, instances)), axis=1)
        found = grouped_quantiles(values, block, len(names), quantile)
        n_instances = np.bincount(pairs[0], minlength=len(names))
        return cls(names[enough], found[enough], n_instances[enough], iterations[enough])

    def at(self, blocks: Integers) -> Self:
        """Only the given blocks."""
        kept = np.isin(self.blocks, blocks)
        return type(self)(self.blocks[kept], self.values[kept], self.instances[kept], self.iterations[kept])
