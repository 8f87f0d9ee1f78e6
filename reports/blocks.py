"""One block a subject: one sentence, one picture with points, one curve of percentiles, and every measurement folded.

Fenced backends are in none of them: ``emulated_tables`` has their figures, for the appendix.
"""

import re
from collections.abc import Iterator

import msgspec

from tare.bench.analysis import Analysis, CellResult, MeasuredBackend, Row, Subject
from tare.bench.catalogue import Builtin, SteadyMetric
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.bench.traits import Category
from tare.bench.units import Unit
from tare.reports.capacity import CapacityView, capacity_view
from tare.reports.density_costs import CostsView, costs_view
from tare.reports.figures import GrowthView, TailView, growth_view, pooled_histograms, tail_views
from tare.reports.instances import HeatView, HeldLine, heat_view, held_lines
from tare.reports.ladder import LadderView, ladder_view
from tare.reports.names import Names, names_of
from tare.reports.picture import PanelView, key_of, phase_panel, value_panel
from tare.reports.wording import (
    TENTATIVE,
    describe,
    direction_words,
    format_change,
    format_change_range,
    format_estimate,
    format_value_range,
    is_cost,
    path_sentence,
    result_sentence,
    verdict_mark,
    verdict_word,
)

_PERCENTILE = re.compile(r"\.p(?P<percent>\d{2}(?:\.\d+)?)$", re.ASCII)
FEWEST_BEYOND = 10
"""A percentile with fewer operations beyond it rests on too few of them, and is marked."""
_ORDER = (Builtin.BOOT, Builtin.DENSITY, *Category, Builtin.INTERFERENCE, Builtin.LIMITS)
MOST_CURVES = 40


class ValueView(msgspec.Struct, frozen=True):
    """A metric on one backend: its value, and how it differs. ``style`` is the verdict's; ``exact`` has the figures."""

    backend: MeasuredBackend
    value: str
    value_range: str
    change: str
    change_range: str
    word: str
    mark: str
    style: str
    note: str
    key: str
    exact: list[float | None]


class MeasurementView(msgspec.Struct, frozen=True):
    """A line of the table of all measurements: the baseline's value, and each other backend's."""

    name: str
    hint: str
    description: str
    direction: str
    unit: str
    base: ValueView | None
    others: list[ValueView]
    growth: GrowthView | None


class BlockView(msgspec.Struct, frozen=True):
    """A subject. ``params`` are its parameters in words; the parts of an experiment of its own are None elsewhere."""

    identifier: str
    title: str
    params: str
    sentences: list[str]
    path: str
    panel: PanelView | None
    tail: TailView | None
    phases: PanelView | None
    lines: list[MeasurementView]
    kind: str
    ladder: LadderView | None


class InstancesView(msgspec.Struct, frozen=True):
    """What experiments about instances add: capacity, costs, neighbours, limits."""

    capacity: CapacityView | None
    costs: CostsView | None
    heat: HeatView | None
    held: list[HeldLine]


def instances_view(analysis: Analysis) -> InstancesView:
    """The parts of a run's experiments about instances."""
    return InstancesView(capacity_view(analysis), costs_view(analysis), heat_view(analysis), held_lines(analysis))


def block_views(analysis: Analysis) -> list[BlockView]:
    """A block for each subject, those about the same thing together, in one order."""
    maker = _Maker(analysis)
    keys = [_kind(analysis, subject) for subject in analysis.subjects]
    order = {kind: place for place, kind in enumerate(_ORDER)}
    ranked = sorted(zip(keys, analysis.subjects, strict=True), key=lambda pair: order.get(pair[0], len(order)))
    return [maker.block(kind, subject) for kind, subject in ranked]


def _kind(analysis: Analysis, subject: Subject) -> str:
    if not subject.traits.of_workload:
        return subject.experiment
    traits = analysis.manifest.workloads.get(subject.workload)
    return traits.category if traits is not None else Category.APPLICATION


class _Maker:
    """Makes blocks with identifiers that are unique in the page."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.names: Names = names_of(analysis)
        self.pooled = pooled_histograms(analysis.run)
        self.identifiers: set[str] = set()
        self.charts = 0
        self.shown = [one for one in analysis.backends if not one.is_fenced]

    def block(self, kind: str, subject: Subject) -> BlockView:
        """A subject's block."""
        title = self.names.subject(subject)
        params = ", ".join(f"{name} {value}" for name, value in self.names.params(subject))
        leading = [row for row in _leading_rows(subject) if any(not cell.backend.is_fenced for cell in row.cells)]
        baseline = self.analysis.baseline
        sentences = [
            sentence
            for row in leading[:2]
            for sentence in result_sentence(self.names.row(subject, row), row, baseline.label if baseline else None)
        ]
        drawn = next((row for row in leading if not (row.grows and row.size is None)), None)
        return BlockView(
            identifier=self._identifier(subject.experiment, subject.workload, *map(str, subject.params.values())),
            title=title,
            params=params,
            sentences=sentences[:4],
            path=path_sentence(subject, self.analysis.manifest, self.shown),
            panel=value_panel(self.analysis, subject, drawn) if drawn is not None else None,
            tail=self._tail(subject),
            phases=phase_panel(subject) if subject.experiment == Builtin.BOOT else None,
            lines=list(self._lines(subject)),
            kind=kind,
            ladder=ladder_view(self.analysis, subject) if subject.experiment == Builtin.BOOT else None,
        )

    def _tail(self, subject: Subject) -> TailView | None:
        """The first distribution that the tool counted, as a curve; a page has room for few."""
        if self.charts >= MOST_CURVES:
            return None

        def new_name() -> str:
            self.charts += 1
            return f"t{self.charts}"

        found = next(tail_views(self.pooled, subject, self.shown, self._identifier, new_name), None)
        return None if found is None else msgspec.structs.replace(found, name=self._distribution(subject, found.name))

    def _distribution(self, subject: Subject, name: str) -> str:
        """What people call a distribution: as its percentiles, without which one."""
        own = [row for row in subject.rows if row.metric.name.startswith(f"{name}.")]
        title = self.names.metric(subject, own[0].metric) if own else name
        return title.rpartition(", ")[0] or title

    def _lines(self, subject: Subject) -> Iterator[MeasurementView]:
        for row in subject.rows:
            cells = [cell for cell in row.cells if not cell.backend.is_fenced]
            if not cells:
                continue
            base = next((cell for cell in cells if cell.backend.is_baseline), None)
            yield MeasurementView(
                name=self.names.row(subject, row),
                hint=row.metric.name,
                description=describe(row.metric),
                direction=direction_words(row.metric),
                unit=str(row.metric.unit),
                base=None if base is None else value_view(subject, row, base),
                others=[value_view(subject, row, cell) for cell in cells if cell is not base],
                growth=growth_view(row, subject.traits.grows_with) if _is_ramp(subject, row) else None,
            )

    def _identifier(self, *parts: str) -> str:
        """A readable identifier, the same from run to run while names are; unlike any other of the page."""
        text = re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")[:80] or "x"
        identifier, number = f"s-{text}", 1
        while identifier in self.identifiers:
            number += 1
            identifier = f"s-{text}-{number}"
        self.identifiers.add(identifier)
        return identifier


def _is_ramp(subject: Subject, row: Row) -> bool:
    return bool(subject.traits.grows_with) and row.grows


def value_view(subject: Subject, row: Row, cell: CellResult) -> ValueView:
    """A cell in words."""
    own, found, unit = cell.estimate, cell.comparison, row.metric.unit
    has_verdict = found is not None and found.low is not None
    verdict = found.verdict_adjusted if found is not None and has_verdict else Verdict.INCONCLUSIVE
    word = verdict_word(row.metric, verdict) if has_verdict else ""
    return ValueView(
        backend=cell.backend,
        value=format_estimate(own.centre, own.low, own.high, unit),
        value_range=format_value_range(own.low, own.high, unit),
        change="" if cell.backend.is_baseline else format_change(found),
        change_range=format_change_range(found),
        word=word,
        mark=verdict_mark(word),
        style=_style(row, verdict) if has_verdict else "none",
        note="; ".join(_notes(subject, row, cell)),
        key=key_of(subject, row, cell),
        exact=[own.centre, *_exact(found)],
    )


def _exact(found: Comparison | None) -> list[float | None]:
    return [None] * 3 if found is None else [found.ratio, found.low, found.high]


def _style(row: Row, verdict: Verdict) -> str:
    """The style of a verdict. A cost has no good side: an instance that reads less may just be slower."""
    differs = verdict in (Verdict.FASTER, Verdict.SLOWER)
    return "differs" if differs and is_cost(row.metric) else str(verdict)


def _notes(subject: Subject, row: Row, cell: CellResult) -> Iterator[str]:
    """Why a line of a table has no verdict, or a doubtful one."""
    found = cell.comparison
    if found is None:
        if not cell.backend.is_baseline:
            yield "nothing to compare with"
    elif found.verdict is not found.verdict_adjusted:
        yield "differs alone, not among so many comparisons"
    elif found.note:
        yield found.note
    elif found.is_tentative:
        yield TENTATIVE
    beyond = operations_beyond(subject, row, cell.backend)
    if beyond is not None and beyond < FEWEST_BEYOND:
        yield f"decided by {max(1, round(beyond)):,} operations an iteration"


def operations_beyond(subject: Subject, row: Row, backend: MeasuredBackend) -> float | None:
    """How many operations of an iteration lay beyond a percentile, by the rate beside it; None if it is none."""
    match = _PERCENTILE.search(row.metric.name)
    if match is None:
        return None
    prefix = row.metric.name.partition(".")[0]
    rates = [one for one in subject.rows if one.metric.unit is Unit.OPERATIONS_PER_SECOND]
    rates.sort(key=lambda one: not one.metric.name.startswith(f"{prefix}."))
    durations = [one for one in subject.rows if one.metric.name == SteadyMetric.DURATION]
    rate, duration = (_centre_on(backend, rows) for rows in (rates[:1], durations))
    if rate is None or duration is None:
        return None
    return rate * duration * (1 - float(match["percent"]) / 100)


def _centre_on(backend: MeasuredBackend, rows: list[Row]) -> float | None:
    return next((cell.estimate.centre for row in rows for cell in row.cells if cell.backend == backend), None)


def _leading_rows(subject: Subject) -> list[Row]:
    """Which rows stand for a subject: chosen beforehand, not by what came out."""
    found = [row for name in subject.traits.leading for row in subject.rows if row.metric.name == name]
    own = [row for row in subject.rows if row.is_leading]
    chosen = own or found[:1] or subject.rows[:1]
    if subject.experiment != Builtin.BOOT:
        return chosen
    return chosen + [row for row in found if row not in chosen]


class EmulatedLine(msgspec.Struct, frozen=True):
    """A metric of an emulated guest: its value, the baseline's, and how they differ, without a verdict."""

    subject: str
    name: str
    hint: str
    value: str
    base: str
    ratio: str
    key: str
    exact: list[float | None]


def emulated_tables(analysis: Analysis) -> list[tuple[MeasuredBackend, list[EmulatedLine]]]:
    """The figures of each fenced backend."""
    names = names_of(analysis)
    tables = []
    for backend in analysis.backends:
        if not backend.is_fenced:
            continue
        lines = [
            EmulatedLine(
                subject=names.subject(subject),
                name=names.row(subject, row),
                hint=row.metric.name,
                value=value_view(subject, row, cell).value,
                base="" if row.base is None else value_view(subject, row, row.base).value,
                ratio=format_change(cell.comparison),
                key=key_of(subject, row, cell),
                exact=[cell.estimate.centre, *_exact(cell.comparison)],
            )
            for subject, row, cell in analysis.cells
            if cell.backend == backend
        ]
        if lines:
            tables.append((backend, lines))
    return tables
