"""Backends that a session finds through entry points, as anybody's. What they do is set on ``Orders`` by the test."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tare.bench.errors import BackendError
from tare.bench.image import store
from tare.bench.interfaces import Instance
from tare.bench.model import (
    Availability,
    BackendDescription,
    Completed,
    Confound,
    Envelope,
    Histogram,
    Image,
    InstanceSpec,
    IsolationKind,
)
from tare.bench.units import Unit
from tests.unit.fakes import FakeBackend, FakeWorkload
from tests.unit.test_image_store import tiny_parts


class Orders:
    """What the backends of this module are told to do, and what they saw."""

    interrupt_at: ClassVar[int] = 0
    """The start (counted from 1) that the user interrupts; 0: none."""
    label: ClassVar[str] = ""
    prepare_fails: ClassVar[frozenset[str]] = frozenset()
    missing: ClassVar[frozenset[str]] = frozenset()
    on_start: ClassVar[Callable[[InstanceSpec], None]] = staticmethod(lambda _: None)
    starts: ClassVar[list[tuple[str, str]]] = []
    """Type of the backend and identifier, in order."""
    prepared: ClassVar[list[tuple[str, str]]] = []
    """Type of the backend and digest of the image."""
    closed: ClassVar[list[str]] = []
    affinity: ClassVar[list[set[int]]] = []
    housekeeping: ClassVar[list[tuple[int, ...]]] = []
    work: ClassVar[list[Any]] = []

    @classmethod
    def reset(cls) -> None:
        cls.interrupt_at, cls.label = 0, ""
        cls.prepare_fails = cls.missing = frozenset()
        cls.on_start = staticmethod(lambda _: None)
        cls.starts, cls.prepared, cls.closed, cls.affinity, cls.housekeeping, cls.work = [], [], [], [], [], []


class Metal(FakeBackend):
    name = "fake-metal"
    summary = "stands for bare metal"
    kind = IsolationKind.BARE_METAL

    def probe(self) -> Availability:
        if self.name in Orders.missing:
            return Availability(available=False, reason=f"no {self.name} on this host", remedy=f"install {self.name}")
        return Availability(available=True, reason="always")

    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        Orders.prepared.append((self.name, image.digest))
        Orders.housekeeping.append(self.context.housekeeping_cpus)
        Orders.work.append(self.context.work_directory)
        if self.name in Orders.prepare_fails:
            raise BackendError(f"{self.name} cannot be prepared", remedy="mend it")
        label = Orders.label or f"{self.name} label"
        return BackendDescription(label, self.kind, confounds=(Confound("odd", f"{self.name} is odd", self.name),))

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        Orders.starts.append((self.name, spec.identifier))
        Orders.affinity.append(os.sched_getaffinity(0))
        Orders.on_start(spec)
        if len(Orders.starts) == Orders.interrupt_at:
            raise KeyboardInterrupt
        with super().start(spec) as instance:
            yield instance

    def close(self) -> None:
        Orders.closed.append(self.name)


class Box(Metal):
    name = "fake-box"
    summary = "stands for a container"
    kind = IsolationKind.CONTAINER


class Other(FakeBackend):
    name = "fake-other"


class Counting(FakeWorkload):
    """With a distribution beside its value."""

    def histograms(self, completed: Completed) -> list[Histogram]:
        return [Histogram("answer.latency", Unit.SECOND, (0.5, 1.0), (3, 4))]


SUITE = """
[suite]
name = "A fine Suite!"
[envelope]
memory = "64MiB"
scratch = "1MiB"
[sampling]
seed = 3
blocks = 3
iterations = 2
warmup = 1
prime = false
[[backend]]
type = "fake-box"
[[backend]]
type = "fake-metal"
[[experiment]]
kind = "steady"
workload = "answer"
params = { size = 2 }
"""
POINTS = """
[tare.backends]
fake-metal = tests.unit.session_fakes:Metal
fake-box = tests.unit.session_fakes:Box
fake-other = tests.unit.session_fakes:Other
[tare.workloads]
answer = tests.unit.session_fakes:Counting
"""
PLANNED = 6


class Display:
    """Takes down whatever it is told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.told.append((name, args, kwargs))

    @property
    def steps(self):
        return [args[0] for name, args, _ in self.told if name == "step"]

    @property
    def planned(self):
        """How many instances each plan had."""
        return [len(args[1]) for name, args, _ in self.told if name == "begin"]


def make_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine of its own: plug-ins, cache, state, work folder, and an image that takes no time to build."""
    points = tmp_path / "site" / "fakes-1.0.dist-info"
    points.mkdir(parents=True)
    (points / "METADATA").write_text("Metadata-Version: 2.1\nName: fakes\nVersion: 1.0\n")
    (points / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(points.parent)
    for name in ("cache", "state", "work"):
        monkeypatch.setenv(f"TARE_{name.upper()}_DIR", str(tmp_path / name))
    monkeypatch.setattr(store, "build_parts", tiny_parts)
    monkeypatch.setattr(store, "BUILD_TOOLS", ())
    monkeypatch.setattr(store, "_NEEDED_BYTES", 0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    Orders.reset()
    affinity = os.sched_getaffinity(0)
    yield tmp_path
    os.sched_setaffinity(0, affinity)
