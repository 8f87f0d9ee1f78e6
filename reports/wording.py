"""The sentences and words of a report, the same in page, terminal and JSON."""

import math
import re

import msgspec

from tare.bench.analysis import CellResult, MeasuredBackend, Row, Subject
from tare.bench.analysis.answer import Mark
from tare.bench.catalogue import BootMetric, SteadyMetric
from tare.bench.model import Direction, Metric
from tare.bench.network_path import ServerPlace, find_path
from tare.bench.readable import one_line
from tare.bench.records import Manifest
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.bench.traits import Category
from tare.bench.units import Unit, format_value

_WIDE = 0.1
"""An interval this wide, relative to its centre, supports two digits."""
_NOTHING = 10_000.0
_MOST_PERCENT = 10.0
"""An interval that reaches beyond this factor is stated in factors at both ends."""
_TOO_WIDE = "too wide to state"
_NUMBER = re.compile(r"-?[\d,]+(?:\.\d+)?")
_COST = (Unit.BYTE, Unit.COUNT, Unit.RATIO, Unit.SHARE, Unit.CPU)
_MARKS = {"faster": "↑", "slower": "↓", "more": "↑", "less": "↓", "better": "↑", "worse": "↓", "same": "="}


VERDICTS = {
    Verdict.FASTER: "faster",
    Verdict.SLOWER: "slower",
    Verdict.EQUIVALENT: "same",
    Verdict.INCONCLUSIVE: "could not tell",
}
"""What people read for a verdict. *Same*: the whole interval lies within the margin."""


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


def ratio_change(ratio: float) -> str:
    """A ratio without an interval as a difference: ``+4.2 %``, ``−21 %``, ``×3.2``."""
    return _change(ratio, 0 if abs(ratio - 1) >= 0.1 else 1)


def worse_words(metric: Metric, ratio: float) -> str:
    """A ratio that is turned so that more is worse: ``12 % slower``, ``3.2 times as much``, ``no difference``."""
    if ratio_change(ratio) == "0 %":
        return "no difference"
    size = max(ratio, 1 / ratio) if ratio > 0 else math.inf
    words = change_words(msgspec.structs.replace(metric, direction=Direction.LOWER), ratio)
    return words if size >= 2 else f"{ratio_change(ratio).lstrip('+−')} {words.rpartition(' ')[2]}"


def format_change(found: Comparison | None) -> str:
    """A ratio as a difference: ``−21 %``, ``+1.3 %``, from a factor of two on ``×3.2`` or ``÷6.3``; a dash without."""
    if found is None or found.ratio is None:
        return "–"
    return _change(found.ratio, _decimals(found))


def format_change_range(found: Comparison | None) -> str:
    """The interval of a difference: ``−24 to −19 %``; empty where there is none."""
    if found is None or found.low is None or found.high is None:
        return ""
    if says_nothing(found.low, found.high):
        return _TOO_WIDE
    low, high = (_change(end, _decimals(found)) for end in (found.low, found.high))
    if low.endswith("%") is not high.endswith("%"):  # one kind of unit in an interval
        as_one = _factor if max(found.high, 1 / found.low) >= _MOST_PERCENT else _share
        low, high = (as_one(end, _decimals(found)) for end in (found.low, found.high))
    return f"{low.removesuffix(' %') if high.endswith(' %') else low} to {high}"


def why_open(found: Comparison | None) -> str:
    """Why a comparison could not be told though its interval lies on one side of no difference; else empty."""
    if found is None or found.low is None or found.high is None or found.low <= 1 <= found.high:
        return ""
    if found.verdict_adjusted is not Verdict.INCONCLUSIVE:
        return ""
    if found.verdict is not found.verdict_adjusted:
        return "may be chance among all that was compared"
    return f"the difference may be below {percent(found.margin)}"


TENTATIVE = "tentative"


def reservation(found: Comparison | None) -> str:
    """What is to be said next to a verdict: why it is open, or that it is tentative; else empty."""
    return TENTATIVE if found is not None and found.is_tentative else why_open(found)


def change_words(metric: Metric, ratio: float, found: Comparison | None = None) -> str:
    """How a value differs, with its direction: ``21 % slower``, ``3.2 times as much``."""
    size = max(ratio, 1 / ratio) if ratio > 0 else math.inf
    worse = (ratio > 1) == (metric.direction is Direction.LOWER)
    if size >= 2:
        number = _two_digits(size)
        if is_cost(metric):
            return f"{number} times as much" if ratio > 1 else f"{number} times less"
        return f"{number} times {'slower' if worse else 'faster'}"
    number = _change(ratio, 0 if found is None else _decimals(found)).lstrip("+−")
    words = ("more", "less") if is_cost(metric) else ("slower", "faster")
    return f"{number} {words[ratio < 1 if is_cost(metric) else not worse]}"


def metric_change_words(metric: Metric, ratio: float, found: Comparison | None = None) -> str:
    """The same where the metric itself is the subject: a rate is lower or higher, ``21 % lower``."""
    words = change_words(metric, ratio, found)
    if metric.direction is Direction.HIGHER and not is_cost(metric):
        return words.replace("slower", "lower").replace("faster", "higher")
    return words


def longer_words(ratio: float) -> str:
    """How long something takes, compared with alone: ``3.2 times as long``, ``17 % longer``."""
    if ratio >= 2:
        return f"{_two_digits(ratio)} times as long"
    text = _change(ratio, 0).lstrip("+−")
    return "as long" if ratio == 1 or text == "0 %" else f"{text} {'longer' if ratio > 1 else 'shorter'}"


def extra_memory(mark: Mark, base: Mark) -> str:
    """How much more memory one takes than the other: ``240 KiB more``, in as many digits as both intervals support."""
    ends = (mark.low, mark.high, base.low, base.high)
    low, high, base_low, base_high = (0.0, math.inf, 0.0, 0.0) if None in ends else ends
    difference = mark.centre - base.centre
    size = format_estimate(abs(difference), (low or 0) - (base_high or 0), (high or 0) - (base_low or 0), Unit.BYTE)
    return f"{size} {'more' if difference >= 0 else 'less'}"


def format_probability(probability: float) -> str:
    """A probability for people: ``93 %``, ``over 99 %``, ``under 1 %``."""
    if probability > 0.99:
        return "over 99 %"
    return "under 1 %" if probability < 0.01 else f"{100 * probability:.0f} %"


def _decimals(found: Comparison) -> int:
    """As many decimals of a per cent as the interval supports."""
    if found.ratio is None or found.low is None or found.high is None:
        return 0 if found.ratio is None or abs(found.ratio - 1) >= 0.1 else 1
    half = 50 * (found.high - found.low)
    return 0 if half >= 1 else 1 if half >= 0.1 else 2


def _change(ratio: float, decimals: int) -> str:
    if ratio >= 2 or 0 < ratio <= 0.5:
        return _factor(ratio, decimals)
    return _share(ratio, decimals)


def _factor(ratio: float, _: int) -> str:
    return f"×{_two_digits(ratio)}" if ratio >= 1 else f"÷{_two_digits(1 / ratio)}"


def _share(ratio: float, decimals: int) -> str:
    text = f"{100 * abs(ratio - 1):,.{decimals}f}"
    if not text.strip("0."):
        return "0 %"
    return f"{'+' if ratio > 1 else '−'}{text} %"


def _two_digits(value: float) -> str:
    if not math.isfinite(value):
        return "∞"
    rounded = float(f"{value:.1e}")
    return f"{rounded:,.1f}" if rounded < 10 else f"{rounded:,.0f}"


def percent(margin: float) -> str:
    """A margin for people: ``2 %``."""
    return f"{margin * 100:g} %"


def metric_name(title: str, params: str, metric: str) -> str:
    """A metric with what it is of: ``fio read.iops (block_size 4KiB)``; ``boot.total`` needs no ``boot`` before it."""
    opening = "" if metric.startswith(f"{title}.") else f"{title} "
    return f"{opening}{metric}{f' ({params})' if params else ''}"


def verdict_word(metric: Metric, verdict: Verdict) -> str:
    """The word for a verdict on this metric, the same in every form: a cost is less or more, not faster or slower."""
    if verdict not in (Verdict.FASTER, Verdict.SLOWER) or not is_cost(metric):
        return VERDICTS[verdict]
    words = ("less", "more") if metric.direction is Direction.LOWER else ("better", "worse")
    return words[verdict is Verdict.SLOWER]


def verdict_mark(word: str) -> str:
    """A sign beside a verdict's word; none for what is inconclusive."""
    return _MARKS.get(word, "")


def is_cost(metric: Metric) -> bool:
    """Whether a metric counts what is used, not how long or how fast."""
    return metric.unit in _COST or metric.name in (SteadyMetric.CPU, BootMetric.CPU)


DIRECTION_SIGNS = {"↓": "lower is better", "↑": "higher is better"}


def direction_sign(metric: Metric) -> str:
    """Which way is better, as a sign: where rows of both kinds are in one table."""
    return "↓" if metric.direction is Direction.LOWER else "↑"


def direction_words(metric: Metric) -> str:
    """The same in words."""
    return DIRECTION_SIGNS[direction_sign(metric)]


def describe(metric: Metric) -> str:
    """The metric's description without its full stop."""
    return metric.description.rstrip(". ")


def comparison_sentence(row: Row, cell: CellResult, baseline: str) -> str:
    """What one comparison says, in one sentence without its full stop: the same in every form."""
    found = cell.comparison
    label = cell.backend.label
    if found is None:
        return f"{label} is what the others are compared with"
    if found.ratio is None:
        return f"{label}: no ratio to {baseline} ({found.note.removesuffix(': no ratio')})"
    if found.low is None or found.high is None:
        if found.ratio == 1:
            return f"{label} reads the same as {baseline}: no interval, no verdict"
        which = "in the only block" if found.n_blocks == 1 else f"in {found.n_blocks} blocks with the same reading"
        return f"{_compared_words(row.metric, found, label, baseline)} {which}: no interval, no verdict"
    match found.verdict_adjusted:
        case Verdict.EQUIVALENT:
            return f"{label} does the same as {baseline}, within {percent(found.margin)}"
        case Verdict.INCONCLUSIVE:
            return f"{label}: could not tell, {_between(row.metric, found)}"
        case _:
            tentative = f", {TENTATIVE}" if found.is_tentative else ""
            return f"{_compared_words(row.metric, found, label, baseline)} ({format_change_range(found)}){tentative}"


def _compared_words(metric: Metric, found: Comparison, label: str, baseline: str) -> str:
    """``container (tare) is 21 % slower than bare metal``, ``vm (kvm) takes 3.2 times as much as bare metal``."""
    words = change_words(metric, found.ratio or 1.0, found)
    than = "as" if words.endswith("as much") else "than"
    return f"{label} {'takes' if is_cost(metric) else 'is'} {words} {than} {baseline}"


def _between(metric: Metric, found: Comparison) -> str:
    """An interval in words: ``between 18 % slower and 8 % faster``."""
    low, high = found.low or 0.0, found.high or 0.0
    if says_nothing(low, high):
        return "as the interval is too wide to state"
    ends = (change_words(metric, end, found) for end in (low, high))
    return " and ".join(ends).join(("between ", ""))


def result_sentence(name: str, row: Row, baseline: str | None) -> list[str]:
    """What one metric says of each backend that is not fenced, a sentence each."""
    cells = [cell for cell in row.cells if not cell.backend.is_fenced]
    compared = [cell for cell in cells if cell.comparison is not None]
    if all(cell.estimate.centre == 0 for cell in cells):
        return [f"{name}: 0 everywhere."]
    if baseline is None or not compared:
        return [f"{name}: {'; '.join(_value_words(cell, row) for cell in cells)}."]
    return [f"{name}: {comparison_sentence(row, cell, baseline)}." for cell in compared]


def figure_sentence(row: Row, baseline: str | None) -> str:
    """What a metric says of all backends, in one line."""
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
