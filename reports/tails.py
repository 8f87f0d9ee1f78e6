"""Distributions that tools counted themselves: how long the slowest operations of each backend took.

The counts of all measured iterations are added up, bucket by bucket, so that percentiles come out that no single
iteration has enough operations for. They have no interval and no verdict: those are of the metrics.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

import msgspec

from tare.bench.analysis import Analysis, MeasuredBackend, Subject
from tare.bench.model import HistogramRecord
from tare.bench.readable import one_line
from tare.bench.store import load_histograms
from tare.bench.units import Unit, format_value
from tare.reports.charts import SHAPES, Chart, accent, display_scale, finished, named, rounded, short_label

QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
FEWEST_BEYOND = 10
"""A percentile that fewer counted values lie beyond is left out."""

Pooled = dict[str, Counter[float]]
"""Counts by a bucket's upper edge, by backend."""
Key = tuple[str, str, str]
"""Experiment, workload, and parameters as JSON."""


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


class Tails:
    """The distributions of a run, by subject."""

    def __init__(self, analysis: Analysis) -> None:
        self._backends = analysis.backends
        self._pooled: dict[Key, dict[tuple[str, Unit], Pooled]] = defaultdict(lambda: defaultdict(dict))
        for record in load_histograms(analysis.run):
            if not record.warmup:
                self._add(record)

    def _add(self, record: HistogramRecord) -> None:
        kind = (record.histogram.name, record.histogram.unit)
        pooled = self._pooled[_key(record.experiment, record.workload, record.params)][kind]
        counts = pooled.setdefault(record.backend, Counter())
        counts.update(dict(zip(record.histogram.bounds, record.histogram.counts, strict=True)))

    def views(
        self, subject: Subject, identify: Callable[[str], str], new_name: Callable[[], str]
    ) -> Iterable[TailView]:
        """Those of one subject. ``identify`` makes an identifier of a name, ``new_name`` one for a chart."""
        kinds = self._pooled.get(_key(subject.experiment, subject.workload, subject.params), {})
        for (name, unit), pooled in kinds.items():
            counted = [(one, pooled[one.name]) for one in self._backends if pooled.get(one.name)]
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
    colours = [accent(backend.place) for backend, _ in found]
    shapes = [SHAPES[backend.place % len(SHAPES)] for backend, _ in found]
    legend = alt.Legend(orient="top", title=None, symbolOpacity=1)
    position = {
        "x": alt.X("p:O", title="of all that was counted", sort=[_percent(one) for one in QUANTILES]),
        "y": alt.Y("v:Q", title=f"{scale.unit}, log scale  (↓ better)", scale=alt.Scale(type="log")),
        "color": alt.Color("b:N", legend=legend, scale=alt.Scale(domain=labels, range=colours)),
        "shape": alt.Shape("b:N", legend=legend, scale=alt.Scale(domain=labels, range=shapes)),
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


def _key(experiment: str, workload: str, params: Mapping[str, object]) -> Key:
    return experiment, workload, json.dumps(params, sort_keys=True)
