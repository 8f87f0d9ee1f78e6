"""The design is complete in every block, interleaved, and the same for the same seed."""

from collections import Counter
from pathlib import Path

from tare.bench.design import make_design
from tare.bench.suite import Suite, bind_suite, resolve_suite
from tests.unit.fakes import BACKENDS, WORKLOADS


def suite(seed: int = 1, blocks: int = 12, instances: int = 1) -> Suite:
    source = {
        "suite": {"name": "plan"},
        "sampling": {"seed": seed, "blocks": blocks, "instances": instances},
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
