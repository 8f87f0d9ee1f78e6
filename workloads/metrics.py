"""The kinds of metrics that most workloads have, each with its unit and direction."""

from tare.bench.model import Direction, Metric
from tare.bench.units import Unit


def time_of(name: str, description: str) -> Metric:
    """Seconds, of which fewer are better."""
    return Metric(name, Unit.SECOND, Direction.LOWER, description)


def rate_of(name: str, description: str) -> Metric:
    """Operations per second, of which more are better."""
    return Metric(name, Unit.OPERATIONS_PER_SECOND, Direction.HIGHER, description)


def bandwidth_of(name: str, description: str) -> Metric:
    """Bytes per second, of which more are better."""
    return Metric(name, Unit.BYTES_PER_SECOND, Direction.HIGHER, description)
