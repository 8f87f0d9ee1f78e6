"""Each form of report on each kind of run: it is made, it is complete, and nothing in it acts."""

import html
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import jsonschema
import msgspec
import pandas as pd
import pyperf
import pytest
from rich.console import Console

from tare.bench.analysis import RunResults, analyse
from tare.bench.cli.run import report_command
from tare.bench.disturbance import Disturbance
from tare.bench.errors import RunDirectoryError, TareError
from tare.bench.records import EventKind, RunStatus
from tare.bench.registry import find_reporters
from tare.bench.store import load_run
from tare.bench.units import Unit
from tare.reports.charts import parts_bar
from tare.reports.headline import grade_sentence, headline
from tare.reports.html import BESIDE, HtmlReporter, render_page
from tare.reports.pyperf_json import PyperfReporter
from tare.reports.samples import ParquetReporter
from tare.reports.summary_json import SUMMARY_VERSION, JsonReporter, summary_of
from tare.reports.text import SCREEN_LINES, TextReporter, render_answer, render_text
from tare.reports.wording import format_change, verdict_word
from tests.synthetic import HOSTILE, QUICK, SUBJECTS, hostile_recipe, write_run
from tests.unit.test_stored_runs import unpacked

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


class Page(HTMLParser):
    """The parts of a page that the tests ask for."""

    VOID = frozenset(("meta", "link", "br", "img", "path", "use", "rect", "circle", "line", "input", "wbr"))

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.text = []
        self.open = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_run(folder / name, recipe) for name, recipe in RECIPES.items()}


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    texts = {}
    for name, run in runs.items():
        HtmlReporter().write(RunResults(load_run(run)), folder / f"{name}.html")
        texts[name] = (folder / f"{name}.html").read_text("utf-8")
    return texts


@pytest.mark.parametrize("name", RECIPES)
def test_page_is_whole_and_stands_alone(pages, name):
    html = pages[name]
    page = Page(html)
    assert page.open == []
    assert len(html) < 2_000_000
    assert "http:" not in html
    assert "https:" not in html
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        if tag == "a":
            assert attributes["href"].startswith("#") or attributes["href"] in BESIDE
        if tag in ("link", "use"):
            assert attributes["href"].startswith(("#", "data:"))


@pytest.mark.parametrize("name", RECIPES)
def test_page_is_accessible_in_its_structure(pages, name):
    page = Page(pages[name])
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for attributes in page.all("a"):
        assert attributes["href"].removeprefix("#") in identifiers
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for _, attributes in page.elements:
        if attributes.get("role") == "img":
            assert attributes["aria-label"].strip()
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in identifiers


def test_page_says_what_matters_first(pages):
    page = Page(pages["normal"])
    text = " ".join(" ".join(page.text).split())
    order = [
        "What does isolation cost on this host?", "Indicative", "5 blocks", "Compared with host (a VM)",
        "Time to start",
        "Virtual machine: not measured here", "What this means for you", "What was measured", "What could be wrong",
        "Appendix", "The emulator", "Claims of the field", "Method", "Environment", "Commands", "Raw data",
    ]  # fmt: skip
    place = text.index("Skip to the report")
    for part in order:
        place = text.index(part, place)
    assert "vm (tcg)" in text
    assert "Kalibera" in text


def test_no_colour_and_no_arrow_for_what_could_not_be_told(pages):
    html = pages["normal"]
    assert '<span class="verdict inconclusive">could not tell</span>' in html
    assert "class='dot open'" in pages["interrupted"]


def test_an_emulated_guest_is_in_the_appendix_alone(pages):
    before, _, after = pages["normal"].partition('id="appendix"')
    shown = before.replace("vm (tcg): ", "")  # what could be wrong names it
    assert "vm (tcg)" not in shown.partition('id="doubts"')[0]
    assert 'id="emulated"' in after
    assert "verdict" not in after.partition('id="emulated"')[2].partition("</table>")[0].partition("<table")[2]


def test_failures_are_on_the_page_with_their_evidence(pages):
    text = " ".join(Page(pages["failed"]).text)
    assert "the guest did not answer within 60 s" in text
    assert "Kernel panic - not syncing: no init found" in text


def test_interrupted_and_one_block_are_said(pages):
    assert "The run was interrupted" in pages["interrupted"]
    assert "This run cannot be used: one block allows no interval" in pages["one-block"]
    assert "bare-metal, was not measured" in pages["no-baseline"]
    assert "This run cannot be used: nothing was measured" in pages["empty"]


def test_hostile_names_are_text(pages):
    html = pages["hostile"]
    page = Page(html)
    # Ours: the packed samples and the one that saves.
    assert len(page.all("script")) == 2
    text = "".join(page.text)
    for name in HOSTILE:
        assert name.replace("\r\n", "\n") in text or " ".join(name.split()) in text
    assert "{{ 7*7 }}" in text


def test_charts_follow_the_schema(runs):
    backend = analyse(load_run(runs["normal"])).backends[1]
    strengths, phases = {"create": 1.0, "init": 0.5, "ready": 0.2}, [("create", 0.1), ("init", 2.0), ("ready", 0.3)]
    chart = parts_bar(backend, phases, Unit.SECOND, strengths, "y").chart
    alt.Chart.from_dict({"$schema": alt.SCHEMA_URL, **chart.spec})
    assert chart.svg.startswith("<svg ")
    assert "var(--" in chart.svg


def test_many_values_are_thinned_to_what_can_be_seen(tmp_path):
    run = write_run(tmp_path / "run", replace(SMALL, blocks=200, iterations=2))
    assert len(render_page(analyse(load_run(run))).split("<circle")) < 2000


@pytest.mark.parametrize("name", RECIPES)
def test_text_holds_the_same_answer(runs, name, tmp_path):
    TextReporter().write(RunResults(load_run(runs[name])), tmp_path / "report.txt")
    text = (tmp_path / "report.txt").read_text("utf-8")
    assert "\x1b" not in text
    analysis = analyse(load_run(runs[name]))
    assert analysis.grade.level.capitalize() in text
    assert "What could be wrong" in text
    if name == "normal":
        found = next(one for *_, cell, one in analysis.comparisons if cell.backend.name == "vm")
        assert format_change(found) in text.partition("The emulator's figures")[2]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_every_ratio_has_its_whole_verdict_on_any_terminal(runs, width):
    run = load_run(runs["normal"])
    file = io.StringIO()
    Console(file=file, width=width).print(render_text(analyse(run)))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for _, row, cell, found in analyse(run).comparisons:
        if found.low is None or cell.backend.is_fenced:
            continue
        change, word = format_change(found), verdict_word(row.metric, found.verdict_adjusted)
        assert any(change in line and word in line for line in lines), (row.metric.name, cell.backend.name)


@pytest.mark.parametrize("name", RECIPES)
def test_the_last_screen_is_the_answer_at_80_by_24(runs, name):
    analysis = analyse(load_run(runs[name]))
    file = io.StringIO()
    Console(file=file, width=80).print(render_answer(analysis))
    lines = file.getvalue().splitlines()
    assert len(lines) <= SCREEN_LINES
    text = " ".join(file.getvalue().split())
    assert " ".join(grade_sentence(analysis.grade).split()) in text
    if name == "normal":
        assert "Time to start" in text


@pytest.mark.parametrize("name", RECIPES)
def test_summary_holds_the_same_results(runs, name, tmp_path):
    JsonReporter().write(RunResults(load_run(runs[name])), tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    analysis = analyse(load_run(runs[name]))
    compared = [one["comparison"] for one in summary["results"] if one["comparison"] is not None]
    assert [one["ratio"] for one in compared] == [one.ratio for *_, one in analysis.comparisons]
    assert {one["verdict"] for one in compared} <= {"faster", "slower", "equivalent", "inconclusive"}
    assert summary["status"] == str(analysis.manifest.status)


@pytest.mark.parametrize("name", RECIPES)
def test_the_json_form_follows_its_published_schema(runs, name):
    schema = json.loads((Path(__file__).parents[2] / "docs/json-report.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    summary = json.loads(json.dumps(summary_of(analyse(load_run(runs[name])))))
    jsonschema.validate(summary, schema)
    assert schema["properties"]["summary_version"]["const"] == SUMMARY_VERSION
    assert set(summary) == set(schema["properties"])


BUSY = 0.7
"""A share of the envelope's CPU time that others take."""


def loaded(run, share):
    """The run with other work of ``share`` of the envelope's CPU time in every instance."""
    disturbance = Disturbance(span_s=2.0, cpus=1, busy_s=2.0, steal_s=0.0, other_s=2.0 * share)
    told = {"disturbance": msgspec.to_builtins(disturbance)}
    events = [
        msgspec.structs.replace(one, details=told) if one.kind is EventKind.INSTANCE_DONE else one for one in run.events
    ]
    return msgspec.structs.replace(run, events=events)


@pytest.mark.parametrize("form", ["html", "text", "answer", "markdown", "json", "junit", "openmetrics"])
def test_every_form_says_that_a_run_on_a_busy_host_is_not_usable(runs, form, tmp_path):
    texts = {}
    for share in (BUSY, 0.01):
        output = tmp_path / f"{share}"
        find_reporters().get(form)().write(RunResults(loaded(load_run(runs["normal"]), share)), output)
        texts[share] = html.unescape(output.read_text("utf-8")).lower()
    if form == "openmetrics":
        assert re.search(r'tare_grade="not usable"} 1', texts[BUSY])
        assert re.search(r'tare_grade="not usable"} 0', texts[0.01])
        return
    busy = texts[BUSY].split("<details")[0] if form == "html" else texts[BUSY]
    assert "not usable" in busy
    assert "other work took 70 % of the measured cpus' time" in busy
    quiet = texts[0.01].partition('id="appendix"')[0]
    assert "not usable" not in quiet
    if form in ("html", "text", "markdown"):
        assert "starts within" in busy
        assert "the run is not usable" in busy
        assert "likely to meet it" not in busy
        assert "would settle it" not in busy
        assert "likely to meet it" in quiet
    if form == "html":
        assert "<svg class='strip void'" in busy
        assert "these values were recorded; they decide nothing" in busy
        assert "they decide nothing" not in quiet
        assert "dot told" not in busy
        assert "hollow and grey: not usable" in busy
        assert "<svg class='strip void'" not in quiet
    assert "other work took 1 %" not in quiet


def test_parquet_is_every_sample(runs, tmp_path):
    ParquetReporter().write(RunResults(load_run(runs["normal"])), tmp_path / "samples.parquet")
    frame = pd.read_parquet(tmp_path / "samples.parquet")
    samples = load_run(runs["normal"]).samples
    assert len(frame) == len(samples)
    assert frame["value"].tolist() == [sample.value for sample in samples]
    assert frame["warmup"].sum() == sum(sample.warmup for sample in samples)
    assert json.loads(frame["params"].iloc[-1]) == dict(samples[-1].params)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.parquet"]


def test_parquet_of_an_empty_run_has_the_same_columns(runs, tmp_path):
    ParquetReporter().write(RunResults(load_run(runs["empty"])), tmp_path / "empty.parquet")
    ParquetReporter().write(RunResults(load_run(runs["normal"])), tmp_path / "normal.parquet")
    empty, normal = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("empty", "normal"))
    assert empty.columns.tolist() == normal.columns.tolist()
    assert len(empty) == 0


def test_pyperf_reads_the_durations(runs, tmp_path):
    output = tmp_path / "run.pyperf.json"
    PyperfReporter().write(RunResults(load_run(runs["normal"])), output)
    suite = pyperf.BenchmarkSuite.load(str(output))
    bench = suite.get_benchmark("vm (tcg)/steady/sysbench-cpu/max_prime=10000,threads=1/command.duration")
    expected = [
        sample.value
        for sample in load_run(runs["normal"]).samples
        if sample.metric == "command.duration" and sample.backend == "vm" and not sample.warmup
    ]
    assert list(bench.get_values()) == pytest.approx(expected)
    assert bench.get_nrun() == 5
    assert "bare-metal/boot/boot.total" in suite.get_benchmark_names()


def test_pyperf_of_a_run_without_durations_says_so(runs, tmp_path):
    with pytest.raises(TareError, match="no duration"):
        PyperfReporter().write(RunResults(load_run(runs["empty"])), tmp_path / "x.json")


@pytest.mark.parametrize(
    "form", ["html", "text", "json", "parquet", "pyperf", "csv", "junit", "markdown", "openmetrics"]
)
def test_what_is_not_a_run_is_refused_and_an_output_that_cannot_be_written_is_one_message(form, runs, tmp_path):
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        report_command(tmp_path, form, tmp_path / "out")
    with pytest.raises(TareError, match="cannot write"):
        report_command(runs["normal"], form, tmp_path / "missing" / "out.x")


def test_every_form_is_registered():
    found = find_reporters()
    assert {"html", "json", "parquet", "pyperf", "text"} <= set(found.loaded)


def test_tentative_is_said_next_to_its_verdict_and_among_the_doubts(tmp_path):
    run = load_run(unpacked("quickstart", tmp_path))
    analysis = analyse(run)
    found = [one for *_, cell, one in analysis.comparisons if one.is_tentative and not cell.backend.is_fenced]
    said = headline(analysis)
    assert len(found) == 1
    assert "tentative" not in said  # no leading one is
    for form in ("html", "text", "markdown"):
        output = tmp_path / form
        find_reporters().get(form)().write(RunResults(run), output)
        text = " ".join(html.unescape(output.read_text("utf-8")).split())
        explained = 3 if form == "html" else 1  # a doubt, and on the page its code and the method
        assert text.count("tentative") == len(found) + said.count("tentative") + explained, form
        assert "a few unusual blocks could have caused" in text
