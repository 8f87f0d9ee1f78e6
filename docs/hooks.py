"""What the documentation site makes from the code: the reference of the commands, and the index of decisions."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_TITLE = re.compile(r"# (\d{4}): (.+)")

Command = Context = Any
"""Of the click that typer comes with, or needs: which of the two depends on its version."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    from tare.bench.run_schema import run_schema
    from tare.bench.suite_schema import suite_schema

    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    for name, schema in (("run", run_schema()), ("suite", suite_schema())):
        files.append(File.generated(config, f"schemas/{name}.schema.json", content=json.dumps(schema, indent=2)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """The index of decisions has a row a record: number, title, date, status."""
    if page.file.src_uri == "decisions/README.md":
        return f"{markdown}\n\n{decisions_table()}"
    return markdown


def commands_page() -> str:
    """Every command with its arguments and options, as its help has them."""
    from tare.bench.cli.main import every_command

    lines = ["# Commands", "", "Each command with `--help` says the same in the terminal.", ""]
    command = typer.main.get_command(every_command())
    lines += _command_lines(command, command.context_class(command, info_name="tare"), 2)
    return "\n".join(lines)


def _command_lines(command: Command, context: Context, level: int) -> list[str]:
    path = context.command_path
    help_lines = (command.help or "").strip().split("\n\n")
    lines = [f"{'#' * level} `{path}`", "", *(f"{' '.join(part.split())}\n" for part in help_lines)]
    if not getattr(command, "commands", None):
        lines += ["```", *_usage(command, context), "```", ""]
    rows = [
        record
        for param in command.get_params(context)
        if (record := param.get_help_record(context)) and "--help" not in record[0]
    ]
    if rows:
        lines += [
            "| option | meaning |",
            "| --- | --- |",
            *(f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows),
            "",
        ]
    for name, sub in getattr(command, "commands", {}).items():
        lines += _command_lines(sub, sub.context_class(sub, info_name=name, parent=context), min(level + 1, 4))
    return lines


def _usage(command: Command, context: Context) -> list[str]:
    return [command.get_usage(context).removeprefix("Usage: ")]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def decisions_table() -> str:
    """A row a record, the newest first."""
    rows = ["| number | decision | date |", "| --- | --- | --- |"]
    for path in sorted((ROOT / "docs/decisions").glob("[0-9]*.md"), reverse=True):
        found = _TITLE.match(path.read_text("utf-8"))
        number, title = (found[1], found[2]) if found else (path.stem[:4], path.stem[5:].replace("-", " "))
        rows.append(f"| {number} | [{_cell(title)}]({path.name}) | {_date_of(path)} |")
    return "\n".join(rows)


def _date_of(path: Path) -> str:
    """When a record was added, by git; empty in an archive without its history."""
    command = ["git", "-C", str(ROOT), "log", "--diff-filter=A", "--follow", "--format=%as", "-1", "--", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
