"""The ready suites: each can be read with what tare itself has, and says what it is for and how long it takes."""

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tare.bench.analysis import RunResults
from tare.bench.records import Sample
from tare.bench.registry import find_backends, find_reporters, find_workloads
from tare.bench.store import load_run
from tare.bench.suite import read_suite
from tests.synthetic import QUICK, write_run

SUITES = sorted((Path(__file__).parents[2] / "suites").glob("*.toml"))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_ready_suite_can_be_read_and_says_what_it_is_for(path):
    suite = read_suite(path, find_backends(), find_workloads())
    assert suite.file.suite.name == path.stem
    assert suite.file.suite.description.endswith("?"), "the question that its report answers"
    comment = "".join(re.findall(r"\A((?:#.*\n)+)", path.read_text("utf-8")))
    assert re.search("minutes?|hour", comment), "how long it takes"


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_form_of_report_is_made_of_what_a_ready_suite_measures(path, tmp_path):
    suite = read_suite(path, find_backends(), find_workloads())
    run = write_run(tmp_path / "run", QUICK)
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    manifest["suite"] = suite.file.written()
    manifest["metrics"] = {
        f"{subject.owner}/{metric.name}": msgspec.to_builtins(metric)
        for subject in suite.scenarios
        for metric in subject.metrics
    }
    (run / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (run / "samples.jsonl").write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in samples_of(suite)))
    for reporter in find_reporters().loaded.values():
        if reporter.name == "pyperf" and all(subject.experiment.name != "steady" for subject in suite.scenarios):
            continue  # it says that there is nothing for it
        reporter().write(RunResults(load_run(run)), tmp_path / f"report{reporter.suffix}")
        assert (tmp_path / f"report{reporter.suffix}").stat().st_size > 500


def samples_of(suite):
    """Two blocks of the first cell of each workload in each experiment, every metric of it, two values each."""
    random = np.random.default_rng(7)
    firsts = {(subject.experiment, subject.workload): subject for subject in reversed(suite.scenarios)}
    for place, subject in enumerate(firsts.values()):
        for block, backend in ((block, backend) for block in range(2) for backend in ("bare-metal", "native", "vm")):
            cell = subject.cell(backend)
            for metric in subject.metrics:
                for number in (1, 2):
                    yield Sample(
                        *(f"{place}-{block}-{backend}", block, cell.experiment, cell.workload, cell.params, backend),
                        *(metric.name, metric.unit, float(random.lognormal(sigma=0.1)), number),
                        warmup=False,
                    )
