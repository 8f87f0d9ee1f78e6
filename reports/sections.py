"""The sections of a report: which subject stands where, and each with its table, figures and sentences."""

import re
from collections.abc import Iterable, Iterator

import msgspec

from tare.bench.analysis import Analysis, CellResult, MeasuredBackend, Row, Subject
from tare.bench.catalogue import Builtin, SteadyMetric
from tare.bench.model import Category
from tare.bench.records import Manifest
from tare.bench.settings import is_among
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.bench.units import Unit
from tare.reports.charts import LEVEL, Chart, distribution_charts
from tare.reports.figures import (
    Forest,
    GrowthView,
    TailView,
    block_chart,
    forest_of,
    growth_chart,
    growth_sentence,
    growth_view,
    pooled_histograms,
    tail_views,
)
from tare.reports.wording import (
    describe,
    direction_words,
    figure_sentence,
    format_estimate,
    format_range,
    format_ratio_estimate,
    format_value_range,
    is_cost,
    path_sentence,
    plural,
    verdict_mark,
    verdict_word,
)

FEWEST_BEYOND = 10
"""A percentile with fewer operations beyond it rests on too few of them, and is marked."""

_PERCENTILE = re.compile(r"\.p(?P<percent>\d{2}(?:\.\d+)?)$", re.ASCII)


class CellView(msgspec.Struct, frozen=True):
    """One line of a table: a metric on a backend."""

    backend: MeasuredBackend
    estimate: float
    unit: str
    value: str
    value_range: str
    found: list[float | None]
    ratio: str
    ratio_range: str
    verdict: str
    word: str
    mark: str
    note: str
    counts: str
    comparison: Comparison | None


def cell_view(subject: Subject, row: Row, cell: CellResult) -> CellView:
    """A cell in words, with what has to be said beside its verdict."""
    found, unit = cell.comparison, row.metric.unit
    counts = (
        f"{plural(cell.n_blocks, 'block')}, {plural(cell.n_instances, 'instance')}, "
        f"{plural(cell.n_iterations, 'value')}"
    )
    # A ratio without a verdict says why instead; the baseline has neither.
    has_verdict = found is not None and found.low is not None
    verdict = found.verdict if found is not None and has_verdict else Verdict.INCONCLUSIVE
    word = verdict_word(row.metric, verdict) if has_verdict else ""
    own = cell.estimate
    return CellView(
        backend=cell.backend,
        estimate=own.centre,
        unit=str(unit),
        value=format_estimate(own.centre, own.low, own.high, unit),
        value_range=format_value_range(own.low, own.high, unit),
        found=[None] * 3 if found is None else [found.ratio, found.low, found.high],
        ratio="1×" if cell.backend.is_baseline and own.centre else format_ratio_estimate(found),
        ratio_range=format_range(found.low, found.high) if found is not None else "",
        verdict=_style(row, verdict) if has_verdict else "none",
        word=word,
        mark=verdict_mark(word),
        note="; ".join(_notes(subject, row, cell)),
        counts=counts,
        comparison=found,
    )


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
        yield "not after correction for many comparisons"
    elif found.note:
        yield found.note
    beyond = operations_beyond(subject, row, cell.backend)
    if beyond is not None and beyond < FEWEST_BEYOND:
        yield f"decided by {plural(max(1, round(beyond)), 'operation')} an iteration"


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


def _centre_on(backend: MeasuredBackend, rows: Iterable[Row]) -> float | None:
    return next((cell.estimate.centre for row in rows for cell in row.cells if cell.backend == backend), None)


SECTIONS: dict[str, str] = {
    Builtin.BOOT: "",
    Builtin.DENSITY: "",
    Category.CPU: "CPU",
    Category.MEMORY: "Memory",
    Category.KERNEL: "Kernel interface",
    Category.STORAGE: "Storage",
    Category.NETWORK: "Network",
    Category.APPLICATION: "Applications",
    Builtin.INTERFERENCE: "",
    Builtin.LIMITS: "",
}
"""The sections of a report in order, with the titles of those that are of workloads; those without data are left out.

Another experiment's stand after them. Its section has the title that its traits say.
"""
MOST_FIGURES = 120
MOST_SENTENCES = 8

_OVER_A_TIME = frozenset(
    {SteadyMetric.DURATION, SteadyMetric.CPU, SteadyMetric.CPU_OVERHEAD, SteadyMetric.IO_READ, SteadyMetric.IO_WRITE}
)
"""With a fixed duration, a backend that does less work also costs less: these are not results then."""


class Panel(msgspec.Struct, frozen=True):
    """One picture of a figure: ``words`` stand above it, ``alternative`` is its text, ``name`` unique in the page."""

    words: str
    alternative: str
    name: str
    chart: Chart


class RowView(msgspec.Struct, frozen=True):
    """One metric: its lines, and its pictures with the sentence that they support.

    ``growth`` stands where it was taken at several sizes; ``is_compared`` is False where these differ by backend, as
    then a ratio of typical values says nothing.
    """

    identifier: str
    name: str
    subject: str
    description: str
    direction: str
    baseline: CellView | None
    compared: list[CellView]
    cells: list[CellView]
    sentence: str
    panels: list[Panel]
    growth: GrowthView | None
    is_compared: bool


class SubjectView(msgspec.Struct, frozen=True):
    """What is compared across backends.

    ``details`` are metrics of the harness, without figures; ``path`` says what lay between it and its server, if any;
    ``tails`` are the distributions that the tool counted.
    """

    identifier: str
    title: str
    params: str
    filters: list[str]
    rows: list[RowView]
    details: list[RowView]
    forest: Forest
    has_ratios: bool
    path: str
    tails: list[TailView]


class SectionView(msgspec.Struct, frozen=True):
    """A section: ``leading`` are the rows of the first table, ``sentences`` what they say, ``kind`` its key."""

    identifier: str
    title: str
    subjects: list[SubjectView]
    leading: list[tuple[SubjectView, RowView]]
    sentences: list[str]
    forest: Forest
    kind: str


def section_of(subject: Subject, manifest: Manifest) -> str:
    """The key in ``SECTIONS`` of a subject, or the experiment's own name if it is none that is known."""
    if not subject.traits.of_workload:
        return f"experiment {name}" if (name := subject.experiment) in tuple(Category) else name
    traits = manifest.workloads.get(subject.workload)
    return traits.category if traits is not None else Category.APPLICATION


def section_views(analysis: Analysis) -> list[SectionView]:
    """The sections that have data, in the order of ``SECTIONS``, others after them."""
    grouped: dict[str, list[Subject]] = {name: [] for name in SECTIONS}
    for subject in analysis.subjects:
        grouped.setdefault(section_of(subject, analysis.manifest), []).append(subject)
    maker = _Maker(analysis)
    return [maker.section(name, subjects) for name, subjects in grouped.items() if subjects]


class _Maker:
    """Makes views with identifiers that are unique in the page, and draws no more figures than it can hold."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.pooled = pooled_histograms(analysis.run)
        self.identifiers: set[str] = set()
        self.figures = 0
        self.charts = 0

    def section(self, name: str, subjects: list[Subject]) -> SectionView:
        """A section with its subjects drawn."""
        identifier = self._identifier(name)
        views, leading, sentences, rows = [], [], [], []
        for subject in subjects:
            view = self._subject(subject)
            views.append(view)
            for place in _leading_places(subject):
                row = subject.rows[place]
                found = next((one for one in (*view.rows, *view.details) if one.name == row.name), None)
                if found is not None:
                    if found.is_compared:
                        leading.append((view, found))
                        rows.append(row)
                    sentences.append(f"{_full_name(subject, row)} – {found.sentence}")
        title = SECTIONS.get(name) or subjects[0].traits.title
        forest = forest_of(rows, self.analysis.margin)
        return SectionView(identifier, title, views, leading, sentences[:MOST_SENTENCES], forest, name)

    def _subject(self, subject: Subject) -> SubjectView:
        traits = self.analysis.manifest.workloads.get(subject.workload)
        fixed_time = traits is not None and traits.fixed_time
        identifier = self._identifier(
            subject.experiment, subject.workload, *(str(part) for pair in subject.params.items() for part in pair)
        )
        detail = [row for row in subject.rows if _is_detail(subject, row, fixed_time=fixed_time)]
        shown = [row for row in subject.rows if row not in detail]
        what = subject.traits.grows_with
        on_axis = [row for row in shown if not what or not row.grows or row.is_comparable]
        forest = forest_of(on_axis or detail, self.analysis.margin)
        leading = {subject.rows[place].metric.name for place in _leading_places(subject)}

        def identify(name: str) -> str:
            return self._identifier(identifier, "all", name)

        make = self._row
        rows = [make(subject, row, identifier, leading=row.metric.name in leading) for row in shown]
        return SubjectView(
            identifier=identifier,
            title=subject.title if subject.workload else "Every metric",
            params=subject.params_line,
            filters=[f"{name} {value}" for name, value in subject.params.items()],
            rows=rows,
            details=[make(subject, row, identifier, figures=False) for row in detail],
            forest=forest,
            has_ratios=any(view.is_compared for view in rows),
            path=path_sentence(subject, self.analysis.manifest, self.analysis.backends),
            tails=list(tail_views(self.pooled, subject, self.analysis.backends, identify, self._chart_name)),
        )

    def _row(self, subject: Subject, row: Row, owner: str, *, leading: bool = False, figures: bool = True) -> RowView:
        cells = [cell_view(subject, row, cell) for cell in row.cells]
        base = self.analysis.baseline
        what = subject.traits.grows_with
        growing = bool(what) and row.grows
        compared = not growing or row.is_comparable
        sentence = figure_sentence(row, base.label if base is not None else None)
        if growing:
            sentence = growth_sentence(row, what, sentence if compared else "")
        return RowView(
            identifier=self._identifier(owner.removeprefix("s-"), row.metric.name),
            name=row.name,
            subject=_full_name(subject, row),
            description=describe(row.metric),
            direction=direction_words(row.metric),
            baseline=next((cell for cell in cells if cell.backend.is_baseline), None),
            compared=[cell for cell in cells if not cell.backend.is_baseline],
            cells=cells,
            sentence=sentence,
            panels=list(self._panels(subject, row, sentence, leading=leading)) if figures else [],
            growth=growth_view(row, what) if growing else None,
            is_compared=compared,
        )

    def _panels(self, subject: Subject, row: Row, sentence: str, *, leading: bool) -> Iterator[Panel]:
        """The pictures of a metric. None if every value is 0, or the page has its most figures."""
        values = [value for cell in row.cells for value in cell.points.instance_medians]
        if not any(values) or (self.figures >= MOST_FIGURES and not leading):
            return
        self.figures += 1
        what = subject.traits.grows_with
        if what and row.grows:
            name = self._chart_name()
            yield Panel("", f"{row.metric.name} over {what}. {sentence}", name, growth_chart(row, what, name))
            return
        for words, name, chart in distribution_charts(row, self._chart_name):
            again = words and words != LEVEL
            alternative = f"{words}: the points of {row.metric.name} for each backend" if again else sentence
            yield Panel(words, alternative, name, chart)
        if leading and self.analysis.baseline is not None:
            found = block_chart(row, self.analysis.margin, name := self._chart_name())
            if found is not None:
                words, alternative, chart = found
                yield Panel(words, alternative, name, chart)

    def _chart_name(self) -> str:
        self.charts += 1
        return f"c{self.charts}"

    def _identifier(self, *parts: str) -> str:
        """A readable identifier, the same from run to run while names are; unlike any other of the page."""
        text = re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")[:80] or "x"
        identifier, number = f"s-{text}", 1
        while identifier in self.identifiers:
            number += 1
            identifier = f"s-{text}-{number}"
        self.identifiers.add(identifier)
        return identifier


def _full_name(subject: Subject, row: Row) -> str:
    """A metric with what it belongs to; start and stop are named by the metric itself."""
    if not subject.workload:
        return row.name
    params = f" ({subject.params_line})" if subject.params else ""
    return f"{subject.title}{params} {row.name}"


def _leading_places(subject: Subject) -> list[int]:
    """Which rows of a subject stand in the first table: chosen beforehand, not by what came out."""
    names = {row.metric.name: place for place, row in enumerate(subject.rows)}
    found = [names[name] for name in subject.traits.leading if name in names]
    own = [place for place, row in enumerate(subject.rows) if row.is_leading]
    return found or own[:1] or [0]


def _is_detail(subject: Subject, row: Row, *, fixed_time: bool) -> bool:
    """Whether a metric is about the harness only, or repeats what another experiment measures on purpose."""
    name = row.metric.name
    return is_among(subject.traits.details, name) or (fixed_time and name in _OVER_A_TIME)
