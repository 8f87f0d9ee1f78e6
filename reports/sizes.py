"""Metrics that are taken at several sizes: they are estimated at one, the largest that every backend reached.

``density`` and ``interference`` keep the number of instances or aggressors as a sample's ``iteration``. A total over
all instances has no typical value: the median of a ramp to 100 beside that of one to 1,000 would be a ratio of ramps.
What is told of each start or step has one, and compares only where the sizes were the same.
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from tare.bench.stats import CellBlocks, Comparison, Verdict
from tare.bench.stats.medians import grouped_medians
from tare.reports.cell_tables import CellTable, Points

_PREFIXES = ("density.", "interference.")
_OF_EACH_STEP = frozenset(
    f"density.{name}"
    for name in ("start", "create", "init", "ready", "cpu_stall", "memory_stall", "io_stall", "settle")
)
NOT_COMPARED = "taken at other sizes: no ratio"


def have_same_sizes(metric: str, first: Points, second: Points) -> bool:
    """Whether two cells of a metric were taken at the same sizes; always true of metrics that have none."""
    if not metric.startswith(_PREFIXES):
        return True
    ours, theirs = np.unique(first.iteration_numbers), np.unique(second.iteration_numbers)
    return bool(np.array_equal(ours, theirs))


def common_size(metric: str, tables: Mapping[str, CellTable]) -> int | None:
    """The largest size that every backend reached; None for a metric that has a typical value, or none in common."""
    if not metric.startswith(_PREFIXES) or metric in _OF_EACH_STEP:
        return None
    sizes = [set(np.unique(table.points.iteration_numbers).tolist()) for table in tables.values()]
    if all(len(each) < 2 for each in sizes):
        return None
    return max(set.intersection(*sizes), default=None)


def at_size(table: CellTable, size: int) -> CellTable:
    """The same with the blocks' values at that size alone; its points remain those of all sizes."""
    samples = table.samples
    there = samples.iterations == size
    codes, instance_of = np.unique(samples.instances[there], return_inverse=True)
    medians = grouped_medians(samples.values[there], instance_of, len(codes))
    blocks = np.empty(len(codes), dtype=np.int64)
    blocks[instance_of] = samples.blocks[there]
    counted = CellBlocks.from_instances(medians, blocks, np.bincount(instance_of, minlength=len(codes)))
    return msgspec.structs.replace(table, points=msgspec.structs.replace(table.points, blocks=counted))


def without_ratio(found: Comparison) -> Comparison:
    """A comparison of what was taken at different sizes: it says so, and no more."""
    return msgspec.structs.replace(
        found,
        ratio=None,
        low=None,
        high=None,
        verdict=Verdict.INCONCLUSIVE,
        verdict_adjusted=Verdict.INCONCLUSIVE,
        p_value=None,
        q_value=None,
        method="none",
        note=NOT_COMPARED,
    )
