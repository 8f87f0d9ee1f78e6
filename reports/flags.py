"""Flags on what the host counted while instances lived: steal, other load, pressure, frequency, heat, clocks.

An instance is flagged where it stands out from its cell: by the modified z-score of Iglewicz and Hoaglin (1993, beyond
3.5, with the larger of the run's and the cell's own median absolute deviation), and by an absolute floor, as on a quiet
host trifles stand out. What only others can cause is also flagged above a level of its own, even if every instance has
it. Flags on guests' clocks and on the order of values are added.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
import numpy as np

from tare.bench.analysis import Analysis
from tare.bench.catalogue import NoteCode
from tare.bench.disturbance import Disturbance, disturbance_of
from tare.bench.readable import one_line
from tare.bench.records import Event, EventKind
from tare.bench.samples import params_text
from tare.bench.stats.series import SeriesTest, drift, serial_correlation
from tare.bench.store import LoadedRun

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


_BEFORE_PERCENT = re.compile(r"(?<=\d)(?=%)")


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

    @property
    def where(self) -> str:
        """The workload or experiment with its parameters, on one line."""
        params = params_text(self.params) if self.params else ""
        return " ".join(one_line(part) for part in (self.workload or self.experiment, params) if part)


class CellName(NamedTuple):
    """A cell as samples name it; ``params`` is JSON with sorted keys."""

    experiment: str
    workload: str
    params: str
    backend: str


def make_flag(cell: CellName, *, sentence: str, **values: Any) -> Flag:
    """A flag of a cell; ``values`` are its other fields. A per cent sign gets its space."""
    return Flag(
        sentence=_BEFORE_PERCENT.sub(" ", sentence),
        experiment=cell.experiment,
        workload=cell.workload,
        params=json.loads(cell.params),
        backend=cell.backend,
        **values,
    )


def clock_flags(run: LoadedRun, cells: Mapping[str, CellName]) -> Iterator[Flag]:
    """A flag for each cell with such commands. ``cells`` are those of the instances that gave samples."""
    found: dict[CellName, list[Event]] = {}
    for event in run.events:
        is_told = event.note_code == NoteCode.CLOCK and "guest_s" in event.details
        if is_told and event.instance in cells:
            found.setdefault(cells[event.instance], []).append(event)
    for cell, events in found.items():
        yield _flag(cell, events, sum(one == cell for one in cells.values()))


def _flag(cell: CellName, events: list[Event], n_instances: int) -> Flag:
    instances = tuple(dict.fromkeys(event.instance for event in events))
    worst = max((event.details for event in events), key=_difference)
    times = "a command's duration" if len(events) == 1 else f"the durations of {len(events)} commands"
    return make_flag(
        cell,
        kind=FlagKind.GUEST_CLOCK,
        instances=instances,
        n_instances=n_instances,
        value=_difference(worst),
        sentence=(
            f"In {len(instances)} of {n_instances} instances the guest's clock and the host's disagree about {times}, "
            f"at worst {worst['guest_s']:.3f} s and {worst['host_s']:.3f} s ({worst['allowed_s']:.3f} s may lie "
            "between them): what a tool timed inside cannot be believed there."
        ),
    )


def _difference(told: Mapping[str, Any]) -> float:
    """As a share of the host's duration."""
    return abs(float(told["guest_s"]) - float(told["host_s"])) / max(float(told["host_s"]), 1e-9)


FALSE_DISCOVERIES = 0.05
SMALLEST_CORRELATION = 0.2
SMALLEST_DRIFT = 0.02


class _Tested(NamedTuple):
    kind: FlagKind
    cell: CellName
    metric: str
    test: SeriesTest
    n_instances: int


def order_flags(analysis: Analysis) -> Iterator[Flag]:
    """Every flag on the order of a run's values."""
    tested = list(_order_tests(analysis))
    if not tested:
        return
    from scipy.stats import false_discovery_control

    q_values = false_discovery_control([one.test.p_value for one in tested]).tolist()
    kept: dict[tuple[FlagKind, CellName], list[tuple[_Tested, float]]] = {}
    for one, q in zip(tested, q_values, strict=True):
        smallest = SMALLEST_DRIFT if one.kind is FlagKind.DRIFT else SMALLEST_CORRELATION
        if q <= FALSE_DISCOVERIES and abs(one.test.size) >= smallest:
            kept.setdefault((one.kind, one.cell), []).append((one, q))
    for (kind, cell), each in kept.items():
        each.sort(key=lambda entry: -abs(entry[0].test.size))
        worst, q = each[0]
        yield make_flag(
            cell,
            kind=kind,
            metrics=tuple(one.metric for one, _ in each),
            n_instances=worst.n_instances,
            value=worst.test.size,
            q_value=q,
            sentence=_order_sentence(worst, len(each) - 1),
        )


def _order_tests(analysis: Analysis) -> Iterator[_Tested]:
    """Every test of order that a run's samples allow, warm-up left out.

    Serial correlation only where iterations repeat the same thing: in a ramp each is another step.
    """
    seed = analysis.manifest.seed
    for subject, row, result in analysis.cells:
        if row.quantile is not None:
            continue
        cell = CellName(subject.experiment, subject.workload, params_text(subject.params), result.backend.name)
        tests = {FlagKind.DRIFT: drift(result.points.blocks.values)}
        if subject.traits.warms_up:
            correlation = serial_correlation(result.points.iterations, result.points.instance_of, seed=seed)
            tests[FlagKind.AUTOCORRELATION] = correlation
        for kind, test in tests.items():
            if test is not None:
                yield _Tested(kind, cell, row.metric.name, test, result.n_instances)


def _order_sentence(worst: _Tested, others: int) -> str:
    name = one_line(worst.metric, 60)
    also = f" (and {others} more metric{'s' if others > 1 else ''})" if others else ""
    size = worst.test.size
    if worst.kind is FlagKind.DRIFT:
        way = "up" if size > 0 else "down"
        return (
            f"{name}{also} drifted {way} by {abs(size):.0%} from the first block to the last; a drift that all "
            "backends share cancels in the ratios, the typical value alone does not hold for the whole run."
        )
    how = "like the one before it" if size > 0 else "unlike the one before it"
    return (
        f"Iterations of {name}{also} are {how} (rank correlation {size:+.2f}): they tell less than their number "
        "suggests; intervals rest on blocks and are not changed by it."
    )


Z_LIMIT = 3.5
"""Iglewicz and Hoaglin 1993: a modified z-score beyond it is an outlier."""
_MIN_INSTANCES = 3
_NEARLY_ALL = 0.7
_SCALE = 1.4826
"""The median absolute deviation times this is the standard deviation of normal values."""


class _Rule(msgspec.Struct, frozen=True):
    """When a quantity stands out: by ``floor`` above (``sign`` -1: below) the cell's median, or beyond ``level``.

    ``seconds`` is the least amount of time that has to be behind a share, as counters have ticks. A ``relative`` floor
    is a share of the median.
    """

    kind: FlagKind
    quantity: Callable[[Disturbance], float | None]
    text: str
    floor: float
    level: float | None = None
    seconds: float = 0.0
    sign: int = 1
    relative: bool = False


def flags_of(analysis: Analysis) -> list[Flag]:
    """Every flag of a run, by kind; works on runs that are empty or interrupted."""
    cells = _cells_by_instance(analysis.run)
    found = [*_host_flags(analysis.run, cells), *clock_flags(analysis.run, cells), *order_flags(analysis)]
    return sorted(found, key=lambda flag: (list(FlagKind).index(flag.kind), flag.workload, flag.backend))


def _of_time(
    seconds: Callable[[Disturbance], float | None], *, by_cpu: bool = False
) -> Callable[[Disturbance], float | None]:
    """A share of the time that the instance lived, or of its CPUs' time."""

    def share(one: Disturbance) -> float | None:
        value, whole = seconds(one), one.span_s * (one.cpus if by_cpu else 1)
        # Ticks are coarse: a short instance may seem to have had more than all of its CPUs' time.
        return None if value is None or whole <= 0 else min(value / whole, 1.0 if by_cpu else math.inf)

    return share


_RULES = (
    _Rule(
        FlagKind.STEAL,
        _of_time(lambda one: one.steal_s, by_cpu=True),
        "the hypervisor above took up to {value:.1%} of the envelope's CPU time",
        floor=0.01,
        level=0.05,
        seconds=0.05,
    ),
    _Rule(
        FlagKind.OTHER_LOAD,
        _of_time(lambda one: one.other_s, by_cpu=True),
        "other work than the instance's took up to {value:.1%} of the envelope's CPU time",
        floor=0.05,
        level=0.2,
        seconds=0.05,
    ),
    _Rule(
        FlagKind.CPU_PRESSURE,
        _of_time(lambda one: one.cpu_stall_s),
        "some task on the host waited for a CPU during up to {value:.0%} of the time",
        floor=0.1,
        seconds=0.05,
    ),
    _Rule(
        FlagKind.MEMORY_PRESSURE,
        _of_time(lambda one: one.memory_stall_s),
        "some task on the host waited for memory during up to {value:.1%} of the time",
        floor=0.02,
        seconds=0.05,
    ),
    _Rule(
        FlagKind.IO_PRESSURE,
        _of_time(lambda one: one.io_stall_s),
        "some task on the host waited for storage during up to {value:.0%} of the time",
        floor=0.1,
        seconds=0.05,
    ),
    _Rule(
        FlagKind.FREQUENCY,
        lambda one: one.frequency_hz,
        "the envelope's CPUs ran as slowly as {value_ghz:.2f} GHz",
        floor=0.03,
        sign=-1,
        relative=True,
    ),
    _Rule(
        FlagKind.THROTTLING,
        lambda one: None if one.throttles is None else float(one.throttles),
        "the envelope's CPUs were slowed down for heat, up to {value:.0f} times",
        floor=0,
        level=0,
    ),
    _Rule(
        FlagKind.CLOCK_STEP,
        lambda one: abs(one.clock_step_s),
        "the host's wall clock was set by up to {value:.3f} s; tare's own durations are not moved by that, those a "
        "tool takes from the wall clock are",
        floor=0.001,
        level=0.001,
    ),
    _Rule(
        FlagKind.CLOCK_SOURCE,
        lambda one: float(bool(one.clock_source)),
        "the kernel changed its clock source: reading the time costs more or less than before",
        floor=0,
        level=0,
    ),
)


def _host_flags(run: LoadedRun, cells: Mapping[str, CellName]) -> Iterator[Flag]:
    disturbances = _disturbances_by_cell(run, cells)
    for rule in _RULES:
        known = {
            cell: [(name, one, value) for name, one in each.items() if (value := rule.quantity(one)) is not None]
            for cell, each in disturbances.items()
        }
        known = {cell: each for cell, each in known.items() if each}
        usual = {cell: float(np.median([value for *_, value in each])) for cell, each in known.items()}
        enough = {cell: each for cell, each in known.items() if len(each) >= _MIN_INSTANCES}
        deviations = [abs(value - usual[cell]) for cell, each in enough.items() for *_, value in each]
        of_run = float(np.median(deviations)) if deviations else 0.0
        flags = []
        for cell, each in known.items():
            of_cell = float(np.median([abs(value - usual[cell]) for *_, value in each]))
            scale = _SCALE * max(of_run, of_cell)
            standing_out = [
                (name, value)
                for name, one, value in each
                if _stands_out(rule, one, value, usual[cell], scale if cell in enough else None)
            ]
            if standing_out:
                flags.append(_host_flag(rule, cell, standing_out, len(each), usual[cell]))
        yield from _merged(rule, flags, [value for each in known.values() for *_, value in each])


def _merged(rule: _Rule, flags: list[Flag], values: list[float]) -> list[Flag]:
    """One flag on the whole run instead of one on each cell, where nearly every instance has it."""
    instances = [(name, flag.value) for flag in flags for name in flag.instances]
    if rule.level is None or len(flags) < 2 or len(instances) < _NEARLY_ALL * len(values):
        return flags
    whole = CellName(EVERY_CELL, "", "{}", EVERY_BACKEND)
    return [_host_flag(rule, whole, instances, len(values), float(np.median(values)))]


def _stands_out(rule: _Rule, one: Disturbance, value: float, usual: float, scale: float | None) -> bool:
    """``scale`` is None where there are too few instances to stand out from."""
    if rule.level is not None and value > rule.level and value * one.span_s >= rule.seconds:
        return True
    if scale is None:
        return False
    excess = rule.sign * (value - usual)
    floor = rule.floor * (usual if rule.relative else 1.0)
    return excess > max(floor, Z_LIMIT * scale) and excess * one.span_s >= rule.seconds


def _host_flag(
    rule: _Rule, cell: CellName, standing_out: Sequence[tuple[str, float]], n_instances: int, usual: float
) -> Flag:
    worst = max((value for _, value in standing_out), key=lambda value: rule.sign * value)
    n = len(standing_out)
    text = rule.text.format(value=worst, value_ghz=worst / 1e9)
    among = (
        "the only instance"
        if n_instances == 1
        else f"{'all ' if n == n_instances else f'{n} of '}{n_instances} instances"
    )
    sentence = f"In {among} {text}"
    if n < n_instances >= _MIN_INSTANCES and rule.level != 0 and rule.kind is not FlagKind.CLOCK_STEP:
        shown = f"{usual / 1e9:.2f} GHz" if rule.kind is FlagKind.FREQUENCY else f"{usual:.1%}"
        sentence += f"; {shown} is usual here"
    return make_flag(
        cell,
        kind=rule.kind,
        instances=tuple(name for name, _ in standing_out),
        n_instances=n_instances,
        value=worst,
        usual=usual,
        sentence=f"{sentence}.",
    )


def _cells_by_instance(run: LoadedRun) -> dict[str, CellName]:
    """Of the instances that gave samples."""
    cells: dict[str, CellName] = {}
    for place in np.unique(run.samples.texts["instance"].codes, return_index=True)[1].tolist():
        sample = run.samples[place]
        params = params_text(sample.params)
        cells[sample.instance] = CellName(sample.experiment, sample.workload, params, sample.backend)
    return cells


def _disturbances_by_cell(run: LoadedRun, cells: Mapping[str, CellName]) -> dict[CellName, dict[str, Disturbance]]:
    started: dict[str, float] = {}
    found: dict[CellName, dict[str, Disturbance]] = {}
    for event in run.events:
        if event.kind is EventKind.INSTANCE_STARTED:
            started[event.instance] = event.at_s
        elif event.kind in (EventKind.INSTANCE_DONE, EventKind.INSTANCE_FAILED) and event.instance in cells:
            told = disturbance_of(event, started.get(event.instance))
            if told is not None:
                found.setdefault(cells[event.instance], {})[event.instance] = told
    return found
