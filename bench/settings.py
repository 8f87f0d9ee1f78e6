"""What a suite says about single metrics: their margins, and quantiles beside the median; read from a run's manifest.

A metric is named as ``owner/name`` (``fio/read.iops``; the owner is the workload, or the experiment where there is
none) or by its name alone, which then holds for every owner. ``owner/name`` goes before the name alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tare.bench.catalogue import HARNESS_METRICS, RATIO_PREFIX, BootMetric

DEFAULT_MARGIN = 0.02
"""Ratios from 1/1.02 to 1.02 make no difference to anybody, unless the suite says otherwise."""


class MetricSettings(msgspec.Struct, frozen=True):
    """The margin of a metric, and the quantiles over iterations that are estimated beside its median."""

    margin: float = DEFAULT_MARGIN
    quantiles: tuple[float, ...] = ()


def settings_of(suite: Mapping[str, Any], owner: str, metric: str, *, margin: float | None = None) -> MetricSettings:
    """The settings of a metric in a suite as the manifest keeps it; ``margin`` goes before what the suite says.

    Runs from before there were such sections have the defaults.
    """
    sections = suite.get("metric") or {}
    own = {**sections.get(metric, {}), **_stated(sections.get(f"{owner}/{metric}", {}))}
    stated = own.get("margin")
    if stated is None:
        stated = (suite.get("report") or {}).get("margin", DEFAULT_MARGIN)
    return MetricSettings(stated if margin is None else margin, quantiles_of(own.get("quantile", ())))


def quantiles_of(given: float | Sequence[float]) -> tuple[float, ...]:
    """One quantile or several, rising and each once."""
    return (float(given),) if isinstance(given, (int, float)) else tuple(sorted(set(given)))


def leading_metric(experiment: str, measured: Sequence[str]) -> str | None:
    """The one metric by which a cell is known: ``boot.total`` of ``boot``, otherwise the first of its own.

    Of ``interference`` the first ratio: how much worse the victim got, by its own metrics before its duration.

    ``measured`` is in the order in which workload and experiment declare metrics. The choice is made beforehand, where
    the metric with the largest difference would be chosen by luck. None if nothing was measured.
    """
    if experiment == "boot" and BootMetric.TOTAL in measured:
        return BootMetric.TOTAL
    if experiment == "interference" and (ratios := [name for name in measured if name.startswith(RATIO_PREFIX)]):
        return min(ratios, key=lambda name: name == f"{RATIO_PREFIX}duration")
    own = (name for name in measured if not name.startswith(HARNESS_METRICS))
    return next(own, measured[0] if measured else None)


def _stated(section: Mapping[str, Any]) -> dict[str, Any]:
    """What a section says, without what it leaves open."""
    return {name: value for name, value in section.items() if value not in (None, (), [])}
