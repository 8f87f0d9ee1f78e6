"""What was found in a run, as values: its subjects, rows and cells, and the analysis that holds all of them.

A *subject* is what is compared across backends (an experiment with a workload and its parameters); it has *rows*, a
metric each; a row has a *cell* for each backend that was measured, with a comparison unless it is the baseline's own.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from tare.bench.analysis.cells import (
    Points,
)
from tare.bench.analysis.density import DensityResult, analyse_density
from tare.bench.analysis.grade import Grade, grade_of
from tare.bench.catalogue import HARNESS_METRICS
from tare.bench.model import Metric
from tare.bench.readable import one_line
from tare.bench.records import Event, Manifest
from tare.bench.stats.comparisons import (
    CellBlocks,
    Comparison,
    Interval,
)
from tare.bench.stats.dependence import Dependence
from tare.bench.stats.noise import NoiseFloor, NoiseSource
from tare.bench.stats.precision import Precision
from tare.bench.stats.warmup import WarmUp
from tare.bench.store import LoadedRun
from tare.bench.traits import ExperimentTraits


class MeasuredBackend(msgspec.Struct, frozen=True):
    """A backend as the report shows it. ``place`` numbers its colour and mark; the baseline has 0.

    ``is_fenced``: its guests' processor is emulated, and the suite does not ask about emulation; its results are told
    apart from what was measured on hardware.
    """

    name: str
    label: str
    place: int
    is_baseline: bool
    is_fenced: bool = False


class CellResult(msgspec.Struct, frozen=True):
    """One metric on one backend. ``estimate`` is in the metric's unit; ``comparison`` is None for the baseline.

    ``warm_up`` is what was found beyond what the suite states, and ``n_warm_up`` how many samples of this metric it
    takes; they are not in anything else here. ``precision`` stands only with the leading metric of what a precision
    was asked for. ``size`` is the number of instances or aggressors at which a metric that has no typical value was
    estimated; its points are of all of them.
    """

    backend: MeasuredBackend
    blocks: CellBlocks
    estimate: Interval
    n_blocks: int
    n_instances: int
    n_iterations: int
    points: Points
    comparison: Comparison | None
    warm_up: WarmUp = WarmUp()
    n_warm_up: int = 0
    precision: Precision | None = None
    size: int | None = None

    @property
    def sizes(self) -> list[int]:
        """The iteration numbers of its points: of a metric taken at several sizes, these."""
        return np.unique(self.points.iteration_numbers).tolist()  # type: ignore[no-any-return]  # of a column of ints

    def median_at(self, size: int) -> float | None:
        """The median of its values at one size; None if it was not measured there."""
        values = self.points.iterations[self.points.iteration_numbers == size]
        return float(np.median(values)) if len(values) else None


class Row(msgspec.Struct, frozen=True):
    """One metric of a subject over the backends, the baseline first.

    ``quantile`` over iterations is what was estimated, and named in the metric; None means the median. ``is_leading``:
    the subject is known by this metric. ``noise_floor`` is the baseline's A/A comparison, None without a baseline.
    """

    metric: Metric
    cells: list[CellResult]
    quantile: float | None = None
    is_leading: bool = False
    noise_floor: NoiseFloor | None = None

    @property
    def size(self) -> int | None:
        """The size at which it was estimated, if at one of several."""
        return self.cells[0].size if self.cells else None

    @property
    def grows(self) -> bool:
        """Whether it was taken at several sizes (``iteration`` is one), not again and again at one."""
        return any(len(cell.sizes) > 2 for cell in self.cells)

    @property
    def is_comparable(self) -> bool:
        """Whether it was estimated at one size, or on all backends at the same: typical values compare only then."""
        return self.size is not None or all(cell.sizes == self.cells[0].sizes for cell in self.cells)

    @property
    def name(self) -> str:
        """The metric's name, and the size that is meant."""
        return self.metric.name if self.size is None else f"{self.metric.name} at {self.size:,}"

    @property
    def base(self) -> CellResult | None:
        """The baseline's cell, if it was measured."""
        return next((cell for cell in self.cells if cell.backend.is_baseline), None)

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
    traits: ExperimentTraits

    @property
    def title(self) -> str:
        """What people call it."""
        return one_line(self.workload or self.experiment)

    @property
    def params_line(self) -> str:
        """Its parameters on one line."""
        return ", ".join(f"{one_line(name)} {one_line(str(value))}" for name, value in self.params.items())

    @property
    def name(self) -> str:
        """What people call it, with its parameters."""
        return f"{self.title} {self.params_line}".strip()


class RunNoise(msgspec.Struct, frozen=True):
    """What the A/A comparisons of a run say together.

    ``tested`` metrics have an interval; ``false_alarms`` are those that came out as different from themselves, as
    (subject, metric), with false discoveries controlled as over the run's comparisons. The detectable ratios are over
    the leading metrics (``leading`` is their number): the median, the largest, and where that is.
    """

    source: NoiseSource
    tested: int
    false_alarms: list[tuple[str, str]]
    detectable: float | None
    leading: int
    detectable_worst: float | None
    worst: tuple[str, str] | None


class Analysis(msgspec.Struct, frozen=True, dict=True):
    """A run with everything estimated. ``baseline`` is None if it was not measured.

    ``margin`` holds for metrics without a margin of their own: each comparison has the one that was used. ``notes``
    say what was asked for and could not be estimated. ``warmup_samples`` the suite states to be warm-up,
    ``warmup_found`` are those found beyond. ``dependence`` is that of neighbouring blocks, by backend, as the leading
    metrics show it together.
    """

    run: LoadedRun
    backends: list[MeasuredBackend]
    baseline: MeasuredBackend | None
    subjects: list[Subject]
    failures: list[Event]
    margin: float
    warmup_samples: int
    warmup_found: int = 0
    noise: RunNoise | None = None
    notes: tuple[str, ...] = ()
    dependence: Mapping[str, Dependence] = {}

    @cached_property
    def density(self) -> tuple[DensityResult, ...]:
        """What is fitted to the run's density ramps; found when first asked for, as most forms never do."""
        return analyse_density(self.run.samples, self.run.events)

    @cached_property
    def grade(self) -> Grade:
        """How far this run can be relied on."""
        return grade_of(self)

    @property
    def manifest(self) -> Manifest:
        """The run's manifest."""
        return self.run.manifest

    @property
    def rows(self) -> list[tuple[Subject, Row]]:
        """Every row with its subject."""
        return [(subject, row) for subject in self.subjects for row in subject.rows]

    @property
    def cells(self) -> list[tuple[Subject, Row, CellResult]]:
        """Every cell with its subject and its row."""
        return [(subject, row, cell) for subject, row in self.rows for cell in row.cells]

    @property
    def measured(self) -> set[str]:
        """The names of the backends that anything was measured on."""
        return {cell.backend.name for *_, cell in self.cells}

    @property
    def comparisons(self) -> list[tuple[Subject, Row, CellResult, Comparison]]:
        """Every comparison with where it belongs."""
        return [(*place, found) for place in self.cells if (found := place[-1].comparison) is not None]
