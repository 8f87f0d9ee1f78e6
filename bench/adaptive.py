"""Adds blocks to a run until its cells are known as exactly as the suite asks, or its time is spent.

Blocks beyond the fixed ones hold the cells that are not there yet, and the baseline as long as one of its partners
needs it, since ratios are paired by block; cells that are done make room. What takes part in a block follows from the
samples of the blocks before it and from nothing else, so a run that is resumed goes on as it would have gone.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from statistics import fmean
from typing import Any

import msgspec
import numpy as np

from tare.bench.analysis import MeasuredBackend
from tare.bench.analysis.cells import CellSamples, CellTable, make_table
from tare.bench.analysis.estimates import Terms, estimate_row
from tare.bench.catalogue import HARNESS_METRICS, NoteCode
from tare.bench.design import fixed_blocks, further_block
from tare.bench.records import Cell, Event, EventKind, PlannedInstance, Sample
from tare.bench.runner import Outcome, Runner, make_event
from tare.bench.settings import leading_metric
from tare.bench.stats.comparisons import Floats
from tare.bench.stats.precision import FEWEST, Precision, Standing, blocks_needed, plain_half_width
from tare.bench.stats.warmup import shared_warm_up
from tare.bench.store import RunStore, attempt_of
from tare.bench.suite import Scenario, Suite

FAILURES = 3
"""A cell whose instances failed so often running is given up."""
HOPELESS = 4
"""A cell that needs this many times the blocks it may have is given up: a spread that eight blocks show is four
times the true one less than once in forty times."""


_NO_LIMIT = 10**9


class SamplingEnd(StrEnum):
    """Why no further block is run."""

    REACHED = "reached"
    """Every cell that can reach the precision has reached it."""
    TIME = "time"
    BLOCKS = "blocks"
    """Their largest number is reached."""


class CellStanding(msgspec.Struct, frozen=True):
    """Where one cell stands. ``metric`` is the leading one; empty where nothing was measured."""

    cell: str
    metric: str
    precision: Precision


class Sampler:
    """Watches a run and says what its next block holds."""

    def __init__(self, suite: Suite, baseline: str) -> None:
        """``baseline`` is the name of the backend that others are compared with."""
        self._suite = suite
        self._baseline = baseline
        self._backends = [
            MeasuredBackend(choice.name, choice.name, place, is_baseline=choice.name == baseline)
            for place, choice in enumerate(suite.backends)
        ]
        self._scenarios = {one.key: one for one in suite.scenarios if one.sampling.precision}
        self._samples: dict[tuple[str, str, str], _Growing] = defaultdict(_Growing)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._failures: dict[str, int] = defaultdict(int)
        self._spent_s = 0.0
        self._budget_s = suite.sampling.max_time
        self.ending: SamplingEnd | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether the suite asks for a precision at all."""
        return bool(self._scenarios)

    def add(self, sample: Sample) -> None:
        """Take note of a sample; of those that count for a precision it keeps the value."""
        if sample.warmup or sample.metric.startswith(HARNESS_METRICS):
            return
        key = Cell(sample.experiment, sample.workload, sample.params, "").subject
        if key in self._scenarios:
            self._samples[key, sample.metric, sample.backend].add(sample)

    def ended(self, cell: str, seconds: float, *, failed: bool) -> None:
        """Take note of how long an instance of a cell took, and whether it failed."""
        self._spent_s += seconds
        self._seconds[cell].append(seconds)
        self._failures[cell] = self._failures[cell] + 1 if failed else 0

    def catch_up(self, samples: Iterable[Sample], events: Sequence[Event]) -> None:
        """Take note of what a run that goes on has measured, and of the time that it took."""
        for sample in samples:
            self.add(sample)
        started: dict[str, float] = {}
        for event in events:
            if event.kind is EventKind.INSTANCE_STARTED:
                started[event.instance] = event.at_s
            elif event.kind in (EventKind.INSTANCE_DONE, EventKind.INSTANCE_FAILED) and event.instance in started:
                seconds = max(0.0, event.at_s - started[event.instance])
                self.ended(event.cell, seconds, failed=event.kind is EventKind.INSTANCE_FAILED)

    def next_block(self, further: int, begun: Collection[str] = ()) -> list[PlannedInstance]:
        """The instances of the block ``further`` (from 0) beyond the fixed ones; empty where none is to be run.

        Then ``ending`` says why. ``begun`` are instances that ended earlier, in a run that goes on: a block with one of
        them is run whole, whatever it takes.
        """
        block = fixed_blocks(self._suite) + further
        wanting = {one.cell for one in self.standings(block) if one.precision.standing is Standing.NOT_REACHED}
        if not wanting:
            self.ending = SamplingEnd.REACHED
            return []
        cells = {
            cell for scenario in self._scenarios.values() for cell in self._taking_part(scenario, wanting, further)
        }
        plan = further_block(self._suite, block, cells)
        if not plan:
            self.ending = SamplingEnd.BLOCKS
            return []
        expected = sum(fmean(self._seconds[planned.cell.key] or [0.0]) for planned in plan)
        if self._spent_s + expected > self._budget_s and not any(one.identifier in begun for one in plan):
            self.ending = SamplingEnd.TIME
            return []
        return plan

    def standings(self, block: int | None = None) -> list[CellStanding]:
        """Where every cell stands that a precision is asked of, by the samples of the blocks before ``block``."""
        found = []
        for key, scenario in self._scenarios.items():
            metric, tables = self._tables(key, scenario, block)
            precisions = self._precisions(scenario, metric, tables)
            for choice in self._suite.backends:
                if choice.name == self._baseline and choice.name in precisions and len(self._suite.backends) > 1:
                    continue
                cell = scenario.cell(choice.name).key
                precision = precisions.get(choice.name) or Precision(
                    Standing.CANNOT, scenario.sampling.precision or 0.0, None, 0, None, "nothing was measured"
                )
                note = self._given_up(scenario, cell, tables.get(choice.name), tables.get(self._baseline))
                if precision.standing is Standing.NOT_REACHED and note:
                    precision = msgspec.structs.replace(precision, standing=Standing.CANNOT, note=note)
                found.append(CellStanding(cell, metric, precision))
        return found

    def _given_up(self, scenario: Scenario, cell: str, ours: CellTable | None, base: CellTable | None) -> str:
        """Why no further block is spent on a cell; empty while there is hope."""
        if self._failures[cell] >= FAILURES:
            return f"its last {self._failures[cell]} instances failed"
        logs = _block_logs(ours, base)
        if len(logs) < FEWEST:
            return ""
        # By the plain spread of its blocks: the interval may be wide for other reasons, which more blocks resolve.
        half = plain_half_width(float(logs.std(ddof=1)), len(logs))
        needed = blocks_needed(half, len(logs), scenario.sampling.precision or 0)
        allowed = self._blocks_allowed(scenario, cell)
        if needed <= HOPELESS * allowed:
            return ""
        return f"given up after {len(logs)} blocks: about {needed} needed, {allowed} possible"

    def _blocks_allowed(self, scenario: Scenario, cell: str) -> int:
        """The blocks that a cell could have if the whole time were its own, by the time that its first blocks took."""
        cells = {cell, scenario.cell(self._baseline).key}
        # Of the first blocks alone: a run that goes on decides as it would have decided.
        first = FEWEST * scenario.sampling.instances
        a_block = sum(fmean(self._seconds[one][:first] or [0.0]) for one in cells) * scenario.sampling.instances
        by_time = int(self._budget_s / a_block) if a_block > 0 else _NO_LIMIT
        return min(by_time, scenario.sampling.max_blocks or _NO_LIMIT)

    def record(self) -> dict[str, Any]:
        """Where the cells stand, for an event of the run."""
        standings = self.standings()
        return {
            "code": NoteCode.PRECISION,
            "ending": self.ending or "interrupted",
            "spent_s": round(self._spent_s, 3),
            "cells": [msgspec.to_builtins(one) for one in standings],
        }

    def _tables(self, key: str, scenario: Scenario, block: int | None) -> tuple[str, Mapping[str, CellTable]]:
        """The leading metric, and what each backend measured of it."""
        traits, seed = scenario.experiment.traits, self._suite.seed
        measured = {metric for scenario_key, metric, _ in self._samples if scenario_key == key}
        metrics = {metric.name: metric for metric in scenario.metrics if metric.name in measured}
        leading = leading_metric(traits, list(metrics))
        if leading is None:
            return "", {}
        measured_by = {}
        for backend in self._backends:
            own = self._samples.get((key, leading, backend.name))
            samples, names = own.samples(block) if own is not None else (None, [])
            if samples is not None and len(samples.values):
                measured_by[backend.name] = samples, names
        warm_ups = shared_warm_up(
            {name: samples.find_warm_up(traits, seed=seed) for name, (samples, _) in measured_by.items()}
        )
        return leading, {
            name: make_table(samples, names, metrics[leading].unit, warm_ups[name])
            for name, (samples, names) in measured_by.items()
        }

    def _precisions(
        self, scenario: Scenario, leading: str, tables: Mapping[str, CellTable]
    ) -> Mapping[str, Precision | None]:
        """How precisely each backend that was measured is known, as the analysis has it."""
        if not tables:
            return {}
        metric = next(one for one in scenario.metrics if one.name == leading)
        terms = Terms(self._backends, self._suite.seed)
        row = estimate_row(terms, scenario.experiment.traits, metric, tables, wanted=scenario.sampling.precision)
        return {cell.backend.name: cell.precision for cell in row.cells}

    def _taking_part(self, scenario: Scenario, wanting: set[str], further: int) -> set[str]:
        most = scenario.sampling.max_blocks
        if most is not None and scenario.sampling.blocks + further >= most:
            return set()
        cells = {cell for choice in self._suite.backends if (cell := scenario.cell(choice.name).key) in wanting}
        names = [choice.name for choice in self._suite.backends]
        return cells | {scenario.cell(self._baseline).key} if cells and self._baseline in names else cells


def _block_logs(ours: CellTable | None, base: CellTable | None) -> Floats:
    """The logs of a cell's blocks, over those of the baseline where it has them; empty where a value has none."""
    if ours is None:
        return np.zeros(0)
    blocks = ours.points.blocks
    values = blocks.values
    if base is not None and base is not ours:
        shared = np.intersect1d(blocks.blocks, base.points.blocks.blocks)
        values = blocks.at(shared).values / base.points.blocks.at(shared).values
    return np.log(values) if len(values) and values.min() > 0 else np.zeros(0)


class _Growing:
    """The samples of one metric of one cell, as they come."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._numbers: list[tuple[int, int, int]] = []
        self._instances: dict[str, int] = {}

    def add(self, sample: Sample) -> None:
        instance = self._instances.setdefault(sample.instance, len(self._instances))
        self._values.append(sample.value)
        self._numbers.append((instance, sample.block, sample.iteration))

    def samples(self, before: int | None) -> tuple[CellSamples, list[str]]:
        """Those of the blocks before this one, and all instances' names by number.

        Of an instance that was measured again only the last attempt counts.
        """
        latest: dict[str, tuple[int, int]] = {}
        for name, number in self._instances.items():
            planned, attempt = attempt_of(name)
            latest[planned] = max(latest.get(planned, (0, 0)), (attempt, number))
        counting = [number for _, number in latest.values()]
        numbers = np.array(self._numbers, dtype=np.int64).reshape(-1, 3)
        kept = np.isin(numbers[:, 0], counting)
        instances, blocks, iterations = numbers[kept].T
        found = CellSamples(np.array(self._values)[kept], instances, blocks, iterations)
        return found if before is None else found.where(blocks < before), list(self._instances)


def run_until_precise(
    sampler: Sampler,
    runner: Runner,
    store: RunStore,
    show: Callable[[Sequence[PlannedInstance], str], None],
    *,
    outcome: Outcome,
    attempts: Mapping[str, int],
    done: Collection[str],
) -> Outcome:
    """Go on from the ``outcome`` of the fixed blocks. ``done`` ended before this session, in a run that goes on.

    Each further block is shown before it is run, with where the run stands.
    The manifest's number of planned instances grows with the blocks. The last event says where each cell stands.
    """
    further = 0
    while not outcome.interrupted:
        block = sampler.next_block(further, done)
        if not block:
            break
        further += 1
        planned = store.manifest.planned_instances + len(block)
        store.save_manifest(msgspec.structs.replace(store.manifest, planned_instances=planned))
        plan = [one for one in block if one.identifier not in done]
        if not plan:
            continue
        show(plan, describe(sampler.standings()))
        before = outcome.done + outcome.failed
        found = runner.run(plan, attempts, before=before)
        outcome = Outcome(outcome.done + found.done, outcome.failed + found.failed, found.interrupted)
    standings = sampler.standings()
    store.add_event(make_event(EventKind.NOTE, describe(standings), details=sampler.record()))
    return outcome


def describe(standings: Sequence[CellStanding]) -> str:
    """How many cells are as precise as asked for, and the one that is farthest from it."""
    reached = sum(one.precision.standing is Standing.REACHED for one in standings)
    text = f"{reached} of {len(standings)} cells are as precise as asked for"
    open_ones = [one for one in standings if one.precision.standing is Standing.NOT_REACHED]
    known = [(one.precision.half_width, one) for one in open_ones if one.precision.half_width is not None]
    if known:
        half, worst = max(known, key=lambda entry: entry[0])
        found = worst.precision
        text += (
            f"; {worst.cell}: ±{100 * half:.2g} % of ±{100 * found.wanted:.2g} % after {found.n_blocks} blocks, "
            f"about {found.needed} needed"
        )
    impossible = sum(one.precision.standing is Standing.CANNOT for one in standings)
    return text + (f"; {impossible} cannot be" if impossible else "")
