"""The user's side of a fleet, with hosts that answer as the test has it: what becomes of each, whatever goes away."""

import asyncio
import hashlib

import msgspec
import pytest

pytest.importorskip("distributed")

from tare.bench.errors import TareError
from tare.bench.fleet import conductor
from tare.bench.fleet.collection import (
    FLEET_SCHEMA_VERSION,
    FleetManifest,
    HostRow,
    HostState,
    load_fleet_manifest,
    run_folder,
)
from tare.bench.fleet.conditions import Hello
from tare.bench.fleet.conductor import Conductor, FleetRequest
from tare.bench.fleet.hosts import Host, Start
from tare.bench.fleet.listing import ListedFile, digest_of
from tare.bench.fleet.on_host import Standing, utc_now
from tare.bench.fleet.purpose import Purpose
from tare.bench.fleet.wire import Desk, LostError

HERE = Hello("0.2", "abc", "3.11.7", utc_now(), "x86_64", "here")
CONTENT = b"{}"
FILES = (ListedFile("manifest.json", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()),)
COMPLETE = Standing(done=4, planned=4, complete=True, digest=digest_of(FILES))
RUNNING = Standing(done=1, planned=4, running=True)
PACK = b"an image"


class FakeHost:
    """A host and its worker. ``script`` has by call what happens first: an answer, an error to raise, a function."""

    def __init__(self, name, *, present=True, image="d" * 64, **script):
        self.name, self.present, self.image = name, present, image
        self.script = {call: list(steps) for call, steps in script.items()}
        self.calls = []
        self.received = b""

    def hello(self):
        said = {name: getattr(HERE, name) for name in ("version", "commit", "python", "architecture")}
        return Hello(utc=utc_now(), fingerprint=self.name, image=self.image, **said)

    async def answer(self, exchange, call, content, on_told):
        self.calls.append((call, content))
        steps = self.script.get(call)
        step = steps.pop(0) if steps else None
        if isinstance(step, Exception):
            raise step
        if callable(step):
            step = await step(exchange, on_told)
        if step is None:
            step = {"value": await self.usual(exchange, call, content)}
        return step

    async def usual(self, exchange, call, content):
        if call in {"hello", "carry_out", "look", "listing"}:
            answers = {"hello": self.hello, "carry_out": lambda: COMPLETE, "look": lambda: COMPLETE}
            return msgspec.to_builtins(answers.get(call, lambda: FILES)())
        if call == "pieces":
            return [CONTENT[offset : offset + size] for _, offset, size in content["pieces"]]
        if call == "build_image":
            return "b" * 64
        if call == "export_image":
            return {"size": len(PACK), "sha256": hashlib.sha256(PACK).hexdigest()}
        if call == "image_piece":
            return PACK[content["offset"] : content["offset"] + content["size"]]
        if call == "receive_image":
            self.received = exchange.fetch(self.name, "image", 0, content["size"])
        return True

    def asked(self, call):
        return [content for name, content in self.calls if name == call]


class Fleet:
    """Takes the place of the exchange, of who watches, and of who starts workers."""

    def __init__(self, tmp_path, monkeypatch, *hosts, start=Start.HAND, **request):
        self.fakes = {one.name: one for one in hosts}
        self.seen, self.steps, self.started = [], [], []
        self.start_problem = None
        self.desk = Desk(self.fakes, lambda *_: b"")
        self.address = "tls://192.0.2.1:8786"
        monkeypatch.setattr(conductor, "Exchange", self._listen)
        named = tuple(Host(name, f"192.0.2.{n}", start=start) for n, name in enumerate(self.fakes, 10))
        usual = {"wait_s": 0.2, "patience_s": 0.2, "interval_s": 1.0}
        self.request = FleetRequest(tmp_path / "f", named, {"suite": {"name": "s"}}, None, **{**usual, **request})
        rows = tuple(HostRow(host.name, host.address) for host in named)
        self.manifest = FleetManifest(FLEET_SCHEMA_VERSION, "f-1", "s", "0.2", utc_now(), rows, address=self.address)

    def _listen(self, _address, _credentials, _names, fetch):
        self.fetch = fetch
        return self

    async def __aenter__(self):
        for name, fake in self.fakes.items():
            if fake.present:
                self.desk.came(name)
        return self

    async def __aexit__(self, *_):
        pass

    async def call(self, host, call, content, on_told=lambda _kind, _content: None):
        return await self.fakes[host].answer(self, call, content, on_told)

    async def start(self, host, _address):
        self.started.append(host.name)
        if self.start_problem is not None:
            raise self.start_problem
        self.desk.came(host.name)

    def changed(self, manifest):
        self.seen += [(row.name, row.state) for row in manifest.hosts if (row.name, row.state) not in self.seen[-9:]]

    def step(self, text):
        self.steps.append(text)

    def conduct(self, here=HERE):
        ended = asyncio.run(Conductor(self.request, self.manifest, self, self).conduct(here))
        assert load_fleet_manifest(self.request.folder) == ended
        return ended

    def row(self, name):
        return self.conduct().row(name)


@pytest.fixture
def fleet_of(tmp_path, monkeypatch):
    return lambda *hosts, **request: Fleet(tmp_path, monkeypatch, *hosts, **request)


def goes_away(*, comes_back):
    """A worker that goes away in the middle of a call, after it told that the run goes on."""

    async def step(exchange, on_told):
        on_told("standing", msgspec.to_builtins(RUNNING))
        exchange.desk.went("a")
        if comes_back:
            asyncio.get_running_loop().call_later(0.05, exchange.desk.came, "a")
        raise LostError("the connection to a was lost")

    return step


async def never(_exchange, _on_told):
    await asyncio.Event().wait()


def test_each_run_comes_back_and_workers_are_let_go(fleet_of):
    fleet = fleet_of(FakeHost("a"), FakeHost("b"))
    ended = fleet.conduct()
    assert ended.ended_utc
    for row in ended.hosts:
        assert (row.state, row.reason, row.done, row.run) == (HostState.COLLECTED, "", 4, f"f-1.{row.name}")
        assert (run_folder(fleet.request.folder, row) / "manifest.json").read_bytes() == CONTENT
        assert [call for call, _ in fleet.fakes[row.name].calls] == ["hello", "carry_out", "listing", "pieces", "leave"]


def test_a_host_that_never_answers_does_not_keep_the_others(fleet_of):
    ended = fleet_of(FakeHost("a"), FakeHost("b", present=False)).conduct()
    assert ended.row("a").state is HostState.COLLECTED
    assert (ended.row("b").state, ended.row("b").reason) == (HostState.SILENT, "it did not answer within 0.2 s")


def test_a_host_that_connects_and_says_nothing(fleet_of, monkeypatch):
    monkeypatch.setattr(conductor, "_HELLO_S", 0.1)
    ended = fleet_of(FakeHost("a"), FakeHost("b", hello=[never])).conduct()
    assert ended.row("a").state is HostState.COLLECTED
    assert "said nothing of itself" in ended.row("b").reason


def test_a_worker_that_cannot_be_started_is_the_hosts_reason(fleet_of):
    fleet = fleet_of(FakeHost("a", present=False), start=Start.SSH)
    fleet.start_problem = TareError("SSH to a was refused", remedy="check user and key")
    row = fleet.row("a")
    assert (row.state, fleet.started) == (HostState.SILENT, ["a"])
    assert "SSH to a was refused" in row.reason
    assert "check user and key" in row.reason


def test_a_worker_that_is_missing_is_started(fleet_of):
    fleet = fleet_of(FakeHost("a", present=False), FakeHost("b"), start=Start.SSH)
    assert {row.state for row in fleet.conduct().hosts} == {HostState.COLLECTED}
    assert fleet.started == ["a"]


def test_what_must_not_differ_refuses_one_host_and_lets_it_go(fleet_of):
    odd, again = FakeHost("b"), FakeHost("c")
    odd.hello = lambda: msgspec.structs.replace(FakeHost("b").hello(), version="0.1")
    again.hello = lambda: msgspec.structs.replace(FakeHost("a").hello(), utc=utc_now())
    ended = fleet_of(FakeHost("a"), odd, again).conduct()
    assert [row.state for row in ended.hosts] == [HostState.COLLECTED, HostState.REFUSED, HostState.REFUSED]
    assert "tare 0.1 abc is installed there" in ended.row("b").reason
    assert "is the same machine as a" in ended.row("c").reason
    for one in (odd, again):
        assert [call for call, _ in one.calls] == ["hello", "leave"]


def test_a_call_goes_to_the_worker_that_comes_back(fleet_of):
    fleet = fleet_of(FakeHost("a", carry_out=[goes_away(comes_back=True)]), patience_s=30.0)
    assert fleet.row("a").state is HostState.COLLECTED
    assert ("a", HostState.LOST) in fleet.seen
    assert len(fleet.fakes["a"].asked("carry_out")) == 2


def test_a_host_that_stays_away_is_lost_with_what_it_had(fleet_of):
    row = fleet_of(FakeHost("a", carry_out=[goes_away(comes_back=False)])).row("a")
    assert (row.state, row.done, row.planned) == (HostState.LOST, 1, 4)
    assert "it has not come back within 0.2 s" in row.reason


def test_a_worker_that_stays_and_loses_each_task_is_given_up(fleet_of):
    fleet = fleet_of(FakeHost("a", carry_out=[LostError("KilledWorker")] * 9))
    row = fleet.row("a")
    assert (row.state, len(fleet.fakes["a"].asked("carry_out"))) == (HostState.FAILED, 4)
    assert "its worker cannot carry out carry_out: KilledWorker" in row.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"error": "no space", "remedy": "make room"}, "no space\n  what to do: make room"),
        ({"value": {"done": "many"}}, "its answer makes no sense: Expected `int`"),
        (["what"], "its answer makes no sense"),
        ({"value": msgspec.to_builtins(Standing(reason="it died"))}, "it died"),
    ],
)
def test_what_a_host_answers_instead_of_a_run_is_its_reason(fleet_of, answer, reason):
    fleet = fleet_of(FakeHost("a", carry_out=[answer]), FakeHost("b"))
    ended = fleet.conduct()
    assert ended.row("b").state is HostState.COLLECTED
    assert ended.row("a").state is HostState.FAILED
    assert ended.row("a").reason.startswith(reason)
    assert fleet.fakes["a"].asked("leave")


def test_files_that_are_not_those_of_the_digest_are_not_taken(fleet_of):
    fleet = fleet_of(FakeHost("a", pieces=[{"value": [b"[]"]}]))
    row = fleet.row("a")
    assert row.state is HostState.FAILED
    assert "are not those of its digest" in row.reason
    assert not run_folder(fleet.request.folder, row).exists()


def test_one_host_builds_the_image_and_the_others_get_it(fleet_of):
    hosts = [FakeHost(name, image="") for name in "abc"]
    fleet = fleet_of(*hosts)
    ended = fleet.conduct()
    assert ended.image == "b" * 64
    assert sorted(len(one.asked("build_image")) for one in hosts) == [0, 0, 1]
    (builder,) = (one for one in hosts if one.asked("build_image"))
    assert [one.received for one in hosts] == [b"" if one is builder else PACK for one in hosts]
    assert sum(len(one.asked("export_image")) for one in hosts) == 1
    assert {one.asked("carry_out")[0]["suite"]["image"]["use"] for one in hosts} == {"b" * 64}
    assert not (fleet.request.folder / "image.tar").exists()


def test_the_image_of_most_hosts_is_everybodys(fleet_of):
    hosts = [FakeHost("a", image="e" * 64), FakeHost("b"), FakeHost("c")]
    assert fleet_of(*hosts).conduct().image == "d" * 64
    assert [one.received for one in hosts] == [PACK, b"", b""]


def test_a_stopped_run_goes_on_once(fleet_of):
    """The user's word counts until the run goes on: a run that is stopped again meanwhile stays stopped."""
    fleet = fleet_of(FakeHost("a", carry_out=[goes_away(comes_back=True)]), goes_on=True, patience_s=30.0)
    fleet.conduct()
    assert [content["goes_on"] for content in fleet.fakes["a"].asked("carry_out")] == [True, False]


def test_collecting_begins_nothing(fleet_of):
    open_run = {"value": msgspec.to_builtins(Standing(done=1, planned=4))}
    live_run = {"value": msgspec.to_builtins(RUNNING)}
    fleet = fleet_of(
        FakeHost("a"), FakeHost("b", look=[open_run]), FakeHost("c", look=[live_run]), purpose=Purpose.COLLECT
    )
    ended = fleet.conduct()
    assert [row.state for row in ended.hosts] == [HostState.COLLECTED, HostState.FAILED, HostState.RUNNING]
    assert "--resume` goes on with it" in ended.row("b").reason
    assert not any(one.asked("carry_out") or one.asked("hello") for one in fleet.fakes.values())
    assert [bool(one.asked("leave")) for one in fleet.fakes.values()] == [True, True, False]


def test_stopping(fleet_of):
    stopped = {"value": msgspec.to_builtins(Standing(done=1, planned=4, reason="the run was stopped there"))}
    fleet = fleet_of(FakeHost("a", stop=[stopped]), FakeHost("b", present=False), purpose=Purpose.STOP)
    ended = fleet.conduct()
    assert (ended.row("a").state, ended.row("a").reason) == (HostState.FAILED, "the run was stopped there")
    assert ended.row("b").state is HostState.SILENT


def test_an_address_that_cannot_be_listened_at(fleet_of):
    fleet = fleet_of(FakeHost("a"))

    async def fails():
        raise OSError(98, "Address already in use")

    fleet.__class__ = type("Taken", (Fleet,), {"__aenter__": lambda _self: fails()})
    with pytest.raises(TareError, match=r"cannot listen at tls://192.0.2.1:8786: Address already in use") as raised:
        fleet.conduct()
    assert "--address" in str(raised.value.remedy)
