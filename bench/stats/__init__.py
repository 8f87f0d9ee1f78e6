"""Estimates, intervals and verdicts for two-level data: iterations in instances in blocks.

The method in one paragraph. Each instance is reduced to the median of its iterations, each block to the median of its
instances, and a backend is compared with the baseline block by block: one log ratio a block. What the host did to a
block (drift, other load) falls on both sides of a ratio and cancels. The estimate is the centre of these log ratios,
and the interval comes from how they differ from block to block, which holds the variation of both levels at once
(Kalibera and Jones 2013: the top level decides). ``comparisons`` says which interval and why, and what follows,
``warmup`` which iterations do not count, ``noise`` what the host could have shown at all, ``precision`` how far a
cell is from the precision asked for.

Importing this package imports numpy; scipy is imported where it is used.
"""

from tare.bench.settings import DEFAULT_MARGIN
from tare.bench.stats.comparisons import (
    LEVEL,
    MANY_BLOCKS,
    CellBlocks,
    Comparison,
    Interval,
    Verdict,
    centre_interval,
    compare,
    control_false_discoveries,
    grouped_medians,
    judge,
    summarise,
)
from tare.bench.stats.noise import NoiseFloor, NoiseSource, detectable_ratio, noise_floor
from tare.bench.stats.precision import Precision, Standing, precision_of
from tare.bench.stats.warmup import WarmUp, find_warm_up

__all__ = [
    "DEFAULT_MARGIN",
    "LEVEL",
    "MANY_BLOCKS",
    "CellBlocks",
    "Comparison",
    "Interval",
    "NoiseFloor",
    "NoiseSource",
    "Precision",
    "Standing",
    "Verdict",
    "WarmUp",
    "centre_interval",
    "compare",
    "control_false_discoveries",
    "detectable_ratio",
    "find_warm_up",
    "grouped_medians",
    "judge",
    "noise_floor",
    "precision_of",
    "summarise",
]
