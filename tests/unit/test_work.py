"""A workload made ready: the order of its commands, where each runs, and what is told when a service fails."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import msgspec
import pytest

from tare.bench.errors import BackendError, ParseError, WorkloadError
from tare.bench.experiments.steady import Steady, SteadyOptions
from tare.bench.experiments.work import Background, Work
from tare.bench.interfaces import Instance, Workload
from tare.bench.model import SERVER, Command, Commands, Completed, Footprint, Measurement, Service, StartTimeline, Usage
from tare.bench.network_path import LOOPBACK, ServerPlace
from tare.bench.process import DEVNULL, PIPE, Popen

SERVED = Commands(
    measured=Command(("client", SERVER)),
    setup=(Command(("lay-out",)),),
    teardown=(Command(("tidy",)),),
    services=(Service("db", Command(("server", f"--bind={SERVER}")), Command(("ping",), env={"HOST": SERVER})),),
    load=(Command(("fill", SERVER)),),
)


class Recorded(Instance):
    """Remembers what it was asked, and ends what ``fails`` names with status 1."""

    def __init__(self, name: str, log: list[tuple[str, ...]], address: str | None = None, fails: str = "") -> None:
        self.name, self.log, self.address, self.fails = name, log, address, fails
        self.timeline = StartTimeline()

    def execute(self, command: Command) -> Completed:
        self.log.append((self.name, *command.argv, *command.env.values()))
        status = 1 if self.fails and self.fails in " ".join(command.argv) else 0
        out = b"bind: Address already in use" if command.argv[0] == "tail" else b"17\n"
        return Completed(command.argv, status, None, out, b"", 0.0, 1.0)

    def usage(self) -> Usage:
        raise NotImplementedError

    def footprint(self) -> Footprint:
        raise NotImplementedError


class Run:
    """The part of ``InstanceRun`` that is needed here."""

    def execute(self, instance: Instance, command: Command, role: str) -> tuple[Completed, str]:
        completed = instance.execute(command)
        return completed, self.keep(command, completed, role)

    def keep(self, command: Command, completed: Completed, role: str) -> str:
        if completed.returncode:
            raise WorkloadError(f"{role}: status {completed.returncode}")
        return role


def prepared(instance: Instance, serving: Instance | None = None) -> Work:
    return Work(Run(), SERVED, instance, serving=serving)  # type: ignore[arg-type]  # as much of a run as it needs


def test_everything_runs_in_one_instance_over_loopback() -> None:
    log: list[tuple[str, ...]] = []
    work = prepared(Recorded("a", log))
    work.measure()
    work.end()
    assert [entry[:2] for entry in log] == [
        ("a", "lay-out"),
        ("a", "sh"),
        ("a", "ping"),
        ("a", "sh"),
        ("a", "fill"),
        ("a", "client"),
        ("a", "sh"),
        ("a", "tidy"),
    ]
    assert log[1][-1] == "--bind=127.0.0.1"
    assert log[2][-1] == log[4][-1] == log[5][-1] == "127.0.0.1"
    assert work.measured.argv == ("client", "127.0.0.1")


def test_another_instance_serves_at_its_address() -> None:
    log: list[tuple[str, ...]] = []
    prepared(Recorded("client", log), Recorded("server", log, "10.1.2.3")).measure()
    assert [entry[:2] for entry in log] == [
        ("server", "lay-out"),
        ("server", "sh"),
        ("client", "ping"),
        ("server", "sh"),
        ("client", "fill"),
        ("client", "client"),
    ]
    assert log[1][-1] == "--bind=10.1.2.3"
    assert log[5][-1] == "10.1.2.3"


def test_instances_that_share_a_network_stack_serve_at_addresses_of_their_own() -> None:
    logs: list[list[tuple[str, ...]]] = [[], [], []]
    prepared(Recorded("a", logs[0], LOOPBACK))
    prepared(Recorded("b", logs[1], LOOPBACK))
    prepared(Recorded("client", logs[2], LOOPBACK), Recorded("server", logs[2], LOOPBACK))
    bound = [ip_address(entry[-1].removeprefix("--bind=")) for log in logs for entry in log if "--bind" in entry[-1]]
    assert len(set(bound)) == 3
    assert all(address.is_loopback and str(address) != LOOPBACK for address in bound)
    assert logs[2][-1] == ("client", "fill", str(bound[2]))


def test_a_server_without_a_network_is_refused() -> None:
    with pytest.raises(BackendError, match="has no network"):
        prepared(Recorded("client", []), Recorded("server", []))


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("ping", "the service db did not become ready: ready-db: status 1"),
        ("log=", "the service db could not be started"),
    ],
)
def test_a_service_that_does_not_come_tells_its_last_words(fails: str, message: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        prepared(Recorded("a", [], fails=fails))
    assert caught.value.message == message
    if fails == "ping":
        assert caught.value.evidence == "bind: Address already in use"


@pytest.mark.parametrize("use", [Work.measure, Work.end])
def test_a_service_that_ended_is_named_instead_of_what_it_broke(use: Callable[[Work], object]) -> None:
    instance = Recorded("a", [])
    work = prepared(instance)
    instance.fails = "/cmdline" if use is Work.end else ""
    if use is Work.measure:
        instance.execute = lambda command: Completed(command.argv, 1, None, b"", b"", 0.0, 1.0)  # type: ignore[method-assign]
    with pytest.raises(WorkloadError, match="the service db ended while it was used"):
        use(work)


def test_a_service_is_asked_again_until_it_answers_or_has_ended() -> None:
    """What is ``ready_within_s`` for: a server that takes its time, and one that gave up at once."""
    patient = msgspec.structs.replace(
        SERVED, services=(msgspec.structs.replace(SERVED.services[0], ready_within_s=60),)
    )
    log: list[tuple[str, ...]] = []
    instance = Recorded("a", log)
    answers = iter([1, 1, 0])
    plain = instance.execute

    def execute(command: Command) -> Completed:
        completed = plain(command)
        return msgspec.structs.replace(completed, returncode=next(answers)) if command.argv == ("ping",) else completed

    instance.execute = execute  # type: ignore[method-assign]
    Work(Run(), patient, instance)  # type: ignore[arg-type]
    assert [entry[1] for entry in log].count("ping") == 3
    answers = iter([1])
    instance.fails = "/cmdline"
    with pytest.raises(WorkloadError, match="the service db ended before it was ready"):
        Work(Run(), patient, instance)  # type: ignore[arg-type]
    assert next(answers, None) is None


def test_a_service_that_has_not_ended_yet_when_its_client_fails_is_named() -> None:
    """Its connections go first: under load the client fails while the service is still ending."""
    instance = Recorded("a", [])
    work = prepared(instance)
    plain, asked = instance.execute, itertools.count()

    def execute(command: Command) -> Completed:
        ended = any("/cmdline" in argument for argument in command.argv) and next(asked) > 1
        return msgspec.structs.replace(plain(command), returncode=int(ended or command.argv[0] == "client"))

    instance.execute = execute  # type: ignore[method-assign]
    with pytest.raises(WorkloadError, match="the service db ended while it was used"):
        work.measure()


def test_a_process_that_nobody_has_reaped_is_not_alive() -> None:
    class Here(Recorded):
        def execute(self, command: Command) -> Completed:
            asks = "/cmdline" in " ".join(command.argv)
            status = run_here(command.argv).returncode if asks else 0
            return Completed(command.argv, status, None, str(process.pid).encode(), b"", 0.0, 1.0)

    with Popen(["sh", "-c", "read line; exit 0"], stdin=PIPE, stdout=DEVNULL) as process:
        program = Background(Here("a", []), "it", "it", Command(("any",)))
        assert program.is_alive()
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.kill(process.pid, 0)
        assert not program.is_alive()
    assert not program.is_alive()


def run_here(argv: tuple[str, ...]) -> Popen[bytes]:
    with Popen(argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE) as done:
        said = done.communicate()
    assert said == (b"", b"")
    return done


def test_what_answers_in_place_of_the_service_is_not_taken_for_it() -> None:
    """Another server has its port: it answers, and ours has ended."""
    with pytest.raises(WorkloadError, match="the service db ended, and something else answers") as caught:
        prepared(Recorded("a", [], fails="/cmdline"))
    assert "Address already in use" in caught.value.evidence


class Garbled(Workload):
    """Its client ends well when the server is gone, and prints something else then."""

    metrics = ()

    def commands(self, params: object, envelope: object) -> Commands:
        return SERVED

    def parse(self, completed: Completed) -> list[Measurement]:
        raise ParseError("no such output is known", evidence="connection reset")


class Steadily(Run):
    workload, params, envelope, options, iterations = Garbled(), None, None, SteadyOptions(), 1

    def __init__(self, instance: Recorded) -> None:
        self.instance = instance
        instance.usage = lambda: Usage(None, None, None, None, None, None)  # type: ignore[method-assign]

    @contextmanager
    def start(self) -> Iterator[Instance]:
        yield self.instance

    def record(self, *_: object, **__: object) -> None:
        pass


def test_output_that_a_dead_service_spoilt_is_told_by_the_service() -> None:
    """iperf3 ends with status 0 in any case: a report without results is the server's doing if that has ended."""
    instance = Recorded("a", [])
    run = Steadily(instance)
    with pytest.raises(ParseError, match="no such output is known"):
        Steady().run(run)  # type: ignore[arg-type]  # as much of a run as it needs
    plain = instance.execute

    def execute(command: Command) -> Completed:
        if command.argv[0] == "client":
            instance.fails = "/cmdline"
        return plain(command)

    instance.execute = execute  # type: ignore[method-assign]
    with pytest.raises(WorkloadError, match="the service db ended while it was used"):
        Steady().run(run)  # type: ignore[arg-type]


def test_a_timeout_is_not_blamed_on_a_service_that_it_ended_too() -> None:
    instance = Recorded("a", [])
    work = prepared(instance)
    instance.execute = lambda command: Completed(command.argv, 1, None, b"", b"", 0.0, 1.0, timed_out=True)  # type: ignore[method-assign]
    with pytest.raises(WorkloadError, match="measured: status 1"):
        work.measure()


def test_what_serves_nothing_cannot_serve_elsewhere() -> None:
    Steady.check(SteadyOptions(ServerPlace.HOST), SERVED)
    Steady.check(SteadyOptions(), Commands(Command(("true",))))
    with pytest.raises(ValueError, match="server: the workload has no service"):
        Steady.check(SteadyOptions(ServerPlace.HOST), Commands(Command(("true",))))
