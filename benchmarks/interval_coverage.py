"""Simulation with known truth: whether intervals, verdicts and adaptive sampling keep what they promise.

Iterations in instances in blocks, on the log scale: two levels of noise, a level of its own for each block and a drift
over blocks that both sides share, tails from normal to Student's t with 3 degrees of freedom and exponential, and a
backend up to three times as noisy as the baseline. The whole path is simulated, from iterations to the verdict.

    python -m benchmarks.interval_coverage [--runs N] [--only PART] [--json]

Bars: 95 % intervals cover 93 to 97 %; A/A false verdicts at most 5 %; a true 5 % difference at a margin of 2 % found in
at least 90 % at a precision of 2 %; equivalence declared wrongly at most 5 %. A share of 2,000 runs is itself uncertain
by one point either way (two standard errors). ``hard`` are worlds in which the assumptions do not hold: where a
world is not held, its verdicts are flagged, and the table says so.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.hard_worlds import PARTS as HARD_PARTS
from benchmarks.worlds import (
    CALM,
    DIFFERENT,
    MIDDLING,
    SIDES,
    WORLDS,
    World,
    cell,
    comparisons,
    medians,
    share,
    simulate,
    verdict_share,
)
from tare.bench.analysis.cells import CellSamples
from tare.bench.catalogue import TRAITS
from tare.bench.errors import ExitCode
from tare.bench.model import Direction
from tare.bench.stats.comparisons import CellBlocks, Floats, Verdict, compare
from tare.bench.stats.noise import noise_floor
from tare.bench.stats.precision import FEWEST, Standing, precision_of


def coverage(world: World, *, ratio: float = 1.3, **design: int) -> float:
    """The share of intervals that hold the true ratio."""
    found = comparisons(medians(simulate(world, ratio=ratio, **design)))
    return share(one.low is not None and one.high is not None and one.low <= ratio <= one.high for one in found)


def noise_floor_alarms(world: World, **design: int) -> float:
    """The share of runs whose own A/A comparison, the baseline's blocks split, calls it different from itself."""
    baseline = medians(simulate(world, **design))[1]
    floors = (noise_floor(cell(values), direction=Direction.LOWER, seed=run) for run, values in enumerate(baseline))
    return share(floor.comparison.verdict in DIFFERENT for floor in floors)


def quantile_coverage(world: World, quantile: float, *, ratio: float = 1.3, **design: int) -> float:
    """As ``coverage``, of a quantile over all iterations of a block; both sides equally noisy, so it has the ratio."""
    values = simulate(world, ratio=ratio, **design)
    _, runs, blocks, instances, iterations = values.shape
    block_of = np.repeat(np.arange(blocks), instances * iterations)
    instance_of = np.repeat(np.arange(blocks * instances), iterations)

    def by_block(samples: Floats) -> CellBlocks:
        return CellBlocks.from_quantiles(samples.ravel(), instance_of, block_of, quantile)

    found = (
        compare(by_block(values[0, run]), by_block(values[1, run]), direction=Direction.LOWER) for run in range(runs)
    )
    return share(one.low is not None and one.high is not None and one.low <= ratio <= one.high for one in found)


@dataclass(frozen=True)
class Stopped:
    """What became of runs that were sampled until precise: shares, and the mean number of blocks."""

    covered: float
    different: float
    equivalent: float
    reached: float
    blocks: float


def sample_until_precise(
    world: World, *, runs: int, ratio: float = 1.3, wanted: float = 0.02, most: int = 60, seed: int = 1
) -> Stopped:
    """Runs that stop as ``bench.adaptive`` does: at the first block, from ``FEWEST``, with a narrow enough interval."""
    values = medians(simulate(world, runs=runs, blocks=most, ratio=ratio, seed=seed))
    covered, different, equivalent, reached, blocks = [], [], [], [], []
    for run in range(runs):
        for n in range(FEWEST, most + 1):
            one = compare(cell(values[0, run, :n]), cell(values[1, run, :n]), direction=Direction.LOWER)
            standing = precision_of(one, n, wanted).standing
            if standing is Standing.REACHED:
                break
        assert one.low is not None
        assert one.high is not None
        covered.append(one.low <= ratio <= one.high)
        different.append(one.verdict in DIFFERENT)
        equivalent.append(one.verdict is Verdict.EQUIVALENT)
        reached.append(standing is Standing.REACHED)
        blocks.append(n)
    return Stopped(*(float(np.mean(each)) for each in (covered, different, equivalent, reached, blocks)))


@dataclass(frozen=True)
class Resampled:
    """An interval over all levels against one over whole blocks: coverage of either, and how much wider it is."""

    all_levels: float
    whole_blocks: float
    wider: float


def resample_all_levels(
    world: World, *, runs: int, resamples: int = 400, ratio: float = 1.3, **design: int
) -> Resampled:
    """The hierarchical bootstrap (blocks, then instances, then iterations), beside one of whole blocks."""
    values = np.log(simulate(world, runs=runs, ratio=ratio, **design))
    _, _, blocks, instances, iterations = values.shape
    random = np.random.default_rng(5)
    inside, whole, wider = [], [], []
    for run in range(runs):
        own = values[:, run]
        block = random.integers(0, blocks, (resamples, blocks))
        at = [
            (
                random.integers(0, instances, (resamples, blocks, instances)),
                random.integers(0, iterations, (resamples, blocks, instances, iterations)),
            )
            for _ in range(SIDES)
        ]
        drawn = [
            np.median(np.median(side[block[:, :, None, None], instance[..., None], iteration], axis=3), axis=2)
            for side, (instance, iteration) in zip(own, at, strict=True)
        ]
        plain = np.median(np.median(own, axis=3), axis=2)
        ends = np.quantile((drawn[0] - drawn[1]).mean(axis=1), (0.025, 0.975))
        block_ends = np.quantile((plain[0] - plain[1])[block].mean(axis=1), (0.025, 0.975))
        inside.append(ends[0] <= math.log(ratio) <= ends[1])
        whole.append(block_ends[0] <= math.log(ratio) <= block_ends[1])
        wider.append((ends[1] - ends[0]) / (block_ends[1] - block_ends[0]))
    return Resampled(float(np.mean(inside)), float(np.mean(whole)), float(np.mean(wider)))


def warm_up_coverage(world: World, *, ratio: float = 1.3, **design: int) -> tuple[float, float]:
    """Coverage where warm-up is looked for in settled cells, and the share of cells in which some is found."""
    values = simulate(world, ratio=ratio, **design)
    _, runs, blocks, instances, iterations = values.shape
    instance_of = np.repeat(np.arange(blocks * instances), iterations)
    numbers = np.tile(np.arange(iterations), blocks * instances)
    covered, found = [], []
    for run in range(runs):
        sides = []
        for side in values[:, run]:
            samples = CellSamples(side.ravel(), instance_of, instance_of // instances, numbers)
            warm_up = samples.find_warm_up(TRAITS["steady"])
            found.append(warm_up.iterations > 0)
            sides.append(samples.after(warm_up).by_block())
        one = compare(*sides, direction=Direction.LOWER)
        covered.append(one.low is not None and one.high is not None and one.low <= ratio <= one.high)
    return float(np.mean(covered)), float(np.mean(found))


def measure_coverage(runs: int) -> dict[str, Any]:
    """Coverage by world and design (blocks, instances)."""
    designs = [(4, 1), (5, 1), (5, 2), (8, 1), (10, 3), (15, 1), (20, 1), (20, 2)]
    return {
        f"{blocks} blocks, {instances} instances": {
            str(world): coverage(world, runs=runs, blocks=blocks, instances=instances) for world in WORLDS
        }
        for blocks, instances in designs
    }


def measure_verdicts(runs: int) -> dict[str, Any]:
    """False verdicts of the same thing twice, and equivalence of what differs by exactly the margin."""
    calm = World("normal", 0.004, 0.004)
    return {
        "false verdicts": {
            f"{blocks} blocks": {
                str(world): verdict_share(world, DIFFERENT, ratio=1.0, runs=runs, blocks=blocks, seed=2)
                for world in WORLDS
            }
            for blocks in (4, 5, 10, 20)
        },
        "false verdicts of the run's own A/A": {
            f"{blocks} blocks": {str(world): noise_floor_alarms(world, runs=runs, blocks=blocks) for world in WORLDS}
            for blocks in (8, 20)
        },
        "wrongly equivalent": {
            f"{blocks} blocks": {
                str(world): verdict_share(world, (Verdict.EQUIVALENT,), ratio=1.0201, runs=runs, blocks=blocks, seed=4)
                for world in (calm, World("heavy", 0.004, 0.004), World("skewed", 0.004, 0.004))
            }
            for blocks in (5, 10, 20)
        },
    }


def measure_adaptive(runs: int) -> dict[str, Any]:
    """Coverage, false verdicts, power and wrong equivalence where sampling stops at a precision of 2 %."""
    found: dict[str, Any] = {}
    for world in (*CALM, *MIDDLING):
        of_ratio = {ratio: sample_until_precise(world, runs=runs, ratio=ratio) for ratio in (1.0, 1.0201, 1.05)}
        found[str(world)] = {
            "coverage": of_ratio[1.05].covered,
            "power for 5 %": of_ratio[1.05].different,
            "false verdicts": of_ratio[1.0].different,
            "wrongly equivalent": of_ratio[1.0201].equivalent,
            "reached": of_ratio[1.05].reached,
            "blocks": of_ratio[1.05].blocks,
        }
    return found


def measure_resampling(runs: int) -> dict[str, Any]:
    """Why blocks are resampled whole."""
    found = {}
    for blocks in (8, 20):
        for world in (World("normal", 0.03, 0.02), World("normal", 0.005, 0.05), World("heavy", 0.005, 0.05, 3.0)):
            one = resample_all_levels(world, runs=runs // 4, blocks=blocks, instances=2)
            found[f"{world}; {blocks} blocks"] = {
                "all levels": one.all_levels,
                "whole blocks": one.whole_blocks,
                "wider by": one.wider,
            }
    return found


def measure_quantiles(runs: int) -> dict[str, Any]:
    """Coverage of quantiles with as few iterations a block as are allowed, and with more."""
    worlds = (World("normal", 0.03, 0.02), World("heavy", 0.03, 0.02), World("skewed", 0.01, 0.05))
    designs = [(0.9, 5, 10), (0.9, 20, 10), (0.9, 10, 50), (0.99, 5, 100)]
    return {
        f"p{100 * quantile:g}, {blocks} blocks of {iterations}": {
            str(world): quantile_coverage(world, quantile, runs=runs // 2, blocks=blocks, iterations=iterations)
            for world in worlds
        }
        for quantile, blocks, iterations in designs
    }


def measure_warm_up(runs: int) -> dict[str, Any]:
    """Coverage where warm-up is looked for and there is none, and how often some is found."""
    found = {}
    for world in (World("normal", 0.03, 0.02), World("heavy", 0.005, 0.05), World("skewed", 0.005, 0.05)):
        for iterations in (5, 12):
            covered, alarms = warm_up_coverage(world, runs=runs // 2, blocks=8, iterations=iterations)
            found[f"{world}; {iterations} iterations"] = {"coverage": covered, "found by chance": alarms}
    return found


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "coverage": measure_coverage,
    "verdicts": measure_verdicts,
    "adaptive": measure_adaptive,
    "resampling": measure_resampling,
    "quantiles": measure_quantiles,
    "warm-up": measure_warm_up,
    **HARD_PARTS,
}


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs of each kind (default 2000)")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be given again")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    results = {}
    try:
        for name in arguments.only or PARTS:
            started = time.monotonic()
            results[name] = PARTS[name](arguments.runs)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    if arguments.json:
        print(json.dumps({"runs": arguments.runs, "results": results}))
    else:
        print_nested(results)
    return ExitCode.OK


def print_nested(results: dict[str, Any], depth: int = 0) -> None:
    """Print names and numbers, indented."""
    for name, value in results.items():
        if isinstance(value, dict):
            print(f"{'  ' * depth}{name}")
            print_nested(value, depth + 1)
        else:
            print(f"{'  ' * depth}{name:44} {value if isinstance(value, str) else f'{value:.3f}'}")


if __name__ == "__main__":
    sys.exit(main())
