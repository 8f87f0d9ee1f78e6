"""The grade of a run: each rule alone lowers a good run to what it allows, and says why and what to do."""

from dataclasses import replace

import msgspec
import pytest

from tare.bench.analysis import GradeLevel, analyse
from tare.bench.analysis.grade import BUSY, TESTED_BLOCKS, Grade, leading_cells, other_load
from tare.bench.analysis.requirements import SPOILT, Standing, judge_requirements
from tare.bench.disturbance import Disturbance
from tare.bench.model import IsolationKind
from tare.bench.records import EventKind, RunStatus
from tare.bench.store import load_run
from tests.synthetic import QUICK, SUBJECTS, write_run

GOOD = replace(QUICK, blocks=14, noise=0.001, ratios={"native": 1.0, "vm": 1.4})


def with_load(run, share, *, of=1.0, span_s=2.0):
    """The run with other work of ``share`` of the time in the first part ``of`` of its instances."""
    ends = [event for event in run.events if event.kind in (EventKind.INSTANCE_DONE, EventKind.INSTANCE_FAILED)]
    busy = {event.instance for event in ends[: round(of * len(ends))]}

    def details(event):
        taken = share * span_s if event.instance in busy else 0.0
        told = Disturbance(span_s=span_s, cpus=1, busy_s=span_s, steal_s=0.0, other_s=taken)
        return {**event.details, "disturbance": msgspec.to_builtins(told)}

    events = [
        msgspec.structs.replace(event, details=details(event)) if event in ends else event for event in run.events
    ]
    return msgspec.structs.replace(run, events=events)


def as_kind(run, kind):
    """The run with a guest of this kind."""
    backends = dict(run.manifest.backends)
    backends["vm"] = msgspec.structs.replace(backends["vm"], kind=kind, label=f"vm ({kind})")
    return msgspec.structs.replace(run, manifest=msgspec.structs.replace(run.manifest, backends=backends))


@pytest.fixture
def made(tmp_path):
    """Makes a run on a quiet host whose guest is real."""

    def make(recipe=GOOD, load=0.0, name="run", **how):
        run = as_kind(load_run(write_run(tmp_path / name, recipe)), IsolationKind.VIRTUAL_MACHINE)
        return with_load(run, load, **how)

    return make


def codes(grade):
    return [one.code for one in grade.concerns]


def test_one_workload_needs_more_blocks_to_show_that_they_are_independent(made):
    alone = replace(GOOD, subjects=SUBJECTS[:1])
    grade = analyse(made(alone)).grade
    assert (grade.level, codes(grade)) == (GradeLevel.INDICATIVE, ["blocks-untested"])
    long = analyse(made(replace(alone, blocks=TESTED_BLOCKS), name="long"))
    assert long.grade.level is GradeLevel.DECISION


def test_a_long_quiet_run_is_good_enough_to_decide(made):
    grade = analyse(made()).grade
    assert (grade.level, grade.concerns) == (GradeLevel.DECISION, ())
    assert grade.reason.startswith("14 blocks")


@pytest.mark.parametrize(
    ("recipe", "level", "code"),
    [
        (replace(GOOD, blocks=1), GradeLevel.NOT_USABLE, "one-block"),
        (replace(GOOD, blocks=4), GradeLevel.FIRST_LOOK, "few-blocks"),
        (replace(GOOD, blocks=6), GradeLevel.INDICATIVE, "blocks"),
        (replace(GOOD, missing=("bare-metal",), backends=("native", "vm")), GradeLevel.NOT_USABLE, "no-baseline"),
        (replace(GOOD, failing=("vm",)), GradeLevel.NOT_USABLE, "failures"),
        (replace(GOOD, status=RunStatus.INTERRUPTED), GradeLevel.INDICATIVE, "incomplete"),
        (replace(GOOD, noise=0.1, ratios={}), GradeLevel.FIRST_LOOK, "unanswered"),
    ],
)
def test_each_rule(made, recipe, level, code):
    grade = analyse(made(recipe)).grade
    assert (grade.level, grade.concerns[0].level, grade.concerns[0].code) == (level, level, code)
    assert (grade.reason, grade.remedy) == (grade.concerns[0].reason, grade.concerns[0].remedy)


@pytest.mark.parametrize(
    ("load", "of", "level"),
    [
        (0.7, 1.0, GradeLevel.NOT_USABLE),
        (0.26, 0.4, GradeLevel.NOT_USABLE),  # in many instances, though little over all of them
        (0.26, 0.15, GradeLevel.INDICATIVE),
        (0.12, 1.0, GradeLevel.INDICATIVE),
        (0.05, 1.0, GradeLevel.DECISION),
        (0.9, 0.05, GradeLevel.DECISION),
    ],
)
def test_other_work_on_the_host(made, load, of, level):
    analysis = analyse(made(load=load, of=of))
    assert analysis.grade.level is level
    assert other_load(analysis).share == pytest.approx(load * of, abs=0.01)
    if level is GradeLevel.NOT_USABLE:
        assert analysis.grade.reason.startswith("the host was busy")


def test_on_a_busy_host_nothing_that_is_required_is_met(made):
    judged = judge_requirements(analyse(made(load=0.7)))
    standings = {one.standing for each in judged[:-1] for one in each.judgements}
    assert standings == {Standing.CANNOT_TELL}
    assert {(one.why, one.probability, one.settling) for each in judged[:-1] for one in each.judgements} == {
        (SPOILT, None, None)
    }
    assert [one.standing for one in judged[-1].judgements] == [Standing.FAILS, Standing.MEETS]
    quiet = judge_requirements(analyse(made(name="again")))
    assert {one.standing for each in quiet[:-1] for one in each.judgements} >= {Standing.MEETS, Standing.FAILS}


def test_whatever_makes_a_run_of_no_use_nothing_that_is_required_is_met(made):
    judged = judge_requirements(analyse(made(replace(GOOD, failing=("vm",)))))
    assert {one.why for each in judged[:-1] for one in each.judgements} == {SPOILT}


def test_over_a_few_ticks_nobody_can_tell_how_busy_others_were(made):
    analysis = analyse(made(load=0.9, span_s=0.03))
    assert other_load(analysis) is None
    assert codes(analysis.grade) == ["load-unknown"]


def test_an_emulated_guest_is_no_reason_to_trust_a_run_or_not_to(made):
    real = made()
    emulated = as_kind(real, IsolationKind.EMULATED)
    assert {cell.backend.name for *_, cell in leading_cells(analyse(real))} == {"native", "vm"}
    analysis = analyse(emulated)
    assert {cell.backend.name for *_, cell in leading_cells(analysis)} == {"native"}
    assert [backend.is_fenced for backend in analysis.backends] == [False, False, True]
    assert analysis.grade.level is GradeLevel.DECISION


def test_emulation_alone_says_nothing_unless_it_is_the_question(made):
    run = as_kind(made(replace(GOOD, backends=("bare-metal", "vm"))), IsolationKind.EMULATED)
    assert codes(analyse(run).grade)[0] == "only-emulated"
    suite = {**run.manifest.suite, "report": {"emulated": "compare"}}
    asked = msgspec.structs.replace(run, manifest=msgspec.structs.replace(run.manifest, suite=suite))
    assert analyse(asked).grade.level is GradeLevel.DECISION


def test_of_two_the_worse():
    good, bad = (Grade(level, level, "") for level in (GradeLevel.INDICATIVE, GradeLevel.NOT_USABLE))
    assert good.worse(bad) is bad
    assert bad.worse(good) is bad
    assert 0 < BUSY < 1
