"""The same estimates from another implementation: pandas for the medians, scipy for the intervals; within 1 %."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tare.bench.analysis import analyse
from tare.bench.store import load_run
from tests.recompute_report import Centre
from tests.synthetic import QUICK, write_run


def logs_of_ratios(path, metric: str, backend: str) -> np.ndarray:
    """One log ratio a block, from the lines of the run alone."""
    lines = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    frame = pd.DataFrame(lines)
    frame = frame[(frame["metric"] == metric) & ~frame["warmup"]]
    by_instance = frame.groupby(["backend", "block", "instance"])["value"].median()
    by_block = by_instance.groupby(["backend", "block"]).median()
    return np.log(by_block[backend] / by_block["bare-metal"]).dropna().to_numpy()


def compared(path, metric: str, backend: str):
    return next(
        found
        for _, row, cell, found in analyse(load_run(path)).comparisons
        if (row.metric.name, cell.backend.name) == (metric, backend)
    )


@pytest.mark.parametrize("metric", ["read.iops", "boot.total", "events"])
@pytest.mark.parametrize("blocks", [4, 7, 24])
def test_intervals(tmp_path, metric, blocks):
    path = write_run(tmp_path / "run", replace(QUICK, blocks=blocks, instances=2, seed=3))
    logs = logs_of_ratios(path, metric, "vm")
    theirs, found = Centre.of(logs.tolist()), compared(path, metric, "vm")
    assert found.dependence.lag1 == 0
    assert found.ratio == pytest.approx(stats.gmean(np.exp(logs)), rel=1e-9)
    assert (found.ratio, found.low, found.high) == pytest.approx((theirs.value, theirs.low, theirs.high), rel=1e-9)
    assert found.p_value == pytest.approx(theirs.p_value, rel=1e-6)


def test_a_bootstrap_over_all_levels_has_the_same_estimate_and_holds_ours(tmp_path):
    """Blocks, then instances, then iterations: another statistic of the same data, wider by what it counts twice."""
    path = write_run(tmp_path / "run", replace(QUICK, blocks=10, instances=2, iterations=5, warmups=0, seed=3))
    lines = pd.DataFrame([json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()])
    lines = lines[lines["metric"] == "read.iops"]
    sides = [
        np.stack(
            [
                np.stack([one["value"].to_numpy() for _, one in block.groupby("instance")])
                for _, block in lines[lines["backend"] == backend].groupby("block")
            ]
        )
        for backend in ("vm", "bare-metal")
    ]
    random = np.random.default_rng(4)
    centres = []
    for _ in range(1000):
        block = random.integers(0, 10, 10)
        drawn = []
        for side in sides:
            instance = random.integers(0, 2, (10, 2))
            iteration = random.integers(0, 5, (10, 2, 5))
            values = side[block[:, None, None], instance[..., None], iteration]
            drawn.append(np.median(np.median(values, axis=2), axis=1))
        centres.append(np.log(drawn[0] / drawn[1]).mean())
    found = compared(path, "read.iops", "vm")
    assert found.ratio == pytest.approx(np.exp(np.mean(centres)), rel=0.01)
    low, high = np.exp(np.quantile(centres, (0.025, 0.975)))
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.01)


def test_a_quantile(tmp_path):
    path = write_run(tmp_path / "run", replace(QUICK, blocks=6, iterations=13, warmups=1, seed=5))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["suite"] |= {
        "metric": {"fio/command.duration": {"margin": 0.1, "quantile": [0.9]}, "events": {"quantile": 0.99}},
        "report": {"margin": 0.03},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    frame = pd.DataFrame([json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()])
    frame = frame[(frame["workload"] == "fio") & (frame["metric"] == "command.duration") & ~frame["warmup"]]
    quantiles = frame.groupby(["backend", "block"])["value"].agg(
        lambda values: np.quantile(values, 0.9, method="median_unbiased")
    )
    logs = np.log(quantiles["vm"] / quantiles["bare-metal"]).to_numpy()
    analysis = analyse(load_run(path))
    rows = [row for one in analysis.subjects if one.workload == "fio" for row in one.rows]
    (row,) = [row for row in rows if row.quantile is not None]
    assert (row.metric.name, row.quantile) == ("command.duration p90", 0.9)
    found = row.cells[2].comparison
    theirs = Centre.of(logs.tolist())
    assert (found.ratio, found.low, found.high) == pytest.approx((theirs.value, theirs.low, theirs.high))
    assert {row.cells[1].comparison.margin for row in rows} == {0.1, 0.03}
    assert analysis.margin == 0.03
    # 12 iterations a block are far too few for p99: said, and not estimated.
    assert not [row for one in analysis.subjects for row in one.rows if row.metric.name == "events p99"]
    assert "sysbench-cpu: events p99 needs 100 iterations in a block; vm has 12" in analysis.notes
