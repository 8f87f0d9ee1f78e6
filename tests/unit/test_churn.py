"""Churn keeps the population, goes faster until something breaks and says what; on instances that cost nothing."""

import itertools
import re
import time
from pathlib import Path

import pytest

from tare.bench.design import make_design
from tare.bench.errors import SuiteError
from tare.bench.experiments import churn
from tare.bench.experiments.churn import _p99, _read_cgroups, _read_dentries
from tare.bench.linux.files import HostRoots
from tare.bench.linux.host_memory import HostMemory
from tare.bench.records import EventKind
from tare.bench.runner import Runner
from tare.bench.store import RunStore, load_run
from tare.bench.suite import bind_suite, resolve_suite
from tests.unit.fakes import BACKENDS, IMAGE, WORKLOADS, FakeBackend
from tests.unit.test_runner import Silent
from tests.unit.test_store import MANIFEST

MIB = 2**20


def run_churn(tmp_path, monkeypatch, backend=None, **options):
    backend = backend or FakeBackend()
    readings = itertools.count()
    monkeypatch.setattr(
        churn,
        "_read_held",
        lambda: churn._Held(HostMemory(0.0, 2**34, 2**33 - next(readings) * 6 * MIB, 0, 0, None), 100, 10),
    )
    source = {
        "suite": {"name": "churn"},
        "sampling": {"blocks": 1},
        "backend": [{"type": "fake"}],
        "experiment": [{"kind": "churn", "options": options}],
    }
    suite = bind_suite(resolve_suite(source, Path("suite.toml"), BACKENDS, WORKLOADS))
    with RunStore(tmp_path, MANIFEST) as store:
        runner = Runner(suite, IMAGE, {"fake": backend}, store, Silent(), identity="abc", unavailable={})
        outcome = runner.run(make_design(suite), {})
    assert backend.live == 0
    return outcome, load_run(tmp_path)


def values(run, metric):
    return [sample.value for sample in run.samples if sample.metric == metric]


def ending(run):
    return next(event for event in run.events if event.kind is EventKind.NOTE and event.note_code == "churn-end")


def test_the_population_stays_and_every_step_is_faster(tmp_path, monkeypatch):
    backend = FakeBackend()
    alive, started = [], FakeBackend.start

    def start(self, spec):
        alive.append(self.live)
        return started(self, spec)

    monkeypatch.setattr(FakeBackend, "start", start)
    options = {"population": 7, "rate": 50, "faster": 2, "most": 200, "step": "100ms"}
    outcome, run = run_churn(tmp_path, monkeypatch, backend, **options)
    assert outcome.failed == 0
    assert alive == [*range(7), *[6] * (len(alive) - 7)]
    assert values(run, "churn.asked")[:3] == [50, 100, 200][: len(values(run, "churn.asked"))]
    starts = values(run, "churn.start")
    assert len(starts) == len(alive) - 7 == ending(run).details["replacements"]
    assert [sample.iteration for sample in run.samples if sample.metric == "churn.start"] == list(
        range(1, len(starts) + 1)
    )


def test_a_step_s_p99_is_that_of_its_starts(tmp_path, monkeypatch):
    options = {"population": 2, "rate": 40, "faster": 2, "most": 80, "step": "250ms"}
    _, run = run_churn(tmp_path, monkeypatch, **options)
    at = {s.iteration: s.value for s in run.samples if s.metric == "churn.start_p99"}
    starts = values(run, "churn.start")
    begin = 0
    for end, p99 in at.items():
        assert p99 == max(starts[begin:end]), "of fewer than a hundred the p99 is the largest"
        begin = end


def test_p99_by_hand():
    assert _p99([float(value) for value in range(1, 101)]) == 99
    assert _p99([float(value) for value in range(1, 1001)]) == 990
    assert _p99([3.0]) == 3


def test_an_objective_that_breaks_ends_it_and_the_last_good_rate_is_kept(tmp_path, monkeypatch):
    calls = itertools.count()
    monkeypatch.setattr(churn, "_p99", lambda values: 0.001 if next(calls) < 4 else 9.0)
    options = {"population": 2, "rate": 50, "faster": 2, "most": 10_000, "step": "100ms", "objective": "5ms"}
    _, run = run_churn(tmp_path, monkeypatch, **options)
    assert values(run, "churn.sustained") == [100]
    assert re.search(r"the p99 of a start was 9[.0]* s, the objective is 5[.0]* ms", ending(run).message)


def test_a_rate_that_is_not_reached_ends_it(tmp_path, monkeypatch):
    class Slow(FakeBackend):
        def start(self, spec):
            time.sleep(0.02)
            return super().start(spec)

    options = {"population": 1, "rate": 10, "faster": 10, "most": 10_000, "step": "500ms"}
    _, run = run_churn(tmp_path, monkeypatch, Slow(), **options)
    assert values(run, "churn.sustained") == [10]
    assert "replacements a second were reached" in ending(run).message


def test_what_is_kept_is_counted_at_the_same_population(tmp_path, monkeypatch):
    _, run = run_churn(tmp_path, monkeypatch, population=1, rate=100, most=100, step="100ms")
    (kept,), (each,) = values(run, "churn.memory_kept"), values(run, "churn.memory_kept_each")
    assert kept == 6 * MIB
    assert each == 6 * MIB / len(values(run, "churn.start"))
    assert values(run, "churn.dentries") == [0]
    assert values(run, "churn.cgroups") == [0]


def test_the_kernel_s_own_counts(tmp_path):
    (tmp_path / "sys/fs").mkdir(parents=True)
    (tmp_path / "sys/fs/dentry-state").write_text("12345\t9000\t45\t0\t10\t0\n")
    (tmp_path / "cgroups").write_text("#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t2\t3\t1\nmemory\t5\t77\t1\n")
    roots = HostRoots(proc=tmp_path)
    assert _read_dentries(roots) == 12345
    assert _read_cgroups(roots) == 77
    assert _read_dentries(HostRoots(proc=tmp_path / "none")) is None
    assert _read_cgroups(HostRoots(proc=tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rate": 10, "most": 5}, "most: must be at least the rate, 10"),
        ({"rate": 1, "step": "2s"}, "fewer than 5 replacements"),
        ({"faster": 1}, "faster"),
        ({"population": 0}, "population"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, problem):
    source = {
        "suite": {"name": "churn"},
        "backend": [{"type": "fake"}],
        "experiment": [{"kind": "churn", "options": options}],
    }
    with pytest.raises(SuiteError, match=problem):
        resolve_suite(source, Path("suite.toml"), BACKENDS, WORKLOADS)
