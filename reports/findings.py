"""The first screen in words: what was compared, what has to be kept in mind, what came out."""

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from tare.bench.analysis import Analysis, CellResult, MeasuredBackend, Row, Subject
from tare.bench.analysis.density import DensityResult
from tare.bench.catalogue import (
    CONFOUND_WEIGHTS,
    RATIO_PREFIX,
    BootMetric,
    ConfoundCode,
    LimitsMetric,
    NoteCode,
    SteadyMetric,
)
from tare.bench.readable import one_line
from tare.bench.records import RunStatus
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.bench.stats.precision import Standing
from tare.bench.units import Unit, format_size, format_value
from tare.reports.instances import HeatLine, heat_view, held_lines
from tare.reports.wording import (
    as_large,
    format_estimate,
    format_range,
    format_ratio_estimate,
    is_cost,
    listed,
    percent,
    plural,
)

SHORT = 0.9
"""A program that obtained less than this share of its instance's memory needs a larger limit."""


def experiment_findings(analysis: Analysis) -> list[str]:
    """A sentence for each of these experiments that the run has."""
    found = [_density(analysis), _interference(analysis), _limits(analysis)]
    return [sentence for sentence in found if sentence]


def _density(analysis: Analysis) -> str:
    """The memory of one more instance, and how the ramps ended; of idle instances if there were any."""
    results = sorted(analysis.density, key=lambda result: result.cell.population)
    if not results:
        return ""
    work = min(result.cell.workload for result in results)
    labels = {backend.name: backend.label for backend in analysis.backends}
    # Of several ramps of a backend the largest.
    own = {result.cell.backend: result for result in results if result.cell.workload == work}
    told = [(label, own[name]) for name, label in labels.items() if name in own]
    if not told:
        return ""
    doing = f"with {one_line(work)}" if work else "idle"
    costs = [text for label, result in told if (text := _memory(label, result))]
    taken = f"Of the host's memory one more instance ({doing}) took {listed(costs)}. " if costs else ""
    return f"{taken}Alive at once: {'; '.join(_ends(told))}."


def _memory(label: str, result: DensityResult) -> str:
    memory = result.cost.memory
    if memory is None:
        return ""
    interval = ""
    if memory.low is not None and memory.high is not None:
        interval = f" ({format_size(memory.low)} to {format_size(memory.high)})"
    return f"{format_size(memory.per_instance)} on {label}{interval}"


def _ends(told: Sequence[tuple[str, DensityResult]]) -> Iterator[str]:
    """Each population with the reason why it grew no further, and the backends it holds for."""
    by_end: dict[str, list[str]] = {}
    for label, result in told:
        cell = result.cell
        ending = cell.endings[0] if cell.endings else None
        why = "" if ending is None else one_line(ending.message).rstrip(".")
        why = "as many as were asked for" if ending is not None and ending.was_asked_for else why
        by_end.setdefault(f"{cell.population:,}{f' ({why})' if why else ''}", []).append(label)
    for end, labels in by_end.items():
        yield f"{end} on {listed(labels)}"


def _interference(analysis: Analysis) -> str:
    """The worst that happened to the leading metric of a victim, by backend."""
    view = heat_view(analysis)
    if view is None:
        return ""
    leading = {row.metric.name for _, row in analysis.rows if row.is_leading}
    worst: dict[str, tuple[float, HeatLine]] = {}
    for line in view.lines:
        ratio = max((cell.ratio for cell in line.cells if cell.ratio is not None), default=0.0)
        if f"{RATIO_PREFIX}{line.metric}" in leading and ratio > worst.get(line.backend.label, (0.0, line))[0]:
            worst[line.backend.label] = ratio, line
    if not worst:
        return ""
    parts = [
        f"{format_value(ratio, Unit.RATIO)} on {label} ({one_line(line.victim)}, {line.metric}; {line.aggressor})"
        for label, (ratio, line) in worst.items()
    ]
    beside = f"Next to {plural(max(view.numbers), 'aggressor')} of the worst kind"
    sentence = f"{beside}, a victim was this many times worse off than alone: {listed(parts)}"
    if len(analysis.manifest.envelope.cpus) == 1:
        sentence += f"; they share its one CPU, of which an equal share alone makes {max(view.numbers) + 1}×"
    return f"{sentence}."


def _limits(analysis: Analysis) -> str:
    """Which limits were exceeded."""
    lines = held_lines(analysis)
    if not lines:
        return ""
    by_verdict: dict[str, dict[str, list[str]]] = {"exceeded": {}, "uncertain": {}}
    for line in lines:
        if line.verdict in by_verdict:
            by_verdict[line.verdict].setdefault(line.limit, []).append(line.backend.label)
    said = [
        f"{limit} {word} on {listed(labels)}"
        for verdict, word in (("exceeded", "exceeded"), ("uncertain", "not certain to hold"))
        for limit, labels in by_verdict[verdict].items()
    ]
    short = [
        f"{line.backend.label} could use {line.ratio:.0%} of the {line.limit} that it was given"
        for line in lines
        if line.limit == "memory" and line.ratio is not None and line.ratio < SHORT
    ]
    rest = "all others that were tried held" if said else "all that were tried held"
    sure = "" if any(line.interval for line in lines) else " (by values alone: too few blocks for intervals)"
    return f"Limits{sure}: {'; '.join([*said, rest, *short])}."


MOST_NAMED = 4
MOST_WORKLOADS = 8
FEW_BLOCKS = 4
"""Below this, Student's t makes intervals so wide that only large differences can be told."""

_Compared = tuple[Subject, Row, Comparison]


class Caveat(msgspec.Struct, frozen=True):
    """Something to keep in mind. ``code`` is stable; the weight is 3 if results are missing, 2 if they may mislead."""

    code: str
    text: str
    weight: int = 1


def question(analysis: Analysis) -> str:
    """What was compared, in one sentence."""
    measured = analysis.measured
    others = [
        backend.label
        for backend in analysis.backends
        if not backend.is_baseline and (backend.name in measured or not measured)
    ]
    what = listed(_what_was_measured(analysis)) or "nothing was measured"
    if analysis.baseline is None:
        beside = ", measured side by side" if len(others) > 1 else ""
        return f"{listed(others) or 'Nothing'}{beside}: {what}."
    return f"{listed(others) or 'Nothing'} against {analysis.baseline.label}: {what}."


def _what_was_measured(analysis: Analysis) -> list[str]:
    """The experiments by their names; of those that measure workloads, how many."""
    titles = {subject.title for subject in analysis.subjects if subject.traits.of_workload}
    others = dict.fromkeys(subject.traits.title for subject in analysis.subjects if not subject.traits.of_workload)
    named = [title.lower() for title in others]
    return [*named, plural(len(titles), "workload")] if titles else named


def suite_title(analysis: Analysis) -> str:
    """The suite's name, as the run's manifest has it."""
    return one_line(suite_text(analysis, "name") or analysis.manifest.run)


def suite_text(analysis: Analysis, key: str) -> str:
    """What the suite says of itself under ``key``; empty if it does not."""
    suite = analysis.manifest.suite
    head = suite.get("suite")
    return str((head if isinstance(head, dict) else suite).get(key) or "")


def host_virtualization(analysis: Analysis) -> str | None:
    """What the host itself runs in, or None if it is not known to be a virtual machine."""
    value = next((fact.text.strip() for fact in analysis.manifest.host if fact.name == "virtualization"), "")
    return None if value.lower().startswith(("none", "unknown")) else value or None


def caveats(analysis: Analysis) -> list[Caveat]:
    """What limits the results, the weightiest first."""
    found = [
        *_about_the_run(analysis),
        *_about_backends(analysis),
        *_about_blocks(analysis),
        *_about_precision(analysis),
        *_about_warm_up(analysis),
    ]
    # The harness lists a backend's confounds with the host's too: each is said once.
    found.extend(dict.fromkeys(_confounds(analysis)))
    virtual = host_virtualization(analysis)
    if virtual is not None and all(caveat.code != ConfoundCode.HOST_VIRTUAL for caveat in found):
        text = f"The host is itself a virtual machine ({virtual}): its bare metal is not a machine's bare metal."
        found.append(Caveat(ConfoundCode.HOST_VIRTUAL, text, 2))
    found.extend(_about_dependence(analysis))
    return sorted(found, key=lambda caveat: -caveat.weight)


def findings(analysis: Analysis, *, limit: int = 3) -> list[str]:
    """The most important findings as sentences built from verdicts, at most ``limit``."""
    if not analysis.subjects:
        return ["Nothing was measured in this run."]
    if analysis.baseline is None:
        missing = f"{one_line(analysis.manifest.baseline)} was not measured in this run, so no ratio can be given."
        told = experiment_findings(analysis) or [missing]
        return [sentence for sentence in (*told, _start_finding(analysis)) if sentence][:limit]
    start = _start_finding(analysis)
    others = [backend for backend in analysis.backends if not backend.is_baseline]
    work = [sentence for backend in others if (sentence := _work_finding(analysis, backend))]
    cost = _cost_finding(analysis)
    instances = experiment_findings(analysis)
    first = work[: limit - 1 if start or instances else limit]
    sentences = [sentence for sentence in (*first, start, *instances, *work[len(first) :], cost) if sentence]
    return list(dict.fromkeys(sentences))[:limit] or ["No backend has anything that can be compared with the baseline."]


def _start_finding(analysis: Analysis) -> str | None:
    """One sentence over all backends' time to start."""
    row = next((row for _, row in analysis.rows if row.metric.name == BootMetric.TOTAL), None)
    return None if row is None else _value_finding(row, "Ready to execute after")


def _cost_finding(analysis: Analysis) -> str | None:
    """One sentence on what instances take, from the experiment that asks for it most directly."""
    words = {
        LimitsMetric.START_MEMORY: "Least memory to start with:",
        BootMetric.PSS: "Memory of an idle instance:",
    }
    rows = [(subject, row) for subject, row in analysis.rows if row.cells]
    for name, opening in words.items():
        row = next((row for _, row in rows if row.metric.name == name), None)
        if row is not None:
            return _value_finding(row, opening)
    peaks = [(subject, row) for subject, row in rows if row.metric.name == SteadyMetric.MEMORY_PEAK]
    if not peaks:
        return None
    subject, row = max(peaks, key=lambda peak: peak[1].cells[0].estimate.centre)
    return _value_finding(row, f"Largest peak of memory charged to an instance, in {subject.name}:")


def _value_finding(row: Row, opening: str) -> str | None:
    if len(row.cells) < 2:
        return None
    parts = []
    for cell in row.cells:
        found = cell.estimate
        value = f"{format_estimate(found.centre, found.low, found.high, row.metric.unit)} on {cell.backend.label}"
        parts.append(value if cell.comparison is None else f"{value} ({_ratio_words(cell)})")
    return f"{opening} {listed(parts)}."


def _ratio_words(cell: CellResult) -> str:
    found = cell.comparison
    if found is None or found.ratio is None:
        return "no ratio"
    if found.verdict_adjusted is Verdict.EQUIVALENT:
        return f"equivalent within {percent(found.margin)}"
    if found.low is None:
        return f"{format_ratio_estimate(found)}{' in the only block' if found.n_blocks == 1 else ', no interval'}"
    if found.verdict_adjusted is Verdict.INCONCLUSIVE:
        return f"{format_ratio_estimate(found)}, inconclusive"
    return f"{format_ratio_estimate(found)}, {percent(found.level)} interval {format_range(found.low, found.high)}"


def _work_finding(analysis: Analysis, backend: MeasuredBackend) -> str | None:
    """How a backend did in the workloads' own metrics of speed, one a reading, and in the leading one of each."""
    own = [
        (subject, row, found)
        for subject, row, cell, found in analysis.comparisons
        if cell.backend == backend
        and subject.traits.of_workload
        and row.is_workload_metric
        and not is_cost(row.metric)
        and found.ratio is not None
        and not found.restates
    ]
    if not own or analysis.baseline is None:
        return None
    if all(found.n_blocks == 1 for *_, found in own):
        return f"{backend.label}: no verdict on speed, because every ratio comes from one block."
    counts = Counter(found.verdict_adjusted for *_, found in own)
    margins = {found.margin for *_, found in own}
    within = f"within {percent(margins.pop())}" if len(margins) == 1 else "within their margins"
    sentence = _tally(backend.label, analysis.baseline.label, counts, within)
    leading = list(_leading_sentences(own))
    more = f"; and {len(leading) - MOST_WORKLOADS} more below" if len(leading) > MOST_WORKLOADS else ""
    return f"{sentence}. By workload: {'; '.join(leading[:MOST_WORKLOADS])}{more}."


def _tally(label: str, baseline: str, counts: Counter[Verdict], within: str) -> str:
    measures = plural(counts.total(), "speed measure") + " of the workloads"
    words = {
        Verdict.SLOWER: ("is slower than", "slower"),
        Verdict.FASTER: ("is faster than", "faster"),
        Verdict.EQUIVALENT: ("is equivalent to", "equivalent"),
        Verdict.INCONCLUSIVE: ("", "undecided"),
    }
    present = [verdict for verdict in words if counts[verdict]]
    if len(present) == 1:
        every = "the one" if counts.total() == 1 else "all"
        if present[0] is Verdict.INCONCLUSIVE:
            neither = f"neither a difference nor equality {within} is shown"
            return f"{label} against {baseline}: undecided in {every} {measures.removeprefix('1 ')} ({neither})"
        suffix = f" {within}" if present[0] is Verdict.EQUIVALENT else ""
        return f"{label} {words[present[0]][0]} {baseline}{suffix} in {every} {measures.removeprefix('1 ')}"
    tally = [
        f"{words[verdict][1]}{f' {within}' if verdict is Verdict.EQUIVALENT else ''} in {counts[verdict]}"
        for verdict in present
    ]
    return f"{label} against {baseline}, in {measures}: {listed(tally)}"


def _leading_sentences(own: list[_Compared]) -> Iterator[str]:
    """The first metric that each workload declares: chosen beforehand, where the largest difference would be luck.

    Of a workload with several parameters, the range of its ratios.
    """
    first: dict[str, _Compared] = {}
    for entry in own:
        first.setdefault(entry[0].name, entry)
    by_metric: dict[str, list[_Compared]] = {}
    for entry in first.values():
        by_metric.setdefault(f"{entry[0].title} {entry[1].metric.name}", []).append(entry)
    for name, entries in by_metric.items():
        _, row, found = entries[0]
        if len(entries) == 1:
            interval = "" if found.low is None else f" ({format_range(found.low, found.high)})"
            yield f"{name} {format_ratio_estimate(found)} {as_large(row.metric)}{interval}"
            continue
        each = sorted((found for *_, found in entries), key=lambda found: found.ratio or 0)
        least, most = (format_ratio_estimate(found) for found in (each[0], each[-1]))
        lows, highs = [found.low for found in each if found.low], [found.high for found in each if found.high]
        within = f", intervals within {format_range(min(lows), max(highs))}" if lows and highs else ""
        yield f"{name} {least} to {most} {as_large(row.metric)} ({len(entries)} sets of parameters{within})"


def _about_the_run(analysis: Analysis) -> Iterator[Caveat]:
    manifest = analysis.manifest
    if manifest.status is not RunStatus.COMPLETE:
        measured = len(analysis.run.samples.distinct("instance"))
        word = "was interrupted" if manifest.status is RunStatus.INTERRUPTED else "has not ended, or was killed"
        text = f"The run {word}: {measured} of {manifest.planned_instances} planned instances are in this report."
        yield Caveat("run-incomplete", text, 3)
    if analysis.baseline is None and analysis.subjects:
        name, known = one_line(manifest.baseline), {**manifest.backends, **manifest.unavailable}
        missing = f"The baseline {name} was not measured"
        if name not in known:
            missing = f"The run names {name} as its baseline, which is none of its backends ({', '.join(known)})"
        yield Caveat("no-baseline", f"{missing}: there are values, but no ratios and no verdicts.", 3)
    yield from (Caveat("data", f"{warning.rstrip('.')}.", 2) for warning in analysis.run.warnings)
    if analysis.failures:
        cells = {event.cell for event in analysis.failures}
        failed = f"{plural(len(analysis.failures), 'instance')} failed, in {plural(len(cells), 'cell')}"
        yield Caveat("failures", f"{failed}; see Failures for the reasons.", 3)


def _about_backends(analysis: Analysis) -> Iterator[Caveat]:
    unavailable, measured = analysis.manifest.unavailable, analysis.measured
    for name, availability in unavailable.items():
        text = f"{name} was asked for and is not available here: {availability.reason.rstrip('.')}."
        yield Caveat("unavailable", text, 3)
    for backend in analysis.backends:
        if backend.name not in measured and backend.name not in unavailable and not backend.is_baseline:
            yield Caveat("no-samples", f"{backend.label} has no measurement that counts in this run.", 3)


def _about_blocks(analysis: Analysis) -> Iterator[Caveat]:
    counts = [found.n_blocks for _, _, _, found in analysis.comparisons if found.ratio is not None]
    if single := counts.count(1):
        which = f"All {single}" if single == len(counts) else f"{single} of {len(counts)}"
        yield Caveat("one-block", f"{which} ratios come from one block: they have no interval and no verdict.", 3)
    if any(1 < count < FEW_BLOCKS for count in counts):
        text = f"Some intervals rest on fewer than {FEW_BLOCKS} blocks and are therefore wide; more blocks narrow them."
        yield Caveat("few-blocks", text, 2)


def _about_dependence(analysis: Analysis) -> Iterator[Caveat]:
    """Whose neighbouring blocks depend on one another, and where there are too few blocks to show it."""
    labels = {backend.name: backend.label for backend in analysis.backends}
    for backend, found in analysis.dependence.items():
        if found.lag1 > 0:
            text = (
                f"{labels[backend]}: ratios of neighbouring blocks resemble each other (correlation {found.lag1:.1f}); "
                "its intervals are wider for it."
            )
            yield Caveat(NoteCode.BLOCKS_DEPENDENT, text, 2)
    untested = [
        found
        for *_, found in analysis.comparisons
        if found.low is not None and not found.dependence.is_tested and found.dependence.lag1 == 0
    ]
    if untested:
        text = (
            "There are too few blocks to show whether neighbouring blocks resemble each other. On a host where they do "
            "intervals are too narrow."
        )
        yield Caveat(NoteCode.BLOCKS_UNTESTED, text, 1)


def _about_precision(analysis: Analysis) -> Iterator[Caveat]:
    """Which cells did not reach the precision that the suite asked for, and what it would have taken."""
    yield from (Caveat("not-estimated", f"{note.rstrip('.')}.", 1) for note in analysis.notes)
    missed = [
        (subject, cell, cell.precision)
        for subject, _, cell in analysis.cells
        if cell.precision is not None and cell.precision.standing is not Standing.REACHED
    ]
    if missed:
        parts = []
        for subject, cell, precision in missed[:MOST_NAMED]:
            needs = f"about {plural(precision.needed, 'block')}" if precision.needed else precision.note or "unknown"
            parts.append(f"{subject.name} on {cell.backend.label} ({precision.n_blocks} of {needs})")
        more = f" and {len(missed) - MOST_NAMED} more" if len(missed) > MOST_NAMED else ""
        text = f"The precision asked for ({percent(missed[0][2].wanted)}) was not reached for {'; '.join(parts)}{more}."
        yield Caveat("precision", text, 2)


def _about_warm_up(analysis: Analysis) -> Iterator[Caveat]:
    """Where iterations beyond the suite's own count were found to be warm-up, and where cells never settled."""
    for subject, row in analysis.rows:
        if not row.is_leading:
            continue
        for cell in row.cells:
            if not cell.warm_up.settled:
                text = (
                    f"{subject.name} on {cell.backend.label} has not settled: its iterations still change beyond the "
                )
                yield Caveat("not-settled", f"{text}first half; state more of them, or more warm-up.", 2)
        taken = max((cell.warm_up.iterations for cell in row.cells), default=0)
        if taken:
            which = "first iteration" if taken == 1 else f"first {taken} iterations"
            text = f"{subject.name}: the {which} of each instance turned out to be warm-up, and does not count on any"
            yield Caveat("warm-up", f"{text} backend.")


def _confounds(analysis: Analysis) -> Iterator[Caveat]:
    labels = {backend.name: backend.label for backend in analysis.backends}
    described = [confound for one in analysis.manifest.backends.values() for confound in one.confounds]
    for confound in (*described, *analysis.manifest.confounds):
        opening = f"{labels.get(confound.backend, confound.backend)}: " if confound.backend else ""
        weight = CONFOUND_WEIGHTS.get(confound.code, 1)
        yield Caveat(confound.code, f"{opening}{confound.detail.rstrip('.')}.", weight)
