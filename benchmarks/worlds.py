"""Worlds with known truth: iterations in instances in blocks on the log scale, and what a comparison says of them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tare.bench.model import Direction
from tare.bench.stats.comparisons import CellBlocks, Comparison, Floats, Verdict, compare

DRIFT_OVER_RUN = 0.2
BLOCK_NOISE = 0.05
DIFFERENT = (Verdict.FASTER, Verdict.SLOWER)


@dataclass(frozen=True)
class World:
    """How noise looks: its kind, the scales of instances and iterations, how much noisier the backend is."""

    kind: str
    instance: float
    iteration: float
    unequal: float = 1.0

    def __str__(self) -> str:
        return f"{self.kind} {self.instance:g}, {self.iteration:g}; {self.unequal:g}"


WORLDS = (
    World("normal", 0.03, 0.02),
    World("normal", 0.005, 0.05, 3.0),
    World("heavy", 0.03, 0.02),
    World("heavy", 0.005, 0.05),
    World("heavy", 0.03, 0.02, 3.0),
    World("skewed", 0.03, 0.02),
    World("skewed", 0.005, 0.05, 3.0),
    World("skewed", 0.03, 0.02, 3.0),
)
CALM = (World("normal", 0.012, 0.01), World("heavy", 0.012, 0.01), World("skewed", 0.012, 0.01))
MIDDLING = (World("normal", 0.025, 0.02), World("heavy", 0.02, 0.02), World("skewed", 0.015, 0.02, 2.0))
SIDES = 2


def noise(random: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Floats:
    """Noise with median 0 and a scale of about 1."""
    if kind == "normal":
        return random.standard_normal(shape)
    if kind == "heavy":
        return random.standard_t(3, shape) / math.sqrt(3)
    return random.exponential(1, shape) - math.log(2)


def simulate(
    world: World,
    *,
    runs: int,
    blocks: int,
    instances: int = 1,
    iterations: int = 5,
    ratio: float = 1.0,
    seed: int = 1,
) -> Floats:
    """Iterations of both sides, the backend first: values of shape (2, runs, blocks, instances, iterations)."""
    random = np.random.default_rng(seed)
    shared = BLOCK_NOISE * random.standard_normal((runs, blocks, 1, 1))
    shared = shared + np.linspace(0, DRIFT_OVER_RUN, blocks)[None, :, None, None]
    sides = []
    for log_ratio, factor in ((math.log(ratio), world.unequal), (0.0, 1.0)):
        between = world.instance * factor * noise(random, world.kind, (runs, blocks, instances, 1))
        within = world.iteration * factor * noise(random, world.kind, (runs, blocks, instances, iterations))
        sides.append(np.exp(log_ratio + shared + between + within))
    return np.stack(sides)


def medians(values: Floats) -> Floats:
    """The value of each block, of shape (2, runs, blocks)."""
    found: Floats = np.median(np.median(values, axis=4), axis=3)
    return found


def comparisons(blocks: Floats) -> Iterator[Comparison]:
    """Each run's comparison, from both sides' block values."""
    for ours, theirs in zip(*blocks, strict=True):
        yield compare(cell(ours), cell(theirs), direction=Direction.LOWER)


def cell(values: Floats) -> CellBlocks:
    """A cell with these block values."""
    ones = np.ones(len(values), dtype=np.int64)
    return CellBlocks(np.arange(len(values)), values, ones, ones)


def verdict_share(world: World, wanted: tuple[Verdict, ...], *, ratio: float, **design: int) -> float:
    """The share of runs with one of these verdicts."""
    return share(one.verdict in wanted for one in comparisons(medians(simulate(world, ratio=ratio, **design))))


def share(hits: Iterator[bool]) -> float:
    """The share of hits."""
    return float(np.mean(list(hits)))
