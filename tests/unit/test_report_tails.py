"""Distributions that tools counted: pooled exactly, told as far as enough was counted, as text and picture."""

import json
from collections import Counter

import msgspec
import pytest

from tare.bench.analysis import analyse
from tare.bench.model import Histogram
from tare.bench.records import HistogramRecord
from tare.bench.store import HISTOGRAMS, load_run
from tare.bench.units import Unit
from tare.reports.blocks import block_views
from tare.reports.figures import quantile_of
from tare.reports.html import render_page
from tests.synthetic import QUICK, SUBJECTS, write_run

FIO = SUBJECTS[1]


def test_a_quantile_is_the_edge_of_its_bucket_and_none_where_too_little_lies_beyond():
    counts = Counter({1e-6: 500, 2e-6: 490, 5e-3: 10})
    assert quantile_of(counts, 0.5) == 1e-6
    assert quantile_of(counts, 0.501) == 2e-6
    assert quantile_of(counts, 0.99) == 2e-6
    assert quantile_of(counts, 0.999) is None  # one lies beyond
    assert quantile_of(Counter({1.0: 9}), 0.0) is None


@pytest.fixture
def run(tmp_path):
    path = write_run(tmp_path / "run", QUICK)
    records = []
    for sample in load_run(path).samples:
        if sample.workload == FIO.workload and sample.metric == "read.iops":
            slow = 1000 if sample.backend == "vm" else 1
            histogram = Histogram("read.latency", Unit.SECOND, (1e-5 * slow, 1e-3 * slow), (990, 10))
            records.append(
                HistogramRecord(
                    **{name: getattr(sample, name) for name in ("instance", "block", "experiment", "workload")},
                    **{name: getattr(sample, name) for name in ("params", "backend", "iteration", "warmup")},
                    histogram=histogram,
                )
            )
    (path / HISTOGRAMS).write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    return path, records


def test_measured_iterations_are_added_up_by_backend(run):
    path, records = run
    (tail,) = [block.tail for block in block_views(analyse(load_run(path))) if block.tail is not None]
    expected = Counter(record.backend for record in records if not record.warmup)
    assert {line.backend.name: line.counted for line in tail.lines} == {
        name: f"{1000 * count:,}"
        for name, count in expected.items()
        if name != "vm"  # it is emulated
    }
    assert any(record.warmup for record in records), "some have to be left out"
    native = next(line for line in tail.lines if line.backend.name == "native")
    assert native.percentiles[:3] == ["10.0 µs", "10.0 µs", "10.0 µs"]
    assert native.largest == "1.00 ms"
    drawn = {(row["b"], row["p"]): row["v"] for row in tail.chart.spec["datasets"]["tail"]}
    assert len(drawn) == sum(len([one for one in line.percentiles if one != "–"]) for line in tail.lines)


def test_the_page_shows_them_and_a_run_without_any_has_none(run, tmp_path):
    path, _ = run
    page = render_page(analyse(load_run(path)))
    assert "all that the tool counted" in page
    assert "Distribution of Read latency" in page
    other = write_run(tmp_path / "other", QUICK)
    assert "all that the tool counted" not in render_page(analyse(load_run(other)))


def test_a_distribution_with_a_hostile_name_is_text(run):
    path, records = run
    content = json.loads(msgspec.json.encode(records[0]))
    content["histogram"]["name"] = "<script>alert(1)</script>"
    (path / HISTOGRAMS).write_text(json.dumps({**content, "warmup": False}) + "\n")
    assert "<script>alert(1)" not in render_page(analyse(load_run(path)))
