"""Ramps of real containers: the meters agree with /proc, deaths are noticed, and nothing outlives the cell."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tare.backends.native.backend import Native
from tare.bench.analysis.density import find_density, fit_instance_cost
from tare.bench.design import make_design
from tare.bench.interfaces import Instance
from tare.bench.ledger import Ledger
from tare.bench.records import EventKind
from tare.bench.registry import Plugins, find_workloads
from tare.bench.runner import Outcome, Runner
from tare.bench.store import LoadedRun, RunStore, load_run
from tare.bench.suite import bind_suite, resolve_suite
from tests.privileged.host_kernel import start_backend
from tests.unit.test_runner import Silent
from tests.unit.test_store import MANIFEST

pytestmark = [pytest.mark.root, pytest.mark.image]

FAST = {"settle_interval": "0.1s", "settle_deadline": "1s"}


class Seen:
    """Looks at the live instances when so many have been started."""

    def __init__(self, backend: Native, at: int, look: Callable[[list[Instance]], None]) -> None:
        self.live: list[Instance] = []
        start = backend.start

        @contextlib.contextmanager
        def watched(spec):
            with start(spec) as instance:
                self.live.append(instance)
                if len(self.live) == at:
                    look(self.live)
                yield instance

        backend.start = watched


def measure(
    tmp_path, image, experiment, prepare: Callable[[Native], None] = lambda _: None
) -> tuple[Outcome, LoadedRun]:
    source = {
        "suite": {"name": "x"},
        "envelope": {"memory": "64MiB", "scratch": "1MiB", "pids": 64},
        "sampling": {"blocks": 1, "iterations": 1, "warmup": 0},
        "backend": [{"type": "native"}],
        "experiment": [experiment],
    }
    suite = bind_suite(
        resolve_suite(source, Path("suite.toml"), Plugins("backend", {"native": Native}, {}), find_workloads())
    )
    with (
        Ledger(tmp_path / "ledger") as ledger,
        start_backend("native", image, tmp_path / "work", ledger) as backend,
        RunStore(tmp_path / "run", MANIFEST) as store,
    ):
        prepare(backend)
        identity = f"d{os.getpid()}"
        runner = Runner(suite, image, {"native": backend}, store, Silent(), identity=identity, unavailable={})
        outcome = runner.run(make_design(suite), {})
    return outcome, load_run(tmp_path / "run")


def rollup(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split()[0].rstrip(":"): int(line.split()[1]) * 1024 for line in lines}


def test_the_meters_of_a_ramp_agree_with_proc(tmp_path, image):
    by_hand: dict[str, list[int]] = {"pss": [], "private": [], "adj": []}

    def look(live):
        for instance in live:
            instance.footprint()  # which waits until it is idle
        for instance in live:
            fields = rollup(instance.pid)
            by_hand["pss"].append(fields["Pss"])
            by_hand["private"].append(fields["Private_Clean"] + fields["Private_Dirty"])
            by_hand["adj"].append(int(Path(f"/proc/{instance.pid}/oom_score_adj").read_text()))

    outcome, run = measure(
        tmp_path, image, {"kind": "density", "options": {"count": 8, **FAST}}, lambda backend: Seen(backend, 8, look)
    )
    assert outcome.failed == 0
    last = {sample.metric: sample.value for sample in run.samples if sample.iteration == 8}
    assert last["density.sampled"] == 8
    assert last["density.pss"] == pytest.approx(sum(by_hand["pss"]), rel=0.05)
    assert last["density.private"] == pytest.approx(sum(by_hand["private"]), rel=0.05)
    assert set(by_hand["adj"]) == {1000}
    assert int(Path("/proc/self/oom_score_adj").read_text()) < 1000
    (cell,) = find_density(run.samples, run.events)
    assert (cell.population, cell.endings[0].dead) == (8, 0)
    cost = fit_instance_cost(cell)
    assert cost.private.per_instance == pytest.approx(sum(by_hand["private"]) / 8, rel=0.25)
    assert cost.rss.per_instance > cost.pss.per_instance > cost.private.per_instance * 0.9


def test_a_service_in_each_instance_is_asked_at_each_step_until_its_objective_is_missed(tmp_path, image):
    experiment = {
        "kind": "density",
        "workload": "redis",
        "params": {"requests": 1000, "clients": 2},
        "options": {"count": 3, "objective": "0.01ms", **FAST},
    }
    outcome, run = measure(tmp_path, image, experiment)
    assert outcome.failed == 0
    (cell,) = find_density(run.samples, run.events)
    assert (cell.endings[0].reason, cell.population) == ("objective", 1)
    found = {sample.metric: sample.value for sample in run.samples}
    assert found["density.latency_p99_worst"] >= 1e-5
    assert found["density.throughput"] > 100


def test_instances_that_are_killed_in_a_ramp_are_noticed(tmp_path, image):
    def look(live):
        os.kill(live[0].pid, signal.SIGKILL)

    outcome, run = measure(
        tmp_path, image, {"kind": "density", "options": {"count": 8, **FAST}}, lambda backend: Seen(backend, 5, look)
    )
    assert outcome.failed == 0
    (cell,) = find_density(run.samples, run.events)
    assert cell.endings[0].reason == "died"
    assert 5 <= cell.population <= 6
    assert cell.endings[0].dead == 1


def test_limits_of_a_container(tmp_path, image):
    options = {"repeats": 1, "resolution": 0.5, "return_interval": "0.1s"}
    outcome, run = measure(tmp_path, image, {"kind": "limits", "options": options})
    assert [event.message for event in run.events if event.kind is EventKind.INSTANCE_FAILED] == []
    assert outcome.failed == 0
    found = {sample.metric: sample.value for sample in run.samples}
    assert found["limits.cpu_reached"] < 1.1
    assert 0.5 < found["limits.memory_reached"] <= 1
    assert 0.9 < found["limits.pids_reached"] <= 1
    assert found["limits.memory_seen"] > 1
    assert found["limits.memory_grown"] == pytest.approx(16 * 2**20, rel=0.5)
    assert found["limits.memory_returned"] > 0.5
    assert found["limits.start_memory"] < 16 * 2**20


def test_aggressors_work_beside_the_victim_and_die_with_the_cell(tmp_path, image):
    aggressors: list[int] = []
    experiment = {
        "kind": "interference",
        "workload": "sysbench-cpu",
        "params": {"runtime_s": 1},
        "options": {"aggressor": "cpu", "aggressors": 1},
    }

    def look(live):
        aggressors.append(live[1].pid)

    outcome, run = measure(tmp_path, image, experiment, lambda backend: Seen(backend, 2, look))
    assert outcome.failed == 0
    found = {(sample.metric, sample.iteration): sample.value for sample in run.samples}
    assert found["interference.aggressor_cpu", 1] > 0.1
    # How much worse it got depends on what else runs on this machine; how the ratio follows from the values does not.
    # The victim is alone before and after: what it would have had then lies between the two.
    rate = "interference.value.cpu.events_per_second"
    alone = [sample.value for sample in run.samples if (sample.metric, sample.iteration) == (rate, 0)]
    ratio, together = found["interference.ratio.cpu.events_per_second", 1], found[rate, 1]
    assert len(alone) == 2
    assert min(alone) * (1 - 1e-9) <= ratio * together <= max(alone) * (1 + 1e-9)
    assert not Path(f"/proc/{aggressors[0]}").exists()


def test_a_ramp_that_runs_out_of_processes_says_so(tmp_path, image):
    """The pids cgroup that tare itself is in is the limit, and it is named."""
    parent = Path("/sys/fs/cgroup/pids")
    if not (parent / "cgroup.procs").exists():
        pytest.skip("no v1 pids controller is mounted to make a limit of")
    folder = parent / f"tare-test-{os.getpid()}"
    folder.mkdir()
    try:
        threads = (Path("/proc/self/task")).iterdir()
        for thread in threads:
            (folder / "tasks").write_text(thread.name)

        def limit(_backend):
            (folder / "pids.max").write_text(str(int((folder / "pids.current").read_text()) + 5))

        outcome, run = measure(tmp_path, image, {"kind": "density", "options": {"count": 30, **FAST}}, limit)
        assert outcome.failed == 0
        (cell,) = find_density(run.samples, run.events)
        (ending,) = cell.endings
        assert (ending.reason, ending.resource) == ("failure", "processes")
        assert str(folder / "pids.max") in ending.remedy
        assert cell.population <= 5
    finally:
        for thread in Path("/proc/self/task").iterdir():
            (parent / "tasks").write_text(thread.name)
        deadline = time.monotonic() + 10
        while (folder / "tasks").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        folder.rmdir()
