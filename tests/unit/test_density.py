"""A ramp ends when and why it should, with what it has, and tells what ran out; on instances that cost nothing."""

import contextlib
import errno
import io
import itertools
import json
import os
import threading
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tare.bench.analysis.density import analyse_density, find_density, fit_instance_cost
from tare.bench.cli import density as cli
from tare.bench.design import make_design
from tare.bench.errors import BackendError, SuiteError
from tare.bench.experiments import density
from tare.bench.experiments.density.exhausted import find_exhausted
from tare.bench.experiments.density.population import default_floor, is_steady, settle
from tare.bench.linux.files import HostRoots
from tare.bench.linux.host_memory import HostMemory, read_memory
from tare.bench.model import (
    BackendDescription,
    Command,
    Completed,
    Direction,
    Footprint,
    IsolationKind,
    Measurement,
    Metric,
)
from tare.bench.records import EventKind
from tare.bench.registry import find_backends, find_workloads
from tare.bench.runner import Outcome, Runner
from tare.bench.store import LoadedRun, RunStore, load_run
from tare.bench.suite import bind_suite, read_suite, resolve_suite
from tare.bench.units import Unit
from tests.unit.fakes import BACKENDS, IMAGE, WORKLOADS, FakeBackend, FakeWorkload
from tests.unit.test_runner import Silent
from tests.unit.test_store import MANIFEST

GIB = 2**30
MIB = 2**20


class Host:
    """A host of 16 GiB on which every live instance takes 100 MiB."""

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.clock = itertools.count(1.0)

    def read(self) -> HostMemory:
        live = self.backend.live
        return HostMemory(
            next(self.clock), 16 * GIB, 12 * GIB - live * 100 * MIB, 50 * MIB + live * 10 * MIB, MIB, None
        )


def ramp(tmp_path, monkeypatch, backend=None, workload="", **options) -> tuple[Outcome, LoadedRun]:
    backend = backend or FakeBackend()
    host = Host(backend)
    monkeypatch.setattr(density, "read_memory", host.read)
    monkeypatch.setattr(
        density, "settle", lambda interval, deadline: settle(interval, deadline, host.read, lambda _: None)
    )
    experiment = {"kind": "density", "options": options} | ({"workload": workload} if workload else {})
    source = {
        "suite": {"name": "ramp"},
        "sampling": {"blocks": 1},
        "backend": [{"type": "fake"}],
        "experiment": [experiment],
    }
    suite = bind_suite(resolve_suite(source, Path("suite.toml"), BACKENDS, WORKLOADS))
    with RunStore(tmp_path, MANIFEST) as store:
        runner = Runner(suite, IMAGE, {"fake": backend}, store, Silent(), identity="abc", unavailable={})
        outcome = runner.run(make_design(suite), {})
    assert backend.live == 0
    return outcome, load_run(tmp_path)


def values(run: LoadedRun, metric: str) -> dict[int, float]:
    return {sample.iteration: sample.value for sample in run.samples if sample.metric == metric}


def ending(run: LoadedRun):
    (cell,) = find_density(run.samples, run.events)
    (one,) = cell.endings
    return one


def test_all_instances_live_at_once_each_with_its_own_name_and_are_checked(tmp_path, monkeypatch):
    backend = FakeBackend()
    most = []
    backend.answer = lambda command: most.append(backend.live)
    outcome, run = ramp(tmp_path, monkeypatch, backend, count=30)
    assert outcome == Outcome(done=1, failed=0, interrupted=False)
    assert most == [30] * 30
    assert len(set(backend.started)) == 30
    assert (ending(run).reason, ending(run).population, ending(run).dead) == ("count", 30, 0)
    assert values(run, "density.population") == {0: 30}
    assert list(values(run, "density.start")) == list(range(1, 31))


def test_the_readings_stand_at_their_population_and_give_the_cost(tmp_path, monkeypatch):
    _, run = ramp(tmp_path, monkeypatch, count=40)
    available = values(run, "density.memory_available")
    assert list(available) == list(range(41))
    assert available[10] == 12 * GIB - 1000 * MIB
    (cell,) = find_density(run.samples, run.events)
    cost = fit_instance_cost(cell)
    assert cost.memory.per_instance == pytest.approx(100 * MIB)
    assert cost.memory.base == pytest.approx(-12 * GIB)
    assert cost.slab.per_instance == pytest.approx(10 * MIB)
    assert cost.pss.per_instance == pytest.approx(100)
    assert cost.kernel.per_instance == pytest.approx(100 * MIB - 100)
    assert cost.attributed.per_instance == pytest.approx(10 * MIB + 100)
    assert not cost.host_noise_dominates
    assert cell.between(0, 10).population == 10
    beginning = fit_instance_cost(cell.between(0, 10)).memory
    assert (beginning.base, beginning.per_instance) == pytest.approx((cost.memory.base, cost.memory.per_instance))
    assert set(values(run, "density.sampled").values()) == {1, 2, 4, 6, 8}


def test_where_the_host_does_more_than_the_instances_it_is_said(tmp_path, monkeypatch):
    noise = itertools.cycle([0, 900 * MIB, -700 * MIB, 300 * MIB])
    read = Host.read

    def noisy(self) -> HostMemory:
        memory = read(self)
        return msgspec.structs.replace(memory, available=memory.available + next(noise))

    monkeypatch.setattr(Host, "read", noisy)
    _, run = ramp(tmp_path, monkeypatch, count=6)
    (result,) = analyse_density(run.samples, run.events)
    cost = result.cost
    assert cost.host_noise_dominates
    assert cost.attributed.per_instance == pytest.approx(10 * MIB + 100)
    manifest = msgspec.structs.replace(
        run.manifest, backends={"fake": BackendDescription("fake", IsolationKind.SANDBOX)}
    )
    console = Console(width=200, record=True, file=io.StringIO())
    cli.print_costs(console, manifest, [result])
    assert "MemAvailable cannot be used here" in console.export_text()


def test_memory_is_read_after_each_batch_only(tmp_path, monkeypatch):
    _, run = ramp(tmp_path, monkeypatch, count=25, batch=10)
    assert list(values(run, "density.memory_available")) == [0, 10, 20, 25]
    assert len(values(run, "density.start")) == 25


def test_the_ramp_stops_before_the_instance_that_would_go_below_the_floor(tmp_path, monkeypatch):
    outcome, run = ramp(tmp_path, monkeypatch, count=500, memory_floor="10GiB")
    assert outcome.failed == 0
    assert (ending(run).reason, ending(run).resource, ending(run).population) == ("memory-floor", "memory", 20)


def test_without_room_for_one_instance_the_cell_fails_with_the_reason(tmp_path, monkeypatch):
    outcome, run = ramp(tmp_path, monkeypatch, count=5, memory_floor="13GiB")
    assert outcome.failed == 1
    (failed,) = [event for event in run.events if event.kind is EventKind.INSTANCE_FAILED]
    assert "12.0 GiB of memory are available" in failed.message
    assert "memory_floor" in failed.details["remedy"]
    console = Console(width=200, record=True, file=io.StringIO())
    cli.print_failures(console, run.events)
    assert "what to do: state a lower memory_floor" in console.export_text()
    assert cli.costs_document(run, [])["failures"][0]["message"] == failed.message


def test_slow_starts_in_a_row_end_the_ramp(tmp_path, monkeypatch):
    _, run = ramp(tmp_path, monkeypatch, count=50, start_limit="2s")
    assert (ending(run).reason, ending(run).population) == ("start-limit", 3)


class Refusing(FakeBackend):
    """Refuses its tenth instance, as a host does that has no more of something."""

    error: Exception

    @contextlib.contextmanager
    def start(self, spec):
        if self.live == 9:
            raise self.error
        with super().start(spec) as instance:
            yield instance


@pytest.mark.parametrize(
    ("error", "resource", "remedy"),
    [
        (
            BackendError("clone3: Resource temporarily unavailable", evidence="clone3 failed with errno 11"),
            "processes",
            "pid",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "file descriptors", "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "open files of the host", "fs.file-max"),
        (BackendError("clone3", evidence="clone3 failed with errno 28"), "namespaces", "user.max_"),
        (BackendError("could not make a folder: No space left on device: /var/tmp/x"), "disk", "df -i"),
        (BackendError("the kernel refused a cgroup: No space left on device: /sys/fs/cgroup/x"), "cgroups", "cgroups"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory", "memory"),
        (BackendError("inotify_init", evidence="errno 24"), "inotify instances", "fs.inotify.max_user_instances"),
        (
            BackendError("failed to create linux AIO context: Resource temporarily unavailable"),
            "asynchronous I/O",
            "fs.aio-max-nr",
        ),
        (BackendError("the guest did not start"), "", ""),
    ],
)
def test_what_ran_out_is_named_with_what_to_raise(tmp_path, monkeypatch, error, resource, remedy):
    backend = Refusing()
    backend.error = error
    outcome, run = ramp(tmp_path, monkeypatch, backend, count=20)
    assert outcome == Outcome(done=1, failed=0, interrupted=False)
    told = ending(run)
    assert (told.reason, told.population, told.resource) == ("failure", 9, resource)
    assert remedy in told.remedy
    assert values(run, "density.population") == {0: 9}


def test_the_limit_closest_to_its_end_is_the_one_named(tmp_path):
    for name, text in {
        "proc/loadavg": "0.1 0.1 0.1 1/900 5",
        "proc/sys/kernel/pid_max": "1000",
        "proc/sys/kernel/threads-max": "100000",
        "proc/self/cgroup": "3:pids:/a/b\n",
        "proc/self/mountinfo": "30 25 0:27 / /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids\n",
        "sys/fs/cgroup/pids/a/b/pids.max": "max",
        "sys/fs/cgroup/pids/a/pids.max": "50",
        "sys/fs/cgroup/pids/a/pids.current": "49",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    error = BackendError("no")
    error.__cause__ = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    assert "pids.max is 50, of which 49 are used" in find_exhausted(error, tmp_path).remedy
    (tmp_path / "sys/fs/cgroup/pids/a/pids.current").write_text("5")
    assert "kernel.pid_max is 1000, of which 900 are used" in find_exhausted(error, tmp_path).remedy


def test_an_instance_that_died_on_the_way_ends_the_ramp(tmp_path, monkeypatch):
    backend = FakeBackend()
    monkeypatch.setattr(
        "tests.unit.fakes.FakeInstance.footprint",
        lambda self: Footprint(100, 50, 200, 0, 0, 0 if backend.live == 12 else 1),
    )
    _, run = ramp(tmp_path, monkeypatch, backend, count=40, meters_every=4)
    assert (ending(run).reason, ending(run).population) == ("died", 12)


def test_those_that_are_dead_at_the_end_are_counted(tmp_path, monkeypatch):
    backend = FakeBackend()
    calls = itertools.count(1)

    def answer(command: Command) -> Completed | None:
        if next(calls) % 5 == 0:
            raise BackendError("the instance is gone")
        return None

    backend.answer = answer
    outcome, run = ramp(tmp_path, monkeypatch, backend, count=20)
    assert outcome.failed == 0
    assert ending(run).dead == 4
    assert values(run, "density.dead") == {0: 4}


def test_a_workload_runs_in_all_instances_together(tmp_path, monkeypatch):
    backend = FakeBackend()
    loaded = []
    backend.answer = lambda command: loaded.append((command.argv[0], backend.live))
    _, run = ramp(tmp_path, monkeypatch, backend, workload="answer", count=4)
    for population in (1, 2, 3, 4):
        assert loaded.count(("answer", population)) == population
        assert ("prepare", population) in loaded
    assert set(values(run, "density.duration").values()) == {0.5}


class Turns(FakeWorkload):
    """Tells a rate, and each instance begins half a second after the one before."""

    metrics = (Metric("answer.rate", Unit.OPERATIONS_PER_SECOND, Direction.HIGHER, "Answers."),)

    def parse(self, completed):
        yield Measurement("answer.rate", 100.0)


def test_rates_and_cpus_are_over_the_time_from_the_first_begin_to_the_last_end(tmp_path, monkeypatch):
    backend = FakeBackend()
    begun = itertools.count()

    def answer(command):
        if command.argv[0] != "answer":
            return None
        started = 1000.0 + next(begun) * 0.5
        return Completed(command.argv, 0, None, b"", b"", started, started + 1.0)

    backend.answer = answer
    monkeypatch.setitem(WORKLOADS.loaded, "answer", Turns)
    _, run = ramp(tmp_path, monkeypatch, backend, workload="answer", count=3)
    assert values(run, "density.throughput") == pytest.approx({1: 100, 2: 200 / 1.5, 3: 300 / 2})
    cpus = values(run, "density.loaded_cpu")
    assert set(cpus) == {1, 2, 3}
    assert sum(values(run, "density.ramp").values()) > 0, "the loaded step after the last start is no part of it"


def test_an_objective_needs_a_latency(tmp_path, monkeypatch):
    outcome, run = ramp(tmp_path, monkeypatch, workload="answer", count=4, objective="5ms")
    assert outcome.failed == 1
    (failed,) = [event for event in run.events if event.kind is EventKind.INSTANCE_FAILED]
    assert "measures no p99" in failed.message


class Crowded(FakeWorkload):
    """Its p99 is as many milliseconds as there are instances at work together."""

    metrics = (Metric("answer.p99", Unit.SECOND, Direction.LOWER, "Latency."),)
    at_work = 0
    told = 0

    def parse(self, completed):
        Crowded.told += 1
        yield Measurement("answer.p99", Crowded.at_work / 1000)


@pytest.mark.parametrize("most", [1, 2, 3, 11, 37, 64, 99])
def test_a_search_ends_with_the_largest_population_that_meets_the_objective(tmp_path, monkeypatch, most):
    backend, lock = FakeBackend(), threading.Lock()

    def answer(command):
        if command.argv[0] == "answer":
            with lock:
                Crowded.at_work = 1 if Crowded.told else Crowded.at_work + 1
                Crowded.told = 0

    backend.answer = answer
    Crowded.at_work = Crowded.told = 0
    monkeypatch.setitem(WORKLOADS.loaded, "answer", Crowded)
    options = {"count": 300, "objective": f"{most}.5ms", "search": True}
    outcome, run = ramp(tmp_path, monkeypatch, backend, workload="answer", **options)
    assert outcome.failed == 0, [event.message for event in run.events if event.kind is EventKind.INSTANCE_FAILED]
    found = ending(run)
    assert found.reason == "objective", found
    assert most - max(1, most // 20) < found.population <= most
    assert f"is met with {found.population} instances" in found.message
    assert values(run, "density.population") == {0: found.population}
    assert values(run, "density.dead") == {0: 0}
    measured = [sample.iteration for sample in run.samples if sample.metric == "density.latency_worst"]
    assert len(measured) < 16, "it doubles and halves, and does not try each"


def test_a_search_whose_first_instance_breaks_the_objective_ends_there(tmp_path, monkeypatch):
    monkeypatch.setitem(WORKLOADS.loaded, "answer", Crowded)
    monkeypatch.setattr(Crowded, "parse", lambda *_: [Measurement("answer.p99", 9.0)])
    _, run = ramp(tmp_path, monkeypatch, workload="answer", count=30, objective="5ms", search=True)
    assert (ending(run).reason, ending(run).population) == ("objective", 1)


def test_a_search_needs_an_objective(tmp_path, monkeypatch):
    with pytest.raises(SuiteError, match="search: needs an objective"):
        ramp(tmp_path, monkeypatch, workload="answer", count=30, search=True)


class Mixed(FakeBackend):
    """Its service's p99 is 1 ms and as many more as neighbours are at work; ``seen`` are those of each reading."""

    def __init__(self) -> None:
        super().__init__()
        self.working: set[int] = set()
        self.pids = itertools.count(1)
        self.seen: list[int] = []
        self.ends = False
        self.answer = self.reply

    def reply(self, command: Command) -> Completed | None:
        argv = command.argv
        if argv[0] == "answer":
            self.seen.append(len(self.working))
        if argv[0] != "sh":
            return None
        now, code, started = next(self.clock), 0, 0
        if "stress-ng" in argv:
            started = next(self.pids)
            self.working.add(started)
        elif argv[2].startswith("kill"):
            self.working.discard(int(argv[4]))
        elif "cmdline" in argv[2]:
            code = int(self.ends or int(argv[4]) not in self.working)
        return Completed(argv, code, None, str(started).encode(), b"", now, now)


class Service(FakeWorkload):
    metrics = (Metric("answer.p99", Unit.SECOND, Direction.LOWER, "Latency."),)
    backend: Mixed

    def parse(self, completed):
        yield Measurement("answer.p99", (1 + self.backend.seen[-1]) / 1000)


@pytest.mark.parametrize(("services", "most"), [(1, 6), (2, 11), (1, 40)])
def test_a_service_keeps_its_objective_next_to_neighbours_that_do_something_else(tmp_path, monkeypatch, services, most):
    Service.backend = backend = Mixed()
    monkeypatch.setitem(WORKLOADS.loaded, "answer", Service)
    options = {"count": 100, "objective": f"{most + 1}.5ms", "search": True, "neighbour": "disk", "services": services}
    outcome, run = ramp(tmp_path, monkeypatch, backend, workload="answer", **options)
    assert outcome.failed == 0, [event.message for event in run.events if event.kind is EventKind.INSTANCE_FAILED]
    found = ending(run)
    assert found.reason == "objective", found
    assert most + services - max(1, (most + services) // 20) < found.population <= most + services
    read = values(run, "density.latency_p99_worst")
    for population, value in read.items():
        assert value == pytest.approx((1 + max(0, population - services)) / 1000)
    assert backend.working == set(), "no neighbour works on"
    assert not {"density.throughput", "density.loaded_cpu"} & set(run.samples.distinct("metric"))


def test_neighbours_that_end_by_themselves_fail_the_ramp(tmp_path, monkeypatch):
    Service.backend = backend = Mixed()
    backend.ends = True
    monkeypatch.setitem(WORKLOADS.loaded, "answer", Service)
    _, run = ramp(
        tmp_path, monkeypatch, backend, workload="answer", count=4, objective="1s", search=True, neighbour="cpu"
    )
    assert "the neighbour's work (cpu) ended while the service was measured" in ending(run).message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"neighbour": "crypto"}, "neighbour: there is no 'crypto'; there are: cpu, disk"),
        ({"services": 2}, "services: without a neighbour"),
    ],
)
def test_neighbours_that_cannot_be_are_refused(tmp_path, monkeypatch, options, said):
    with pytest.raises(SuiteError, match=said):
        ramp(tmp_path, monkeypatch, workload="answer", count=3, **options)


def test_neighbours_need_a_workload_to_measure(tmp_path, monkeypatch):
    with pytest.raises(SuiteError, match="neighbour: needs a workload"):
        ramp(tmp_path, monkeypatch, count=3, neighbour="cpu")


def test_an_interrupt_in_the_middle_stops_everything(tmp_path, monkeypatch):
    class Interrupted(Refusing):
        error = KeyboardInterrupt()

    outcome, _ = ramp(tmp_path, monkeypatch, Interrupted(), count=20)
    assert outcome.interrupted


def test_the_costs_are_told_as_a_table_and_as_json(tmp_path, monkeypatch):
    _, run = ramp(tmp_path, monkeypatch, count=30, memory_floor="10GiB")
    manifest = msgspec.structs.replace(
        run.manifest, backends={"fake": BackendDescription("fake (emulated)", IsolationKind.EMULATED)}
    )
    costs = analyse_density(run.samples, run.events)
    console = Console(width=120, record=True, file=io.StringIO())
    cli.print_costs(console, manifest, costs)
    text = console.export_text()
    for part in (
        "fake (emulated)",
        "100 MiB  (100 MiB to 100 MiB)",
        "ended with 20",
        "the resource that ran out is memory",
    ):
        assert part in text
    document = cli.costs_document(LoadedRun(run.path, manifest, run.samples, run.events, []), costs)
    (told,) = json.loads(json.dumps(document))["cells"]
    assert told["population"] == 20
    assert told["endings"][0]["resource"] == "memory"
    assert told["cost"]["memory"]["per_instance"] == pytest.approx(100 * MIB)
    assert told["kernel_bytes"] == pytest.approx(100 * MIB - 100)


def test_the_command_line_makes_a_suite_of_one_experiment():
    request = cli.DensityRequest(
        ("native", "vm"),
        {"count": 7},
        {"memory": "96MiB"},
        "fio",
        ("size=8MiB", "runtime_s=2"),
        {"blocks": 3, "seed": 5},
        None,
    )
    made = cli.make_request(request)
    suite = bind_suite(resolve_suite(made.source, made.suite, find_backends(), find_workloads()))
    (subject,) = suite.scenarios
    assert [choice.name for choice in suite.backends] == ["native", "vm"]
    assert (subject.experiment.name, subject.options.count, subject.params.runtime_s) == ("density", 7, 2)
    assert (suite.sampling.blocks, suite.sampling.seed, suite.envelope.memory_bytes) == (3, 5, 96 * MIB)
    with pytest.raises(SuiteError, match="is not name=value"):
        cli.typed_values("--param", ["size"])
    with pytest.raises(SuiteError, match="no --workload"):
        cli.make_request(msgspec.structs.replace(request, workload=""))
    with pytest.raises(SuiteError, match="--objective: no --workload"):
        cli.make_request(msgspec.structs.replace(request, workload="", params=(), options={"objective": "5ms"}))
    assert cli.make_request(msgspec.structs.replace(request, targets=("my.toml",))).suite == Path("my.toml")


def test_the_ready_suite_can_be_read():
    suite = read_suite(Path(__file__).parents[2] / "suites/density.toml", find_backends(), find_workloads())
    assert {subject.experiment.name for subject in suite.scenarios} == {"density", "limits", "interference"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "count: must be from 1"),
        ({"count": 5, "batch": 6}, "batch: must be"),
        ({"memory_floor": "2GB"}, "memory_floor: "),
        ({"start_limit": "soon"}, "start_limit: "),
        ({"rate": -1.0}, "rate: "),
        ({"cuont": 5}, "unknown key"),
    ],
)
def test_wrong_options_are_named(options, said):
    source = {
        "suite": {"name": "x"},
        "backend": [{"type": "fake"}],
        "experiment": [{"kind": "density", "options": options}],
    }
    with pytest.raises(SuiteError, match=said) as caught:
        resolve_suite(source, Path("suite.toml"), BACKENDS, WORKLOADS)
    assert "experiment[0].options" in caught.value.place


def test_memory_that_still_moves_is_waited_for():
    clock = itertools.count(0.0)
    amounts = iter([100, 90, 80, 70, 60, *[50] * 20])

    def read() -> HostMemory:
        return HostMemory(next(clock), 10**6 * MIB, next(amounts) * MIB, 0, 0, None)

    settled = settle(1.0, 60.0, read, lambda _: None)
    assert settled.steady
    assert [reading.available for reading in settled.readings] == [50 * MIB] * 3
    moving = itertools.count(10_000, -10)
    never = settle(
        1.0, 30.0, lambda: HostMemory(next(clock), 10**6 * MIB, next(moving) * MIB, 0, 0, None), lambda _: None
    )
    assert not never.steady
    assert never.waited_s == 30.0


def test_noise_is_steady_and_a_trend_in_it_is_not():
    assert is_steady([100 * MIB, 300 * MIB, 80 * MIB, 250 * MIB])
    assert not is_steady([100 * MIB, 140 * MIB, 180 * MIB, 230 * MIB])


def test_meminfo_is_read_in_bytes(tmp_path):
    (tmp_path / "meminfo").write_text(
        "MemTotal: 1000 kB\nMemAvailable: 500 kB\nSUnreclaim: 70 kB\n"
        "KernelStack: 3 kB\nPageTables: 4 kB\nPercpu: 5 kB\n"
    )
    memory = read_memory(HostRoots(tmp_path, tmp_path / "sys"))
    assert (memory.total, memory.available, memory.slab) == (1024_000, 512_000, 71_680)
    assert memory.kernel_other == 12 * 1024
    assert memory.ksm_saved is None
    (tmp_path / "sys/kernel/mm/ksm").mkdir(parents=True)
    (tmp_path / "sys/kernel/mm/ksm/run").write_text("1\n")
    (tmp_path / "sys/kernel/mm/ksm/pages_sharing").write_text("10\n")
    assert read_memory(HostRoots(tmp_path, tmp_path / "sys")).ksm_saved == 10 * os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\n")
    with pytest.raises(BackendError, match="MemAvailable"):
        read_memory(HostRoots(tmp_path, tmp_path / "sys"))


def test_the_floor_is_a_tenth_and_a_gibibyte_at_least():
    assert default_floor(24 * GIB) == 24 * GIB // 10
    assert default_floor(4 * GIB) == GIB
