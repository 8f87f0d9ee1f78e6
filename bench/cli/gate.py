"""``tare gate``: judges the newest night against its history; ``tare gate ack`` says that a finding is known."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tare.bench.cli.guard import complain, guard, make_app
from tare.bench.errors import RunDirectoryError, SuiteError

if TYPE_CHECKING:
    from tare.bench.history.index import History


class _JudgingGroup(TyperGroup):
    """``tare gate RUN`` is ``tare gate judge RUN``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["judge", *args]
        return super().parse_args(ctx, args)


app = make_app("gate", "Judge a night against its history (tare gate RUN); acknowledge findings.")
app.info.cls = _JudgingGroup

RunArgument = Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Run (the newest).", show_default=False)]
Runs = Annotated[Path | None, typer.Option("--runs", help="Folder of runs (that of RUN, or runs).")]
Acks = Annotated[Path | None, typer.Option("--acks", help="File of acknowledgements (SUITE.acks.toml).")]


@app.command()
def judge(
    run: RunArgument = None,
    *,
    runs: Runs = None,
    acks: Acks = None,
    again: Annotated[
        bool, typer.Option("--confirm", help="Measure suspicious cells again before anything is reported.")
    ] = False,
    time: Annotated[str, typer.Option(help="With --confirm: the most time for measuring again.")] = "20m",
    form: Annotated[
        str, typer.Option("--format", "-f", help="text, markdown, junit, github, gitlab, json or a plug-in.")
    ] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; - for standard output.")] = None,
    link: Annotated[str, typer.Option(help="Address of the published history, for links.")] = "",
) -> None:
    """Judge a run against the nights before it.

    Exit codes: 0 nothing to report, 10 a regression, 11 too little was judged, 12 the environment changed, 13 the run
    is incomplete.
    """
    with guard():
        from tare.bench.cli.output import chosen_output, say_where, whole_file
        from tare.bench.history.acks import acks_file_of, load_acks
        from tare.bench.history.gate import find_run, save_told
        from tare.bench.history.gate import judge as judge_run
        from tare.bench.registry import find_gate_forms

        writer = find_gate_forms().get("json" if as_json else form)()
        history = _updated(run, runs)
        entry = find_run(history, run)
        known = load_acks(acks or acks_file_of(entry.suite_file, history.runs_folder))
        judgement = judge_run(history, entry, known)
        if again:
            from tare.bench.cli.confirm import measure_again

            history, judgement = measure_again(history, judgement, known, time)
        save_told(history, judgement)
        output = chosen_output(output)
        with whole_file(output, writer.suffix) as part:
            writer.write(judgement, part, link=link)
        say_where(output)
        raise typer.Exit(judgement.verdict.exit_code)


@app.command()
def ack(
    finding: Annotated[str, typer.Argument(help="Finding, by the identifier that the gate printed.")],
    *,
    reason: Annotated[str, typer.Option(help="Why this change is meant, or accepted.")],
    until: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="Day on which it expires (never).")] = "",
    who: Annotated[str, typer.Option(help="Who acknowledges (git's user, or the login).")] = "",
    run: Annotated[Path | None, typer.Option(help="Run whose suite the file belongs to (the newest).")] = None,
    runs: Runs = None,
    acks: Acks = None,
) -> None:
    """Acknowledge a finding: its change becomes the baseline of its series.

    The entry is added to a text file next to the suite, to be kept under version control; deleting it undoes it.
    """
    with guard():
        from tare.bench.history.acks import Acknowledgement, acks_file_of, add_acknowledgement
        from tare.bench.history.gate import find_run, load_told
        from tare.bench.history.index import open_history

        history = open_history(_folder(run, runs))
        told = {one.identifier: one for one in load_told(history)}
        if finding not in told:
            raise SuiteError(
                finding, "no finding of that name was reported", remedy=f"findings are: {', '.join(told) or 'none'}"
            )
        path = acks or acks_file_of(find_run(history, run).suite_file, history.runs_folder)
        known = told[finding]
        about = known.finding
        entry = Acknowledgement(
            finding=finding,
            series=known.series,
            since=known.since,
            reason=reason,
            who=who or _login(),
            until=_day(until),
            what=about.name if about else "",
            change=f"{about.shift.ratio - 1:+.1%}" if about else "",
        )
        add_acknowledgement(path, entry)
        typer.echo(f"acknowledged in {path}: commit this file; deleting the entry undoes it")


def _updated(run: Path | None, runs: Path | None) -> "History":
    """The history, with the runs that have come since."""
    from tare.bench.history.index import open_history, update_history

    folder = _folder(run, runs)
    for error in update_history(folder).left_out:
        complain(f"left out: {error.message}", error.remedy)
    return open_history(folder)


def _folder(run: Path | None, runs: Path | None) -> Path:
    from tare.bench.locations import runs_directory

    if runs is not None:
        return runs
    if run is None or run.parent == Path():
        return runs_directory() if run is None or not run.exists() else run.resolve().parent
    if not run.parent.is_dir():
        raise RunDirectoryError(f"{run}: there is no folder {run.parent}", remedy="name a folder that `tare run` made")
    return run.parent


def _day(text: str) -> Any:
    import datetime as dt

    try:
        return dt.date.fromisoformat(text) if text else None
    except ValueError:
        raise SuiteError("--until", f"{text!r} is not a date such as 2027-01-31") from None


def _login() -> str:
    import getpass

    from tare.bench.errors import TareError
    from tare.bench.process import run

    try:
        return run(("git", "config", "user.name"), timeout_s=5).strip()
    except TareError:
        return getpass.getuser() if sys.stdin is not None else ""
