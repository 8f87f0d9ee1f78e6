"""One line of a report's tables: a metric on a backend, in words."""

import re
from collections.abc import Iterable, Iterator

import msgspec

from tare.bench.analysis import CellResult, MeasuredBackend, Row, Subject
from tare.bench.catalogue import SteadyMetric
from tare.bench.stats import Comparison, Verdict
from tare.bench.units import Unit
from tare.reports.wording import (
    format_estimate,
    format_range,
    format_ratio_estimate,
    format_value_range,
    is_cost,
    plural,
    verdict_mark,
    verdict_word,
)

FEWEST_BEYOND = 10
"""A percentile with fewer operations beyond it is decided by few of them."""

_PERCENTILE = re.compile(r"\.p(?P<percent>\d{2}(?:\.\d+)?)$", re.ASCII)


class CellView(msgspec.Struct, frozen=True):
    """One line of a table: a metric on a backend."""

    backend: MeasuredBackend
    estimate: float
    unit: str
    value: str
    value_range: str
    found: list[float | None]
    ratio: str
    ratio_range: str
    verdict: str
    word: str
    mark: str
    note: str
    counts: str
    comparison: Comparison | None


def cell_view(subject: Subject, row: Row, cell: CellResult) -> CellView:
    """A cell in words, with what has to be said beside its verdict."""
    found, unit = cell.comparison, row.metric.unit
    counts = (
        f"{plural(cell.n_blocks, 'block')}, {plural(cell.n_instances, 'instance')}, "
        f"{plural(cell.n_iterations, 'value')}"
    )
    # A ratio without a verdict says why instead; the baseline has neither.
    has_verdict = found is not None and found.low is not None
    verdict = found.verdict if found is not None and has_verdict else Verdict.INCONCLUSIVE
    word = verdict_word(row.metric, verdict) if has_verdict else ""
    own = cell.estimate
    return CellView(
        backend=cell.backend,
        estimate=own.centre,
        unit=str(unit),
        value=format_estimate(own.centre, own.low, own.high, unit),
        value_range=format_value_range(own.low, own.high, unit),
        found=[None] * 3 if found is None else [found.ratio, found.low, found.high],
        ratio="1×" if cell.backend.is_baseline and own.centre else format_ratio_estimate(found),
        ratio_range=format_range(found.low, found.high) if found is not None else "",
        verdict=_style(row, verdict) if has_verdict else "none",
        word=word,
        mark=verdict_mark(word),
        note="; ".join(_notes(subject, row, cell)),
        counts=counts,
        comparison=found,
    )


def _style(row: Row, verdict: Verdict) -> str:
    """The class of a verdict. What is used up has no good side: an instance that reads less may just be slower."""
    differs = verdict in (Verdict.FASTER, Verdict.SLOWER)
    return "differs" if differs and is_cost(row.metric) else str(verdict)


def _notes(subject: Subject, row: Row, cell: CellResult) -> Iterator[str]:
    """Why a line of a table has no verdict, or one to be taken with care."""
    found = cell.comparison
    if found is None:
        if not cell.backend.is_baseline:
            yield "nothing to compare with"
    elif found.verdict is not found.verdict_adjusted:
        yield "not after correction for many comparisons"
    elif found.note:
        yield found.note
    beyond = operations_beyond(subject, row, cell.backend)
    if beyond is not None and beyond < FEWEST_BEYOND:
        yield f"decided by {plural(max(1, round(beyond)), 'operation')} an iteration"


def operations_beyond(subject: Subject, row: Row, backend: MeasuredBackend) -> float | None:
    """How many operations of an iteration lay beyond a percentile, by the rate beside it; None if it is none."""
    match = _PERCENTILE.search(row.metric.name)
    if match is None:
        return None
    prefix = row.metric.name.partition(".")[0]
    rates = [one for one in subject.rows if one.metric.unit is Unit.OPERATIONS_PER_SECOND]
    rates.sort(key=lambda one: not one.metric.name.startswith(f"{prefix}."))
    durations = [one for one in subject.rows if one.metric.name == SteadyMetric.DURATION]
    rate, duration = (_centre_on(backend, rows) for rows in (rates[:1], durations))
    if rate is None or duration is None:
        return None
    return rate * duration * (1 - float(match["percent"]) / 100)


def _centre_on(backend: MeasuredBackend, rows: Iterable[Row]) -> float | None:
    return next((cell.estimate.centre for row in rows for cell in row.cells if cell.backend == backend), None)
