"""Markdown for a pull request: a run's findings, ratios, caveats and claims, or a comparison. GitHub's dialect."""

import re
from collections.abc import Sequence
from pathlib import Path

from tare.bench.analysis import Analysis, RunResults
from tare.bench.analysis.comparison import LEVEL_NOTE, Line, LineKind, RunComparison
from tare.bench.model import Metric
from tare.bench.readable import one_line
from tare.bench.reporter import Reporter
from tare.bench.stats.comparisons import Comparison
from tare.bench.units import format_value
from tare.reports import findings
from tare.reports.claims import judge
from tare.reports.compare import format_side, how_compared, notes_of, tally, verdict_of
from tare.reports.wording import (
    format_range,
    format_ratio,
    metric_name,
    noise_sentence,
    path_sentence,
    verdict_mark,
    verdict_word,
)

MOST_ROWS = 150
"""Of one table: a comment on GitHub holds 65,536 characters. What is left out is said."""
_ACTIVE = re.compile(
    r"[\\`*\[\]<>#|~$@&]|(?<![a-z0-9])_|_(?![a-z0-9])|:(?=//)|:(?=[\w+-]+:)|(?<=www)\.|(?<=GH)-", re.IGNORECASE
)
_NAME_WIDTH = 100
_KIND_NAMES = {LineKind.PAIRED: "", LineKind.ISOLATION: ", cost of isolation", LineKind.LEVEL: ", level"}
_KEPT_LEVELS = "Levels, without a verdict"


class MarkdownReporter(Reporter):
    """Findings, caveats, a table of ratios and the claims as Markdown."""

    name = "markdown"
    summary = "findings, ratios and caveats for a pull request (Markdown)"
    suffix = ".md"
    compares = True

    def write(self, results: RunResults, output: Path) -> None:
        output.write_text(render_markdown(results.analysis), "utf-8")

    def write_comparison(self, comparison: RunComparison, output: Path) -> None:
        output.write_text(render_comparison(comparison), "utf-8")


def escape(text: str, most: int = _NAME_WIDTH) -> str:
    """A foreign text on one line, in which nothing is markup, a link, a mention or a reference to an issue.

    Characters that could act inside a line are written as references, which Markdown takes as text in every place.
    """
    return _ACTIVE.sub(lambda match: f"&#{ord(match[0])};", one_line(text, most))


def render_markdown(analysis: Analysis) -> str:
    """The report of a run."""
    lines = [f"### tare: {escape(findings.suite_title(analysis))}", "", escape(findings.question(analysis), 400), ""]
    lines += [f"{number}. {escape(text, 600)}" for number, text in enumerate(findings.findings(analysis), start=1)]
    lines += _listed("To keep in mind", [caveat.text for caveat in findings.caveats(analysis) if caveat.weight > 1])
    lines += ["", *_ratios(analysis), *_claims(analysis), *_environment(analysis)]
    return "\n".join(lines) + "\n"


def render_comparison(comparison: RunComparison) -> str:
    """A comparison: what differs stands open, everything else is folded away."""
    first, second = escape(comparison.first), escape(comparison.second)
    how = escape(how_compared(comparison), 200)
    lines = [
        f"### tare: {second} against {first}",
        "",
        f"{escape(tally(comparison))}. Ratios are {second} over {first}, {how}; intervals are at 95 %.",
    ]
    lines += _listed("Confounds: these conditions differ and were allowed to", list(map(str, comparison.confounds)))
    lines += _listed("To keep in mind", notes_of(comparison))
    calm = ("equivalent", "inconclusive")
    with_verdict = [line for line in comparison.lines if line.found.note != LEVEL_NOTE]
    for title, kept in (
        ("Differences", [line for line in with_verdict if verdict_of(line) not in calm]),
        ("No difference found", [line for line in with_verdict if verdict_of(line) in calm]),
        (_KEPT_LEVELS, [line for line in comparison.lines if line.found.note == LEVEL_NOTE]),
    ):
        table = _compared_table(kept, first, second)
        lines += ["", *_folded(f"{title} ({len(kept)})", table, is_open=title == "Differences")] if kept else []
    return "\n".join(lines) + "\n"


def _listed(title: str, texts: list[str]) -> list[str]:
    return ["", f"**{title}**", "", *(f"- {escape(text, 600)}" for text in texts)] if texts else []


def _compared_table(lines: Sequence[Line], first: str, second: str) -> list[str]:
    has_backends = any(line.backend for line in lines)
    head = ["metric", *(["backend"] if has_backends else []), first, second, "ratio", "interval", "verdict"]
    rows = []
    for line in lines:
        name = metric_name(one_line(line.workload or line.experiment), line.given, one_line(line.metric.name))
        name += _KIND_NAMES[line.kind]
        cells = [escape(name), *([escape(line.backend)] if has_backends else [])]
        cells += [escape(format_side(line, side.centre)) for side in (line.first, line.second)]
        rows.append([*cells, *_found(line.metric, line.found)])
    return _table(head, rows, words=2 if has_backends else 1)


def _ratios(analysis: Analysis) -> list[str]:
    """The workloads' own metrics openly, what the harness measured around them folded away."""
    if analysis.baseline is None:
        return []
    own: list[list[str]] = []
    around: list[list[str]] = []
    for subject, row, cell, found in analysis.comparisons:
        name, unit = metric_name(subject.title, subject.params_line, row.name), row.metric.unit
        base, value = ("–" if one is None else format_value(one.estimate.centre, unit) for one in (row.base, cell))
        cells = map(escape, (name, cell.backend.label, base, value))
        (own if row.is_workload_metric else around).append([*cells, *_found(row.metric, found)])
    head = ["metric", "backend", escape(analysis.baseline.label), "value", "ratio", "interval", "verdict"]
    lines = _table(head, own) if own else []
    return lines + (["", *_folded(f"Around them ({len(around)})", _table(head, around))] if around else [])


def _found(metric: Metric, found: Comparison) -> list[str]:
    if found.low is None or found.note:
        return [format_ratio(found.ratio), format_range(found.low, found.high), escape(found.note, 200)]
    word = verdict_word(metric, found.verdict_adjusted)
    shown = f"{verdict_mark(word)} **{word}**" if verdict_mark(word) not in ("", "=") else word
    if found.verdict is not found.verdict_adjusted:
        shown += f" ({verdict_word(metric, found.verdict)} before correction)"
    return [format_ratio(found.ratio), format_range(found.low, found.high), shown]


def _claims(analysis: Analysis) -> list[str]:
    rows = [[escape(one.statement, 200), one.verdict.value, escape(one.reason, 1000)] for one in judge(analysis)]
    return ["", *_folded("Claims of the field", _table(["claim", "here", "why"], rows, words=3))]


def _environment(analysis: Analysis) -> list[str]:
    manifest = analysis.manifest
    margins = sorted({found.margin for *_, found in analysis.comparisons})
    margin = ", ".join(f"{margin * 100:g} %" for margin in margins)
    about = [f"run {escape(manifest.run)}", f"host {escape(manifest.host_summary, 200)}"]
    paths = dict.fromkeys(path_sentence(subject, manifest, analysis.backends) for subject in analysis.subjects)
    about += [escape(path.removesuffix("."), 600) for path in paths if path]
    about += [f"image {escape(str(manifest.image.get('digest', '?'))[:19])}", f"tare {escape(manifest.tare_version)}"]
    noise = escape(noise_sentence(analysis), 400)
    shown = f"{'; '.join(about)}{f'; margin {margin}' if margin else ''}; 95 % intervals. {noise}".strip()
    return ["", f"<sub>{shown}</sub>"]


def _table(head: list[str], rows: list[list[str]], words: int = 2) -> list[str]:
    """A table; the first ``words`` columns and the last are words, the others numbers."""
    last = len(head) - 1
    rule = ["---" if place < words or place == last else "--:" for place in range(len(head))]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows[:MOST_ROWS])]
    left_out = len(rows) - MOST_ROWS
    return [*lines, *(["", f"{left_out} more rows are in the other forms of this report."] if left_out > 0 else [])]


def _folded(title: str, lines: list[str], *, is_open: bool = False) -> list[str]:
    return [f"<details{' open' if is_open else ''}><summary>{title}</summary>", "", *lines, "", "</details>"]
