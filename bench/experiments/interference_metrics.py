"""What ``interference`` measures. ``iteration`` of each sample is the number of aggressors; 0 is the victim alone.

The victim's own metrics are kept under ``interference.value.NAME``, one sample a repetition, and compared with the
median of the same victim alone under ``interference.ratio.NAME``, one sample a number of aggressors.
"""

from tare.bench.catalogue import RATIO_PREFIX, VALUE_PREFIX
from tare.bench.experiments.base import lower
from tare.bench.model import Direction, Metric
from tare.bench.units import Unit

DURATION = lower("duration", Unit.SECOND, "The victim's measured command from start to end.")
AGGRESSOR_CPU = Metric(
    "interference.aggressor_cpu", Unit.CPU, Direction.HIGHER, "CPUs that all aggressors together used meanwhile."
)


def value_of(metric: Metric) -> Metric:
    """The victim's own metric, as this experiment keeps it."""
    return Metric(f"{VALUE_PREFIX}{metric.name}", metric.unit, metric.direction, metric.description)


def ratio_of(metric: Metric) -> Metric:
    """How much worse it got: above 1 is worse, whichever way the metric goes."""
    return lower(
        f"{RATIO_PREFIX}{metric.name}",
        Unit.RATIO,
        f"How many times worse than alone (median to median): {metric.description}",
    )


def metrics_of(victim: tuple[Metric, ...]) -> tuple[Metric, ...]:
    """All metrics of a victim that has these of its own."""
    known = (DURATION, *victim)
    return (AGGRESSOR_CPU, *map(value_of, known), *map(ratio_of, known))
