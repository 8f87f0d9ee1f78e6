"""Runs that an earlier version measured and reported: their reports hold the same numbers today, to the last digit.

``tests/data/runs/NAME`` is a run directory without its raw outputs; ``expected/`` in it holds what the version that
made it wrote. Wording may change; a number that was printed and is no longer there, or has another value, fails.
"""

import csv
import gzip
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from lxml import etree
from typer.testing import CliRunner

from tare.bench.cli.main import app
from tests.written import (
    Page,
    leaves,
    markdown_rows,
    numbers,
    quantities,
    result_key,
    rows_of_numbers,
    text_rows,
)

STORED = Path(__file__).parent.parent / "data" / "runs"
RUNS = sorted(path.name for path in STORED.iterdir())
SUFFIX = {"text": "txt", "html": "html", "markdown": "md", "json": "json", "junit": "xml", "openmetrics": "om"}
NAMES = frozenset(("experiment", "workload", "metric", "unit", "direction", "backend", "verdict", "verdict_adjusted",
                   "source", "status", "run", "suite", "baseline", "started_utc", "ended_utc"))  # fmt: skip
"""Members of the JSON report whose texts are names: they stay as they are. Other texts keep their numbers."""
COMMANDS = {
    "compare-backends": ("quickstart", "compare", "--backends", "native", "vm"),
    "plan-here": ("density", "plan"),
    "plan-wanted": (
        "density", "plan", "--cpus", "64", "--memory", "512GiB", "--disk", "4TiB", "--overcommit", "cpu=4",
        "--instances", "5000",
    ),
}  # fmt: skip
"""What was written by which run and command: the name of the stored output, without its suffix."""


def report_to(output, run, form):
    """Write a report as the command line does."""
    result = CliRunner().invoke(app, ["report", str(run), "--format", form, "-o", str(output)], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def unpacked(name, folder):
    """The run directory ``name``, as the version that made it left it."""
    run = folder / name
    run.mkdir()
    for file in (STORED / name).iterdir():
        if file.suffix == ".gz":
            (run / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        elif file.is_file():
            shutil.copy(file, run / file.name)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: unpacked(name, folder) for name in RUNS}


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    """Writes a form of a report of a run once, and gives its text."""
    folder = tmp_path_factory.mktemp("written")

    def write(name, form):
        path = folder / f"{name}.{form}"
        if not path.exists():
            report_to(path, runs[name], form)
        return path.read_text("utf-8")

    return write


def expected(name, file):
    return gzip.decompress((STORED / name / "expected" / f"{file}.gz").read_bytes()).decode()


def assert_kept(before, after, what):
    """Nothing that was printed is missing: ``before`` and ``after`` count what is there."""
    missing = before - after
    assert not missing, f"{what}: {len(missing)} of {len(before)} are missing, e.g. {list(missing.items())[:5]}"
    assert before, f"{what}: nothing was compared"


def same(before, after):
    """Equal; floats may differ where the order of sums in a linear algebra library shows."""
    if isinstance(before, float) and isinstance(after, (int, float)):
        return math.isclose(before, after, rel_tol=1e-10) or (math.isnan(before) and math.isnan(after))
    return before == after and type(before) is type(after)


def assert_same_leaves(before, after, where):
    now = dict(leaves(after))
    for place, value in leaves(before):
        assert place in now, (where, place)
        if isinstance(value, str) and place[-1] not in NAMES:
            assert numbers(value) == numbers(str(now[place])), (where, place)
        else:
            assert same(value, now[place]), (where, place, value, now[place])


@pytest.mark.parametrize("name", RUNS)
def test_json_has_every_number(written, name):
    before, after = json.loads(expected(name, "report.json")), json.loads(written(name, "json"))
    results = {result_key(one): one for one in after.pop("results")}
    was = before.pop("results")
    assert len(was) == len(results)
    for one in was:
        assert_same_leaves(one, results[result_key(one)], result_key(one))
    del before["directory"]
    assert_same_leaves(before, after, "report")


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("form", "rows"), [("text", text_rows), ("markdown", markdown_rows)])
def test_tables_and_sentences_have_every_number(written, name, form, rows):
    before, after = expected(name, f"report.{SUFFIX[form]}"), written(name, form)
    assert_kept(rows_of_numbers(rows(before)), rows_of_numbers(rows(after)), "rows")
    assert_kept(quantities(before), quantities(after), "quantities")


@pytest.mark.parametrize("name", RUNS)
def test_the_page_has_every_number(written, name):
    before, after = Page(expected(name, "report.html")), Page(written(name, "html"))
    assert_kept(rows_of_numbers(before.rows), rows_of_numbers(after.rows), "rows")
    assert_kept(Counter(before.exact), Counter(after.exact), "values of the downloads")
    assert_kept(quantities(before.text), quantities(after.text), "quantities")


@pytest.mark.parametrize("name", RUNS)
def test_junit_has_every_number(written, name):
    def cases(text):
        found = {}
        for suite in etree.fromstring(text.encode()).iter("testsuite"):
            for case in suite.iter("testcase"):
                outcome = tuple(child.tag for child in case)
                found[suite.get("name"), case.get("name")] = (float(case.get("time")), outcome)
            found[suite.get("name"),] = tuple(suite.get(one) for one in ("tests", "failures", "errors", "skipped"))
        return found

    before, after = expected(name, "report.xml"), written(name, "junit")
    assert cases(before) == cases(after)
    assert_kept(quantities(before), quantities(after), "quantities")


@pytest.mark.parametrize("name", RUNS)
def test_openmetrics_has_every_sample(written, name):
    def samples(text):
        lines = [line for line in text.splitlines() if line and not line.startswith(("#", "tare_run_info"))]
        return Counter(re.sub(r'(reason|label)="(?:[^"\\]|\\.)*"', "", line) for line in lines)

    assert_kept(samples(expected(name, "report.om")), samples(written(name, "openmetrics")), "samples")


@pytest.mark.parametrize("name", RUNS)
def test_csv_and_parquet_are_every_sample(runs, name, tmp_path):
    stored = [json.loads(line) for line in (runs[name] / "samples.jsonl").read_text().splitlines()]
    report_to(tmp_path / "samples.csv", runs[name], "csv")
    report_to(tmp_path / "samples.parquet", runs[name], "parquet")
    with (tmp_path / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    frame = pd.read_parquet(tmp_path / "samples.parquet").to_dict("records")
    assert len(rows) == len(stored) == len(frame)
    for sample, row, record in zip(stored, rows, frame, strict=True):
        params = sample.pop("params")
        assert json.loads(row["params"]) == json.loads(record["params"]) == params
        for column, value in sample.items():
            assert record[column] == value
            assert float(row[column]) == value if column == "value" else row[column] == str(value)


def test_pyperf_has_every_value(written):
    def values(text):
        return {
            bench["metadata"]["name"]: [value for run in bench["runs"] for value in run.get("values", ())]
            for bench in json.loads(text)["benchmarks"]
        }

    assert values(written("quickstart", "pyperf")) == values(expected("quickstart", "report.pyperf.json"))


@pytest.mark.parametrize("suffix", ["json", "md", "txt"])
@pytest.mark.parametrize("name", COMMANDS)
def test_comparisons_and_plans_have_every_number(runs, name, suffix, tmp_path, monkeypatch):
    run, command, *options = COMMANDS[name]
    form = {"json": "json", "md": "markdown", "txt": "table" if command == "plan" else "text"}[suffix]
    monkeypatch.chdir(runs[run].parent)  # the outputs name the run as the command line does
    arguments = [command, run, *options, "--format", form, "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    before, after = expected(run, f"{name}.{suffix}"), (tmp_path / "out").read_text("utf-8")
    if suffix == "json":
        assert_same_leaves(json.loads(before), json.loads(after), name)
        return
    rows = markdown_rows if suffix == "md" else text_rows
    assert_kept(rows_of_numbers(rows(before)), rows_of_numbers(rows(after)), "rows")
    assert_kept(quantities(before), quantities(after), "quantities")


def test_density_says_how_many_there_were_and_why_no_more(runs, written):
    notes = [json.loads(line)["details"] for line in (runs["density"] / "events.jsonl").read_text().splitlines()]
    ends = [note for note in notes if note.get("code") == "density-stop"]
    most = max(note["population"] for note in ends)
    assert {note["reason"] for note in ends if note["population"] == most} == {"count"}
    (finding,) = [one for one in json.loads(written("density", "json"))["findings"] if "one more instance" in one]
    assert f"{most} (as many as were asked for)" in finding
