"""What came out of the experiments about instances rather than workloads, a sentence each."""

from collections.abc import Iterator, Sequence

from tare.bench.analysis import Analysis
from tare.bench.analysis.density import DensityResult
from tare.bench.catalogue import RATIO_PREFIX
from tare.bench.readable import one_line
from tare.bench.units import Unit, format_size, format_value
from tare.reports.interference_heat import HeatLine, heat_view
from tare.reports.limits_held import held_view
from tare.reports.wording import listed, plural

SHORT = 0.9
"""A program that got less than this share of its instance's memory has to be planned with more of it."""


def experiment_findings(analysis: Analysis) -> list[str]:
    """A sentence for each of these experiments that the run has."""
    found = [_density(analysis), _interference(analysis), _limits(analysis)]
    return [sentence for sentence in found if sentence]


def _density(analysis: Analysis) -> str:
    """What one more instance takes, and how the ramps ended; of idle instances where there were any."""
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
    """How many there were, and why no more, with the backends of which that is true."""
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
    leading = {row.metric.name for subject in analysis.subjects for row in subject.rows if row.is_leading}
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
    beside = f"Beside {plural(max(view.numbers), 'aggressor')}"
    sentence = f"{beside} a victim was, at the worst kind of them, so many times worse off than alone: {listed(parts)}"
    if len(analysis.manifest.envelope.cpus) == 1:
        sentence += f"; they share its one CPU, of which an equal share alone makes {max(view.numbers) + 1}×"
    return f"{sentence}."


def _limits(analysis: Analysis) -> str:
    """Which limits let more through than they promised."""
    view = held_view(analysis)
    if view is None:
        return ""
    by_verdict: dict[str, dict[str, list[str]]] = {"exceeded": {}, "uncertain": {}}
    for line in view.lines:
        if line.verdict in by_verdict:
            by_verdict[line.verdict].setdefault(line.limit, []).append(line.backend.label)
    said = [
        f"{limit} {word} on {listed(labels)}"
        for verdict, word in (("exceeded", "exceeded"), ("uncertain", "not certain to hold"))
        for limit, labels in by_verdict[verdict].items()
    ]
    short = [
        f"{line.backend.label} could use {line.ratio:.0%} of the {line.limit} that it was given"
        for line in view.lines
        if line.limit == "memory" and line.ratio is not None and line.ratio < SHORT
    ]
    rest = "all others that were tried held" if said else "all that were tried held"
    sure = "" if any(line.interval for line in view.lines) else " (by values alone: too few blocks for intervals)"
    return f"Limits{sure}: {'; '.join([*said, rest, *short])}."
