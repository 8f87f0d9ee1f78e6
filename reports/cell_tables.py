"""From a run's samples to what is estimated: a table for each metric of each cell, warm-up left out."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from tare.bench.settings import HARNESS_METRICS, leading_metric
from tare.bench.stats import CellBlocks, CellSamples, WarmUp, grouped_medians
from tare.bench.stats.warmup import NOTHING_FOUND
from tare.bench.store import LoadedRun
from tare.bench.units import Unit
from tare.reports.frames import sample_frame

SubjectKey = tuple[str, str, str]
"""Experiment, workload, and parameters as JSON with sorted keys."""


class Points(msgspec.Struct, frozen=True):
    """The values behind a cell: every iteration with its number and its instance's, and each instance's median.

    ``blocks`` holds each block's value, as comparisons take it.
    """

    iterations: Any
    iteration_numbers: Any
    instance_of: Any
    instance_medians: Any
    instance_names: list[str]
    blocks: CellBlocks


class CellTable(msgspec.Struct, frozen=True):
    """One metric of one cell. ``samples`` are without ``warm_up``, of which ``n_warm_up`` samples were left out."""

    samples: CellSamples
    points: Points
    unit: Unit
    warm_up: WarmUp
    n_warm_up: int


class CellTables(msgspec.Struct, frozen=True):
    """The tables of a run: for each metric of each subject one a backend.

    ``metrics`` are sorted as a report shows them, a workload's own first; ``leading`` is what a subject is known by.
    """

    tables: Mapping[tuple[SubjectKey, str], Mapping[str, CellTable]]
    metrics: Mapping[SubjectKey, tuple[str, ...]]
    leading: Mapping[SubjectKey, str | None]


def make_tables(run: LoadedRun) -> CellTables:
    """The tables of everything that was measured and is not warm-up, neither stated by the suite nor found here."""
    raw = dict(_raw_tables(run))
    order = {name: place for place, name in enumerate(run.manifest.metrics)}
    found: dict[SubjectKey, dict[str, None]] = {}
    for key, metric, _ in raw:
        found.setdefault(key, {}).setdefault(metric)
    metrics = {
        key: tuple(sorted(names, key=lambda name, key=key: _rank(key[1] or key[0], name, order)))  # type: ignore[misc]  # mypy knows no default of a lambda
        for key, names in found.items()
    }
    leading = {key: leading_metric(key[0], names) for key, names in metrics.items()}
    warm_ups = {
        (key, backend): samples.find_warm_up(key[0], seed=run.manifest.seed)
        for (key, metric, backend), (samples, _, _) in raw.items()
        if metric == leading[key]
    }
    tables: dict[tuple[SubjectKey, str], dict[str, CellTable]] = {}
    for (key, metric, backend), (samples, names, unit) in raw.items():
        warm_up = warm_ups.get((key, backend), NOTHING_FOUND)
        tables.setdefault((key, metric), {})[backend] = _make_table(samples, names, unit, warm_up)
    return CellTables(tables, metrics, leading)


def _rank(owner: str, name: str, order: Mapping[str, int]) -> tuple[int, int]:
    harness = next((1 + place for place, prefix in enumerate(HARNESS_METRICS) if name.startswith(prefix)), 0)
    return harness, order.get(f"{owner}/{name}", len(order))


def _raw_tables(run: LoadedRun) -> "list[tuple[tuple[SubjectKey, str, str], tuple[CellSamples, Any, Unit]]]":
    """The samples of each metric of each cell that the suite does not call warm-up; all instances' names by code."""
    if not run.samples:
        return []
    frame = sample_frame(run)
    frame = frame[~frame["warmup"]]
    keys = ["experiment", "workload", "params", "metric", "backend"]
    tables = []
    for key, group in frame.groupby(keys, sort=False, observed=True):
        experiment, workload, params, metric, backend = (str(part) for part in key)
        samples = CellSamples(
            group["value"].to_numpy(),
            group["instance"].cat.codes.to_numpy().astype(np.int64),
            group["block"].to_numpy(),
            group["iteration"].to_numpy(),
        )
        unit = Unit(group["unit"].iloc[0])
        tables.append(
            (((experiment, workload, params), metric, backend), (samples, group["instance"].cat.categories, unit))
        )
    return tables


def _make_table(whole: CellSamples, categories: Any, unit: Unit, warm_up: WarmUp) -> CellTable:
    samples = whole.after(warm_up)
    codes, instance_of = np.unique(samples.instances, return_inverse=True)
    medians = grouped_medians(samples.values, instance_of, len(codes))
    blocks = np.empty(len(codes), dtype=np.int64)
    blocks[instance_of] = samples.blocks
    by_block = CellBlocks.from_instances(medians, blocks, np.bincount(instance_of, minlength=len(codes)))
    names = [str(categories[code]) for code in codes]
    points = Points(samples.values, samples.iterations, instance_of, medians, names, by_block)
    return CellTable(samples, points, unit, warm_up, len(whole.values) - len(samples.values))
