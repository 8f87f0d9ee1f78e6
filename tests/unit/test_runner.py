"""A failure in one cell is a result, never the end of the run; what is interrupted is kept and can go on."""

import contextlib
from pathlib import Path

import pytest

from tare.bench.design import make_design
from tare.bench.model import Command, Completed, Diagnosis, Usage
from tare.bench.records import EventKind
from tare.bench.runner import Outcome, Runner
from tare.bench.store import LoadedRun, RunStore, find_progress, load_run
from tare.bench.suite import Suite, bind_suite, resolve_suite
from tests.unit.fakes import BACKENDS, IMAGE, WORKLOADS, BrokenBackend, FakeBackend, FakeInstance, FakeWorkload
from tests.unit.test_store import MANIFEST


class Silent:
    def __init__(self) -> None:
        self.failures: list[str | None] = []

    def instance_started(self, planned, position, total) -> None:
        pass

    def instance_ended(self, planned, failure, seconds) -> None:
        self.failures.append(failure)


def suite(*backends: str, **sampling: int) -> Suite:
    source = {
        "suite": {"name": "runner"},
        "sampling": {"blocks": 2, "iterations": 2, "warmup": 1, **sampling},
        "backend": [{"type": name} for name in backends],
        "experiment": [{"kind": "boot"}, {"kind": "steady", "workload": "answer"}],
    }
    return bind_suite(resolve_suite(source, Path("suite.toml"), BACKENDS, WORKLOADS))


def run(
    tmp_path, backends, plan_suite=None, attempts=None, skip=frozenset(), unavailable=None
) -> tuple[Outcome, LoadedRun]:
    plan_suite = plan_suite or suite(*backends, *(unavailable or {}))
    with RunStore(tmp_path, MANIFEST) as store:
        runner = Runner(plan_suite, IMAGE, backends, store, Silent(), identity="abc", unavailable=unavailable or {})
        plan = [planned for planned in make_design(plan_suite) if planned.identifier not in skip]
        outcome = runner.run(plan, attempts or {})
    return outcome, load_run(tmp_path)


def values(loaded: LoadedRun, metric: str) -> list[float]:
    return [sample.value for sample in loaded.samples if sample.metric == metric]


def test_every_iteration_is_recorded_and_warm_ups_are_flagged(tmp_path):
    outcome, loaded = run(tmp_path, {"fake": FakeBackend()})
    assert outcome == Outcome(done=4, failed=0, interrupted=False)
    answers = [sample for sample in loaded.samples if sample.metric == "answer.value"]
    assert [(sample.block, sample.iteration, sample.warmup) for sample in answers] == [
        (block, iteration, iteration == 0) for block in (0, 1) for iteration in (0, 1, 2)
    ]
    assert all((tmp_path / sample.raw).exists() for sample in answers)


def test_the_marks_become_metrics(tmp_path):
    _, loaded = run(tmp_path, {"fake": FakeBackend()})
    for name in ("boot.create", "boot.init", "boot.ready", "boot.stop"):
        assert values(loaded, name) == [1.0, 1.0]
    assert values(loaded, "boot.total") == [3.0, 3.0]
    assert not any(sample.warmup for sample in loaded.samples if sample.metric.startswith(("boot.", "instance.")))


def test_the_host_cost_is_a_difference_of_two_readings(tmp_path):
    _, loaded = run(tmp_path, {"fake": FakeBackend()})
    assert values(loaded, "host.cpu") == [4.0] * 6  # the fake clock ticks twice between readings, for user and system


def test_a_backend_that_never_boots_fails_its_cells_and_no_others(tmp_path):
    outcome, loaded = run(tmp_path, {"fake": FakeBackend(), "broken": BrokenBackend()})
    assert (outcome.done, outcome.failed) == (4, 4)
    failed = [event for event in loaded.events if event.kind is EventKind.INSTANCE_FAILED]
    assert {event.message for event in failed} == {"it never boots"}
    assert failed[0].details["evidence"] == "last console line"
    assert {sample.backend for sample in loaded.samples} == {"fake"}


def test_an_unavailable_backend_is_a_failed_cell_with_the_reason(tmp_path):
    outcome, loaded = run(tmp_path, {"fake": FakeBackend()}, unavailable={"broken": "no hypervisor"})
    assert (outcome.done, outcome.failed) == (4, 4)
    messages = {event.message for event in loaded.events if event.kind is EventKind.INSTANCE_FAILED}
    assert messages == {"not available: no hypervisor"}


def end(command: Command, **change) -> Completed:
    given = {"returncode": 0, "signal": None, "stdout": b"value 1\n", "stderr": b"", "started_s": 1.0, "ended_s": 2.0}
    return Completed(command.argv, **{**given, **change})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"returncode": 3, "stderr": b"no such device"}, "failed with exit status 3"),
        ({"returncode": 127}, "is not in the image"),
        ({"returncode": 126}, "cannot be executed"),
        ({"returncode": None, "signal": 9, "oom_kills": 1}, "answer was killed by the 512 MiB memory limit"),
        (
            {"returncode": None, "signal": 9, "oom_kills": 1, "outer_limit": "400 MiB memory limit of the cgroup /a"},
            "answer was killed by the 400 MiB memory limit of the cgroup /a, not by the envelope's 512 MiB",
        ),
        ({"returncode": 137, "oom_kills": 1}, "137; one of its processes had been killed by the 512 MiB memory limit"),
        ({"returncode": 1, "pids_refused": 7}, "exit status 1; the limit of 512 processes was reached 7 times"),
        ({"returncode": None, "signal": 9}, "killed by signal 9"),
        ({"returncode": None, "signal": 9, "timed_out": True}, "did not finish within 60 s"),
        ({"stdout": b"garbage"}, "no value"),
        ({"stdout": b"value nan"}, "not a number"),
        ({"stdout": b"value inf"}, "not a number"),
    ],
)
def test_a_command_that_goes_wrong_fails_the_cell_with_what_it_printed(tmp_path, change, reason):
    backend = FakeBackend()
    backend.answer = lambda command: end(command, **change) if command.argv[0] == "answer" else None
    outcome, loaded = run(tmp_path, {"fake": backend})
    assert (outcome.done, outcome.failed) == (2, 2)
    failed = [event for event in loaded.events if event.kind is EventKind.INSTANCE_FAILED]
    assert reason in failed[0].message
    if change.get("stderr"):
        assert "no such device" in failed[0].details["evidence"]
    assert backend.live == 0


def test_a_failure_that_the_workload_knows_is_told_with_its_remedy(tmp_path, monkeypatch):
    def diagnose(_, completed):
        return Diagnosis("the device is missing", "plug it in") if b"no such device" in completed.stderr else None

    monkeypatch.setattr(FakeWorkload, "diagnose", diagnose)
    backend = FakeBackend()
    backend.answer = lambda command: end(
        command, returncode=3 * (command.argv[0] == "answer"), stderr=b"no such device"
    )
    _, loaded = run(tmp_path, {"fake": backend})
    failed = next(event for event in loaded.events if event.kind is EventKind.INSTANCE_FAILED)
    assert failed.message == "answer failed with exit status 3: the device is missing"
    assert failed.details["remedy"] == "plug it in"
    assert "no such device" in failed.details["evidence"]


def test_the_last_event_of_an_instance_tells_what_limits_it_met(tmp_path, monkeypatch):
    met = Usage(1.0, 1.0, 1, 1, None, None, cpu_throttled_s=0.5, cpu_pressure_s=0.25, oom_kills=1)
    monkeypatch.setattr(FakeInstance, "usage", lambda _: met)
    _, loaded = run(tmp_path, {"fake": FakeBackend()})
    done = [event for event in loaded.events if event.kind is EventKind.INSTANCE_DONE]
    assert done
    assert all(e.details["usage"] == {"cpu_throttled_s": 0.5, "cpu_pressure_s": 0.25, "oom_kills": 1} for e in done)


def test_a_bug_in_a_plug_in_is_a_failed_cell_with_its_traceback(tmp_path):
    backend = FakeBackend()
    backend.answer = lambda command: command.argv[99]
    outcome, loaded = run(tmp_path, {"fake": backend})
    assert outcome.failed == 4
    event = next(event for event in loaded.events if event.kind is EventKind.INSTANCE_FAILED)
    assert event.details["kind"] == "bug"
    assert "IndexError" in event.details["evidence"]


def test_interrupted_and_resumed_is_as_complete_as_never_interrupted(tmp_path):
    backend = FakeBackend()
    calls = 0

    def interrupt(command: Command) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt

    backend.answer = interrupt
    outcome, loaded = run(tmp_path, {"fake": backend})
    assert outcome.interrupted
    assert backend.live == 0
    done = find_progress(loaded).done
    begun = [event.instance for event in loaded.events if event.kind is EventKind.INSTANCE_STARTED]
    assert len(begun) == len(done) + 1

    backend.answer = lambda _: None
    attempts = dict.fromkeys(begun, 1)
    outcome, loaded = run(tmp_path, {"fake": backend}, attempts=attempts, skip=done)
    assert outcome == Outcome(done=4 - len(done), failed=0, interrupted=False)
    _, whole = run(tmp_path / "whole", {"fake": FakeBackend()})

    def shape(one: LoadedRun) -> list[tuple[object, ...]]:
        return sorted((s.block, s.experiment, s.metric, s.iteration, s.warmup) for s in one.samples)

    assert shape(loaded) == shape(whole)


def test_clocks_that_disagree_are_noted(tmp_path):
    backend = FakeBackend()
    backend.answer = lambda command: end(command, guest_duration_s=0.5)
    _, loaded = run(tmp_path, {"fake": backend})
    notes = [event for event in loaded.events if event.kind is EventKind.NOTE]
    assert notes
    assert "1.000 s by the host's clock and 0.500 s by the guest's" in notes[0].message
    told = notes[0].details
    assert (told["host_s"], told["guest_s"], told["allowed_s"]) == (pytest.approx(1.0), 0.5, 0.1)
    # The first may be that of a set-up, which has no samples: the order is drawn.
    assert {note.details["raw"] for note in notes} & {sample.raw for sample in loaded.samples}


def test_instance_names_are_unique_to_the_process_and_the_attempt(tmp_path):
    backend = FakeBackend()
    run(tmp_path, {"fake": backend}, attempts={make_design(suite("fake"))[0].identifier: 1})
    assert len(set(backend.started)) == 4
    assert all(name.startswith("tare-abc-b") for name in backend.started)
    assert sum(name.endswith("r2") for name in backend.started) == 1


def test_a_store_that_fails_ends_the_run(tmp_path, monkeypatch):
    from tare.bench.errors import StoreError

    def fail(self, sample) -> None:
        raise StoreError("full")

    monkeypatch.setattr(RunStore, "add_sample", fail)
    with contextlib.suppress(FileNotFoundError), pytest.raises(StoreError):
        run(tmp_path, {"fake": FakeBackend()})
