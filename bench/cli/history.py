"""``tare history``: an index of a folder of runs, and what it holds."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tare.bench.cli.guard import complain, guard, make_app

app = make_app("history", "Keep many runs as one history: index, list, show, export, publish, prune.")

RunsFolder = Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Folder of runs (runs).", show_default=False)]
Runs = Annotated[Path | None, typer.Option("--runs", help="Folder of runs (runs).")]
Label = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only runs with this label. Repeatable.")]


def runs_folder(given: Path | None) -> Path:
    """The folder of runs: the one that is named, or where runs are made."""
    from tare.bench.locations import runs_directory

    return given if given is not None else runs_directory()


@app.command()
def update(
    runs: RunsFolder = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Enter the new runs of a folder into its index.

    Runs that cannot be entered (still being written, half copied) are named with the reason and left out.
    """
    with guard():
        import json

        from tare.bench.history.index import update_history

        folder = runs_folder(runs)
        done = update_history(folder)
        if as_json:
            left_out = [str(error.message) for error in done.left_out]
            typer.echo(json.dumps({"added": done.added, "left_out": left_out, "runs": done.runs}, indent=2))
            return
        if done.rebuilt:
            typer.echo(f"the index was made again: {done.rebuilt}")
        for error in done.left_out:
            complain(f"left out: {error.message}", error.remedy)
        count = f"{len(done.added)} run{'' if len(done.added) == 1 else 's'}"
        typer.echo(f"{count} entered; the history of {folder} has {done.runs}")


@app.command("list")
def list_(
    runs: RunsFolder = None,
    *,
    series: Annotated[bool, typer.Option("--series", help="List series, not runs.")] = False,
    label: Label = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the runs of a history, or its series."""
    with guard():
        from tare.bench.cli.values import named_values
        from tare.bench.history.index import open_history
        from tare.bench.history.views import list_series, with_labels

        history = open_history(runs_folder(runs))
        if series:
            lines = list_series(history)
            named = [(one.series, one.name, str(one.n_runs), one.last_run) for one in lines]
            _print(lines, ("series", "name", "runs", "last run"), named, as_json=as_json)
            return
        entries = with_labels(history.entries, named_values("--label", label or ()))
        rows = [
            (
                one.run,
                one.started_utc[:16].replace("T", " "),
                one.suite,
                one.host[:8],
                one.standing,
                str(sum(one.failed.values())),
                " ".join(f"{name}={value}" for name, value in one.labels.items()),
            )
            for one in entries
        ]
        _print(entries, ("run", "start (UTC)", "suite", "host", "status", "failed", "labels"), rows, as_json=as_json)


@app.command()
def show(
    series: Annotated[str, typer.Argument(help="Series: its identifier, or words of its name.")],
    *,
    runs: Runs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Show a series night by night: level, ratio to bare metal, changed conditions."""
    with guard():
        from tare.bench.history.index import open_history
        from tare.bench.history.views import find_series, nights_of
        from tare.bench.units import Unit, format_value

        history = open_history(runs_folder(runs))
        found = find_series(history, series)
        lines = nights_of(history, found.series)
        if not as_json:
            typer.echo(f"{found.name}  ({found.series})")
        rows, before = [], ""
        for one in lines:
            changed = history.changed_fields(before or one.epoch, one.epoch)
            before = one.epoch
            level = "–" if one.level is None else format_value(one.level, Unit(found.unit))
            ratio = "–" if one.ratio is None else f"{one.ratio:.4g}×"
            notes = ", ".join(f"{field}: {old} → {new}" for field, (old, new) in changed.items())
            labels = " ".join(f"{name}={value}" for name, value in one.labels.items())
            kind = "" if one.is_night else "rerun"
            note = "; ".join(
                part for part in (kind, f"{one.failed} failed" if one.failed else "", notes, labels) if part
            )
            rows.append((one.started_utc[:16].replace("T", " "), one.run, level, ratio, str(one.blocks), note))
        _print(lines, ("start (UTC)", "run", "level", "ratio", "blocks", "notes"), rows, as_json=as_json)


@app.command()
def export(
    runs: RunsFolder = None,
    *,
    form: Annotated[str, typer.Option("--format", "-f", help="csv, parquet, json or openmetrics.")] = "csv",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; - for standard output.")] = None,
    label: Label = None,
) -> None:
    """Write the history as one table: a row for each run, series and metric.

    openmetrics holds the newest value of each series.
    """
    with guard():
        from tare.bench.cli.output import chosen_output, say_where, whole_file
        from tare.bench.cli.values import named_values
        from tare.bench.history.index import open_history
        from tare.bench.history.views import export as write

        history, labels = open_history(runs_folder(runs)), named_values("--label", label or ())
        output = chosen_output(output)
        with whole_file(output, f".{form}") as part:
            write(history, form, part, labels)
        say_where(output)


@app.command()
def publish(
    runs: RunsFolder = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pages, made if missing.")],
    title: Annotated[str, typer.Option(help="Title of the pages (the suite's name).")] = "",
    address: Annotated[str, typer.Option(help="Address at which the pages will be, for the feed.")] = "",
    form: Annotated[str, typer.Option("--format", "-f", help="html or a plug-in.")] = "html",
) -> None:
    """Write the history as static pages: what changed and whose it is, each subject over time, the runs, a feed.

    The pages need no network and no server. Links to reports lead to the runs' folders, relative to the pages.
    """
    with guard():
        from tare.bench.errors import StoreError
        from tare.bench.history.acks import acks_file_of, load_acks
        from tare.bench.history.index import open_history
        from tare.bench.history.story import tell
        from tare.bench.registry import find_history_sites

        site = find_history_sites().get(form)()
        history = open_history(runs_folder(runs))
        story = tell(history, lambda entry: load_acks(acks_file_of(entry.suite_file, history.runs_folder)))
        named = title or ", ".join(dict.fromkeys(one.suite for one in story.chapters)) or "History"
        try:
            output.mkdir(parents=True, exist_ok=True)
            site.write(story, output, title=named, address=address)
        except OSError as error:
            problem = f"cannot write the pages to {output}: {error.strerror}"
            raise StoreError(problem, remedy="choose another --output; the history itself is kept") from error
        typer.echo(str(output / "index.html"))


@app.command()
def prune(
    runs: RunsFolder = None,
    *,
    keep: Annotated[
        list[str], typer.Option(metavar="STAGE=AGE", help="raw=30d, samples=2y. Repeatable; block medians stay.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
) -> None:
    """Make room: remove raw outputs, and samples, of runs that are older than this.

    Only runs that are in the index are pruned. Their block medians stay, in the index and in the runs' folders.
    """
    with guard():
        from tare.bench.cli.values import named_values
        from tare.bench.history.index import open_history, update_history
        from tare.bench.history.prune import prune as make_room
        from tare.bench.history.prune import read_keep
        from tare.bench.units import format_size

        stages = read_keep(named_values("--keep", keep))
        folder = runs_folder(runs)
        update_history(folder)
        gone = make_room(open_history(folder), stages, only_say=dry_run)
        for one in gone:
            typer.echo(f"{'would remove' if dry_run else 'removed'} {one.stage} of {one.run} ({format_size(one.size)})")
        typer.echo(f"{format_size(sum(one.size for one in gone))} in all")


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="JSON of pyperf, of hyperfine, or of Google Benchmark.")],
    *,
    runs: Runs = None,
    suite: Annotated[str, typer.Option(help="Suite that the series belong to.")] = "imported",
    host: Annotated[str, typer.Option(help="Host that they were measured on.")] = "",
    started: Annotated[str, typer.Option(metavar="TIME", help="Start in ISO 8601 (the file's own).")] = "",
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Label. Repeatable.")] = None,
) -> None:
    """Enter what other tools measured: each file is a run.

    No bare metal was measured next to it: the gate judges the levels, and cannot tell a change from one of the host.
    """
    with guard():
        from tare.bench.cli.values import named_values
        from tare.bench.history.foreign import import_file
        from tare.bench.history.index import update_history

        folder, labels = runs_folder(runs), named_values("--label", label or ())
        begun = _instant(started)
        for file in files:
            typer.echo(str(import_file(file, folder, suite=suite, host=host, started=begun, labels=labels)))
        update_history(folder)


def _instant(text: str) -> str:
    import datetime as dt

    from tare.bench.errors import SuiteError

    try:
        return dt.datetime.fromisoformat(text).astimezone(dt.UTC).isoformat(timespec="seconds") if text else ""
    except ValueError:
        raise SuiteError("--started", f"{text!r} is not a time such as 2026-12-01T02:00:00+00:00") from None


def _print(values: object, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, as_json: bool) -> None:
    import msgspec

    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(values), indent=2).decode())
        return
    from rich.console import Console
    from rich.table import Table

    from tare.bench.readable import as_markup

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(as_markup(cell) for cell in row))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
