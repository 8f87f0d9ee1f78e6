"""How exactly a cell is known, and how many blocks it would take to know it as exactly as was asked for.

The measure is half of the interval of the ratio to the baseline, on the log scale as a factor (of the typical value,
where nothing is compared): 0.02 says that the interval reaches from the ratio over 1.02 to the ratio times 1.02.

Stopping when an interval is narrow favours intervals that came out too narrow by chance: the variance is
underestimated where a run stops (Anscombe 1953; Chow and Robbins 1965). Therefore no cell is done before ``FEWEST``
blocks, and its interval has to be as narrow as if it rested on ``ALLOWANCE`` blocks fewer: then 93 to 96 % of the
intervals hold the truth, and false verdicts stay under 5 % (decision 0055 has the simulation).
"""

import bisect
import math
from enum import StrEnum

import msgspec

from tare.bench.stats.comparisons import LEVEL, Comparison, Interval

FEWEST = 8
"""Blocks that a cell has before it may be done."""
ALLOWANCE = 3
"""With n blocks half of an interval times sqrt(1 + ALLOWANCE / n) has to be within what was asked for."""
_MOST = 100_000


class Standing(StrEnum):
    """Where a cell stands against the precision that was asked for."""

    REACHED = "reached"
    NOT_REACHED = "not reached"
    CANNOT = "cannot be reached"


class Precision(msgspec.Struct, frozen=True):
    """``half_width`` as a share, None where there is no interval; ``n_blocks`` in it; ``needed``, estimated, in all.

    ``note`` says why it cannot be reached.
    """

    standing: Standing
    wanted: float
    half_width: float | None
    n_blocks: int
    needed: int | None
    note: str = ""


def precision_of(found: Comparison | Interval, n_blocks: int, wanted: float) -> Precision:
    """Where a cell stands, from its comparison with the baseline, or from its own value where there is none."""
    centre = found.ratio if isinstance(found, Comparison) else found.centre
    if found.low is None or found.high is None or centre is None:
        note = found.note if isinstance(found, Comparison) else "one block: no interval"
        standing = Standing.CANNOT if centre is None else Standing.NOT_REACHED
        return Precision(standing, wanted, None, n_blocks, None, note)
    if min(found.low, centre) <= 0:
        return Precision(Standing.CANNOT, wanted, None, n_blocks, None, "values of 0 have no relative width")
    half = math.log(found.high / found.low) / 2
    needed = blocks_needed(half, n_blocks, wanted)
    reached = n_blocks >= FEWEST and half * _allowed_for(n_blocks) <= math.log1p(wanted)
    return Precision(Standing.REACHED if reached else Standing.NOT_REACHED, wanted, math.expm1(half), n_blocks, needed)


def blocks_needed(half_width: float, n_blocks: int, wanted: float) -> int:
    """Blocks in all until half an interval, now ``half_width`` on the log scale, is as narrow as wanted.

    As if the spread of blocks stayed what it is: the width falls with the root of their number, and with Student's t.
    """
    spread = half_width * math.sqrt(n_blocks) / _t(n_blocks)
    target = math.log1p(wanted)
    blocks = range(FEWEST, _MOST)
    wide_enough = bisect.bisect_left(
        blocks, x=True, key=lambda n: _t(n) * spread / math.sqrt(n) * _allowed_for(n) <= target
    )
    return FEWEST + wide_enough


def plain_half_width(spread: float, n_blocks: int) -> float:
    """Half of the interval of a mean of that many independent blocks with this standard deviation."""
    return _t(n_blocks) * spread / math.sqrt(n_blocks)


def _t(n_blocks: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(n_blocks - 1, (1 + LEVEL) / 2))


def _allowed_for(n_blocks: int) -> float:
    return math.sqrt(1 + ALLOWANCE / n_blocks)
