"""Two runs, or two backends or two values of a parameter in one run, metric by metric.

Ratios are the second over the first. Within a run both sides were measured in the same blocks and are compared block by
block; two runs share no block, and are compared as two independent samples of blocks.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.analysis.cells import have_same_sizes, without_ratio
from tare.bench.analysis.estimates import Analysis, CellResult, Row, Subject, analyse
from tare.bench.comparability import Difference, split_allowed
from tare.bench.errors import RunDirectoryError, UnknownNameError
from tare.bench.model import Metric
from tare.bench.readable import one_line
from tare.bench.samples import params_text
from tare.bench.stats.comparisons import Comparison, Interval, compare, compare_unpaired, control_false_discoveries
from tare.bench.store import load_run


class ComparisonRequest(msgspec.Struct, frozen=True):
    """What ``tare compare`` was asked: ratios are always the second over the first.

    Two runs if ``second`` is given. Else two ``backends`` of the run ``first``, or two values of a ``parameter`` in it:
    its name, the first value, the second. ``allowed`` are conditions that may differ between two runs (see
    ``tare.bench.comparability``). ``margin`` replaces the runs' own.
    """

    first: Path
    second: Path | None = None
    backends: tuple[str, str] | None = None
    parameter: tuple[str, str, str] | None = None
    allowed: tuple[str, ...] = ()
    margin: float | None = None


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
        return " ".join(part for part in (one_line(self.workload or self.experiment), self.given) if part)

    @property
    def given(self) -> str:
        """Its parameters on one line."""
        return ", ".join(f"{one_line(name)} {one_line(str(value))}" for name, value in self.params.items())


class RunComparison(msgspec.Struct, frozen=True):
    """A comparison with what it rests on.

    ``confounds`` are differing conditions that were allowed. ``analyses`` are of the run, or of both; ``left_out`` says
    how many values of the first and the second the other does not have.
    """

    first: str
    second: str
    lines: list[Line]
    analyses: tuple[Analysis, ...]
    confounds: list[Difference] = []
    left_out: tuple[int, int] = (0, 0)

    @property
    def is_paired(self) -> bool:
        """Whether both sides were measured in the same blocks: within one run."""
        return len(self.analyses) == 1


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
    names = (one_line(ours.run, 60), one_line(theirs.run, 60))
    left_out = (len(before) - len(shared), len(after) - len(shared))
    return RunComparison(*names, _adjusted(lines, names), (first, second), confounds, left_out)


def _compare_backends(analysis: Analysis, first: str, second: str, request: ComparisonRequest) -> RunComparison:
    labels = {backend.name: backend.label for backend in analysis.backends}
    for name in (first, second):
        if name not in labels:
            raise UnknownNameError(f"the run has no backend {name!r}; it has: {', '.join(labels)}")
    lines = []
    for subject, row in analysis.rows:
        cells = {cell.backend.name: cell for cell in row.cells}
        if first in cells and second in cells:
            found = _paired(analysis, row, cells[first], cells[second], request)
            lines.append(_line(subject, row, "", cells[first], cells[second], found))
    names = (labels[first], labels[second])
    return RunComparison(*names, _adjusted(lines, names), (analysis,))


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
    names = (one_line(f"{name} {first}"), one_line(f"{name} {second}"))
    return RunComparison(*names, _adjusted(lines, names), (analysis,))


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
    for subject, row, cell in analysis.cells:
        params = params_text(subject.params)
        yield (subject.experiment, subject.workload, params, row.metric.name, cell.backend.name), (subject, row, cell)


def _line(subject: Subject, row: Row, backend: str, old: CellResult, new: CellResult, found: Comparison) -> Line:
    if old.size != new.size or (old.size is None and not have_same_sizes(subject.traits, old.points, new.points)):
        found = without_ratio(found)
    return Line(
        subject.experiment, subject.workload, subject.params, backend, row.metric, old.estimate, new.estimate, found
    )


def _adjusted(lines: list[Line], names: tuple[str, str]) -> list[Line]:
    """The lines with false discoveries controlled over all of them. Raises RunDirectoryError if there are none."""
    if not lines:
        raise RunDirectoryError(f"{names[0]} and {names[1]} have measured nothing in common")
    adjusted = control_false_discoveries([line.found for line in lines])
    return [msgspec.structs.replace(line, found=found) for line, found in zip(lines, adjusted, strict=True)]
