"""The figures of a subject: intervals on one log axis, values over size or blocks, distributions of operations.

Distributions are those that tools counted themselves. The counts of all measured iterations are added up, bucket by
bucket, so that percentiles come out that no single iteration has enough operations for. They have no interval and no
verdict: those are of the metrics.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tare.bench.analysis import CellResult, MeasuredBackend, Row, Subject
from tare.bench.analysis.cells import SubjectKey
from tare.bench.model import Direction
from tare.bench.readable import one_line
from tare.bench.samples import params_text
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.bench.store import LoadedRun, load_histograms
from tare.bench.units import Unit, format_value
from tare.reports.charts import (
    MOST_POINTS,
    Chart,
    Rows,
    display_scale,
    finished,
    look_of,
    named,
    rounded,
    short_label,
)

if TYPE_CHECKING:
    import altair as alt

WIDTH, HEIGHT = 190, 20
_PADDING = 12
_LETTER = 6.4
_GAP = 7.0
_NICE = (0.5, 0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.25, 1.5, 2.0, 5.0)


class Forest(msgspec.Struct, frozen=True):
    """A log axis of ratios from ``low`` to ``high`` with the margin around 1 shaded."""

    low: float
    high: float
    margin: float

    def axis(self) -> str:
        """The axis with its labels, as SVG: the head of the column."""
        labels = "".join(
            f'<text x="{_inside(self._x(tick), tick):.1f}" y="12">{_tick_label(tick)}</text>' for tick in self._ticks()
        )
        return f"{_open()}<g class='ticks'>{labels}</g></svg>"

    def line(self, found: Comparison | None, place: int) -> str:
        """One interval as SVG. Inconclusive ones have a hollow mark and no colour."""
        band = (self._x(1 / (1 + self.margin)), self._x(1 + self.margin))
        one, middle = self._x(1), HEIGHT / 2
        parts = [
            _open(),
            f"<rect class='band' x='{band[0]:.1f}' y='0' width='{max(1.0, band[1] - band[0]):.1f}' height='{HEIGHT}'/>",
            f"<path class='one' d='M{one:.1f},0V{HEIGHT}'/>",
        ]
        if found is not None and found.ratio is not None:
            decided = found.low is not None and found.verdict is not Verdict.INCONCLUSIVE
            kind = f"b{place % 6}" if decided else "undecided"
            if found.low is not None and found.high is not None:
                start, end = self._x(found.low), self._x(found.high)
                parts.append(f"<path class='span {kind}' d='M{start:.1f},{middle}H{max(end, start + 1):.1f}'/>")
            parts.append(self._dot(found.ratio, kind))
        return "".join((*parts, "</svg>"))

    def _dot(self, ratio: float, kind: str) -> str:
        x, y = self._x(ratio), HEIGHT / 2
        if self.low <= ratio <= self.high:
            return f"<circle class='dot {kind}' cx='{x:.1f}' cy='{y}' r='3.4'/>"
        tip = 7 if ratio > 1 else -7
        return f"<path class='dot {kind}' d='M{x:.1f},{y - 4}v8l{tip},-4z'/>"

    def _x(self, ratio: float) -> float:
        share = (math.log(ratio) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return _PADDING + (WIDTH - 2 * _PADDING) * min(1.0, max(0.0, share))

    def _ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        wanted = [1.0, *sorted((10.0**power for power in decades if power), key=lambda tick: -abs(math.log(tick)))]
        wanted += [*(factor for factor in _NICE)]
        chosen: list[float] = []
        for tick in wanted:
            if self.low <= tick <= self.high and all(self._apart(tick, other) for other in chosen):
                chosen.append(tick)
        return sorted(chosen)

    def _apart(self, one: float, other: float) -> bool:
        """Whether the labels of two ticks stand side by side with a gap."""
        letters = len(_tick_label(one)) + len(_tick_label(other))
        return abs(self._x(one) - self._x(other)) >= _LETTER * letters / 2 + _GAP


def forest_of(rows: list[Row], margin: float) -> Forest:
    """The axis that holds the ratios and intervals of these rows; what lies beyond is drawn at its edge as an arrow."""
    values = [1 / 1.1, 1.1]
    for row in rows:
        for cell in row.cells:
            found = cell.comparison
            if found is None:
                continue
            # An interval of two blocks can be absurdly wide: the axis follows the ratios and clips such ends.
            ratio = found.ratio
            if ratio is not None:
                values += [ratio, *(min(max(end, ratio / 8), ratio * 8) for end in (found.low, found.high) if end)]
    spread = (max(values) / min(values)) ** 0.04
    return Forest(min(values) / spread, max(values) * spread, margin)


def _open() -> str:
    box = f"width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}'"
    return f"<svg class='forest' {box} aria-hidden='true' focusable='false'>"


def _inside(x: float, tick: float) -> float:
    """Where the middle of a tick's label lies, so that all of it is in the picture."""
    half = _LETTER * len(_tick_label(tick)) / 2
    return min(max(x, half), WIDTH - half)


def _tick_label(tick: float) -> str:
    return f"{tick:,.0f}×" if tick >= 100 else f"{tick:.4g}×"


_HEIGHT = 200
_FAR_APART = 8.0
_MANY_STEPS = 40
_FEW_STEPS = 16
_FEWEST_BLOCKS = 3
_CLOSE = 1.5


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


def growth_sentence(row: Row, what: str, compared: str) -> str:
    """What a growing metric was at the largest size that all reached, and what is compared of it."""
    size = max(set.intersection(*(set(cell.sizes) for cell in row.cells)), default=None)
    if size is None:
        return f"No number of {what} was measured on every backend."
    at = [(cell.backend.label, cell.median_at(size)) for cell in row.cells]
    values = ", ".join(f"{label} {format_value(value, row.metric.unit)}" for label, value in at if value is not None)
    most = all(cell.sizes[-1] == size for cell in row.cells)
    sentence = f"With {size:,} {what} ({'the most measured' if most else 'the most that all reached'}): {values}."
    if not compared:
        return sentence
    return f"{sentence} {compared}" if row.size is not None else f"{sentence} Over all sizes: {compared}"


def growth_chart(row: Row, what: str, identifier: str) -> Chart:
    """A metric over the number of ``what``: each value as a point, the medians as a line a backend."""
    import altair as alt

    values = np.concatenate([cell.points.iterations for cell in row.cells])
    steps = np.concatenate([cell.points.iteration_numbers for cell in row.cells])
    positive = values[values > 0]
    typical = float(np.median(positive)) if len(positive) else 0.0
    scale = display_scale(row.metric.unit, typical)
    log = len(positive) == len(values) > 0 and values.max() / values.min() > _FAR_APART
    better = "lower" if row.metric.direction is Direction.LOWER else "higher"
    title = f"{scale.unit}{', log scale' if log else ''} ({better} is better)"
    y_scale = alt.Scale(type="log") if log else alt.Scale(zero=True, nice=True)
    y = alt.Y("v:Q", title=title, scale=y_scale, axis=alt.Axis(tickCount=5, format=",~f"))
    wide = steps.min() > 0 and steps.max() > _MANY_STEPS
    x_title = f"{what}{', log scale' if wide else ''}"
    x = alt.X(
        "x:Q",
        title=x_title,
        scale=alt.Scale(type="log" if wide else "linear", nice=False),
        axis=_whole_axis(np.unique(steps)),
    )
    data: dict[str, Rows] = {"points": [], "medians": []}
    for cell in row.cells:
        data["points"].extend(_thinned_steps(cell, scale.factor))
        numbers, value = cell.points.iteration_numbers, cell.points.iterations
        data["medians"].extend(
            {
                "b": short_label(cell.backend),
                "x": int(step),
                "v": rounded(float(np.median(value[numbers == step])) / scale.factor),
            }
            for step in _some(np.unique(numbers))
        )
    return _drawn(row.cells, x, y, data, scale.unit, identifier)


def block_chart(row: Row, margin: float, identifier: str) -> tuple[str, str, Chart] | None:
    """The ratio of each block in the order of time, with the words above and instead; None if there are too few."""
    import altair as alt

    ratios = _block_ratios(row)
    if not ratios:
        return None
    all_values = [value for _, by_block in ratios for value in by_block.values()]
    close = max(all_values) / min(all_values) <= _CLOSE
    rows: Rows = []
    for cell, by_block in ratios:
        whole = 1.0 if close or cell.comparison is None or not cell.comparison.ratio else cell.comparison.ratio
        label = short_label(cell.backend)
        rows += [{"b": label, "x": block + 1, "v": rounded(ratio / whole)} for block, ratio in by_block.items()]
    values = [row["v"] for row in rows]
    ends = [min([*values, 1 / (1 + margin)]) / 1.005, max([*values, 1 + margin]) * 1.005]
    title = "ratio" if close else "of its own ratio"
    form = ".3~f" if close else "~%"
    y = alt.Y("v:Q", title=title, scale=alt.Scale(domain=ends, zero=False), axis=alt.Axis(tickCount=5, format=form))
    x = alt.X(
        "x:Q",
        title="block",
        scale=alt.Scale(nice=False, padding=12),
        axis=_whole_axis(sorted({row["x"] for row in rows})),
    )
    words = "Ratio of each block, in the order of time" if close else "Ratio of each block around the ratio of all"
    line: dict[str, Any] = {"color": "var(--rule)", "aria": False}
    data: dict[str, Rows] = {"points": rows, "medians": rows, "one": [{"v": 1.0}]}
    one = named("one").mark_rule(**line).encode(y=alt.Y("v:Q", scale=alt.Scale(domain=ends)))
    told = []
    for cell, found in ratios:
        low, high = (format_value(end(found.values()), Unit.RATIO) for end in (min, max))
        told.append(f"{cell.backend.label} from {low} to {high}")
    chart = _drawn([cell for cell, _ in ratios], x, y, data, "ratio", identifier, below=one)
    return words, f"{words}. {'; '.join(told)}.", chart


def _block_ratios(row: Row) -> list[tuple[CellResult, dict[int, float]]]:
    base = row.base.blocks if row.base is not None else None
    if base is None or len(base.blocks) < _FEWEST_BLOCKS or base.values.min() <= 0:
        return []
    baseline = dict(zip(base.blocks.tolist(), base.values.tolist(), strict=True))
    found = []
    for cell in row.cells:
        own = cell.blocks
        if cell.backend.is_baseline or cell.comparison is None or cell.comparison.ratio is None:
            continue
        ratios = {
            block: value / baseline[block]
            for block, value in zip(own.blocks.tolist(), own.values.tolist(), strict=True)
            if block in baseline
        }
        if len(ratios) >= _FEWEST_BLOCKS:
            found.append((cell, ratios))
    return found


def _drawn(
    cells: list[CellResult],
    x: "alt.X",
    y: "alt.Y",
    data: dict[str, Rows],
    unit: str,
    identifier: str,
    *,
    below: Any = None,
) -> Chart:
    import altair as alt

    look = look_of([cell.backend for cell in cells], named_above=True)
    tooltip = [alt.Tooltip("b:N", title="backend"), alt.Tooltip("x:Q", title="at"), alt.Tooltip("v:Q", title=unit)]
    lines = named("medians").mark_line(strokeWidth=1.5, aria=False).encode(x=x, y=y, color=look["color"])
    mark: dict[str, Any] = {"filled": True, "size": 36, "opacity": 0.75, "aria": False}
    points = named("points").mark_point(**mark).encode(x=x, y=y, **look, tooltip=tooltip)
    layers = [lines, points] if below is None else [below, lines, points]
    chart = alt.layer(*layers).properties(width="container", height=_HEIGHT)
    return finished(chart, data, identifier)


def _whole_axis(steps: Any) -> "alt.Axis":
    """An axis of whole numbers: named at each of them if they are few."""
    import altair as alt

    values: Any = [int(step) for step in steps] if len(steps) <= _FEW_STEPS else alt.Undefined
    return alt.Axis(format=",d", grid=False, labelOverlap="greedy", values=values)


def _thinned_steps(cell: CellResult, factor: float) -> Rows:
    every = max(1, math.ceil(len(cell.points.iterations) / MOST_POINTS))
    numbers, values = cell.points.iteration_numbers[::every].tolist(), cell.points.iterations[::every].tolist()
    label = short_label(cell.backend)
    return [{"b": label, "x": x, "v": rounded(value / factor)} for x, value in zip(numbers, values, strict=True)]


def _some(steps: Any) -> Any:
    """At most as many steps as can be told apart, the first and the last among them."""
    if len(steps) <= MOST_POINTS:
        return steps
    return steps[np.unique(np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int))]


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
        "x": alt.X("p:O", title="of all that was counted", sort=[_percent(one) for one in QUANTILES]),
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
