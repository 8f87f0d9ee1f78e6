"""Worlds in which the assumptions of the intervals do not hold, run by ``interval_coverage.py``.

Blocks that depend on one another, an order that matters, two speeds, slow starts, skewness on one side, and families of
many comparisons beside one another. A world is *held* if 95 % intervals cover at least 93 %, and false verdicts and
wrong equivalence are at most 5 %; *flagged* if it is not, and what misses without a flag is at most 7 %, false verdicts
without one 5 %. The flag of worlds whose blocks depend on one another is that they do, or that they were not tested for
it; that of all others is that the verdict is tentative.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from benchmarks.worlds import DIFFERENT, SIDES, World, cell, comparisons, medians, simulate, verdict_share
from tare.bench.design import balanced_order
from tare.bench.model import Direction
from tare.bench.stats.comparisons import HIDDEN_BY_STOPPING, Comparison, Floats, Verdict, compare, log_ratios
from tare.bench.stats.dependence import find_dependence
from tare.bench.stats.families import Member, control_false_discoveries
from tare.bench.stats.precision import FEWEST, Standing, precision_of

HARD_BLOCKS = (3, 4, 5, 8, 12, 16, 20, 30)
PLAIN = World("normal", 0.02, 0.02)
QUIET = World("normal", 0.004, 0.004)
TOGETHER = 8
"""Leading metrics of a run that are tested for dependence together."""
_Effect = Callable[[np.random.Generator, int, int], Floats]
"""What is added to the log values of both sides: of shape (2, runs, blocks), the backend first."""


def positions(runs: int, blocks: int, *, balanced: bool = True) -> Floats:
    """Where each side stands in its pair (0 or 1), as a run's design has it, or by a plain coin."""
    if balanced:
        orders = [[balanced_order(SIDES, block, f"{run}/world") for block in range(blocks)] for run in range(runs)]
        first = np.array(orders)[..., 0]
    else:
        first = np.random.default_rng(77).integers(0, 2, (runs, blocks))
    return np.stack((first != 0, first == 0)).astype(float)


def two_speeds(random: np.random.Generator, runs: int, blocks: int) -> Floats:
    """A third of the blocks is slower by 20 %, on both sides, and half of the instances by 10 %."""
    of_block = 0.2 * (random.random((1, runs, blocks)) < 1 / 3)
    return of_block + 0.1 * (random.random((2, runs, blocks)) < 0.5)


def wandering(random: np.random.Generator, runs: int, blocks: int) -> Floats:
    """The ratio is autoregressive, with a lag-1 correlation of 0.6 and three times the noise of a block."""
    steps = random.standard_normal((runs, blocks))
    for block in range(1, blocks):
        steps[:, block] = 0.6 * steps[:, block - 1] + 0.8 * steps[:, block]
    return np.stack((0.09 * steps, np.zeros_like(steps)))


def drifting(random: np.random.Generator, runs: int, blocks: int, *, balanced: bool = True) -> Floats:  # noqa: ARG001
    """30 % over the run, which goes on from the first of a pair to the second."""
    place = 2 * np.arange(blocks) + positions(runs, blocks, balanced=balanced)
    found: Floats = math.log(1.3) * place / (2 * blocks - 1)
    return found


def first_is_slower(random: np.random.Generator, runs: int, blocks: int, *, balanced: bool = True) -> Floats:  # noqa: ARG001
    """The first of each pair takes 5 % longer."""
    found: Floats = math.log(1.05) * (1 - positions(runs, blocks, balanced=balanced))
    return found


def slow_starts(random: np.random.Generator, runs: int, blocks: int) -> Floats:
    """One start in ten is slower by 30 %, on both sides."""
    return math.log(1.3) * (random.random((2, runs, blocks)) < 0.1)


def nothing(random: np.random.Generator, runs: int, blocks: int) -> Floats:  # noqa: ARG001
    """No effect: the world's own noise alone."""
    return np.zeros((2, runs, blocks))


HARD: dict[str, tuple[_Effect, World]] = {
    "none": (nothing, PLAIN),
    "two speeds by block and by instance": (two_speeds, PLAIN),
    "autoregressive ratio, 0.6": (wandering, PLAIN),
    "drift of 30 %": (drifting, PLAIN),
    "the first of a pair slower by 5 %": (first_is_slower, PLAIN),
    "one start in ten slow": (slow_starts, PLAIN),
    "skewed, one side three times": (nothing, World("skewed", 0.03, 0.02, 3.0)),
}
UNBALANCED: dict[str, tuple[_Effect, World]] = {
    "drift of 30 %, order by a coin": (functools.partial(drifting, balanced=False), PLAIN),
    "the first slower by 5 %, order by a coin": (functools.partial(first_is_slower, balanced=False), PLAIN),
}


def hard_blocks(effect: _Effect, world: World, *, runs: int, blocks: int, ratio: float = 1.0, seed: int = 1) -> Floats:
    """Block values of both sides, of shape (2, runs, blocks), with the world's mean log ratio taken away."""
    values = medians(simulate(world, runs=runs, blocks=blocks, ratio=ratio, seed=seed))
    values *= np.exp(effect(np.random.default_rng((seed, blocks)), runs, blocks))
    return values / np.array([math.exp(mean_log_ratio(world)), 1.0])[:, None, None]


@functools.lru_cache
def mean_log_ratio(world: World) -> float:
    """What the log ratio of two blocks is on average: not 0 where the sides are skewed unequally."""
    if world.unequal == 1:
        return 0.0
    ours, theirs = medians(simulate(world, runs=20_000, blocks=5, seed=99))
    return float(np.log(ours / theirs).mean())


@dataclass(frozen=True)
class Kept:
    """Of many runs: shares of intervals that hold the truth, of false verdicts, of what was wrongly called equivalent.

    ``flagged`` is the share of runs with the world's flag, ``missed`` the share that misses the truth without it,
    ``unflagged`` that of false verdicts without it.
    """

    coverage: float
    false: float
    equivalent: float
    flagged: float
    missed: float
    unflagged: float
    blocks: float = 0.0

    @property
    def is_held(self) -> bool:
        """Whether all bars are kept."""
        return self.coverage >= 0.93 and self.false <= 0.05 and self.equivalent <= 0.05

    @property
    def is_flagged(self) -> bool:
        """Whether the report warns where they are not."""
        return self.missed <= 0.07 and self.unflagged <= 0.05 and self.equivalent <= 0.05

    def said(self) -> dict[str, Any]:
        """A line of the table."""
        verdict = "held" if self.is_held else "flagged" if self.is_flagged else "not held"
        return {**{name: round(value, 4) for name, value in vars(self).items()}, "verdict": verdict}


def is_flagged(found: Comparison, *, depends: bool) -> bool:
    """Whether a report says of a comparison what is wrong in its world."""
    return found.dependence.lag1 > 0 or not found.dependence.is_tested if depends else found.is_tentative


def keep(same: list[Comparison], at_margin: list[Comparison], blocks: float, *, depends: bool = False) -> Kept:
    """From comparisons of what is the same, and of what differs by just the margin."""
    holds = np.array([one.low is not None and one.high is not None and one.low <= 1 <= one.high for one in same])
    false = np.array([one.verdict in DIFFERENT for one in same])
    flagged = np.array([is_flagged(one, depends=depends) for one in same])
    return Kept(
        coverage=float(holds.mean()),
        false=float(false.mean()),
        equivalent=float(np.mean([one.verdict is Verdict.EQUIVALENT for one in at_margin])),
        flagged=float(flagged.mean()),
        missed=float((~holds & ~flagged).mean()),
        unflagged=float((false & ~flagged).mean()),
        blocks=blocks,
    )


def fixed(effect: _Effect, world: World, *, runs: int, blocks: int) -> Kept:
    """Runs of so many blocks."""
    same, at_margin = (
        list(comparisons(hard_blocks(effect, world, runs=runs, blocks=blocks, ratio=ratio, seed=seed)))
        for ratio, seed in ((1.0, 1), (1.0201, 2))
    )
    return keep(same, at_margin, blocks, depends=effect is wandering)


def adaptive(effect: _Effect, world: World, *, runs: int, wanted: float = 0.03, most: int = 60) -> Kept:
    """Runs that stop as ``bench.adaptive`` does."""
    found: list[list[Comparison]] = []
    used = []
    for ratio, seed in ((1.0, 3), (1.0201, 4)):
        values = hard_blocks(effect, world, runs=runs, blocks=most, ratio=ratio, seed=seed)
        found.append([])
        for ours, theirs in zip(*values, strict=True):
            for n in range(FEWEST, most + 1):
                sides = cell(ours[:n]), cell(theirs[:n])
                one = compare(*sides, direction=Direction.LOWER, hidden=HIDDEN_BY_STOPPING)
                if precision_of(one, n, wanted).standing is Standing.REACHED:
                    break
            found[-1].append(one)
            used.append(n)
    return keep(found[0], found[1], float(np.mean(used)), depends=effect is wandering)


def workloads_together(*, runs: int, blocks: int) -> Kept:
    """The autoregressive world in runs of several workloads, whose leading metrics are tested together."""
    sides = []
    for ratio, seed in ((1.0, 5), (1.0201, 6)):
        values = hard_blocks(wandering, PLAIN, runs=runs * TOGETHER, blocks=blocks, ratio=ratio, seed=seed)
        found: list[Comparison] = []
        for run in range(runs):
            pairs = [
                (cell(values[0, one]), cell(values[1, one])) for one in range(run * TOGETHER, (run + 1) * TOGETHER)
            ]
            together = find_dependence([log_ratios(*pair) for pair in pairs])
            first = compare(*pairs[0], direction=Direction.LOWER, together=together)
            if together.is_tested:
                tested = msgspec.structs.replace(first.dependence, is_tested=True)
                first = msgspec.structs.replace(first, dependence=tested)
            found.append(first)
        sides.append(found)
    return keep(sides[0], sides[1], blocks, depends=True)


def false_in_families(
    *, runs: int, blocks: int, certain: int = 47, tests: int = 47, is_skewed: bool = False
) -> tuple[float, float]:
    """The share of reports with a false difference in one pair of backends, beside a pair of certain differences.

    And the share with one that is not tentative. ``is_skewed``: noise is exponential, and one side's three times as
    large.
    """
    random, false, solid = np.random.default_rng(8), 0, 0
    sure = compare(
        cell(np.exp(2 + 0.03 * random.standard_normal(blocks))), cell(np.ones(blocks)), direction=Direction.LOWER
    )
    beside = [Member(sure, f"m{place}", f"m{place}") for place in range(certain)]
    for _ in range(runs):
        if is_skewed:
            logs = 0.03 * (3 * random.exponential(1, (tests, blocks)) - random.exponential(1, (tests, blocks)) - 2)
        else:
            logs = 0.03 * math.sqrt(2) * random.standard_normal((tests, blocks))
        found = [compare(cell(np.exp(own)), cell(np.ones(blocks)), direction=Direction.LOWER) for own in logs]
        members = [Member(one, f"m{place}", f"m{place}", place < tests // 6) for place, one in enumerate(found)]
        families = {"native": members, "vm": beside}
        adjusted = {name: control_false_discoveries(of, name) for name, of in families.items()}
        kept = [one for one in adjusted["native"] if one.verdict_adjusted in DIFFERENT]
        false += bool(kept)
        solid += any(not one.is_tentative for one in kept)
    return false / runs, solid / runs


def measure_hard(runs: int) -> dict[str, Any]:
    """The hard worlds: fixed numbers of blocks and adaptive, and what the balanced order is worth."""
    found: dict[str, Any] = {}
    for name, (effect, world) in (HARD | UNBALANCED).items():
        by_blocks = {f"{n} blocks": fixed(effect, world, runs=runs, blocks=n).said() for n in HARD_BLOCKS}
        if name in HARD:
            by_blocks["adaptive, ±3 %"] = adaptive(effect, world, runs=runs // 4).said()
        found[name] = by_blocks
    found[f"autoregressive ratio, 0.6, {TOGETHER} workloads"] = {
        f"{n} blocks": workloads_together(runs=runs // 4, blocks=n).said() for n in HARD_BLOCKS
    }
    found["equivalence in a quiet world"] = {
        f"{n} blocks": fixed(nothing, QUIET, runs=runs, blocks=n).said() for n in HARD_BLOCKS
    }
    return found


def measure_families(runs: int) -> dict[str, Any]:
    """47 comparisons without a difference beside 47 certain ones: reports that keep a false difference."""
    found = {}
    for name, is_skewed in (("normal", False), ("one side skewed three times", True)):
        for n in (3, 5, 8, 20):
            false, solid = false_in_families(runs=runs // 4, blocks=n, is_skewed=is_skewed)
            found[f"{name}, {n} blocks"] = {"reports with a false one": false, "that is not tentative": solid}
    return found


def measure_power(runs: int) -> dict[str, Any]:
    """A true difference of 5 % where the log ratio of a block varies by 4.5 % (noise of 3 and 2 % on either side)."""
    world = World("normal", 0.03, 0.02)
    return {
        f"{n} blocks": {"found": verdict_share(world, (Verdict.SLOWER,), ratio=1.05, runs=runs, blocks=n, seed=3)}
        for n in (4, 8, 12, 20)
    }


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "hard": measure_hard,
    "families": measure_families,
    "power": measure_power,
}
