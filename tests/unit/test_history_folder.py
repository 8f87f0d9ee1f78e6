"""What else happens to a folder of runs: pruning, and what other tools measured."""

import datetime as dt
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tare.bench.cli.gate import app as gate_app
from tare.bench.cli.history import app
from tare.bench.errors import ExitCode, SuiteError
from tare.bench.history.acks import AckFile
from tare.bench.history.findings import Cause
from tare.bench.history.gate import find_run, judge
from tare.bench.history.index import FOLDER, INDEX, open_history, update_history
from tare.bench.history.prune import prune, read_keep
from tests.nights import FIRST, Night, Plan, write_nights

SMALL = Plan(subjects=("work-0",), backends=("bare-metal", "native"), blocks=3)


def tare(*words: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


def rows(runs: Path) -> list[Any]:
    with open_history(runs).start_query() as connection:
        return connection.execute(
            "SELECT run, series, medians, level, ratio FROM cells ORDER BY run, series"
        ).fetchall()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for path in write_nights(tmp_path / "runs", [Night()] * 4, plan=SMALL):
        (path / "raw" / "b00").mkdir(parents=True)
        (path / "raw" / "b00" / "x.gz").write_bytes(b"x" * 1000)
        (path / "samples.parquet").write_bytes(b"x" * 50)
    update_history(tmp_path / "runs")
    return tmp_path / "runs"


def test_pruning_takes_raw_outputs_first_and_medians_never(runs: Path) -> None:
    before = rows(runs)
    keep = read_keep({"raw": "1d", "samples": "2d"})
    now = FIRST + dt.timedelta(days=3, hours=1)
    planned = prune(open_history(runs), keep, now=now, only_say=True)
    assert all((path / "raw").exists() for path in runs.glob("2026*"))
    done = prune(open_history(runs), keep, now=now)
    stages = {(one.run[6:8], one.stage) for one in planned}
    assert stages == {("01", "raw"), ("01", "samples"), ("02", "raw"), ("02", "samples"), ("03", "raw")}
    assert [one.size for one in planned] == [one.size for one in done]
    assert {one.run for one in done} == {one.run for one in planned}
    left = {path.name: sorted(one.name for one in path.iterdir()) for path in sorted(runs.glob("2026*"))}
    assert "raw" in left["20260104-nightly"]
    assert "raw" not in left["20260103-nightly"]
    assert "samples.jsonl" in left["20260103-nightly"]
    assert left["20260101-nightly"] == ["events.jsonl", "manifest.json", "medians.json"]
    assert rows(runs) == before
    assert update_history(runs).added == ()
    assert rows(runs) == before
    shutil.rmtree(runs / FOLDER)
    update_history(runs)
    assert rows(runs) == before


def test_pruning_from_the_command_line(runs: Path) -> None:
    said = tare("prune", runs, "--keep", "raw=1d", "--dry-run")
    assert said.exit_code == 0, said.output
    assert said.stdout.count("would remove raw of") == 4
    assert tare("prune", runs, "--keep", "raw=1d").stdout.count("removed raw of") == 4
    assert "0 B in all" in tare("prune", runs, "--keep", "raw=1d").stdout
    for wrong in ("medians=1d", "raw=soon", "raw=-1d", "raw"):
        assert tare("prune", runs, "--keep", wrong).exit_code == ExitCode.BAD_INPUT
    with pytest.raises(SuiteError, match="nothing that can go"):
        read_keep({"medians": "1d"})


def hyperfine(times: list[float]) -> dict[str, Any]:
    return {"results": [{"command": "ls", "parameters": {"n": "3"}, "times": times, "mean": 1.0}]}


GOOGLE = {
    "context": {"date": "2026-02-03T04:05:06+01:00", "host_name": "x"},
    "benchmarks": [
        {"name": "BM_x/8", "run_name": "BM_x/8", "run_type": "iteration", "real_time": 2.0, "time_unit": "ms"},
        {"name": "BM_x/8", "run_name": "BM_x/8", "run_type": "iteration", "real_time": 4.0, "time_unit": "ms"},
        {"name": "BM_x/8_mean", "run_name": "BM_x/8", "run_type": "aggregate", "real_time": 3.0, "time_unit": "ms"},
    ],
}


def test_other_tools_files_become_runs(tmp_path: Path) -> None:
    script = (
        "import pyperf; runs = [pyperf.Run([1.0, 2.0, 4.0], metadata={'name': 'sort'}, collect_metadata=False) "
        "for _ in range(2)]; pyperf.BenchmarkSuite([pyperf.Benchmark(runs)]).dump('pyperf.json')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    (tmp_path / "hyperfine.json").write_text(json.dumps(hyperfine([0.5, 0.25])))
    (tmp_path / "google.json").write_text(json.dumps(GOOGLE))
    files = [tmp_path / f"{name}.json" for name in ("pyperf", "hyperfine", "google")]
    done = tare("import", *files, "--runs", tmp_path / "runs", "--label", "commit=abc")
    assert done.exit_code == 0, done.output
    with open_history(tmp_path / "runs").start_query() as connection:
        found = connection.execute("SELECT backend, workload, unit, medians FROM cells ORDER BY backend").fetchall()
    assert found == [
        ("Google Benchmark", "BM_x/8", "s", [0.002, 0.004]),
        ("hyperfine", "ls n 3", "s", [0.5, 0.25]),
        ("pyperf", "sort", "s", [2.0, 2.0]),
    ]
    entries = {one.started_utc for one in open_history(tmp_path / "runs").entries}
    assert "2026-02-03T03:05:06+00:00" in entries
    assert tare("import", files[0], "--runs", tmp_path / "runs").exit_code == 0
    assert len(open_history(tmp_path / "runs").entries) == 3
    (tmp_path / "runs" / FOLDER / INDEX).unlink()
    assert len(update_history(tmp_path / "runs").added) == 3


def test_a_change_of_foreign_series_is_told_and_called_nobodys(tmp_path: Path) -> None:
    for night in range(24):
        slow = 1.0 if night < 20 else 1.2
        jitter = 1 + 0.01 * ((night * 7) % 5 - 2)
        (tmp_path / "x.json").write_text(json.dumps(hyperfine([slow * jitter, slow * jitter * 1.001])))
        started = (FIRST + dt.timedelta(days=night)).isoformat()
        done = tare("import", tmp_path / "x.json", "--runs", tmp_path / "runs", "--started", started)
        assert done.exit_code == 0, done.output
    history = open_history(tmp_path / "runs")
    judgement = judge(history, find_run(history, None), AckFile())
    (finding,) = judgement.findings
    assert (finding.cause, finding.worse) == (Cause.UNKNOWN, True)
    assert finding.shift.ratio == pytest.approx(1.2, abs=0.03)
    assert CliRunner().invoke(gate_app, ["--runs", str(tmp_path / "runs")]).exit_code == ExitCode.OK


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "JSON of no tool"),
        ('{"results": [{"command": "x"}]}', "looks like hyperfine's JSON and cannot be read"),
        ('{"results": []}', "holds no value"),
        ('{"context": {}, "benchmarks": [{"name": "x", "real_time": 1, "time_unit": "weeks"}]}', "cannot be read"),
        ('{"version": "1.0", "benchmarks": [{"runs": 7}]}', "looks like pyperf's"),
    ],
)
def test_a_file_that_is_no_result_is_one_message(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    done = tare("import", tmp_path / "x.json", "--runs", tmp_path / "runs")
    assert done.exit_code == ExitCode.BAD_INPUT
    assert said in re.sub(r"\s+", " ", done.stderr)
    assert "Traceback" not in done.stderr
