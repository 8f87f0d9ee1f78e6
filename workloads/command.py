"""Workloads that a suite makes of any command: ``[[workload]] command = [...]``, its metrics read as the suite says.

In the command, in the other commands and in their environment and standard input, ``@NAME@`` stands for a parameter of
the workload, and ``@cpus@``, ``@memory_bytes@``, ``@scratch_bytes@`` for the envelope's. ``@server@`` is the address of
the workload's services. A metric is read by a regular expression, a JMESPath expression
(https://jmespath.org/specification.html) over the output as JSON, or the command's own duration. What is not found,
found too often, or no number that can be measured is a ParseError.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import msgspec
from msgspec import Meta

from tare.bench.catalogue import HARNESS_METRICS
from tare.bench.errors import ParseError
from tare.bench.interfaces import Workload, WorkloadKind, WorkloadSection
from tare.bench.model import SERVER, Command, Commands, Completed, Direction, Envelope, Measurement, Metric, Service
from tare.bench.units import Duration, Scale, Unit, parse_unit
from tare.workloads.output import excerpt, read_output

ENVELOPE = ("cpus", "memory_bytes", "scratch_bytes")
"""Placeholders that the envelope fills in."""

_PARAMETER = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)

Argv = Annotated[tuple[str, ...], Meta(min_length=1)]


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
    title: str = ""
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
        return Metric(self.name, self.scale.unit, self.direction, self.description, self.title)

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


class ServiceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[workload.service]]``: a program that the command talks to; ``ready`` ends with 0 once it answers."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=40)]
    command: Argv
    ready: Argv


class CommandSection(WorkloadSection, frozen=True, kw_only=True):
    """The keys of a ``[[workload]]`` made of a command.

    ``setup``, ``load`` and ``teardown`` are lists of commands; ``timeout`` bounds each command. ``output`` is where the
    metrics are read. ``params`` are the workload's parameters with their defaults, which also say their types.
    """

    command: Argv
    metric: Annotated[tuple[StatedMetric, ...], Meta(min_length=1)]
    setup: tuple[Argv, ...] = ()
    load: tuple[Argv, ...] = ()
    teardown: tuple[Argv, ...] = ()
    service: tuple[ServiceSection, ...] = ()
    env: Mapping[str, str] = {}
    cwd: str = "/"
    stdin: str = ""
    timeout: Duration = Duration("60s")
    output: Literal["stdout", "stderr"] = "stdout"
    params: Mapping[str, bool | int | float | str] = {}
    fixed_time: bool = False

    def __post_init__(self) -> None:
        _refuse_twice("metric", [metric.name for metric in self.metric])
        _refuse_twice("service", [service.name for service in self.service])
        if not self.cwd.startswith("/"):
            raise ValueError(f"cwd: {self.cwd!r} is not an absolute path")
        for name in self.params:
            self._check_parameter(name)

    def _check_parameter(self, name: str) -> None:
        if not _PARAMETER.fullmatch(name):
            raise ValueError(f"params: {name!r} cannot be a name; write lower-case letters, digits and _")
        if name in (*ENVELOPE, SERVER.strip("@")):
            raise ValueError(f"params: {name} has a meaning of its own; choose another name")
        if not any(f"@{name}@" in text for text in self.texts()):
            raise ValueError(f"params: {name} is used nowhere; write @{name}@ where it belongs in a command")

    def texts(self) -> Iterator[str]:
        """Every text in which a placeholder is replaced."""
        for argv in (self.command, *self.setup, *self.load, *self.teardown):
            yield from argv
        for service in self.service:
            yield from (*service.command, *service.ready)
        yield from (*self.env.values(), self.stdin)


class CommandKind(WorkloadKind):
    """``command = [...]``: any program of the image."""

    name = "command"
    summary = "any command, with metrics by regular expression, JSON path or the time it takes"
    Section = CommandSection

    def make(self, section: CommandSection) -> type[Workload]:
        """A class of its own for each section."""
        return type(
            "CommandWorkload",
            (CommandWorkload,),
            {
                "name": section.name,
                "summary": section.summary or " ".join(section.command),
                "metrics": tuple(metric.declared() for metric in section.metric),
                "packages": section.packages,
                "licence": section.licence,
                "category": section.category,
                "title": section.title,
                "fixed_time": section.fixed_time,
                "section": section,
                "Params": msgspec.defstruct(
                    "Params",
                    [(name, type(default), default) for name, default in section.params.items()],
                    frozen=True,
                    forbid_unknown_fields=True,
                ),
            },
        )


class CommandWorkload(Workload):
    """What ``CommandKind`` makes; ``section`` is what the suite states."""

    section: ClassVar[CommandSection]

    def commands(self, params: Any, envelope: Envelope) -> Commands:
        section = self.section
        values = {name: _as_text(value) for name, value in msgspec.structs.asdict(params).items()}
        values |= {
            "cpus": str(len(envelope.cpus)),
            "memory_bytes": str(envelope.memory_bytes),
            "scratch_bytes": str(envelope.scratch_bytes),
        }

        def fill(text: str) -> str:
            return re.sub(r"@([a-z0-9_]+)@", lambda found: values.get(found[1], found[0]), text)

        def command(argv: tuple[str, ...], stdin: str = "") -> Command:
            env = {name: fill(text) for name, text in section.env.items()}
            return Command(tuple(map(fill, argv)), env, section.cwd, fill(stdin).encode(), section.timeout)

        return Commands(
            measured=command(section.command, section.stdin),
            setup=tuple(map(command, section.setup)),
            teardown=tuple(map(command, section.teardown)),
            services=tuple(Service(one.name, command(one.command), command(one.ready)) for one in section.service),
            load=tuple(map(command, section.load)),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        section = self.section
        needs_text = any(not metric.exit_time for metric in section.metric)
        output = Output(section.command[0], completed, self._read(completed) if needs_text else "")
        if not needs_text and (completed.timed_out or completed.returncode != 0):
            raise ParseError(
                f"{section.command[0]} failed, so its duration is not a measurement",
                evidence=excerpt((completed.stdout + completed.stderr).decode(errors="backslashreplace")),
            )
        return [Measurement(metric.name, output.value_of(metric)) for metric in section.metric]

    def _read(self, completed: Completed) -> str:
        if self.section.output == "stderr":
            completed = msgspec.structs.replace(completed, stdout=completed.stderr, stderr=completed.stdout)
        return read_output(self.section.command[0], completed, stream=self.section.output)


def _as_text(value: bool | float | str) -> str:  # noqa: FBT001 - a value of TOML
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_twice(key: str, names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{key}: {twice!r} is defined twice")


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
