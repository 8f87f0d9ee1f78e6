"""Charts over something that grows: a metric over the number of instances, a ratio over the blocks of a run."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tare.bench.analysis import CellResult, Row
from tare.bench.model import Direction
from tare.reports.charts import MOST_POINTS, Chart, Rows, display_scale, finished, look_of, named, rounded, short_label

if TYPE_CHECKING:
    import altair as alt

_HEIGHT = 200
_FAR_APART = 8.0
_MANY_STEPS = 40
_FEW_STEPS = 16
_FEWEST_BLOCKS = 3
_CLOSE = 1.5


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


def block_chart(row: Row, margin: float, identifier: str) -> tuple[str, Chart] | None:
    """The ratio of each block in the order of time, with the words that say how; None if there are too few."""
    import altair as alt

    ratios = _block_ratios(row)
    if not ratios:
        return None
    all_values = [value for _, by_block in ratios for value in by_block.values()]
    close = max(all_values) / min(all_values) <= _CLOSE
    data: dict[str, Rows] = {"points": [], "medians": []}
    for cell, by_block in ratios:
        whole = 1.0 if close or cell.comparison is None or not cell.comparison.ratio else cell.comparison.ratio
        rows = [
            {"b": short_label(cell.backend), "x": block + 1, "v": rounded(ratio / whole)}
            for block, ratio in by_block.items()
        ]
        data["points"].extend(rows)
        data["medians"].extend(rows)
    values = [row["v"] for row in data["points"]]
    ends = [min([*values, 1 / (1 + margin)]) / 1.005, max([*values, 1 + margin]) * 1.005]
    title = "ratio" if close else "of its own ratio"
    form = ".3~f" if close else "~%"
    y = alt.Y("v:Q", title=title, scale=alt.Scale(domain=ends, zero=False), axis=alt.Axis(tickCount=5, format=form))
    x = alt.X(
        "x:Q",
        title="block",
        scale=alt.Scale(nice=False, padding=12),
        axis=_whole_axis(sorted({row["x"] for row in data["points"]})),
    )
    words = "Ratio of each block, in the order of time" if close else "Ratio of each block around the ratio of all"
    line: dict[str, Any] = {"color": "var(--rule)", "aria": False}
    data["one"] = [{"v": 1.0}]
    one = named("one").mark_rule(**line).encode(y=alt.Y("v:Q", scale=alt.Scale(domain=ends)))
    return words, _drawn([cell for cell, _ in ratios], x, y, data, "ratio", identifier, below=one)


def _block_ratios(row: Row) -> list[tuple[CellResult, dict[int, float]]]:
    base = next((cell.blocks for cell in row.cells if cell.backend.is_baseline), None)
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

    look = look_of(cells, named_above=True)
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
    numbers, values = cell.points.iteration_numbers, cell.points.iterations
    places = range(len(values))
    if len(values) > MOST_POINTS:
        places = range(0, len(values), math.ceil(len(values) / MOST_POINTS))
    label = short_label(cell.backend)
    return [{"b": label, "x": int(numbers[place]), "v": rounded(float(values[place]) / factor)} for place in places]


def _some(steps: Any) -> Any:
    """At most as many steps as can be told apart, the first and the last among them."""
    if len(steps) <= MOST_POINTS:
        return steps
    return steps[np.unique(np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int))]
