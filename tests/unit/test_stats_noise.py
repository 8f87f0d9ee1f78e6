"""The noise floor: no false alarms beyond their share, and the differences it names are found as often as it says."""

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats as reference

from tare.bench.analysis import analyse
from tare.bench.model import Direction
from tare.bench.stats.comparisons import CellBlocks, Verdict, compare
from tare.bench.stats.noise import NoiseSource, detectable_ratio, noise_floor, split_blocks
from tare.bench.stats.precision import ALLOWANCE, FEWEST, Standing, blocks_needed, precision_of
from tare.bench.store import load_run
from tests.synthetic import QUICK, write_run

LOWER = Direction.LOWER


def blocks(values) -> CellBlocks:
    count = len(values)
    return CellBlocks(np.arange(count), np.exp(values), np.ones(count, dtype=int), np.ones(count, dtype=int))


def test_neighbouring_blocks_are_paired_and_the_earlier_is_on_either_side_equally_often():
    a, b = split_blocks(blocks(np.arange(9.0)), seed=3)
    pairs = [sorted(pair) for pair in zip(np.log(a.values).round(), np.log(b.values).round(), strict=True)]
    assert pairs == [[0, 1], [2, 3], [4, 5], [6, 7]]
    first_is_a = [
        np.log(split_blocks(blocks(np.arange(9.0)), seed=seed)[0].values).round() % 2 == 0 for seed in range(60)
    ]
    assert {tuple(each) for each in first_is_a} == {each for each in product((True, False), repeat=4) if sum(each) == 2}


@pytest.mark.parametrize("n_blocks", [8, 20, 40])
def test_the_same_thing_is_rarely_different_from_itself(n_blocks):
    random = np.random.default_rng(1)
    drift = np.linspace(0, 0.2, n_blocks)
    verdicts = [
        noise_floor(
            blocks(drift + 0.02 * random.standard_t(3, n_blocks)), direction=LOWER, seed=seed
        ).comparison.verdict
        for seed in range(400)
    ]
    alarms = np.mean([verdict in (Verdict.FASTER, Verdict.SLOWER) for verdict in verdicts])
    assert alarms <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("twin", [True, False])
@pytest.mark.parametrize("n_blocks", [4, 8, 20])
def test_a_detectable_difference_is_found_as_often_as_it_says(n_blocks, twin):
    """The floor of one run, and another run with a true difference of just that."""
    random, spread = np.random.default_rng(2), 0.05
    found = []
    for _ in range(500):
        first, second = (blocks(spread * random.standard_normal(n_blocks)) for _ in range(2))
        floor = noise_floor(first, second if twin else None, direction=LOWER)
        own = math.log(floor.detectable) + spread * random.standard_normal(n_blocks)
        base = spread * random.standard_normal(n_blocks)
        found.append(compare(blocks(own), blocks(base), direction=LOWER).verdict is Verdict.SLOWER)
    assert np.mean(found) == pytest.approx(0.9, abs=0.04)


def test_a_margin_has_to_be_crossed_too():
    assert detectable_ratio(1e-6, 20, NoiseSource.TWIN, margin=0.03) == pytest.approx(1.03, rel=1e-4)


def test_the_noise_of_neighbours_is_that_of_twins():
    random = np.random.default_rng(3)
    levels = 0.1 * np.linspace(0, 1, 14)
    pairs = [
        (blocks(levels + 0.02 * random.standard_normal(14)), blocks(levels + 0.02 * random.standard_normal(14)))
        for _ in range(300)
    ]
    split = np.mean([noise_floor(one, direction=LOWER).noise for one, _ in pairs])
    twin = np.mean([noise_floor(one, other, direction=LOWER).noise for one, other in pairs])
    assert twin == pytest.approx(0.02 * math.sqrt(2), rel=0.05)
    assert split == pytest.approx(twin, rel=0.1)


def test_with_too_few_blocks_it_says_nothing():
    one = noise_floor(blocks([0.0]), direction=LOWER)
    assert (one.noise, one.detectable, one.comparison.verdict) == (None, None, Verdict.INCONCLUSIVE)
    assert one.comparison.note == "no block holds both: no ratio"


def test_a_run_s_noise_floor_and_a_twin(tmp_path):
    analysis = analyse(load_run(write_run(tmp_path / "run", replace(QUICK, blocks=12))))
    assert analysis.noise.source is NoiseSource.SPLIT
    assert analysis.noise.tested == sum(len(subject.rows) for subject in analysis.subjects) - 8  # zeros and guests
    assert len(analysis.noise.false_alarms) <= 2
    assert 1.005 < analysis.noise.detectable <= analysis.noise.detectable_worst < 1.2
    twin = write_run(tmp_path / "twin", replace(QUICK, blocks=12, backends=("bare-metal", "again"), ratios={}))
    manifest = json.loads((twin / "manifest.json").read_text())
    manifest["suite"]["backend"] = [
        {"type": "bare-metal", "name": "", "options": {}},
        {"type": "bare-metal", "name": "again", "options": {}},
    ]
    (twin / "manifest.json").write_text(json.dumps(manifest))
    twin_analysis = analyse(load_run(twin))
    assert twin_analysis.noise.source is NoiseSource.TWIN
    (row,) = [row for one in twin_analysis.subjects for row in one.rows if row.metric.name == "read.iops"]
    assert row.noise_floor.comparison.ratio == row.cells[1].comparison.ratio


def test_precision_is_half_of_the_interval_and_needs_a_few_blocks():
    values = 0.02 * np.random.default_rng(6).standard_normal(10)
    found = compare(blocks(values), blocks(np.zeros(10)), direction=LOWER)
    one = precision_of(found, 10, 0.05)
    assert one.standing is Standing.REACHED
    assert one.half_width == pytest.approx(math.sqrt(found.high / found.low) - 1)
    assert precision_of(found, FEWEST - 1, 0.05).standing is Standing.NOT_REACHED
    assert precision_of(found, 10, 0.001).standing is Standing.NOT_REACHED
    zero = compare(blocks(values), CellBlocks(*(np.arange(10) * 0 + part for part in (0, 0.0, 1, 1))), direction=LOWER)
    assert precision_of(zero, 10, 0.05).standing is Standing.CANNOT


def test_the_blocks_needed_are_enough_and_no_more():
    def half(n: int, spread: float) -> float:
        return reference.t.ppf(0.975, n - 1) * spread / math.sqrt(n) * math.sqrt(1 + ALLOWANCE / n)

    for spread, wanted in ((0.05, 0.02), (0.01, 0.02), (0.2, 0.05)):
        needed = blocks_needed(float(reference.t.ppf(0.975, 9)) * spread / math.sqrt(10), 10, wanted)
        assert half(needed, spread) <= math.log1p(wanted)
        assert needed == FEWEST or half(needed - 1, spread) > math.log1p(wanted)
