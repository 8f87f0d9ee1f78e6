"""How noisy this host is: bare metal measured against itself, through the same machinery as any run.

Two backends of the same type with the same options run the same work in the same random blocks. Whatever differs
between them is noise, and the smallest difference that would stand out from it is the host's noise floor.
"""

from pathlib import Path

import msgspec

from tare.bench.analysis import analyse
from tare.bench.catalogue import Builtin
from tare.bench.registry import find_backends, find_workloads
from tare.bench.stats import NoiseSource, Verdict, control_false_discoveries
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
    found = [
        (subject.title, row, row.noise_floor)
        for subject in analyse(run, margin=0.0).subjects
        for row in sorted(subject.rows, key=lambda row: not row.is_leading)
        if row.noise_floor is not None and row.noise_floor.source is NoiseSource.TWIN
        if row.is_workload_metric and row.metric.unit is not Unit.BYTE
    ]
    corrected = control_false_discoveries([floor.comparison for *_, floor in found])
    return [
        MetricFloor(
            subject=subject,
            metric=row.metric.name,
            unit=row.metric.unit,
            leading=row.is_leading,
            ratio=comparison.ratio,
            low=comparison.low,
            high=comparison.high,
            smallest_difference=None if floor.detectable is None else floor.detectable - 1,
            n_blocks=floor.n_blocks,
            false_alarm=comparison.verdict_adjusted in (Verdict.FASTER, Verdict.SLOWER),
        )
        for (subject, row, floor), comparison in zip(found, corrected, strict=True)
    ]
