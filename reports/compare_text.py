"""A comparison for a terminal."""

from itertools import groupby

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from tare.bench.readable import one_line, readable
from tare.bench.stats import Verdict
from tare.bench.units import format_value
from tare.reports.compare import Line, RunComparison
from tare.reports.wording import format_range, format_ratio, verdict_mark, verdict_word

_STYLES = {Verdict.FASTER: "bold cyan", Verdict.SLOWER: "bold red", Verdict.EQUIVALENT: "", Verdict.INCONCLUSIVE: "dim"}


def render_comparison(comparison: RunComparison) -> RenderableType:
    """The comparison as something rich can print."""
    how = "block by block" if comparison.is_paired else "blocks of either run as independent samples"
    parts: list[RenderableType] = [
        Text(f"{comparison.second} against {comparison.first}", style="bold"),
        Text(f"Ratios are {comparison.second} over {comparison.first}, {how}.", style="dim"),
        Text(comparison.tally),
    ]
    if comparison.confounds:
        parts.append(Text("Confounds: these conditions differ and were allowed to", style="bold"))
        parts.extend(Text(f"- {readable(str(one))}", style="bold") for one in comparison.confounds)
    if comparison.notes:
        parts.append(Text("To keep in mind", style="bold"))
        parts.extend(Text(f"- {readable(note)}") for note in comparison.notes)
    for title, lines in groupby(comparison.lines, key=lambda line: line.title):
        parts += [Text(), Text(title, style="bold"), _table(list(lines), comparison)]
    return Group(*parts)


def _table(lines: list[Line], comparison: RunComparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    has_backends = any(line.backend for line in lines)
    names = ("", *(("backend",) if has_backends else ()), comparison.first, comparison.second)
    for name in (*names, "ratio", "95 % interval", "verdict"):
        is_word = name in ("", "backend", "verdict")
        is_name = name in ("", "backend")
        justify: JustifyMethod = "left" if is_word else "right"
        table.add_column(one_line(name, 28), justify=justify, overflow="fold", no_wrap=is_name)
    for line in lines:
        unit, found = line.metric.unit, line.found
        backend = (Text(one_line(line.backend, 24)),) if has_backends else ()
        table.add_row(
            Text(f"  {one_line(line.metric.name, 40)}"),
            *backend,
            Text(format_value(line.first.centre, unit)),
            Text(format_value(line.second.centre, unit)),
            Text(format_ratio(found.ratio)),
            Text(format_range(found.low, found.high)),
            _verdict(line),
        )
    return table


def _verdict(line: Line) -> Text:
    found = line.found
    if found.low is None:
        return Text(found.note, style="dim")
    word = verdict_word(line.metric, found.verdict)
    text = Text(f"{verdict_mark(word)} {word}".strip(), style=_STYLES[found.verdict])
    if found.verdict is not found.verdict_adjusted:
        text.append(" (uncorrected)", style="dim")
    return text
