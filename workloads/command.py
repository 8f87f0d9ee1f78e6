"""Workloads that a suite makes of any command: ``[[workload]] command = [...]``, its metrics read as the suite says.

In the command, in the other commands and in their environment and standard input, ``@NAME@`` stands for a parameter of
the workload, and ``@cpus@``, ``@memory_bytes@``, ``@scratch_bytes@`` for the envelope's. ``@server@`` is the address of
the workload's services.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from tare.bench.errors import ParseError
from tare.bench.interfaces import Workload, WorkloadKind, WorkloadSection
from tare.bench.model import SERVER, Command, Commands, Completed, Envelope, Measurement, Service
from tare.bench.units import Duration
from tare.workloads.extraction import Output, StatedMetric
from tare.workloads.output import excerpt, read_output

ENVELOPE = ("cpus", "memory_bytes", "scratch_bytes")
"""Placeholders that the envelope fills in."""

_PARAMETER = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)

Argv = Annotated[tuple[str, ...], Meta(min_length=1)]


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
        """The suite's commands with ``params`` and ``envelope`` put in."""
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
        """Each of the suite's metrics, in its base unit."""
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
