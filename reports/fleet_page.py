"""The page of a fleet: the answer, each host's ratios side by side, and what hosts say together."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgspec

from tare.bench.analysis import GradeLevel
from tare.bench.analysis.answer import Mark
from tare.bench.analysis.fleet import Combined, FleetRow, HostRatio
from tare.bench.capacity.by_host import FleetReport
from tare.bench.readable import one_line
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.reports.fleet import FleetWords, tables
from tare.reports.headline import headings, place_of
from tare.reports.html import render_template
from tare.reports.picture import Axis, PanelView, Strip, axis_ends, change_axis, strip_svg
from tare.reports.wording import (
    change_words,
    direction_words,
    format_change,
    format_change_range,
    percent,
    verdict_word,
)

MOST_STRIPS = 12
"""Hosts with a row each; of more, all are points of one row, and the odd ones have rows."""
_TOGETHER = "All hosts"


class HostView(msgspec.Struct, frozen=True):
    """A line of the table of hosts."""

    cells: list[str]
    link: str
    counts: bool


def render_fleet(report: FleetReport) -> str:
    """The page."""
    return render_template("fleet.html.j2", fleet_context(report))


def fleet_context(report: FleetReport) -> dict[str, Any]:
    """Everything the template needs."""
    words = FleetWords(report)
    analysis = report.analysis
    grade = analysis.grade
    large, small = headings(words.answer())
    emulated = [host for host in analysis.hosts if host.left_out and "emulated" in host.left_out]
    margin = next((row.of_all.typical.margin for row in analysis.leading if row.of_all is not None), None)
    day = report.started_utc[:16].replace("T", " ")
    links = [report.links.get(host.name, "") for host in analysis.hosts]
    return {
        "title": f"Fleet {one_line(report.name, 60)}",
        "question": words.question,
        "answer": " ".join(large),
        "also": [*small, *words.odd_sentences()],
        "grade": grade,
        "grade_place": place_of(grade.level),
        "is_unusable": grade.level is GradeLevel.NOT_USABLE,
        "panels": [panel for row in analysis.leading if (panel := _panel(words, row)) is not None],
        "legend": _legend(margin, n_hosts=len(analysis.counted)),
        "fences": [f"{one_line(host.name, 64)}: {one_line(host.left_out, 300)}." for host in emulated],
        "hosts": [
            HostView(cells, quote(link), counts=not host.left_out)
            for cells, link, host in zip(words.host_rows(), links, analysis.hosts, strict=True)
        ],
        "tables": tables(words),
        "notes": [note for note in words.notes() if "emulated" not in note],
        "where": f"Fleet {one_line(report.name, 60)}, begun {one_line(day, 20)} UTC.",
    }


def _legend(margin: float | None, *, n_hosts: int) -> list[str]:
    if margin is None:
        return []
    many = "a small point: a host; " if n_hosts > MOST_STRIPS else ""
    return [
        f"The large point: the estimate; the line: its 95 % interval; {many}hollow: could not tell.",
        f"The shaded part: within {percent(margin)}, the same.",
        "The dashed line: where 95 of 100 further hosts of this kind lie.",
    ]


def _panel(words: FleetWords, row: FleetRow) -> PanelView | None:
    """One comparison: the typical host, one that nobody measured, then the hosts."""
    if not row.hosts:
        return None
    marks = [_mark(row, one.found) for one in row.hosts]
    together = [_mark(row, one.typical) for one in row.together]
    predicted = [mark for one in row.together if (mark := _predicted(row, one)) is not None]
    axis = change_axis([*marks, *together, *predicted], row.hosts[0].found.margin)
    strips = [strip for one in row.together for strip in _together_strips(words, row, one, axis)]
    strips += list(_host_strips(words, row, axis))
    note = ", ".join(part for part in (words.metric(row), words.params(row), direction_words(row.metric)) if part)
    title = f"{words.title(row)}: {row.backend.label}"
    return PanelView(title, note, ((None, tuple(strips)),), axis.ticks, axis_ends({row.metric.direction}), "fleet")


def _mark(row: FleetRow, found: Comparison) -> Mark:
    low, high = (None if end is None else end - 1 for end in (found.low, found.high))
    return Mark(row.backend, (found.ratio or 1.0) - 1, low, high, (), found.verdict_adjusted)


def _predicted(row: FleetRow, one: Combined) -> Mark | None:
    if one.new_host is None or one.new_host.low is None or one.new_host.high is None:
        return None
    return Mark(row.backend, one.new_host.centre - 1, one.new_host.low - 1, one.new_host.high - 1)


def _together_strips(words: FleetWords, row: FleetRow, one: Combined, axis: Axis) -> Iterator[Strip]:
    kind = f" of type {one_line(one.type, 40)}" if one.type else ""
    yield _strip(words, row, f"Typical host{kind}", one.typical, axis, detail=f"of {one.n_hosts}")
    predicted = _predicted(row, one)
    if predicted is not None and one.new_host is not None:
        ends = msgspec.structs.replace(one.typical, low=one.new_host.low, high=one.new_host.high)
        svg = strip_svg(predicted, axis).replace("class='strip'", "class='strip predicted'")
        yield Strip(f"A host nobody measured{kind}", row.backend, svg, format_change_range(ends), "", "", "", 0.0)


def _host_strips(words: FleetWords, row: FleetRow, axis: Axis) -> Iterator[Strip]:
    """A row a host, the smallest ratio first; of many hosts one row with all, then the odd ones."""
    ordered = sorted(row.hosts, key=lambda one: one.found.ratio or 1.0)
    if len(ordered) <= MOST_STRIPS:
        yield from (_host_strip(words, row, one, axis) for one in ordered)
        return
    points = tuple((one.found.ratio or 1.0) - 1 for one in ordered)
    middle = ordered[len(ordered) // 2].found
    mark = Mark(row.backend, (middle.ratio or 1.0) - 1, None, None, points, middle.verdict_adjusted)
    ends = f"{format_change(ordered[0].found)} to {format_change(ordered[-1].found)}"
    yield Strip(_TOGETHER, row.backend, strip_svg(mark, axis), ends, "", "", "", 0.0, detail=f"{len(ordered)} measured")
    yield from (_host_strip(words, row, one, axis) for one in ordered if one.host in row.odd)


def _host_strip(words: FleetWords, row: FleetRow, one: HostRatio, axis: Axis) -> Strip:
    detail = "differs from the others" if one.host in row.odd else ""
    return _strip(words, row, one_line(one.host, 40), one.found, axis, detail=detail)


def _strip(_: FleetWords, row: FleetRow, name: str, found: Comparison, axis: Axis, *, detail: str) -> Strip:
    said = verdict_word(row.metric, found.verdict_adjusted)
    if found.ratio is not None and found.verdict_adjusted in (Verdict.FASTER, Verdict.SLOWER):
        said = change_words(row.metric, found.ratio, found)
    return Strip(
        name,
        row.backend,
        strip_svg(_mark(row, found), axis),
        said if found.low is not None else format_change(found),
        format_change_range(found) or found.note,
        row.metric.name,
        "",
        found.ratio or 1.0,
        is_open=found.verdict_adjusted is Verdict.INCONCLUSIVE,
        detail=detail,
    )
