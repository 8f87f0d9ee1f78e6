"""Redis: one client that sets and gets keys over a Unix socket, measured by redis-benchmark."""

import csv
from typing import Annotated

import msgspec
from tare.bench.errors import ParseError
from tare.bench.interfaces import Workload
from tare.bench.model import Command, Commands, Completed, Direction, Envelope, Measurement, Metric
from tare.bench.units import Unit

# One command, so that each iteration has a server of its own; one that stays would be a Service of Commands.
SCRIPT = """
redis-server --port 0 --unixsocket /tmp/redis.sock --save '' >&2 &
until redis-cli -s /tmp/redis.sock ping >&2; do kill -0 $! || exit 1; done
redis-benchmark -s /tmp/redis.sock -t set,get -n "$1" -c "$2" --csv --precision 3
status=$?
kill $!
exit $status
"""
OPERATIONS = ("SET", "GET")
COLUMNS = {"rps": ("operations_per_second", 1.0), "p99_latency_ms": ("latency.p99", 1e-3)}


def _declare(operation: str) -> tuple[Metric, ...]:
    rate, p99 = f"{operation.lower()}.operations_per_second", f"{operation.lower()}.latency.p99"
    return (
        Metric(rate, Unit.OPERATIONS_PER_SECOND, Direction.HIGHER, f"{operation} requests answered in a second."),
        Metric(p99, Unit.SECOND, Direction.LOWER, f"99 % of the {operation} requests are answered sooner."),
    )


class Redis(Workload):
    """A key-value server and its client in one instance: system calls, wake-ups, little else."""

    name = "redis-socket"
    summary = "a key-value server and its client over a Unix socket"
    packages = ("redis",)
    licence = "BSD-3-Clause"
    metrics = (*_declare("SET"), *_declare("GET"))

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``requests`` of each kind, by ``clients`` connections."""

        requests: Annotated[int, msgspec.Meta(ge=1000)] = 20_000
        clients: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """The same on any envelope: the server is one thread."""
        argv = ("sh", "-c", SCRIPT, "redis", str(params.requests), str(params.clients))
        return Commands(Command(argv, timeout_s=60 + params.requests / 100))

    def parse(self, completed: Completed) -> list[Measurement]:
        """Two lines of CSV under a header; anything else is refused."""
        text = completed.stdout.decode("utf-8", errors="backslashreplace")
        rows = list(csv.DictReader(text.splitlines()))
        if completed.returncode != 0 or tuple(row.get("test") for row in rows) != OPERATIONS:
            raise ParseError("redis-benchmark did not report SET and GET", evidence=text or str(completed.stderr))
        try:
            return [
                Measurement(f"{operation.lower()}.{metric}", float(row[column]) * factor)
                for operation, row in zip(OPERATIONS, rows, strict=True)
                for column, (metric, factor) in COLUMNS.items()
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ParseError(f"redis-benchmark printed no number: {error}", evidence=text) from None
