"""Metrics that are taken at several sizes, whose typical values compare only where the sizes were the same.

``density`` and ``interference`` keep the number of instances or aggressors as a sample's ``iteration``: the median of a
ramp to 100 beside that of a ramp to 1,000 would be a ratio of ramps and not of backends.
"""

import msgspec
import numpy as np

from bench.stats import Comparison, Verdict
from reports.cell_tables import Points

_PREFIXES = ("density.", "interference.")
NOT_COMPARED = "taken at other sizes: no ratio"


def have_same_sizes(metric: str, first: Points, second: Points) -> bool:
    """Whether two cells of a metric were taken at the same sizes; always true of metrics that have none."""
    if not metric.startswith(_PREFIXES):
        return True
    ours, theirs = np.unique(first.iteration_numbers), np.unique(second.iteration_numbers)
    return bool(np.array_equal(ours, theirs))


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
