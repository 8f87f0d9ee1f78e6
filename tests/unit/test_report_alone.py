"""A run of the baseline alone has values with intervals, and its own noise floor, in every form that is read."""

import json
from dataclasses import replace

from tare.bench.analysis import RunResults
from tare.bench.store import load_run
from tare.reports.summary_json import JsonReporter
from tare.reports.text import TextReporter
from tests.synthetic import QUICK, write_run


def test_the_baseline_alone_is_reported_with_its_values(tmp_path):
    run = write_run(tmp_path / "run", replace(QUICK, backends=("bare-metal",), blocks=8))
    TextReporter().write(RunResults(load_run(run)), tmp_path / "report.txt")
    text = (tmp_path / "report.txt").read_text("utf-8")
    line = next(line for line in text.splitlines() if "reads per second" in line.lower())
    assert "–" in line  # its interval
    assert "detects differences" in text
    JsonReporter().write(RunResults(load_run(run)), tmp_path / "report.json")
    results = json.loads((tmp_path / "report.json").read_text("utf-8"))["results"]
    (found,) = [one for one in results if one["metric"] == "read.iops"]
    assert found["value_low"] < found["value"] < found["value_high"]
    assert found["comparison"] is None
    assert found["noise_floor"]["detectable"] > 1
