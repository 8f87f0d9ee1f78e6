"""What is said of a comparison, and how it looks in a terminal. Ratios are the second over the first."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from tare.bench.analysis import Analysis
from tare.bench.analysis.comparison import Line, RunComparison
from tare.bench.model import Metric
from tare.bench.readable import one_line, readable
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.bench.units import format_value
from tare.reports.findings import caveats
from tare.reports.wording import format_range, format_ratio, plural, verdict_mark, verdict_word

_UNPAIRED = (
    "The runs share no block: what changed on the host from one to the other is in the ratios, and intervals hold the "
    "variation of blocks within each run, not that between runs."
)
_STYLES = {Verdict.FASTER: "bold cyan", Verdict.SLOWER: "bold red", Verdict.EQUIVALENT: "", Verdict.INCONCLUSIVE: "dim"}


def verdict_of(line: Line) -> str:
    """The word for the verdict that survived the correction for many comparisons."""
    return verdict_word(line.metric, line.found.verdict_adjusted)


def tally(comparison: RunComparison) -> str:
    """How many comparisons came out how, in words."""
    counts = Counter(map(verdict_of, comparison.lines))
    return f"{plural(len(comparison.lines), 'comparison')}: " + ", ".join(
        f"{count} {word}" for word, count in counts.most_common()
    )


def notes_of(comparison: RunComparison) -> list[str]:
    """What a reader must know: what is not compared, and the weighty caveats of the runs."""
    if comparison.is_paired:
        compared = {line.backend for line in comparison.lines} - {""} or {comparison.first, comparison.second}
        return _about(comparison.analyses[0], compared)
    names = (comparison.first, comparison.second)
    notes = [_UNPAIRED]
    for name, left_out in zip(names, comparison.left_out, strict=True):
        if left_out:
            notes.append(f"{plural(left_out, 'value')} of {name} {'is' if left_out == 1 else 'are'} not in the other.")
    return [*notes, *_about_both(comparison)]


def _about(analysis: Analysis, compared: set[str]) -> list[str]:
    """The weighty caveats of a run: emulation, missing results, what may mislead; none of backends not compared."""
    others = tuple(f"{backend.label}: " for backend in analysis.backends if backend.label not in compared)
    return [caveat.text for caveat in caveats(analysis) if caveat.weight > 1 and not caveat.text.startswith(others)]


def _about_both(comparison: RunComparison) -> Iterator[str]:
    """The weighty caveats of two runs; one that both have is given once."""
    compared = {line.backend for line in comparison.lines}
    ours, theirs = (_about(analysis, compared) for analysis in comparison.analyses)
    yield from (note for note in ours if note in theirs)
    yield from (f"{comparison.first}: {note}" for note in ours if note not in theirs)
    yield from (f"{comparison.second}: {note}" for note in theirs if note not in ours)


def render_comparison(comparison: RunComparison) -> RenderableType:
    """The comparison as something rich can print."""
    how = "block by block" if comparison.is_paired else "blocks of either run as independent samples"
    parts: list[RenderableType] = [
        Text(f"{comparison.second} against {comparison.first}", style="bold"),
        Text(f"Ratios are {comparison.second} over {comparison.first}, {how}.", style="dim"),
        Text(tally(comparison)),
    ]
    if comparison.confounds:
        parts.append(Text("Confounds: these conditions differ and were allowed to", style="bold"))
        parts.extend(Text(f"- {readable(str(one))}", style="bold") for one in comparison.confounds)
    if notes := notes_of(comparison):
        parts.append(Text("To keep in mind", style="bold"))
        parts.extend(Text(f"- {readable(note)}") for note in notes)
    for title, lines in groupby(comparison.lines, key=lambda line: line.title):
        parts += [Text(), Text(title, style="bold"), _table(list(lines), comparison)]
    return Group(*parts)


def _table(lines: list[Line], comparison: RunComparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    has_backends = any(line.backend for line in lines)
    names = ("", *(("backend",) if has_backends else ()), comparison.first, comparison.second)
    for name in (*names, "ratio", "95 % interval", "verdict"):
        is_name = name in ("", "backend")
        justify: JustifyMethod = "left" if is_name or name == "verdict" else "right"
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
            verdict_text(line.metric, found, " (uncorrected)"),
        )
    return table


def verdict_text(metric: Metric, found: Comparison, uncorrected: str) -> Text:
    """A verdict in its style, or why there is none; ``uncorrected`` follows one that the correction takes away."""
    if found.low is None:
        return Text(found.note, style="dim")
    word = verdict_word(metric, found.verdict)
    text = Text(f"{verdict_mark(word)} {word}".strip(), style=_STYLES[found.verdict])
    return text if found.verdict is found.verdict_adjusted else text.append(uncorrected, style="dim")
