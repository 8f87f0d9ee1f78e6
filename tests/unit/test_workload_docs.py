"""The documents say what the code is. ``python -m tests.unit.test_workload_docs`` writes the generated parts."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tare.bench.interfaces import Workload
from tare.bench.units import Size
from tests.unit.workload_captures import WORKLOADS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = re.compile(r"(<!-- generated: [^\n]* -->\n).*?(<!-- end -->)", re.DOTALL)
INCLUDED = re.compile(r"(<!-- file: (?P<path>\S+) -->\n```\w+\n)(?P<text>.*?)(```\n)", re.DOTALL)


def describe_quantity(kind: type) -> dict[str, Any]:
    assert kind is Size
    return {"type": "string", "description": "a size in bytes or with an IEC prefix, such as 4KiB or 64MiB"}


def render_values(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "minimum" in field:
        bounds = f"{field['minimum']:g} to {field['maximum']:,.10g}"
        return f"{bounds}: {field['description']}" if "description" in field else bounds
    if field["type"] == "boolean":
        return "`true`, `false`"
    return str(field.get("description", "a name"))


def render_default(default: Any) -> str:
    return json.dumps(default) if isinstance(default, bool) else str(default)


def render_workload(workload: Workload) -> str:
    lines = [
        f"## {workload.name}",
        "",
        f"{workload.summary[0].upper()}{workload.summary[1:]}.",
        f"Packages: {', '.join(workload.packages)}; licence of the tool: {workload.licence}.",
        "",
        "| parameter | values | default |",
        "| --- | --- | --- |",
    ]
    for field in msgspec.structs.fields(workload.Params):
        values = render_values(msgspec.json.schema(field.type, schema_hook=describe_quantity))
        lines.append(f"| `{field.encode_name}` | {values} | `{render_default(field.default)}` |")
    lines += ["", "| metric | unit | better | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{m.name}` | {m.unit} | {m.direction} | {m.description} |" for m in workload.metrics]
    return "\n".join(lines)


def with_table(text: str) -> str:
    table = "\n\n".join(render_workload(workload) for _, workload in sorted(WORKLOADS.items()))
    return GENERATED.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text)


def with_files(text: str) -> str:
    return INCLUDED.sub(lambda found: found[1] + (ROOT / found["path"]).read_text("utf-8") + found[4], text)


def test_the_table_of_workloads_is_that_of_the_code() -> None:
    text = (DOCS / "workloads.md").read_text("utf-8")
    assert GENERATED.search(text)
    assert text == with_table(text), "run: python -m tests.unit.test_workload_docs"


@pytest.mark.parametrize(
    "name", ["adding-a-workload.md", "adding-a-backend.md", "adding-an-experiment.md", "adding-a-reporter.md"]
)
def test_the_files_shown_are_the_files_tested(name: str) -> None:
    text = (DOCS / name).read_text("utf-8")
    assert INCLUDED.search(text)
    assert text == with_files(text), "run: python -m tests.unit.test_workload_docs"


def test_the_example_workload_stays_small() -> None:
    assert len((ROOT / "docs/plugin-template/tare_redis.py").read_text("utf-8").splitlines()) < 80


def main() -> None:
    for name, change in (
        ("workloads.md", with_table),
        ("adding-a-workload.md", with_files),
        ("adding-a-backend.md", with_files),
        ("adding-an-experiment.md", with_files),
        ("adding-a-reporter.md", with_files),
    ):
        (DOCS / name).write_text(change((DOCS / name).read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
