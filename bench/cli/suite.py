"""``tare suite``: the suites that are installed with tare, and the schema of suite files."""

from typing import Annotated

import typer

from tare.bench.cli.guard import guard, make_app

app = make_app("suite", "Show ready suites, and the schema of suite files.")


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="A ready suite: see `tare list suites`.")]) -> None:
    """Print a ready suite, as a beginning of your own.

    Example: tare suite show quickstart > mine.toml.
    """
    with guard():
        from tare.bench.ready_suites import require_ready_suite

        typer.echo(require_ready_suite(name).read_text("utf-8"), nl=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of suite files, with the plug-ins of this installation.

    Editors complete and check suites by it. Example: tare suite schema > suite.schema.json.
    """
    with guard():
        import json

        from tare.bench.suite_schema import suite_schema

        typer.echo(json.dumps(suite_schema(), indent=2))
