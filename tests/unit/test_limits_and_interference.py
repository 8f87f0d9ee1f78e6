"""What is searched is found, a victim is compared with itself alone, and aggressors end with the cell."""

import json
from pathlib import Path

import pytest

from tare.bench.catalogue import NoteCode
from tare.bench.design import make_design
from tare.bench.errors import BackendError, SuiteError
from tare.bench.experiments.interference import KINDS, aggressor_argv, degradation
from tare.bench.experiments.limits import bisect_size
from tare.bench.model import Command, Completed, Direction, Envelope
from tare.bench.records import EventKind
from tare.bench.runner import Outcome, Runner
from tare.bench.store import LoadedRun, RunStore, load_run
from tare.bench.suite import bind_suite, resolve_suite
from tests.unit.fakes import BACKENDS, IMAGE, WORKLOADS, FakeBackend
from tests.unit.test_runner import Silent
from tests.unit.test_store import MANIFEST

MIB = 2**20


def run_suite(tmp_path, backend, experiment, **envelope) -> tuple[Outcome, LoadedRun]:
    source = {
        "suite": {"name": "x"},
        "envelope": {"memory": "64MiB", "scratch": "1MiB", "pids": 100, **envelope},
        "sampling": {"blocks": 1, "iterations": 2, "warmup": 1},
        "backend": [{"type": "fake"}],
        "experiment": [experiment],
    }
    suite = bind_suite(resolve_suite(source, Path("suite.toml"), BACKENDS, WORKLOADS))
    with RunStore(tmp_path, MANIFEST) as store:
        runner = Runner(suite, IMAGE, {"fake": backend}, store, Silent(), identity="abc", unavailable={})
        outcome = runner.run(make_design(suite), {})
    return outcome, load_run(tmp_path)


def values(run: LoadedRun, metric: str) -> list[tuple[int, float]]:
    return [(sample.iteration, sample.value) for sample in run.samples if sample.metric == metric]


def said(command: Command, stdout: bytes) -> Completed:
    return Completed(command.argv, 0, None, stdout, b"", 1.0, 2.0)


@pytest.mark.parametrize("least", [300_000, 7 * MIB, 63 * MIB])
def test_the_least_size_is_found_to_the_resolution(least):
    tried = []

    def passes(size: int) -> bool:
        tried.append(size)
        return size >= least

    found = bisect_size(2**18, 64 * MIB, 0.05, passes)
    assert least <= found <= least * 1.06
    assert len(tried) < 15


def test_nothing_far_below_what_fails_is_tried():
    tried = []
    bisect_size(2**18, 512 * MIB, 0.1, lambda size: tried.append(size) or size >= 100 * MIB)
    assert min(tried) == 64 * MIB


def test_what_passes_everywhere_is_the_lowest():
    assert bisect_size(2**18, 64 * MIB, 0.1, lambda _: True) == 2**18


class Guest(FakeBackend):
    """Answers the probes as an instance does that sees two CPUs and does not hold its disk limit."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = self.probe_answer
        self.held = b"held"

    def probe_answer(self, command: Command) -> Completed | None:
        program = " ".join(command.argv)
        if "MemTotal" in program:
            seen = {"cpus": 2, "allowed": 1, "memory_bytes": 128 * MIB, "kernel": "6.1", "host_name": "x"}
            return said(command, json.dumps(seen).encode())
        if command.argv[0] == "cat":
            return said(command, self.held)
        if "fork" in program:
            return said(command, b"99\n")
        if "written" in program:
            return said(command, b"2097152\n")
        if "chunks" in program or "held.append" in program:
            return said(command, b"33554432\n62914560\n")
        return None


def test_what_is_seen_and_what_is_reached_are_ratios_to_what_was_given(tmp_path):
    backend = Guest()
    charges = iter([10 * MIB, 26 * MIB, *[14 * MIB] * 50])

    outcome, run = run_limits(tmp_path, backend, charges, search=False)
    assert outcome.failed == 0
    found = {sample.metric: sample.value for sample in run.samples}
    assert found["limits.cpus_seen"] == 2
    assert found["limits.memory_seen"] == 2
    assert found["limits.pids_reached"] == 0.99
    assert found["limits.disk_reached"] == 2
    assert found["limits.memory_reached"] == pytest.approx(60 / 64)
    assert found["limits.memory_grown"] == 16 * MIB
    assert found["limits.memory_returned"] == 0.75
    assert found["limits.cpu_reached"] == 8.0  # the fake's meters go on by 4 s in its half a second


def run_limits(tmp_path, backend, charges, **options):
    from tare.bench.experiments import limits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_charge", lambda _: next(charges))
        patch.setattr(limits.time, "sleep", lambda _: None)
        return run_suite(tmp_path, backend, {"kind": "limits", "options": options})


def test_memory_that_cannot_be_held_is_told_and_the_rest_is_measured(tmp_path):
    backend = Guest()
    backend.held = b"gone"
    outcome, run = run_limits(tmp_path, backend, iter([10 * MIB] * 9), search=False)
    assert outcome.failed == 0
    assert not values(run, "limits.memory_grown")
    assert values(run, "limits.disk_reached")
    assert any(event.details.get("code") == "limits-not-held" for event in run.events)


@pytest.mark.parametrize(("needed", "found"), [(1, 2**18), (20 * MIB, 23_724_032)])
def test_the_least_memory_is_searched_from_the_lowest_that_is_stated_and_kept_with_what_was_tried(
    tmp_path, needed, found
):
    class Small(Guest):
        def start(self, spec):
            if spec.envelope.memory_bytes < needed:
                raise BackendError("too little")
            return super().start(spec)

    _, run = run_limits(
        tmp_path, Small(), iter([10 * MIB, 26 * MIB, *[14 * MIB] * 9]), resolution=0.5, repeats=1, lowest="256KiB"
    )
    assert [event.message for event in run.events if event.kind is EventKind.INSTANCE_FAILED] == []
    assert values(run, "limits.start_memory") == [(0, found)]
    (note,) = [event for event in run.events if event.note_code == NoteCode.LIMITS_SEARCH]
    assert {entry["passed"] for entry in note.details["tried"]} == ({True} if needed == 1 else {True, False})


def test_worse_is_above_one_whichever_way_a_metric_goes():
    assert degradation(Direction.LOWER, 2.0, 3.0) == 1.5
    assert degradation(Direction.HIGHER, 3.0, 2.0) == 1.5
    assert degradation(Direction.LOWER, 0.0, 3.0) is None
    assert degradation(Direction.HIGHER, 3.0, 0.0) is None


class Neighbourhood(FakeBackend):
    """A victim whose value is that of ``worth`` with the number of aggressors at work and the time on its clock."""

    def __init__(self, worth):
        super().__init__()
        self.worth = worth
        self.at_work = 0
        self.measured = []
        self.answer = self.take

    def take(self, command: Command) -> Completed | None:
        script = command.argv[2] if command.argv[0] == "sh" else ""
        if command.argv[0] == "answer":
            at_s = next(self.clock)
            self.measured.append((self.live - 1, self.at_work))
            value = f"value {self.worth(self.at_work, at_s + 0.25)!r}\n".encode()
            return Completed(command.argv, 0, None, value, b"", at_s, at_s + 0.5)
        if "echo $!" in script:
            self.at_work += 1
            self.alive = True
            return said(command, b"77\n")
        if script.startswith("kill"):
            self.at_work -= 1
            self.alive = False
        if "/cmdline" in script:
            return Completed(command.argv, 0 if self.alive else 1, None, b"", b"", 1.0, 2.0)
        return None


INTERFERENCE = {"kind": "interference", "workload": "answer", "options": {"aggressor": "cpu", "aggressors": 2}}


def test_the_victim_is_compared_with_itself_alone(tmp_path):
    # HIGHER is better: next to idle neighbours a tenth is lost, next to one aggressor half, next to two two thirds.
    backend = Neighbourhood(lambda at_work, _: 0.0)
    backend.worth = lambda at_work, _: 40 / (1 + at_work) * (1 if at_work or backend.live == 1 else 0.8)
    outcome, run = run_suite(tmp_path, backend, INTERFERENCE)
    assert outcome.failed == 0
    each = [backend.measured[start] for start in range(0, len(backend.measured), 3)]
    assert backend.measured == [one for one in each for _ in range(3)]
    assert each[0] == each[-1] == (0, 0)
    assert sorted(each[1:-1]) == [(2, 0), (2, 1), (2, 2)]
    kept = sorted(values(run, "interference.value.answer.value"))
    assert kept == [(0, 40.0)] * 4 + [(1, 20.0)] * 2 + [(2, 40 / 3)] * 2
    assert sorted(values(run, "interference.ratio.answer.value")) == [(1, 2.0), (2, 3.0)]
    assert values(run, "interference.sham.answer.value") == [(2, 1.25)]
    assert not any(sample.warmup for sample in run.samples)
    assert (backend.live, backend.at_work) == (0, 0)


def test_time_in_the_instance_is_no_effect_of_neighbours(tmp_path):
    backend = Neighbourhood(lambda _, at_s: 500 - at_s)
    _, run = run_suite(tmp_path, backend, INTERFERENCE)
    alone = [value for number, value in values(run, "interference.value.answer.value") if number == 0]
    assert max(alone) > min(alone) + 10
    ratios = values(run, "interference.ratio.answer.value") + values(run, "interference.sham.answer.value")
    assert [ratio for _, ratio in ratios] == pytest.approx([1.0] * 3, abs=1e-9)


def test_numbers_of_aggressors_come_in_an_order_balanced_over_blocks(tmp_path):
    backend = Neighbourhood(lambda *_: 1.0)
    run_suite(tmp_path, backend, INTERFERENCE | {"blocks": 6, "iterations": 1, "warmup": 0})
    orders = [[at_work for _, at_work in backend.measured[start + 1 : start + 4]] for start in range(0, 30, 5)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    for number in range(3):
        assert sorted(order.index(number) for order in orders) == [0, 0, 1, 1, 2, 2]


def test_an_aggressor_that_does_not_end_makes_the_cell_fail(tmp_path, monkeypatch):
    class Stubborn(Neighbourhood):
        def take(self, command):
            found = super().take(command)
            self.alive = True
            return found

    monkeypatch.setattr("tare.bench.experiments.work._STOPS_WITHIN_S", 0.1)
    outcome, run = run_suite(tmp_path, Stubborn(lambda *_: 1.0), INTERFERENCE)
    assert outcome.failed == 1
    (failed,) = [event for event in run.events if event.kind is EventKind.INSTANCE_FAILED]
    assert "aggressor cpu did not end" in failed.message


def test_an_aggressor_that_ended_early_makes_the_cell_fail(tmp_path):
    backend = FakeBackend()

    def answer(command: Command) -> Completed | None:
        if any("/cmdline" in argument for argument in command.argv):
            return Completed(command.argv, 1, None, b"", b"", 1.0, 2.0)
        if command.argv[0] == "tail":
            return said(command, b"stress-ng: out of memory\n")
        return said(command, b"77\n") if command.argv[0] == "sh" else None

    backend.answer = answer
    outcome, run = run_suite(tmp_path, backend, {"kind": "interference", "workload": "answer"})
    assert outcome.failed == 1
    (failed,) = [event for event in run.events if event.kind is EventKind.INSTANCE_FAILED]
    assert "aggressor cpu ended" in failed.message
    assert "out of memory" in failed.details["evidence"]


def test_every_aggressor_is_bounded_and_fits_its_envelope():
    envelope = Envelope((2, 3), 128 * MIB, 64 * MIB, 100)
    for kind in KINDS:
        argv = aggressor_argv(kind, envelope, 90.0)
        assert argv[argv.index("--timeout") + 1] == "90s"
    argv = aggressor_argv("memory", envelope, 90.0)
    assert int(argv[argv.index("--memrate-bytes") + 1]) * 2 <= envelope.memory_bytes // 4


def test_options_are_dimensions_and_must_not_shadow_parameters():
    source = {
        "suite": {"name": "x"},
        "backend": [{"type": "fake"}],
        "experiment": [{"kind": "interference", "workload": "answer", "options": {"aggressor": ["cpu", "disk"]}}],
    }
    suite = resolve_suite(source, Path("suite.toml"), BACKENDS, WORKLOADS)
    assert [subject.given for subject in suite.scenarios] == [{"aggressor": "cpu"}, {"aggressor": "disk"}]
    for options, message in (({"aggressor": "noise"}, "there are: cpu, disk"), ({"size": 3}, "unknown key `size`")):
        source["experiment"][0]["options"] = options
        with pytest.raises(SuiteError, match=message):
            resolve_suite(source, Path("suite.toml"), BACKENDS, WORKLOADS)
