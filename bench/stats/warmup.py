"""Finds the warm-up of a cell: the first iterations of its instances that are unlike the rest.

Iterations of an instance that has settled are alike in distribution, so any order of them is as likely as any other.
Each instance's iterations are ranked among themselves (which takes away the instance's own level), and the ranks of
the first k are summed over all instances of the cell: the change-point statistic of Pettitt (1979, J. R. Stat. Soc. C
28:126), with instances as blocks as in van Elteren (1960). The largest of the standardised sums over k tells whether
there is a change (by comparison with random orders, at ``LEVEL``) and where. What comes before the change is warm-up
(as in Barrett et al. 2017, OOPSLA, "Virtual machine warmup blows hot and cold"), slower or faster alike. The search is
repeated on what is left, and never takes more than half of the iterations: a series whose change comes later has not
settled (the rule of MSER-5, White 1997, Simulation 69:323).
"""

import functools
import math
from collections.abc import Mapping

import msgspec
import numpy as np

from tare.bench.stats.comparisons import Floats, Integers

LEVEL = 0.01
"""Share of settled cells in which a warm-up is found by chance."""
ORDERS = 4000
_LARGEST = 4_000_000
_LONGEST = 2000


class WarmUp(msgspec.Struct, frozen=True):
    """What was found in a cell, or in those of the same subject on other backends (``shared_warm_up``).

    ``iterations`` from the first are warm-up, beyond those that the suite states; the iteration with the number
    ``first_settled`` is the first that counts. ``settled`` is False where what is left still changes. ``p_value`` is
    the first search's; None where there was too little to search in.
    """

    iterations: int = 0
    first_settled: int = 0
    settled: bool = True
    p_value: float | None = None


NOTHING_FOUND = WarmUp()


def shared_warm_up(found: Mapping[str, WarmUp]) -> dict[str, WarmUp]:
    """The same cut for all backends of a subject, the longest that any of them needs; otherwise each keeps its own.

    Both sides of a ratio lose the same iterations: the same transient on both, found on one alone, would be a
    difference.
    """
    longest = max(found.values(), key=lambda one: one.iterations, default=NOTHING_FOUND)
    if longest.iterations == 0:
        return dict(found)
    cut = {"iterations": longest.iterations, "first_settled": longest.first_settled}
    return {backend: msgspec.structs.replace(one, **cut) for backend, one in found.items()}


def find_warm_up(values: Floats, instances: Integers, positions: Integers, *, seed: int = 0) -> WarmUp:
    """The warm-up of a cell from one metric's samples, those left out by the suite's own count not among them.

    ``positions`` are the numbers of the iterations in their instance. Instances that broke off early are not used.
    """
    table = _as_table(values, instances, positions)
    first = int(positions.min()) if len(positions) else 0
    total = table.shape[1] if table.size else 0
    taken, first_p = 0, None
    while total - taken >= 2:
        found = _search(table[:, taken:], seed)
        if found is None:
            break
        cut, p_value = found
        first_p = p_value if first_p is None else first_p
        if p_value > LEVEL:
            break
        if taken + cut > total // 2:
            return WarmUp(taken, first + taken, settled=False, p_value=first_p)
        taken += cut
    return WarmUp(taken, first + taken, p_value=first_p)


def _as_table(values: Floats, instances: Integers, positions: Integers) -> Floats:
    """A row an instance, a column an iteration: of as many as half of the instances have, at most ``_LONGEST``."""
    order = np.lexsort((positions, instances))
    _, starts, counts = np.unique(instances[order], return_index=True, return_counts=True)
    if not len(counts):
        return np.empty((0, 0))
    length = min(int(np.median(counts)), _LONGEST)
    table: Floats = values[order][starts[counts >= length, None] + np.arange(length)]
    return table


def _search(table: Floats, seed: int) -> tuple[int, float] | None:
    """Where the change is if there is one, and how likely as large a one is by chance. None if nothing can be told."""
    from scipy.stats import rankdata

    table = table[table.min(axis=1) < table.max(axis=1)]
    n, length = table.shape
    if n == 0 or math.factorial(min(length, 12)) ** min(n, 12) < 2 / LEVEL:
        return None  # nothing varies, or so few orders that none is unlikely
    scores = rankdata(table, axis=1) - (length + 1) / 2
    observed = _standardised(scores.sum(axis=0), (scores**2).sum())
    largest = np.abs(observed).max()
    by_chance = _largest_by_chance(n, length, seed)
    p_value = (1 + int((by_chance >= largest - 1e-9).sum())) / (1 + len(by_chance))
    return int(np.abs(observed).argmax()) + 1, p_value


def _standardised(sums: Floats, squares: float) -> Floats:
    """Sums of the first k scores over their standard deviation in random orders, for each k up to half the length.

    ``sums`` are over instances, one an iteration along the last axis; ``squares`` is the sum of all squared scores.
    """
    length = sums.shape[-1]
    k = np.arange(1, length // 2 + 1)
    variance = squares * k * (length - k) / (length * (length - 1))
    found: Floats = np.cumsum(sums, axis=-1)[..., : length // 2] / np.sqrt(variance)
    return found


@functools.lru_cache(maxsize=64)
def _largest_by_chance(n: int, length: int, seed: int) -> Floats:
    """The largest standardised sum in each of many random orders of ``n`` instances with ``length`` iterations.

    Where these are too many to draw, the sums over instances are normal, and drawn as such.
    """
    random = np.random.default_rng((seed, n, length))
    scores = np.arange(length) - (length - 1) / 2
    squares = float((scores**2).sum())
    if ORDERS * n * length <= _LARGEST:
        orders = random.permuted(np.broadcast_to(scores, (ORDERS * n, length)), axis=1)
        sums = orders.reshape(ORDERS, n, length).sum(axis=1)
        squares *= n
    else:
        orders_n = max(500, min(ORDERS, _LARGEST // length))
        sums = random.standard_normal((orders_n, length))
        sums -= sums.mean(axis=1, keepdims=True)
        squares = float(length - 1)
    found: Floats = np.abs(_standardised(sums, squares)).max(axis=1)
    return found
