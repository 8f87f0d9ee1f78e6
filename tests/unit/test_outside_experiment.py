"""An experiment from outside runs through a suite and is in every written form, although nothing of tare knows it."""

import importlib
import json
from pathlib import Path

import msgspec
import pyarrow.parquet
import pytest

from tare.bench.analysis import RunResults
from tare.bench.errors import SuiteError
from tare.bench.registry import find_experiments, find_reporters
from tare.bench.session import RunRequest, start_run
from tare.bench.store import load_run
from tests.unit import session_fakes, test_session

place = test_session.place
PLUGIN = Path(__file__).parents[2] / "docs/plugin-template"
SUITE = """
[suite]
name = "outside"
[envelope]
memory = "64MiB"
scratch = "1MiB"
[sampling]
blocks = 3
[[backend]]
type = "fake-metal"
[[backend]]
type = "fake-box"
[[experiment]]
kind = "files"
options = {most = 40, step = 10}
"""


@pytest.fixture
def installed(place, monkeypatch):
    monkeypatch.syspath_prepend(PLUGIN)
    points = place / "site" / "fakes-1.0.dist-info" / "entry_points.txt"
    points.write_text(session_fakes.POINTS + "[tare.experiments]\nfiles = tare_files:Files\nempty = tare_files:Empty\n")
    module = importlib.import_module("tare_files")
    empty = type("Empty", (module.Experiment,), {"run": lambda *_: None})
    monkeypatch.setattr(module, "Empty", empty, raising=False)
    return module


@pytest.fixture
def run(place, installed):
    file = place / "outside.toml"
    file.write_text(SUITE)
    result = start_run(RunRequest(file, place / "run"), test_session.Display())
    assert (result.outcome.done, result.outcome.failed) == (6, 0)
    return result.path


def written(run, form):
    output = run.parent / f"report.{form}"
    find_reporters().get(form)().write(RunResults(load_run(run)), output)
    return output


def test_its_traits_are_in_the_manifest(run, installed):
    stored = load_run(run).manifest
    assert stored.experiments == {"files": installed.Files.traits}
    assert stored.metrics["files/files.listed"] == installed.LISTED


@pytest.mark.parametrize("form", ["html", "text", "markdown", "json", "junit", "csv", "openmetrics"])
def test_it_is_in_every_written_form(run, form):
    assert "files.listed" in written(run, form).read_text("utf-8")


def test_it_has_a_section_with_its_own_title_and_is_compared_at_the_largest_size(run):
    page = written(run, "html").read_text("utf-8")
    assert "Many files" in page
    assert "by number of files" in page
    assert "40 files" in page
    assert "files.listed, 40 files" in written(run, "text").read_text("utf-8")
    document = json.loads(written(run, "json").read_text("utf-8"))
    sizes = [cell for cell in find_all(document, "size") if cell is not None]
    assert set(sizes) == {40}


def find_all(value, name):
    if isinstance(value, dict):
        yield from (one for key, one in value.items() if key == name)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from find_all(inner, name)


def test_its_samples_are_in_parquet(run):
    table = pyarrow.parquet.read_table(written(run, "parquet"))
    assert set(table.column("metric").to_pylist()) == {"files.made", "files.listed"}


@pytest.mark.parametrize("form", ["html", "text", "markdown", "json", "junit", "openmetrics"])
def test_what_its_traits_say_is_text_and_no_order(place, installed, monkeypatch, form):
    hostile = "<script>alert(1)</script>\n# heading\x1b[31m"
    traits = msgspec.structs.replace(installed.Files.traits, title=hostile, grows_with=hostile)
    monkeypatch.setattr(installed.Files, "traits", traits)
    file = place / "outside.toml"
    file.write_text(SUITE)
    text = written(start_run(RunRequest(file, place / "run"), test_session.Display()).path, form).read_text("utf-8")
    assert "\x1b" not in text
    assert "\n# heading" not in text
    if form in ("html", "markdown"):
        assert "<script>alert(1)" not in text


@pytest.mark.parametrize("grows_with", ["", "files"])
def test_pyperf_gets_the_durations_of_what_repeats_the_same(place, installed, monkeypatch, grows_with):
    traits = msgspec.structs.replace(installed.Files.traits, grows_with=grows_with)
    monkeypatch.setattr(installed.Files, "traits", traits)
    file = place / "outside.toml"
    file.write_text(SUITE + '[[experiment]]\nkind = "boot"\n')
    path = start_run(RunRequest(file, place / "run"), test_session.Display()).path
    assert ("files.listed" in written(path, "pyperf").read_text("utf-8")) is (grows_with == "")


def test_what_it_does_not_declare_is_said_once(installed):
    assert find_experiments().failures["empty"].reason == (
        "TypeError: tare_files:Empty does not declare name, summary, needs_workload, traits, metrics"
    )


def test_an_option_that_it_does_not_have_is_refused(place, installed):
    file = place / "outside.toml"
    file.write_text(SUITE.replace("step = 10", "stride = 10"))
    with pytest.raises(SuiteError, match="stride"):
        start_run(RunRequest(file, place / "run"), test_session.Display())
