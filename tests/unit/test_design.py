"""The design is complete in every block, balanced, interleaved, and the same for the same seed."""

import itertools
import random
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tare.bench.design import balanced_order, further_block, make_design
from tare.bench.model import Direction
from tare.bench.stats.comparisons import CellBlocks, Verdict, compare
from tare.bench.suite import Suite, bind_suite, resolve_suite
from tests.unit.fakes import BACKENDS, WORKLOADS


def suite(seed: int | None = 1, blocks: int = 12, instances: int = 1) -> Suite:
    sampling = {"blocks": blocks, "instances": instances} | ({} if seed is None else {"seed": seed})
    source = {
        "suite": {"name": "plan"},
        "sampling": sampling,
        "backend": [{"type": "fake", "name": name} for name in ("a", "b", "c")],
        "experiment": [
            {"kind": "boot"},
            {"kind": "steady", "workload": "answer", "params": {"size": [1, 2]}},
            {"kind": "steady", "workload": "answer", "params": {"size": 3}, "blocks": 2},
        ],
    }
    return bind_suite(resolve_suite(source, Path("plan.toml"), BACKENDS, WORKLOADS))


def test_every_block_holds_every_cell_once():
    plan = make_design(suite())
    for block in range(12):
        cells = Counter(planned.cell.key for planned in plan if planned.block == block)
        assert set(cells.values()) == {1}
        assert len(cells) == (12 if block < 2 else 9)


def test_blocks_follow_one_another_and_the_backends_of_a_subject_lie_together():
    plan = make_design(suite(instances=2))
    assert [planned.block for planned in plan] == sorted(planned.block for planned in plan)
    for start in range(0, len(plan), 3):
        group = plan[start : start + 3]
        assert len({planned.cell.subject for planned in group}) == 1
        assert {planned.cell.backend for planned in group} == {"a", "b", "c"}


def test_the_order_is_random_and_reproducible():
    first, same, other = make_design(suite()), make_design(suite()), make_design(suite(seed=2))
    assert first == same
    assert [planned.cell for planned in first] != [planned.cell for planned in other]
    leaders = Counter(plan.cell.backend for plan in first[::3])
    assert set(leaders) == {"a", "b", "c"}


def test_names_are_unique_and_independent_of_the_order():
    first, other = make_design(suite()), make_design(suite(seed=2))
    assert len({planned.identifier for planned in first}) == len(first)
    assert {planned.identifier for planned in first} == {planned.identifier for planned in other}


BALANCED = [(count, seed) for count in range(1, 9) for seed in ("1", "2", "other")]


@pytest.mark.parametrize(("count", "seed"), BALANCED)
def test_of_any_two_each_is_before_the_other_once_in_two_rows(count, seed):
    for row in range(0, 6 * count, 2):
        first, second = (balanced_order(count, row + offset, seed) for offset in (0, 1))
        for one, other in itertools.combinations(range(count), 2):
            before = [order.index(one) < order.index(other) for order in (first, second)]
            assert sorted(before) == [False, True]


@pytest.mark.parametrize(("count", "seed"), BALANCED)
def test_a_cycle_has_each_thing_in_each_place_and_after_each_other_equally_often(count, seed):
    length = count if count % 2 == 0 else 2 * count
    for start in (0, length, 5 * length):
        rows = [balanced_order(count, row, seed) for row in range(start, start + length)]
        places = Counter((place, thing) for row in rows for place, thing in enumerate(row))
        assert len(places) == count**2
        assert len(set(places.values())) == 1
        follows = Counter(pair for row in rows for pair in itertools.pairwise(row))
        assert len(follows) == count * (count - 1)
        assert len(set(follows.values())) <= 1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_who_begins_is_random_by_seed(count):
    first = Counter(balanced_order(count, 0, str(seed))[0] for seed in range(1000))
    assert set(first) == set(range(count))
    assert max(first.values()) < 1.25 * 1000 / count
    later = {tuple(balanced_order(count, row, str(seed)) for row in range(4)) for seed in range(50)}
    assert len(later) > 1


@pytest.mark.parametrize("instances", [1, 2])
def test_a_design_is_balanced_for_every_pair_of_backends(instances):
    plan = make_design(suite(blocks=6, instances=instances))
    for subject in {planned.cell.subject for planned in plan}:
        own = [planned for planned in plan if planned.cell.subject == subject]
        orders = [[one.cell.backend for one in own[start : start + 3]] for start in range(0, len(own), 3)]
        for one, other in itertools.combinations("abc", 2):
            assert sum(order.index(one) < order.index(other) for order in orders) * 2 == len(orders)


def test_a_block_beyond_the_fixed_ones_goes_on_with_the_balance_whoever_takes_part():
    scenario = {"kind": "boot", "precision": 0.01}
    source = {"suite": {"name": "plan"}, "sampling": {"seed": 5, "blocks": 3}, "experiment": [scenario]}
    source["backend"] = [{"type": "fake", "name": name} for name in ("a", "b", "c")]
    adaptive = bind_suite(resolve_suite(source, Path("plan.toml"), BACKENDS, WORKLOADS))
    orders = [[one.cell.backend for one in make_design(adaptive)[start : start + 3]] for start in (0, 3, 6)]
    kept = {adaptive.scenarios[0].cell(name).key for name in ("a", "c")}
    orders += [[one.cell.backend for one in further_block(adaptive, block, kept)] for block in range(3, 8)]
    assert all(len(order) == 2 for order in orders[3:])
    assert sum(order.index("a") < order.index("c") for order in orders) == 4


def test_a_seed_that_nobody_stated_is_drawn_and_kept_with_the_suite():
    drawn = [suite(seed=None) for _ in range(20)]
    assert len({one.seed for one in drawn}) == 20
    for one in drawn:
        again = bind_suite(resolve_suite(one.file.written(), Path("manifest.json"), BACKENDS, WORKLOADS))
        assert again.seed == one.seed
        assert make_design(again) == make_design(one)
    assert suite(seed=0).seed == 0


def test_no_suite_that_is_shipped_has_a_seed():
    for path in (Path(__file__).parents[2] / "suites").glob("*.toml"):
        assert "seed" not in tomllib.loads(path.read_text()).get("sampling", {}), path


RUNS = 400
FIRST_IS_SLOWER = np.log(1.05)


def coins(row: int, seed: str) -> tuple[int, ...]:
    """What the order was before it was balanced."""
    return tuple(random.Random(f"{seed}/{row}").sample(range(2), 2))


def false_verdicts(order, blocks: int, noise: float, *, first: float = FIRST_IS_SLOWER, drift: float = 0.0) -> float:
    """The share of runs that call two equal backends different.

    The ``first`` of a pair is slower by this log ratio, and all get slower by ``drift`` over the run.
    """
    chance, wrong = np.random.default_rng(blocks), 0
    for run in range(RUNS):
        sides = chance.normal(0, noise, (2, blocks))
        for block in range(blocks):
            begins, follows = order(block, f"{run}/boot")
            sides[begins, block] += first + drift * 2 * block / (2 * blocks - 1)
            sides[follows, block] += drift * (2 * block + 1) / (2 * blocks - 1)
        cells = [CellBlocks(np.arange(blocks), np.exp(side), *2 * [np.ones(blocks, dtype=np.int64)]) for side in sides]
        wrong += compare(*cells, direction=Direction.LOWER).verdict in (Verdict.FASTER, Verdict.SLOWER)
    return wrong / RUNS


@pytest.mark.parametrize("blocks", [3, 4, 5, 8])
@pytest.mark.parametrize("noise", [0.002, 0.01, 0.03])
def test_being_first_makes_no_difference_of_equal_backends(blocks, noise):
    def order(row: int, seed: str) -> tuple[int, ...]:
        return balanced_order(2, row, seed)

    assert false_verdicts(order, blocks, noise) <= 0.05
    if (blocks, noise) == (3, 0.002):
        assert false_verdicts(coins, blocks, noise) > 0.15


@pytest.mark.parametrize("blocks", [3, 4, 8])
@pytest.mark.parametrize("noise", [0.002, 0.01])
def test_a_drift_of_the_host_makes_no_difference_of_equal_backends(blocks, noise):
    def order(row: int, seed: str) -> tuple[int, ...]:
        return balanced_order(2, row, seed)

    drift = {"first": 0.0, "drift": np.log(1.3)}
    assert false_verdicts(order, blocks, noise, **drift) <= 0.05
    if (blocks, noise) == (3, 0.002):
        assert false_verdicts(coins, blocks, noise, **drift) > 0.15
