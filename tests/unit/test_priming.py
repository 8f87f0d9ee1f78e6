"""Priming uses each workload once on each backend, in one instance as long as that is of use, and keeps nothing."""

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from tare.bench.analysis import analyse
from tare.bench.errors import StoreError
from tare.bench.model import Command, Commands, Completed, Service
from tare.bench.priming import choose_scenarios, prime
from tare.bench.registry import Plugins
from tare.bench.store import load_run
from tare.bench.suite import Suite, bind_suite, resolve_suite
from tare.reports.html import render_page
from tare.reports.summary_json import summary_of
from tests.synthetic import write_run
from tests.unit.fakes import BACKENDS, IMAGE, WORKLOADS, FakeBackend, FakeWorkload

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/json-report.schema.json").read_text("utf-8"))


class Other(FakeWorkload):
    name = "other"


class Server(FakeWorkload):
    name = "server"

    def commands(self, params, envelope):
        service = Service("daemon", Command(("daemon",)), ready=Command(("ask",)), ready_within_s=1)
        return Commands(Command(("client",)), services=(service,))


class Long(FakeWorkload):
    name = "long"

    @classmethod
    def duration_s(cls, params):
        return params.size


WITH_MORE = Plugins("workload", {**WORKLOADS.loaded, **{one.name: one for one in (Other, Server, Long)}}, {})


class Store:
    """Takes down events and keeps nothing else: priming has no other method of a store to call."""

    def __init__(self):
        self.events = []

    def add_event(self, event):
        self.events.append(event)


def suite(*workloads: str, boot: bool = False, params=None, **sampling) -> Suite:
    source = {
        "suite": {"name": "primed"},
        "sampling": sampling,
        "backend": [{"type": "fake"}],
        "experiment": [{"kind": "boot"}] * boot
        + [{"kind": "steady", "workload": name, "params": params or {}} for name in workloads],
    }
    return bind_suite(resolve_suite(source, Path("primed.toml"), BACKENDS, WITH_MORE))


class Recording(FakeBackend):
    """Keeps what ran in each instance, and the programs that fail in an instance of a certain number (from 1)."""

    def __init__(self, failing=()):
        super().__init__()
        self.ran = []
        self.failing = set(failing)
        self.answer = self.take

    def start(self, spec):
        self.ran.append([])
        return super().start(spec)

    def take(self, command):
        program = command.argv[0]
        self.ran[-1].append(program)
        if program == "sh":
            return Completed(command.argv, 0, None, b"77", b"", 1.0, 1.5)
        code = 1 if (program, len(self.ran)) in self.failing else 0
        return Completed(command.argv, code, None, b"value 42\n", b"", 1.0, 1.5)


def primed(given: Suite, backend: FakeBackend):
    store = Store()
    prime(given, IMAGE, {"fake": backend}, store, lambda _: None, "name")
    assert backend.live == 0
    (event,) = store.events
    return event


def test_all_workloads_share_an_instance():
    backend = Recording()
    event = primed(suite("answer", "other", boot=True), backend)
    assert backend.ran == [["/bin/true", "prepare", "answer", "tidy", "prepare", "answer", "tidy"]]
    assert backend.started == ["tare-name-p0i00"]
    assert event.details["scenarios"] == ("boot", "steady/answer", "steady/other")
    assert event.details["instances"] == 1
    assert event.details["failed"] == {}
    assert "failed" not in event.message


def test_what_serves_has_an_instance_of_its_own():
    backend = Recording()
    event = primed(suite("server", "answer"), backend)
    assert event.details["instances"] == 2
    assert "client" in backend.ran[0]
    assert "client" not in backend.ran[1]


def test_what_fails_in_a_used_instance_is_tried_in_a_fresh_one():
    program = FakeWorkload().commands(FakeWorkload.Params(), None).measured.argv[0]
    backend = Recording({(program, 1)})
    event = primed(suite("answer", boot=True), backend)
    assert event.details["instances"] == 2
    assert event.details["failed"] == {}
    backend = Recording({(program, 1), (program, 2)})
    event = primed(suite("answer", boot=True), backend)
    assert list(event.details["failed"]) == ["steady/answer"]
    assert "steady/answer" in event.message


def test_the_shortest_scenario_of_a_workload_is_chosen():
    chosen = choose_scenarios(suite("long", params={"size": [5, 2, 3]}))
    assert [one.params.size for one in chosen] == [2]


def test_a_backend_that_does_not_start_is_asked_once():
    class Broken(Recording):
        def start(self, spec):
            self.started.append(spec.identifier)
            raise RuntimeError("a defect")

    backend = Broken()
    event = primed(suite("answer", "other", boot=True), backend)
    assert len(backend.started) == 1
    assert event.details["failed"] == {"boot": "RuntimeError: a defect"}


def test_a_disk_that_is_full_ends_the_run():
    class Full(Recording):
        def start(self, spec):
            raise StoreError("no space")

    with pytest.raises(StoreError):
        primed(suite("answer"), Full())


def test_a_suite_may_ask_for_the_first_touch():
    backend, store = Recording(), Store()
    prime(suite("answer", prime=False), IMAGE, {"fake": backend}, store, lambda _: None, "name")
    assert (backend.started, store.events) == ([], [])


def test_reports_say_what_was_primed_and_what_could_not_be(tmp_path):
    path = write_run(tmp_path / "run")
    said = "Each backend ran each workload once before the first block, unmeasured"
    assert said not in render_page(analyse(load_run(path)))
    program = FakeWorkload().commands(FakeWorkload.Params(), None).measured.argv[0]
    for failing in (set(), {(program, 1)}):
        event = primed(suite("answer"), Recording(failing))
        with (path / "events.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")
        analysis = analyse(load_run(path))
        page = render_page(analysis)
        assert (f"{said} (not: steady/answer on fake)." if failing else f"{said}.") in page
        summary = json.loads(json.dumps(summary_of(analysis)))
        jsonschema.validate(summary, SCHEMA)
        assert summary["primed"][-1]["failed"].keys() == ({"steady/answer"} if failing else set())
