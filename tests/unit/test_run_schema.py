"""The documented format of a run: every field is documented, and what is stored fits the schema."""

import json
import re
from pathlib import Path

import jsonschema
import msgspec
import pytest

from tare.bench.run_schema import FILES, run_schema
from tests.synthetic import QUICK, write_run

PAGE = Path(__file__).parents[2] / "docs/run-directory.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("schema") / "run", QUICK)


@pytest.mark.parametrize("file", FILES)
def test_every_field_has_its_row_in_the_page(file):
    section = PAGE.read_text("utf-8").partition(f"## `{file}`")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.+?) \|", section, flags=re.MULTILINE))))
    fields = {field.encode_name for field in msgspec.structs.fields(FILES[file])}
    assert documented == fields


@pytest.mark.parametrize("file", FILES)
def test_what_is_stored_fits_the_schema(run, file):
    schema = run_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    text = (run / file).read_text("utf-8") if (run / file).exists() else ""
    records = [json.loads(text)] if file.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    assert records or file == "histograms.jsonl"
    validator = jsonschema.Draft202012Validator({**schema["properties"][file], "$defs": schema["$defs"]})
    for record in records:
        validator.validate(record)
    if records:
        broken = {
            name: value for name, value in records[0].items() if name not in {"run", "metric", "kind", "histogram"}
        }
        assert not validator.is_valid(broken)
