"""The kinds of metrics that most workloads have, each with its unit and direction."""

from collections.abc import Iterable

from tare.bench.model import Direction, Metric
from tare.bench.units import Unit


def time_of(name: str, description: str) -> Metric:
    """Seconds, of which fewer are better."""
    return Metric(name, Unit.SECOND, Direction.LOWER, description)


def percentiles_of(name: str, keys: Iterable[str], what: str, resolution: str) -> tuple[Metric, ...]:
    """Percentiles of the time ``what``, by keys such as ``p99.9``; ``resolution`` says how exact they are."""
    called = {"p50": "Median"}
    return tuple(
        time_of(f"{name}.{key}", f"{called.get(key, f'{key[1:]}th percentile')} of the time {what} ({resolution}).")
        for key in keys
    )


def rate_of(name: str, description: str) -> Metric:
    """Operations per second, of which more are better."""
    return Metric(name, Unit.OPERATIONS_PER_SECOND, Direction.HIGHER, description)


def bandwidth_of(name: str, description: str) -> Metric:
    """Bytes per second, of which more are better."""
    return Metric(name, Unit.BYTES_PER_SECOND, Direction.HIGHER, description)
