"""What is said of a comparison, and how it looks in a terminal. Ratios are the second over the first."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from tare.bench.analysis import Analysis, GradeLevel
from tare.bench.analysis.comparison import LEVEL_NOTE, Line, LineKind, RunComparison
from tare.bench.catalogue import NoteCode
from tare.bench.model import Direction, Metric
from tare.bench.readable import one_line, readable
from tare.bench.stats.comparisons import Comparison, Verdict, judge
from tare.bench.stats.runs import ENOUGH_RUNS, knows_runs
from tare.bench.units import format_value
from tare.reports.caveats import caveats
from tare.reports.headline import grade_sentence
from tare.reports.names import names_of
from tare.reports.wording import (
    TENTATIVE,
    format_change,
    format_change_range,
    plural,
    ratio_change,
    verdict_mark,
    verdict_word,
)

_ONE_RUN = (
    "One run of each side does not show how much two runs of the same thing differ: intervals hold the variation of "
    "blocks within the runs alone. Three runs of each (tare compare A1,A2,A3 B1,B2,B3) show it."
)
_FEW_RUNS = (
    "So few runs do not show how much two runs of the same thing differ: intervals hold the variation of blocks "
    f"alone. {ENOUGH_RUNS} runs of each side show it."
)
_KINDS = {
    LineKind.ISOLATION: "What isolation costs: ratios to {baseline}, block by block",
    LineKind.LEVEL: "Levels: what changed on the host is in them",
}
_DIFFERENT = (Verdict.FASTER, Verdict.SLOWER)
_STYLES = {Verdict.FASTER: "bold cyan", Verdict.SLOWER: "bold red", Verdict.EQUIVALENT: "", Verdict.INCONCLUSIVE: "dim"}


def verdict_of(line: Line) -> str:
    """The word for the verdict that survived the correction for many comparisons."""
    return verdict_word(line.metric, line.found.verdict_adjusted)


def fenced_labels(comparison: RunComparison) -> set[str]:
    """The labels of emulated guests, which are in no picture and no answer."""
    return {one.label for analysis in comparison.analyses for one in analysis.backends if one.is_fenced}


def leading_lines(comparison: RunComparison) -> list[Line]:
    """What a comparison is judged by: the leading metrics that can have a verdict; every metric where none leads."""
    fenced = fenced_labels(comparison)
    told = [
        line
        for line in comparison.lines
        if line.found.note != LEVEL_NOTE and not line.found.restates and line.backend not in fenced
    ]
    return [line for line in told if line.is_leading] or told


def leading_tally(comparison: RunComparison) -> str:
    """How the leading metrics came out, differences first: ``Of 4 leading metrics: 1 slower, 3 could not tell``."""
    lines = leading_lines(comparison)
    order = (Verdict.SLOWER, Verdict.FASTER, Verdict.EQUIVALENT, Verdict.INCONCLUSIVE)
    counts = Counter(verdict_of(line) for verdict in order for line in lines if line.found.verdict_adjusted is verdict)
    kind = "leading metric" if any(line.is_leading for line in lines) else "metric"
    return f"Of {plural(len(lines), kind)}: {', '.join(f'{count} {word}' for word, count in counts.items()) or 'none'}"


def tally(comparison: RunComparison) -> str:
    """How the leading metrics came out, then all comparisons: one a reading, levels that can have no verdict apart."""
    judged = [line for line in comparison.lines if line.found.note != LEVEL_NOTE]
    counts = Counter(verdict_of(line) for line in judged if not line.found.restates)
    words = [f"{count} {word}" for word, count in counts.most_common()]
    again, levels = len(judged) - counts.total(), len(comparison.lines) - len(judged)
    text = f"{leading_tally(comparison)}. Of all {plural(counts.total(), 'comparison')}: {', '.join(words) or 'none'}"
    text += f"; {plural(again, 'other')} of the same readings" if again else ""
    return text + (f"; {plural(levels, 'level')} without a verdict" if levels else "")


def notes_of(comparison: RunComparison) -> list[str]:
    """What a reader must know: what is not compared, and the weighty caveats of the runs."""
    if comparison.is_paired:
        compared = {line.backend for line in comparison.lines} - {""} or {comparison.first, comparison.second}
        return _about(comparison.analyses[0], compared)
    names = (comparison.first, comparison.second)
    notes = [note for note in (_about_runs(comparison), _host_change(comparison)) if note]
    for name, left_out in zip(names, comparison.left_out, strict=True):
        if left_out:
            notes.append(f"{plural(left_out, 'value')} of {name} {'is' if left_out == 1 else 'are'} not in the other.")
    return [*notes, *_about_both(comparison)]


def grade_of_comparison(comparison: RunComparison) -> str:
    """How far a comparison can be relied on: as far as the worse of its sides, which is named."""
    graded = [(analysis.grade, analysis.manifest.run) for analysis in comparison.analyses]
    grade, run = max(graded, key=lambda entry: entry[0].level.rank)
    return grade_sentence(grade) if len(graded) == 1 else f"{grade_sentence(grade)} (Of {one_line(run, 60)}.)"


def line_name(comparison: RunComparison, line: Line) -> str:
    """What people call the metric of a line, with what it is of."""
    names = names_of(comparison.analyses[0])
    given = ", ".join(
        f"{title} {value}" for title, value in names.params_of(line.experiment, line.workload, line.params)
    )
    name = names.metric_of(line.experiment, line.workload, line.params, line.metric)
    return f"{names.subject_of(line.experiment, line.workload)}: {name}{f' ({given})' if given else ''}"


def how_compared(comparison: RunComparison) -> str:
    """What the two sides of the lines are, as the end of a sentence."""
    if comparison.is_paired:
        return "block by block"
    if not comparison.baseline:
        return "of levels, as the runs have no baseline in common"
    return f"of what isolation costs (the ratio to {comparison.baseline} of the same block), and of levels"


def kind_title(comparison: RunComparison, kind: LineKind) -> str:
    """What heads the lines of a kind; empty for those within a run, which are alone."""
    return _KINDS.get(kind, "").format(baseline=comparison.baseline)


def format_side(line: Line, centre: float) -> str:
    """One side of a line: a value in the metric's unit, or the difference from the baseline."""
    return ratio_change(centre) if line.kind is LineKind.ISOLATION else format_value(centre, line.metric.unit)


def _about_runs(comparison: RunComparison) -> str:
    if knows_runs(*comparison.n_runs):
        return ""
    return _ONE_RUN if comparison.n_runs == (1, 1) else _FEW_RUNS


def _host_change(comparison: RunComparison) -> str:
    """What the baseline's own levels say of the host between runs of which there are too few for a verdict."""
    own = [
        line for line in comparison.lines
        if line.kind is LineKind.LEVEL and line.backend == comparison.baseline and line.found.note == LEVEL_NOTE
    ]  # fmt: skip
    moved = [line for line in own if _has_moved(line.found)]
    if not moved:
        return ""
    most = max(moved, key=lambda line: abs(math.log(line.found.ratio or 1)))
    return (
        f"{comparison.baseline} itself changed in {len(moved)} of {plural(len(own), 'value')} "
        f"(most: {line_name(comparison, most)}, {format_change(most.found)}). That is a change of the "
        "host, not of the isolation, and no verdict."
    )


def _has_moved(found: Comparison) -> bool:
    return judge(found.ratio or 1, found.low, found.high, Direction.LOWER, found.margin) in _DIFFERENT


def _about(analysis: Analysis, compared: set[str]) -> list[str]:
    """The weighty caveats of a run: emulation, missing results, what may mislead; none of backends not compared.

    What was tentative in the run itself is no verdict here.
    """
    others = tuple(f"{backend.label}: " for backend in analysis.backends if backend.label not in compared)
    found = [one for one in caveats(analysis) if one.weight > 1 and one.code != NoteCode.TENTATIVE]
    return [one.text for one in found if not one.text.startswith(others)]


def _about_both(comparison: RunComparison) -> Iterator[str]:
    """The weighty caveats of two runs; one that both have is given once."""
    compared = {line.backend for line in comparison.lines}
    split = comparison.n_first
    ours, theirs = (
        list(dict.fromkeys(note for analysis in side for note in _about(analysis, compared)))
        for side in (comparison.analyses[:split], comparison.analyses[split:])
    )
    yield from (note for note in ours if note in theirs)
    yield from (f"{comparison.first}: {note}" for note in ours if note not in theirs)
    yield from (f"{comparison.second}: {note}" for note in theirs if note not in ours)


def render_comparison(comparison: RunComparison) -> RenderableType:
    """The comparison as something rich can print."""
    parts: list[RenderableType] = [
        Text(f"{comparison.second} against {comparison.first}", style="bold"),
        Text(grade_of_comparison(comparison), style=_grade_style(comparison)),
        Text(f"Ratios are {comparison.second} over {comparison.first}, {how_compared(comparison)}.", style="dim"),
        Text(tally(comparison)),
    ]
    if comparison.confounds:
        parts.append(Text("Confounds: these conditions differ and were allowed to", style="bold"))
        parts.extend(Text(f"- {readable(str(one))}", style="bold") for one in comparison.confounds)
    if notes := notes_of(comparison):
        parts.append(Text("To keep in mind", style="bold"))
        parts.extend(Text(f"- {readable(note)}") for note in notes)
    for kind, of_kind in groupby(comparison.lines, key=lambda line: line.kind):
        if heading := kind_title(comparison, kind):
            parts += [Text(), Text(heading, style="bold underline")]
        for _, group in groupby(of_kind, key=lambda line: line.title):
            lines = list(group)
            parts += [Text(), Text(_title(comparison, lines[0]), style="bold"), _table(lines, comparison)]
    return Group(*parts)


def _title(comparison: RunComparison, line: Line) -> str:
    names = names_of(comparison.analyses[0])
    given = ", ".join(
        f"{title} {value}" for title, value in names.params_of(line.experiment, line.workload, line.params)
    )
    return f"{names.subject_of(line.experiment, line.workload)}  {given}".strip()


def _grade_style(comparison: RunComparison) -> str:
    unusable = any(analysis.grade.level is GradeLevel.NOT_USABLE for analysis in comparison.analyses)
    return "bold red" if unusable else ""


def _table(lines: list[Line], comparison: RunComparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    known = names_of(comparison.analyses[0])
    has_backends = any(line.backend for line in lines)
    names = ("", *(("backend",) if has_backends else ()), comparison.first, comparison.second)
    for name in (*names, "difference", "95 % interval", "verdict"):
        is_name = name in ("", "backend")
        justify: JustifyMethod = "left" if is_name or name == "verdict" else "right"
        table.add_column(one_line(name, 28), justify=justify, overflow="fold", no_wrap=name == "backend")
    for line in lines:
        found = line.found
        backend = (Text(one_line(line.backend, 24)),) if has_backends else ()
        table.add_row(
            Text(f"  {known.metric_of(line.experiment, line.workload, line.params, line.metric)}"),
            *backend,
            Text(format_side(line, line.first.centre)),
            Text(format_side(line, line.second.centre)),
            Text(format_change(found)),
            Text(format_change_range(found) or "–"),
            verdict_text(line.metric, found, " (differs alone)"),
        )
    return table


def verdict_text(metric: Metric, found: Comparison, uncorrected: str) -> Text:
    """The verdict that survives the correction, in its style, or why there is none.

    ``uncorrected`` follows where the correction took a difference away.
    """
    if found.low is None or found.note:
        return Text(found.note, style="dim")
    word = verdict_word(metric, found.verdict_adjusted)
    text = Text(f"{verdict_mark(word)} {word}".strip(), style=_STYLES[found.verdict_adjusted])
    if found.is_tentative:
        return text.append(f", {TENTATIVE}", style="dim")
    return text if found.verdict is found.verdict_adjusted else text.append(uncorrected, style="dim")
