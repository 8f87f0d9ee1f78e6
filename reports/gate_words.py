"""The sentences of a gate's judgement, the same in terminal, Markdown, CI and pages."""

from collections.abc import Sequence

from tare.bench.history.epochs import EpochMark
from tare.bench.history.findings import Cause, Finding, Kind, Shift, State
from tare.bench.history.gate import Judgement, Verdict
from tare.bench.readable import one_line

STATES = {
    State.NEW: "new",
    State.CONFIRMED: "confirmed",
    State.ACKNOWLEDGED: "acknowledged",
    State.RESOLVED: "resolved",
}
CAUSES = {
    Cause.HOST: "the host",
    Cause.ISOLATION: "isolation",
    Cause.WORKLOAD: "workload or image",
    Cause.UNKNOWN: "cannot be told",
}
KINDS = {Kind.STEP: "a step", Kind.DRIFT: "a drift", Kind.SPREAD: "a change of spread"}
HEADLINES = {
    Verdict.REGRESSION: "Regression",
    Verdict.INCOMPLETE: "The run is incomplete",
    Verdict.ENVIRONMENT: "The environment changed",
    Verdict.BLIND: "Too little was judged",
    Verdict.GREEN: "Nothing to report",
}


def change(ratio: float) -> str:
    """A change as people say it: per cent below a factor of two, a factor above."""
    if ratio >= 2:
        return f"{ratio:.3g} times"
    if ratio <= 0.5:
        return f"1/{1 / ratio:.3g}"
    return f"{100 * (ratio - 1):+.1f} %"


def interval(shift: Shift) -> str:
    """The 95 % interval of a change."""
    return f"{change(shift.low)} to {change(shift.high)}"


def quality(finding: Finding) -> str:
    """Whether it is better or worse."""
    if finding.worse is None:
        return "wider" if finding.shift.ratio > 1 else "narrower"
    return "worse" if finding.worse else "better"


def title(finding: Finding) -> str:
    """One line: what moved, by how much, whose it is."""
    whose = f"isolation of {finding.backend}" if finding.cause is Cause.ISOLATION else CAUSES[finding.cause]
    size = change(finding.shift.ratio)
    if finding.kind is Kind.SPREAD:
        size = f"spread of blocks {size}"
    return f"{one_line(finding.name)}: {size}, {quality(finding)} ({one_line(whose)})"


def explanation(finding: Finding) -> str:
    """The sentence below it: what kind, since when, the interval, why it is attributed so, and the figures."""
    nights = f"{finding.nights} night{'' if finding.nights == 1 else 's'}"
    since = finding.since_utc[:16].replace("T", " ")
    parts = [
        f"{KINDS[finding.kind].capitalize()} since {since} ({one_line(finding.since)}, {nights}).",
        f"95 % interval {interval(finding.shift)}.",
    ]
    if finding.reruns:
        parts.append(f"Measured again {finding.reruns} times: confirmed.")
    parts.append(f"{_sentence(finding.reason)}.")
    if finding.figures:
        said = "; ".join(f"{one_line(name)} {change(one.ratio)}" for name, one in finding.figures.items())
        parts.append(f"Figures: {said}.")
    if finding.note:
        parts.append(f"{_sentence(finding.note)}.")
    return " ".join(parts)


def _sentence(text: str) -> str:
    """With a capital first letter, and all others as they are: names have theirs."""
    line = one_line(text)
    return line[:1].upper() + line[1:]


def headline(judgement: Judgement) -> str:
    """The first line: the verdict with its counts."""
    counts = []
    regressions = [one for one in judgement.findings if one.is_regression]
    others = [one for one in judgement.findings if one.is_open and not one.is_regression]
    for number, word in ((len(regressions), "regression"), (len(others), "other change")):
        if number:
            counts.append(f"{number} {word}{'s' if number > 1 else ''}")
    known = ((len(judgement.of_state(state)), STATES[state]) for state in (State.ACKNOWLEDGED, State.RESOLVED))
    counts += [f"{number} {word}" for number, word in known if number]
    return HEADLINES[judgement.verdict] + (f": {', '.join(counts)}" if counts else "")


def coverage(judgement: Judgement) -> list[str]:
    """What was judged, what was not and why, and what this night could not have seen."""
    lines = [f"Judged: {judgement.n_judged} of {judgement.n_series} series, over {judgement.n_nights} nights."]
    if judgement.middling is not None:
        worst = max(judgement.detectable.values())
        lines.append(
            f"A change of {100 * judgement.middling:.1f} % in a middling series would be found within five nights, "
            f"nine times in ten ({100 * worst:.0f} % in the noisiest); smaller ones would not be seen."
        )
    if judgement.expected is not None:
        lines.append(
            f"After ten nights, a change of {percent(judgement.expected)} in a middling series should be found within "
            "five more, nine times in ten, if nights differ by no more than the blocks of this one let expect."
        )
    lines += [
        f"Not judged: {len(one.series)} series ({one.reason}): {listed(one.series)}." for one in judgement.unjudged
    ]
    return lines


def outlier_lines(judgement: Judgement) -> list[str]:
    """Series of which only this night is far off."""
    named = [f"{name} ({change(ratio)})" for name, ratio in judgement.outliers.items()]
    return [f"Single night far off, no change so far: {listed(named)}."] if named else []


def percent(share: float) -> str:
    """A size with one digit below ten per cent."""
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more."""
    shown = ", ".join(map(one_line, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def mark_lines(judgement: Judgement) -> list[str]:
    """What changed of the conditions with this run, and steps that a bridge has measured since."""
    newest = judgement.run.run
    return [mark_line(mark) for mark in judgement.marks if newest == mark.run or mark is _newest_bridged(judgement)]


def _newest_bridged(judgement: Judgement) -> EpochMark | None:
    return next((mark for mark in reversed(judgement.marks) if mark.bridged), None)


def step_line(mark: EpochMark, series: str) -> str:
    """How far a series moved with a change of conditions: as a bridge measured it, or as nights around it show it."""
    if (shift := mark.bridged.get(series)) is not None:
        return f"{change(shift.ratio)} ({interval(shift)}), old and new in the same blocks of {one_line(mark.bridge)}"
    if (shift := mark.steps.get(series)) is not None:
        return f"{change(shift.ratio)} ({interval(shift)}) by the nights around it: confounded"
    return "not known"


def mark_line(mark: EpochMark) -> str:
    """A change of conditions: the fields with both values, and how far ratios moved with it."""
    fields = ", ".join(
        f"{one_line(name)}: {one_line(old)} → {one_line(new)}" for name, (old, new) in mark.fields.items()
    )
    moved = [shift for shift in mark.steps.values() if shift.is_clear]
    said = f"Conditions of {mark.series} series changed with {one_line(mark.run)}: {fields or 'not recorded'}."
    if mark.steps:
        said += (
            f" Of {len(mark.steps)} ratios {len(moved)} moved with it; what changed at once cannot be separated, so "
            "these steps are no regressions."
        )
    if mark.bridged:
        clear = sum(shift.is_clear for shift in mark.bridged.values())
        said += (
            f" Bridged by {one_line(mark.bridge)}, which measured old and new in the same blocks: of "
            f"{len(mark.bridged)} series {clear} moved clearly."
        )
    return said
