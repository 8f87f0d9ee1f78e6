"""Points against the number of instances, with the fit through them and its band."""

from typing import TYPE_CHECKING, Any

import msgspec

from tare.bench.analysis import MeasuredBackend
from tare.bench.units import Unit
from tare.reports.charts import MOST_POINTS, SHAPES, Chart, accent, display_scale, finished, named, rounded, short_label

if TYPE_CHECKING:
    import altair as alt

_HEIGHT = 180


class Curve(msgspec.Struct, frozen=True):
    """What is drawn: (population, value), the fit's line, and its band as (population, low, high); in ``unit``."""

    points: list[tuple[float, float]]
    line: list[tuple[float, float]]
    band: list[tuple[float, float, float]] | None
    unit: Unit


def curve_chart(curve: Curve, backend: MeasuredBackend, identifier: str) -> Chart:
    """A curve of one backend, on an axis of its own."""
    import altair as alt

    scale = display_scale(curve.unit, max((abs(value) for _, value in curve.points), default=0.0))
    label, colour = short_label(backend), accent(backend.place)
    x = alt.X(
        "x:Q",
        title="instances",
        scale=alt.Scale(nice=False),
        axis=alt.Axis(format=",d", grid=False, tickCount=6, tickMinStep=1),
    )
    y = _y(scale.unit)
    data: dict[str, list[dict[str, Any]]] = {
        "points": [
            {"b": label, "x": n, "v": rounded(value / scale.factor)} for n, value in curve.points[:: _step(curve)]
        ],
        "fit": [{"b": label, "x": n, "v": rounded(value / scale.factor)} for n, value in curve.line],
        "band": [
            {"b": label, "x": n, "v": rounded(low / scale.factor), "h": rounded(high / scale.factor)}
            for n, low, high in curve.band or []
        ],
    }
    tooltip = [alt.Tooltip("x:Q", title="instances"), alt.Tooltip("v:Q", title=scale.unit)]
    mark: dict[str, Any] = {"filled": True, "size": 26, "opacity": 0.6, "aria": False}
    layers = {
        "band": named("band").mark_area(color=colour, opacity=0.16, clip=True, aria=False).encode(x=x, y=y, y2="h:Q"),
        "points": named("points")
        .mark_point(**mark, color=colour, shape=SHAPES[backend.place % len(SHAPES)])
        .encode(x=x, y=y, tooltip=tooltip),
        "fit": named("fit").mark_line(color="var(--ink)", strokeWidth=1.5, aria=False).encode(x=x, y=y),
    }
    drawn = alt.layer(*(layer for name, layer in layers.items() if data[name]))
    chart = drawn.properties(width="container", height=_HEIGHT)
    return finished(chart, {name: rows for name, rows in data.items() if rows}, identifier)


def _y(title: str) -> "alt.Y":
    import altair as alt

    return alt.Y("v:Q", title=title, scale=alt.Scale(zero=True, nice=True), axis=alt.Axis(tickCount=5, format=",.6~r"))


def _step(curve: Curve) -> int:
    return max(1, -(-len(curve.points) // MOST_POINTS))
