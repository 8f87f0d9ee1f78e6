"""Warm-up is found where it is, rarely where it is not, and left out of everything but the data."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tare.bench.analysis import analyse
from tare.bench.analysis.cells import CellSamples
from tare.bench.catalogue import TRAITS
from tare.bench.model import Direction
from tare.bench.stats.comparisons import compare
from tare.bench.stats.warmup import LEVEL, WarmUp, find_warm_up, shared_warm_up
from tare.bench.store import load_run
from tare.reports.caveats import caveats
from tests.synthetic import QUICK, write_run

NORMAL, HEAVY = np.random.Generator.standard_normal, lambda random, shape: random.standard_t(2, shape)


def cell(random, instances, iterations, *, start=(), draw=NORMAL, first=1):
    """Samples of a cell whose first iterations are off by ``start`` (in units of the iterations' own noise)."""
    table = draw(random, (instances, iterations)) + 3 * random.standard_normal((instances, 1))
    table[:, : len(start)] += start
    numbers = np.tile(np.arange(first, first + iterations), instances)
    return np.exp(0.02 * table).ravel(), np.repeat(np.arange(instances), iterations), numbers


@pytest.mark.parametrize("draw", [NORMAL, HEAVY, lambda random, shape: np.round(random.standard_normal(shape))])
@pytest.mark.parametrize(("instances", "iterations"), [(5, 3), (5, 6), (10, 10), (20, 40)])
def test_settled_cells_rarely_have_a_warm_up(draw, instances, iterations):
    random = np.random.default_rng(7)
    found = [find_warm_up(*cell(random, instances, iterations, draw=draw)) for _ in range(500)]
    assert np.mean([one.iterations > 0 for one in found]) <= LEVEL + 2.5 * np.sqrt(LEVEL / 500)


@pytest.mark.parametrize(
    ("instances", "iterations", "start", "expected"),
    [(5, 3, (10,), 1), (8, 6, (-10,), 1), (10, 20, (20, 12, 8, 5), 4), (20, 10, (3, 3), 2)],
)
def test_a_warm_up_is_found_where_it_ends_whether_slower_or_faster(instances, iterations, start, expected):
    random = np.random.default_rng(8)
    found = [find_warm_up(*cell(random, instances, iterations, start=start)) for _ in range(40)]
    assert np.median([one.iterations for one in found]) == expected
    assert {one.first_settled for one in found if one.iterations == expected} == {1 + expected}
    assert np.mean([one.settled for one in found]) >= 0.95


def test_what_changes_to_the_end_has_not_settled():
    values, instances, numbers = cell(np.random.default_rng(9), 8, 20, start=np.linspace(20, 0, 20))
    found = find_warm_up(values, instances, numbers)
    assert not found.settled
    assert found.iterations <= 10


@pytest.mark.parametrize(("instances", "iterations"), [(0, 0), (3, 1), (4, 2), (2, 3)])
def test_with_too_little_to_tell_nothing_is_found(instances, iterations):
    values, of, numbers = cell(np.random.default_rng(1), instances, iterations, start=(50,) if iterations else ())
    assert find_warm_up(values, of, numbers) == WarmUp(0, 1 if instances else 0)


def test_constant_values_and_instances_that_broke_off_do_no_harm():
    assert find_warm_up(np.ones(40), np.repeat(np.arange(8), 5), np.tile(np.arange(5), 8)).p_value is None
    values, instances, numbers = cell(np.random.default_rng(2), 12, 6, start=(10,))
    kept = (instances != 3) | (numbers == 1)
    assert find_warm_up(values[kept], instances[kept], numbers[kept]).iterations == 1


def test_it_is_taken_by_iteration_number_and_not_from_what_was_measured_once():
    once = CellSamples(np.ones(4), np.arange(4), np.arange(4), np.zeros(4, dtype=int))
    assert once.after(WarmUp(1, 2)) is once
    several = CellSamples(np.arange(6.0), np.repeat([0, 1], 3), np.repeat([0, 1], 3), np.tile([1, 2, 3], 2))
    assert several.after(WarmUp(1, 2)).values.tolist() == [1, 2, 4, 5]
    assert several.find_warm_up(TRAITS["density"]).iterations == 0  # an experiment whose iterations are steps


def test_it_is_flagged_left_out_of_estimates_and_kept_in_the_data(tmp_path):
    # The synthetic warm-up is a third longer: here the suite does not state it.
    recipe = replace(QUICK, blocks=8, iterations=6, warmups=1, seed=2)
    write_run(tmp_path / "stated", recipe)
    lines = (tmp_path / "stated/samples.jsonl").read_bytes().replace(b'"warmup":true', b'"warmup":false')
    write_run(tmp_path / "found", recipe)
    (tmp_path / "found/samples.jsonl").write_bytes(lines)
    stated, found = (analyse(load_run(tmp_path / name)) for name in ("stated", "found"))
    assert (stated.warmup_found, found.warmup_samples) == (0, 0)
    assert found.warmup_found == stated.warmup_samples
    assert len(found.run.samples) == len(stated.run.samples)
    leading = [row for subject in found.subjects for row in subject.rows if row.is_leading]
    assert [row.metric.name for row in leading] == ["boot.total", "events", "read.iops", "operation.time"]
    assert [cell.warm_up.iterations for row in leading for cell in row.cells] == [0] * 3 + [1] * 9
    ratios = [
        [msgspec.structs.replace(one, q_value=None) for *_, one in analysis.comparisons] for analysis in (stated, found)
    ]
    assert ratios[0] == ratios[1]
    told = [caveat.text for caveat in caveats(found) if caveat.code == "warm-up"]
    assert len(told) == 3
    assert "the first iteration of each instance turned out to be warm-up" in told[0]


def test_both_sides_of_a_ratio_lose_the_same_iterations():
    """The same transient on both sides, so weak that it is mostly found on one alone, is no difference."""
    random, found_on_one, inside = np.random.default_rng(9), 0, 0
    for _ in range(120):
        sides, warm_ups = {}, {}
        for name in ("native", "bare-metal"):
            values, instances, numbers = cell(random, 8, 4, start=(0.9,))
            sides[name] = CellSamples(values, instances, instances, numbers)
            warm_ups[name] = sides[name].find_warm_up(TRAITS["steady"])
        found_on_one += len({one.iterations > 0 for one in warm_ups.values()}) == 2
        shared = shared_warm_up(warm_ups)
        assert len({(one.iterations, one.first_settled) for one in shared.values()}) == 1
        ours, theirs = (sides[name].after(shared[name]).by_block() for name in sides)
        compared = compare(ours, theirs, direction=Direction.LOWER)
        inside += compared.low <= 1 <= compared.high
    assert found_on_one >= 20
    assert inside / 120 >= 0.95 - 2 * (0.05 * 0.95 / 120) ** 0.5
