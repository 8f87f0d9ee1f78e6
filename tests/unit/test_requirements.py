"""What is required, judged: against intervals computed here another way, and what a suite may not state."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy import stats

from tare.bench.analysis import analyse
from tare.bench.analysis.answer import Outcome, PanelKind, area_answers, panels
from tare.bench.analysis.requirements import (
    Requirement,
    RequirementKind,
    Standing,
    judge_requirements,
    probability_below,
)
from tare.bench.errors import SuiteError
from tare.bench.model import IsolationKind
from tare.bench.store import load_run
from tare.bench.suite import read_suite
from tare.bench.units import Unit, parse_bound
from tests.synthetic import QUICK, write_run
from tests.unit.fakes import BACKENDS, WORKLOADS


@pytest.fixture
def made(tmp_path):
    """Makes a run of a suite with these requirements, whose guest is real."""

    def make(*required, recipe=QUICK):
        folder = tmp_path / f"{recipe.blocks}-{recipe.noise}"
        run = load_run(folder if folder.exists() else write_run(folder, recipe))
        backends = dict(run.manifest.backends)
        backends["vm"] = msgspec.structs.replace(backends["vm"], kind=IsolationKind.VIRTUAL_MACHINE, label="vm (kvm)")
        suite = {**run.manifest.suite, "requirement": required}
        manifest = msgspec.structs.replace(run.manifest, suite=suite, backends=backends)
        return analyse(msgspec.structs.replace(run, manifest=manifest))

    return make


def values_by_block(analysis, metric, backend):
    """Block medians straight from the samples."""
    found = {}
    for sample in analysis.run.samples.where("metric", metric):
        if sample.backend == backend and not sample.warmup:
            found.setdefault(sample.block, []).append(sample.value)
    return np.array([np.median(found[block]) for block in sorted(found)])


def test_a_bound_on_a_value_is_judged_by_its_interval(made):
    logs = np.log(values_by_block(made(), "boot.total", "native"))
    row = next(row for _, row in made().rows if row.metric.name == "boot.total")
    own = next(cell.estimate for cell in row.cells if cell.backend.name == "native")
    low, high = own.low, own.high
    bounds = [low * 0.999, math.exp(logs.mean()) * 1.001, high * 1.001]
    judged = judge_requirements(made(*({"metric": "boot/boot.total", "at_most": bound} for bound in bounds)))
    own = [next(one for one in each.judgements if one.backend.name == "native") for each in judged]
    assert [one.standing for one in own] == [Standing.FAILS, Standing.CANNOT_TELL, Standing.MEETS]
    for one, bound in zip(own, bounds, strict=True):
        error = logs.std(ddof=1) / math.sqrt(len(logs))
        t = float(np.log(bound) - logs.mean()) / error
        assert one.probability == pytest.approx(stats.t.cdf(t, len(logs) - 1), abs=0.05)
        assert (one.low, one.high) == (pytest.approx(low), pytest.approx(high))


def test_a_loss_is_a_share_of_a_rate_or_of_a_time(made):
    judged = judge_requirements(made({"metric": "sysbench-cpu/events", "loses_at_most": 0.05}))
    by_backend = {one.backend.name: one for one in judged[0].judgements}
    assert by_backend["vm"].standing is Standing.FAILS
    assert by_backend["vm"].value == pytest.approx(1 - 1 / 8.8, abs=0.01)
    assert by_backend["native"].probability > 0.5
    longer = judge_requirements(made({"metric": "fio/read.latency.p99", "loses_at_most": 0.05}))
    assert {one.backend.name: one for one in longer[0].judgements}["vm"].value > 1


def test_what_is_undecided_says_how_many_blocks_settle_it(made):
    (judged,) = judge_requirements(made({"metric": "sysbench-cpu/events", "loses_at_most": 0.002}))
    own = next(one for one in judged.judgements if one.backend.name == "native")
    assert own.standing is Standing.CANNOT_TELL
    assert own.settling.blocks > 0
    # Half a second from event to event, two instances (backend and baseline) a block, each ended after its commands.
    per_block = own.settling.seconds / own.settling.blocks
    assert 0.5 < per_block < 20
    assert 0 < own.probability < 1


def test_the_worst_cell_decides(made):
    (judged,) = judge_requirements(made({"metric": "command.duration", "loses_at_most": 0.02}))
    vm = next(one for one in judged.judgements if one.backend.name == "vm")
    each = {
        subject.workload: cell.comparison.ratio - 1
        for subject, row, cell in made().cells
        if row.metric.name == "command.duration" and cell.backend.name == "vm"
    }
    assert vm.value in each.values()
    assert vm.standing is Standing.FAILS


def test_the_ready_set_is_of_what_was_measured(made):
    judged = judge_requirements(made())
    assert [one.requirement.kind for one in judged][-1] is RequirementKind.OWN_KERNEL
    assert [one.standing for one in judged[-1].judgements] == [Standing.FAILS, Standing.MEETS]
    assert not any(one.requirement.is_stated for one in judged)
    assert RequirementKind.MEMORY not in {one.requirement.kind for one in judged}


def test_an_emulated_guest_is_not_judged_but_for_its_kernel(tmp_path):
    judged = judge_requirements(analyse(load_run(write_run(tmp_path / "run"))))
    standings = {each.requirement.kind: each.judgements[-1].standing for each in judged}
    assert standings.pop(RequirementKind.OWN_KERNEL) is Standing.MEETS
    assert set(standings.values()) == {Standing.CANNOT_TELL}


@pytest.mark.parametrize("n", [2, 5, 15])
def test_the_probability_is_that_of_the_intervals_own_distribution(n):
    random = np.random.default_rng(n)
    values = random.normal(10, 2, n)
    found = stats.ttest_1samp(values, 0).confidence_interval()
    error = values.std(ddof=1) / math.sqrt(n)
    for bound in (8.0, 10.0, 11.5):
        expected = stats.t.cdf((bound - values.mean()) / error, n - 1)
        assert probability_below(bound, values.mean(), found.low, found.high, n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "states one of"),
        ({"at_most": 1, "instances": 3}, "states one of"),
        ({"at_most": "50ms"}, "needs the metric"),
        ({"metric": "boot/boot.total", "instances": 3}, "about no metric"),
        ({"metric": "boot/boot.totale", "at_most": "50ms"}, "nothing in this suite measures that"),
        ({"metric": "boot/boot.total", "at_most": "50MiB"}, "is in B, but the metric is in s"),
        ({"metric": "boot/boot.total", "at_most": "fifty"}, "is no bound"),
    ],
)
def test_what_a_suite_cannot_require(tmp_path, section, words):
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in section.items()]
    text = '[suite]\nname = "x"\n[[backend]]\ntype = "fake"\n[[experiment]]\nkind = "boot"\n[[requirement]]\n'
    suite = tmp_path / "x.toml"
    suite.write_text(text + "\n".join(lines) + "\n")
    with pytest.raises(SuiteError) as refused:
        read_suite(suite, BACKENDS, WORKLOADS)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("given", "unit", "value"), [("50ms", Unit.SECOND, 0.05), ("20 MiB", Unit.BYTE, 20 * 2**20), (3, Unit.COUNT, 3)]
)
def test_bounds_are_in_base_units(given, unit, value):
    assert parse_bound(given, unit) == value


def test_areas_and_panels_say_what_verdicts_say(made):
    analysis = made(recipe=replace(QUICK, blocks=8, noise=0.001))
    found = {(one.area, one.backend.name): one for one in area_answers(analysis)}
    assert found["cpu", "native"].outcome is Outcome.SAME
    assert found["cpu", "vm"].outcome is Outcome.WORSE
    for one in found.values():
        assert all(told.row.is_leading for told in one.told)
    kinds = {panel.kind: panel for panel in panels(analysis)}
    assert set(kinds) == {PanelKind.CHANGE, PanelKind.START}
    mark = next(one for one in kinds[PanelKind.CHANGE].lines[0].marks if one.backend.name == "vm")
    row = kinds[PanelKind.CHANGE].lines[0].row
    base, own = (values_by_block(analysis, row.metric.name, name) for name in ("bare-metal", "vm"))
    assert mark.points == pytest.approx(own / base - 1)
    assert mark.centre == pytest.approx(math.exp(np.log(own / base).mean()) - 1)


def test_a_requirement_is_a_value():
    one = Requirement(RequirementKind.LOSS, 0.05, Unit.SHARE)
    assert one == Requirement(RequirementKind.LOSS, 0.05, Unit.SHARE)
