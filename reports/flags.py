"""What stands out in a run and may have disturbed it: the values that every form of report shows.

A flag never changes an estimate: it says where to doubt one. ``disturbances`` and ``order`` raise them.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

EVERY_CELL = "every cell"
EVERY_BACKEND = "every backend"
"""Stand for experiment and backend in a flag on the whole run."""


class FlagKind(StrEnum):
    """What stands out."""

    STEAL = "steal"
    OTHER_LOAD = "other-load"
    CPU_PRESSURE = "cpu-pressure"
    MEMORY_PRESSURE = "memory-pressure"
    IO_PRESSURE = "io-pressure"
    FREQUENCY = "frequency"
    THROTTLING = "throttling"
    CLOCK_STEP = "clock-step"
    CLOCK_SOURCE = "clock-source"
    GUEST_CLOCK = "guest-clock"
    AUTOCORRELATION = "autocorrelation"
    DRIFT = "drift"


class Flag(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that stands out in one cell, or in the whole run (``EVERY_CELL``, ``EVERY_BACKEND``).

    ``metrics`` are those concerned, the worst first; empty means all of the cell. ``instances`` are those that stand
    out, of the cell's ``n_instances``; empty for the tests of order, which concern the cell as a whole. ``value`` is
    the worst (a share of time, Hz, a count, seconds, a correlation, a relative change), ``usual`` the cell's median.
    ``q_value`` is that of a test, after control of false discoveries. ``sentence`` is for people, without the cell's
    name; ``workload``, ``params`` and ``backend`` are the suite's own text and have to be escaped where shown.
    """

    kind: FlagKind
    experiment: str
    workload: str
    params: Mapping[str, Any]
    backend: str
    metrics: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()
    n_instances: int
    value: float
    usual: float | None = None
    q_value: float | None = None
    sentence: str


class CellName(NamedTuple):
    """A cell as samples tell it; ``params`` is JSON (``tare.reports.samples.params_text``)."""

    experiment: str
    workload: str
    params: str
    backend: str


def make_flag(cell: CellName, **values: Any) -> Flag:
    """A flag of a cell; ``values`` are its other fields."""
    return Flag(
        experiment=cell.experiment,
        workload=cell.workload,
        params=json.loads(cell.params),
        backend=cell.backend,
        **values,
    )
