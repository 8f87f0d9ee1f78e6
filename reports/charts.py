"""The curves of a report: Vega-Lite drawn as SVG, which needs no script and follows light and dark by itself.

Colours are CSS variables of the page. Intervals and points in rows are ``picture``'s; bars only show parts of a whole.
Charts have no title of their own, and a legend only where no axis names the backends: the page sets the rest in text,
where it wraps, prints and can be read aloud.
"""

import itertools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from tare.bench.analysis import CellResult, MeasuredBackend, Row
from tare.bench.model import Direction, Metric
from tare.bench.readable import one_line
from tare.bench.units import Unit, format_value
from tare.reports.drawing import still_of
from tare.reports.wording import says_nothing

if TYPE_CHECKING:
    import altair as alt

_MARK = re.compile(r'<path transform="translate\(([^)]*)\)" d="([^"]*)"([^>]*?)/>')
_MARKS = re.compile(rf"(?:{_MARK.pattern}){{2,}}")
_LINE = re.compile(r'<line transform="translate\(([^)]*)\)" x2="([^"]*)" y2="([^"]*)"([^>]*?)/>')
_LINES = re.compile(rf"(?:{_LINE.pattern}){{2,}}")
_TEXT = re.compile(r'<text text-anchor="([^"]*)" transform="translate\(([^)]*)\)"([^>]*)>([^<]*)</text>')
_TEXTS = re.compile(rf"(?:{_TEXT.pattern}){{2,}}")
_NAMES = re.compile(r' xmlns(?::xlink)?="[^"]*"| version="1.1"| role="[^"]*"| aria-[a-z]+="[^"]*"| opacity="1"')


def compact_svg(svg: str, identifier: str) -> str:
    """The same picture in fewer bytes, hidden from screen readers. ``identifier`` is unique within the page."""
    svg = _NAMES.sub("", svg)
    svg = re.sub(r"-?\d+\.\d{2,}", lambda match: f"{float(match[0]):.1f}", svg)
    svg = re.sub(r'<path class="(?:background|foreground)"[^>]*>(?:</path>)?', "", svg)
    svg = re.sub(r' class="[^"]*"| pointer-events="none"', "", svg)
    svg = _LINES.sub(_merge_lines, svg)
    svg = _TEXTS.sub(_merge_texts, svg)
    counter = itertools.count()
    svg = _MARKS.sub(lambda match: _merge_marks(match[0], f"{identifier}-{next(counter)}"), svg)
    svg = re.sub(r"<g></g>", "", svg)
    return re.sub(r"^<svg ", '<svg aria-hidden="true" focusable="false" ', svg)


def _merge_marks(text: str, identifier: str) -> str:
    parts = []
    marks = _MARK.findall(text)
    for number, ((shape, rest), group) in enumerate(itertools.groupby(marks, key=lambda mark: (mark[1], mark[2]))):
        name = f"{identifier}-{number}"
        uses = "".join('<use href="#{}" x="{}" y="{}"/>'.format(name, *place.split(",")) for place, *_ in group)
        parts.append(f'<defs><path id="{name}" d="{shape}"/></defs><g{rest}>{uses}</g>')
    return "".join(parts)


def _merge_lines(match: re.Match[str]) -> str:
    parts = []
    for rest, group in itertools.groupby(_LINE.findall(match[0]), key=lambda line: line[3]):
        moves = "".join(f"M{place}l{x},{y}" for place, x, y, _ in group)
        parts.append(f'<path d="{moves}" fill="none"{rest}/>')
    return "".join(parts)


def _merge_texts(match: re.Match[str]) -> str:
    parts = []
    for (anchor, rest), group in itertools.groupby(_TEXT.findall(match[0]), key=lambda text: (text[0], text[2])):
        texts = "".join(
            '<text x="{}" y="{}">{}</text>'.format(*place.split(","), content) for _, place, _, content in group
        )
        parts.append(f'<g text-anchor="{anchor}"{rest}>{texts}</g>')
    return "".join(parts)


SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
MOST_POINTS = 150
"""Iterations drawn for one cell; of more, evenly spaced quantiles stand for all."""
MOST_INSTANCES = 100
STATIC_WIDTH = 460
STATIC_PHASE_WIDTH = 900
LEVEL = "Level"
"""The caption of a picture of the values themselves, where there is a second picture."""

_LANE_ITERATION, _LANE_INSTANCE, _LANE_INTERVAL = 0.45, -0.1, -0.6
_ROW_HEIGHT = 50
_WIDEST = 20.0
"""An interval this many times as wide as all points together is not drawn."""


Rows = list[dict[str, Any]]


class Chart(msgspec.Struct, frozen=True):
    """A chart in both forms. ``spec`` is Vega-Lite for the browser, ``svg`` the same picture without script."""

    spec: dict[str, Any]
    svg: str


class Scale(msgspec.Struct, frozen=True):
    """How values are shown on an axis: divided by ``factor`` and called ``unit``."""

    factor: float
    unit: str


_STEPS: Mapping[Unit, tuple[tuple[float, str], ...]] = {
    Unit.SECOND: ((1.0, "seconds"), (1e-3, "milliseconds"), (1e-6, "microseconds"), (1e-9, "nanoseconds")),
    Unit.BYTE: ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "bytes")),
    Unit.BYTES_PER_SECOND: ((2.0**30, "GiB/s"), (2.0**20, "MiB/s"), (2.0**10, "KiB/s"), (1.0, "bytes/s")),
    Unit.OPERATIONS_PER_SECOND: ((1e6, "million per second"), (1e3, "thousand per second"), (1.0, "per second")),
    Unit.SHARE: ((0.01, "%"),),
    Unit.CPU: ((1.0, "CPUs"), (1e-3, "thousandths of a CPU")),
    Unit.RATIO: ((1.0, "ratio"),),
    Unit.COUNT: ((1.0, "count"),),
}


def accent(place: int) -> str:
    """The colour of the backend at ``place``, as the page defines it."""
    return f"var(--backend-{place % len(SHAPES)})"


def display_scale(unit: Unit, typical: float) -> Scale:
    """The prefix in which a typical value is easy to read."""
    steps, size = _STEPS[unit], abs(typical)
    factor, name = next((step for step in steps if size >= step[0]), steps[-1] if size > 0 else steps[0])
    return Scale(factor, name)


def _distribution(row: Row, x: "alt.X", divisors: list[float], unit: str, identifier: str) -> Chart:
    import altair as alt

    labels = [short_label(cell.backend) for cell in row.cells]
    y = alt.Y("b:N", sort=labels, title=None, axis=alt.Axis(labelLimit=110, ticks=False, domain=False, labelPadding=8))
    position: dict[str, Any] = {"x": x, "y": y, "yOffset": alt.YOffset("o:Q", scale=alt.Scale(domain=[-1, 1]))}
    look = look_of([cell.backend for cell in row.cells])
    tooltip = [alt.Tooltip("b:N", title="backend"), alt.Tooltip("n:N", title="instance")]
    tooltip.append(alt.Tooltip("v:Q", title=unit))
    light: dict[str, Any] = {"filled": True, "size": 16, "opacity": 0.32, "aria": False}
    strong: dict[str, Any] = {"filled": True, "size": 62, "opacity": 0.95, "stroke": "var(--paper)", "aria": False}
    line: dict[str, Any] = {"color": "var(--ink)", "aria": False}
    layers = {
        "iterations": named("iterations").mark_point(**light).encode(**position, **look),
        "instances": named("instances")
        .mark_point(**strong, strokeWidth=0.8)
        .encode(**position, **look, tooltip=tooltip),
        "intervals": named("intervals").mark_rule(**line, strokeWidth=2).encode(**position, x2="h:Q"),
        "centres": named("centres").mark_tick(**line, thickness=2, height=11).encode(**position),
    }
    data = _distribution_data(row, labels, divisors)
    drawn = alt.layer(*(layer for name, layer in layers.items() if data[name]))
    # The page's script takes rows out and needs to know how high one is.
    chart = drawn.properties(width="container", height=_ROW_HEIGHT * len(labels), usermeta={"row": _ROW_HEIGHT})
    return finished(chart, {name: rows for name, rows in data.items() if rows}, identifier)


class PartsBar(msgspec.Struct, frozen=True):
    """A whole drawn as a bar of its parts: each with its size in words and in base units.

    ``what`` was measured on the backend; ``name`` is unique in the page.
    """

    backend: MeasuredBackend
    what: str
    total: str
    words: str
    name: str
    chart: Chart
    parts: list[tuple[str, str, float]]


def parts_bar(
    backend: MeasuredBackend,
    parts: list[tuple[str, float]],
    unit: Unit,
    strengths: Mapping[str, float],
    name: str,
    *,
    words: str = "",
    what: str = "",
) -> PartsBar:
    """A bar of ``parts`` (names with sizes in ``unit``), each in its strength; without ``words``, they are listed."""
    import altair as alt

    total = sum(size for _, size in parts)
    shown = [(part, format_value(size, unit), size) for part, size in parts]
    scale = display_scale(unit, total)
    rows, start = [], 0.0
    for part, text, size in shown:
        end = start + size / scale.factor
        rows.append({"p": part, "s": start, "e": end, "v": text})
        start = end
    bars = named("parts").mark_bar(height=22, color=accent(backend.place), aria=False)
    chart = bars.encode(
        x=alt.X("s:Q", title=scale.unit, axis=alt.Axis(tickCount=6, grid=True), scale=alt.Scale(nice=True, zero=True)),
        x2="e:Q",
        opacity=alt.Opacity(
            "p:O",
            legend=None,
            # Stated, because the default scale of an opacity spreads the names evenly between two ends.
            scale=alt.Scale(type="ordinal", domain=list(strengths), range=list(strengths.values())),
        ),
        tooltip=[alt.Tooltip("p:N", title="part"), alt.Tooltip("v:N", title="size")],
    ).properties(width="container", height=30)
    drawn = finished(chart, {"parts": rows}, name, width=STATIC_PHASE_WIDTH)
    words = words or ", ".join(f"{part} {text}" for part, text, _ in shown)
    return PartsBar(backend, what, format_value(total, unit), words, name, drawn, shown)


def look_of(backends: list[MeasuredBackend], *, named_above: bool = False) -> dict[str, Any]:
    """Colour and shape by backend, the same in every chart; with a legend where no axis names the backends."""
    import altair as alt

    legend = alt.Legend(orient="top", title=None, symbolOpacity=1) if named_above else None
    labels = [short_label(backend) for backend in backends]
    colours = [accent(backend.place) for backend in backends]
    shapes = [SHAPES[backend.place % len(SHAPES)] for backend in backends]
    return {
        "color": alt.Color("b:N", legend=legend, scale=alt.Scale(domain=labels, range=colours)),
        "shape": alt.Shape("b:N", legend=legend, scale=alt.Scale(domain=labels, range=shapes)),
    }


def short_label(backend: MeasuredBackend) -> str:
    """A backend's label as an axis can hold it: one line, at most 40 characters."""
    return one_line(backend.label, 40)


def _distribution_data(row: Row, labels: list[str], divisors: list[float]) -> dict[str, Rows]:
    """The rows of each layer: ``b`` backend, ``v`` value, ``o`` lane, ``n`` instance, ``h`` upper bound."""
    data: dict[str, Rows] = {"iterations": [], "instances": [], "intervals": [], "centres": []}
    for cell, label, divisor in zip(row.cells, labels, divisors, strict=True):
        iterations, instances = _thinned(cell, divisor)
        if cell.n_iterations > cell.n_instances:
            data["iterations"].extend(
                {"b": label, "v": value, "o": _jitter(place, _LANE_ITERATION)} for place, value in enumerate(iterations)
            )
        data["instances"].extend(
            {"b": label, "v": value, "o": _jitter(place, _LANE_INSTANCE), "n": name}
            for place, (name, value) in enumerate(instances)
        )
        lane = {"b": label, "o": _LANE_INTERVAL}
        data["centres"].append({**lane, "v": rounded(cell.estimate.centre / divisor)})
        if ends := _shown_ends(cell):
            low, high = (rounded(end / divisor) for end in ends)
            data["intervals"].append({**lane, "v": low, "h": high})
    # Beside the interval of two blocks that differ all points would look like one; the table has it.
    drawn = [row["v"] for name in ("iterations", "instances", "centres") for row in data[name]]
    most = _WIDEST * (max(drawn) - min(drawn))
    data["intervals"] = [row for row in data["intervals"] if not most or row["h"] - row["v"] <= most]
    return data


def _shown_ends(cell: CellResult) -> tuple[float, float] | None:
    """Both ends of a cell's interval, unless it is so wide that nothing else could be seen beside it."""
    low, high = cell.estimate.low, cell.estimate.high
    return None if low is None or high is None or says_nothing(low, high) else (low, high)


def named(dataset: str) -> "alt.Chart":
    """A chart of the rows that stand under this name in the finished chart's data."""
    import altair as alt

    return alt.Chart(alt.NamedData(name=dataset))


def _better(metric: Metric) -> str:
    return "← better" if metric.direction is Direction.LOWER else "better →"


def _thinned(cell: CellResult, divisor: float) -> tuple[list[float], list[tuple[str, float]]]:
    """At most as many iterations and instances as the eye can separate, as quantiles of all of them."""
    import numpy as np

    iterations = np.asarray(cell.points.iterations, dtype=float)
    if len(iterations) > MOST_POINTS:
        iterations = np.quantile(iterations, np.linspace(0, 1, MOST_POINTS))
    instances = list(zip(cell.points.instance_names, np.asarray(cell.points.instance_medians).tolist(), strict=True))
    if len(instances) > MOST_INSTANCES:
        instances.sort(key=lambda entry: entry[1])
        chosen = np.linspace(0, len(instances) - 1, MOST_INSTANCES).round().astype(int)
        instances = [instances[index] for index in chosen]
    shown = [rounded(value / divisor) for value in iterations.tolist()]
    return shown, [(one_line(name, 60), rounded(value / divisor)) for name, value in instances]


def _jitter(place: int, lane: float) -> float:
    """A fixed scatter around a lane (golden ratio), so that equal values do not hide one another."""
    return round(lane + 0.2 * ((place * 0.618034) % 1 - 0.5), 3)


def rounded(value: float) -> float:
    """Five significant digits: more than a picture shows."""
    return float(f"{value:.5g}")


def finished(chart: Any, data: dict[str, Rows], identifier: str, *, width: int = STATIC_WIDTH - 110) -> Chart:
    """Both forms of a chart whose rows are ``data``; ``width`` is the still picture's plot, in pixels."""
    # The tests validate each kind of chart against the schema; doing it for every chart would cost 0.3 s a time.
    spec: dict[str, Any] = chart.to_dict(validate=False)
    del spec["$schema"]  # an address: the page names no host
    spec.pop("config", None)
    spec["datasets"] = data
    still = still_of({**spec, "config": chart_config(), "width": width})
    return Chart(spec, compact_svg(still, identifier))


def chart_config() -> dict[str, Any]:
    """How all charts look: Vega-Lite's ``config``, once for the page."""
    text = {"labelColor": "var(--quiet)", "titleColor": "var(--quiet)", "labelFontSize": 12, "titleFontSize": 12}
    axis = {**text, "titleFontWeight": "normal", "gridColor": "var(--hairline)", "domainColor": "var(--rule)"}
    return {
        "background": "transparent",
        "font": "inherit",
        "view": {"stroke": None},
        "axis": {**axis, "tickColor": "var(--rule)", "titlePadding": 8},
        "axisY": {"labelColor": "var(--ink)", "grid": False},
        "legend": {"labelColor": "var(--ink)", "labelFontSize": 12, "symbolSize": 50},
        "aria": False,
    }
