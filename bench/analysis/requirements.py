"""Whether a backend does what is required of it: meets, fails, or cannot tell, and what would settle it.

The probability that a backend meets a bound is read from the interval that its estimate has: as if the truth were
distributed around the estimate like Student's t with the interval's own width, each side by itself. So it is 97.5 %
where the interval just ends at the bound. *Meets* and *fails* are said where the whole interval lies on one side; what
has no interval cannot be told. A requirement on a metric that several cells have holds only if it holds in all.

How many instances fit is not extrapolated here: a ramp that held them meets it, a ramp that something ended below them
fails, and one that was asked for fewer cannot tell (``tare plan`` extrapolates, within bounds).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from tare.bench.analysis.answer import START, area_of
from tare.bench.analysis.grade import GradeLevel
from tare.bench.analysis.results import Analysis, CellResult, MeasuredBackend, Row, Subject
from tare.bench.catalogue import BootMetric
from tare.bench.model import Direction, IsolationKind
from tare.bench.records import EventKind
from tare.bench.stats.comparisons import LEVEL
from tare.bench.stats.precision import blocks_needed
from tare.bench.traits import Category
from tare.bench.units import Unit, parse_bound

if TYPE_CHECKING:
    from tare.bench.analysis.density import DensityResult

READY_START_S = 0.1
READY_LOSS = 0.05
READY_MEMORY_BYTES = 64 * 2**20
"""What is asked where a suite states no requirement: starts within 0.1 s, loses at most 5 % of its speed in whatever
was measured, one more instance takes at most 64 MiB, has a kernel of its own."""
MOST_BLOCKS = 500
"""More blocks than this settle nothing that matters: the value lies at the bound."""
SPOILT = "the run is not usable"
"""Why no requirement on what was measured is judged: the grade says what is wrong."""
_OWN_KERNEL = {
    IsolationKind.BARE_METAL: False,
    IsolationKind.CONTAINER: False,
    IsolationKind.VIRTUAL_MACHINE: True,
    IsolationKind.EMULATED: True,
    IsolationKind.USER_MODE_KERNEL: True,
}


class RequirementKind(StrEnum):
    """What is required: a bound on a value, on the loss against the baseline, or one of the others."""

    VALUE = "value"
    LOSS = "loss"
    INSTANCES = "instances"
    MEMORY = "memory"
    OWN_KERNEL = "own-kernel"


class Requirement(msgspec.Struct, frozen=True):
    """One requirement. ``bound`` is in ``unit`` (a share of the baseline for a loss); ``is_most``: no more than it.

    ``name`` is the suite's own, or empty. ``metric`` and ``params`` say which cells; ``area`` stands for the leading
    metrics of one instead. ``is_stated``: the suite states it.
    """

    kind: RequirementKind
    bound: float
    unit: Unit
    is_most: bool = True
    name: str = ""
    metric: str = ""
    params: Mapping[str, Any] = {}
    area: str = ""
    is_stated: bool = False


class Standing(StrEnum):
    """What can be said of a requirement."""

    MEETS = "meets"
    FAILS = "fails"
    CANNOT_TELL = "cannot tell"


class Settling(msgspec.Struct, frozen=True):
    """The cheapest measurement that would settle it: ``blocks`` more of a subject, about ``seconds`` long.

    ``instances`` instead: a ramp up to that number.
    """

    subject: str
    blocks: int = 0
    seconds: float = 0.0
    instances: int = 0


class Judgement(msgspec.Struct, frozen=True):
    """A requirement on a backend.

    ``value`` with ``low`` and ``high`` is what was found, in the requirement's unit (a loss as a share). Every bound
    beyond the interval on one side is met and on the other failed: this is how far the bound could move before the
    answer changes. ``probability`` is that of meeting it; None where nothing can be said. ``why`` says what is missing.
    """

    backend: MeasuredBackend
    standing: Standing
    probability: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    subject: Subject | None = None
    row: Row | None = None
    settling: Settling | None = None
    why: str = ""


class Judged(msgspec.Struct, frozen=True):
    """A requirement with what is said of each backend; ``row`` is a metric that it is about, if it is about one."""

    requirement: Requirement
    judgements: tuple[Judgement, ...]
    subject: Subject | None = None
    row: Row | None = None


def judge_requirements(analysis: Analysis) -> list[Judged]:
    """The suite's requirements, or the ready set, judged on every backend that is compared."""
    judge = _Judge(analysis)
    judged = [judge.requirement(one) for one in requirements_of(analysis)]
    return [one for one in judged if one.judgements]


def requirements_of(analysis: Analysis) -> list[Requirement]:
    """What the suite requires; the ready set, of what was measured, if it states nothing."""
    stated = analysis.manifest.suite.get("requirement") or ()
    return [_stated(analysis, one) for one in stated] or list(_ready(analysis))


def probability_below(bound: float, centre: float, low: float, high: float, n: int) -> float:
    """The probability that the truth is at most ``bound``, by an interval over ``n`` blocks at ``LEVEL``."""
    from scipy.special import stdtr, stdtrit

    width = (high if bound > centre else low) - centre
    if width == 0:
        return 0.5 if bound == centre else float(bound > centre)
    t = float(stdtrit(max(n - 1, 1), (1 + LEVEL) / 2))
    return float(stdtr(max(n - 1, 1), (bound - centre) / abs(width) * t))


def _stated(analysis: Analysis, section: Mapping[str, Any]) -> Requirement:
    name = str(section.get("name") or "")
    if (count := section.get("instances")) is not None:
        return Requirement(RequirementKind.INSTANCES, count, Unit.COUNT, is_most=False, name=name, is_stated=True)
    if (size := section.get("memory_per_instance")) is not None:
        bound = parse_bound(size, Unit.BYTE)
        return Requirement(RequirementKind.MEMORY, bound or 0.0, Unit.BYTE, name=name, is_stated=True)
    if section.get("own_kernel"):
        return Requirement(RequirementKind.OWN_KERNEL, 1, Unit.COUNT, is_most=False, name=name, is_stated=True)
    metric, params = str(section["metric"]), section.get("params") or {}
    about = Requirement(RequirementKind.LOSS, 0.0, Unit.SHARE, name=name, metric=metric, params=params, is_stated=True)
    if (loss := section.get("loses_at_most")) is not None:
        return msgspec.structs.replace(about, bound=loss)
    unit = next((row.metric.unit for subject, row in analysis.rows if _is_named(metric, subject, row)), Unit.RATIO)
    is_most = section.get("at_most") is not None
    given = section.get("at_most" if is_most else "at_least")
    bound = parse_bound(given, unit) if unit is not Unit.RATIO or not isinstance(given, str) else None
    kind = RequirementKind.VALUE
    return msgspec.structs.replace(about, kind=kind, bound=bound or 0.0, unit=unit, is_most=is_most)


def _ready(analysis: Analysis) -> Iterator[Requirement]:
    measured = {row.metric.name for _, row in analysis.rows}
    if BootMetric.TOTAL in measured:
        yield Requirement(RequirementKind.VALUE, READY_START_S, Unit.SECOND, metric=BootMetric.TOTAL)
    areas = dict.fromkeys(area_of(subject, analysis) for subject in analysis.subjects)
    for area in (*Category,):
        if area in areas:
            yield Requirement(RequirementKind.LOSS, READY_LOSS, Unit.SHARE, area=area)
    if analysis.density:
        yield Requirement(RequirementKind.MEMORY, READY_MEMORY_BYTES, Unit.BYTE)
    yield Requirement(RequirementKind.OWN_KERNEL, 1, Unit.COUNT, is_most=False)


def _is_named(name: str, subject: Subject, row: Row) -> bool:
    return name in (row.metric.name, f"{subject.workload or subject.experiment}/{row.metric.name}")


class _Judge:
    """Judges requirements on the backends of one run."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        others = [one for one in analysis.backends if not one.is_baseline]
        self.backends = others or list(analysis.backends)
        self.is_spoilt = analysis.grade.level is GradeLevel.NOT_USABLE

    def requirement(self, required: Requirement) -> Judged:
        rows = [place for place in self.analysis.rows if self._is_about(required, *place)]
        by_kind = {
            RequirementKind.OWN_KERNEL: self._own_kernel,
            RequirementKind.INSTANCES: self._instances,
            RequirementKind.MEMORY: self._memory,
        }
        found = []
        for backend in self.backends:
            if self.is_spoilt and required.kind is not RequirementKind.OWN_KERNEL:
                found.append(Judgement(backend, Standing.CANNOT_TELL, why=SPOILT))
            elif backend.is_fenced and required.kind is not RequirementKind.OWN_KERNEL:
                why = "a virtual machine was not measured: this guest is emulated"
                found.append(Judgement(backend, Standing.CANNOT_TELL, why=why))
            elif required.kind in by_kind:
                found.append(by_kind[required.kind](required, backend))
            else:
                found.append(self._worst(required, backend, rows))
        return Judged(required, tuple(found), *(rows[0] if rows else ()))

    def _is_about(self, required: Requirement, subject: Subject, row: Row) -> bool:
        if required.area:
            return row.is_leading and area_of(subject, self.analysis) == required.area != START
        given = required.params.items() <= subject.params.items()
        return bool(required.metric) and given and _is_named(required.metric, subject, row)

    def _worst(self, required: Requirement, backend: MeasuredBackend, rows: Sequence[tuple[Subject, Row]]) -> Judgement:
        """Of all cells the one that is furthest from meeting it."""
        found = [
            self._bound(required, subject, row, cell)
            for subject, row in rows
            for cell in row.cells
            if cell.backend == backend
        ]
        if not found:
            return Judgement(backend, Standing.CANNOT_TELL, why="it was not measured")
        order = [Standing.FAILS, Standing.CANNOT_TELL, Standing.MEETS]
        return min(found, key=lambda one: (order.index(one.standing), one.probability or 0.0))

    def _bound(self, required: Requirement, subject: Subject, row: Row, cell: CellResult) -> Judgement:
        where = Judgement(cell.backend, Standing.CANNOT_TELL, subject=subject, row=row)
        if required.kind is RequirementKind.VALUE:
            own, n = cell.estimate, cell.n_blocks
            value, low, high = own.centre, own.low, own.high
        elif cell.comparison is None or cell.comparison.ratio is None:
            return msgspec.structs.replace(where, why="it was not compared with the baseline")
        else:
            n = cell.comparison.n_blocks
            value, low, high = _losses(row.metric.direction, cell)
        if low is None or high is None:
            why = "one block allows no interval" if n == 1 else "its readings allow no interval"
            return msgspec.structs.replace(where, value=value, why=why)
        found = _judge(required, cell.backend, value, low, high, n)
        settles = found.standing is Standing.CANNOT_TELL
        settling = self._more_blocks(required, subject, row, found, n) if settles else None
        return msgspec.structs.replace(found, subject=subject, row=row, settling=settling)

    def _more_blocks(
        self, required: Requirement, subject: Subject, row: Row, found: Judgement, n: int
    ) -> Settling | None:
        """How many blocks narrow the interval until it ends at the bound; None if it lies at the bound."""
        known = (found.value, required.bound, found.low, found.high)
        on_logs = [_on_logs(required, row.metric.direction, value) for value in known if value is not None]
        if len(on_logs) < len(known) or not all(map(math.isfinite, on_logs)):
            return None
        centre, bound, low, high = on_logs
        distance, half = abs(bound - centre), abs(high - low) / 2
        if distance < half / math.sqrt(MOST_BLOCKS / n):
            return None
        needed = blocks_needed(half, n, math.expm1(distance))
        if needed - n > MOST_BLOCKS:
            return None
        more = max(needed - n, 1)
        return Settling(subject.name, more, more * self._block_seconds(row, found.backend))

    def _block_seconds(self, row: Row, backend: MeasuredBackend) -> float:
        """About how long a block of a cell and its baseline takes."""
        cells = [cell for cell in row.cells if cell.backend in (backend, self.analysis.baseline)]
        names = {name for cell in cells for name in cell.points.instance_names}
        started: dict[str, float] = {}
        spent = 0.0
        for event in self.analysis.run.events:
            if event.instance in names and event.kind is EventKind.INSTANCE_STARTED:
                started[event.instance] = event.at_s
            elif event.instance in started and event.kind is EventKind.INSTANCE_DONE:
                spent += event.at_s - started.pop(event.instance)
        return spent / max((cell.n_blocks for cell in cells), default=1)

    def _own_kernel(self, _: Requirement, backend: MeasuredBackend) -> Judgement:
        described = self.analysis.manifest.backends.get(backend.name)
        has_own = _OWN_KERNEL.get(described.kind) if described is not None else None
        if has_own is None:
            return Judgement(backend, Standing.CANNOT_TELL, why="the backend does not say")
        return Judgement(backend, Standing.MEETS if has_own else Standing.FAILS, float(has_own))

    def _instances(self, required: Requirement, backend: MeasuredBackend) -> Judgement:
        ramps = self._ramps(backend)
        if not ramps:
            return Judgement(backend, Standing.CANNOT_TELL, why="no ramp was measured")
        most = max(ramps, key=lambda one: one.cell.population)
        population, endings = most.cell.population, most.cell.endings
        if population >= required.bound:
            return Judgement(backend, Standing.MEETS, 1.0, population)
        if endings and not any(one.was_asked_for for one in endings):
            return Judgement(backend, Standing.FAILS, 0.0, population, why=endings[0].message)
        why = f"the ramp was asked for {population:,}, and nothing ran out"
        settling = Settling("density", instances=int(required.bound))
        return Judgement(backend, Standing.CANNOT_TELL, None, population, settling=settling, why=why)

    def _memory(self, required: Requirement, backend: MeasuredBackend) -> Judgement:
        ramps = [one for one in self._ramps(backend) if one.planned_memory is not None]
        if not ramps:
            return Judgement(backend, Standing.CANNOT_TELL, why="no ramp was measured")
        most = max(ramps, key=lambda one: (not one.cell.workload, one.cell.population))
        memory = most.planned_memory
        if memory is None or memory.low is None or memory.high is None:
            value = None if memory is None else memory.per_instance
            return Judgement(backend, Standing.CANNOT_TELL, None, value, why="the ramp is too short for an interval")
        return _judge(required, backend, memory.per_instance, memory.low, memory.high, most.measured_on)

    def _ramps(self, backend: MeasuredBackend) -> "list[DensityResult]":
        return [one for one in self.analysis.density if one.cell.backend == backend.name]


def _judge(required: Requirement, backend: MeasuredBackend, value: float, low: float, high: float, n: int) -> Judgement:
    probability = probability_below(required.bound, value, low, high, n)
    probability = probability if required.is_most else 1 - probability
    within = high <= required.bound if required.is_most else low >= required.bound
    beyond = low > required.bound if required.is_most else high < required.bound
    standing = Standing.MEETS if within else Standing.FAILS if beyond else Standing.CANNOT_TELL
    return Judgement(backend, standing, probability, value, low, high)


def _losses(direction: Direction, cell: CellResult) -> tuple[float, float | None, float | None]:
    """A ratio with its interval as losses: a share of a rate that is gone, or by which a time is longer."""
    found = cell.comparison
    if found is None or found.ratio is None:
        raise ValueError("only what is compared with the baseline loses against it")
    if direction is Direction.LOWER:
        low, high = found.low, found.high
        return found.ratio - 1, None if low is None else low - 1, None if high is None else high - 1
    low, high = (None if end is None else 1 - end for end in (found.high, found.low))
    return 1 - found.ratio, low, high


def _on_logs(required: Requirement, direction: Direction, value: float) -> float:
    """A value, or the ratio that a loss is of, on the log scale; minus infinity for none."""
    if required.kind is RequirementKind.LOSS:
        value = 1 + value if direction is Direction.LOWER else 1 - value
    return math.log(value) if value > 0 else -math.inf
