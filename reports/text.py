"""The report for a terminal: the same ratios, intervals, verdicts and caveats as the page."""

from collections.abc import Iterator
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from tare.bench.analysis import Analysis, CellResult, Row, RunResults
from tare.bench.analysis.comparison import RunComparison
from tare.bench.readable import one_line, readable
from tare.bench.reporter import Reporter
from tare.bench.units import format_value
from tare.reports import findings
from tare.reports.claims import Answer, judge
from tare.reports.compare import render_comparison, verdict_text
from tare.reports.flags import flags_of
from tare.reports.html import failure_views
from tare.reports.wording import (
    format_range,
    format_ratio,
    format_value_range,
    noise_sentence,
    path_sentence,
)

FILE_WIDTH = 120
_WEIGHTS = {3: "bold", 2: "", 1: "dim"}
"""Styles of caveats by weight."""
MOST_FLAGS = 8
UNCORRECTED = "†"
NARROW = 14
NOTED = frozenset({"95 % interval", "verdict"})
"""Columns with notes in them: so wide that an interval or a verdict is on one line, not every note."""


class TextReporter(Reporter):
    """Findings, caveats and the table of ratios as plain text."""

    name = "text"
    summary = "findings, caveats and ratios as plain text"
    suffix = ".txt"
    compares = True

    def write(self, results: RunResults, output: Path) -> None:
        self._print_to(output, render_text(results.analysis))

    def write_comparison(self, comparison: RunComparison, output: Path) -> None:
        self._print_to(output, render_comparison(comparison))

    def _print_to(self, output: Path, content: RenderableType) -> None:
        with output.open("w", encoding="utf-8") as file:
            Console(file=file, width=self.width or FILE_WIDTH, color_system=None).print(content)


def render_text(analysis: Analysis) -> RenderableType:
    """The report of a run as something rich can print."""
    tables = _ratio_tables(analysis) if analysis.subjects else ()
    return Group(*_opening(analysis), *tables, *_failures(analysis), *_flags(analysis), *_claims(analysis))


def _opening(analysis: Analysis) -> list[RenderableType]:
    manifest = analysis.manifest
    virtual = findings.host_virtualization(analysis)
    host = readable(manifest.host_summary) + (f", itself a virtual machine ({readable(virtual)})" if virtual else "")
    parts: list[RenderableType] = [
        Text(one_line(findings.suite_title(analysis), 100), style="bold"),
        Text(findings.question(analysis)),
        Text(host, style="dim"),
        Text(),
    ]
    parts.extend(Text(f"{number}. {text}") for number, text in enumerate(findings.findings(analysis), start=1))
    if caveats := findings.caveats(analysis):
        parts += [Text(), Text("To keep in mind", style="bold")]
        parts.extend(Text(f"- {readable(one.text)}", style=_WEIGHTS[one.weight]) for one in caveats)
    if noise := noise_sentence(analysis):
        parts += [Text(), Text("Noise floor", style="bold"), Text(readable(noise))]
    return [*parts, Text()]


def _ratio_tables(analysis: Analysis) -> Iterator[RenderableType]:
    """A table a subject, all with the same columns, so that the eye can go down them."""
    baseline = analysis.baseline if analysis.comparisons else None
    make = _values if baseline is None else _compared
    subjects = [(subject, [line for row in subject.rows for line in make(row)]) for subject in analysis.subjects]
    names = (
        ("", "backend", "value", "95 % interval")
        if baseline is None
        else ("", one_line(baseline.label, 24), "backend", "value", "ratio", "95 % interval", "verdict")
    )
    widths = [
        max([len(name), *(cell_len(line[place].plain) for _, lines in subjects for line in lines if place < len(line))])
        for place, name in enumerate(names)
    ]
    for subject, lines in subjects:
        yield Text.assemble((subject.title, "bold"), f"  {subject.params_line}" if subject.params else "")
        if path := path_sentence(subject, analysis.manifest, analysis.backends):
            yield Text(path, style="dim")
        yield _Lines(names, widths, lines)
        yield Text()
    if any(UNCORRECTED in line[-1].plain for _, lines in subjects for line in lines):
        yield Text(f"{UNCORRECTED} not after correction for many comparisons", style="dim")
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
        widths = [min(width, NARROW if name in NOTED else 40) for name, width in zip(names, self._widths, strict=True)]
        if sum(widths) + 2 * len(widths) > options.max_width:
            backend = names.index("backend")
            names = (names[0], *names[backend + 1 :])
            widths = [0, *widths[backend + 1 :]]
            lines = [line for given in lines for line in _stack(given, backend)]
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        for name, width in zip(names, widths, strict=True):
            justify: JustifyMethod = "left" if name in ("", "verdict", "backend") else "right"
            table.add_column(name, justify=justify, min_width=width, overflow="fold")
        for line in lines:
            table.add_row(*line)
        yield table


def _stack(line: list[Text], backend: int) -> Iterator[list[Text]]:
    """The metric, with the baseline's value if there is one, and below it the backend with what was found of it."""
    if line[0].plain.strip():
        yield line[:backend]
    if len(line) > backend:
        yield [Text.assemble("   ", line[backend]), *line[backend + 1 :]]


def _compared(row: Row) -> list[list[Text]]:
    name, value = _name(row), "–" if row.base is None else format_value(row.base.estimate.centre, row.metric.unit)
    lines = []
    for cell in row.cells:
        if cell.backend.is_baseline:
            continue
        found = cell.comparison
        lines.append(
            [
                Text(f"  {name}"),
                Text(value),
                *_own(row, cell),
                Text(format_ratio(found.ratio) if found is not None else "–"),
                Text(format_range(found.low, found.high) if found is not None else "–"),
                Text("nothing to compare with", style="dim")
                if found is None
                else verdict_text(row.metric, found, UNCORRECTED),
            ]
        )
        name = value = ""
    return lines or [[Text(f"  {name}"), Text(value)]]


def _values(row: Row) -> list[list[Text]]:
    return [
        [
            Text(f"  {_name(row)}" if place == 0 else ""),
            *_own(row, cell),
            Text(format_value_range(cell.estimate.low, cell.estimate.high, row.metric.unit)),
        ]
        for place, cell in enumerate(row.cells)
    ]


def _name(row: Row) -> str:
    """Shortened, if at all, before the size that is meant."""
    return one_line(row.metric.name, 40) + row.name.removeprefix(row.metric.name)


def _own(row: Row, cell: CellResult) -> tuple[Text, Text]:
    """The backend, and what was measured on it."""
    return Text(one_line(cell.backend.label, 24)), Text(format_value(cell.estimate.centre, row.metric.unit))


def _flags(analysis: Analysis) -> list[RenderableType]:
    """What stood out while cells were measured; the page has them all."""
    flags = flags_of(analysis)
    if not flags:
        return []
    labels = {backend.name: backend.label for backend in analysis.backends}
    parts: list[RenderableType] = [Text("What may have disturbed cells", style="bold")]
    for flag in flags[:MOST_FLAGS]:
        label = one_line(labels.get(flag.backend, flag.backend), 24)
        parts.append(Text(f"- {one_line(flag.workload or flag.experiment)} on {label}: {flag.sentence}"))
    if len(flags) > MOST_FLAGS:
        parts.append(Text(f"- and {len(flags) - MOST_FLAGS} more, in the page and in the json form"))
    return [*parts, Text()]


def _failures(analysis: Analysis) -> list[RenderableType]:
    views = failure_views(analysis)
    if not views:
        return []
    parts: list[RenderableType] = [Text("Failures", style="bold")]
    for view in views:
        parts.append(Text(f"- {one_line(view.cell)} ({view.count}×): {readable(view.message)}"))
        evidence = [line for line in readable(view.evidence).strip().splitlines() if line.strip()]
        parts.extend(Text(f"    {line}", style="dim") for line in evidence[-3:])
    return parts


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
