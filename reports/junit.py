"""JUnit XML for continuous integration, as Jenkins, GitLab and GitHub's actions read it; Ant's schema, the strictest.

The grade is a test case of its own, an error if the run cannot be used. Of a run: a test case for each cell, which is
an error if one of its instances failed. A virtual machine that is slower than bare metal is a result and no failure. Of
a comparison: a test case for each comparison that has a ratio, a failure if the verdict is slower (more, for costs)
after correction for many comparisons, and skipped if this could not be told. A level between too few runs has no
verdict and is never a failure: what changed on the host is in it.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import junitparser as junit
import msgspec
from junitparser.junitparser import FinalResult

from tare.bench.analysis import Analysis, GradeLevel, RunResults
from tare.bench.analysis.comparison import Line, LineKind, RunComparison
from tare.bench.readable import one_line, readable
from tare.bench.records import Cell, Event, EventKind, Manifest
from tare.bench.reporter import Reporter
from tare.bench.stats.comparisons import Verdict
from tare.reports.compare import line_name, notes_of, tally, verdict_of
from tare.reports.headline import answer, grade_sentence
from tare.reports.names import names_of
from tare.reports.wording import figure_sentence, format_change, format_change_range

_NO_TIME = "1970-01-01T00:00:00"


class JUnitReporter(Reporter):
    """A test case a cell, or one a comparison."""

    name = "junit"
    summary = "cells, or comparisons, as test cases for CI (JUnit XML)"
    suffix = ".junit.xml"
    compares = True

    def write(self, results: RunResults, output: Path) -> None:
        cases = [_case_of_grade([results.analysis]), *_cases_of_run(results.analysis)]
        said = [" ".join(answer(results.analysis))]
        _suites(cases, results.run.manifest, said).write(str(output), pretty=True)

    def write_comparison(self, comparison: RunComparison, output: Path) -> None:
        said = [*(f"confound: {one}" for one in comparison.confounds), *notes_of(comparison)]
        said.insert(0, f"{comparison.second} against {comparison.first}. {tally(comparison)}")
        told = [line for line in comparison.lines if line.found.ratio is not None]
        cases = [_case_of_grade(comparison.analyses), *(_case_of_line(comparison, line) for line in told)]
        _suites(cases, comparison.analyses[0].manifest, said).write(str(output), pretty=True)


class _Case(msgspec.Struct, frozen=True):
    """A test case. ``seconds`` is what it took on the host's clock; ``said`` is what it has to say."""

    group: str
    name: str
    seconds: float
    said: str
    outcome: FinalResult | None = None


def _case_of_grade(analyses: Sequence[Analysis]) -> _Case:
    """The grade as a test case: an error where a run cannot be used, as then no other case means anything."""
    grade = max((analysis.grade for analysis in analyses), key=lambda one: one.level.rank)
    sentence = grade_sentence(grade)
    outcome = None
    if grade.level is GradeLevel.NOT_USABLE:
        outcome = _outcome(junit.Error, grade.level.value, sentence)
    return _Case("grade", grade.level.value, 0.0, sentence, outcome)


def _cases_of_run(analysis: Analysis) -> list[_Case]:
    failed: dict[str, list[Event]] = {}
    for event in analysis.failures:
        failed.setdefault(event.cell, []).append(event)
    baseline = analysis.baseline.label if analysis.baseline is not None else None
    names = names_of(analysis)
    labels = {backend.name: backend.label for backend in analysis.backends}
    cell_of = {event.instance: event.cell for event in analysis.run.events if event.cell}
    seconds = _seconds_by_cell(analysis.run.events)
    said: dict[str, list[str]] = {cell: [] for cell in seconds}
    for subject, row, cell in analysis.cells:
        kept = msgspec.structs.replace(row, cells=[cell])
        own = Cell(subject.experiment, subject.workload, subject.params, cell.backend.name).key
        key = cell_of.get(cell.points.instance_names[0], own)
        said.setdefault(key, []).append(
            f"{names.row(subject, row)} ({row.metric.name}): {figure_sentence(kept, baseline)}"
        )
    cases = []
    for key in (*said, *(key for key in failed if key not in said)):
        group, _, backend = key.rpartition("/")
        outcome = _failure_of(failed[key]) if key in failed else None
        if outcome is None and not said.get(key):
            outcome = _outcome(junit.Skipped, "no values", "nothing was measured in this cell")
        cases.append(
            _Case(group, labels.get(backend, backend), seconds.get(key, 0.0), "\n".join(said.get(key, [])), outcome)
        )
    return cases


def _failure_of(events: list[Event]) -> FinalResult:
    first = events[0]
    texts = [f"{event.instance}: {event.message}\n{event.details.get('evidence', '')}".strip() for event in events]
    count = f" ({len(events)} instances)" if len(events) > 1 else ""
    return _outcome(junit.Error, "instance failed", f"{first.message}{count}", "\n\n".join(texts))


def _seconds_by_cell(events: Iterable[Event]) -> dict[str, float]:
    """How long the instances of each cell lived, in the order in which the cells were first measured."""
    started: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for event in events:
        if event.kind is EventKind.INSTANCE_STARTED:
            started[event.instance] = event.at_s
            seconds.setdefault(event.cell, 0.0)
        elif event.kind in (EventKind.INSTANCE_DONE, EventKind.INSTANCE_FAILED) and event.instance in started:
            seconds[event.cell] = seconds.get(event.cell, 0.0) + event.at_s - started.pop(event.instance)
    return seconds


def _case_of_line(comparison: RunComparison, line: Line) -> _Case:
    found, word = line.found, verdict_of(line)
    size = f"{format_change(found)} ({format_change_range(found)})" if found.low is not None else found.note
    sentence = f"{word}: {size}, margin {found.margin * 100:g} %, q {found.q_value or 0:.2g}, {found.method}"
    outcome = None
    if found.low is not None and found.note:
        outcome = _outcome(junit.Skipped, "no verdict", f"{found.note}: {size}")
    elif found.verdict_adjusted is Verdict.SLOWER:
        outcome = _outcome(junit.Failure, word, f"{line_name(comparison, line)}: {word}, {size}", sentence)
    elif found.verdict_adjusted is Verdict.INCONCLUSIVE:
        outcome = _outcome(junit.Skipped, word, f"{word}: {size}")
    name = f"{line.metric.name} on {line.backend}" if line.backend else line.metric.name
    name = f"{line.kind} of {name}" if line.kind is not LineKind.PAIRED else name
    group = "/".join(dict.fromkeys((line.experiment, line.title)))
    return _Case(group, name, 0.0, sentence, outcome)


class _Suite(junit.TestSuite):
    """A suite with what Ant's schema asks for in addition."""

    package = junit.Attr()
    id = junit.Attr()


def _suites(cases: Iterable[_Case], manifest: Manifest, said: Iterable[str] = ()) -> junit.JUnitXml:
    """A suite for each group of cases, with everything that Ant's schema asks for, in its order."""
    groups: dict[str, list[_Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    root = junit.JUnitXml()
    started = re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", manifest.started_utc)
    host = _attribute(next((fact.text for fact in manifest.host if fact.name == "host name"), "unknown"))
    for number, (group, members) in enumerate(groups.items()):
        suite = _Suite(_attribute(group))
        suite.package, suite.id = "tare", str(number)
        suite.timestamp, suite.hostname = started[0] if started else _NO_TIME, host
        suite.append(junit.Properties())
        for case in members:
            test = junit.TestCase(_attribute(case.name), _class_name(group), round(case.seconds, 3))
            if case.outcome is not None:
                test.result = case.outcome
            suite.add_testcase(test)
        suite.time = round(sum(case.seconds for case in members), 3)
        # Ant's schema has output for a whole suite only.
        texts = [*said, *(f"{case.name}:\n{case.said}" for case in members if case.said)]
        suite.append(junit.SystemOut(readable("\n\n".join(texts))))
        suite.append(junit.SystemErr())
        root.append(suite)
    return root


def _outcome(kind: type[FinalResult], type_: str, message: str, text: str = "") -> FinalResult:
    """What did not pass, and why."""
    found = kind(_attribute(message), type_)
    found.text = readable(text)
    return found


def _attribute(text: str) -> str:
    return one_line(text, 300) or "?"


def _class_name(group: str) -> str:
    """A group as a dotted name, as CI servers nest by dots."""
    return "tare." + (re.sub(r"[^\w=,-]+", ".", one_line(group, 200)).strip(".") or "?")
