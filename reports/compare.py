"""``tare compare``: two runs, or two backends or two values of a parameter in one run, metric by metric.

Ratios are the second over the first. Within a run both sides were measured in the same blocks and are compared block by
block; two runs share no block, and are compared as two independent samples of blocks.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.analysis import Analysis, CellResult, Row, Subject, analyse
from tare.bench.analysis.cells import have_same_sizes, without_ratio
from tare.bench.comparability import Difference, split_allowed
from tare.bench.errors import RunDirectoryError, UnknownNameError
from tare.bench.interfaces import ComparisonRequest
from tare.bench.model import Metric
from tare.bench.readable import one_line
from tare.bench.samples import params_text
from tare.bench.stats import Comparison, Interval, compare, control_false_discoveries
from tare.bench.stats.unpaired import compare_unpaired
from tare.bench.store import load_run
from tare.reports.findings import caveats
from tare.reports.wording import metric_name, plural, verdict_word

_UNPAIRED = (
    "The runs share no block: what changed on the host from one to the other is in the ratios, and intervals hold the "
    "variation of blocks within each run, not that between runs."
)


class Line(msgspec.Struct, frozen=True):
    """One metric on both sides. Estimates are in the metric's unit; ``found`` is the second over the first."""

    experiment: str
    workload: str
    params: Mapping[str, Any]
    backend: str
    metric: Metric
    first: Interval
    second: Interval
    found: Comparison

    @property
    def title(self) -> str:
        """The workload, or the experiment that has none, with its parameters."""
        return " ".join(part for part in (one_line(self.workload or self.experiment), self._given) if part)

    @property
    def name(self) -> str:
        """The metric with what it is of."""
        return metric_name(one_line(self.workload or self.experiment), self._given, one_line(self.metric.name))

    @property
    def _given(self) -> str:
        return ", ".join(f"{one_line(name)} {one_line(str(value))}" for name, value in self.params.items())

    @property
    def word(self) -> str:
        """The word for the verdict that survived the correction for many comparisons."""
        return verdict_word(self.metric, self.found.verdict_adjusted)


class RunComparison(msgspec.Struct, frozen=True):
    """A comparison with all that a reader must know. ``confounds`` are differing conditions that were allowed."""

    first: str
    second: str
    is_paired: bool
    lines: list[Line]
    confounds: list[Difference]
    notes: list[str]

    @property
    def tally(self) -> str:
        """How many comparisons came out how, in words."""
        counts = Counter(line.word for line in self.lines)
        return f"{plural(len(self.lines), 'comparison')}: " + ", ".join(
            f"{count} {word}" for word, count in counts.most_common()
        )


def compare_request(request: ComparisonRequest) -> RunComparison:
    """What was asked for. Raises RunDirectoryError, NotComparableError, UnknownNameError."""
    if request.second is not None:
        return _compare_runs(request, request.second)
    analysis = _analyse(request, request.first)
    if request.backends is not None:
        return _compare_backends(analysis, *request.backends, request)
    if request.parameter is not None:
        return _compare_values(analysis, *request.parameter, request)
    raise RunDirectoryError("there is nothing to compare the run with", remedy="name a second run, backends or values")


def _analyse(request: ComparisonRequest, path: Path) -> Analysis:
    return analyse(load_run(path), margin=request.margin)


def _compare_runs(request: ComparisonRequest, path: Path) -> RunComparison:
    first, second = _analyse(request, request.first), _analyse(request, path)
    ours, theirs = first.manifest, second.manifest
    if (ours.run, ours.started_utc, ours.seed) == (theirs.run, theirs.started_utc, theirs.seed):
        raise RunDirectoryError(f"{request.first} and {path} are the same run", remedy="name two different runs")
    confounds = split_allowed(ours, theirs, request.allowed)
    before, after = dict(_cells(first)), dict(_cells(second))
    shared = [key for key in before if key in after]
    if not shared:
        raise RunDirectoryError(f"{ours.run} and {theirs.run} have measured nothing in common")
    lines = []
    for key in shared:
        (subject, row, old), (_, _, new) = before[key], after[key]
        found = compare_unpaired(
            new.blocks, old.blocks, direction=row.metric.direction, margin=_margin(first, row, request)
        )
        lines.append(_line(subject, row, old.backend.label, old, new, found))
    names = [one_line(manifest.run, 60) for manifest in (ours, theirs)]
    notes = [_UNPAIRED]
    for name, left_out in zip(names, (len(before) - len(shared), len(after) - len(shared)), strict=True):
        if left_out:
            notes.append(f"{plural(left_out, 'value')} of {name} {'is' if left_out == 1 else 'are'} not in the other.")
    notes.extend(_about_both(first, second, names, {line.backend for line in lines}))
    return _finish(names[0], names[1], lines, confounds, notes, is_paired=False)


def _compare_backends(analysis: Analysis, first: str, second: str, request: ComparisonRequest) -> RunComparison:
    labels = {backend.name: backend.label for backend in analysis.backends}
    for name in (first, second):
        if name not in labels:
            raise UnknownNameError(f"the run has no backend {name!r}; it has: {', '.join(labels)}")
    lines = []
    for subject in analysis.subjects:
        for row in subject.rows:
            cells = {cell.backend.name: cell for cell in row.cells}
            if first in cells and second in cells:
                found = _paired(analysis, row, cells[first], cells[second], request)
                lines.append(_line(subject, row, "", cells[first], cells[second], found))
    sides = {labels[first], labels[second]}
    return _finish(labels[first], labels[second], lines, [], _about(analysis, sides), is_paired=True)


def _compare_values(
    analysis: Analysis, name: str, first: str, second: str, request: ComparisonRequest
) -> RunComparison:
    lines = []
    for before, after in _subjects_by_value(analysis, name, first, second):
        cells = {(row.metric.name, cell.backend.name): cell for row in after.rows for cell in row.cells}
        rest = {other: given for other, given in before.params.items() if other != name}
        subject = msgspec.structs.replace(before, params=rest)
        for row in before.rows:
            for old in row.cells:
                new = cells.get((row.metric.name, old.backend.name))
                if new is not None:
                    found = _paired(analysis, row, old, new, request)
                    lines.append(_line(subject, row, old.backend.label, old, new, found))
    names = [one_line(f"{name} {value}") for value in (first, second)]
    notes = _about(analysis, {line.backend for line in lines})
    return _finish(names[0], names[1], lines, [], notes, is_paired=True)


def _subjects_by_value(analysis: Analysis, name: str, first: str, second: str) -> list[tuple[Subject, Subject]]:
    """The pairs of subjects that differ in one parameter's value and in nothing else."""
    values: dict[str, None] = {}
    sides: dict[tuple[str, str, str], dict[str, Subject]] = {}
    for subject in analysis.subjects:
        if name in subject.params:
            value = str(subject.params[name])
            values.setdefault(value)
            rest = {other: given for other, given in subject.params.items() if other != name}
            sides.setdefault((subject.experiment, subject.workload, params_text(rest)), {})[value] = subject
    if not values:
        known = dict.fromkeys(parameter for subject in analysis.subjects for parameter in subject.params)
        raise UnknownNameError(f"the run has no parameter {name!r}; it has: {', '.join(known) or 'none'}")
    for value in (first, second):
        if value not in values:
            raise UnknownNameError(f"{name} was never {value!r} in this run; it was: {', '.join(values)}")
    return [(side[first], side[second]) for side in sides.values() if first in side and second in side]


def _paired(analysis: Analysis, row: Row, old: CellResult, new: CellResult, request: ComparisonRequest) -> Comparison:
    return compare(
        new.blocks,
        old.blocks,
        direction=row.metric.direction,
        margin=_margin(analysis, row, request),
        seed=analysis.manifest.seed,
    )


def _margin(analysis: Analysis, row: Row, request: ComparisonRequest) -> float:
    """The margin asked for, else that of the metric in the run."""
    if request.margin is not None:
        return request.margin
    known = (cell.comparison.margin for cell in row.cells if cell.comparison is not None)
    return next(known, analysis.margin)


def _cells(analysis: Analysis) -> Iterator[tuple[tuple[str, ...], tuple[Subject, Row, CellResult]]]:
    for subject in analysis.subjects:
        for row in subject.rows:
            for cell in row.cells:
                params = params_text(subject.params)
                key = (subject.experiment, subject.workload, params, row.metric.name, cell.backend.name)
                yield key, (subject, row, cell)


def _line(subject: Subject, row: Row, backend: str, old: CellResult, new: CellResult, found: Comparison) -> Line:
    if old.size != new.size or (old.size is None and not have_same_sizes(row.metric.name, old.points, new.points)):
        found = without_ratio(found)
    return Line(
        subject.experiment, subject.workload, subject.params, backend, row.metric, old.estimate, new.estimate, found
    )


def _about(analysis: Analysis, compared: set[str]) -> list[str]:
    """The weighty caveats of a run: emulation, missing results, what may mislead; none of backends not compared."""
    others = tuple(f"{backend.label}: " for backend in analysis.backends if backend.label not in compared)
    return [caveat.text for caveat in caveats(analysis) if caveat.weight > 1 and not caveat.text.startswith(others)]


def _about_both(first: Analysis, second: Analysis, names: list[str], compared: set[str]) -> Iterator[str]:
    """The weighty caveats of two runs; what both have is said once."""
    ours, theirs = _about(first, compared), _about(second, compared)
    yield from (note for note in ours if note in theirs)
    yield from (f"{names[0]}: {note}" for note in ours if note not in theirs)
    yield from (f"{names[1]}: {note}" for note in theirs if note not in ours)


def _finish(
    first: str, second: str, lines: list[Line], confounds: list[Difference], notes: list[str], *, is_paired: bool
) -> RunComparison:
    """The comparison with false discoveries controlled over all of its lines."""
    if not lines:
        raise RunDirectoryError(f"{first} and {second} have measured nothing in common")
    adjusted = control_false_discoveries([line.found for line in lines])
    kept = [msgspec.structs.replace(line, found=found) for line, found in zip(lines, adjusted, strict=True)]
    return RunComparison(first, second, is_paired, kept, confounds, notes)
