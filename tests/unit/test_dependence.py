"""Blocks that depend on one another: rarely found where they do not, and widened for and named where they do."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tare.bench.analysis import analyse
from tare.bench.stats.comparisons import centre_interval
from tare.bench.stats.dependence import LEVEL, UNTESTED, find_dependence, widening
from tare.bench.store import load_run
from tare.reports.caveats import caveats
from tests.synthetic import QUICK, write_run


def wandering(random, rho, shape):
    values = random.standard_normal(shape)
    for block in range(1, shape[-1]):
        values[..., block] = rho * values[..., block - 1] + math.sqrt(1 - rho**2) * values[..., block]
    return values


@pytest.mark.parametrize("series", [1, 6])
@pytest.mark.parametrize("blocks", [8, 25])
def test_independent_blocks_are_rarely_taken_for_dependent(series, blocks):
    random, runs = np.random.default_rng(1), 600
    found = [find_dependence(list(random.standard_normal((series, blocks)))).lag1 > 0 for _ in range(runs)]
    assert np.mean(found) <= LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / runs)
    assert np.mean(found) >= 0.02


def test_what_is_found_is_the_correlation_that_there_is():
    random = np.random.default_rng(2)
    found = [find_dependence(list(wandering(random, 0.6, (8, 12)))) for _ in range(60)]
    assert np.mean([one.lag1 > 0 for one in found]) >= 0.9
    assert np.mean([one.lag1 for one in found if one.lag1 > 0]) == pytest.approx(0.6, abs=0.08)
    assert all(one.is_tested for one in found)


def test_too_few_blocks_are_not_tested():
    assert find_dependence([np.arange(7.0)]) == UNTESTED, "however clearly they rise"
    assert find_dependence([]) == find_dependence([np.ones(20)]) == UNTESTED
    assert not find_dependence([np.random.default_rng(3).standard_normal(12)]).is_tested
    assert find_dependence([np.random.default_rng(3).standard_normal(40)]).is_tested


@pytest.mark.parametrize("rho", [0.3, 0.6])
def test_the_standard_error_is_that_of_such_values(rho):
    values = wandering(np.random.default_rng(4), rho, (40_000, 12))
    naive = math.sqrt(float(values.var(axis=1, ddof=1).mean()) / 12)
    wider, freedom = widening(12, rho)
    assert float(values.mean(axis=1).std()) == pytest.approx(naive * wider, rel=0.02)
    assert freedom == pytest.approx(12 * (1 - rho) / (1 + rho) - 1)
    assert widening(12, 0.0) == (1.0, 11.0)


def test_an_interval_of_blocks_that_rise_is_wider_and_says_it():
    values = 0.05 * wandering(np.random.default_rng(5), 0.9, (16,))
    found = centre_interval(values)
    assert found.dependence.lag1 > 0.3
    assert "neighbours correlated" in found.method
    shuffled = centre_interval(np.random.default_rng(6).permutation(values))
    assert shuffled.dependence.lag1 == 0
    assert found.high - found.low > 1.5 * (shuffled.high - shuffled.low)


def test_leading_metrics_are_tested_together_and_widen_every_comparison_of_their_backend(tmp_path):
    run = write_run(tmp_path / "run", replace(QUICK, blocks=10, noise=0.002, seed=4))
    wander = 0.05 * wandering(np.random.default_rng(14), 0.9, (4, 10))
    subjects: dict[str, int] = {}
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        number = subjects.setdefault(line["workload"], len(subjects))
        line["value"] *= math.exp(wander[number, line["block"]]) if line["backend"] == "native" else 1.0
    (run / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    analysis = analyse(load_run(run))
    together = analysis.dependence["native"]
    assert together.lag1 > 0.3
    assert analysis.dependence["vm"].lag1 == 0
    native = [found for *_, cell, found in analysis.comparisons if cell.backend.name == "native" and found.low]
    assert len(native) > 15
    assert all(found.dependence.lag1 >= together.lag1 for found in native)
    assert all("neighbours correlated" in found.method for found in native)
    (said,) = [one.text for one in caveats(analysis) if one.code == "blocks-dependent"]
    assert said.startswith("native: ratios of neighbouring blocks resemble each other (correlation 0.")


def test_a_short_run_says_that_its_blocks_were_not_tested(tmp_path):
    analysis = analyse(load_run(write_run(tmp_path / "run", replace(QUICK, blocks=4))))
    assert [one.weight for one in caveats(analysis) if one.code == "blocks-untested"] == [2]
    long = analyse(load_run(write_run(tmp_path / "long", replace(QUICK, blocks=20))))
    assert not [one for one in caveats(long) if one.code == "blocks-untested"]
