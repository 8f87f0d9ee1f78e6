"""How noisy this host is: bare metal measured against itself, through the same machinery as any run.

Two backends of the same type with the same options run the same work in the same random blocks. Whatever differs
between them is noise, and the smallest difference that would stand out from it is the host's noise floor.
"""

from pathlib import Path

import msgspec
import numpy as np

from tare.bench.catalogue import HARNESS_METRICS, Builtin
from tare.bench.model import Direction, Metric
from tare.bench.registry import find_backends, find_workloads
from tare.bench.settings import leading_metric
from tare.bench.stats import CellBlocks, Verdict, control_false_discoveries
from tare.bench.stats.noise import NoiseFloor, noise_floor
from tare.bench.store import LoadedRun
from tare.bench.suite import Suite, bind_suite, resolve_suite
from tare.bench.units import Unit

TWINS = ("bare-metal", "bare-metal again")
FEWEST_BLOCKS = 4
_UNREACHED = 0.0005
"""A precision that no host reaches in minutes: blocks are added until the time is spent."""
_NOWHERE = Path("noise suite")


class MetricFloor(msgspec.Struct, frozen=True):
    """What one metric said of bare metal against itself.

    ``ratio`` with ``low`` and ``high`` (95 %) is A over B, None where values of 0 or one block allow none.
    ``smallest_difference`` is the share by which a metric has to differ to be told from no difference in nine of ten
    runs of this length. ``false_alarm`` says that the two differ, after correction for many comparisons, though they
    are the same.
    """

    subject: str
    metric: str
    unit: Unit
    leading: bool
    ratio: float | None
    low: float | None
    high: float | None
    smallest_difference: float | None
    n_blocks: int
    false_alarm: bool


def noise_suite(time_s: float) -> Suite:
    """Starting, computing, memory and storage on bare metal under two names for ``time_s`` seconds, in blocks of 6."""
    sampling = {
        "blocks": FEWEST_BLOCKS,
        "iterations": 1,
        "warmup": 0,
        "precision": _UNREACHED,
        "max_time": f"{time_s}s",
    }
    source = {
        "suite": {"name": "noise", "description": "How much does bare metal differ from itself on this host?"},
        "sampling": sampling,
        "backend": [{"type": "bare-metal", "name": name} for name in TWINS],
        "experiment": [
            {"kind": Builtin.BOOT},
            {"kind": Builtin.STEADY, "workload": "sysbench-cpu", "params": {"runtime_s": 1}},
            {"kind": Builtin.STEADY, "workload": "sysbench-memory", "params": {"runtime_s": 1}},
            {
                "kind": Builtin.STEADY,
                "workload": "fio",
                "params": {"rw": "randread", "block_size": "4KiB", "size": "16MiB", "runtime_s": 0.5},
            },
        ],
    }
    return bind_suite(resolve_suite(source, _NOWHERE, find_backends(), find_workloads()))


def find_floors(run: LoadedRun) -> list[MetricFloor]:
    """The noise floor of every metric that the work itself measures, the leading one of each workload first.

    Sizes are left out: what memory an instance holds does not vary with the host's noise, and two launchers side by
    side share pages unequally.
    """
    cells = _cells(run)
    names: dict[tuple[str, str], list[str]] = {}
    for experiment, workload, metric, _ in cells:
        known = names.setdefault((experiment, workload), [])
        if metric not in known and not metric.startswith(HARNESS_METRICS):
            known.append(metric)
    found = []
    declared = {name: place for place, name in enumerate(run.manifest.metrics)}
    for (experiment, workload), metrics in names.items():
        owner = workload or experiment
        metrics.sort(key=lambda name: declared.get(f"{owner}/{name}", len(declared)))
        leading = leading_metric(run.manifest.traits_of(experiment), metrics)
        for metric in sorted(metrics, key=lambda name: name != leading):
            sides = [cells.get((experiment, workload, metric, name)) for name in TWINS]
            described = _described(run, owner, metric)
            if sides[0] is None or sides[1] is None or described.unit is Unit.BYTE:
                continue
            floor = noise_floor(sides[0], sides[1], direction=described.direction, margin=0.0, seed=run.manifest.seed)
            found.append((owner, described, metric == leading, floor))
    return _with_corrected_alarms(found)


def _with_corrected_alarms(found: list[tuple[str, Metric, bool, NoiseFloor]]) -> list[MetricFloor]:
    corrected = control_false_discoveries([floor.comparison for *_, floor in found])
    return [
        MetricFloor(
            subject=subject,
            metric=metric.name,
            unit=metric.unit,
            leading=leading,
            ratio=comparison.ratio,
            low=comparison.low,
            high=comparison.high,
            smallest_difference=None if floor.detectable is None else floor.detectable - 1,
            n_blocks=floor.n_blocks,
            false_alarm=comparison.verdict_adjusted in (Verdict.FASTER, Verdict.SLOWER),
        )
        for (subject, metric, leading, floor), comparison in zip(found, corrected, strict=True)
    ]


def _described(run: LoadedRun, owner: str, metric: str) -> Metric:
    known = run.manifest.metrics.get(f"{owner}/{metric}")
    return known or Metric(metric, Unit.COUNT, Direction.LOWER, "")


def _cells(run: LoadedRun) -> dict[tuple[str, str, str, str], CellBlocks]:
    """The blocks of each experiment, workload, metric and backend, warm-up left out, in the order of the samples."""
    table = run.samples
    columns = ("experiment", "workload", "metric", "backend")
    codes = np.stack([table.texts[name].codes for name in columns]) if len(table) else np.empty((4, 0), dtype=int)
    kinds, first, which = np.unique(codes, axis=1, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    cells = {}
    for place in np.argsort(first).tolist():
        kept = (which == place) & ~table.numbers["warmup"]
        if kept.any():
            key = tuple(table.texts[name].kinds[code] for name, code in zip(columns, kinds[:, place], strict=True))
            instances = table.texts["instance"].codes[kept].astype(np.int64)
            cells[key] = CellBlocks.from_samples(table.numbers["value"][kept], instances, table.numbers["block"][kept])
    return cells
