"""The forms that other programs read: each is accepted by a reader of that format, and hostile names stay text."""

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import prometheus_client.parser
import pyperf
import pytest
from lxml import etree
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tare.bench.analysis import GradeLevel, RunResults, analyse
from tare.bench.model import Direction, Metric
from tare.bench.records import RunStatus
from tare.bench.registry import find_reporters
from tare.bench.store import load_run
from tare.bench.units import Unit
from tare.reports.markdown import escape
from tests.synthetic import HOSTILE, QUICK, SUBJECTS, hostile_recipe, write_run

FORMS = ("csv", "junit", "markdown", "openmetrics")
SMALL = replace(QUICK, subjects=SUBJECTS[:1], iterations=3)
RECIPES = {
    "normal": SMALL,
    "failed": replace(SMALL, failing=("vm",)),
    "interrupted": replace(SMALL, blocks=2, status=RunStatus.INTERRUPTED, half_written=True),
    "no-baseline": replace(SMALL, backends=("native", "vm")),
    "one-block": replace(SMALL, blocks=1),
    "empty": replace(SMALL, failing=SMALL.backends),
    "hostile": hostile_recipe(),
}
STRICT = Path(__file__).parents[1] / "data" / "junit" / "strict.xsd"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_run(folder / name, recipe) for name, recipe in RECIPES.items()}


@pytest.fixture(scope="module")
def analyses(runs):
    return {name: analyse(load_run(run)) for name, run in runs.items()}


def written(form, run, folder):
    reporter = find_reporters().get(form)
    output = folder / f"out{reporter.suffix}"
    reporter().write(RunResults(load_run(run)), output)
    return output


@pytest.mark.parametrize("name", RECIPES)
def test_csv_is_every_sample(runs, name, tmp_path):
    with written("csv", runs[name], tmp_path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    samples = list(load_run(runs[name]).samples)
    assert [float(row["value"]) for row in rows] == [sample.value for sample in samples]
    assert [row["metric"] for row in rows] == [sample.metric for sample in samples]
    assert [json.loads(row["params"]) for row in rows] == [dict(sample.params) for sample in samples]
    assert Counter(row["warmup"] for row in rows)["True"] == sum(sample.warmup for sample in samples)


def test_csv_starts_no_formula(tmp_path):
    metric = replace(SUBJECTS[0], workload="=cmd|' /C calc'!A0")
    run = write_run(tmp_path / "run", replace(SMALL, blocks=1, subjects=(metric,)))
    with written("csv", run, tmp_path).open(encoding="utf-8", newline="") as file:
        names = {row["workload"] for row in csv.DictReader(file)}
    assert names == {"", "'=cmd|' /C calc'!A0"}


@pytest.mark.parametrize("name", RECIPES)
def test_junit_is_valid_and_counts_its_cases(runs, analyses, name, tmp_path):
    tree = etree.parse(written("junit", runs[name], tmp_path))
    etree.XMLSchema(etree.parse(STRICT)).assertValid(tree)
    for suite in tree.getroot():
        cases = suite.findall("testcase")
        assert int(suite.get("tests")) == len(cases)
        for kind in ("error", "failure", "skipped"):
            attribute = {"error": "errors", "failure": "failures"}.get(kind, kind)
            assert int(suite.get(attribute)) == len(suite.findall(f"testcase/{kind}"))
    failed = {event.cell for event in analyses[name].failures}
    unusable = analyses[name].grade.level is GradeLevel.NOT_USABLE
    assert len(tree.findall(".//error")) == len(failed) + unusable


def test_junit_of_a_run_fails_cells_that_failed_and_not_slow_backends(runs, tmp_path):
    tree = etree.parse(written("junit", runs["failed"], tmp_path))
    errors = {case.get("name"): case.find("error") for case in tree.iter("testcase")}
    assert errors["native"] is None
    assert errors["vm (tcg)"].get("message") == "the guest did not answer within 60 s (5 instances)"
    assert "Kernel panic" in errors["vm (tcg)"].text
    normal = etree.parse(written("junit", runs["normal"], tmp_path))
    assert not normal.findall(".//failure")
    assert "vm (tcg): 8." not in etree.tostring(normal, encoding="unicode").split("<system-out>")[0]
    assert any("slower" in said.text for said in normal.iter("system-out"))
    assert all(float(case.get("time")) > 0 for case in normal.iter("testcase") if case.get("classname") != "tare.grade")


@pytest.mark.parametrize("name", RECIPES)
def test_openmetrics_is_accepted_and_holds_every_estimate(runs, analyses, name, tmp_path):
    text = written("openmetrics", runs[name], tmp_path).read_text("utf-8")
    assert text.endswith("\n# EOF\n")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for family in families.values():
        assert not family.unit or family.name.endswith(f"_{family.unit}")
    centres = Counter(
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.labels.get("bound") == "centre" and family.name != "tare_comparison_ratio"
    )
    cells = [cell for one in analyses[name].subjects for row in one.rows for cell in row.cells]
    assert centres == Counter(cell.estimate.centre for cell in cells)
    verdicts = families["tare_verdict"].samples if "tare_verdict" in families else []
    assert sum(sample.value for sample in verdicts) == len(analyses[name].comparisons)


def test_openmetrics_keeps_units_apart_and_labels_whole(runs, tmp_path):
    text = written("openmetrics", runs["hostile"], tmp_path).read_text("utf-8")
    families = list(text_string_to_metric_families(text))
    labels = [sample.labels for family in families for sample in family.samples]
    assert HOSTILE[0] in {label.get("metric") for label in labels}
    assert any("{{ 7*7 }}" in label.get("params", "") for label in labels)
    normal = {
        family.name
        for family in text_string_to_metric_families(
            written("openmetrics", runs["normal"], tmp_path).read_text("utf-8")
        )
    }
    assert {"tare_boot_total_seconds", "tare_host_memory_peak_bytes", "tare_events_per_second"} <= normal


@pytest.mark.parametrize("name", ["normal", "hostile"])
def test_prometheus_own_text_parser_and_node_exporter_take_it_too(runs, name, tmp_path):
    text = written("openmetrics", runs[name], tmp_path).read_text("utf-8")
    by_text = {family.name: family for family in prometheus_client.parser.text_string_to_metric_families(text)}
    by_openmetrics = {family.name: family for family in text_string_to_metric_families(text)}
    assert by_text.keys() == by_openmetrics.keys()
    for known, family in by_text.items():
        assert len(family.samples) == len(by_openmetrics[known].samples)
    # node_exporter 1.5 refuses every other type of OpenMetrics, and a HELP with an escaped quote.
    assert set(re.findall(r"^# TYPE \S+ (\w+)$", text, flags=re.MULTILINE)) == {"gauge"}
    assert not re.search(r'^# HELP .*\\"', text, flags=re.MULTILINE)


def test_openmetrics_of_names_that_the_format_or_tare_itself_has(tmp_path):
    names = {
        "verdict": Unit.COUNT,
        "run": Unit.COUNT,
        "claim": Unit.COUNT,
        "x.total": Unit.COUNT,
        "y_bytes": Unit.COUNT,
    }
    names |= {"comparison": Unit.RATIO, "y": Unit.BYTE, "é": Unit.SECOND, "1/2": Unit.OPERATIONS_PER_SECOND}
    metrics = tuple((Metric(name, unit, Direction.LOWER, "d\n\\"), 2.0, 1.0) for name, unit in names.items())
    run = write_run(tmp_path / "run", replace(SMALL, subjects=(replace(SUBJECTS[0], metrics=metrics),)))
    text = written("openmetrics", run, tmp_path).read_text("utf-8")
    kinds = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            kinds.setdefault(sample.labels.get("metric"), set()).add((family.type, family.unit))
    assert kinds["y"] & {("gauge", "bytes")}
    assert kinds["y_bytes"] & {("gauge", "")}
    assert all(("gauge", "ratio") in kinds[name] and ("gauge", "") in kinds[name] for name in names)
    assert {f.name for f in text_string_to_metric_families(text)} >= {"tare_verdict", "tare_verdict_value", "tare_run"}


def test_markdown_says_what_the_report_says(runs, analyses, tmp_path):
    text = written("markdown", runs["normal"], tmp_path).read_text("utf-8")
    assert text.count("\n| ") > len(analyses["normal"].comparisons) / 2
    assert "vm (tcg)" in text
    assert "**slower**" in text
    assert "did not hold" in text
    assert "was not measured" in written("markdown", runs["no-baseline"], tmp_path).read_text("utf-8")
    assert "nothing was measured" in written("markdown", runs["empty"], tmp_path).read_text("utf-8")


def test_markdown_has_no_markup_but_its_own(runs, tmp_path):
    text = written("markdown", runs["hostile"], tmp_path).read_text("utf-8")
    plain = written("markdown", runs["normal"], tmp_path).read_text("utf-8")
    tags = {part.partition(">")[0] for part in text.split("<")[1:]}
    assert tags == {part.partition(">")[0] for part in plain.split("<")[1:]}
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {
        4,
        5,
        8,
    }  # claims have 3 columns, pictures and requirements 4, measurements 7
    assert "\u202e" not in text.replace("\u2068", "").split("\u2069")[0] or "\u202c" in text


@pytest.mark.parametrize(
    "name",
    ["[x](http://evil)", "@somebody", "#12", "GH-12", "a|b", "`x`", "<b>", "*x*", "_x_", "www.evil.org", "&lt;", "$x$"],
)
def test_markdown_escapes_what_acts(name):
    shown = escape(name)
    assert shown != name
    for acting in ("[", "](", "://", "@", "GH-", "|", "`", "<", "*", "_x", "www.", "$", "&lt"):
        assert acting not in shown
    assert escape("max_prime 10, bare-metal (vm): 4.1 %") == "max_prime 10, bare-metal (vm): 4.1 %"


def pyperf_program(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pyperf", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pyperf_itself_compares_and_checks(tmp_path):
    paths = []
    for seed, factor in ((1, 8.8), (2, 17.6)):
        recipe = replace(SMALL, blocks=12, seed=seed, ratios={"native": 1.0, "vm": factor}, noise=0.002)
        folder = tmp_path / str(seed)
        folder.mkdir()
        paths.append(str(written("pyperf", write_run(folder / "run", recipe), folder)))
    compared = pyperf_program("compare_to", *paths, "--table")
    assert "vm (tcg)/steady/sysbench-cpu" in compared
    # A duration of the synthetic run grows by 2 % of itself for each time that the ratio grows by 1.
    slower = next(line for line in compared.splitlines() if "command.duration" in line)
    assert 1.14 < float(slower.rpartition("x slower")[0].rpartition(" ")[2]) < 1.17
    assert "ERROR" not in compared
    assert "boot.total" in pyperf_program("check", paths[0])
    suite = pyperf.BenchmarkSuite.load(paths[0])
    assert len(suite.get_benchmarks()) > 20
    units = {one.get_unit() for one in suite.get_benchmarks()}
    assert units == {"second", "byte"}
    held = {one.get_name().rpartition("/")[2] for one in suite.get_benchmarks()}
    metrics = json.loads((Path(paths[0]).parent / "run/manifest.json").read_text("utf-8"))["metrics"]
    better_lower = {key.rpartition("/")[2] for key, one in metrics.items() if one["direction"] == "lower"}
    samples = load_run(Path(paths[0]).parent / "run").samples
    holdable = {one.metric for one in samples if one.unit in (Unit.SECOND, Unit.BYTE, Unit.COUNT) and one.value > 0}
    assert held == holdable & better_lower
    assert "host.memory_peak" in held
    metadata = suite.get_benchmarks()[0].get_metadata()
    assert metadata["platform"] == "Linux-6.18.0"
    assert metadata["cpu_affinity"] == "1"
