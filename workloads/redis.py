"""Redis: keys set and got over TCP by redis-benchmark, from a server that stays for all iterations.

redis-benchmark counts latencies in a histogram whose buckets are 8 µs wide at the lower end, and prints it whole.
"""

import functools
import itertools
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from tare.bench.interfaces import Workload
from tare.bench.model import (
    SCRATCH,
    SERVER,
    Command,
    Commands,
    Completed,
    Envelope,
    Histogram,
    Measurement,
    Metric,
    Service,
)
from tare.bench.traits import Parameter
from tare.bench.units import Unit
from tare.workloads.metrics import percentiles_of, rate_of, time_of
from tare.workloads.output import LINES, positive, read_output, refuse
from tare.workloads.parameters import READY_WITHIN_S

_TOOL = "redis-benchmark"
_PORT = "26379"
"""Not Redis' own, which a server of the host's may have where an instance shares the host's network."""
_REQUESTS_PER_S = 40_000
_SLOWEST_REQUESTS_PER_S = 1000
_MARGIN_S = 20.0
OPERATIONS = ("set", "get")
_number = functools.partial(positive, _TOOL)

_PROGRESS = re.compile(r"^[^\n]*\r", re.MULTILINE)
"""What it overwrites on a terminal while it runs."""
_SECTION = re.compile(
    r"====== (?P<operation>SET|GET) ======\n"
    r"  (?P<requests>\d{1,15}) requests completed in \d+\.\d\d seconds\n"
    r"  \d+ parallel clients\n  \d+ bytes payload\n  keep alive: 1\n(?:  [a-z][^\n]*\n)*\n"
    r"Latency by percentile distribution:\n(?P<distribution>(?:\d+\.\d{3}% <= [^\n]*\n)+)\n"
    r"Cumulative distribution of latencies:\n(?:\d+\.\d{3}% <= [^\n]*\n)+\n"
    r"Summary:\n"
    r"  throughput summary: (?P<rate>\d+\.\d\d) requests per second\n"
    r"  latency summary \(msec\):\n +avg +min +p50 +p95 +p99 +max\n"
    r" +(?P<mean>\d+\.\d{3}) +\d+\.\d{3} +(?P<p50>\d+\.\d{3}) +(?P<p95>\d+\.\d{3}) +(?P<p99>\d+\.\d{3})"
    r" +(?P<max>\d+\.\d{3})\n*",
    LINES,
)
_BUCKET = re.compile(r"^\d+\.\d{3}% <= (\d+\.\d{3}) milliseconds \(cumulative count (\d{1,15})\)$", LINES)
_LATENCIES = ("mean", "p50", "p95", "p99", "max")


def _declare(operation: str) -> tuple[Metric, ...]:
    name = operation.upper()
    return (
        rate_of(
            f"{operation}.operations_per_second",
            f"{name} requests answered per second, over all connections.",
            f"{name} requests per second",
        ),
        time_of(
            f"{operation}.latency.mean",
            f"Mean time from sending a {name} request, or its batch, to the answer.",
            f"{name} latency, mean",
        ),
        *percentiles_of(
            f"{operation}.latency",
            ("p50", "p95", "p99"),
            f"of a {name} request",
            "buckets of 8 µs or wider",
            f"{name} latency",
        ),
        time_of(
            f"{operation}.latency.max",
            f"Longest time of a {name} request; a single event decides it.",
            f"{name} latency, longest",
        ),
    )


class Redis(Workload):
    """One thread serves all connections, so what is measured is the network stack's and the scheduler's latency.

    With ``pipeline`` requests are sent in batches, and the server's own work comes to the fore.
    """

    name = "redis"
    summary = "a key-value server: SET and GET over TCP by several connections, with or without pipelining"
    title = "Key-value server (Redis)"
    parameters = (
        Parameter("clients", "Clients"),
        Parameter("pipeline", "Requests in a batch"),
        Parameter("requests", "Requests"),
        Parameter("value_bytes", "Value (B)"),
    )
    packages = ("redis",)
    licence = "BSD-3-Clause"
    metrics = tuple(metric for operation in OPERATIONS for metric in _declare(operation))

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``requests`` of each kind by ``clients`` connections, ``pipeline`` of them sent at a time by each."""

        clients: Annotated[int, Meta(ge=1, le=1000)] = 50
        pipeline: Annotated[int, Meta(ge=1, le=1000)] = 1
        requests: Annotated[int, Meta(ge=1000, le=100_000_000)] = 20_000
        value_bytes: Annotated[int, Meta(ge=1, le=1_000_000)] = 64

        def __post_init__(self) -> None:
            if self.clients * self.pipeline > self.requests:
                raise ValueError(
                    f"requests: {self.requests} are fewer than one batch of {self.pipeline} for each of "
                    f"{self.clients} clients"
                )

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """The same on any envelope: the server is one thread, and so is its client."""
        del envelope
        measured = (
            *("redis-benchmark", "-h", SERVER, "-p", _PORT, "-t", ",".join(OPERATIONS)),
            *("-n", str(params.requests), "-c", str(params.clients), "-P", str(params.pipeline)),
            *("-d", str(params.value_bytes), "--precision", "3"),
        )
        server = (
            *("redis-server", "--bind", SERVER, "--port", _PORT, "--protected-mode", "no"),
            # Nothing is written to disk: a snapshot would come at a moment of its own choosing.
            *("--save", "", "--appendonly", "no", "--dir", SCRATCH),
        )
        ready = Command(("redis-cli", "-e", "-h", SERVER, "-p", _PORT, "ping"), timeout_s=_MARGIN_S)
        # Where its server has died, redis-benchmark may wait for ever.
        timeout_s = _MARGIN_S + len(OPERATIONS) * params.requests / _SLOWEST_REQUESTS_PER_S
        return Commands(
            measured=Command(measured, timeout_s=timeout_s),
            services=(Service("redis", Command(server), ready, READY_WITHIN_S),),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        """A section for each operation; its figures have to agree with its histogram."""
        text = read_output(_TOOL, completed)
        measurements: list[Measurement] = []
        for operation, section in zip(OPERATIONS, _sections(text), strict=True):
            found = {name: _number(f"{operation} {name}", section[name], text, exponent=-3) for name in _LATENCIES}
            _check(section, text)
            rate = _number(f"{operation} throughput", section["rate"], text)
            measurements.append(Measurement(f"{operation}.operations_per_second", rate))
            measurements += [Measurement(f"{operation}.latency.{name}", value) for name, value in found.items()]
        return measurements

    def histograms(self, completed: Completed) -> list[Histogram]:
        """The percentiles of each operation as counts of the buckets between them."""
        text = read_output(_TOOL, completed)
        histograms: list[Histogram] = []
        for operation, section in zip(OPERATIONS, _sections(text), strict=True):
            counted = _cumulated(section, text)
            counts = [after - before for before, after in itertools.pairwise((0, *counted.values()))]
            bounds = tuple(_number("a bucket", digits, text, exponent=-3) for digits in counted)
            histograms.append(Histogram(f"{operation}.latency", Unit.SECOND, bounds, tuple(counts)))
        return histograms

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """Both kinds of requests at a rate that one server thread has on a current CPU."""
        return len(OPERATIONS) * params.requests / _REQUESTS_PER_S


def _sections(text: str) -> list[re.Match[str]]:
    """One for each operation, in their order, and nothing between them."""
    plain = _PROGRESS.sub("", text)
    sections = list(_SECTION.finditer(plain))
    if tuple(section["operation"].lower() for section in sections) != OPERATIONS or _SECTION.sub("", plain).strip():
        refuse(_TOOL, "it is not a report on SET and one on GET", text)
    return sections


def _check(section: re.Match[str], text: str) -> None:
    """The histogram counts every request, and ends with the slowest."""
    counted = _cumulated(section, text)
    if list(counted.values()) != sorted(counted.values()) or [*counted.values()][-1] != int(section["requests"]):
        refuse(_TOOL, f"its histogram does not count the {section['requests']} requests", text)
    if [*counted][-1] != section["max"]:
        refuse(_TOOL, f"its slowest request took {section['max']} ms, and its histogram ends at {[*counted][-1]}", text)
    median = next(digits for digits, count in counted.items() if 2 * count >= int(section["requests"]))
    if median != section["p50"]:
        refuse(_TOOL, f"its median is {section['p50']} ms in one place and {median} in another", text)


def _cumulated(section: re.Match[str], text: str) -> dict[str, int]:
    """Requests answered within so many milliseconds, written as there."""
    rows = [_BUCKET.fullmatch(line) for line in section["distribution"].splitlines()]
    counted = {row[1]: int(row[2]) for row in rows if row}
    if None in rows:
        refuse(_TOOL, "a row of its histogram is not whole", text)
    return counted
