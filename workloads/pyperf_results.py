"""Result files of pyperf, read by pyperf itself: the values of each benchmark, and their distribution."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tare.bench.errors import ParseError
from tare.bench.model import Histogram
from tare.bench.units import Unit
from tare.workloads.output import excerpt

if TYPE_CHECKING:
    import pyperf

PYPERF = "pypi:pyperf==2.10.0"
"""The package that measures in the image."""

_MOST_S = 1e9


def read_suite(tool: str, text: str) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Each benchmark of a result file with its values in seconds, as pyperf reads them. Raises ParseError."""
    import pyperf

    try:
        for benchmark in pyperf.BenchmarkSuite.loads(text):
            yield _seconds_of(benchmark)
    except Exception as error:  # noqa: BLE001 - whatever pyperf makes of a broken file, the answer is the same
        raise ParseError(
            f"the output of {tool} is not a usable pyperf result: {type(error).__name__}: {error}",
            remedy="run the script by hand with --output, and see that python3 -m pyperf show reads it",
            evidence=excerpt(text),
        ) from None


def histogram_of(name: str, values: Sequence[float]) -> Histogram:
    """Every value, each in a bucket of its own: pyperf's warm-ups are not among them."""
    counts = Counter(sorted(values))
    return Histogram(name, Unit.SECOND, tuple(counts), tuple(counts.values()))


def _seconds_of(benchmark: "pyperf.Benchmark") -> tuple[str, tuple[float, ...]]:
    """Its name and values. Raises ValueError unless they are times."""
    name, unit = benchmark.get_name(), benchmark.get_unit()
    if unit != "second":
        raise ValueError(f"{name} is measured in {unit}, and only times can be compared")
    values = tuple(float(value) for value in benchmark.get_values())
    if not values or not all(math.isfinite(value) and 0 < value < _MOST_S for value in values):
        raise ValueError(f"{name} has values that are not times")
    return str(name), values
