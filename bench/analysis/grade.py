"""How far a run can be relied on: one grade by stated rules, with its reason and what to do about it.

A run begins as decision-grade; each concern lowers it to what the concern allows. The rules, all over what was really
measured (an emulated guest counts only where the suite asks about emulation):

- *not usable*: nothing was measured; the baseline was not; only emulated guests were compared with it, or the
  host itself is emulated; one block of
  everything; other work or steal took more than ``BUSY`` of the envelope's CPU time in a third of the instances, or in
  all of them together; a fifth of the instances failed.
- *first look*: fewer than ``FEW_BLOCKS`` blocks; fewer than half of the leading metrics answered.
- *indicative*: fewer than ``ENOUGH_BLOCKS`` blocks, or too few to show whether neighbouring blocks depend on one
  another; a leading metric not answered, or not known well; a run that did not end; an instance that failed; other work
  beyond ``SHARED``; a metric that differs from itself (A/A).

A metric is *answered* if its verdict, after the correction for many comparisons, is not inconclusive; where nothing is
compared, if its value has an interval. It is *known well* if its interval reaches no further from the estimate than the
margin, or than half of the difference itself.
"""

import math
from collections.abc import Collection, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from tare.bench.catalogue import DECIDES_NOTHING, ConfoundCode, NoteCode
from tare.bench.disturbance import Disturbance, disturbance_of
from tare.bench.records import EventKind, RunStatus
from tare.bench.stats.comparisons import Comparison, Interval, Verdict

if TYPE_CHECKING:
    from tare.bench.analysis.results import Analysis, CellResult, Row, Subject

BUSY = 0.25
"""A share of the envelope's CPU time that other work took: beyond it, a measurement is of the other work too."""
SHARED = 0.10
MANY_BUSY = 1 / 3
LEAST_SPAN_S = 0.5
"""CPU time is counted in ticks of 10 ms: how busy others were cannot be told over less."""
FEW_BLOCKS = 5
ENOUGH_BLOCKS = 10
TESTED_BLOCKS = 36
"""Blocks from which on a single measurement shows whether neighbouring blocks depend on one another."""
MANY_FAILED = 0.2
WELL_KNOWN = 0.1
"""Half of a value's interval, as a share of it, where there is no ratio."""


class GradeLevel(StrEnum):
    """How far a run can be relied on, the best first."""

    DECISION = "decision-grade"
    INDICATIVE = "indicative"
    FIRST_LOOK = "first look"
    NOT_USABLE = "not usable"

    @property
    def rank(self) -> int:
        """0 for the best, 3 for the worst."""
        return list(GradeLevel).index(self)

    @property
    def place(self) -> str:
        """Where it lies on the scale: ``grade 3 of 4, where 1 is the best``."""
        return f"grade {self.rank + 1} of {len(GradeLevel)}, where 1 is the best"


class Concern(msgspec.Struct, frozen=True):
    """A rule that a run does not meet: the best grade it allows, a stable ``code``, and words for people.

    ``reason`` and ``remedy`` are phrases that begin with a small letter and have no full stop.
    """

    level: GradeLevel
    code: str
    reason: str
    remedy: str


class Grade(msgspec.Struct, frozen=True):
    """A run's grade. ``reason`` and ``remedy`` are the first concern's; ``concerns`` has all, the worst first."""

    level: GradeLevel
    reason: str
    remedy: str
    concerns: tuple[Concern, ...] = ()

    @property
    def sentence(self) -> str:
        """The grade with its reason and what to do, in one line."""
        return f"{self.level.value.capitalize()}: {self.reason}. Remedy: {self.remedy}."

    def without(self, codes: Collection[str]) -> "Grade":
        """The grade for a use to which these concerns do not matter."""
        left = tuple(one for one in self.concerns if one.code not in codes)
        if left == self.concerns:
            return self
        if not left:
            return Grade(GradeLevel.DECISION, "enough blocks on a quiet host, and nothing failed", "none is needed")
        return Grade(left[0].level, left[0].reason, left[0].remedy, left)

    def worse(self, other: "Grade") -> "Grade":
        """The worse of two, this one where they are alike: two runs compared can be relied on as the worse of them."""
        return other if other.level.rank > self.level.rank else self


class Load(msgspec.Struct, frozen=True):
    """What other work took of the envelope's CPU time: over all instances, and in how many it was more than ``BUSY``.

    Of the instances that lived long enough to say: ``n_instances``.
    """

    share: float
    n_busy: int
    n_instances: int


def grade_of(analysis: "Analysis") -> Grade:
    """The grade of a run."""
    concerns = sorted(_concerns(analysis), key=lambda one: -one.level.rank)
    if not concerns:
        leading = list(leading_cells(analysis))
        blocks = min((_blocks(cell) for *_, cell in leading), default=0)
        reason = f"{blocks} blocks on a quiet host answer every leading metric"
        return Grade(GradeLevel.DECISION, reason, "nothing: repeat it on another day to see how far days differ")
    return Grade(concerns[0].level, concerns[0].reason, concerns[0].remedy, tuple(concerns))


def leading_cells(analysis: "Analysis") -> Iterator[tuple["Subject", "Row", "CellResult"]]:
    """What a run is judged by: the leading metric of each subject, on each backend that is compared.

    Without emulated guests, unless they are the question; where nothing is compared, on every backend.
    """
    compares = any(not cell.backend.is_fenced for *_, cell, _ in analysis.comparisons)
    for subject, row in analysis.rows:
        if not row.is_leading:
            continue
        for cell in row.cells:
            if not cell.backend.is_fenced and (cell.comparison is not None or not compares):
                yield subject, row, cell


def other_load(analysis: "Analysis") -> Load | None:
    """How busy others kept the envelope's CPUs; None if the host does not count it, or no instance lived so long."""
    ends = (EventKind.INSTANCE_DONE, EventKind.INSTANCE_FAILED)
    found = [disturbance_of(event, None) for event in analysis.run.events if event.kind in ends]
    known = [one for one in found if one is not None and one.cpus and one.span_s >= LEAST_SPAN_S]
    taken = [(_taken_s(one), one.span_s * one.cpus) for one in known if one.other_s is not None]
    if not taken:
        return None
    share = sum(seconds for seconds, _ in taken) / sum(whole for _, whole in taken)
    return Load(share, sum(seconds > BUSY * whole for seconds, whole in taken), len(taken))


def is_answered(found: Comparison | None, own: Interval) -> bool:
    """Whether a cell has a verdict, or an interval where it is not compared."""
    if found is None:
        return own.low is not None
    return found.verdict_adjusted is not Verdict.INCONCLUSIVE


def is_well_known(found: Comparison | None, own: Interval) -> bool:
    """Whether an interval is narrow against the margin, or against the difference itself."""
    if found is None:
        return own.low is not None and own.high is not None and own.high - own.low <= 2 * WELL_KNOWN * abs(own.centre)
    if not found.ratio or not found.low or not found.high:
        return False
    half = math.log(found.high / found.low) / 2
    return half <= max(math.log1p(found.margin), abs(math.log(found.ratio)) / 2) * (1 + 1e-9)


def is_untested(found: Comparison | None) -> bool:
    """Whether a verdict rests on blocks that may depend on one another for all that was seen of them."""
    if found is None or found.low is None:
        return False
    return not found.dependence.is_tested and found.dependence.lag1 == 0


def _taken_s(one: Disturbance) -> float:
    return min((one.other_s or 0.0) + (one.steal_s or 0.0), one.span_s * one.cpus)


def _blocks(cell: "CellResult") -> int:
    return cell.n_blocks if cell.comparison is None else cell.comparison.n_blocks


def _concerns(analysis: "Analysis") -> Iterator[Concern]:
    if not analysis.subjects:
        remedy = "see what failed, and run it again"
        yield Concern(GradeLevel.NOT_USABLE, "nothing-measured", "nothing was measured", remedy)
        return
    load = other_load(analysis)
    if load is not None:
        yield from _of_load(load)
    yield from _of_failures(analysis)
    yield from _of_comparison(analysis)
    yield from _of_blocks(analysis)
    yield from _of_answers(analysis)
    if load is None:
        reason = "tare could not tell how busy other work kept the CPUs"
        remedy = "add a workload of a second or more to the suite"
        yield Concern(GradeLevel.INDICATIVE, "load-unknown", reason, remedy)


def _of_load(load: Load) -> Iterator[Concern]:
    where = f"other work took {100 * load.share:.0f} % of the measured CPUs' time"
    if load.n_busy:
        where += f", and more than {100 * BUSY:.0f} % during {load.n_busy} of {load.n_instances} instances"
    remedy = "run it again while nothing else uses the host's CPUs"
    if load.share > BUSY or load.n_busy > MANY_BUSY * load.n_instances:
        yield Concern(GradeLevel.NOT_USABLE, "busy", f"the host was busy: {where}", remedy)
    elif load.share > SHARED or load.n_busy > SHARED * load.n_instances:
        yield Concern(GradeLevel.INDICATIVE, "disturbed", where, remedy)


def _of_failures(analysis: "Analysis") -> Iterator[Concern]:
    if failed := len(analysis.failures):
        every = failed + sum(event.kind is EventKind.INSTANCE_DONE for event in analysis.run.events)
        level = GradeLevel.NOT_USABLE if failed > MANY_FAILED * every else GradeLevel.INDICATIVE
        yield Concern(level, "failures", f"{failed} of {every} instances failed", "mend what failed and run it again")
    if analysis.manifest.status is not RunStatus.COMPLETE:
        reason, remedy = "the run did not end", f"finish it with `tare run --resume {analysis.run.path}`"
        yield Concern(GradeLevel.INDICATIVE, "incomplete", reason, remedy)


def _of_comparison(analysis: "Analysis") -> Iterator[Concern]:
    if analysis.manifest.is_host_emulated:
        reason = (
            f"the host's own processor is emulated: nothing was measured on hardware, and the run {DECIDES_NOTHING}"
        )
        yield Concern(
            GradeLevel.NOT_USABLE, ConfoundCode.HOST_EMULATED, reason, "run it on a host with a real processor"
        )
    others = [one for one in analysis.backends if not one.is_baseline]
    if analysis.baseline is None:
        reason = f"the baseline, {analysis.manifest.baseline}, was not measured: there is nothing to compare with"
        yield Concern(GradeLevel.NOT_USABLE, "no-baseline", reason, "run it where the baseline works, or name another")
    elif others and all(one.is_fenced for one in others):
        reason = "only an emulated guest was compared, and emulation says nothing about a virtual machine"
        remedy = 'run it on a host with KVM, or state [report] emulated = "compare" if emulation is the question'
        yield Concern(GradeLevel.NOT_USABLE, "only-emulated", reason, remedy)
    elif others and not any(one.name in analysis.measured for one in others):
        reason = "none of the backends to compare was measured"
        yield Concern(GradeLevel.NOT_USABLE, "nothing-compared", reason, "see why they failed, and run it again")
    noise = analysis.noise
    if noise is not None and noise.false_alarms:
        n, tested = len(noise.false_alarms), noise.tested
        reason = f"{n} of {tested} metrics differ from themselves on the baseline: the host changed during the run"
        yield Concern(GradeLevel.INDICATIVE, "false-alarms", reason, "run it again with more blocks on a steadier host")


def _of_blocks(analysis: "Analysis") -> Iterator[Concern]:
    counts = [_blocks(cell) for *_, cell in leading_cells(analysis)]
    if not counts:
        return
    fewest, ramps = min(counts), any(subject.traits.grows_with for subject, *_ in leading_cells(analysis))
    remedy = f"set blocks = {ENOUGH_BLOCKS} or more under [sampling]"
    if max(counts) <= 1 and not ramps:
        reason = "one block allows no interval and so no verdict"
        yield Concern(GradeLevel.NOT_USABLE, "one-block", reason, remedy)
    elif fewest < FEW_BLOCKS:
        most = max(counts)
        reason = f"only {fewest} {'block' if fewest == 1 else 'blocks'}"
        reason += f" of some measurements, {most} of others" if most > fewest else ""
        yield Concern(GradeLevel.FIRST_LOOK, "few-blocks", reason, remedy)
    elif fewest < ENOUGH_BLOCKS:
        yield Concern(GradeLevel.INDICATIVE, "blocks", f"{fewest} blocks leave wide intervals", remedy)
    elif any(is_untested(cell.comparison) for *_, cell in leading_cells(analysis)):
        reason = f"{fewest} blocks do not show whether neighbouring blocks resemble each other"
        remedy = f"set blocks = {TESTED_BLOCKS} or more, or add workloads: leading metrics are tested together"
        yield Concern(GradeLevel.INDICATIVE, NoteCode.BLOCKS_UNTESTED, reason, remedy)


def _of_answers(analysis: "Analysis") -> Iterator[Concern]:
    leading = [(cell.comparison, cell.estimate) for *_, cell in leading_cells(analysis)]
    if not leading:
        return
    answered = sum(is_answered(*one) for one in leading)
    vague = sum(not is_well_known(*one) for one in leading)
    remedy = "more blocks narrow the intervals"
    if answered < len(leading):
        level = GradeLevel.FIRST_LOOK if 2 * answered < len(leading) else GradeLevel.INDICATIVE
        reason = f"{len(leading) - answered} of {len(leading)} leading metrics have no verdict"
        yield Concern(level, "unanswered", reason, remedy)
    elif vague:
        reason = f"{vague} of {len(leading)} leading metrics have a verdict but a wide interval"
        yield Concern(GradeLevel.INDICATIVE, "wide", reason, remedy)
