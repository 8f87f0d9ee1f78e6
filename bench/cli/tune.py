"""``tare tune``: the options of its commands. What they do is in ``tune_commands``, imported when one runs."""

from typing import Annotated

import typer

from tare.bench.cli.guard import guard, make_app

app = make_app("tune", "Make this host quieter, and restore it exactly.")

Cpus = Annotated[
    str, typer.Option(help="The instances' CPUs, such as 1 or 2-3, kept free of interrupts; the last one unless given.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def show(*, cpus: Cpus = "", as_json: AsJson = False) -> None:
    """Show each setting as it is, what is better and why, and whether it can be changed here."""
    with guard():
        from tare.bench.cli.tune_commands import show_command

        show_command(cpus, as_json=as_json)


@app.command()
def apply(
    *,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME[=VALUE]", help="Only this setting, or to this value; repeatable."),
    ] = None,
    cpus: Cpus = "",
    as_json: AsJson = False,
) -> None:
    """Set what is better, with the originals on disk before the first change. Needs root; ends with a reboot at latest.

    SMT is left alone unless it is asked for: --only smt.
    """
    with guard():
        from tare.bench.cli.tune_commands import apply_command

        raise typer.Exit(apply_command(tuple(only or ()), cpus, as_json=as_json))


@app.command()
def restore(*, as_json: AsJson = False) -> None:
    """Put back every setting that apply changed, and read it back. Exit code 6 if one could not be."""
    with guard():
        from tare.bench.cli.tune_commands import restore_command

        raise typer.Exit(restore_command(as_json=as_json))
