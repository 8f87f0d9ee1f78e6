"""Two sets of runs, or two backends or two values of a parameter in one run, metric by metric.

Ratios are the second over the first. Within a run both sides were measured in the same blocks and are compared block by
block. Runs share no block, and what the host did to one of them is in each of its levels. So between runs the *ratios*
to the baseline of the same block are compared: what moved there is the isolation's. Levels have lines of their own,
which are no failure unless both sides have enough runs to show how much two runs of the same thing differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tare.bench.analysis.cells import have_same_sizes, without_ratio
from tare.bench.analysis.estimates import analyse, hidden_skewness
from tare.bench.analysis.results import Analysis, CellResult, Row, Subject
from tare.bench.comparability import Difference, split_allowed
from tare.bench.errors import RunDirectoryError, UnknownNameError
from tare.bench.model import Metric
from tare.bench.readable import one_line
from tare.bench.samples import params_text
from tare.bench.stats.comparisons import (
    CellBlocks,
    Comparison,
    Floats,
    Interval,
    Verdict,
    compare,
    log_ratios,
    relative,
)
from tare.bench.stats.families import Member, control_false_discoveries
from tare.bench.stats.runs import ENOUGH_RUNS, compare_runs, summarise_runs
from tare.bench.store import load_run

LEVEL_NOTE = f"a level, the host's included: no verdict with fewer than {ENOUGH_RUNS} runs a side"
_LONGEST_NAME = 60


class ComparisonRequest(msgspec.Struct, frozen=True):
    """What ``tare compare`` was asked: ratios are always the second over the first.

    Two sets of runs if there are ``second`` ones. Else two ``backends`` of the one run in ``first``, or two values of a
    ``parameter`` in it: its name, the first value, the second. ``allowed`` are conditions that may differ between runs
    (see ``tare.bench.comparability``). ``margin`` replaces the runs' own.
    """

    first: tuple[Path, ...]
    second: tuple[Path, ...] = ()
    backends: tuple[str, str] | None = None
    parameter: tuple[str, str, str] | None = None
    allowed: tuple[str, ...] = ()
    margin: float | None = None


class LineKind(StrEnum):
    """What the two sides of a line are."""

    PAIRED = "paired"
    """Values of one run, compared block by block."""
    ISOLATION = "isolation"
    """Ratios of a backend to the baseline of the same block, in different runs: the host's part cancels."""
    LEVEL = "level"
    """Values of different runs: what changed on the host is in them."""


class Line(msgspec.Struct, frozen=True):
    """One metric on both sides; ``found`` is the second over the first.

    ``first`` and ``second`` are in the metric's unit, or ratios to the baseline (``kind`` says it). ``is_leading``: the
    subject is known by this metric.
    """

    experiment: str
    workload: str
    params: Mapping[str, Any]
    backend: str
    metric: Metric
    first: Interval
    second: Interval
    found: Comparison
    kind: LineKind = LineKind.PAIRED
    is_leading: bool = False

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

    ``confounds`` are differing conditions that were allowed. ``analyses`` are of the run, or of all runs, of which the
    first ``n_first`` are the first side; ``left_out`` says how many values of either side the other does not have.
    ``baseline`` is the label of what the isolation's ratios refer to; empty where there are none.
    """

    first: str
    second: str
    lines: list[Line]
    analyses: tuple[Analysis, ...]
    n_first: int = 1
    confounds: list[Difference] = []
    left_out: tuple[int, int] = (0, 0)
    baseline: str = ""

    @property
    def is_paired(self) -> bool:
        """Whether both sides were measured in the same blocks: within one run."""
        return len(self.analyses) == 1

    @property
    def n_runs(self) -> tuple[int, int]:
        """How many runs there are on the first side, and on the second."""
        return self.n_first, len(self.analyses) - self.n_first


def compare_request(request: ComparisonRequest) -> RunComparison:
    """What was asked for. Raises RunDirectoryError, NotComparableError, UnknownNameError."""
    if request.second:
        return _compare_runs(request)
    analysis = _analyse(request, request.first[0])
    if request.backends is not None:
        return _compare_backends(analysis, *request.backends, request)
    if request.parameter is not None:
        return _compare_values(analysis, *request.parameter, request)
    raise RunDirectoryError("there is nothing to compare the run with", remedy="name a second run, backends or values")


def _analyse(request: ComparisonRequest, path: Path) -> Analysis:
    return analyse(load_run(path), margin=request.margin)


class _Draft(msgspec.Struct, frozen=True):
    """A line before the correction, what it is a member of, and what shows that two lines restate one reading."""

    line: Line
    family: str
    evidence: Floats


_Key = tuple[str, str, str, str, str]
"""Experiment, workload, parameters as JSON, metric, backend."""
_Place = tuple[Subject, Row, CellResult]
_Sides = tuple[list[_Place], list[_Place]]
"""The same cell in each of the first runs, and in each of the second."""


def _compare_runs(request: ComparisonRequest) -> RunComparison:
    paths = (*request.first, *request.second)
    analyses = tuple(_analyse(request, path) for path in paths)
    _refuse_same_run(paths, analyses)
    confounds = {
        one.field: one
        for analysis in analyses[1:]
        for one in split_allowed(analyses[0].manifest, analysis.manifest, request.allowed)
    }
    n_first = len(request.first)
    cells = [dict(_cells(analysis)) for analysis in analyses]
    shared = [key for key in cells[0] if all(key in one for one in cells)]
    names = (_names(analyses[:n_first]), _names(analyses[n_first:]))
    sides = {key: ([one[key] for one in cells[:n_first]], [one[key] for one in cells[n_first:]]) for key in shared}
    baseline = _common_baseline(analyses)
    isolation = [
        _isolation(analyses, key, sides[key], sides[*key[:-1], baseline], request)
        for key in shared
        if baseline and key[-1] != baseline and (*key[:-1], baseline) in sides
    ]
    levels = [_level(analyses, key, sides[key], request) for key in shared]
    known = [set().union(*side) for side in (cells[:n_first], cells[n_first:])]
    return RunComparison(
        *names,
        _adjusted([*isolation, *levels], names),
        analyses,
        n_first,
        list(confounds.values()),
        (len(known[0] - set(shared)), len(known[1] - set(shared))),
        analyses[0].baseline.label if isolation and analyses[0].baseline is not None else "",
    )


def _refuse_same_run(paths: Sequence[Path], analyses: Sequence[Analysis]) -> None:
    seen: dict[tuple[str, str, int], Path] = {}
    for path, analysis in zip(paths, analyses, strict=True):
        manifest = analysis.manifest
        key = (manifest.run, manifest.started_utc, manifest.seed)
        if key in seen:
            raise RunDirectoryError(f"{seen[key]} and {path} are the same run", remedy="name different runs")
        seen[key] = path


def _names(analyses: Sequence[Analysis]) -> str:
    names = [one_line(analysis.manifest.run, _LONGEST_NAME) for analysis in analyses]
    return names[0] if len(names) == 1 else f"{len(names)} runs ({names[0]} to {names[-1]})"


def _common_baseline(analyses: Sequence[Analysis]) -> str:
    """The backend that all runs measured as their baseline; empty if there is none."""
    names = {analysis.baseline.name if analysis.baseline is not None else "" for analysis in analyses}
    return names.pop() if len(names) == 1 else ""


def _isolation(
    analyses: Sequence[Analysis], key: _Key, sides: _Sides, base: _Sides, request: ComparisonRequest
) -> _Draft:
    """What the isolation costs in the second runs over what it costs in the first."""
    ratios = [
        [relative(cell.blocks, theirs.blocks) for (*_, cell), (*_, theirs) in zip(own, their_base, strict=True)]
        for own, their_base in zip(sides, base, strict=True)
    ]
    return _between(
        analyses, LineKind.ISOLATION, f"{key[-1]} over {base[0][0][2].backend.name}", sides, ratios, request
    )


def _level(analyses: Sequence[Analysis], key: _Key, sides: _Sides, request: ComparisonRequest) -> _Draft:
    blocks = [[cell.blocks for *_, cell in side] for side in sides]
    drafted = _between(analyses, LineKind.LEVEL, f"levels of {key[-1]}", sides, blocks, request)
    if min(map(len, sides)) >= ENOUGH_RUNS or drafted.line.found.low is None:
        return drafted
    found = msgspec.structs.replace(
        drafted.line.found,
        verdict=Verdict.INCONCLUSIVE,
        verdict_adjusted=Verdict.INCONCLUSIVE,
        p_value=None,
        q_value=None,
        note=LEVEL_NOTE,
    )
    return msgspec.structs.replace(drafted, line=msgspec.structs.replace(drafted.line, found=found))


def _between(
    analyses: Sequence[Analysis],
    kind: LineKind,
    family: str,
    sides: _Sides,
    blocks: Sequence[Sequence[CellBlocks]],
    request: ComparisonRequest,
) -> _Draft:
    subject, row, old = sides[0][0]
    first, second = blocks
    margin = _margin(analyses[0], row, request)
    found = compare_runs(second, first, direction=row.metric.direction, margin=margin)
    everywhere = [*sides[0], *sides[1]]
    if any(not _same_sizes(subject, old, cell) for *_, cell in everywhere):
        found = without_ratio(found)
    line = Line(
        subject.experiment,
        subject.workload,
        subject.params,
        old.backend.label,
        row.metric,
        summarise_runs(first),
        summarise_runs(second),
        found,
        kind,
        row.is_leading,
    )
    values = np.concatenate([one.values for one in chain(*blocks)])
    return _Draft(line, family, np.log(values) if values.min(initial=np.inf) > 0 else np.empty(0))


def _compare_backends(analysis: Analysis, first: str, second: str, request: ComparisonRequest) -> RunComparison:
    labels = {backend.name: backend.label for backend in analysis.backends}
    for name in (first, second):
        if name not in labels:
            raise UnknownNameError(f"the run has no backend {name!r}; it has: {', '.join(labels)}")
    drafts = []
    for subject, row in analysis.rows:
        cells = {cell.backend.name: cell for cell in row.cells}
        if first in cells and second in cells:
            drafts.append(
                _paired(analysis, subject, row, (cells[first], cells[second]), "", f"{second} over {first}", request)
            )
    names = (labels[first], labels[second])
    return RunComparison(*names, _adjusted(drafts, names), (analysis,))


def _compare_values(
    analysis: Analysis, name: str, first: str, second: str, request: ComparisonRequest
) -> RunComparison:
    drafts = []
    for before, after in _subjects_by_value(analysis, name, first, second):
        cells = {(row.metric.name, cell.backend.name): cell for row in after.rows for cell in row.cells}
        rest = {other: given for other, given in before.params.items() if other != name}
        subject = msgspec.structs.replace(before, params=rest)
        for row in before.rows:
            for old in row.cells:
                new = cells.get((row.metric.name, old.backend.name))
                if new is not None:
                    label = old.backend.label
                    drafts.append(_paired(analysis, subject, row, (old, new), label, old.backend.name, request))
    names = (one_line(f"{name} {first}"), one_line(f"{name} {second}"))
    return RunComparison(*names, _adjusted(drafts, names), (analysis,))


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


def _paired(
    analysis: Analysis,
    subject: Subject,
    row: Row,
    cells: tuple[CellResult, CellResult],
    label: str,
    family: str,
    request: ComparisonRequest,
) -> _Draft:
    old, new = cells
    found = compare(
        new.blocks,
        old.blocks,
        direction=row.metric.direction,
        margin=_margin(analysis, row, request),
        hidden=hidden_skewness(analysis.manifest),
    )
    if not _same_sizes(subject, old, new):
        found = without_ratio(found)
    line = Line(
        subject.experiment,
        subject.workload,
        subject.params,
        label,
        row.metric,
        old.estimate,
        new.estimate,
        found,
        is_leading=row.is_leading,
    )
    return _Draft(line, family, log_ratios(new.blocks, old.blocks))


def _margin(analysis: Analysis, row: Row, request: ComparisonRequest) -> float:
    """The margin asked for, else that of the metric in the run."""
    if request.margin is not None:
        return request.margin
    known = (cell.comparison.margin for cell in row.cells if cell.comparison is not None)
    return next(known, analysis.margin)


def _cells(analysis: Analysis) -> Iterator[tuple[_Key, _Place]]:
    for subject, row, cell in analysis.cells:
        params = params_text(subject.params)
        yield (subject.experiment, subject.workload, params, row.metric.name, cell.backend.name), (subject, row, cell)


def _same_sizes(subject: Subject, old: CellResult, new: CellResult) -> bool:
    return old.size == new.size and (old.size is not None or have_same_sizes(subject.traits, old.points, new.points))


def _adjusted(drafts: Sequence[_Draft], names: tuple[str, str]) -> list[Line]:
    """The lines with false discoveries controlled in each family. Raises RunDirectoryError if there are none."""
    if not drafts:
        raise RunDirectoryError(f"{names[0]} and {names[1]} have measured nothing in common")
    lines = [draft.line for draft in drafts]
    families: dict[str, list[int]] = {}
    for place, draft in enumerate(drafts):
        families.setdefault(draft.family, []).append(place)
    for family, places in families.items():
        members = [
            Member(line.found, line.metric.name, _reading(line), line.is_leading, (drafts[place].evidence,))
            for place in places
            for line in (lines[place],)
        ]
        for place, found in zip(places, control_false_discoveries(members, family), strict=True):
            lines[place] = msgspec.structs.replace(lines[place], found=found)
    return lines


def _reading(line: Line) -> str:
    return f"{line.experiment}/{line.workload}/{params_text(line.params)}"
