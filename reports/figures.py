"""What a subject has beside its intervals: values over size, and distributions of operations.

Distributions are those that tools counted themselves. The counts of all measured iterations are added up, bucket by
bucket, so that percentiles come out that no single iteration has enough operations for. They have no interval and no
verdict: those are of the metrics.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tare.bench.analysis import MeasuredBackend, Row, Subject
from tare.bench.analysis.cells import SubjectKey
from tare.bench.readable import one_line
from tare.bench.samples import params_text
from tare.bench.store import LoadedRun, load_histograms
from tare.bench.units import Unit, format_value
from tare.reports.charts import (
    Chart,
    display_scale,
    finished,
    look_of,
    named,
    rounded,
    short_label,
)

if TYPE_CHECKING:
    pass


_MOST_ROWS = 16


class GrowthView(msgspec.Struct, frozen=True):
    """A metric by size: ``what`` counts the size; a line a size, a value (in words, exact) a backend."""

    what: str
    backends: list[MeasuredBackend]
    lines: list[tuple[int, list[tuple[str, float | None]]]]


def growth_view(row: Row, what: str) -> GrowthView:
    """A growing metric by size: the median of each backend at sizes that are evenly chosen if they are many."""

    def shown(value: float | None) -> tuple[str, float | None]:
        return ("–" if value is None else format_value(value, row.metric.unit), value)

    every = sorted({size for cell in row.cells for size in cell.sizes})
    places = np.unique(np.linspace(0, len(every) - 1, min(len(every), _MOST_ROWS)).round().astype(int))
    chosen = [every[place] for place in places]
    lines = [(size, [shown(cell.median_at(size)) for cell in row.cells]) for size in chosen]
    return GrowthView(what, [cell.backend for cell in row.cells], lines)


QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
FEWEST_BEYOND = 10
"""A percentile that fewer counted values lie beyond is left out."""

Pooled = Mapping[SubjectKey, Mapping[tuple[str, Unit], dict[str, Counter[float]]]]
"""By subject and by name and unit of a distribution: for each backend, counts by a bucket's upper edge."""


class TailLine(msgspec.Struct, frozen=True):
    """A backend's percentiles in words, in the order of ``QUANTILES``, the largest value, and how many there are."""

    backend: MeasuredBackend
    percentiles: list[str]
    largest: str
    counted: str


class TailView(msgspec.Struct, frozen=True):
    """One distribution: its table and its picture."""

    identifier: str
    name: str
    columns: list[str]
    lines: list[TailLine]
    chart_name: str
    chart: Chart
    alternative: str


def pooled_histograms(run: LoadedRun) -> Pooled:
    """What the tools of a run counted, warm-up left out, added up over instances and iterations."""
    pooled: defaultdict[SubjectKey, defaultdict[tuple[str, Unit], dict[str, Counter[float]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for record in load_histograms(run):
        if not record.warmup:
            found = record.histogram
            kinds = pooled[_key(record.experiment, record.workload, record.params)]
            counts = kinds[found.name, found.unit].setdefault(record.backend, Counter())
            counts.update(dict(zip(found.bounds, found.counts, strict=True)))
    return pooled


def tail_views(
    pooled: Pooled,
    subject: Subject,
    backends: list[MeasuredBackend],
    identify: Callable[[str], str],
    new_name: Callable[[], str],
) -> Iterator[TailView]:
    """The distributions of one subject. ``identify`` makes an identifier of a name, ``new_name`` one for a chart."""
    for (name, unit), by_backend in pooled.get(_key(subject.experiment, subject.workload, subject.params), {}).items():
        counted = [(one, by_backend[one.name]) for one in backends if by_backend.get(one.name)]
        if counted:
            yield _view(name, unit, counted, identify(name), new_name())


def quantile_of(counts: Mapping[float, int], quantile: float) -> float | None:
    """The upper edge of the bucket that holds the quantile; None where too few values lie beyond it."""
    total = sum(counts.values())
    if total * (1 - quantile) < FEWEST_BEYOND:
        return None
    rank, seen = math.ceil(total * quantile), 0
    for bound in sorted(counts):
        seen += counts[bound]
        if seen >= rank:
            return bound
    raise AssertionError("ranks end with the last bucket")


def _view(
    name: str, unit: Unit, counted: list[tuple[MeasuredBackend, Counter[float]]], identifier: str, chart_name: str
) -> TailView:
    found = [
        (backend, counts, [quantile_of(counts, quantile) for quantile in QUANTILES]) for backend, counts in counted
    ]
    lines = [
        TailLine(
            backend=backend,
            percentiles=["–" if value is None else format_value(value, unit) for value in values],
            largest=format_value(max(bound for bound, count in counts.items() if count), unit),
            counted=f"{sum(counts.values()):,}",
        )
        for backend, counts, values in found
    ]
    said = [f"{short_label(line.backend)} {', '.join(line.percentiles)}" for line in lines]
    shown = one_line(name, 60)
    return TailView(
        identifier=identifier,
        name=shown,
        columns=[_percent(quantile) for quantile in QUANTILES],
        lines=lines,
        chart_name=chart_name,
        chart=_chart([(backend, values) for backend, _, values in found], unit, chart_name),
        alternative=f"{shown} at {', '.join(map(_percent, QUANTILES))} of what was counted: {'; '.join(said)}.",
    )


def _chart(found: list[tuple[MeasuredBackend, list[float | None]]], unit: Unit, identifier: str) -> Chart:
    import altair as alt

    values = [value for _, own in found for value in own if value]
    scale = display_scale(unit, math.sqrt(min(values) * max(values)) if values else 0.0)
    labels = [short_label(backend) for backend, _ in found]
    rows = [
        {"b": label, "p": _percent(quantile), "v": rounded(value / scale.factor)}
        for label, (_, own) in zip(labels, found, strict=True)
        for quantile, value in zip(QUANTILES, own, strict=True)
        if value
    ]
    look = look_of([backend for backend, _ in found], named_above=True)
    position = {
        "x": alt.X(
            "p:O",
            title="of all operations",
            sort=[_percent(one) for one in QUANTILES],
            axis=alt.Axis(labelAngle=0),
        ),
        "y": alt.Y("v:Q", title=f"{scale.unit}, log scale  (↓ better)", scale=alt.Scale(type="log")),
        **look,
    }
    line = named("tail").mark_line(strokeWidth=1.5, aria=False).encode(**{k: position[k] for k in ("x", "y", "color")})
    points = named("tail").mark_point(filled=True, size=60, opacity=0.95, aria=False)
    tooltip = [
        alt.Tooltip("b:N", title="backend"),
        alt.Tooltip("p:O", title="share"),
        alt.Tooltip("v:Q", title=scale.unit),
    ]
    chart = alt.layer(line, points.encode(**position, tooltip=tooltip)).properties(width="container", height=180)
    return finished(chart, {"tail": rows}, identifier)


def _percent(quantile: float) -> str:
    return f"{quantile * 100:g} %"


def _key(experiment: str, workload: str, params: Mapping[str, object]) -> SubjectKey:
    return experiment, workload, params_text(params)
