"""A host's part of a fleet: a run is begun, found, resumed, given up, stopped. Its run is a real process with a script.

``python -m tare run`` is replaced by a program that does what the next line of its script says: how many instances it
measures, and how it ends then.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from tare.bench.errors import ExitCode
from tare.bench.fleet import on_host
from tare.bench.fleet.listing import digest_of
from tare.bench.fleet.on_host import Order, Place, carry_out, stop
from tare.bench.host_lock import find_holder
from tare.bench.store import load_manifest
from tests.unit.test_store import MANIFEST

PLANNED = 4
RUN = """#!{python}
import json, os, signal, sys
from pathlib import Path
from tare.bench.host_lock import measuring

base = Path({base!r})
with (base / "begun").open("a") as file:
    file.write(json.dumps([sys.argv[4:], sorted(os.sched_getaffinity(0)), os.getcwd()]) + "\\n")
steps = json.loads((base / "script").read_text())
measures, end = steps.pop(0)
(base / "script").write_text(json.dumps(steps))
run = Path(sys.argv[sys.argv.index("--resume" if "--resume" in sys.argv else "--output") + 1])

def save(status):
    manifest = json.loads((base / "manifest.json").read_text())
    (run / ".part").write_text(json.dumps(dict(manifest, status=status)))
    (run / ".part").rename(run / "manifest.json")

def stopped(*_):
    save("interrupted")
    os._exit(130)

with measuring(run):
    signal.signal(signal.SIGTERM, stopped)
    run.mkdir(exist_ok="--resume" in sys.argv)
    if end == "early":
        os.kill(os.getpid(), signal.SIGKILL)
    save("running")
    with (run / "events.jsonl").open("a") as file:
        done = sum(1 for _ in (run / "events.jsonl").open())
        for number in range(done, done + measures):
            event = dict(kind="instance_done", instance="b%02d" % number, time_utc="")
            file.write(json.dumps(event) + "\\n")
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "waits":
        with open(base / "waiting", "w") as file:
            file.write("here")
        signal.pause()
    if end == "complete":
        save("complete")
        sys.exit(0)
print("tare: the last words\\n  what to do: think", file=sys.stderr)
sys.exit(end)
"""


class Run:
    """The order for a run, its place, and what its processes do one after another."""

    def __init__(self, base: Path, monkeypatch):
        monkeypatch.setenv("TARE_STATE_DIR", str(base / "state"))
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        self.base = base
        self.order = Order("f-1", "a", "f-1.a", {"suite": {"name": "s"}}, interval_s=0.02)
        self.place = Place(self.order)
        self.told = []
        (base / "manifest.json").write_bytes(
            msgspec.json.encode(msgspec.structs.replace(MANIFEST, planned_instances=PLANNED))
        )
        program = base / "python"
        program.write_text(RUN.format(python=sys.executable, base=str(base)))
        program.chmod(0o755)
        monkeypatch.setattr(on_host.sys, "executable", str(program))

    def script(self, *steps):
        (self.base / "script").write_text(json.dumps(steps))

    async def tell(self, standing):
        self.told.append(standing)

    def carry_out(self, cpus=None, **changes):
        order = msgspec.structs.replace(self.order, **changes)
        return asyncio.run(carry_out(order, cpus or sorted(os.sched_getaffinity(0)), self.tell))

    @property
    def begun(self):
        file = self.base / "begun"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def ways(self):
        return [argv[1] if argv[0] == "--resume" else "new" for argv, *_ in self.begun]


@pytest.fixture
def run(tmp_path, monkeypatch):
    return Run(tmp_path, monkeypatch)


@pytest.fixture
def live(run):
    """A run that another process has begun, which measures one instance and then waits to be told to end."""
    run.script([1, "waits"])
    os.mkfifo(run.base / "waiting")
    process = run.place.start(sorted(os.sched_getaffinity(0)))
    assert (run.base / "waiting").read_text() == "here"
    yield process
    process.kill()
    process.wait()


def test_a_run_is_begun_and_comes_to_its_digest(run):
    run.script([PLANNED, "complete"])
    standing = run.carry_out()
    assert (standing.done, standing.planned, standing.complete, standing.reason) == (PLANNED, PLANNED, True, "")
    assert standing.digest == digest_of(run.place.listing())
    ((argv, _, folder),) = run.begun
    suite = run.place.folder / "suite.json"
    assert argv == [
        *(str(suite), "--output", str(run.place.run), "--label", "fleet=f-1", "--label", "host=a", "--no-report")
    ]
    assert json.loads(suite.read_text()) == run.order.suite
    assert folder == str(run.place.folder)
    assert run.told
    assert all(one.running and not one.complete for one in run.told)


def test_a_complete_run_is_found(run):
    run.script([PLANNED, "complete"])
    first = run.carry_out()
    assert run.carry_out() == first
    assert len(run.begun) == 1


def test_a_run_that_dies_goes_on_where_it_stopped(run):
    run.script([1, "killed"], [2, "killed"], [1, "complete"])
    standing = run.carry_out()
    assert (standing.complete, standing.done) == (True, PLANNED)
    assert run.ways == ["new", str(run.place.run), str(run.place.run)]


def test_a_run_that_was_killed_before_it_measured_is_begun_anew(run):
    run.script([0, "early"], [PLANNED, "complete"])
    assert run.carry_out().complete
    assert run.ways == ["new", "new"]


def test_a_run_that_makes_no_progress_is_given_up(run):
    run.script(*[[0, "killed"]] * 9)
    standing = run.carry_out()
    assert (standing.complete, standing.done) == (False, 0)
    assert standing.reason == "the run died 6 times there without measuring anything"
    assert len(run.begun) == 6


def test_progress_is_what_counts_for_giving_up(run):
    run.script(*[[0, "killed"]] * 5, [1, "killed"], *[[0, "killed"]] * 5, [PLANNED - 1, "complete"])
    assert run.carry_out().complete


@pytest.mark.parametrize("code", [ExitCode.BAD_INPUT, ExitCode.MISSING, ExitCode.ENVIRONMENT, ExitCode.BUG])
def test_what_would_fail_again_is_the_reason_at_once(run, code):
    run.script([1, int(code)])
    standing = run.carry_out()
    assert (standing.complete, standing.done) == (False, 1)
    assert standing.reason == "the last words\n  what to do: think"
    assert len(run.begun) == 1


def test_a_run_that_goes_on_is_found_and_not_begun_twice(run, live, monkeypatch):
    """Another worker began it, and it ends while this one waits for it."""
    start = Place.start

    def start_once(place, cpus):
        assert live.poll() is not None, "begun twice"
        return start(place, cpus)

    monkeypatch.setattr(Place, "start", start_once)

    async def tell(standing):
        assert standing.running
        if live.poll() is None:
            assert standing.done == 1
            run.script([PLANNED - 1, "complete"])
            live.kill()
            live.wait()

    standing = asyncio.run(carry_out(run.order, sorted(os.sched_getaffinity(0)), tell))
    assert (standing.complete, standing.done) == (True, PLANNED)
    assert run.ways == ["new", str(run.place.run)]


def test_the_run_of_somebody_else_is_left_alone(run, live):
    standing = run.carry_out(run="f-1.other")
    assert standing.reason.startswith(f"another run measures there (process {live.pid}, {run.place.run}, since ")
    assert "tare fleet run --resume" in standing.reason
    assert live.poll() is None
    assert len(run.begun) == 1


def test_stopping_keeps_what_was_measured_until_the_user_goes_on(run, live):
    stopped = asyncio.run(stop(run.order))
    assert (stopped.done, stopped.complete, stopped.reason) == (1, False, "the run was stopped there")
    assert live.wait() == ExitCode.INTERRUPTED
    assert load_manifest(run.place.run).status == "interrupted"
    assert run.carry_out().reason == "the run was stopped there"
    run.script([PLANNED - 1, "complete"])
    assert run.carry_out(goes_on=True).complete


def test_a_run_that_somebody_stopped_on_the_host_goes_on_when_the_user_says_so(run, live):
    live.terminate()
    assert live.wait() == ExitCode.INTERRUPTED
    assert run.carry_out().reason == "the run was stopped there"
    run.script([PLANNED - 1, "complete"])
    assert run.carry_out(goes_on=True).complete


def test_a_stop_before_anything_was_begun_holds(run):
    assert asyncio.run(stop(run.order)).reason == "the run was stopped there"
    assert run.carry_out().reason == "the run was stopped there"
    assert not run.begun


def test_a_run_that_does_not_end_when_it_is_told_to(run, live):
    os.kill(live.pid, signal.SIGSTOP)
    assert "has not ended within 0.1 s" in asyncio.run(stop(run.order, 0.1)).reason
    assert find_holder().pid == live.pid


def test_the_run_may_use_the_cpus_it_is_given_and_the_worker_keeps_its_own(run):
    before = sorted(os.sched_getaffinity(0))
    run.script([PLANNED, "complete"])
    run.carry_out(cpus=before[-1:])
    assert [cpus for _, cpus, _ in run.begun] == [before[-1:]]
    assert sorted(os.sched_getaffinity(0)) == before


def test_a_folder_that_cannot_be_written_is_one_reason(run):
    (run.base / "file").touch()
    reason = run.carry_out(work=str(run.base / "file/runs")).reason
    assert "Not a directory" in reason
    assert str(run.base / "file") in reason


def test_a_state_folder_that_cannot_be_written_has_a_remedy(run):
    run.place.folder.parent.parent.mkdir(parents=True)
    run.place.folder.parent.touch()
    reason = run.carry_out().reason
    assert reason.startswith(f"cannot write to {run.base / 'state'}: ")
    assert "set TARE_STATE_DIR" in reason


def test_a_worker_that_is_killed_leaves_the_run_alone(run):
    """The run is nobody's child that a signal to the worker's group would reach."""
    run.script([0, "waits"])
    os.mkfifo(run.base / "waiting")
    process = run.place.start(sorted(os.sched_getaffinity(0)))
    try:
        assert (run.base / "waiting").read_text() == "here"
        assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    finally:
        process.kill()
        process.wait()
