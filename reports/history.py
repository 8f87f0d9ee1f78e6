"""A history as pages: what changed and whose it is, one picture a subject over time, the runs, and a feed.

Static files without a script that has to run and without any request: from a web server, and from a disk by file://.
Each subject's page holds its own data; the picture in it is drawn here, aggregated to what can be read, and its script
draws the same closer.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tare.bench.history.findings import Cause, Finding, State
from tare.bench.history.forms import HistorySite
from tare.bench.history.gate import Told
from tare.bench.history.nights import Series
from tare.bench.history.story import Chapter, Story
from tare.bench.model import Direction
from tare.bench.readable import one_line
from tare.bench.records import RunStatus
from tare.bench.units import Unit, format_value
from tare.reports import gate_words
from tare.reports.history_charts import Epoch, Line, Mark, Picture, draw, sparkline
from tare.reports.html import TEMPLATES, page_environment

MOST_ROWS = 30
"""Nights in a subject's table: the picture has them all."""


class SitePages(HistorySite):
    """Pages with the look of the report."""

    name = "html"
    summary = "static pages and an Atom feed"

    def write(self, story: Story, folder: Path, *, title: str, address: str = "") -> None:
        environment = page_environment()
        style = "\n".join((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "history.css"))
        (folder / "style.css").write_text(style, "utf-8")
        (folder / "history.js").write_text((TEMPLATES / "history.js").read_text("utf-8"), "utf-8")
        subjects = [one for chapter in story.chapters for one in subject_views(chapter, story.told, folder)]
        common = {"title": title, "generated": max((one.started_utc for one in story.entries), default="")}
        findings = [one for chapter in story.chapters for one in finding_views(chapter, subjects)]
        page = environment.get_template("history.html.j2")
        (folder / "index.html").write_text(
            page.render(**common, findings=findings, subjects=subjects, chapters=chapter_views(story)), "utf-8"
        )
        template = environment.get_template("history_subject.html.j2")
        for subject in subjects:
            mine = [one for one in findings if one.page == subject.page]
            (folder / subject.page).write_text(template.render(**common, subject=subject, findings=mine), "utf-8")
        runs = environment.get_template("history_runs.html.j2")
        (folder / "runs.html").write_text(runs.render(**common, runs=run_views(story, folder)), "utf-8")
        feed = environment.get_template("history_feed.xml.j2")
        entries = feed_entries(story, subjects, address)
        (folder / "feed.xml").write_text(feed.render(**common, address=address.rstrip("/"), entries=entries), "utf-8")


# --- findings -----------------------------------------------------------------------------------------


class FindingView(msgspec.Struct, frozen=True):
    """A finding as the pages show it; ``page`` is its subject's, empty for a host's."""

    finding: Finding
    title: str
    explanation: str
    state: str
    owner: str
    since: str
    page: str
    kind: str


def finding_views(chapter: Chapter, subjects: Sequence["SubjectView"]) -> list[FindingView]:
    """Open findings first, regressions before the rest."""
    pages = {name: one.page for one in subjects for name in one.series}
    order = {State.NEW: 0, State.CONFIRMED: 0, State.ACKNOWLEDGED: 1, State.RESOLVED: 2}
    found = sorted(chapter.judgement.findings, key=lambda one: (order[one.state], not one.is_regression, one.since_utc))
    return [
        FindingView(
            finding=one,
            title=gate_words.title(one),
            explanation=gate_words.explanation(one),
            state=gate_words.STATES[one.state],
            owner=_owner(one),
            since=one.since_utc[:10],
            page=pages.get(one.series, ""),
            kind="worse" if one.worse else "better" if one.worse is False else "",
        )
        for one in found
    ]


def _owner(finding: Finding) -> str:
    return (
        f"isolation of {one_line(finding.backend)}"
        if finding.cause is Cause.ISOLATION
        else gate_words.CAUSES[finding.cause]
    )


# --- subjects -----------------------------------------------------------------------------------------


class LineView(msgspec.Struct, frozen=True):
    """A backend of a subject: its newest level and ratio in words, and its small picture."""

    backend: str
    place: int
    level: str
    ratio: str
    spark: str


class NightRow(msgspec.Struct, frozen=True):
    """A night in a subject's table. ``report`` is the link to its report, empty without one."""

    run: str
    when: str
    report: str
    values: tuple[str, ...]
    note: str


class StepView(msgspec.Struct, frozen=True):
    """A change of conditions: when, what, and how far each backend moved with it."""

    when: str
    what: str
    lines: tuple[str, ...]


class SubjectView(msgspec.Struct, frozen=True):
    """One picture over time with what belongs to it. ``data`` is what its script draws from, as JSON."""

    page: str
    name: str
    suite: str
    host: str
    direction: str
    series: tuple[str, ...]
    lines: tuple[LineView, ...]
    picture: str
    sentence: str
    data: str
    rows: tuple[NightRow, ...]
    steps: tuple[StepView, ...]
    columns: tuple[str, ...]
    n_nights: int
    n_findings: int


def subject_views(chapter: Chapter, told: Sequence[Told], folder: Path) -> Iterator[SubjectView]:
    """The subjects of a chapter in the order of their names."""
    nights = chapter.nights
    groups: dict[str, list[int]] = {}
    for column, series in enumerate(nights.series):
        groups.setdefault(series.subject, []).append(column)
    reports = [_report_of(chapter, row, folder) for row in range(len(nights.entries))]
    known = {one.identifier: one.finding for one in told if one.finding is not None}
    known |= {one.identifier: one for one in chapter.judgement.findings}
    findings: dict[str, list[Finding]] = {}
    for finding in known.values():
        findings.setdefault(finding.series, []).append(finding)
    for columns in sorted(groups.values(), key=lambda one: nights.series[one[0]].subject_name):
        columns.sort(key=lambda column: (not nights.series[column].is_baseline, nights.series[column].backend))
        yield _subject_view(chapter, columns, reports, findings)


def _report_of(chapter: Chapter, row: int, folder: Path) -> str:
    report = chapter.runs_folder / chapter.nights.entries[row].folder / "report.html"
    return os.path.relpath(report, folder) if report.exists() else ""


def _subject_view(
    chapter: Chapter, columns: Sequence[int], reports: Sequence[str], findings: Mapping[str, Sequence[Finding]]
) -> SubjectView:
    nights = chapter.nights
    series = [nights.series[column] for column in columns]
    lead = series[0]
    rows = np.flatnonzero((nights.epochs[:, columns] >= 0).any(axis=1))
    first = int(rows[0]) if len(rows) else 0
    levels, ratios = nights.levels[first:, columns], nights.ratios[first:, columns]
    mine = [finding for one in series for finding in findings.get(one.identifier, ())]
    picture = Picture(
        nights=tuple(one.started_utc[:10] for one in nights.entries[first:]),
        lines=tuple(
            Line(one.backend, place if not one.is_baseline else 0, levels[:, place], ratios[:, place])
            for place, one in enumerate(series)
        ),
        epochs=tuple(_epochs(chapter, columns, first)),
        marks=tuple(_marks(chapter, mine, series, first)),
        unit=lead.unit,
    )
    return SubjectView(
        page=f"subject-{chapter.key}-{lead.subject}.html",
        name=lead.subject_name,
        suite=one_line(chapter.suite),
        host=chapter.host[:8],
        direction="more is better" if lead.direction is Direction.HIGHER else "less is better",
        series=tuple(one.identifier for one in series),
        lines=tuple(_line_view(one, levels[:, place], ratios[:, place], place) for place, one in enumerate(series)),
        picture=draw(picture),
        sentence=_sentence(series, levels, ratios, len(rows)),
        data=_data(picture, [one.run for one in nights.entries[first:]], reports[first:]),
        rows=tuple(_night_rows(chapter, columns, reports)),
        steps=tuple(_step_views(chapter, series, rows)),
        columns=tuple(one_line(one.backend) for one in series),
        n_nights=len(rows),
        n_findings=sum(one.is_open and one in chapter.judgement.findings for one in mine),
    )


def _line_view(series: Series, levels: Any, ratios: Any, place: int) -> LineView:
    shown = levels if np.isnan(ratios).all() else ratios
    return LineView(
        backend=one_line(series.backend),
        place=place,
        level=_value(levels[-1], series.unit),
        ratio=_ratio(ratios[-1]),
        spark=sparkline(shown, place),
    )


def _value(log: float, unit: str) -> str:
    return "–" if math.isnan(log) else format_value(math.exp(log), Unit(unit))


def _ratio(log: float) -> str:
    return "–" if math.isnan(log) else f"{math.exp(log):.4g}×"


def _sentence(series: Sequence[Series], levels: Any, ratios: Any, n: int) -> str:
    """The picture in words."""
    parts = []
    for place, one in enumerate(series):
        said = f"{one_line(one.backend)} {_value(levels[-1, place], one.unit)}"
        if not np.isnan(ratios[-1, place]):
            said += f" ({_ratio(ratios[-1, place])} of {one_line(series[0].backend)})"
        parts.append(said)
    return f"{n} nights; in the newest: {'; '.join(parts)}."


def _epochs(chapter: Chapter, columns: Sequence[int], first: int) -> Iterator[Epoch]:
    """Where the conditions of a subject's last backend changed, as bands."""
    codes = chapter.nights.epochs[first:, columns[-1]]
    begun, before = 0, -1
    for row, code in enumerate(codes.tolist()):
        if code < 0 or code == before:
            continue
        if before >= 0:
            yield Epoch(begun, row, _named(chapter, first + begun))
            begun = row
        before = code
    yield Epoch(begun, len(codes), _named(chapter, first + begun))


def _named(chapter: Chapter, row: int) -> str:
    run = chapter.nights.entries[row].run
    fields = [name for mark in chapter.judgement.marks if mark.run == run for name in mark.fields]
    return one_line(", ".join(dict.fromkeys(fields)))


def _step_views(chapter: Chapter, series: Sequence[Series], rows: Any) -> Iterator[StepView]:
    """The changes of conditions since the subject's first night, the newest first."""
    places = {one.run: row for row, one in enumerate(chapter.nights.entries)}
    for mark in reversed(chapter.judgement.marks):
        known = [one for one in series if one.identifier in mark.bridged or one.identifier in mark.steps]
        if known and len(rows) and places[mark.run] > rows[0]:
            what = ", ".join(
                f"{one_line(name)}: {one_line(old)} → {one_line(new)}" for name, (old, new) in mark.fields.items()
            )
            lines = tuple(f"{one_line(one.backend)} {gate_words.step_line(mark, one.identifier)}" for one in known)
            yield StepView(chapter.nights.entries[places[mark.run]].started_utc[:10], what, lines)


def _marks(chapter: Chapter, findings: Sequence[Finding], series: Sequence[Series], first: int) -> Iterator[Mark]:
    rows = {one.run: row for row, one in enumerate(chapter.nights.entries)}
    places = {one.identifier: place for place, one in enumerate(series)}
    for finding in findings:
        if finding.since in rows and rows[finding.since] >= first:
            yield Mark(
                rows[finding.since] - first, places[finding.series], gate_words.title(finding), finding.identifier
            )


def _night_rows(chapter: Chapter, columns: Sequence[int], reports: Sequence[str]) -> Iterator[NightRow]:
    nights = chapter.nights
    rows = [row for row in range(len(nights.entries)) if (nights.epochs[row, list(columns)] >= 0).any()]
    for row in rows[: -MOST_ROWS - 1 : -1]:
        entry = nights.entries[row]
        values = []
        for column in columns:
            value = _value(nights.levels[row, column], nights.series[column].unit)
            ratio = nights.ratios[row, column]
            values.append(value if np.isnan(ratio) else f"{value} ({_ratio(ratio)})")
        labels = " ".join(f"{name}={text}" for name, text in entry.labels.items())
        note = "; ".join(part for part in (_named(chapter, row), labels) if part)
        yield NightRow(one_line(entry.run), entry.started_utc[:16].replace("T", " "), reports[row], tuple(values), note)


def _data(picture: Picture, runs: Sequence[str], reports: Sequence[str]) -> str:
    """What the script draws from: values with as many digits as a picture can show."""

    def short(values: Any) -> list[float | None]:
        return [None if np.isnan(value) else round(float(value), 4) for value in values]

    values = {
        "nights": picture.nights,
        "unit": picture.unit,
        "lines": [
            {"name": one_line(one.name), "place": one.place, "level": short(one.levels), "ratio": short(one.ratios)}
            for one in picture.lines
        ],
        "epochs": [[one.begin, one.end, one.name] for one in picture.epochs],
        "marks": [[one.row, one.place, one.title] for one in picture.marks],
        "runs": [one_line(run) for run in runs],
        "reports": list(reports) if any(reports) else [],
    }
    # Inside a script element nothing may end it.
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


# --- the index, the runs, the feed --------------------------------------------------------------------


class ChapterView(msgspec.Struct, frozen=True):
    """What the gate said of the newest night of a suite on a host."""

    suite: str
    host: str
    headline: str
    run: str
    lines: tuple[str, ...]
    verdict: str


def chapter_views(story: Story) -> list[ChapterView]:
    """A view a chapter."""
    return [
        ChapterView(
            suite=one_line(one.suite),
            host=one_line(one.judgement.run.host_summary),
            headline=gate_words.headline(one.judgement),
            run=one_line(one.judgement.run.run),
            lines=(
                *gate_words.mark_lines(one.judgement),
                *gate_words.outlier_lines(one.judgement),
                *gate_words.coverage(one.judgement),
                *(f"{note[:1].upper()}{note[1:]}." for note in one.judgement.notes),
            ),
            verdict=str(one.judgement.verdict),
        )
        for one in story.chapters
    ]


class RunView(msgspec.Struct, frozen=True):
    """A run in the index of runs."""

    run: str
    when: str
    suite: str
    host: str
    status: str
    labels: str
    revision: str
    report: str


def run_views(story: Story, folder: Path) -> list[RunView]:
    """The runs, the newest first."""
    views = []
    for one in reversed(story.entries):
        report = story.runs_folder / one.folder / "report.html"
        failed = sum(one.failed.values())
        status = "complete" if one.status is RunStatus.COMPLETE else str(one.status)
        status += f", {failed} failed" if failed else ""
        status = status if one.is_night else one.standing
        views.append(
            RunView(
                run=one_line(one.run),
                when=one.started_utc[:16].replace("T", " "),
                suite=one_line(one.suite),
                host=one.host[:8],
                status=one_line(status),
                labels=one_line(" ".join(f"{name}={value}" for name, value in one.labels.items())),
                revision=one_line(one.revision),
                report=os.path.relpath(report, folder) if report.exists() else "",
            )
        )
    return views


class FeedEntry(msgspec.Struct, frozen=True):
    """One telling of a finding. ``identifier`` is the same in every publication."""

    identifier: str
    title: str
    updated: str
    summary: str
    link: str


def feed_entries(story: Story, subjects: Sequence[SubjectView], address: str) -> list[FeedEntry]:
    """What was told, the newest first; a finding once when it was found, and once when it was resolved."""
    when = {one.run: one.started_utc for one in story.entries}
    pages = {name: one.page for one in subjects for name in one.series}
    base = f"{address.rstrip('/')}/" if address else ""
    entries = []
    for one in story.told:
        finding = one.finding
        if finding is None or one.first_told not in when:
            continue
        link = f"{base}{pages.get(one.series, 'index.html')}#{one.identifier}"
        said = gate_words.explanation(finding)
        name = gate_words.title(finding)
        entries.append(FeedEntry(f"urn:tare:finding:{one.identifier}", name, when[one.first_told], said, link))
        if one.resolved in when:
            entries.append(
                FeedEntry(
                    f"urn:tare:finding:{one.identifier}:resolved", f"Resolved: {name}", when[one.resolved], said, link
                )
            )
    return sorted(entries, key=lambda one: one.updated, reverse=True)[:100]
