"""Pictures of a history as SVG: levels above, ratios below, epochs as bands, findings as marks; and sparklines.

What would be more points than a reader can see is aggregated: of each group of nights the median as a line, with the
least and the largest as a band.
"""

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.readable import one_line
from tare.bench.units import Unit, format_value

Floats = NDArray[np.float64]

WIDTH, LEVELS, RATIOS, GAP, LEFT, RIGHT, TOP, BOTTOM = 760, 150, 190, 34, 74, 12, 22, 26
"""Of the picture, in its own units: the height of both panels, what is between them, and the margins."""
MOST_POINTS = 180


class Line(msgspec.Struct, frozen=True):
    """A backend: its colour's place, and logs by night (NaN where there is none)."""

    name: str
    place: int
    levels: Floats
    ratios: Floats


class Epoch(msgspec.Struct, frozen=True):
    """Nights under the same conditions, from ``begin`` to before ``end``; ``name`` is what changed with its first."""

    begin: int
    end: int
    name: str


class Mark(msgspec.Struct, frozen=True):
    """A finding at its first night, on the line of that place."""

    row: int
    place: int
    title: str
    identifier: str


class Picture(msgspec.Struct, frozen=True):
    """One subject over time."""

    nights: tuple[str, ...]
    lines: tuple[Line, ...]
    epochs: tuple[Epoch, ...]
    marks: tuple[Mark, ...]
    unit: str


def draw(picture: Picture) -> str:
    """The picture as SVG, without a title of its own: what shows it names it."""
    n = len(picture.nights)
    height = TOP + LEVELS + GAP + RATIOS + BOTTOM
    parts = [f'<svg class="history" viewBox="0 0 {WIDTH} {height}" aria-hidden="true" focusable="false">']
    parts += _bands(picture, n)
    below = TOP + LEVELS + GAP
    parts += _panel("level", [(one.place, one.levels) for one in picture.lines], TOP, LEVELS, picture.unit, n)
    parts += _panel("ratio to bare metal", [(one.place, one.ratios) for one in picture.lines], below, RATIOS, "", n)
    parts += _dates(picture.nights, height)
    parts += _drawn_marks(picture, below, n)
    return "".join((*parts, "</svg>"))


def _x(row: float, n: int) -> float:
    return LEFT + (row + 0.5) * (WIDTH - LEFT - RIGHT) / max(1, n)


def _bands(picture: Picture, n: int) -> Iterator[str]:
    step = (WIDTH - LEFT - RIGHT) / max(1, n)
    for number, one in enumerate(picture.epochs):
        left, width = LEFT + one.begin * step, (one.end - one.begin) * step
        if number % 2:
            yield (
                f'<rect class="epoch" x="{left:.1f}" y="{TOP - 6}" width="{width:.1f}" '
                f'height="{LEVELS + GAP + RATIOS + 6}"/>'
            )
        if number:
            name = html.escape(one_line(one.name or "conditions changed"))
            shown = name if len(name) < 42 else f"{name[:40]}…"
            side = "end" if left > WIDTH * 0.6 else "start"
            bottom = TOP + LEVELS + GAP + RATIOS
            yield f'<line class="change" x1="{left:.1f}" x2="{left:.1f}" y1="{TOP - 6}" y2="{bottom}"/>'
            yield f'<text class="note" x="{left:.1f}" y="{TOP - 10}" text-anchor="{side}">{shown}</text>'


def _panel(
    name: str, lines: Sequence[tuple[int, Floats]], top: float, height: float, unit: str, n: int
) -> Iterator[str]:
    values = np.concatenate([values[~np.isnan(values)] for _, values in lines]) if lines else np.array([])
    if not len(values):
        yield f'<text class="note" x="{LEFT}" y="{top + height / 2}">no {html.escape(name)} was measured</text>'
        return
    low, high = _range(values)

    def y(log: float) -> float:
        return top + height * (high - min(high, max(low, log))) / (high - low)

    for tick in _ticks(low, high):
        label = format_value(math.exp(tick), Unit(unit)) if unit else f"{math.exp(tick):.3g}×"
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{html.escape(label)}</text>'
    yield f'<text class="panel" x="{LEFT}" y="{top - (10 if unit == "" else -11)}">{html.escape(name)}</text>'
    for place, logs in lines:
        yield from _line(place, logs, y, n)


def _range(values: Floats) -> tuple[float, float]:
    """What a panel spans: everything, but no single night squeezes all others to a line; at least 4 %."""
    low, high = float(values.min()), float(values.max())
    middle = np.quantile(values, (0.02, 0.98))
    spread = max(float(middle[1] - middle[0]), 0.04)
    low, high = max(low, float(middle[0]) - spread), min(high, float(middle[1]) + spread)
    pad = max(0.02, 0.08 * (high - low))
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Three to five logs of round values."""
    first, last = math.exp(low), math.exp(high)
    step = 10 ** math.floor(math.log10((last - first) / 3))
    for factor in (1, 2, 5, 10):
        if (last - first) / (step * factor) <= 5:
            step *= factor
            break
    values = np.arange(math.ceil(first / step), math.floor(last / step) + 1) * step
    return [math.log(value) for value in values.tolist() if value > 0]


def groups_of(n: int, most: int = MOST_POINTS) -> list[tuple[int, int]]:
    """The nights as groups of equal length, one each if there are few."""
    size = max(1, math.ceil(n / most))
    return [(begin, min(n, begin + size)) for begin in range(0, n, size)]


def _line(place: int, logs: Floats, y: Any, n: int) -> Iterator[str]:
    points, upper, lower = [], [], []
    for begin, end in groups_of(n):
        group = logs[begin:end]
        group = group[~np.isnan(group)]
        if len(group):
            x = _x((begin + end - 1) / 2, n)
            points.append(f"{x:.1f},{y(float(np.median(group))):.1f}")
            upper.append(f"{x:.1f},{y(float(group.max())):.1f}")
            lower.append(f"{x:.1f},{y(float(group.min())):.1f}")
    if not points:
        return
    if n > MOST_POINTS:
        yield f'<polygon class="range b{place % 6}" points="{" ".join((*upper, *reversed(lower)))}"/>'
    yield f'<polyline class="line b{place % 6}" points="{" ".join(points)}"/>'
    if n <= 90:
        for point in points:
            across, down = point.split(",")
            yield f'<circle class="dot b{place % 6}" cx="{across}" cy="{down}" r="2"/>'


def _dates(nights: Sequence[str], height: float) -> Iterator[str]:
    n = len(nights)
    for place in sorted({0, n // 2, n - 1}) if n else ():
        side = "start" if place == 0 and n > 1 else "end" if place == n - 1 and n > 1 else "middle"
        yield f'<text class="tick" x="{_x(place, n):.1f}" y="{height - 8}" text-anchor="{side}">{nights[place]}</text>'


def _drawn_marks(picture: Picture, top: float, n: int) -> Iterator[str]:
    for one in picture.marks:
        x = _x(one.row - 0.5, n)
        yield f'<line class="finding" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{top + RATIOS}"/>'
        yield (
            f'<path class="finding b{one.place % 6}" d="M{x:.1f},{top - 2}l5,-9h-10z">'
            f"<title>{html.escape(one_line(one.title))}</title></path>"
        )


def sparkline(logs: Floats, place: int) -> str:
    """A line as small as a word: up to sixty groups of nights."""
    known = logs[~np.isnan(logs)]
    if len(known) < 2:
        return ""
    low, high = _range(known)
    points = []
    for begin, end in groups_of(len(logs), 60):
        group = logs[begin:end]
        if not np.isnan(group).all():
            x = 2 + 116 * (begin + end - 1) / 2 / max(1, len(logs) - 1)
            value = min(high, max(low, float(np.nanmedian(group))))
            points.append(f"{x:.1f},{2 + 20 * (high - value) / (high - low):.1f}")
    last = points[-1].split(",")
    return (
        '<svg class="spark" width="120" height="24" viewBox="0 0 120 24" aria-hidden="true" focusable="false">'
        f'<polyline class="line b{place % 6}" points="{" ".join(points)}"/>'
        f'<circle class="dot b{place % 6}" cx="{last[0]}" cy="{last[1]}" r="2"/></svg>'
    )
