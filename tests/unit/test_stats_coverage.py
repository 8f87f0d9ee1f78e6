"""Simulation with known truth, in small: what intervals, verdicts and adaptive sampling promise, they keep.

The simulation is that of ``benchmarks/interval_coverage.py``, which runs it at full size. Here each share has the
slack of its own uncertainty: two standard errors.
"""

import math

import numpy as np
import pytest

from benchmarks.hard_worlds import HARD, HARD_BLOCKS, UNBALANCED, fixed, workloads_together
from benchmarks.interval_coverage import (
    coverage,
    noise_floor_alarms,
    quantile_coverage,
    resample_all_levels,
    sample_until_precise,
    warm_up_coverage,
)
from benchmarks.worlds import DIFFERENT, WORLDS, World, comparisons, medians, simulate, verdict_share
from tare.bench.stats.comparisons import Verdict


def slack(share: float, runs: int) -> float:
    return 2 * math.sqrt(share * (1 - share) / runs)


@pytest.mark.parametrize(("blocks", "instances", "runs"), [(4, 1, 1000), (5, 2, 1000), (20, 1, 200)])
def test_intervals_cover_what_they_say(blocks, instances, runs):
    found = {str(world): coverage(world, runs=runs, blocks=blocks, instances=instances) for world in WORLDS}
    for world, share in found.items():
        assert 0.93 - slack(0.95, runs) <= share <= 0.97 + slack(0.95, runs), (world, share)
    assert 0.935 <= sum(found.values()) / len(found) <= 0.97, found


@pytest.mark.parametrize(("blocks", "runs"), [(4, 1000), (20, 200)])
def test_the_same_thing_twice_is_rarely_called_different(blocks, runs):
    for world in (World("normal", 0.03, 0.02), World("heavy", 0.005, 0.05), World("skewed", 0.03, 0.02)):
        alarms = verdict_share(world, DIFFERENT, ratio=1.0, runs=runs, blocks=blocks, seed=2)
        assert alarms <= 0.05 + slack(0.05, runs), (world, alarms)


@pytest.mark.parametrize("blocks", [8, 24])
def test_bare_metal_is_rarely_different_from_itself(blocks):
    for world in (World("normal", 0.01, 0.01), World("heavy", 0.005, 0.05)):
        alarms = noise_floor_alarms(world, runs=400, blocks=blocks)
        assert alarms <= 0.05 + slack(0.05, 400), (world, alarms)


def test_a_true_difference_of_five_percent_is_found():
    # 20 blocks of this noise give the precision that is asked for: half an interval is about 2 %.
    world = World("normal", 0.025, 0.02)
    found = list(comparisons(medians(simulate(world, runs=300, blocks=20, ratio=1.05, seed=3))))
    half_widths = [(math.log(one.high) - math.log(one.low)) / 2 for one in found]
    assert np.median(half_widths) == pytest.approx(0.02, abs=0.004)
    assert sum(one.verdict is Verdict.SLOWER for one in found) / len(found) >= 0.9


def test_what_is_sampled_until_precise_keeps_its_promises_too():
    world, runs = World("normal", 0.02, 0.015), 250
    found = sample_until_precise(world, runs=runs, ratio=1.05)
    assert found.reached == 1
    assert 0.93 - slack(0.95, runs) <= found.covered <= 0.97 + slack(0.95, runs)
    assert found.different >= 0.9
    assert 8 <= found.blocks <= 20
    assert sample_until_precise(world, runs=runs, ratio=1.0201).equivalent <= 0.05 + slack(0.05, runs)


@pytest.mark.parametrize("blocks", [5, 20])
def test_what_differs_by_the_margin_is_rarely_called_equivalent(blocks):
    world = World("normal", 0.004, 0.004)
    share = verdict_share(world, (Verdict.EQUIVALENT,), ratio=1.0201, runs=400, blocks=blocks, seed=4)
    assert share <= 0.05 + slack(0.05, 400)


def test_equal_things_are_called_equivalent_once_precise():
    world = World("normal", 0.004, 0.004)
    assert verdict_share(world, (Verdict.EQUIVALENT,), ratio=1.0, runs=300, blocks=10, seed=5) >= 0.95


def test_quantiles_are_covered_with_the_fewest_iterations_that_are_allowed():
    for world in (World("normal", 0.03, 0.02), World("skewed", 0.01, 0.05)):
        share = quantile_coverage(world, 0.9, runs=400, blocks=5, iterations=10)
        assert 0.93 - slack(0.95, 400) <= share <= 0.97 + slack(0.95, 400), (world, share)


def test_looking_for_warm_up_where_there_is_none_spoils_no_interval():
    covered, found = warm_up_coverage(World("normal", 0.03, 0.02), runs=300, blocks=8, iterations=6)
    assert 0.93 - slack(0.95, 300) <= covered <= 0.97 + slack(0.95, 300)
    assert found <= 0.01 + slack(0.01, 600)


def test_resampling_iterations_again_counts_their_noise_twice():
    found = resample_all_levels(World("normal", 0.005, 0.05), runs=200, blocks=20, instances=2)
    assert found.all_levels > 0.985
    assert found.wider > 1.4


SKEWED, WANDERING = "skewed, one side three times", "autoregressive ratio, 0.6"


@pytest.mark.parametrize("blocks", [4, 8, 30])
@pytest.mark.parametrize("name", [name for name in HARD if name not in (SKEWED, WANDERING)])
def test_hard_worlds_are_held(name, blocks):
    runs = 300
    kept = fixed(*HARD[name], runs=runs, blocks=blocks)
    assert kept.coverage >= 0.93 - slack(0.95, runs)
    assert max(kept.false, kept.equivalent) <= 0.05 + slack(0.05, runs)


@pytest.mark.parametrize("blocks", HARD_BLOCKS)
def test_where_one_side_is_skewed_three_times_as_much_false_verdicts_are_held_or_tentative(blocks):
    kept = fixed(*HARD[SKEWED], runs=1000, blocks=blocks)
    assert kept.coverage >= 0.92 - slack(0.92, 1000)
    assert kept.unflagged <= 0.045 + slack(0.045, 1000)
    assert kept.false - kept.unflagged > 0.002, "what is called close"


def test_few_clear_differences_are_tentative():
    found = list(comparisons(medians(simulate(World("normal", 0.03, 0.02), runs=300, blocks=8, ratio=1.15, seed=3))))
    assert np.mean([one.verdict is Verdict.SLOWER for one in found]) > 0.9
    assert np.mean([one.is_tentative for one in found]) < 0.02


def test_blocks_that_depend_on_one_another_are_held_or_flagged():
    for blocks in (4, 8, 30):
        kept = fixed(*HARD[WANDERING], runs=300, blocks=blocks)
        assert kept.missed <= 0.07 + slack(0.07, 300)
    assert kept.flagged >= 0.75, "of 30 blocks"
    together = workloads_together(runs=100, blocks=16)
    assert together.coverage >= 0.93 - slack(0.95, 100)
    assert together.flagged >= 0.95


def test_a_balanced_order_is_worth_what_it_promises():
    (balanced, plain), runs = (HARD["drift of 30 %"], UNBALANCED["drift of 30 %, order by a coin"]), 600
    assert fixed(*balanced, runs=runs, blocks=3).false <= 0.02
    assert fixed(*plain, runs=runs, blocks=3).false >= 0.06
