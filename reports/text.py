"""The report for a terminal: the answer in one screen, and the whole report in text."""

from collections.abc import Iterator
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from tare.bench.analysis import Analysis, CellResult, GradeLevel, Row, RunResults, Subject
from tare.bench.analysis.comparison import RunComparison
from tare.bench.capacity.by_host import FleetReport
from tare.bench.readable import one_line, readable
from tare.bench.reporter import Reporter
from tare.bench.units import Unit
from tare.reports.blocks import emulated_tables
from tare.reports.claims import Answer, judge
from tare.reports.compare import render_comparison, verdict_text
from tare.reports.doubts import doubts
from tare.reports.headline import answer, fences, grade_sentence, question, top_caveats, where
from tare.reports.html import failure_views
from tare.reports.ladder import LAYERS_HEAD, layer_tables
from tare.reports.names import Names, names_of
from tare.reports.picture import PanelView, panel_views
from tare.reports.requirements import requirement_views
from tare.reports.wording import (
    format_change,
    format_change_range,
    format_estimate,
    format_value_range,
    path_sentence,
)

FILE_WIDTH = 120
_WEIGHTS = {3: "bold", 2: "", 1: "dim"}
"""Styles of doubts by weight."""
MOST_DOUBTS = 16
UNCORRECTED = "†"
NARROW = 15
NOTED = frozenset({"95 % interval", "verdict"})
"""Columns with notes in them: so wide that an interval or a verdict is on one line, not every note."""
SCREEN_WIDTH = 80
SCREEN_LINES = 22
"""A terminal has 24: the path of the report and the prompt follow."""


class TextReporter(Reporter):
    """The whole report as plain text."""

    name = "text"
    summary = "the answer, every measurement and every doubt as plain text"
    suffix = ".txt"
    compares = True
    fleets = True

    def write(self, results: RunResults, output: Path) -> None:
        _print_to(output, render_text(results.analysis), self.width)

    def write_comparison(self, comparison: RunComparison, output: Path) -> None:
        _print_to(output, render_comparison(comparison), self.width)

    def write_fleet(self, report: FleetReport, output: Path) -> None:
        from tare.reports.fleet import fleet_text  # its words are built on these

        output.write_text(fleet_text(report, self.width), "utf-8")


class AnswerReporter(Reporter):
    """What fits on one screen: what a run shows when it has ended."""

    name = "answer"
    summary = "the answer in one screen: headline, grade, leading measurements"
    suffix = ".txt"

    def write(self, results: RunResults, output: Path) -> None:
        _print_to(output, render_answer(results.analysis), self.width)


def _print_to(output: Path, content: RenderableType, width: int | None) -> None:
    with output.open("w", encoding="utf-8") as file:
        Console(file=file, width=width or FILE_WIDTH, color_system=None).print(content)


def render_answer(analysis: Analysis) -> RenderableType:
    """The answer as something rich can print, in at most ``SCREEN_LINES`` lines of 80 columns."""
    style = "bold red" if analysis.grade.level is GradeLevel.NOT_USABLE else ""
    parts: list[RenderableType] = [
        Text(" ".join(answer(analysis)), style="bold"),
        Text(grade_sentence(analysis.grade), style=style),
        Text(),
        *(_panel(panel) for panel in panel_views(analysis)),
        *(Text(fence, style="dim") for fence in fences(analysis)),
    ]
    return Group(*parts)


def _panel(panel: PanelView) -> Table:
    """The rows of a picture as a table."""
    table = Table(box=None, pad_edge=False, show_header=True, header_style="dim", padding=(0, 1), title_justify="left")
    for name in (f"{panel.title} ({panel.note})", "", ""):
        table.add_column(name, overflow="fold", justify="left")
    rows = [(backend, row) for backend, strips in panel.groups for row in strips]
    most = max(3, SCREEN_LINES // 2 - 3)
    for backend, row in rows[:most]:
        several = backend is not None and len(panel.groups) > 1
        name = f"{row.title}, {row.backend.label}" if several else row.title
        table.add_row(one_line(name, 120), Text(row.said, style="dim" if row.is_open else "bold"), row.rest)
    if len(rows) > most:
        table.add_row(f"and {len(rows) - most} more, in the report", "", "")
    return table


def render_text(analysis: Analysis) -> RenderableType:
    """The report of a run as something rich can print."""
    tables = _tables(analysis) if analysis.subjects else ()
    parts: list[RenderableType] = [Text(question(analysis), style="dim"), render_answer(analysis), Text()]
    parts += [Text(f"- {text}") for text in top_caveats(analysis)]
    parts += [Text(where(analysis), style="dim"), Text()]
    return Group(
        *parts,
        *_requirements(analysis),
        *tables,
        *_layers(analysis),
        *_doubts(analysis),
        *_failures(analysis),
        *_emulated(analysis),
        *_claims(analysis),
    )


def _requirements(analysis: Analysis) -> Iterator[RenderableType]:
    views = [one for one in requirement_views(analysis) if one.answers]
    if not views:
        return
    yield Text("What this means for you", style="bold")
    for one in views:
        for found in one.answers:
            likely = f" ({found.likely})" if found.likely else ""
            words = f"- {one.name}: {one_line(found.backend.label)} {found.standing}{likely}. {found.more}"
            yield Text(words.strip())
    yield Text()


def _tables(analysis: Analysis) -> Iterator[RenderableType]:
    """A table a subject, all with the same columns, so that the eye can go down them."""
    names = names_of(analysis)
    baseline = analysis.baseline if analysis.comparisons else None
    make = _values if baseline is None else _compared
    shown = [
        (subject, [line for row in subject.rows for line in make(names, subject, row)]) for subject in analysis.subjects
    ]
    columns = (
        ("", "backend", "value", "95 % interval")
        if baseline is None
        else ("", one_line(baseline.label, 24), "backend", "value", "difference", "95 % interval", "verdict")
    )
    widths = [
        max([len(name), *(cell_len(line[place].plain) for _, lines in shown for line in lines if place < len(line))])
        for place, name in enumerate(columns)
    ]
    for subject, lines in shown:
        params = ", ".join(f"{name} {value}" for name, value in names.params(subject))
        yield Text.assemble((names.subject(subject), "bold"), f"  {params}" if params else "")
        if path := path_sentence(subject, analysis.manifest, analysis.backends):
            yield Text(path, style="dim")
        yield _Lines(columns, widths, lines)
        yield Text()
    if any(UNCORRECTED in line[-1].plain for _, lines in shown for line in lines):
        yield Text(f"{UNCORRECTED} differs alone, not among so many comparisons", style="dim")
        yield Text()


class _Lines:
    """A table as wide as those of the others; where the terminal is narrower, with each backend below the metric."""

    def __init__(self, names: tuple[str, ...], widths: list[int], lines: list[list[Text]]) -> None:
        self._names = names
        self._widths = widths
        self._lines = lines

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """What rich asks for, once it knows the width."""
        names, lines = self._names, self._lines
        widths = [min(width, NARROW if name in NOTED else 44) for name, width in zip(names, self._widths, strict=True)]
        if sum(widths) + 2 * len(widths) > options.max_width:
            backend = names.index("backend")
            names = (names[0], *names[backend + 1 :])
            widths = [0, *(widths[backend + 1 :] if options.max_width >= SCREEN_WIDTH else [0, 0, 0, 0])]
            lines = [line for given in lines for line in _stack(given, backend)]
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        for name, width in zip(names, widths, strict=True):
            justify: JustifyMethod = "left" if name in ("", "verdict", "backend") else "right"
            keeps = name == "verdict" and options.max_width < SCREEN_WIDTH
            table.add_column(name, justify=justify, min_width=width, overflow="fold", no_wrap=keeps)
        for line in lines:
            table.add_row(*line)
        yield table


def _stack(line: list[Text], backend: int) -> Iterator[list[Text]]:
    """The metric, with the baseline's value if there is one, and below it the backend with what was found of it."""
    if line[0].plain.strip():
        yield line[:backend]
    if len(line) > backend:
        yield [Text.assemble("   ", line[backend]), *line[backend + 1 :]]


def _compared(names: Names, subject: Subject, row: Row) -> list[list[Text]]:
    name, value = names.row(subject, row), "–" if row.base is None else _value(row.base, row.metric.unit)
    lines = []
    for cell in row.cells:
        if cell.backend.is_baseline or cell.backend.is_fenced:
            continue
        found = cell.comparison
        lines.append(
            [
                Text(f"  {name}"),
                Text(value),
                *_own(row, cell),
                Text(format_change(found)),
                Text(format_change_range(found) or "–"),
                Text("nothing to compare with", style="dim")
                if found is None
                else verdict_text(row.metric, found, UNCORRECTED),
            ]
        )
        name = value = ""
    return lines or ([[Text(f"  {name}"), Text(value)]] if row.base is not None else [])


def _values(names: Names, subject: Subject, row: Row) -> list[list[Text]]:
    cells = [cell for cell in row.cells if not cell.backend.is_fenced]
    return [
        [
            Text(f"  {names.row(subject, row)}" if place == 0 else ""),
            *_own(row, cell),
            Text(format_value_range(cell.estimate.low, cell.estimate.high, row.metric.unit)),
        ]
        for place, cell in enumerate(cells)
    ]


def _value(cell: CellResult, unit: Unit) -> str:
    return format_estimate(cell.estimate.centre, cell.estimate.low, cell.estimate.high, unit)


def _own(row: Row, cell: CellResult) -> tuple[Text, Text]:
    """The backend, and what was measured on it."""
    return Text(one_line(cell.backend.label, 24)), Text(_value(cell, row.metric.unit))


def _doubts(analysis: Analysis) -> Iterator[RenderableType]:
    """What could be wrong, the weightiest first; the page has them all."""
    found = doubts(analysis)
    if not found:
        return
    yield Text("What could be wrong", style="bold")
    for one in found[:MOST_DOUBTS]:
        place = f"{one.where}: " if one.where else ""
        yield Text(f"- {place}{readable(one.text)}", style=_WEIGHTS[one.weight])
    if len(found) > MOST_DOUBTS:
        yield Text(f"- and {len(found) - MOST_DOUBTS} more, in the page")
    yield Text()


def _failures(analysis: Analysis) -> list[RenderableType]:
    views = failure_views(analysis)
    if not views:
        return []
    parts: list[RenderableType] = [Text("Failures", style="bold")]
    for view in views:
        parts.append(Text(f"- {one_line(view.cell)} ({view.count}×): {readable(view.message)}"))
        evidence = [line for line in readable(view.evidence).strip().splitlines() if line.strip()]
        parts.extend(Text(f"    {line}", style="dim") for line in evidence[-3:])
    return [*parts, Text()]


def _layers(analysis: Analysis) -> Iterator[RenderableType]:
    for title, rows in layer_tables(analysis):
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        for name in LAYERS_HEAD:
            table.add_column(name, justify="right" if name == "adds" else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        yield from (Text(title, style="bold"), table, Text())


def _emulated(analysis: Analysis) -> Iterator[RenderableType]:
    """The emulator's figures, without a verdict."""
    for backend, lines in emulated_tables(analysis):
        yield Text(f"The emulator's figures: {backend.label}. They say nothing about a virtual machine.", style="bold")
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        base = analysis.baseline.label if analysis.baseline is not None else "baseline"
        for name in ("", "under emulation", base, "difference"):
            table.add_column(name, justify="left" if not name else "right", overflow="fold")
        for line in lines:
            table.add_row(f"  {line.subject}: {line.name}", line.value, line.base, line.ratio)
        yield table
        yield Text()


_CLAIM_STYLES = {"held": "bold cyan", "did not hold": "bold red"}


def _claims(analysis: Analysis) -> list[RenderableType]:
    """The claims that this run says something of, with the figures; of the others only their number."""
    results = judge(analysis)
    shown = [one for one in results if any(part.answer is not Answer.ABSENT for part in one.parts)]
    if not shown:
        return []
    parts: list[RenderableType] = [Text("Claims of the field", style="bold")]
    for one in shown:
        parts.append(Text.assemble("- ", (one.verdict.value, _CLAIM_STYLES.get(one.verdict, "")), f": {one.statement}"))
        parts.append(Text(f"    {one.reason}", style="dim"))
    left_out = len(results) - len(shown)
    if left_out:
        parts.append(Text(f"- {left_out} more are not measured here; the page says why", style="dim"))
    return parts
