"""From a run's samples to what is estimated: one table per metric and cell, warm-up left out.

Subjects come in the order in which the suite states them (a run measures them in a random one), metrics as a report
shows them: a workload's own first.

Metrics of experiments that grow (``ExperimentTraits.grows_with``) are taken at several sizes: the number of instances
or aggressors is a sample's ``iteration``. A total over all instances has no typical value (the median of a ramp to 100
against that of one to 1,000 would be a ratio of ramps), so it is estimated at the largest size that every backend
reached. A metric of each start or step has a typical value, and is compared only where the sizes were the same.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.catalogue import HARNESS_METRICS, Builtin
from tare.bench.samples import SampleTable, params_text
from tare.bench.settings import leading_metric
from tare.bench.stats.comparisons import CellBlocks, Comparison, Floats, Integers, Verdict, grouped_medians
from tare.bench.stats.warmup import NOTHING_FOUND, WarmUp, find_warm_up, shared_warm_up
from tare.bench.store import LoadedRun
from tare.bench.traits import ExperimentTraits
from tare.bench.units import Unit

NOT_COMPARED = "taken at other sizes: no ratio"
_MOST_COMBINATIONS = 100_000
"""More than any run has; a manifest can state anything."""

SubjectKey = tuple[str, str, str]
"""Experiment, workload, and parameters as JSON with sorted keys."""


class CellSamples(msgspec.Struct, frozen=True):
    """One entry a sample: its value, and the numbers of its instance, its block, and its iteration in the instance.

    What the suite states to be warm-up is not among them.
    """

    values: Floats
    instances: Integers
    blocks: Integers
    iterations: Integers

    def find_warm_up(self, traits: ExperimentTraits, *, seed: int = 0) -> WarmUp:
        """The warm-up that is left in these samples, those of the cell's leading metric, where there may be one."""
        if not traits.warms_up or not len(self.values):
            return NOTHING_FOUND
        return find_warm_up(self.values, self.instances, self.iterations, seed=seed)

    def after(self, warm_up: WarmUp) -> Self:
        """Without the iterations that were found to be warm-up. What was measured once an instance has none."""
        if warm_up.iterations == 0 or len(np.unique(self.instances)) == len(self.instances):
            return self
        return self.where(self.iterations >= warm_up.first_settled)

    def by_block(self) -> CellBlocks:
        """Each block's value: the median over its instances of the medians over their iterations."""
        return _reduce(self)[-1]

    def where(self, kept: NDArray[np.bool_]) -> Self:
        """Only those samples."""
        return type(self)(self.values[kept], self.instances[kept], self.blocks[kept], self.iterations[kept])


class Points(msgspec.Struct, frozen=True):
    """The values behind a cell: every iteration with its number and its instance's, and each instance's median.

    ``blocks`` holds each block's value, as comparisons take it.
    """

    iterations: Floats
    iteration_numbers: Integers
    instance_of: Integers
    instance_medians: Floats
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

    ``metrics`` holds the subjects and their metrics in a report's order; ``leading`` is what a subject is known by.
    """

    tables: Mapping[tuple[SubjectKey, str], Mapping[str, CellTable]]
    metrics: Mapping[SubjectKey, tuple[str, ...]]
    leading: Mapping[SubjectKey, str | None]


def make_tables(run: LoadedRun) -> CellTables:
    """The tables of everything that was measured and is not warm-up, neither stated by the suite nor found here."""
    raw = {key: (samples, unit) for key, samples, unit in _raw_cells(run.samples)}
    order = {name: place for place, name in enumerate(run.manifest.metrics)}
    found: dict[SubjectKey, dict[str, None]] = {}
    for subject, metric, _ in raw:
        found.setdefault(subject, {}).setdefault(metric)
    metrics = {
        subject: tuple(sorted(found[subject], key=lambda name, key=subject: _rank(key[1] or key[0], name, order)))  # type: ignore[misc]  # mypy knows no default of a lambda
        for subject in in_suite_order(run.manifest.suite, found)
    }
    leading = {subject: leading_metric(run.manifest.traits_of(subject[0]), names) for subject, names in metrics.items()}
    warm_ups: dict[SubjectKey, dict[str, WarmUp]] = {}
    for (subject, metric, backend), (samples, _) in raw.items():
        if metric == leading[subject]:
            own = samples.find_warm_up(run.manifest.traits_of(subject[0]), seed=run.manifest.seed)
            warm_ups.setdefault(subject, {})[backend] = own
    shared = {subject: shared_warm_up(found) for subject, found in warm_ups.items()}
    names = run.samples.texts["instance"].kinds * len(run.samples.texts["host"].kinds)
    tables: dict[tuple[SubjectKey, str], dict[str, CellTable]] = {}
    for (subject, metric, backend), (samples, unit) in raw.items():
        warm_up = shared.get(subject, {}).get(backend, NOTHING_FOUND)
        tables.setdefault((subject, metric), {})[backend] = make_table(samples, names, unit, warm_up)
    return CellTables(tables, metrics, leading)


def make_table(whole: CellSamples, names: Sequence[str], unit: Unit, warm_up: WarmUp) -> CellTable:
    """The table of one metric of one cell. ``names`` are the instances' by number; ``warm_up`` is left out."""
    samples = whole.after(warm_up)
    codes, instance_of, medians, by_block = _reduce(samples)
    named = [names[code] for code in codes]
    points = Points(samples.values, samples.iterations, instance_of, medians, named, by_block)
    return CellTable(samples, points, unit, warm_up, len(whole.values) - len(samples.values))


def have_same_sizes(traits: ExperimentTraits, first: Points, second: Points) -> bool:
    """Whether two cells of a metric were taken at the same sizes; always true in experiments that have none."""
    if not traits.grows_with:
        return True
    ours, theirs = np.unique(first.iteration_numbers), np.unique(second.iteration_numbers)
    return bool(np.array_equal(ours, theirs))


def common_size(traits: ExperimentTraits, metric: str, tables: Mapping[str, CellTable]) -> int | None:
    """The largest size that every backend reached; None for a metric that has a typical value, or none in common."""
    if not traits.is_sized(metric):
        return None
    sizes = [set(np.unique(table.points.iteration_numbers).tolist()) for table in tables.values()]
    if all(len(each) < 2 for each in sizes):
        return None
    return max(set.intersection(*sizes), default=None)


def at_size(table: CellTable, size: int) -> CellTable:
    """The same with the blocks' values at that size alone; its points remain those of all sizes."""
    by_block = table.samples.where(table.samples.iterations == size).by_block()
    return msgspec.structs.replace(table, points=msgspec.structs.replace(table.points, blocks=by_block))


def without_ratio(found: Comparison) -> Comparison:
    """A comparison of what was taken at different sizes: it says so, and no more."""
    return msgspec.structs.replace(
        found,
        ratio=None,
        low=None,
        high=None,
        verdict=Verdict.INCONCLUSIVE,
        verdict_adjusted=Verdict.INCONCLUSIVE,
        p_value=None,
        q_value=None,
        method="none",
        note=NOT_COMPARED,
    )


def in_suite_order(suite: Mapping[str, Any], keys: Iterable[SubjectKey]) -> list[SubjectKey]:
    """Starts first, then as stated, then what the suite does not state, in the order given."""
    places: dict[SubjectKey, int] = {}
    for key in itertools.islice(_stated(suite), _MOST_COMBINATIONS):
        places.setdefault(key, len(places))
    return sorted(keys, key=lambda key: (key[0] != Builtin.BOOT, places.get(key, len(places))))


def _stated(suite: Mapping[str, Any]) -> Iterator[SubjectKey]:
    """Every combination of parameters and options that the suite's experiments have: a list is a dimension."""
    sections = suite.get("experiment")
    for section in sections if isinstance(sections, list) else ():
        if not isinstance(section, dict):
            continue
        dimensions: dict[str, Any] = {}
        for name in ("params", "options"):
            given = section.get(name)
            dimensions |= given if isinstance(given, dict) else {}
        values = [value if isinstance(value, list) else [value] for value in dimensions.values()]
        for combination in itertools.product(*values):
            params = dict(zip(dimensions, combination, strict=True))
            yield str(section.get("kind")), str(section.get("workload") or ""), params_text(params)


def _raw_cells(table: SampleTable) -> Iterator[tuple[tuple[SubjectKey, str, str], CellSamples, Unit]]:
    """Each metric of each cell with its samples but for the suite's own warm-up, in the order of their first.

    Blocks and instances are those of a host: two hosts have none in common, whatever their numbers and names are.
    """
    hosts = table.texts["host"].codes.astype(np.int64)
    blocks = table.numbers["block"] + hosts * (1 + table.numbers["block"].max(initial=0))
    instances = table.texts["instance"].codes + hosts * len(table.texts["instance"].kinds)
    kept = np.flatnonzero(~table.numbers["warmup"])
    columns = [table.texts[name].written() for name in ("experiment", "workload", "params", "metric", "backend")]
    combined = np.zeros(len(kept), dtype=np.int64)
    for kinds, codes in columns:
        combined = combined * len(kinds) + codes[kept]
    _, first, group = np.unique(combined, return_index=True, return_inverse=True)
    by_group = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(first)))
    for place in np.argsort(first).tolist():
        start = ends[place - 1] if place else 0
        rows = kept[by_group[start : ends[place]]]
        experiment, workload, params, metric, backend = (kinds[codes[rows[0]]] for kinds, codes in columns)
        samples = CellSamples(
            table.numbers["value"][rows], instances[rows], blocks[rows], table.numbers["iteration"][rows]
        )
        unit = table.texts["unit"]
        yield ((experiment, workload, params), metric, backend), samples, unit.kinds[unit.codes[rows[0]]]


def _rank(owner: str, name: str, order: Mapping[str, int]) -> tuple[int, int]:
    harness = next((1 + place for place, prefix in enumerate(HARNESS_METRICS) if name.startswith(prefix)), 0)
    return harness, order.get(f"{owner}/{name}", len(order))


def _reduce(samples: CellSamples) -> tuple[Integers, Integers, Floats, CellBlocks]:
    """The instances' numbers, each sample's place among them, their medians, and the values of their blocks."""
    codes, instance_of = np.unique(samples.instances, return_inverse=True)
    medians = grouped_medians(samples.values, instance_of, len(codes))
    blocks = np.empty(len(codes), dtype=np.int64)
    blocks[instance_of] = samples.blocks
    counts = np.bincount(instance_of, minlength=len(codes))
    return codes, instance_of, medians, CellBlocks.from_instances(medians, blocks, counts)
