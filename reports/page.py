"""Lays a run out as a page: everything the template shows, already in words, numbers and figures.

The template only places; what is said is decided here and in ``wording`` and ``findings``.
"""

import datetime as dt
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from bench.model import Event, EventKind
from bench.stats import MANY_BLOCKS, Verdict
from bench.units import Unit, format_duration, format_size, format_value
from reports import findings
from reports.analysis import Analysis, Backend, CellResult, Row, Subject
from reports.charts import PHASES, SHAPES, Chart, distribution_charts, phase_chart
from reports.forest import Forest, forest_of
from reports.wording import (
    describe,
    direction_words,
    figure_sentence,
    format_range,
    format_ratio,
    format_value_range,
    is_cost,
    percent,
    plural,
    verdict_mark,
    verdict_word,
)

MOST_COMMANDS = 200
MOST_FAILURES = 100
MOST_EVIDENCE = 6000


class CellView(msgspec.Struct, frozen=True):
    """One line of a table: a metric on a backend."""

    backend: Backend
    value: str
    value_range: str
    ratio: str
    ratio_range: str
    verdict: str
    word: str
    mark: str
    note: str
    counts: str
    forest: str


class RowView(msgspec.Struct, frozen=True):
    """One metric: its lines, and its figure with the sentence that it supports."""

    identifier: str
    name: str
    description: str
    direction: str
    baseline_value: str
    compared: list[CellView]
    cells: list[CellView]
    sentence: str
    charts: list[tuple[str, str, Chart]]
    is_workload_metric: bool


class SubjectView(msgspec.Struct, frozen=True):
    """A section of the report."""

    identifier: str
    title: str
    params: str
    experiment: str
    rows: list[RowView]
    forest: Forest


class PhaseBar(msgspec.Struct, frozen=True):
    """A backend's start in its parts."""

    backend: Backend
    chart: Chart
    identifier: str
    total: str
    words: str


class PhaseView(msgspec.Struct, frozen=True):
    """The start of an instance, backend by backend, and the times behind it.

    ``times`` holds for each metric its name, its description, and (value, interval) for each bar's backend.
    """

    bars: list[PhaseBar]
    sentence: str
    legend: list[tuple[str, float, str]]
    times: list[tuple[str, str, list[tuple[str, str]]]]


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


def page_context(analysis: Analysis) -> dict[str, Any]:
    """Everything the template needs."""
    subjects = [subject_view(analysis, subject, number) for number, subject in enumerate(analysis.subjects)]
    found = findings.caveats(analysis)
    manifest = analysis.manifest
    return {
        "title": findings.suite_title(analysis),
        "description": _suite_description(manifest.suite),
        "question": findings.question(analysis),
        "findings": findings.findings(analysis),
        "caveats": [caveat for caveat in found if caveat.weight > 1],
        "details": [caveat for caveat in found if caveat.weight <= 1],
        "manifest": manifest,
        "baseline": analysis.baseline,
        "baseline_name": manifest.baseline,
        "backends": analysis.backends,
        "shapes": SHAPES,
        "backend_facts": {name: backend.facts for name, backend in manifest.backends.items()},
        "virtualization": findings.host_virtualization(analysis),
        "subjects": subjects,
        "phases": phase_view(analysis),
        "failures": failure_views(analysis),
        "failure_count": len(analysis.failures),
        "commands": command_views(analysis.run.events),
        "envelope": _envelope_lines(analysis),
        "design": _design_line(analysis),
        "when": _when(manifest.started_utc, manifest.ended_utc),
        "suite_text": json.dumps(msgspec.to_builtins(manifest.suite), indent=2, ensure_ascii=False),
        "image": _flat(manifest.image),
        "packages": manifest.image.get("packages") or {},
        "margin": percent(analysis.margin),
        "comparisons": len([one for *_, one in analysis.comparisons if one.p_value is not None]),
        "downgraded": sum(one.verdict is not one.verdict_adjusted for *_, one in analysis.comparisons),
        "many_blocks": MANY_BLOCKS,
        "warmup_samples": analysis.warmup_samples,
        "sample_count": len(analysis.run.samples),
    }


def subject_view(analysis: Analysis, subject: Subject, number: int) -> SubjectView:
    """A subject with its figures drawn."""
    forest = forest_of(subject, analysis.margin)
    rows = []
    for place, row in enumerate(subject.rows):
        identifier = f"f{number}-{place}"
        cells = [_cell_view(row, cell, forest) for cell in row.cells]
        base = next((cell for cell in cells if cell.backend.is_baseline), None)
        rows.append(
            RowView(
                identifier=identifier,
                name=row.metric.name,
                description=describe(row.metric),
                direction=direction_words(row.metric),
                baseline_value=base.value if base is not None else "–",
                compared=[cell for cell in cells if not cell.backend.is_baseline],
                cells=cells,
                sentence=figure_sentence(row, analysis.baseline.label if analysis.baseline else None),
                charts=_charts(row, identifier),
                is_workload_metric=row.is_workload_metric,
            )
        )
    title = "Start and stop" if subject.experiment == "boot" else subject.title
    return SubjectView(f"s{number}", title, subject.params_line, subject.experiment, rows, forest)


def phase_view(analysis: Analysis) -> PhaseView | None:
    """The start phases of every backend that has all three, or None."""
    for subject in analysis.subjects:
        if subject.experiment != "boot":
            continue
        rows = {row.metric.name: row for row in subject.rows}
        if not all(metric in rows for metric, _, _ in PHASES):
            continue
        bars = list(_phase_bars(rows))
        if bars:
            legend = [(name, strength, describe(rows[metric].metric)) for metric, name, strength in PHASES]
            sentence = "; ".join(f"{bar.backend.label}: {bar.words}" for bar in bars) + "."
            times = [_phase_times(row, bars) for row in subject.rows if row.metric.unit is Unit.SECOND]
            return PhaseView(bars, sentence, legend, times)
    return None


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


def _cell_view(row: Row, cell: CellResult, forest: Forest) -> CellView:
    found, unit = cell.comparison, row.metric.unit
    counts = (
        f"{plural(cell.n_blocks, 'block')}, {plural(cell.n_instances, 'instance')}, "
        f"{plural(cell.n_iterations, 'value')}"
    )
    # A ratio without a verdict says why instead; the baseline has neither.
    has_verdict = found is not None and found.low is not None
    verdict = found.verdict if found is not None and has_verdict else Verdict.INCONCLUSIVE
    word = verdict_word(row.metric, verdict) if has_verdict else ""
    return CellView(
        backend=cell.backend,
        value=format_value(cell.estimate.centre, unit),
        value_range=format_value_range(cell.estimate.low, cell.estimate.high, unit),
        ratio="1×" if cell.backend.is_baseline else format_ratio(found.ratio if found is not None else None),
        ratio_range=format_range(found.low, found.high) if found is not None else "",
        verdict=_style(row, verdict) if has_verdict else "none",
        word=word,
        mark=verdict_mark(word),
        note=_note(cell),
        counts=counts,
        forest=forest.line(found, cell.backend.place),
    )


def _style(row: Row, verdict: Verdict) -> str:
    """The class of a verdict. What is used up has no good side: an instance that reads less may just be slower."""
    differs = verdict in (Verdict.FASTER, Verdict.SLOWER)
    return "differs" if differs and is_cost(row.metric) else str(verdict)


def _note(cell: CellResult) -> str:
    """Why a line of a table has no verdict, or one that does not hold over all comparisons."""
    found = cell.comparison
    if found is None:
        return "" if cell.backend.is_baseline else "nothing to compare with"
    if found.verdict is not found.verdict_adjusted:
        return "not after correction for many comparisons"
    return found.note


def _charts(row: Row, identifier: str) -> list[tuple[str, str, Chart]]:
    """The pictures of a metric: words, name, chart. None if every value is 0: the table says it."""
    values = [value for cell in row.cells for value in cell.points.instance_medians]
    if not any(values):
        return []
    drawn = distribution_charts(row, identifier)
    return [(words, f"{identifier}-s" if place else identifier, chart) for place, (words, chart) in enumerate(drawn)]


def _phase_bars(rows: Mapping[str, Row]) -> Iterator[PhaseBar]:
    for cell in rows[PHASES[0][0]].cells:
        phases: list[tuple[str, float]] = []
        for metric, name, _ in PHASES:
            same = [one for one in rows[metric].cells if one.backend == cell.backend]
            phases.extend((name, one.estimate.centre) for one in same)
        if len(phases) != len(PHASES) or any(seconds < 0 for _, seconds in phases):
            continue
        total = sum(seconds for _, seconds in phases)
        longest = max(phases, key=lambda phase: phase[1])
        identifier = f"p{cell.backend.place}"
        share = "most of it" if longest[1] > total / 2 else "the longest part"
        words = f"{format_duration(total)}, {share} {longest[0]} ({format_duration(longest[1])})"
        chart = phase_chart(phases, cell.backend.place, identifier)
        yield PhaseBar(cell.backend, chart, identifier, format_duration(total), words)


def _phase_times(row: Row, bars: list[PhaseBar]) -> tuple[str, str, list[tuple[str, str]]]:
    cells = {cell.backend.name: cell.estimate for cell in row.cells}
    times = [
        ("–", "")
        if (found := cells.get(bar.backend.name)) is None
        else (format_duration(found.centre), format_value_range(found.low, found.high, row.metric.unit))
        for bar in bars
    ]
    return row.metric.name, describe(row.metric), times


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
    rates = []
    if bytes_per_s is not None:
        rates.append(f"{format_size(bytes_per_s)}/s")
    if ops_per_s is not None:
        rates.append(f"{ops_per_s:,} operations/s")
    return ", ".join(rates) or None


def _design_line(analysis: Analysis) -> str:
    samples = analysis.run.samples
    blocks, instances = len(samples.distinct("block")), len(samples.distinct("instance"))
    return (
        f"{plural(blocks, 'block')}, {plural(instances, 'instance')} of "
        f"{analysis.manifest.planned_instances:,} planned, "
        f"seed {analysis.manifest.seed}"
    )


def _when(started: str, ended: str) -> str:
    """When a run was, and how long it took; as written where that is not a time."""
    try:
        first = dt.datetime.fromisoformat(started)
        text = f"{first:%d %B %Y, %H:%M:%S} UTC".lstrip("0")
        took = (dt.datetime.fromisoformat(ended) - first).total_seconds() if ended else None
    except (ValueError, TypeError):
        return f"{started} {ended}".strip()
    return text if took is None else f"{text}, {format_duration(took)}"


def _suite_description(suite: Mapping[str, Any]) -> str:
    head = suite.get("suite")
    found = head.get("description") if isinstance(head, dict) else suite.get("description")
    return str(found or "")


def _flat(image: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The image's own facts, without its long list of packages."""
    size = image.get("size_bytes")
    lines = [(str(name), str(value)) for name, value in image.items() if not isinstance(value, dict | list)]
    return [
        (name, format_value(float(size), Unit.BYTE) if name == "size_bytes" and size is not None else value)
        for name, value in lines
    ]
