"""What a fleet says, in words and tables: the same in page, terminal, Markdown and JSON."""

import io
import math
from collections.abc import Iterator
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tare.bench.analysis import GradeLevel, MeasuredBackend
from tare.bench.analysis.fleet import Combined, FleetRow, OddHost
from tare.bench.capacity.by_host import FleetReport, TypeCapacity
from tare.bench.readable import one_line, readable
from tare.bench.stats.comparisons import Comparison, Interval, Verdict
from tare.bench.stats.hosts import ENOUGH_HOSTS
from tare.reports.markdown import escape
from tare.reports.names import Names
from tare.reports.plan_page import TableView
from tare.reports.wording import (
    change_words,
    format_change,
    format_change_range,
    listed,
    plural,
    verdict_word,
    why_open,
)

MOST_ODD = 5
MOST_FACTS = 6
_WIDTH = 120
_SAID = (Verdict.SLOWER, Verdict.FASTER)


class FleetWords:
    """The sentences and tables of one fleet."""

    def __init__(self, report: FleetReport) -> None:
        self.report = report
        self.analysis = report.analysis
        self.names = None if report.analysis.manifest is None else Names(report.analysis.manifest)
        self.baseline = report.analysis.baseline or "the baseline"
        alike = [(row.experiment, row.workload) for row in self.analysis.leading]
        self._repeated = {
            one for one in alike if alike.count(one) > len({row.backend.name for row in self.analysis.rows})
        }

    @property
    def question(self) -> str:
        """What was run, and on how many hosts."""
        n, counted = len(self.analysis.hosts), len(self.analysis.counted)
        count = f"{plural(n, 'host')}" if n == counted else f"{plural(n, 'host')}, of which {counted} count"
        return f"{one_line(self.report.suite, 80)} on {count}"

    def answer(self) -> list[str]:
        """The sentences of the answer, the first of them first."""
        if self.analysis.grade.level is GradeLevel.NOT_USABLE:
            return [f"This fleet cannot be used: {self.analysis.grade.reason}."]
        backends = list(dict.fromkeys(row.backend for row in self.analysis.leading if row.of_all is not None))
        if not backends:
            return list(self._of_capacity()) or ["No host compared anything with an interval."]
        return [*(self._of_backend(backend) for backend in backends), self._of_new_hosts()]

    def _of_backend(self, backend: MeasuredBackend) -> str:
        rows = [row for row in self.analysis.leading if row.backend == backend and row.of_all is not None]
        by_verdict: dict[Verdict, list[FleetRow]] = {}
        for row in rows:
            by_verdict.setdefault(_typical(row).verdict_adjusted, []).append(row)
        clauses = []
        if same := by_verdict.get(Verdict.EQUIVALENT):
            clauses.append(f"the same as {self.baseline} in {listed([_within(self.title(row)) for row in same])}")
        clauses += [
            f"{self.change(row)} in {_within(self.title(row))}" for one in _SAID for row in by_verdict.get(one, ())
        ]
        n = max(0 if row.of_all is None else row.of_all.n_hosts for row in rows)
        sentence = f"On a typical host of {n}, {backend.label} is {listed(clauses)}" if clauses else ""
        if unknown := by_verdict.get(Verdict.INCONCLUSIVE):
            names = listed([_within(self.title(row)) for row in unknown])
            sentence += f"; could not tell for {names}" if sentence else f"{backend.label}: could not tell for {names}"
        return f"{sentence}."

    def _of_capacity(self) -> Iterator[str]:
        """How many instances fit on a typical host, where nothing was compared."""
        for one in self.report.capacities:
            if one.typical is not None:
                kind = f" of type {one_line(one.host_type, 40)}" if one.host_type else ""
                yield (
                    f"A typical host{kind} holds {one.typical.centre:,.0f} instances of {one_line(one.instance, 60)} "
                    f"(over {plural(len(one.hosts), 'host')})."
                )

    def _of_new_hosts(self) -> str:
        """What a host that nobody measured would show, where hosts differ most."""
        known = [(row, row.of_all) for row in self.analysis.leading if row.of_all is not None]
        predicted = [(row, one) for row, one in known if one.new_host is not None]
        if not predicted:
            n = max((one.n_hosts for _, one in known), default=0)
            return (
                f"Nothing is said of hosts that nobody measured: that takes {ENOUGH_HOSTS} hosts, and "
                f"{plural(n, 'host')} {'counts' if n == 1 else 'count'}."
            )
        row, one = max(predicted, key=lambda found: _width(found[1].new_host))
        within = _range_words(one, one.new_host)
        return (
            f"Hosts differ most in {_within(self.title(row))} on {row.backend.label}: a host of this kind that nobody "
            f"measured lies, with 95 % probability, within {within}."
        )

    def odd_sentences(self) -> list[str]:
        """The odd hosts, each with where it differs and what is different about it."""
        found = [self._odd_sentence(one) for one in self.analysis.odd[:MOST_ODD]]
        more = len(self.analysis.odd) - MOST_ODD
        return [*found, *([f"{plural(more, 'more host')} differ; the tables name them."] if more > 0 else [])]

    def _odd_sentence(self, one: OddHost) -> str:
        parts = []
        for row in one.rows:
            own = next(host.found for host in row.hosts if host.host == one.host)
            parts.append(
                f"{_within(self.title(row))} on {row.backend.label} ({_change(own)}; typical {_change(_typical(row))})"
            )
        facts = [
            f"{one_line(name, 40)} {one_line(own, 60)} (most others: {one_line(theirs, 60)})"
            for name, (own, theirs) in list(one.facts.items())[:MOST_FACTS]
        ]
        why = f"Only it has {listed(facts)}." if facts else "No fact that was read tells it from the others."
        return f"{one_line(one.host, 60)} differs from the others in {listed(parts)}. {why}"

    def title(self, row: FleetRow) -> str:
        """What the row is of; with its parameters where another has the same name."""
        name = (
            row.workload or row.experiment
            if self.names is None
            else self.names.subject_of(row.experiment, row.workload)
        )
        params = self.params(row) if (row.experiment, row.workload) in self._repeated else ""
        return one_line(f"{name} ({params})" if params else name, 120)

    def metric(self, row: FleetRow) -> str:
        """The name of its metric."""
        if self.names is None:
            return row.metric.name
        return self.names.metric_of(row.experiment, row.workload, row.params, row.metric)

    def params(self, row: FleetRow) -> str:
        """Its parameters in words."""
        return "" if self.names is None else self.names.params_line(row.experiment, row.workload, row.params)

    def change(self, row: FleetRow) -> str:
        """The typical difference in words."""
        found = _typical(row)
        return change_words(row.metric, found.ratio or 1.0, found)

    def ratio_table(self, *, leading: bool) -> TableView:
        """Typical cost, spread and prediction, a line a comparison; with several types, each type below."""
        head = ("measurement", "backend", "hosts", "typical", "95 % interval", "verdict", "spread between hosts",
                "a host nobody measured")  # fmt: skip
        rows = [
            self._ratio_cells(row, one)
            for row in self.analysis.rows
            if row.is_leading is leading
            for one in row.together
        ]
        title = "What isolation costs over hosts" if leading else "All other measurements"
        lines = [
            "Typical: the mean over hosts, each counted once.",
            "Spread: the standard deviation between hosts, without the error that each host's own run has.",
            "A host nobody measured: where 95 of 100 further hosts of this kind lie.",
        ]
        return TableView(title, "leading" if leading else "others", head, rows, lines if leading else [])

    def _ratio_cells(self, row: FleetRow, one: Combined) -> list[str]:
        name = f"{self.title(row)}: {self.metric(row)}" if not one.type else f"… of type {one_line(one.type, 40)}"
        found = one.typical
        word = verdict_word(row.metric, found.verdict_adjusted) if found.low is not None else found.note
        why = why_open(found)
        spread = "–" if one.spread is None else _spread_words(one.spread)
        new_host = f"needs {ENOUGH_HOSTS} hosts" if one.new_host is None else _range_words(one, one.new_host)
        return [name, row.backend.label, str(one.n_hosts), _change(found), format_change_range(found) or "–",
                f"{word}: {why}" if why else word, spread, new_host]  # fmt: skip

    def host_rows(self) -> list[list[str]]:
        """A line a host: name, type, how it counts, what it is."""
        return [
            [
                one_line(host.name, 64),
                one_line(host.type, 40) or "–",
                f"left out: {one_line(host.left_out, 300)}" if host.left_out else "counts",
                "–" if host.grade is None else host.grade.level.value,
                one_line(host.summary, 160) or "–",
            ]
            for host in self.analysis.hosts
        ]

    def capacity_table(self) -> TableView:
        """How many instances fit, by type of host."""
        head = ("type of host", "instances", "hosts", "fit on a typical host", "95 % interval",
                "a host nobody measured", "runs out first")  # fmt: skip
        rows = [_capacity_cells(one) for one in self.report.capacities]
        lines = [
            "By each host's own density ramps.",
            "`tare fleet report FLEET --format fleet-file --instances N` makes a file of them for `tare plan --fleet`.",
        ]
        return TableView("How many instances fit, by type of host", "capacity", head, rows, lines if rows else [])

    def differences_table(self) -> TableView:
        """Conditions that are not the same on all hosts."""
        rows = [
            [one_line(name, 60), one_line(value, 100), listed([one_line(host, 64) for host in hosts[:8]])
             + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")]
            for name, values in self.report.differences.items()
            for value, hosts in values.items()
        ]  # fmt: skip
        return TableView("What is not the same on all hosts", "differences", ("condition", "value", "hosts"), rows, [])

    def notes(self) -> list[str]:
        """What a reader must know."""
        left_out = [host for host in self.analysis.hosts if host.left_out]
        notes = [f"{one_line(host.name, 64)} is left out: {one_line(host.left_out, 300)}." for host in left_out]
        return [*notes, *map(readable, self.report.warnings)]


def _within(title: str) -> str:
    """A title within a sentence."""
    return title if title[:2].isupper() else f"{title[:1].lower()}{title[1:]}"


def _typical(row: FleetRow) -> Comparison:
    if row.of_all is None:
        raise ValueError("hosts that are not combined have no typical ratio")
    return row.of_all.typical


def _change(found: Comparison) -> str:
    return format_change(found)


def _width(interval: Interval | None) -> float:
    if interval is None or not interval.low or interval.high is None:
        return 0.0
    return math.log(interval.high / interval.low)


def _range_words(one: Combined, interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return format_change_range(msgspec.structs.replace(one.typical, low=interval.low, high=interval.high)) or "–"


def _spread_words(spread: Interval) -> str:
    """A standard deviation of logs, as a share."""
    ends = [None if end is None else 100 * (math.exp(end) - 1) for end in (spread.centre, spread.low, spread.high)]
    centre, low, high = ("?" if end is None else f"{end:.2g}" if end < 100 else f"{end:,.0f}" for end in ends)
    return f"{centre} % ({low} to {high} %)"


def _capacity_cells(one: TypeCapacity) -> list[str]:
    beyond = sum(host.is_extrapolated for host in one.hosts)
    typical = "not answered (extrapolated) *" if beyond else "–"
    interval = "–"
    if one.typical is not None:
        typical = f"{one.typical.centre:,.0f}"
        interval = "–" if one.typical.low is None else f"{one.typical.low:,.0f} to {one.typical.high or 0:,.0f}"
    elif not beyond:
        typical = listed([f"{host.instances:,}" for host in one.hosts[:4]])
    new_host = one.new_host
    predicted = f"needs {ENOUGH_HOSTS} hosts"
    if new_host is not None and new_host.low is not None and new_host.high is not None:
        predicted = f"{new_host.low:,.0f} to {new_host.high:,.0f}"
    binds = listed(list(dict.fromkeys(host.binds for host in one.hosts)))
    return [one_line(one.host_type, 40) or "–", one.instance, str(len(one.hosts)), typical, interval, predicted, binds]


HOSTS_HEAD = ("host", "type", "", "grade", "what it is")


def tables(words: FleetWords) -> list[TableView]:
    """All tables but the hosts', those without a row left out."""
    made = [
        words.ratio_table(leading=True),
        words.capacity_table(),
        words.differences_table(),
        words.ratio_table(leading=False),
    ]
    return [table for table in made if table.rows]


def fleet_text(report: FleetReport, width: int | None = None) -> str:
    """The report as plain text."""
    console = Console(width=width or _WIDTH, record=True, file=io.StringIO(), color_system=None)
    for line in _text_lines(FleetWords(report)):
        console.print(Text(readable(line)) if isinstance(line, str) else line)
    return console.export_text()


def _text_lines(words: FleetWords) -> Iterator[str | Table]:
    yield words.question
    yield " ".join(words.answer())
    yield words.analysis.grade.sentence
    yield from words.odd_sentences()
    yield ""
    yield "Hosts"
    yield _text_table(HOSTS_HEAD, words.host_rows())
    for table in tables(words):
        yield f"\n{table.title}"
        yield from table.lines
        yield _text_table(table.head, table.rows)
    yield ""
    yield from (f"- {note}" for note in words.notes())


def _text_table(head: tuple[str, ...], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(readable(cell)) for cell in row))
    return table


def fleet_markdown(report: FleetReport) -> str:
    """The report for a pull request or a ticket."""
    words = FleetWords(report)
    grade = escape(words.analysis.grade.sentence, 400)
    lines = [f"### tare: {escape(words.question, 200)}", "", f"**{escape(' '.join(words.answer()), 1200)}**", "", grade]
    lines += ["", *(f"- {escape(one, 800)}" for one in words.odd_sentences())]
    lines += ["", *_markdown_table("Hosts", HOSTS_HEAD, words.host_rows())]
    for table in tables(words):
        lines += ["", *_markdown_table(table.title, table.head, table.rows)]
    lines += ["", *(f"- {escape(note, 400)}" for note in words.notes())]
    return "\n".join(lines) + "\n"


def _markdown_table(title: str, head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    cells = [list(head), ["---"] * len(head), *([escape(cell, 300) for cell in row] for row in rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [f"<details><summary>{title} ({len(rows)})</summary>", "", *lines, "", "</details>"]


def fleet_document(report: FleetReport) -> dict[str, Any]:
    """The report as JSON: ratios as factors, spreads as standard deviations of their logarithms."""
    words = FleetWords(report)
    analysis = report.analysis
    return {
        "form": 1,
        "fleet": report.name,
        "suite": report.suite,
        "started_utc": report.started_utc,
        "answer": words.answer(),
        "grade": msgspec.to_builtins(analysis.grade),
        "baseline": analysis.baseline,
        "hosts": [
            {**msgspec.to_builtins(host), "counts": not host.left_out, "report": report.links.get(host.name)}
            for host in analysis.hosts
        ],
        "rows": [_row_document(words, row) for row in analysis.rows],
        "odd": [
            {"host": one.host, "rows": [_key(row) for row in one.rows], "facts": msgspec.to_builtins(one.facts)}
            for one in analysis.odd
        ],
        "capacities": msgspec.to_builtins(report.capacities),
        "types": msgspec.to_builtins(report.types),
        "differences": msgspec.to_builtins(report.differences),
        "warnings": list(report.warnings),
    }


def _key(row: FleetRow) -> str:
    params = "".join(f" {name} {value}" for name, value in row.params.items())
    return f"{row.workload or row.experiment}{params}/{row.metric.name}/{row.backend.name}"


def _row_document(words: FleetWords, row: FleetRow) -> dict[str, Any]:
    return {
        "key": _key(row),
        "experiment": row.experiment,
        "workload": row.workload,
        "params": dict(row.params),
        "metric": row.metric.name,
        "name": words.metric(row),
        "direction": str(row.metric.direction),
        "backend": row.backend.name,
        "label": row.backend.label,
        "is_leading": row.is_leading,
        "hosts": [msgspec.to_builtins(one) for one in row.hosts],
        "together": [msgspec.to_builtins(one) for one in row.together],
        "odd": dict(row.odd),
    }
