"""Runs that an earlier version measured and reported: their reports hold the same numbers today, to the last digit.

``tests/data/runs/NAME`` is a run directory without its raw outputs; ``expected/`` in it holds what the version that
made it wrote. Wording may change; a number that was printed and is no longer there, or has another value, fails.
"""

import csv
import gzip
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from lxml import etree
from typer.testing import CliRunner

from tare.bench.analysis import analyse
from tare.bench.cli.main import app
from tare.bench.store import load_run
from tare.reports.picture import panel_views
from tests.written import (
    Page,
    leaves,
    markdown_rows,
    numbers,
    quantities,
    result_key,
    rows_of_numbers,
    says_change,
    text_rows,
)

STORED = Path(__file__).parent.parent / "data" / "runs"
RUNS = sorted(path.name for path in STORED.iterdir())
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
        return math.isclose(before, after, rel_tol=1e-9) or (math.isnan(before) and math.isnan(after))
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
        del one["label"]
        assert_same_leaves(one, results[result_key(one)], result_key(one))
    for gone in ("directory", "findings", "summary_version", "backends", "caveats"):
        del before[gone]
    assert_same_leaves(before, after, "report")


def compared(name):
    """What the earlier version found of every backend that is compared and not emulated: its own numbers."""
    report = json.loads(expected(name, "report.json"))
    apart = {one for one, about in report["backends"].items() if about["facts"].get("accel") == "tcg"}
    return [
        one
        for one in report["results"]
        if one["backend"] not in apart
        and one["comparison"]
        and one["comparison"]["low"] is not None
        and one["comparison"]["high"] < 10_000 * one["comparison"]["low"]  # the others are said to be too wide
    ]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("form", "rows"), [("text", text_rows), ("markdown", markdown_rows)])
def test_tables_have_every_difference(written, name, form, rows):
    """The numbers of the earlier version, as this one prints them."""
    lines = list(rows(written(name, form)))
    found = compared(name)
    assert found
    for one in found:
        told = one["comparison"]
        wanted = [told["ratio"], told["low"], told["high"]]
        assert any(has_difference(cells, wanted) for cells in lines), one["metric"]


def has_difference(cells, wanted):
    """Whether two neighbouring cells are a difference and its interval."""
    for first, second in itertools.pairwise(cells):
        texts = [first, *second.split(" to ")]
        if len(texts) == len(wanted) and all(map(says_change, texts, wanted)):
            return True
    return False


@pytest.mark.parametrize("name", RUNS)
def test_the_page_has_every_number(written, name):
    page = Page(written(name, "html"))
    shown = {key: (float(value), text) for key, value, text in page.data}
    report = {one["key"]: one for one in json.loads(written(name, "json"))["results"]}
    for one in compared(name):
        own = next(key for key, now in report.items() if result_key(now) == result_key(one))
        value, text = shown[f"{own}#ratio"]
        assert value == pytest.approx(one["comparison"]["ratio"], rel=1e-10)
        assert says_change(text, value) or " " in text
        assert shown[f"{own}#value"][0] == pytest.approx(one["value"], rel=1e-10)


@pytest.mark.parametrize("name", RUNS)
def test_junit_has_every_case(written, name):
    def cases(text, names):
        found = {}
        for suite in etree.fromstring(text.encode()).iter("testsuite"):
            if suite.get("name") != "grade":
                for case in suite.iter("testcase"):
                    outcome = tuple(child.tag for child in case)
                    backend = names.get(case.get("name"), case.get("name"))
                    found[suite.get("name"), backend] = (float(case.get("time")), outcome)
        return found

    labels = {about["label"]: one for one, about in json.loads(written(name, "json"))["backends"].items()}
    assert cases(expected(name, "report.xml"), {}) == cases(written(name, "junit"), labels)


@pytest.mark.parametrize("name", RUNS)
def test_openmetrics_has_every_sample(written, name):
    def samples(text):
        lines = [line for line in text.splitlines() if line and not line.startswith(("#", "tare_run_info"))]
        newer = r',(?:acceleration|param_\w+)="(?:[^"\\]|\\.)*"'
        found = {}
        for line in lines:
            key, _, value = re.sub(rf'(reason|label)="(?:[^"\\]|\\.)*"|{newer}', "", line).rpartition(" ")
            found.setdefault(key, []).append(float(value))
        return {key: sorted(values) for key, values in found.items()}

    before, after = samples(expected(name, "report.om")), samples(written(name, "openmetrics"))
    assert len(before) > 500
    for key, values in before.items():
        assert all(any(same(value, other) for other in after.get(key, ())) for value in values), (key, values)


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
        assert row["acceleration"] == record["acceleration"] == ("tcg" if sample["backend"] == "vm" else "")
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
    after = (tmp_path / "out").read_text("utf-8")
    if suffix == "json":
        was = json.loads(expected(run, f"{name}.{suffix}"))
        was.pop("tally", None)
        was.pop("notes", None)
        was.pop("summary_version", None)
        for one in was.get("lines", ()):
            one.pop("metric")
        assert_same_leaves(was, json.loads(after), name)
        return
    if command == "compare":
        lines = list((markdown_rows if suffix == "md" else text_rows)(after))
        told = [one["found"] for one in json.loads(expected(run, f"{name}.json"))["lines"] if one["found"]["low"]]
        assert told
        for one in told:
            wanted = [one["ratio"], one["low"], one["high"]]
            assert any(has_difference(cells, wanted) for cells in lines), one
        return
    before, rows = expected(run, f"{name}.{suffix}"), markdown_rows if suffix == "md" else text_rows
    beyond = {re.sub(r" \\?\*$", "", cell) for row in rows(before) for cell in row if cell.endswith("*")}
    if suffix == "md":  # in a terminal the columns, and so the lines, are as wide as what is in them
        answered = [row for row in rows(before) if not any(cell.endswith("*") for cell in row)]
        assert_kept(rows_of_numbers(answered), rows_of_numbers(rows(after)), "rows")
        assert_kept(quantities(before), quantities(after), "quantities")
    said = "".join(after.split())
    assert all(number in said for number in beyond)
    assert bool(beyond) is ("notanswered" in said), "what is no answer is shown as that"


def test_density_says_how_many_there_were_and_why_no_more(runs, written):
    notes = [json.loads(line)["details"] for line in (runs["density"] / "events.jsonl").read_text().splitlines()]
    ends = [note for note in notes if note.get("code") == "density-stop"]
    most = max(note["population"] for note in ends)
    assert {note["reason"] for note in ends if note["population"] == most} == {"count"}
    said = json.loads(written("density", "json"))["headline"]
    assert said.startswith(f"How many fit was not measured: {most} ran, as many as were asked for")
    assert "(idle instances: what your workload needs is not in it)" in said
    analysis = analyse(load_run(runs["density"]))
    (memory,) = (panel for panel in panel_views(analysis) if panel.kind == "memory")
    by_label = {row.name: row for _, rows in memory.groups for row in rows}
    base = by_label.pop(analysis.baseline.label)
    assert by_label
    for row in by_label.values():
        extra = float(re.fullmatch(r"(\d+) KiB more than .*", row.why)[1]) * 1024
        assert extra == pytest.approx(row.exact - base.exact, rel=0.05)
        assert row.why.split(" than ")[0].removesuffix(" more") in said
    (next_to,) = (panel for panel in panel_views(analysis) if panel.kind == "neighbours")
    assert {row.detail for _, rows in next_to.groups for row in rows} == {"neighbours that create processes"}
    hollow = [row for panel in panel_views(analysis) for _, rows in panel.groups for row in rows if row.is_open]
    assert all("could not tell" in f"{row.said} {row.why}" for row in hollow)
