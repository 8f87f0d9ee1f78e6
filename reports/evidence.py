"""What stands behind a report's figures: the failures, the commands that were run, and the samples themselves."""

import base64
import gzip
import io
import shlex
from pathlib import Path

import msgspec

from tare.bench.analysis import Analysis
from tare.bench.model import Event, EventKind
from tare.bench.units import format_duration

MOST_COMMANDS = 200
MOST_FAILURES = 100
MOST_EVIDENCE = 6000
MOST_EMBEDDED_SAMPLES = 20_000
MOST_EMBEDDED_BYTES = 400_000
BESIDE = ("samples.parquet", "samples.jsonl")


class FailureView(msgspec.Struct, frozen=True):
    """Instances of a cell that failed in the same way."""

    cell: str
    message: str
    count: int
    evidence: str


class CommandView(msgspec.Struct, frozen=True):
    """A command that was run, and how often on which backend."""

    command: str
    role: str
    runs: str
    durations: str
    failed: int


class RawView(msgspec.Struct, frozen=True):
    """The samples behind a report: files that lie beside it, and packed CSV where that is small (else empty)."""

    beside: list[str]
    packed: str


def failure_views(analysis: Analysis) -> list[FailureView]:
    """The failures, equal ones together, with the evidence of the first."""
    grouped: dict[tuple[str, str], list[Event]] = {}
    for event in analysis.failures:
        grouped.setdefault((event.cell, event.message), []).append(event)
    views = []
    for (cell, message), events in list(grouped.items())[:MOST_FAILURES]:
        evidence = str(events[0].details.get("evidence") or "")
        if len(evidence) > MOST_EVIDENCE:
            evidence = f"[…]\n{evidence[-MOST_EVIDENCE:]}"
        views.append(FailureView(cell, message, len(events), evidence))
    return views


def command_views(events: list[Event]) -> list[CommandView]:
    """The commands that were run, equal ones together, in the order of their first run."""
    grouped: dict[tuple[tuple[str, ...], str], list[Event]] = {}
    for event in events:
        if event.kind is EventKind.COMMAND:
            argv = tuple(event.details.get("argv") or ())
            grouped.setdefault((argv, str(event.details.get("role") or "")), []).append(event)
    views = []
    for (argv, role), runs in list(grouped.items())[:MOST_COMMANDS]:
        counts: dict[str, int] = {}
        for event in runs:
            backend = event.cell.rpartition("/")[2]
            counts[backend] = counts.get(backend, 0) + 1
        durations = sorted(value for event in runs if isinstance(value := event.details.get("duration_s"), int | float))
        spread = f"{format_duration(durations[0])} – {format_duration(durations[-1])}" if durations else "–"
        failed = sum(event.details.get("returncode") != 0 for event in runs)
        words = ", ".join(f"{name} {count}" for name, count in counts.items())
        views.append(CommandView(shlex.join(map(str, argv)), role, words, spread, failed))
    return views


def raw_view(analysis: Analysis, beside: Path | None) -> RawView:
    """Where the samples are. ``beside`` is the folder that the page will lie in, if it is known."""
    run = analysis.run
    linked = []
    if beside is not None and beside.resolve() == run.path.resolve():
        linked = [name for name in BESIDE if (run.path / name).exists()]
    return RawView(linked, _packed_samples(analysis))


def _packed_samples(analysis: Analysis) -> str:
    """Every sample as CSV, packed; empty if there are none, or too many for a page that is mailed."""
    from tare.reports.samples import sample_frame

    if not 0 < len(analysis.run.samples) <= MOST_EMBEDDED_SAMPLES:
        return ""
    text = io.StringIO()
    sample_frame(analysis.run).to_csv(text, index=False, lineterminator="\r\n")
    packed = base64.b64encode(gzip.compress(text.getvalue().encode(), compresslevel=9, mtime=0)).decode("ascii")
    return packed if len(packed) <= MOST_EMBEDDED_BYTES else ""
