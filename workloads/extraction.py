"""Metrics that a suite defines: how to find a number in a command's output, and its unit there.

A regular expression, a JMESPath expression (https://jmespath.org/specification.html) over the output as JSON, or the
command's own duration. What is not found, found too often, or no number that can be measured is a ParseError.
"""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import Meta

from tare.bench.catalogue import HARNESS_METRICS
from tare.bench.errors import ParseError
from tare.bench.model import Completed, Direction, Metric
from tare.bench.units import Scale, Unit, parse_unit
from tare.workloads.output import excerpt

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_MOST_DIGITS = 400
_TAKE: Mapping[str, Callable[[Sequence[float]], float]] = {
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "smallest": min,
    "largest": max,
    "sum": math.fsum,
    "mean": statistics.fmean,
    "median": statistics.median,
}

MetricName = Annotated[str, Meta(pattern=r"^[a-z0-9_]+([.-][a-z0-9_]+)*$", max_length=80)]


class StatedMetric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[workload.metric]]``: what it is called and means, and exactly one way of reading it.

    ``unit`` is the one that the command prints in. ``take`` says what counts where several numbers are found; ``only``
    refuses them. ``may_be_zero`` admits a value that no ratio can be taken to.
    """

    name: MetricName
    direction: Direction
    description: Annotated[str, Meta(min_length=1)]
    unit: str = ""
    regex: str | None = None
    json: str | None = None
    exit_time: bool = False
    take: Literal["only", "first", "last", "smallest", "largest", "sum", "mean", "median"] = "only"
    may_be_zero: bool = False

    def __post_init__(self) -> None:
        if (self.regex is not None) + (self.json is not None) + self.exit_time != 1:
            raise ValueError("regex, json, exit_time: a metric is read in exactly one of these ways")
        if self.name.startswith(HARNESS_METRICS):
            raise ValueError(f"name: {self.name} is one that tare measures itself; choose another beginning")
        self._check_unit()
        if self.regex is not None:
            _check_regex(self.regex)
        if self.json is not None:
            _compile_path(self.json)
        if self.exit_time and self.take != "only":
            raise ValueError("take: there is one duration only")

    @property
    def scale(self) -> Scale:
        """The unit that is printed."""
        return Scale(Unit.SECOND) if self.exit_time else parse_unit(self.unit)

    def declared(self) -> Metric:
        """The metric as a workload declares it, in its base unit."""
        return Metric(self.name, self.scale.unit, self.direction, self.description)

    def _check_unit(self) -> None:
        if self.exit_time:
            if self.unit not in ("", "s"):
                raise ValueError(f"unit: tare measures the time itself, in s, not in {self.unit}")
            return
        if not self.unit:
            raise ValueError("unit: say in which unit the command prints, or '1' for a plain count")
        try:
            parse_unit(self.unit)
        except ValueError as error:
            raise ValueError(f"unit: {error}") from None


class Output:
    """What one command printed; JSON is read at most once, and only if some metric asks for it."""

    def __init__(self, program: str, completed: Completed, text: str) -> None:
        self.program = program
        self.text = text
        self._completed = completed
        self._document: Any = msgspec.UNSET

    def value_of(self, metric: StatedMetric) -> float:
        """The value of ``metric`` in its base unit. Raises ParseError."""
        if metric.exit_time:
            values = [self._number(metric, repr(self._completed.duration_s))]
        elif metric.regex is not None:
            values = [self._number(metric, found) for found in self._matches(metric, metric.regex)]
        else:
            values = [self._number(metric, found) for found in self._at(metric, str(metric.json))]
        if metric.take != "only":
            return _TAKE[metric.take](values)
        if len(values) != 1:
            self._refuse(metric, f"{_how(metric)} finds {len(values)} values where one is expected")
        return values[0]

    def _matches(self, metric: StatedMetric, regex: str) -> list[str]:
        found = [match[1] for match in re.finditer(regex, self.text, re.MULTILINE)]
        if not found:
            self._refuse(metric, f"{_how(metric)} does not match")
        if None in found:
            self._refuse(metric, f"the group of {_how(metric)} is not part of the match")
        return found

    def _at(self, metric: StatedMetric, path: str) -> list[str]:
        from jmespath.exceptions import JMESPathError

        try:
            found = _compile_path(path).search(self._json())
        except (msgspec.DecodeError, RecursionError) as error:
            self._refuse(metric, f"the output is not JSON: {error}")
        except (JMESPathError, TypeError, ArithmeticError) as error:
            self._refuse(metric, f"{_how(metric)} cannot be evaluated: {error}")
        values = found if isinstance(found, list) else [found]
        if not values or None in values:
            self._refuse(metric, f"{_how(metric)} finds nothing")
        return [value if isinstance(value, str) else "true" if value is True else repr(value) for value in values]

    def _json(self) -> Any:
        if self._document is msgspec.UNSET:
            self._document = msgspec.json.decode(self.text)
        return self._document

    def _number(self, metric: StatedMetric, digits: str) -> float:
        """One number in the base unit. Raises ParseError unless it is finite, and more than 0 (or may be 0)."""
        value = math.nan
        text = digits.strip()
        if len(text) <= _MOST_DIGITS and _NUMBER.fullmatch(text):
            try:
                value = metric.scale.to_base(text)
            except ArithmeticError:
                value = math.inf
        if not math.isfinite(value):
            self._refuse(metric, f"{excerpt(digits)!r} is not a number (digits and a decimal point)")
        if value < 0 or (value == 0 and not metric.may_be_zero):
            remedy = None if value < 0 else "if zero is a result, state may_be_zero = true; no ratio is taken to it"
            self._refuse(metric, f"{text} cannot be compared", remedy)
        return value

    def _refuse(self, metric: StatedMetric, problem: str, remedy: str | None = None) -> NoReturn:
        raise ParseError(
            f"{metric.name} cannot be read from what {self.program} printed: {problem}",
            remedy=remedy or "compare the output below with what the suite says of this metric",
            evidence=excerpt(self.text),
        )


def _how(metric: StatedMetric) -> str:
    return f"regex {metric.regex!r}" if metric.regex is not None else f"json {metric.json!r}"


def _check_regex(regex: str) -> None:
    try:
        groups = re.compile(regex, re.MULTILINE).groups
    except re.error as error:
        raise ValueError(f"regex: {regex!r} is not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"regex: {regex!r} needs exactly one group (...), around the number; it has {groups}")


def _compile_path(path: str) -> Any:
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        return jmespath.compile(path)
    except JMESPathError as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"json: {path!r} is not a JMESPath expression: {problem}") from None
