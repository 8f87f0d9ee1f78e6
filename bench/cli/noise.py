"""``tare doctor --noise``: bare metal against itself, the noise floor, and what makes it."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tare.bench.disturbance import disturbance_of
from tare.bench.errors import ExitCode
from tare.bench.ledger import Ledger, work_folder
from tare.bench.linux.cpus import format_cpus
from tare.bench.locations import ledger_directory, work_directory
from tare.bench.noise import Cause, HostWatch, MetricFloor, find_floors, noise_suite
from tare.bench.progress import RunDisplay
from tare.bench.readable import as_markup
from tare.bench.records import EventKind, Manifest, PlannedInstance
from tare.bench.session import run_suite
from tare.bench.store import load_run
from tare.bench.units import parse_duration

SHORTEST_S = 20.0
LONGEST_S = 3600.0


class NoiseReport(msgspec.Struct, frozen=True):
    """What ``--json`` prints. ``span_s`` is how long the measuring took; ``failed`` counts instances."""

    host: str
    cpus: tuple[int, ...]
    span_s: float
    failed: int
    floors: list[MetricFloor]
    causes: list[Cause]


class _Display(RunDisplay):
    """Blocks are added until the time is spent: how far cells are from a precision says nothing here."""

    def extend(self, plan: Sequence[PlannedInstance], standing: str) -> None:  # noqa: ARG002 - see the class
        super().extend(plan, "there is time for another one")


def noise_command(duration: str, output: Path | None, *, as_json: bool) -> ExitCode:
    """Measure, print the noise floor and its causes. The run is removed unless ``output`` names a folder for it."""
    suite = noise_suite(read_time(duration))
    watch = HostWatch(suite.envelope.cpus)
    console = Console(stderr=as_json, soft_wrap=not sys.stdout.isatty())
    with _run_folder(output) as folder:
        with _Display(console) as display:
            result = run_suite(suite, folder, display)
        if result.outcome.interrupted:
            console.print("interrupted: no noise floor from half a measurement")
            return ExitCode.INTERRUPTED
        run = load_run(folder)
    manifest = run.manifest
    ended = (disturbance_of(event, None) for event in run.events if event.kind is EventKind.INSTANCE_DONE)
    times = [event.at_s for event in run.events]
    report = NoiseReport(
        host=manifest.host_summary,
        cpus=manifest.envelope.cpus,
        span_s=round(max(times) - min(times), 1),
        failed=result.outcome.failed,
        floors=find_floors(run),
        causes=watch.causes([one for one in ended if one is not None], manifest.host),
    )
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(report), indent=2, ensure_ascii=False))
    else:
        _print(Console(soft_wrap=not sys.stdout.isatty()), report, manifest, output)
    return ExitCode.FAILED_CELLS if report.failed else ExitCode.OK


def read_time(text: str) -> float:
    """Seconds of ``--time``. Raises BadParameter."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"--time: {error}") from None
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise typer.BadParameter(f"--time {text}: from {SHORTEST_S:.0f} s to {LONGEST_S / 60:.0f} min")
    return seconds


@contextlib.contextmanager
def _run_folder(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    folder = work_directory() / f"noise-{os.getpid()}-{time.monotonic_ns()}"
    with Ledger(ledger_directory()) as ledger, work_folder(ledger, folder):
        yield folder


def _print(console: Console, report: NoiseReport, manifest: Manifest, output: Path | None) -> None:
    blocks = max((floor.n_blocks for floor in report.floors), default=0)
    console.print(f"\n[bold]{as_markup(report.host)}[/bold]")
    console.print(
        f"Bare metal against itself on CPU {format_cpus(report.cpus)}: {blocks} blocks in {report.span_s:.0f} s"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("metric", overflow="fold")
    for column in ("A/A ratio", "95 % interval", "smallest difference"):
        table.add_column(column, justify="right")
    subject = ""
    for floor in report.floors:
        if floor.subject != subject:
            subject = floor.subject
            table.add_row(f"[bold]{as_markup(subject)}[/bold]")
        alarm = "  differs from itself!" if floor.false_alarm else ""
        table.add_row(
            f"  {as_markup(floor.metric)}{alarm}",
            "–" if floor.ratio is None else f"{floor.ratio:.3f}",
            "–" if floor.low is None or floor.high is None else f"{floor.low:.3f} – {floor.high:.3f}",
            _share(floor.smallest_difference),
        )
    console.print(table)
    console.print(_in_words(report), soft_wrap=True)
    if report.causes:
        console.print("\n[bold]What makes it noisy, as far as can be seen[/bold]")
    for cause in report.causes:
        console.print(f"- {as_markup(cause.seen)}\n  [dim]what to do: {as_markup(cause.remedy)}[/dim]", highlight=False)
    if report.failed:
        console.print(f"\n{report.failed} of {manifest.planned_instances} instances failed")
    if output is not None:
        console.print(f"\nThe run is kept: tare report {as_markup(str(output))}", highlight=False, soft_wrap=True)


def _in_words(report: NoiseReport) -> str:
    leading = [(floor.smallest_difference, floor.subject) for floor in report.floors if floor.leading]
    known = [(share, subject) for share, subject in leading if share is not None]
    if not known:
        return "Too few blocks for a noise floor: give it more --time."
    (least, quiet), (most, loud) = min(known), max(known)
    text = (
        f"A run of as many blocks would tell differences from {_share(least)} ({quiet}) to {_share(most)} ({loud}) "
        "from none; four times as many blocks halve that."
    )
    alarms = [floor for floor in report.floors if floor.false_alarm]
    if alarms:
        text += (
            f" {len(alarms)} metric{'s' if len(alarms) > 1 else ''} of the same thing differed from itself: something "
            "here keeps time with the blocks, and small differences cannot be believed until it is found."
        )
    return text


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if value < 1 else f"{1 + value:.1f}×"
