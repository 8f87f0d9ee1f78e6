"""The samples of one metric of one cell, and what becomes of them before anything is estimated."""

from typing import Self

import msgspec
import numpy as np

from tare.bench.stats.medians import CellBlocks, Floats, Integers
from tare.bench.stats.warmup import NOTHING_FOUND, WarmUp, find_warm_up

SETTLING = ("steady",)
"""Experiments whose iterations repeat the same thing, so that a warm-up can be told. In others a number is a step."""


class CellSamples(msgspec.Struct, frozen=True):
    """One entry a sample: its value, and the numbers of its instance, its block, and its iteration in the instance.

    What the suite states to be warm-up is not among them.
    """

    values: Floats
    instances: Integers
    blocks: Integers
    iterations: Integers

    def find_warm_up(self, experiment: str, *, seed: int = 0) -> WarmUp:
        """The warm-up that is left in these samples, those of the cell's leading metric."""
        if experiment not in SETTLING or not len(self.values):
            return NOTHING_FOUND
        return find_warm_up(self.values, self.instances, self.iterations, seed=seed)

    def after(self, warm_up: WarmUp) -> Self:
        """Without the iterations that were found to be warm-up. What was measured once an instance has none."""
        if warm_up.iterations == 0 or len(np.unique(self.instances)) == len(self.instances):
            return self
        return self._taken(self.iterations >= warm_up.first_settled)

    def before(self, block: int) -> Self:
        """Only the blocks before this one."""
        return self._taken(self.blocks < block)

    def by_block(self) -> CellBlocks:
        """Each block's value: the median over its instances of the medians over their iterations."""
        return CellBlocks.from_samples(self.values, self.instances, self.blocks)

    def _taken(self, kept: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]") -> Self:
        return type(self)(self.values[kept], self.instances[kept], self.blocks[kept], self.iterations[kept])
