"""The report as one HTML file that needs nothing else: no network, no second file, and no script to be read.

The template only places: what it shows is decided here and in the modules of its sections, already in words, numbers
and figures.
"""

import base64
import csv
import gzip
import io
import json
import re
import shlex
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tare.bench.analysis import Analysis, RunResults
from tare.bench.catalogue import NoteCode
from tare.bench.readable import readable
from tare.bench.records import Event, EventKind
from tare.bench.reporter import Reporter
from tare.bench.units import format_duration, format_size
from tare.bench.version import tare_version
from tare.reports import claims, headline
from tare.reports.blocks import block_views, emulated_tables, instances_view
from tare.reports.caveats import suite_title
from tare.reports.doubts import doubts
from tare.reports.drawing import end_drawing
from tare.reports.instances import TOLERANCE
from tare.reports.picture import panel_views
from tare.reports.published import published_views
from tare.reports.requirements import requirement_views
from tare.reports.samples import sample_rows
from tare.reports.wording import percent

if TYPE_CHECKING:
    import jinja2

    from tare.bench.analysis.comparison import RunComparison
    from tare.bench.capacity.by_host import FleetReport
    from tare.bench.capacity.planned import Plan

TEMPLATES = Path(__file__).with_name("templates")


class HtmlReporter(Reporter):
    """One self-contained page: verdicts first, then figures, then everything needed to doubt them."""

    name = "html"
    summary = "one HTML file to read and to mail, which needs no network"
    suffix = ".html"
    compares = True
    fleets = True
    plans = True

    def write(self, results: RunResults, output: Path) -> None:
        output.write_text(render_page(results.analysis, output.parent), "utf-8")

    def write_comparison(self, comparison: "RunComparison", output: Path) -> None:
        from tare.reports.pages import render_comparison  # its page is built on this one's

        output.write_text(render_comparison(comparison), "utf-8")

    def write_plan(self, plan: "Plan", output: Path) -> None:
        from tare.reports.plan_page import render_plan  # its page is built on this one's

        output.write_text(render_plan(plan), "utf-8")

    def write_fleet(self, report: "FleetReport", output: Path) -> None:
        from tare.reports.fleet_page import render_fleet  # its page is built on this one's

        output.write_text(render_fleet(report), "utf-8")

    def write_index(self, folder: Path, output: Path) -> None:
        from tare.reports.pages import render_index  # its page is built on this one's

        output.write_text(render_index(folder), "utf-8")


def render_page(analysis: Analysis, beside: Path | None = None) -> str:
    """The page, to lie in the folder ``beside``: it links to samples that are there."""
    context = page_context(analysis, beside)
    end_drawing()
    return render_template("report.html.j2", context)


def render_template(name: str, context: dict[str, Any]) -> str:
    """A page from its template, with the style and the script that all pages of runs have."""
    return (
        page_environment()
        .get_template(name)
        .render(
            **context,
            tare_version=tare_version(),
            style=(TEMPLATES / "report.css").read_text("utf-8"),
            script=(TEMPLATES / "report.js").read_text("utf-8"),
        )
    )


def page_environment() -> "jinja2.Environment":
    """The templates, in which every text is escaped and no missing value passes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["urlpath"] = urllib.parse.quote
    return environment


def _finalize(value: object) -> object:
    """Every text that the template shows passes here, before it is escaped."""
    from markupsafe import Markup

    return readable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> object:
    """A name that may be broken after its dots and underscores."""
    from markupsafe import Markup, escape

    # As str: joining pieces of Markup escapes them again.
    escaped = str(escape(readable(name)))
    return Markup(re.sub(r"([._])", r"\1<wbr>", escaped))  # noqa: S704 - escaped, then only <wbr> added


def _packed(text: str) -> str:
    """Compressed, in letters that are safe inside a script element. The browser unpacks it (DecompressionStream)."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode("ascii")


def page_context(analysis: Analysis, beside: Path | None = None) -> dict[str, Any]:
    """Everything the template needs. ``beside`` is the folder that the page will lie in, if it is known."""
    manifest = analysis.manifest
    judged = claims.judge(analysis) if analysis.subjects else []
    return {
        "title": suite_title(analysis),
        "question": headline.question(analysis),
        "answer": headline.headings(headline.answer(analysis)),
        "legend": headline.legend(analysis),
        "grade": analysis.grade,
        "fences": headline.fences(analysis),
        "caveats": headline.top_caveats(analysis),
        "where": headline.where(analysis),
        "panels": panel_views(analysis),
        "requirements": requirement_views(analysis),
        "blocks": block_views(analysis),
        "instances": instances_view(analysis),
        "doubts": doubts(analysis),
        "emulated": emulated_tables(analysis),
        "analysis": analysis,
        "manifest": manifest,
        "real": [one for one in analysis.backends if not one.is_fenced],
        "backend_facts": {name: backend.texts for name, backend in manifest.backends.items()},
        "tolerance": percent(TOLERANCE),
        "claims": [one for one in judged if any(part.answer is not claims.Answer.ABSENT for part in one.parts)],
        "claims_absent": [one for one in judged if all(part.answer is claims.Answer.ABSENT for part in one.parts)],
        "published": published_views(analysis),
        "failures": failure_views(analysis),
        "commands": command_views(analysis.run.events),
        "files_beside": _files_beside(analysis, beside),
        "packed_samples": _packed_samples(analysis),
        "priming": _priming(analysis),
        "envelope": _envelope_lines(analysis),
        "suite_text": json.dumps(msgspec.to_builtins(manifest.suite), indent=2, ensure_ascii=False),
        "image": _flat(manifest.image),
        "packages": manifest.image.get("packages") or {},
        "margin": percent(analysis.margin),
        "comparisons": len([one for *_, one in analysis.comparisons if one.p_value is not None]),
        "sample_count": len(analysis.run.samples),
    }


def _envelope_lines(analysis: Analysis) -> list[tuple[str, str]]:
    envelope = analysis.manifest.envelope
    asked = {
        "Swap": format_size(envelope.swap_bytes) if envelope.swap_bytes else None,
        "CPU quota": None if envelope.cpu_quota is None else f"{envelope.cpu_quota:g} CPUs",
        "CPU weight": envelope.cpu_weight,
        "Read at most": _rates(envelope.io_read_bytes_per_s, envelope.io_read_ops_per_s),
        "Written at most": _rates(envelope.io_write_bytes_per_s, envelope.io_write_ops_per_s),
    }
    return [
        ("CPUs", ", ".join(str(cpu) for cpu in envelope.cpus)),
        ("Memory", format_size(envelope.memory_bytes)),
        ("Scratch folder", format_size(envelope.scratch_bytes)),
        ("Most processes", f"{envelope.pids_max:,}"),
        *((name, str(value)) for name, value in asked.items() if value is not None),
    ]


def _rates(bytes_per_s: int | None, ops_per_s: int | None) -> str | None:
    size = "" if bytes_per_s is None else f"{format_size(bytes_per_s)}/s"
    count = "" if ops_per_s is None else f"{ops_per_s:,} operations/s"
    return ", ".join(filter(None, (size, count))) or None


def _priming(analysis: Analysis) -> str:
    """What was done before the first block, and what of it failed; empty where nothing was."""
    notes = [event.details for event in analysis.run.events if event.note_code == NoteCode.PRIMED]
    if not notes:
        return ""
    failed = {f"{key} on {one['backend']}" for one in notes for key in one.get("failed", ())}
    problems = f" (not: {', '.join(sorted(failed))})" if failed else ""
    return f"Each backend ran each workload once before the first block, unmeasured{problems}."


def _flat(image: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The image's own facts, without its long list of packages."""
    return [
        (str(name), format_size(float(value)) if name == "size_bytes" and value is not None else str(value))
        for name, value in image.items()
        if not isinstance(value, dict | list)
    ]


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
        counts = Counter(event.cell.rpartition("/")[2] for event in runs)
        durations = sorted(value for event in runs if isinstance(value := event.details.get("duration_s"), int | float))
        spread = f"{format_duration(durations[0])} – {format_duration(durations[-1])}" if durations else "–"
        failed = sum(event.details.get("returncode") != 0 for event in runs)
        words = ", ".join(f"{name} {count}" for name, count in counts.items())
        views.append(CommandView(shlex.join(map(str, argv)), role, words, spread, failed))
    return views


def _files_beside(analysis: Analysis, beside: Path | None) -> list[str]:
    """The samples' files that lie next to the page, if the folder ``beside`` that it will lie in is the run's."""
    folder = analysis.run.path
    is_there = beside is not None and beside.resolve() == folder.resolve()
    return [name for name in BESIDE if is_there and (folder / name).exists()]


def _packed_samples(analysis: Analysis) -> str:
    """Every sample as CSV, packed; empty if there are none, or too many for a page that is mailed."""
    if not 0 < len(analysis.run.samples) <= MOST_EMBEDDED_SAMPLES:
        return ""
    text = io.StringIO()
    csv.writer(text).writerows(sample_rows(analysis.run))
    packed = _packed(text.getvalue())
    return packed if len(packed) <= MOST_EMBEDDED_BYTES else ""
