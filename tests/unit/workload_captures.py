"""The captured outputs of real tools in tests/data, with the command lines that made them."""

import functools
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.model import Completed, Envelope
from tare.bench.registry import find_workloads

DATA = Path(__file__).parents[1] / "data"
DURATION_S = 2.5
"""How long the captured commands are said to have taken, on the host's clock."""
WORKLOADS = {
    name: kind() for name, kind in find_workloads().loaded.items() if kind.__module__.startswith("tare.workloads.")
}
MAY_BE_ZERO = {"tcp.retransmits", "udp.loss"}
"""Metrics of which zero is a result: reports show it and take no ratio to it."""


class Capture(msgspec.Struct, frozen=True):
    tool: str
    name: str
    header: dict[str, Any]
    stdout: bytes

    @property
    def completed(self) -> Completed:
        return completed(self.stdout, self.header["stderr"].encode(), self.header["returncode"], self.header["argv"])

    @property
    def envelope(self) -> Envelope:
        return envelope(self.header["cpus"])

    @property
    def text(self) -> str:
        return self.stdout.decode()


def envelope(cpus: int = 1, memory_bytes: int = 512 * 2**20, scratch_bytes: int = 256 * 2**20) -> Envelope:
    return Envelope(tuple(range(cpus)), memory_bytes, scratch_bytes, 512)


def completed(stdout: bytes, stderr: bytes = b"", returncode: int | None = 0, argv: Any = ("tool",)) -> Completed:
    return Completed(tuple(argv), returncode, None, stdout, stderr, 1.0, 1.0 + DURATION_S)


def load(tool: str, name: str) -> Capture:
    path = DATA / tool / f"{name}.toml"
    return Capture(tool, name, tomllib.loads(path.read_text("utf-8")), path.with_suffix(".stdout").read_bytes())


@functools.cache
def captures(workload: str | None = None) -> list[Capture]:
    """Every capture of the built-in workloads' tools, or of one workload's measured command."""
    found = [load(path.parent.name, path.stem) for path in sorted(DATA.glob("*/*.toml"))]
    return [capture for capture in found if workload in (None, capture.header.get("workload"))]


def measured(workload: str | None = None) -> list[Capture]:
    """The captures that are measurements."""
    found = [c for c in captures(workload) if "workload" in c.header and not is_refused(c)]
    assert found, f"no capture of {workload}"
    return found


def is_refused(capture: Capture) -> bool:
    """Whether it is a real output that is no measurement."""
    return capture.name.startswith("refused") or capture.name == "apparmor-skipped"


def identify(capture: Capture) -> str:
    return f"{capture.tool}/{capture.name}"
