"""What a suite says about single metrics: their margins, and quantiles beside the median; read from a run's manifest.

A metric is named as ``owner/name`` (``fio/read.iops``; the owner is the workload, or the experiment where there is
none) or by its name alone, which then holds for every owner. ``owner/name`` goes before the name alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tare.bench.catalogue import HARNESS_METRICS
from tare.bench.traits import ExperimentTraits

DEFAULT_MARGIN = 0.02
"""Ratios from 1/1.02 to 1.02 make no difference to anybody, unless the suite says otherwise."""


class MetricSettings(msgspec.Struct, frozen=True):
    """The margin of a metric, and the quantiles over iterations, rising, that are estimated beside its median."""

    margin: float = DEFAULT_MARGIN
    quantiles: tuple[float, ...] = ()


def settings_of(suite: Mapping[str, Any], owner: str, metric: str, *, margin: float | None = None) -> MetricSettings:
    """The settings of a metric in a suite as the manifest keeps it; ``margin`` goes before what the suite says.

    Runs from before there were such sections have the defaults.
    """
    sections = suite.get("metric") or {}
    precise = sections.get(f"{owner}/{metric}", {}).items()
    own = {**sections.get(metric, {}), **{name: value for name, value in precise if value not in (None, (), [])}}
    stated = own.get("margin")
    if stated is None:
        stated = (suite.get("report") or {}).get("margin", DEFAULT_MARGIN)
    given = own.get("quantile", ())
    quantiles = [float(given)] if isinstance(given, (int, float)) else sorted(set(given))
    return MetricSettings(stated if margin is None else margin, tuple(quantiles))


def leading_metric(traits: ExperimentTraits, measured: Sequence[str]) -> str | None:
    """The one metric by which a cell is known: the experiment's ``known_by``, otherwise the first of its own.

    Of several of these the first, and one of duration last: a workload's own metrics say more.

    ``measured`` is in the order in which workload and experiment declare metrics. The choice is made beforehand, where
    the metric with the largest difference would be chosen by luck. None if nothing was measured.
    """
    if known := [name for name in measured if is_among((traits.known_by,), name)]:
        return min(known, key=lambda name: name == f"{traits.known_by}duration")
    own = (name for name in measured if not name.startswith(HARNESS_METRICS))
    return next(own, measured[0] if measured else None)


def is_among(names: Iterable[str], metric: str) -> bool:
    """Whether traits name a metric: in full, or by a beginning that ends with a dot."""
    return any(metric == name or (name.endswith(".") and metric.startswith(name)) for name in names)
