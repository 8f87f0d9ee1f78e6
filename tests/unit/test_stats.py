"""Estimates, intervals and verdicts on small cases whose answer is known."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats as reference

from tare.bench.analysis.cells import CellSamples
from tare.bench.model import Direction
from tare.bench.stats.comparisons import (
    CellBlocks,
    Verdict,
    centre_interval,
    compare,
    grouped_medians,
    judge,
    summarise,
)
from tare.bench.stats.families import Member, control_false_discoveries

LOWER, HIGHER = Direction.LOWER, Direction.HIGHER


def blocks_of(*values: float, first: int = 0) -> CellBlocks:
    count = len(values)
    return CellBlocks(
        np.arange(first, first + count), np.array(values, dtype=float), np.full(count, 2), np.full(count, 10)
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-1e6, 1e6)), min_size=1))
def test_grouped_medians_are_numpys(pairs):
    groups = np.array([group for group, _ in pairs])
    values = np.array([value for _, value in pairs])
    medians = grouped_medians(values, groups, 6)
    for group in range(6):
        own = values[groups == group]
        if len(own):
            assert medians[group] == pytest.approx(np.median(own))
        else:
            assert math.isnan(medians[group])


def test_blocks_are_medians_of_instance_medians():
    # Block 7: instance 1 has median 2 (of 1, 2, 9), instance 2 has 10. Block 3: one instance with median 5.
    cell = CellSamples(
        values=np.array([1.0, 9.0, 2.0, 10.0, 4.0, 6.0]),
        instances=np.array([1, 1, 1, 2, 9, 9]),
        blocks=np.array([7, 7, 7, 7, 3, 3]),
        iterations=np.array([0, 1, 2, 0, 0, 1]),
    ).by_block()
    assert cell.blocks.tolist() == [3, 7]
    assert cell.values.tolist() == [5.0, 6.0]
    assert cell.instances.tolist() == [1, 2]
    assert cell.iterations.tolist() == [2, 4]


def test_t_interval_is_scipys():
    values = np.array([0.1, 0.4, 0.2, 0.35])
    found = centre_interval(values)
    expected = reference.ttest_1samp(values, 0.0)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.method == "t over 4 blocks"


def test_what_is_estimated_is_the_same_at_every_number_of_blocks():
    values = np.random.default_rng(2).exponential(1, 40)
    for n in (2, 5, 15, 16, 40):
        assert centre_interval(values[:n]).centre == pytest.approx(values[:n].mean())


@pytest.mark.parametrize("turned", [1, -1])
def test_an_interval_reaches_further_to_the_skewed_side(turned):
    values = turned * np.array([0.0, 0.01, 0.02, 0.03, 0.05, 0.25])
    low, high = reference.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = centre_interval(values)
    wide, same = (found.high - high, found.low - low) if turned > 0 else (low - found.low, found.high - high)
    assert wide > 0.02
    assert same == pytest.approx(0, abs=1e-12)


@given(st.lists(st.floats(-1, 1).map(lambda one: round(one, 3)), min_size=2, max_size=12))
@example([-0.002, -0.002, -0.003, -0.063, -0.003, -0.063, -0.064, -0.064])  # symmetric: a skewness of 1e-16
def test_p_values_and_intervals_say_the_same(values):
    found = centre_interval(np.array(values))
    if found.low is not None and found.p_value is not None and min(abs(found.low), abs(found.high)) > 1e-9:
        assert (found.p_value <= 0.05) == (found.low > 0 or found.high < 0)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "direction", "verdict"),
    [
        (1.5, 1.4, 1.6, LOWER, Verdict.SLOWER),
        (1.5, 1.4, 1.6, HIGHER, Verdict.FASTER),
        (0.5, 0.4, 0.6, LOWER, Verdict.FASTER),
        (0.5, 0.4, 0.6, HIGHER, Verdict.SLOWER),
        (1.0, 0.99, 1.01, LOWER, Verdict.EQUIVALENT),
        (1.01, 1.005, 1.015, LOWER, Verdict.EQUIVALENT),  # a difference, too small to matter
        (1.0, 0.9, 1.1, LOWER, Verdict.INCONCLUSIVE),
        (1.015, 1.001, 1.029, LOWER, Verdict.INCONCLUSIVE),  # a difference, but does it matter?
        (1.03, 1.001, 1.06, LOWER, Verdict.SLOWER),
        (5.0, None, None, LOWER, Verdict.INCONCLUSIVE),
    ],
)
def test_judge(ratio, low, high, direction, verdict):
    assert judge(ratio, low, high, direction, 0.02) is verdict


def test_margin_is_the_same_factor_both_ways():
    assert judge(1 / 1.02, 1 / 1.02, 1.02, LOWER, 0.02) is Verdict.EQUIVALENT
    assert judge(0.98, 0.98, 1.0, LOWER, 0.02) is Verdict.INCONCLUSIVE  # 0.98 is beyond 1/1.02


def test_drift_of_the_host_cancels():
    drift = np.exp(np.linspace(0, 1, 6))
    base = blocks_of(*(2.0 * drift))
    ours = blocks_of(*(3.0 * drift))
    found = compare(ours, base, direction=LOWER)
    assert found.ratio == pytest.approx(1.5)
    assert found.low == pytest.approx(1.5)
    assert found.verdict is Verdict.SLOWER
    assert (found.n_blocks, found.n_instances, found.n_iterations) == (6, 12, 60)


def test_only_blocks_with_both_sides_count():
    found = compare(blocks_of(2, 2, 2, first=2), blocks_of(1, 1, 1, 1), direction=LOWER)
    assert found.n_blocks == 2
    assert found.ratio == pytest.approx(2)


def test_one_block_gives_no_interval_and_no_verdict():
    found = compare(blocks_of(50.0), blocks_of(1.0), direction=LOWER)
    assert found.ratio == pytest.approx(50)
    assert (found.low, found.high, found.p_value) == (None, None, None)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.note == "one block: no interval"


def test_a_few_readings_that_are_alike_give_no_verdict():
    alike = compare(blocks_of(15.0, 15.0), blocks_of(13.0, 13.0), direction=LOWER)
    assert (alike.low, alike.high, alike.verdict) == (None, None, Verdict.INCONCLUSIVE)
    assert alike.note == "2 blocks with the same reading: no interval"
    steady = compare(blocks_of(*[15.0] * 4), blocks_of(*[13.0] * 4), direction=LOWER)
    assert steady.verdict is Verdict.SLOWER


@pytest.mark.parametrize(
    ("ours", "theirs", "note"),
    [
        (blocks_of(0, 0), blocks_of(0, 0), "0 on both sides"),
        (blocks_of(1, 0), blocks_of(1, 1), "a value of 0 or below: no ratio"),
        (blocks_of(1, 1), blocks_of(1, 1, first=5), "no block holds both: no ratio"),
    ],
)
def test_no_ratio_says_why(ours, theirs, note):
    found = compare(ours, theirs, direction=LOWER)
    assert (found.ratio, found.note, found.verdict) == (None, note, Verdict.INCONCLUSIVE)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=15))
def test_swapping_sides_turns_the_ratio_over(values):
    ones = blocks_of(*[1.0] * len(values))
    forward = compare(blocks_of(*values), ones, direction=LOWER)
    back = compare(ones, blocks_of(*values), direction=LOWER)
    assert forward.ratio == pytest.approx(1 / back.ratio)
    if forward.low is not None:
        assert forward.low == pytest.approx(1 / back.high)
    opposite = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}
    assert forward.verdict is opposite.get(back.verdict, back.verdict)


def test_own_values_with_zeros_are_summarised_without_logarithms():
    assert summarise(blocks_of(0, 0, 3)).centre == pytest.approx(1.0)
    assert summarise(blocks_of(1, 4)).centre == pytest.approx(2.0)


def test_differences_by_chance_do_not_survive_many_comparisons():
    random = np.random.default_rng(8)
    given_ratios = [1.0] * 60 + [2.0] * 5
    found = [
        compare(
            blocks_of(*np.exp(math.log(ratio) + 0.05 * random.standard_normal(5))),
            blocks_of(*np.exp(0.05 * random.standard_normal(5))),
            direction=LOWER,
        )
        for ratio in given_ratios
    ]
    alone = compare(blocks_of(1.0), blocks_of(1.0), direction=LOWER)
    overflown = msgspec.structs.replace(found[0], p_value=math.nan)
    members = [Member(one, f"metric {place}") for place, one in enumerate([*found, alone, overflown])]
    adjusted = control_false_discoveries(members)
    assert adjusted[66] == overflown or math.isnan(adjusted[66].p_value)
    assert adjusted[66].verdict_adjusted is overflown.verdict_adjusted
    by_chance = [one for one in adjusted[:60] if one.verdict in (Verdict.FASTER, Verdict.SLOWER)]
    assert by_chance, "this seed has false alarms before the correction"
    assert sum(one.verdict_adjusted in (Verdict.FASTER, Verdict.SLOWER) for one in adjusted[:60]) < len(by_chance)
    assert all(one.verdict_adjusted is Verdict.SLOWER for one in adjusted[60:65])
    assert adjusted[65].p_value is None
