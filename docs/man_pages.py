"""Writes a man page of each command into the folder that is named: python docs/man_pages.py FOLDER."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from tare.bench.cli.main import every_command
from tare.bench.version import tare_version

Command = Context = Any
"""Of the click that typer comes with, or needs: which of the two depends on its version."""


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    command = typer.main.get_command(every_command())
    for context in _contexts(command, command.context_class(command, info_name="tare")):
        name = context.command_path.replace(" ", "-")
        (folder / f"{name}.1").write_text("\n".join(_page(name, context)) + "\n", "utf-8")


def _contexts(command: Command, context: Context) -> Iterator[Context]:
    yield context
    for name, sub in getattr(command, "commands", {}).items():
        yield from _contexts(sub, sub.context_class(sub, info_name=name, parent=context))


def _page(name: str, context: Context) -> Iterator[str]:
    command = context.command
    paragraphs = [" ".join(part.split()) for part in (command.help or "").strip().split("\n\n")]
    yield f'.TH "{name.upper()}" 1 "{datetime.now(UTC):%Y-%m-%d}" "tare {tare_version()}" "tare"'
    yield from (".SH NAME", f"{_escaped(name)} \\- {_escaped(paragraphs[0].rstrip('.'))}")
    yield from (".SH SYNOPSIS", f".B {_escaped(command.get_usage(context).removeprefix('Usage: '))}")
    yield from (".SH DESCRIPTION", *(f"{_escaped(part)}\n.PP" for part in paragraphs))
    records = [record for param in command.get_params(context) if (record := param.get_help_record(context))]
    for title, wanted in (("ARGUMENTS", False), ("OPTIONS", True)):
        chosen = [record for record in records if record[0].startswith("-") is wanted]
        yield from (f".SH {title}",) if chosen else ()
        for given, text in chosen:
            yield from (".TP", f".B {_escaped(given)}", _escaped(" ".join(text.split())))
    subcommands = [f"{name}-{sub}" for sub in getattr(command, "commands", {})]
    others = subcommands or ([context.parent.command_path.replace(" ", "-")] if context.parent else [])
    yield from (
        ".SH SEE ALSO",
        ", ".join(f".BR {_escaped(one)} (1)" if len(others) == 1 else f"{_escaped(one)}(1)" for one in others),
    )


def _escaped(text: str) -> str:
    """Text as roff takes it: backslashes and dashes as they are, no request at the beginning of a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    main()
