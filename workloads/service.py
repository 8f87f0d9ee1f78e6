"""The image's own service as a workload: ``[[workload]] service = true``, started as its configuration says.

Load on it comes from tare's own program in the same instance, which needs no client in the image: connections that each
ask again once they are answered, by HTTP/1.0 with keep-alive.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from tare.bench import inside
from tare.bench.errors import ParseError
from tare.bench.interfaces import Workload, WorkloadKind, WorkloadSection
from tare.bench.model import (
    Command,
    Commands,
    Completed,
    Direction,
    Envelope,
    Histogram,
    Measurement,
    Metric,
    lower,
)
from tare.bench.service import PORT, ReadyBy, ServiceRequest
from tare.bench.traits import Parameter
from tare.bench.units import Duration, Unit
from tare.workloads.output import excerpt, read_output

_TOOL = "load on the service"
_TOTAL = re.compile(r"requests (\d+) errors (\d+) elapsed (\d+) ?(.*)", re.ASCII)
_BUCKET = re.compile(r"bucket (\d+) (\d+)", re.ASCII)
_NS = 1e-9
LATENCY = "service.latency"

METRICS = (
    Metric(
        "service.requests",
        Unit.OPERATIONS_PER_SECOND,
        Direction.HIGHER,
        "Requests per second that the service answered with a status below 400.",
        "Requests answered per second",
    ),
    lower(
        f"{LATENCY}.p50",
        Unit.SECOND,
        "Half of the requests were answered within this time, by a histogram whose edges are 1.6 % apart.",
        "Median time to an answer",
    ),
    lower(
        f"{LATENCY}.p99",
        Unit.SECOND,
        "99 of 100 requests were answered within this time, by the same histogram.",
        "99th percentile of the time to an answer",
    ),
)


class ServiceSection(WorkloadSection, frozen=True, kw_only=True):
    """The keys of a ``[[workload]]`` that is the image's own service; what is left out is as the image says."""

    service: bool
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    path: str = "/"
    ready: ReadyBy | None = None
    within: Duration = Duration("60s")
    entrypoint: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    cmd: tuple[str, ...] | None = None
    env: Mapping[str, str] = {}
    cwd: str | None = None
    user: str | None = None

    def __post_init__(self) -> None:
        if not self.service:
            raise ValueError("service: is true, or left out")
        if not re.fullmatch(r"/[!-~]*", self.path) or len(self.path) > _LONGEST_PATH:
            raise ValueError(f"path: begins with / and is of at most {_LONGEST_PATH} characters without spaces")
        if self.cwd is not None and not self.cwd.startswith("/"):
            raise ValueError(f"cwd: {self.cwd!r} is not an absolute path")
        if self.within <= 0:
            raise ValueError("within: is more than 0 s")
        texts = (*(self.entrypoint or ()), *(self.cmd or ()), *self.env, *self.env.values(), self.user or "")
        if any("\0" in text for text in texts):
            raise ValueError("entrypoint, cmd, env, user: hold no NUL character")
        if any(not name or "=" in name for name in self.env):
            raise ValueError("env: a name is not empty and holds no =")


_LONGEST_PATH = 2000


class ServiceParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the service is asked: by so many connections, for so long."""

    connections: Annotated[int, Meta(ge=1, le=512)] = 1
    runtime_s: Annotated[float, Meta(ge=0.01, le=3600)] = 2.0


class ServiceWorkload(Workload):
    """What ``ServiceKind`` makes; ``section`` is what the suite states."""

    section: ClassVar[ServiceSection]
    parameters = (Parameter("connections", "Connections"), Parameter("runtime_s", "Seconds"))
    metrics = METRICS
    fixed_time = True
    Params = ServiceParams

    def commands(self, params: ServiceParams, envelope: Envelope) -> Commands:
        del envelope
        section = self.section
        request = ServiceRequest(
            name=section.name,
            port=section.port,
            path=section.path,
            ready=section.ready,
            within_s=float(section.within),
            entrypoint=section.entrypoint,
            cmd=section.cmd,
            env=section.env,
            cwd=section.cwd,
            user=section.user,
        )
        measured: Command = inside.load(PORT, section.path, params.connections, params.runtime_s)
        return Commands(measured=measured, image_service=request)

    def parse(self, completed: Completed) -> list[Measurement]:
        requests, elapsed_ns, buckets = _read(completed)
        return [
            Measurement("service.requests", requests / (elapsed_ns * _NS)),
            Measurement(f"{LATENCY}.p50", _quantile(buckets, 0.5)),
            Measurement(f"{LATENCY}.p99", _quantile(buckets, 0.99)),
        ]

    def histograms(self, completed: Completed) -> list[Histogram]:
        buckets = _read(completed)[2]
        return [Histogram(LATENCY, Unit.SECOND, tuple(buckets), tuple(buckets.values()))]

    @classmethod
    def duration_s(cls, params: ServiceParams) -> float:
        return params.runtime_s


class ServiceKind(WorkloadKind):
    """``service = true``: the program that the image is made for."""

    name = "service"
    summary = "the image's own service, by its entry point, with load by HTTP"
    Section = ServiceSection

    def make(self, section: ServiceSection) -> type[Workload]:
        """A class of its own for each section."""
        given: dict[str, Any] = {
            "name": section.name,
            "summary": section.summary or "the image's own service",
            "packages": section.packages,
            "licence": section.licence,
            "category": section.category,
            "title": section.title,
            "section": section,
        }
        return type("ServiceWorkload", (ServiceWorkload,), given)


def _read(completed: Completed) -> tuple[int, int, dict[float, int]]:
    """Requests, nanoseconds, and the latencies' histogram (upper edges in seconds). Raises ParseError."""
    text = read_output(_TOOL, completed)
    first, *rest = text.splitlines()
    total = _TOTAL.fullmatch(first)
    found = [_BUCKET.fullmatch(line) for line in rest]
    buckets = {int(one[1]) * _NS: int(one[2]) for one in found if one}
    if total is None or None in found or not buckets or sum(buckets.values()) != int(total[1]) or not int(total[3]):
        raise ParseError(f"{_TOOL}: its report makes no sense", evidence=excerpt(text))
    if errors := int(total[2]):
        raise ParseError(
            f"{errors} of {errors + int(total[1])} requests were not answered with a status below 400: "
            f"{total[4] or 'see the status'}",
            remedy="ask for a path that the service answers, with connections that it takes",
            evidence=excerpt(text),
        )
    return int(total[1]), int(total[3]), buckets


def _quantile(buckets: Mapping[float, int], share: float) -> float:
    """The upper edge of the bucket that holds it."""
    wanted = share * sum(buckets.values())
    counted = 0
    for edge in sorted(buckets):
        counted += buckets[edge]
        if counted >= wanted:
            return edge
    return max(buckets)
