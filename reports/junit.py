"""JUnit XML for continuous integration, as Jenkins, GitLab and GitHub's actions read it; Ant's schema, the strictest.

Of a run: a test case for each cell, which is an error if one of its instances failed. A virtual machine that is slower
than bare metal is a result and no failure. Of a comparison: a test case for each comparison, a failure if the verdict
is slower (more, for costs) after correction for many comparisons, and skipped if it is inconclusive.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import msgspec

from tare.bench.errors import TareError
from tare.bench.interfaces import ComparisonRequest, Reporter
from tare.bench.model import Cell, Event, EventKind, Manifest
from tare.bench.readable import one_line, readable
from tare.bench.stats import Verdict
from tare.bench.store import LoadedRun, load_run

if TYPE_CHECKING:
    from tare.bench.analysis import Analysis
    from tare.reports.compare import Line, RunComparison

_NO_TIME = "1970-01-01T00:00:00"


class JUnitReporter(Reporter):
    """A test case a cell, or one a comparison."""

    name = "junit"
    summary = "cells, or comparisons, as test cases for CI (JUnit XML)"
    suffix = ".junit.xml"
    compares = True

    def write(self, run: Path, output: Path) -> None:
        """Write the test cases. Raises RunDirectoryError, TareError if the file cannot be written."""
        _write(output, _suites_of_run(load_run(run)))

    def write_comparison(self, request: ComparisonRequest, output: Path) -> None:
        """See ``Reporter.write_comparison``."""
        from tare.reports.compare import compare_request

        _write(output, _suites_of_comparison(compare_request(request), load_run(request.first).manifest))


class _Outcome(msgspec.Struct, frozen=True):
    """What did not pass, and why: ``kind`` is failure, error or skipped."""

    kind: str
    type: str
    message: str
    text: str = ""


class _Case(msgspec.Struct, frozen=True):
    """A test case. ``seconds`` is what it took on the host's clock; ``said`` is what it has to say."""

    group: str
    name: str
    seconds: float
    said: str
    outcome: _Outcome | None = None


def _suites_of_run(run: LoadedRun) -> ET.Element:
    from tare.bench.analysis import analyse

    return _suites(_cases_of_run(analyse(run)), run.manifest)


def _cases_of_run(analysis: "Analysis") -> list[_Case]:
    from tare.reports.wording import figure_sentence

    failed: dict[str, list[Event]] = {}
    for event in analysis.failures:
        failed.setdefault(event.cell, []).append(event)
    baseline = analysis.baseline.label if analysis.baseline is not None else None
    cell_of = {event.instance: event.cell for event in analysis.run.events if event.cell}
    seconds = _seconds_by_cell(analysis.run.events)
    said: dict[str, list[str]] = {cell: [] for cell in seconds}
    for subject in analysis.subjects:
        for row in subject.rows:
            for cell in row.cells:
                kept = msgspec.structs.replace(row, cells=[cell])
                own = Cell(subject.experiment, subject.workload, subject.params, cell.backend.name).key
                key = cell_of.get(cell.points.instance_names[0], own)
                said.setdefault(key, []).append(f"{row.metric.name}: {figure_sentence(kept, baseline)}")
    cases = []
    for key in (*said, *(key for key in failed if key not in said)):
        group, _, backend = key.rpartition("/")
        outcome = _failure_of(failed[key]) if key in failed else None
        if outcome is None and not said.get(key):
            outcome = _Outcome("skipped", "no values", "nothing was measured in this cell")
        cases.append(_Case(group, backend, seconds.get(key, 0.0), "\n".join(said.get(key, [])), outcome))
    return cases


def _failure_of(events: list[Event]) -> _Outcome:
    first = events[0]
    texts = [f"{event.instance}: {event.message}\n{event.details.get('evidence', '')}".strip() for event in events]
    count = f" ({len(events)} instances)" if len(events) > 1 else ""
    return _Outcome("error", "instance failed", f"{first.message}{count}", "\n\n".join(texts))


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


def _suites_of_comparison(comparison: "RunComparison", manifest: Manifest) -> ET.Element:
    said = [*(f"confound: {one}" for one in comparison.confounds), *comparison.notes]
    said.insert(0, f"{comparison.second} against {comparison.first}. {comparison.tally}")
    return _suites(map(_case_of_line, comparison.lines), manifest, said)


def _case_of_line(line: "Line") -> _Case:
    from tare.reports.wording import format_range, format_ratio

    found = line.found
    size = (
        f"{format_ratio(found.ratio)} ({format_range(found.low, found.high)})" if found.low is not None else found.note
    )
    sentence = f"{line.word}: {size}, margin {found.margin * 100:g} %, q {found.q_value or 0:.2g}, {found.method}"
    outcome = None
    if found.verdict_adjusted is Verdict.SLOWER:
        outcome = _Outcome("failure", line.word, f"{line.metric.name} is {line.word}: {size}", sentence)
    elif found.verdict_adjusted is Verdict.INCONCLUSIVE:
        outcome = _Outcome("skipped", "inconclusive", f"inconclusive: {size}")
    name = f"{line.metric.name} on {line.backend}" if line.backend else line.metric.name
    group = "/".join(dict.fromkeys((line.experiment, line.title)))
    return _Case(group, name, 0.0, sentence, outcome)


def _suites(cases: Iterable[_Case], manifest: Manifest, said: Iterable[str] = ()) -> ET.Element:
    """A suite for each group of cases, with everything that Ant's schema asks for."""
    groups: dict[str, list[_Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    root = ET.Element("testsuites")
    for number, (group, members) in enumerate(groups.items()):
        kinds = [case.outcome.kind for case in members if case.outcome is not None]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=_attribute(group),
            package="tare",
            id=str(number),
            timestamp=_timestamp(manifest),
            hostname=_host_name(manifest),
            tests=str(len(members)),
            failures=str(kinds.count("failure")),
            errors=str(kinds.count("error")),
            skipped=str(kinds.count("skipped")),
            time=f"{sum(case.seconds for case in members):.3f}",
        )
        ET.SubElement(suite, "properties")
        for case in members:
            _add_case(suite, case)
        # Ant's schema has output for a whole suite only.
        texts = [*said, *(f"{case.name}:\n{case.said}" for case in members if case.said)]
        ET.SubElement(suite, "system-out").text = readable("\n\n".join(texts))
        ET.SubElement(suite, "system-err")
    return root


def _add_case(suite: ET.Element, case: _Case) -> None:
    element = ET.SubElement(
        suite, "testcase", name=_attribute(case.name), classname=_class_name(case.group), time=f"{case.seconds:.3f}"
    )
    if case.outcome is not None:
        outcome = case.outcome
        inner = ET.SubElement(element, outcome.kind, message=_attribute(outcome.message), type=outcome.type)
        inner.text = readable(outcome.text)


def _attribute(text: str) -> str:
    return one_line(text, 300) or "?"


def _class_name(group: str) -> str:
    """A group as a dotted name, as CI servers nest by dots."""
    return "tare." + (re.sub(r"[^\w=,-]+", ".", one_line(group, 200)).strip(".") or "?")


def _timestamp(manifest: Manifest) -> str:
    found = re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", manifest.started_utc)
    return found[0] if found else _NO_TIME


def _host_name(manifest: Manifest) -> str:
    names = (fact.text for fact in manifest.host if fact.name == "host name")
    return _attribute(next(names, "unknown"))


def _write(output: Path, root: ET.Element) -> None:
    ET.indent(root)
    try:
        ET.ElementTree(root).write(output, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise TareError(f"cannot write the report {output}: {error.strerror}") from error
