"""Markdown for a pull request: a run's answer, grade, measurements and doubts, or a comparison. GitHub's dialect."""

import re
from collections.abc import Sequence
from pathlib import Path

from tare.bench.analysis import Analysis, CellResult, GradeLevel, RunResults
from tare.bench.analysis.comparison import LEVEL_NOTE, Line, LineKind, RunComparison
from tare.bench.capacity.by_host import FleetReport
from tare.bench.model import Metric
from tare.bench.readable import one_line
from tare.bench.reporter import Reporter
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.bench.units import Unit
from tare.reports.blocks import emulated_tables
from tare.reports.caveats import suite_title
from tare.reports.claims import judge
from tare.reports.compare import (
    format_side,
    grade_of_comparison,
    how_compared,
    line_name,
    notes_of,
    tally,
    verdict_of,
)
from tare.reports.doubts import doubts
from tare.reports.headline import answer, fences, grade_sentence, question, top_caveats
from tare.reports.ladder import LAYERS_HEAD, layer_tables
from tare.reports.names import names_of
from tare.reports.picture import panel_views
from tare.reports.requirements import AnswerView, requirement_views
from tare.reports.wording import (
    TENTATIVE,
    VERDICTS,
    format_change,
    format_change_range,
    format_estimate,
    path_sentence,
    plural,
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
    """The answer with its grade and leading measurements, everything else folded."""

    name = "markdown"
    summary = "the answer, its grade and all measurements for a pull request (Markdown)"
    suffix = ".md"
    compares = True
    fleets = True

    def write(self, results: RunResults, output: Path) -> None:
        output.write_text(render_markdown(results.analysis), "utf-8")

    def write_comparison(self, comparison: RunComparison, output: Path) -> None:
        output.write_text(render_comparison(comparison), "utf-8")

    def write_fleet(self, report: FleetReport, output: Path) -> None:
        from tare.reports.fleet import fleet_markdown  # its words are built on these

        output.write_text(fleet_markdown(report), "utf-8")


def escape(text: str, most: int = _NAME_WIDTH) -> str:
    """A foreign text on one line, in which nothing is markup, a link, a mention or a reference to an issue.

    Characters that could act inside a line are written as references, which Markdown takes as text in every place.
    """
    return _ACTIVE.sub(lambda match: f"&#{ord(match[0])};", one_line(text, most))


def render_markdown(analysis: Analysis) -> str:
    """The report of a run: the answer, the leading measurements, and everything else folded."""
    grade = escape(grade_sentence(analysis.grade), 400)
    usable = analysis.grade.level is not GradeLevel.NOT_USABLE
    lines = [f"### tare: {escape(suite_title(analysis))}", "", escape(question(analysis), 400), ""]
    lines += [f"**{escape(' '.join(answer(analysis)), 800)}**", "", grade if usable else f"**{grade}**"]
    lines += ["", *_leading(analysis)]
    lines += [f"> {escape(fence, 400)}" for fence in fences(analysis)]
    lines += _listed("To keep in mind", top_caveats(analysis))
    lines += _requirements(analysis)
    lines += ["", *_ratios(analysis), *_layers(analysis), *_doubts(analysis), *_emulated(analysis)]
    lines += [*_claims(analysis), *_environment(analysis)]
    return "\n".join(lines) + "\n"


def _leading(analysis: Analysis) -> list[str]:
    """The rows of the first picture."""
    lines: list[str] = []
    for panel in panel_views(analysis):
        rows = [
            [escape(row.title), escape(row.backend.label), escape(row.said), escape(row.rest)]
            for _, strips in panel.groups
            for row in strips
        ]
        lines += [*_table([escape(panel.title), "backend", "", ""], rows), ""]
    return lines


def _requirements(analysis: Analysis) -> list[str]:
    rows = [
        [*map(escape, (one.name, found.backend.label)), f"**{found.standing}**", escape(_likely(found), 400)]
        for one in requirement_views(analysis)
        for found in one.answers
    ]
    head = ["requirement", "backend", "", ""]
    return ["", *_folded("What this means for you", _table(head, rows, words=4), is_open=True)] if rows else []


def _likely(found: AnswerView) -> str:
    return f"{found.likely}. {found.more}" if found.likely else found.more


def _layers(analysis: Analysis) -> list[str]:
    return [
        line
        for title, rows in layer_tables(analysis)
        for line in ("", *_folded(title, _table(list(LAYERS_HEAD), [list(map(escape, row)) for row in rows])))
    ]


def _doubts(analysis: Analysis) -> list[str]:
    found = [f"- {escape(f'{one.where}: ' if one.where else '')}{escape(one.text, 600)}" for one in doubts(analysis)]
    return ["", *_folded(f"What could be wrong ({len(found)})", found)] if found else []


def _emulated(analysis: Analysis) -> list[str]:
    """The emulator's figures, folded away and without a verdict."""
    lines = []
    base = escape(analysis.baseline.label) if analysis.baseline is not None else "baseline"
    for backend, found in emulated_tables(analysis):
        rows = [list(map(escape, (f"{one.subject}: {one.name}", one.value, one.base, one.ratio))) for one in found]
        table = _table(["measurement", "under emulation", base, "difference"], rows, words=1)
        lines += [
            "",
            *_folded(f"The emulator's figures: {escape(backend.label)}; no verdict on a virtual machine", table),
        ]
    return lines


def render_comparison(comparison: RunComparison) -> str:
    """A comparison: what differs stands open, everything else is folded away."""
    first, second = escape(comparison.first), escape(comparison.second)
    how = escape(how_compared(comparison), 200)
    lines = [
        f"### tare: {second} against {first}",
        "",
        f"**{escape(grade_of_comparison(comparison), 600)}**",
        "",
        f"{escape(tally(comparison))}. Ratios are {second} over {first}, {how}; intervals are at 95 %.",
    ]
    lines += _listed("Confounds: these conditions differ and were allowed to", list(map(str, comparison.confounds)))
    lines += _listed("To keep in mind", notes_of(comparison))
    calm = (VERDICTS[Verdict.EQUIVALENT], VERDICTS[Verdict.INCONCLUSIVE])
    with_verdict = [line for line in comparison.lines if line.found.note != LEVEL_NOTE]
    for title, kept in (
        ("Differences", [line for line in with_verdict if verdict_of(line) not in calm]),
        ("No difference found", [line for line in with_verdict if verdict_of(line) in calm]),
        (_KEPT_LEVELS, [line for line in comparison.lines if line.found.note == LEVEL_NOTE]),
    ):
        table = _compared_table(comparison, kept, first, second)
        lines += ["", *_folded(f"{title} ({len(kept)})", table, is_open=title == "Differences")] if kept else []
    return "\n".join(lines) + "\n"


def _listed(title: str, texts: list[str]) -> list[str]:
    return ["", f"**{title}**", "", *(f"- {escape(text, 600)}" for text in texts)] if texts else []


def _compared_table(comparison: RunComparison, lines: Sequence[Line], first: str, second: str) -> list[str]:
    has_backends = any(line.backend for line in lines)
    head = ["metric", *(["backend"] if has_backends else []), first, second, "difference", "interval", "verdict"]
    rows = []
    for line in lines:
        name = f"{line_name(comparison, line)}{_KIND_NAMES[line.kind]}"
        cells = [escape(name), *([escape(line.backend)] if has_backends else [])]
        cells += [escape(format_side(line, side.centre)) for side in (line.first, line.second)]
        rows.append([*cells, *_found(line.metric, line.found)])
    return _table(head, rows, words=2 if has_backends else 1)


def _ratios(analysis: Analysis) -> list[str]:
    """Every measurement, a folded table a subject."""
    if analysis.baseline is None:
        return []
    names = names_of(analysis)
    rows: dict[str, list[list[str]]] = {}
    for subject, row, cell, found in analysis.comparisons:
        if cell.backend.is_fenced:
            continue
        title = names.subject(subject)
        if apart := names.told_apart(subject, analysis.subjects):
            title = f"{title}, {apart}"
        base, value = ("–" if one is None else format_cell(one, row.metric.unit) for one in (row.base, cell))
        cells = map(escape, (names.row(subject, row), cell.backend.label, base, value))
        rows.setdefault(title, []).append([*cells, *_found(row.metric, found)])
    head = ["measurement", "backend", escape(analysis.baseline.label), "value", "difference", "interval", "verdict"]
    return [
        line
        for title, own in rows.items()
        for line in ("", *_folded(f"{escape(title)}: {plural(len(own), 'measurement')}", _table(head, own)))
    ]


def format_cell(cell: CellResult, unit: Unit) -> str:
    """A cell's value in as many digits as its interval supports."""
    return format_estimate(cell.estimate.centre, cell.estimate.low, cell.estimate.high, unit)


def _found(metric: Metric, found: Comparison) -> list[str]:
    if found.low is None or found.note:
        return [format_change(found), format_change_range(found) or "–", escape(found.note, 200)]
    word = verdict_word(metric, found.verdict_adjusted)
    shown = f"{verdict_mark(word)} **{word}**" if verdict_mark(word) not in ("", "=") else word
    if found.verdict is not found.verdict_adjusted:
        shown += f" ({verdict_word(metric, found.verdict)} alone)"
    elif found.is_tentative:
        shown += f" ({TENTATIVE})"
    return [format_change(found), format_change_range(found), shown]


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
    shown = f"{'; '.join(about)}{f'; margin {margin}' if margin else ''}; 95 % intervals."
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
