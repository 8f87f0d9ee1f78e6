"""What a run says, as plain values: every form of report is written from one ``Analysis``.

A *subject* is what is compared across backends (an experiment with a workload and its parameters); it has *rows*, a
metric each; a row has a *cell* for each backend that was measured, with a comparison unless it is the baseline's own.
"""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from bench.model import Direction, Event, EventKind, Manifest, Metric
from bench.stats import (
    DEFAULT_MARGIN,
    CellBlocks,
    Comparison,
    Interval,
    compare,
    control_false_discoveries,
    grouped_medians,
    summarise,
)
from bench.store import LoadedRun
from bench.units import Unit
from reports.foreign import one_line
from reports.frames import sample_frame

HARNESS_METRICS = ("command.", "host.", "instance.")
"""Metrics that the harness adds to each workload's own; they come after them."""


class Backend(msgspec.Struct, frozen=True):
    """A backend as the report shows it. ``place`` numbers its colour and mark; the baseline has 0."""

    name: str
    label: str
    place: int
    is_baseline: bool


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


class CellResult(msgspec.Struct, frozen=True):
    """One metric on one backend. ``estimate`` is in the metric's unit; ``comparison`` is None for the baseline."""

    backend: Backend
    blocks: CellBlocks
    estimate: Interval
    n_blocks: int
    n_instances: int
    n_iterations: int
    points: Points
    comparison: Comparison | None


class Row(msgspec.Struct, frozen=True):
    """One metric of a subject over the backends, the baseline first."""

    metric: Metric
    cells: list[CellResult]

    @property
    def is_workload_metric(self) -> bool:
        """Whether the workload or experiment itself measured it, not the harness around it."""
        return not self.metric.name.startswith(HARNESS_METRICS)


class Subject(msgspec.Struct, frozen=True):
    """An experiment with a workload and its parameters."""

    experiment: str
    workload: str
    params: Mapping[str, Any]
    rows: list[Row]

    @property
    def title(self) -> str:
        """What people call it."""
        return one_line(self.workload or self.experiment)

    @property
    def params_line(self) -> str:
        """Its parameters on one line."""
        return ", ".join(f"{one_line(name)} {one_line(str(value))}" for name, value in self.params.items())


class Analysis(msgspec.Struct, frozen=True):
    """A run with everything estimated. ``baseline`` is None if it was not measured."""

    run: LoadedRun
    backends: list[Backend]
    baseline: Backend | None
    subjects: list[Subject]
    failures: list[Event]
    margin: float
    warmup_samples: int

    @property
    def manifest(self) -> Manifest:
        """The run's manifest."""
        return self.run.manifest

    @property
    def comparisons(self) -> list[tuple[Subject, Row, CellResult, Comparison]]:
        """Every comparison with where it belongs."""
        return [
            (subject, row, cell, cell.comparison)
            for subject in self.subjects
            for row in subject.rows
            for cell in row.cells
            if cell.comparison is not None
        ]


def analyse(run: LoadedRun, *, margin: float = DEFAULT_MARGIN) -> Analysis:
    """Estimate everything in a run. Works on runs that are empty, interrupted, or without a baseline."""
    backends = _backends(run)
    tables = _cell_tables(run)
    measured = {name for _, _, name in tables}
    baseline = next((one for one in backends if one.is_baseline and one.name in measured), None)
    subjects = _subjects(run.manifest, tables, backends, margin)
    return Analysis(
        run=run,
        backends=backends,
        baseline=baseline,
        subjects=_with_adjusted_verdicts(subjects),
        failures=[event for event in run.events if event.kind is EventKind.INSTANCE_FAILED],
        margin=margin,
        warmup_samples=int(run.samples.numbers["warmup"].sum()),
    )


_SubjectKey = tuple[str, str, str]


class _Table(msgspec.Struct, frozen=True):
    blocks: CellBlocks
    points: Points
    unit: Unit


def _backends(run: LoadedRun) -> list[Backend]:
    manifest = run.manifest
    seen = dict.fromkeys((*manifest.backends, *manifest.unavailable, *run.samples.distinct("backend")))
    names = sorted(seen, key=lambda name: name != manifest.baseline)
    # Place 0 is the baseline's even where it is missing, so that a backend keeps its colour from run to run.
    first = 0 if names and names[0] == manifest.baseline else 1
    return [
        Backend(
            name=name,
            label=one_line(manifest.backends[name].label if name in manifest.backends else name),
            place=first + index,
            is_baseline=name == manifest.baseline,
        )
        for index, name in enumerate(names)
    ]


def _cell_tables(run: LoadedRun) -> dict[tuple[_SubjectKey, str, str], _Table]:
    """The values of each (subject, metric, backend), warm-up left out, in the order in which they first appeared."""
    if not run.samples:
        return {}
    frame = sample_frame(run)
    frame = frame[~frame["warmup"]]
    keys = ["experiment", "workload", "params", "metric", "backend"]
    tables = {}
    for key, group in frame.groupby(keys, sort=False, observed=True):
        experiment, workload, params, metric, backend = (str(part) for part in key)
        instance = group["instance"].cat.codes.to_numpy()
        names, instance_of = np.unique(instance, return_inverse=True)
        values = group["value"].to_numpy()
        medians = grouped_medians(values, instance_of, len(names))
        blocks = np.empty(len(names), dtype=np.int64)
        blocks[instance_of] = group["block"].to_numpy()
        categories = group["instance"].cat.categories
        by_block = CellBlocks.from_instances(medians, blocks, np.bincount(instance_of, minlength=len(names)))
        instance_names = [str(categories[code]) for code in names]
        numbers = group["iteration"].to_numpy()
        tables[((experiment, workload, params), metric, backend)] = _Table(
            by_block,
            Points(values, numbers, instance_of, medians, instance_names, by_block),
            Unit(group["unit"].iloc[0]),
        )
    return tables


def _subjects(
    manifest: Manifest,
    tables: Mapping[tuple[_SubjectKey, str, str], _Table],
    backends: list[Backend],
    margin: float,
) -> list[Subject]:
    found: dict[_SubjectKey, dict[str, None]] = {}
    for key, metric, _ in tables:
        found.setdefault(key, {}).setdefault(metric)
    order = {name: place for place, name in enumerate(manifest.metrics)}
    subjects = []
    for experiment, workload, params in sorted(found, key=lambda key: key[0] != "boot"):
        key = (experiment, workload, params)
        rows = []
        for name in sorted(found[key], key=lambda name: _metric_rank(workload or experiment, name, order)):
            cells = {one.name: tables[key, name, one.name] for one in backends if (key, name, one.name) in tables}
            unit = next(iter(cells.values())).unit
            described = _metric(manifest, workload or experiment, experiment, name, unit)
            rows.append(Row(described, _cells(cells, backends, described, manifest, margin)))
        subjects.append(Subject(experiment, workload, json.loads(params), rows))
    return subjects


def _metric_rank(owner: str, name: str, order: Mapping[str, int]) -> tuple[int, int]:
    harness = next((1 + place for place, prefix in enumerate(HARNESS_METRICS) if name.startswith(prefix)), 0)
    return harness, order.get(f"{owner}/{name}", len(order))


def _metric(manifest: Manifest, owner: str, experiment: str, name: str, unit: Unit) -> Metric:
    for key in (f"{owner}/{name}", f"{experiment}/{name}"):
        if key in manifest.metrics:
            return manifest.metrics[key]
    return Metric(name, unit, Direction.LOWER, "Not described in this run's manifest; lower is taken as better")


def _cells(
    tables: Mapping[str, _Table], backends: list[Backend], metric: Metric, manifest: Manifest, margin: float
) -> list[CellResult]:
    base = tables.get(manifest.baseline)
    cells = []
    for backend in backends:
        if backend.name not in tables:
            continue
        table = tables[backend.name]
        comparison = None
        if base is not None and not backend.is_baseline:
            comparison = compare(
                table.blocks, base.blocks, direction=metric.direction, margin=margin, seed=manifest.seed
            )
        cells.append(
            CellResult(
                backend=backend,
                blocks=table.blocks,
                estimate=summarise(table.blocks, seed=manifest.seed),
                n_blocks=len(table.blocks.blocks),
                n_instances=int(table.blocks.instances.sum()),
                n_iterations=int(table.blocks.iterations.sum()),
                points=table.points,
                comparison=comparison,
            )
        )
    return cells


def _with_adjusted_verdicts(subjects: list[Subject]) -> list[Subject]:
    """The subjects with false discoveries controlled over all of the run's comparisons."""
    cells = [cell for subject in subjects for row in subject.rows for cell in row.cells]
    given = [cell.comparison for cell in cells if cell.comparison is not None]
    adjusted = iter(control_false_discoveries(given))
    return [
        msgspec.structs.replace(
            subject,
            rows=[
                Row(
                    row.metric,
                    [
                        cell if cell.comparison is None else msgspec.structs.replace(cell, comparison=next(adjusted))
                        for cell in row.cells
                    ],
                )
                for row in subject.rows
            ],
        )
        for subject in subjects
    ]
