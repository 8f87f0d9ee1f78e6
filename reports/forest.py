"""The small pictures in the table of ratios: an interval a line, on one log axis a subject."""

import math

import msgspec

from tare.bench.analysis import Row
from tare.bench.stats import Comparison, Verdict

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
