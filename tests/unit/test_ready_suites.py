"""The suites that are installed, found by name, and the schema of suite files."""

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from tare.bench.cli.main import app
from tare.bench.cli.suite import app as suite_app
from tare.bench.errors import UnknownNameError
from tare.bench.ready_suites import describe_ready_suites, find_suite, ready_suites
from tare.bench.registry import find_backends, find_workloads
from tare.bench.suite import resolve_suite
from tare.bench.suite_file import read_toml
from tare.bench.suite_schema import suite_schema

ROOT = Path(__file__).parents[2]
runner = CliRunner()


@pytest.fixture(scope="module")
def validator():
    schema = suite_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_ready_suites_are_the_files_of_the_folder():
    assert sorted(ready_suites()) == sorted(path.stem for path in (ROOT / "suites").glob("*.toml"))
    assert all(question.endswith("?") for question in describe_ready_suites().values())


@pytest.mark.parametrize("name", sorted(ready_suites()))
def test_a_ready_suite_resolves_and_fits_the_schema(name, validator):
    path = ready_suites()[name]
    source = read_toml(path)
    resolve_suite(source, path, find_backends(), find_workloads())
    assert [error.message for error in validator.iter_errors(source)] == []


def test_a_name_is_a_file_first_and_then_a_ready_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_suite(Path("quickstart")) == ready_suites()["quickstart"]
    (tmp_path / "quickstart").write_text("")
    assert find_suite(Path("quickstart")) == Path("quickstart")
    assert find_suite(Path("nowhere/quickstart.toml")) == Path("nowhere/quickstart.toml")
    with pytest.raises(UnknownNameError) as raised:
        find_suite(Path("quickstrat"))
    assert "quickstart" in str(raised.value.remedy)


def test_show_prints_the_file_as_it_is():
    shown = runner.invoke(suite_app, ["show", "density"])
    assert shown.exit_code == 0
    assert shown.stdout == ready_suites()["density"].read_text("utf-8")


def test_list_has_the_suites_and_every_detail_as_json():
    listed = runner.invoke(app, ["list", "--json"])
    found = json.loads(listed.stdout)
    assert {one["name"] for one in found["suites"]} == set(ready_suites())
    (fio,) = (one for one in found["workloads"] if one["name"] == "fio")
    iops = next(metric for metric in fio["details"]["metrics"] if metric["name"] == "read.iops")
    assert iops["unit"] == "1/s"
    assert iops["direction"] == "higher"
    assert "block_size" in fio["details"]["params"]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ("suite.colour = 1", "colour"),
        ("sampling.blocks = 0", "0"),
        ("sampling.max_time = 3", "3"),
        ('backend = [{ type = "native", options = { upper = "floppy" } }]', "floppy"),
        ('backend = [{ type = "native", options = { uper = "disk" } }]', "uper"),
        ('experiment = [{ kind = "steady", workload = "fio", params = { block_sise = "4KiB" } }]', "block_sise"),
        ('experiment = [{ kind = "density", options = { count = "many" } }]', "many"),
        ('workload = [{ name = "mine" }]', "mine"),
    ],
)
def test_the_schema_refuses_what_tare_refuses(wrong, word, validator):
    source = read_toml(ready_suites()["quickstart"]) | tomllib.loads(wrong)
    errors = [text for error in validator.iter_errors(source) for text in _texts(error)]
    assert any(word in text for text in errors), errors


def _texts(error):
    yield error.message
    for cause in error.context or ():
        yield from _texts(cause)
