"""Pages beside a run's report: a comparison, and an index of a folder of runs; with the same grades and fences."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.analysis import Grade, GradeLevel, MeasuredBackend, analyse
from tare.bench.analysis.answer import Mark
from tare.bench.analysis.comparison import Line, LineKind, RunComparison
from tare.bench.errors import RunDirectoryError, TareError
from tare.bench.readable import one_line
from tare.bench.stats.comparisons import Verdict
from tare.bench.store import load_run
from tare.reports.compare import (
    fenced_labels,
    format_side,
    grade_of_comparison,
    how_compared,
    kind_title,
    leading_lines,
    leading_tally,
    line_name,
    notes_of,
    tally,
    verdict_of,
)
from tare.reports.headline import answer, headings, legend, where
from tare.reports.html import render_template
from tare.reports.names import names_of
from tare.reports.picture import PanelView, Strip, axis_ends, change_axis, strip_svg
from tare.reports.wording import (
    DIRECTION_SIGNS,
    describe,
    direction_sign,
    format_change,
    format_change_range,
    listed,
    metric_change_words,
    percent,
    reservation,
)

_DIFFERENT = (Verdict.FASTER, Verdict.SLOWER)
MOST_DRAWN = 24
MOST_TOLD = 3
MANIFEST = "manifest.json"


class LineView(msgspec.Struct, frozen=True):
    """A line of a comparison in words; ``exact`` has ratio, low and high."""

    name: str
    better: str
    hint: str
    backend: str
    first: str
    second: str
    change: str
    change_range: str
    word: str
    style: str
    note: str
    exact: list[float | None]
    about: str = ""
    """What the metric measures, of those that lead."""


class RunLine(msgspec.Struct, frozen=True):
    """A run in the index; ``problem`` stands in the place of everything else where it cannot be read."""

    name: str
    page: str
    headline: str
    grade: Grade | None
    about: str
    started: str = ""
    problem: str = ""


def render_comparison(comparison: RunComparison) -> str:
    """The page of a comparison."""
    kinds = {line.kind: kind_title(comparison, line.kind) for line in comparison.lines}
    context = {
        "title": f"{comparison.second} against {comparison.first}",
        "answer": headings(comparison_answer(comparison)),
        "legend": _legend(comparison),
        "grade": worst_grade(comparison),
        "grade_words": grade_of_comparison(comparison),
        "how": how_compared(comparison),
        "tally": tally(comparison),
        "notes": notes_of(comparison),
        "confounds": [one_line(str(one), 300) for one in comparison.confounds],
        "panel": _panel(comparison),
        "tables": [
            (title, [_line(comparison, line) for line in comparison.lines if line.kind is kind])
            for kind, title in kinds.items()
        ],
        "first": comparison.first,
        "second": comparison.second,
        "wheres": [where(analysis) for analysis in comparison.analyses],
        "ways": DIRECTION_SIGNS,
    }
    return render_template("compare.html.j2", context)


def _legend(comparison: RunComparison) -> list[str]:
    """The same as a report's, without the small points, which a comparison has none of."""
    return [one.replace("; a small point: a block", "") for one in legend(comparison.analyses[0])]


def worst_grade(comparison: RunComparison) -> Grade:
    """A comparison can be relied on as far as the worse of its sides."""
    return max((analysis.grade for analysis in comparison.analyses), key=lambda grade: grade.level.rank)


def comparison_answer(comparison: RunComparison) -> list[str]:
    """What changed from the first side to the second, by the verdicts that survive the correction; in sentences."""
    if worst_grade(comparison).level is GradeLevel.NOT_USABLE:
        return ["This comparison cannot be used: one of its sides cannot."]
    if is_with_emulated(comparison):
        return ["This compares with an emulated guest: it says nothing about a virtual machine."]
    leading = leading_lines(comparison)
    differing = [line for line in leading if line.found.verdict_adjusted in _DIFFERENT]
    differing.sort(key=lambda line: -abs(math.log(line.found.ratio or 1)))
    unknown = [line for line in leading if line.found.verdict_adjusted is Verdict.INCONCLUSIVE]

    def name(line: Line) -> str:
        return f"{_short_name(comparison, line, leading)}{f' on {line.backend}' if line.backend else ''}"

    parts = [
        f"{name(line)}: {metric_change_words(line.metric, line.found.ratio or 1, line.found)}" for line in differing
    ]
    sentences = [f"{leading_tally(comparison)}."]
    if parts:
        sentences.append(f"{_some(parts)}.")
    if unknown:
        sentences.append(f"Could not tell: {_some([name(line) for line in unknown])}.")
    return sentences


def _some(parts: list[str]) -> str:
    """The first few, and how many more there are."""
    more = [f"{len(parts) - MOST_TOLD} more"] if len(parts) > MOST_TOLD else []
    return listed([*parts[:MOST_TOLD], *more])


def is_with_emulated(comparison: RunComparison) -> bool:
    """Whether one side is an emulated guest and the other is not."""
    return comparison.is_paired and len({comparison.first, comparison.second} & fenced_labels(comparison)) == 1


def _panel(comparison: RunComparison) -> PanelView | None:
    """The leading lines as changes, those that are about isolation where there are any."""
    leading = [line for line in comparison.lines if line.is_leading and line.found.ratio is not None]
    real = [line for line in leading if line.backend not in fenced_labels(comparison)]
    kept = [line for line in real if line.kind is not LineKind.LEVEL][:MOST_DRAWN]
    if not kept or is_with_emulated(comparison):
        return None
    backends = {backend.label: backend for analysis in comparison.analyses for backend in analysis.backends}
    nobody = MeasuredBackend("", comparison.second, 1, is_baseline=False)
    marks = [_mark(line, backends.get(line.backend, nobody)) for line in kept]
    margin = max(line.found.margin for line in kept)
    axis = change_axis(marks, margin)
    directions = {line.metric.direction for line in kept}
    is_mixed, is_void = len(directions) > 1, worst_grade(comparison).level is GradeLevel.NOT_USABLE
    strips = tuple(
        Strip(
            _short_name(comparison, line, kept),
            mark.backend,
            strip_svg(mark, axis, is_void=is_void),
            "not usable" if is_void else _said(line),
            format_change_range(line.found),
            line.metric.name,
            "",
            line.found.ratio or 1.0,
            is_open=is_void or line.found.verdict_adjusted is Verdict.INCONCLUSIVE,
            detail=_sides(line, is_mixed=is_mixed),
            why="" if is_void else reservation(line.found),
        )
        for line, mark in zip(kept, marks, strict=True)
    )
    note = f"within {percent(margin)}, the shaded part, counts as the same"
    title = f"{comparison.second} against {comparison.first}"
    return PanelView(title, note, ((None, strips),), axis.ticks, axis_ends(directions), "change")


def _sides(line: Line, *, is_mixed: bool) -> str:
    """Where a line is from and both its values; which way is better where the others' is another."""
    values = f"{format_side(line, line.first.centre)} → {format_side(line, line.second.centre)}"
    return ", ".join(
        part for part in (line.backend, values, f"{direction_sign(line.metric)} better" if is_mixed else "") if part
    )


def _short_name(comparison: RunComparison, line: Line, among: Sequence[Line]) -> str:
    """The metric alone where no other of these has its name."""
    names = names_of(comparison.analyses[0])

    def name(one: Line) -> str:
        return names.metric_of(one.experiment, one.workload, one.params, one.metric)

    alike = {(one.workload, str(one.params)) for one in among if name(one) == name(line)}
    return name(line) if len(alike) == 1 else line_name(comparison, line)


def _mark(line: Line, backend: MeasuredBackend) -> Mark:
    found = line.found
    low, high = (None if end is None else end - 1 for end in (found.low, found.high))
    return Mark(backend, (found.ratio or 1) - 1, low, high, verdict=found.verdict_adjusted)


def _said(line: Line) -> str:
    if line.found.verdict_adjusted in _DIFFERENT:
        return metric_change_words(line.metric, line.found.ratio or 1, line.found)
    return verdict_of(line)


def _line(comparison: RunComparison, line: Line) -> LineView:
    found = line.found
    has_verdict = found.low is not None and not found.note
    return LineView(
        name=line_name(comparison, line),
        better=direction_sign(line.metric),
        hint=line.metric.name,
        backend=line.backend,
        first=format_side(line, line.first.centre),
        second=format_side(line, line.second.centre),
        change=format_change(found),
        change_range=format_change_range(found),
        word=verdict_of(line) if has_verdict else "",
        style=str(found.verdict_adjusted),
        note="" if has_verdict else found.note,
        exact=[found.ratio, found.low, found.high],
        about=f"{describe(line.metric)}." if line.is_leading else "",
    )


def render_index(folder: Path) -> str:
    """The page over the runs in a folder, the newest first. Raises RunDirectoryError if there is none."""
    runs = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not runs:
        raise RunDirectoryError(f"{folder} holds no run", remedy="name the folder in which the runs' folders lie")
    lines = sorted(map(_run, runs), key=lambda one: one.started, reverse=True)
    context: dict[str, Any] = {"title": f"Runs in {folder.name}", "runs": lines}
    return render_template("index.html.j2", context)


def _run(path: Path) -> RunLine:
    """A run that cannot be read is in the index too."""
    try:
        analysis = analyse(load_run(path))
    except TareError as error:
        return RunLine(path.name, "", "", None, "", problem=error.message)
    page = f"{path.name}/report.html" if (path / "report.html").is_file() else ""
    return RunLine(
        path.name, page, _first(answer(analysis)), analysis.grade, where(analysis), analysis.manifest.started_utc
    )


def _first(sentences: Sequence[str]) -> str:
    return " ".join(sentences[:2])
