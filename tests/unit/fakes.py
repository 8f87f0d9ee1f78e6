"""Plug-ins for unit tests of the harness: no process is started, every failure can be ordered."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.errors import BackendError, ParseError
from tare.bench.interfaces import Backend, Instance, Workload
from tare.bench.model import (
    Availability,
    BackendDescription,
    Command,
    Commands,
    Completed,
    Direction,
    Envelope,
    Footprint,
    Image,
    InstanceSpec,
    IsolationKind,
    Measurement,
    Metric,
    Phase,
    StartTimeline,
    Usage,
)
from tare.bench.registry import PluginFailure, Plugins
from tare.bench.units import Unit

IMAGE = Image(
    digest="sha256:" + "0" * 64,
    recipe="",
    directory=Path("/nowhere"),
    rootfs=Path("/nowhere/rootfs"),
    disk=None,
    kernel=None,
    initramfs=None,
    kernel_version="",
    packages={},
    size_bytes=0,
)


class FakeInstance(Instance):
    def __init__(self, clock: Iterator[float], answer: Callable[[Command], Completed | None]) -> None:
        self.timeline = StartTimeline()
        self.clock = clock
        self.answer = answer
        self.executed: list[Command] = []

    def execute(self, command: Command) -> Completed:
        self.executed.append(command)
        started = next(self.clock)
        return self.answer(command) or Completed(command.argv, 0, None, b"value 42\n", b"", started, started + 0.5)

    def usage(self) -> Usage:
        now = next(self.clock)
        return Usage(now, now, 1000, 900, 0, 0)

    def footprint(self) -> Footprint:
        return Footprint(100, 50, 200, 0, 0, 1)


class FakeBackend(Backend):
    name = "fake"
    summary = "answers every command at once"
    minimum_memory_bytes = 32 * 2**20

    class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        speed: int = 1

    def __init__(self, context: Any = None) -> None:
        self.context = context
        self.clock = itertools.count(1.0)
        self.answer: Callable[[Command], Completed | None] = lambda _: None
        self.started: list[str] = []
        self.live = 0

    def probe(self) -> Availability:
        return Availability(available=True, reason="always")

    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        return BackendDescription("fake", IsolationKind.SANDBOX)

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        self.started.append(spec.identifier)
        self.live += 1
        instance = FakeInstance(self.clock, self.answer)
        for phase in (Phase.REQUESTED, Phase.CREATED, Phase.FIRST_INSTRUCTION, Phase.READY):
            instance.timeline.mark(phase, next(self.clock))
        try:
            yield instance
        finally:
            self.live -= 1
            instance.timeline.mark(Phase.STOP_REQUESTED, next(self.clock))
            instance.timeline.mark(Phase.STOPPED, next(self.clock))


class BrokenBackend(FakeBackend):
    name = "broken"

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        raise BackendError("it never boots", evidence="last console line")
        yield


class FakeWorkload(Workload):
    name = "answer"
    summary = "prints a value"
    metrics = (Metric("answer.value", Unit.COUNT, Direction.HIGHER, "The value."),)
    packages = ("coreutils",)

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        size: int = 1
        mode: str = "fast"

    def commands(self, params: Any, envelope: Envelope) -> Commands:
        if params.size > 100:
            raise ValueError("size must be at most 100")
        return Commands(
            Command(("answer", str(params.size))), setup=(Command(("prepare",)),), teardown=(Command(("tidy",)),)
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        text = completed.stdout.decode()
        if not text.startswith("value "):
            raise ParseError("no value", evidence=text)
        return [Measurement("answer.value", float(text.split()[1]))]


BACKENDS: Plugins[Backend] = Plugins("backend", {"fake": FakeBackend, "broken": BrokenBackend}, {})
WORKLOADS: Plugins[Workload] = Plugins(
    "workload",
    {"answer": FakeWorkload},
    {"torn": PluginFailure("torn", "torn:Torn", "ModuleNotFoundError: No module named 'torn'")},
)
