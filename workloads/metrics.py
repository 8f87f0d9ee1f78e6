"""The kinds of metrics that most workloads have, each with its unit and direction."""

from collections.abc import Iterable

from tare.bench.model import Direction, Metric
from tare.bench.units import Unit


def time_of(name: str, description: str, title: str = "") -> Metric:
    """Seconds, of which fewer are better."""
    return Metric(name, Unit.SECOND, Direction.LOWER, description, title)


def percentiles_of(name: str, keys: Iterable[str], what: str, resolution: str, title: str) -> tuple[Metric, ...]:
    """Percentiles of the time ``what``, by keys such as ``p99.9``; ``resolution`` says how exact they are.

    ``title`` is what people call that time (``Read latency``).
    """
    called = {key: "Median" if key == "p50" else f"{key[1:]}th percentile" for key in keys}
    return tuple(
        time_of(
            f"{name}.{key}", f"{which} of the time {what} ({resolution}).", f"{title}, {which[0].lower()}{which[1:]}"
        )
        for key, which in called.items()
    )


def rate_of(name: str, description: str, title: str = "") -> Metric:
    """Operations per second, of which more are better."""
    return Metric(name, Unit.OPERATIONS_PER_SECOND, Direction.HIGHER, description, title)


def bandwidth_of(name: str, description: str, title: str = "") -> Metric:
    """Bytes per second, of which more are better."""
    return Metric(name, Unit.BYTES_PER_SECOND, Direction.HIGHER, description, title)
