"""The sentences and words of a report, the same in page, terminal and JSON."""

import math
import re

from tare.bench.analysis import Analysis, CellResult, MeasuredBackend, Row, Subject
from tare.bench.catalogue import BootMetric, SteadyMetric
from tare.bench.model import Category, Direction, Metric
from tare.bench.network_path import ServerPlace, find_path
from tare.bench.readable import one_line
from tare.bench.records import Manifest
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.bench.stats.noise import NoiseSource
from tare.bench.units import Unit, format_value

_WIDE = 0.1
"""An interval this wide, relative to its centre, supports two digits."""
_NOTHING = 10_000.0
_TOO_WIDE = "too wide to state"
_NUMBER = re.compile(r"-?[\d,]+(?:\.\d+)?")
_COST = (Unit.BYTE, Unit.COUNT, Unit.RATIO, Unit.SHARE, Unit.CPU)
_MARKS = {"faster": "↑", "slower": "↓", "more": "↑", "less": "↓", "better": "↑", "worse": "↓", "equivalent": "="}


def format_estimate(centre: float, low: float | None, high: float | None, unit: Unit) -> str:
    """A value with its unit, in as many digits as its interval supports: three, or two where it is 10 % wide."""
    return _supported(format_value(centre, unit), centre, low, high)


def format_ratio_estimate(found: Comparison | None) -> str:
    """The ratio of a comparison in as many digits as its interval supports; a dash where there is none."""
    if found is None or found.ratio is None:
        return format_ratio(None)
    return _supported(format_ratio(found.ratio), found.ratio, found.low, found.high)


def format_ratio(ratio: float | None) -> str:
    """A ratio with three significant digits and ×: ``8.84×``, ``1,230×``, ``0.0123×``."""
    if ratio is None or not math.isfinite(ratio):
        return "–"
    return f"{ratio:,.0f}×" if ratio >= 100 else f"{_three_digits(ratio)}×"


def format_range(low: float | None, high: float | None) -> str:
    """An interval of ratios: ``8.69–8.98×``; a dash where there is none."""
    if low is None or high is None:
        return "–"
    if says_nothing(low, high):
        return _TOO_WIDE
    return f"{format_ratio(low).removesuffix('×')}–{format_ratio(high)}"


def format_value_range(low: float | None, high: float | None, unit: Unit) -> str:
    """An interval of values, each with its unit; empty where there is none."""
    if low is None or high is None:
        return ""
    if says_nothing(low, high):
        return _TOO_WIDE
    return f"{format_value(low, unit)} – {format_value(high, unit)}"


def says_nothing(low: float, high: float) -> bool:
    """Whether an interval is so wide that its ends are of no use to anybody, as those of two blocks may be."""
    return low > 0 and high > low * _NOTHING


def percent(margin: float) -> str:
    """A margin for people: ``2 %``."""
    return f"{margin * 100:g} %"


def metric_name(title: str, params: str, metric: str) -> str:
    """A metric with what it is of: ``fio read.iops (block_size 4KiB)``; ``boot.total`` needs no ``boot`` before it."""
    opening = "" if metric.startswith(f"{title}.") else f"{title} "
    return f"{opening}{metric}{f' ({params})' if params else ''}"


def verdict_word(metric: Metric, verdict: Verdict) -> str:
    """The word for a verdict on this metric: what is a cost is less or more, not faster or slower."""
    if verdict not in (Verdict.FASTER, Verdict.SLOWER) or not is_cost(metric):
        return str(verdict)
    words = ("less", "more") if metric.direction is Direction.LOWER else ("better", "worse")
    return words[verdict is Verdict.SLOWER]


def verdict_mark(word: str) -> str:
    """A sign beside a verdict's word; none for what is inconclusive."""
    return _MARKS.get(word, "")


def is_cost(metric: Metric) -> bool:
    """Whether a metric counts what is used, not how long or how fast."""
    return metric.unit in _COST or metric.name in (SteadyMetric.CPU, BootMetric.CPU)


def direction_words(metric: Metric) -> str:
    """Which way is better."""
    return "lower is better" if metric.direction is Direction.LOWER else "higher is better"


def as_large(metric: Metric) -> str:
    """The words that follow a ratio of this metric: 8.8× *as long*."""
    if is_cost(metric):
        return "as much"
    return "as long" if metric.unit is Unit.SECOND else "the rate"


def describe(metric: Metric) -> str:
    """The metric's description without its full stop."""
    return metric.description.rstrip(". ")


def comparison_sentence(row: Row, cell: CellResult, baseline: str) -> str:
    """What one comparison says, in one sentence without its full stop."""
    found = cell.comparison
    label = cell.backend.label
    if found is None:
        return f"{label} is what the others are compared with"
    if found.ratio is None:
        return f"{label}: no ratio to {baseline} ({found.note.removesuffix(': no ratio')})"
    size = f"{format_ratio_estimate(found)} {as_large(row.metric)} as {baseline}".replace("rate as", "rate of")
    if found.low is None:
        which = "in the only block" if found.n_blocks == 1 else f"in {found.n_blocks} blocks with the same reading"
        return f"{label}: {size} {which} (no interval, no verdict)"
    interval = f"{percent(found.level)} interval {format_range(found.low, found.high)}"
    match found.verdict:
        case Verdict.EQUIVALENT:
            return f"{label} is equivalent to {baseline} within {percent(found.margin)} ({interval})"
        case Verdict.INCONCLUSIVE:
            return f"{label}: inconclusive, {size} ({interval})"
        case _:
            return f"{label}: {size} ({interval}), {verdict_word(row.metric, found.verdict)}"


def figure_sentence(row: Row, baseline: str | None) -> str:
    """The sentence that a chart supports, and its text alternative."""
    if all(cell.estimate.centre == 0 for cell in row.cells):
        return "0 on every backend." if len(row.cells) > 1 else f"0 on {row.cells[0].backend.label}."
    compared = [cell for cell in row.cells if cell.comparison is not None]
    if baseline is None or not compared:
        values = "; ".join(_value_words(cell, row) for cell in row.cells)
        return f"{values}. Not compared: the baseline was not measured." if baseline is None else f"{values}."
    return "; ".join(comparison_sentence(row, cell, baseline) for cell in compared) + "."


def _value_words(cell: CellResult, row: Row) -> str:
    found, unit = cell.estimate, row.metric.unit
    interval = f" (95 % interval {format_value_range(found.low, found.high, unit)})" if found.low is not None else ""
    return f"{cell.backend.label}: {format_estimate(found.centre, found.low, found.high, unit)}{interval}"


def noise_sentence(analysis: Analysis) -> str:
    """What the baseline against itself says of this run; empty where there is nothing to say."""
    noise = analysis.noise
    if noise is None or analysis.baseline is None:
        return ""
    how = "a second set of instances" if noise.source is NoiseSource.TWIN else "its own blocks, split at random"
    opening = f"This run compared {analysis.baseline.label} with {how}"
    if noise.detectable is None:
        return f"{opening}: too few blocks to say how small a difference this run could have shown."
    where = one_line(" ".join(part for part in noise.worst or () if part), 80)
    smallest = f"{opening}: the smallest difference it could show is {_excess(noise.detectable)}"
    if noise.leading == 1:
        sentence = f"{smallest} in {where}, the only leading metric with enough blocks"
    else:
        sentence = f"{smallest} in a typical leading metric"
        if noise.detectable_worst is not None:
            sentence += f", {_excess(noise.detectable_worst)} in the noisiest ({where})"
    if noise.tested == 0:
        return f"{sentence}."
    alarms = len(noise.false_alarms)
    said = "none of" if alarms == 0 else f"{alarms} of"
    return f"{sentence}; {said} {plural(noise.tested, 'metric')} came out as different from itself."


def _excess(ratio: float) -> str:
    """How far a ratio above 1 is from it, for people: ``3.1 %``, and as a factor from 2."""
    return format_ratio(ratio) if ratio >= 2 else f"{float(f'{(ratio - 1) * 100:.2g}'):g} %"


def plural(count: int, one: str) -> str:
    """A count with its noun: ``1 instance``, ``3 instances``."""
    return f"{count:,} {one if count == 1 else one + 's'}"


def _supported(text: str, centre: float, low: float | None, high: float | None) -> str:
    if low is None or high is None or high - low < _WIDE * abs(centre) or " min " in text:
        return text
    number = _NUMBER.match(text)
    if number is None:
        return text
    value = float(f"{float(number[0].replace(',', '')):.1e}")
    decimals = max(0, 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{decimals}f}{text[number.end() :]}"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def listed(parts: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""


_OPTION = "server"


def path_sentence(subject: Subject, manifest: Manifest, backends: list[MeasuredBackend]) -> str:
    """The path on each backend; empty where the subject has no server, or the run is older than such facts.

    A subject has a server if it has the option ``server``, or is of the network category.
    """
    traits = manifest.workloads.get(subject.workload)
    in_section = traits is not None and traits.category is Category.NETWORK
    if not subject.traits.of_workload or not (in_section or _OPTION in subject.params):
        return ""
    place = str(subject.params.get(_OPTION, ServerPlace.SAME_INSTANCE.value))
    known = [(one.label, manifest.backends[one.name]) for one in backends if one.name in manifest.backends]
    paths = [(label, path) for label, described in known if (path := find_path(described.texts, place)) is not None]
    told = "; ".join(f"{one_line(label)}: {one_line(path, 200)}" for label, path in paths)
    return f"Path to the server ({one_line(place)}): {told}." if told else ""
