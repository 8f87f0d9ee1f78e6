"""A session from outside: ``start_run`` and ``resume_run`` with backends from entry points, in folders of their own."""

import fcntl
import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tare.bench.design import make_design
from tare.bench.errors import BackendError, RunDirectoryError, StoreError, TareError, UnavailableError, UnknownNameError
from tare.bench.image import ImageStore, Recipe
from tare.bench.ledger import Ledger, ResourceKind
from tare.bench.model import BackendDescription, Completed
from tare.bench.records import EventKind
from tare.bench.registry import find_backends, find_workloads
from tare.bench.runner import make_event
from tare.bench.session import RunRequest, resume_run, start_run
from tare.bench.store import RunStore, load_run
from tare.bench.suite import bind_suite, resolve_suite
from tests.unit.session_fakes import PLANNED, SUITE, Box, Counting, Display, Metal, Orders, make_place


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    yield from make_place(tmp_path, monkeypatch)


def suite_file(place, text=SUITE):
    file = place / "suite.toml"
    file.write_text(text)
    return file


def start(place, text=SUITE, **asked):
    return start_run(RunRequest(suite_file(place, text), place / "run", **asked), Display())


def manifest(run):
    return json.loads((run / "manifest.json").read_text())


def events(run, kind=None):
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in found if kind in (None, event["kind"])]


def samples(run):
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def interrupted(place, at=3):
    """A run that the user interrupted at its ``at``-th start."""
    Orders.interrupt_at = at
    result = start(place)
    Orders.reset()
    assert result.outcome.interrupted
    return place / "run"


# --- from its beginning -----------------------------------------------------------------------------


def test_a_run_measures_all_that_is_planned_and_says_that_it_is_complete(place):
    display = Display()
    result = start_run(RunRequest(suite_file(place), place / "run"), display)
    stored = manifest(place / "run")
    assert (result.outcome.done, result.outcome.failed, result.outcome.interrupted) == (PLANNED, 0, False)
    assert (stored["status"], stored["planned_instances"], stored["seed"]) == ("complete", PLANNED, 3)
    assert stored["ended_utc"] >= stored["started_utc"] > ""
    assert stored["run"] == "run"
    assert display.planned == [PLANNED]
    assert display.told[-1][0] == "step"
    assert "finished" in [name for name, *_ in display.told]
    told = events(place / "run")
    assert told[0]["kind"] == "run_started"
    assert told[0]["details"]["instances"] == PLANNED
    identity = told[0]["details"]["identity"]
    assert all(name.startswith(f"tare-{identity}-b0") for _, name in Orders.starts)
    assert (told[-1]["kind"], told[-1]["message"]) == ("run_ended", "complete")
    assert Counter(event["kind"] for event in told)["instance_done"] == PLANNED
    assert {sample["backend"] for sample in samples(place / "run")} == {"fake-box", "fake-metal"}
    assert Counter(name for name, _ in Orders.starts) == {"fake-box": 3, "fake-metal": 3}
    assert sorted(Orders.closed) == ["fake-box", "fake-metal"]


def test_a_run_has_a_folder_of_its_own_unless_one_is_named(place, monkeypatch):
    monkeypatch.chdir(place)
    result = start_run(RunRequest(suite_file(place)), Display())
    assert result.path.parent == Path("runs")
    assert result.path.name.endswith("-a-fine-suite")
    assert manifest(result.path)["run"] == result.path.name


def test_a_folder_with_something_in_it_is_refused_and_kept(place):
    (place / "run").mkdir()
    (place / "run" / "thesis").write_text("years")
    with pytest.raises(RunDirectoryError, match="not empty"):
        start(place)
    assert [path.name for path in (place / "run").iterdir()] == ["thesis"]
    assert not Orders.starts


def test_a_file_in_the_place_of_the_folder_is_refused(place):
    (place / "run").touch()
    with pytest.raises(StoreError, match=r"cannot write to the run directory .*/run: Not a directory"):
        start(place)


def test_only_and_seed_of_the_request_hold(place):
    start(place, only=("fake-metal",), seed=77)
    assert {name for name, _ in Orders.starts} == {"fake-metal"}
    assert manifest(place / "run")["seed"] == 77
    assert manifest(place / "run")["planned_instances"] == 3


def test_the_same_seed_gives_the_same_order(place):
    start_run(RunRequest(suite_file(place), place / "one"), Display())
    first = [name for name, _ in Orders.starts]
    Orders.reset()
    start_run(RunRequest(suite_file(place), place / "two"), Display())
    assert [name for name, _ in Orders.starts] == first
    instances = [[one["instance"] for one in events(place / run, "instance_done")] for run in ("one", "two")]
    assert instances[0] == instances[1]


def test_names_on_the_host_are_of_this_run_alone(place):
    start_run(RunRequest(suite_file(place), place / "one"), Display())
    start_run(RunRequest(suite_file(place), place / "two"), Display())
    identifiers = [identifier for _, identifier in Orders.starts]
    assert len(set(identifiers)) == 2 * PLANNED


def test_nothing_is_left_behind(place):
    start(place)
    assert Orders.work
    assert list((place / "work").iterdir()) == []
    assert not [file for file in (place / "state" / "ledger").iterdir() if file.read_bytes()]
    assert not list((place / "run").glob("*.part"))


# --- backends that are not there --------------------------------------------------------------------


def test_a_backend_that_is_not_available_is_told_of_and_its_cells_fail(place):
    Orders.missing = frozenset({"fake-box"})
    display = Display()
    result = start_run(RunRequest(suite_file(place), place / "run"), display)
    stored = manifest(place / "run")
    assert list(stored["backends"]) == ["fake-metal"]
    assert stored["unavailable"]["fake-box"]["reason"] == "no fake-box on this host"
    assert stored["unavailable"]["fake-box"]["remedy"] == "install fake-box"
    assert list(result.unavailable) == ["fake-box"]
    assert any("no fake-box on this host" in step for step in display.steps)
    assert (result.outcome.done, result.outcome.failed) == (3, 3)
    assert {event["message"] for event in events(place / "run", "instance_failed")} == {
        "not available: no fake-box on this host"
    }
    assert stored["status"] == "complete"


def test_a_backend_that_cannot_be_prepared_is_as_one_that_is_not_available(place):
    Orders.prepare_fails = frozenset({"fake-metal"})
    result = start(place)
    assert list(manifest(place / "run")["unavailable"]) == ["fake-metal"]
    assert (result.outcome.done, result.outcome.failed) == (3, 3)
    assert sorted(Orders.closed) == ["fake-box", "fake-metal"]  # also the one that is half prepared


def test_no_backend_available_is_an_error_with_every_reason_and_remedy_and_no_run(place):
    Orders.missing = frozenset({"fake-box", "fake-metal"})
    with pytest.raises(UnavailableError) as caught:
        start(place)
    for name in ("fake-box", "fake-metal"):
        assert f"no {name} on this host" in caught.value.message
        assert f"install {name}" in (caught.value.remedy or "")
    assert not (place / "run").exists()
    assert list((place / "work").iterdir()) == []


def test_no_backend_prepared_is_an_error_with_every_reason_and_no_run(place):
    Orders.prepare_fails = frozenset({"fake-box", "fake-metal"})
    with pytest.raises(UnavailableError, match=r"(?s)fake-box cannot be prepared.*fake-metal cannot be prepared"):
        start(place)
    assert not (place / "run").exists()
    assert sorted(Orders.closed) == ["fake-box", "fake-metal"]


def test_backends_are_closed_if_the_run_breaks(place):
    def broken(_):
        raise SystemExit(3)

    Orders.on_start = broken
    with pytest.raises(SystemExit):
        start(place)
    assert sorted(Orders.closed) == ["fake-box", "fake-metal"]
    assert list((place / "work").iterdir()) == []
    assert manifest(place / "run")["status"] == "running"


def test_two_backends_of_a_type_are_told_apart(place):
    twice = SUITE + '[[backend]]\ntype = "fake-box"\nname = "other"\noptions = { speed = 2 }\n'
    start(place, twice)
    backends = manifest(place / "run")["backends"]
    assert {name: one["label"] for name, one in backends.items()} == {
        "fake-box": "fake-box label",
        "fake-metal": "fake-metal label",
        "other": "other: fake-box label",
    }
    assert {name: [found["backend"] for found in one["confounds"]] for name, one in backends.items()} == {
        name: [name] for name in backends
    }
    confounds = {(one["code"], one["backend"]) for one in manifest(place / "run")["confounds"]}
    assert {("odd", name) for name in backends} <= confounds


# --- the baseline -----------------------------------------------------------------------------------


def test_the_baseline_is_bare_metal_wherever_it_stands(place):
    start(place)
    assert manifest(place / "run")["baseline"] == "fake-metal"


def test_the_baseline_without_bare_metal_is_the_first_backend(place):
    two = SUITE.replace('"fake-metal"', '"fake-box"\nname = "second"')
    start(place, two)
    assert manifest(place / "run")["baseline"] == "fake-box"


def test_the_baseline_is_what_the_suite_names(place):
    start(place, SUITE + '[report]\nbaseline = "fake-box"\n')
    assert manifest(place / "run")["baseline"] == "fake-box"


def test_a_baseline_that_the_suite_does_not_have_is_refused_with_those_it_has(place):
    with pytest.raises(TareError, match=r"(?s)docker.*fake-box, fake-metal"):
        start(place, SUITE + '[report]\nbaseline = "docker"\n')
    assert not (place / "run").exists()


# --- the image --------------------------------------------------------------------------------------


def test_the_image_is_built_once_and_then_found(place):
    first, second = Display(), Display()
    start_run(RunRequest(suite_file(place), place / "one"), first)
    start_run(RunRequest(suite_file(place), place / "two"), second)
    assert any("building the image" in step for step in first.steps)
    assert any("is in the cache" in step for step in second.steps)
    assert not any("building" in step for step in second.steps)
    digests = {manifest(place / run)["image"]["digest"] for run in ("one", "two")}
    assert digests == {digest for _, digest in Orders.prepared}
    assert len(digests) == 1


def test_the_image_has_the_workloads_packages(place):
    start(place)
    with Ledger(place / "state" / "ledger") as ledger:
        found = ImageStore(place / "cache", ledger).find(Recipe.of({"coreutils"}))
    assert found is not None
    assert manifest(place / "run")["image"]["recipe"] == found.recipe


def test_the_image_that_a_suite_names_is_used_and_one_that_is_not_there_is_refused(place):
    with Ledger(place / "state" / "ledger") as ledger:
        built = ImageStore(place / "cache", ledger).build(Recipe.of({"redis"}))
    start(place, SUITE + f'[image]\nuse = "{built.name}"\n')
    assert {digest for _, digest in Orders.prepared} == {built.digest}
    assert manifest(place / "run")["image"]["name"] == built.name
    with pytest.raises(TareError, match="nobody"):
        start_run(RunRequest(suite_file(place, SUITE + '[image]\nuse = "nobody"\n'), place / "none"), Display())
    assert not (place / "none").exists()


def test_the_image_is_held_while_it_is_measured(place):
    held = []

    def look(spec):  # what it raised would be a failed cell
        locks = [file for file in (place / "cache" / "locks").iterdir() if spec.image.digest in file.name]
        for lock in locks:
            with lock.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(lock)

    Orders.on_start = look
    start(place)
    assert len(held) == len(Orders.starts) == PLANNED


# --- the host ---------------------------------------------------------------------------------------


def test_what_a_killed_run_left_is_removed_before_anything_is_made(place):
    leftover = place / "work" / "left"
    leftover.mkdir(parents=True)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom tare.bench.ledger import Ledger, ResourceKind\n"
        "ledger = Ledger(Path(sys.argv[1]))\nledger.enter(ResourceKind.DIRECTORY, Path(sys.argv[2]))\nos._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code, place / "state" / "ledger", leftover], check=False)
    display = Display()
    start_run(RunRequest(suite_file(place), place / "run"), display)
    assert not leftover.exists()
    assert str(leftover) in display.steps[0]


def test_what_an_interruption_left_entered_is_removed_before_the_run_ends(place):
    left = place / "left"

    def interrupt(_):
        with Ledger(place / "state" / "ledger") as ledger:
            ledger.enter(ResourceKind.FILE, left)
            left.touch()
        raise KeyboardInterrupt

    Orders.on_start = interrupt
    assert start(place).outcome.interrupted
    assert not left.exists()
    assert not list((place / "state" / "ledger").iterdir())


@pytest.mark.parametrize("variable", ["TARE_STATE_DIR", "TARE_WORK_DIR"])
def test_a_folder_that_cannot_be_made_is_named_with_its_variable(place, monkeypatch, variable):
    (place / "file").touch()
    monkeypatch.setenv(variable, str(place / "file"))
    with pytest.raises(TareError) as caught:
        start(place)
    assert variable in caught.value.remedy


def test_what_a_live_run_has_is_kept(place):
    own = place / "work" / "live"
    own.mkdir(parents=True)
    with Ledger(place / "state" / "ledger") as ledger:
        entry = ledger.enter(ResourceKind.DIRECTORY, own)
        start(place)
        assert own.exists()
        ledger.strike(entry)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_tare_keeps_off_the_instances_cpus_while_it_measures_and_no_longer(place):
    before = os.sched_getaffinity(0)
    chosen = max(before)
    start(place, SUITE.replace("[envelope]", f"[envelope]\ncpus = [{chosen}]"))
    assert Orders.affinity
    assert all(affinity == before - {chosen} for affinity in Orders.affinity)
    assert set(Orders.housekeeping) == {tuple(sorted(before - {chosen}))}
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_the_affinity_is_restored_after_an_error(place):
    before = os.sched_getaffinity(0)
    Orders.prepare_fails = frozenset({"fake-box", "fake-metal"})
    with pytest.raises(UnavailableError):
        start(place)
    assert os.sched_getaffinity(0) == before


def test_instances_live_on_the_storage_of_the_suite(place):
    storage = place / "disk"
    storage.mkdir()
    start(place, SUITE.replace("[envelope]", f'[envelope]\nstorage = "{storage}"'))
    assert all(work.is_relative_to(storage) for work in Orders.work)
    assert list(storage.iterdir()) == []


# --- interrupted, and gone on with ------------------------------------------------------------------


def test_an_interrupted_run_says_so_and_keeps_what_it_has(place):
    run = interrupted(place, at=3)
    stored = manifest(run)
    assert stored["status"] == "interrupted"
    assert stored["ended_utc"]
    assert (events(run)[-1]["kind"], events(run)[-1]["message"]) == ("run_ended", "interrupted")
    assert len(events(run, "instance_done")) == 2
    assert len({sample["instance"] for sample in samples(run)}) == 2


def test_a_run_goes_on_where_it_stopped_and_measures_the_rest_once(place):
    run = interrupted(place, at=3)
    before = manifest(run)
    display = Display()
    result = resume_run(run, display)
    assert (result.outcome.done, result.outcome.failed) == (PLANNED - 2, 0)
    assert display.planned == [PLANNED - 2]
    assert len(Orders.starts) == PLANNED - 2
    after = manifest(run)
    assert (after["status"], after["planned_instances"]) == ("complete", PLANNED)
    for kept in ("started_utc", "run", "seed", "baseline", "envelope", "suite"):
        assert after[kept] == before[kept]
    resumed = events(run, "run_resumed")
    assert [event["details"]["instances"] for event in resumed] == [PLANNED - 2]
    done = [event["instance"].partition("~")[0] for event in events(run, "instance_done")]
    assert len(done) == len(set(done)) == PLANNED
    again = [event["instance"] for event in events(run, "instance_started") if "~" in event["instance"]]
    assert len(again) == 1
    assert again[0].endswith("~2")


def test_a_run_that_was_moved_keeps_its_name(place):
    run = interrupted(place)
    run.rename(place / "elsewhere")
    resume_run(place / "elsewhere", Display())
    assert manifest(place / "elsewhere")["run"] == "run"


def test_an_instance_that_failed_is_not_repeated(place):
    Orders.missing = frozenset({"fake-box"})
    Orders.interrupt_at = 2
    start(place)
    failed = len(events(place / "run", "instance_failed"))
    Orders.reset()
    Orders.missing = frozenset({"fake-box"})
    resume_run(place / "run", Display())
    assert len(events(place / "run", "instance_failed")) == 3
    assert failed + len(events(place / "run", "instance_done")) <= PLANNED


def test_a_complete_run_has_nothing_to_resume(place):
    start(place)
    Orders.reset()
    with pytest.raises(RunDirectoryError, match="complete"):
        resume_run(place / "run", Display())
    assert not Orders.starts


def test_a_defect_in_a_backend_is_named_with_its_place(place, monkeypatch):
    monkeypatch.setattr(Metal, "prepare", lambda *_: fall_over())
    start(place, SUITE.replace('"fake-box"', '"fake-other"'))
    reason = manifest(place / "run")["unavailable"]["fake-metal"]["reason"]
    line = inspect.getsourcelines(fall_over)[1] + 1
    assert f"ZeroDivisionError: integer division or modulo by zero ({__file__}:{line})" in reason


def test_a_defect_in_a_backend_s_packages_is_named_with_its_place(place, monkeypatch):
    monkeypatch.setattr(Metal, "packages", classmethod(lambda *_: fall_over()))
    with pytest.raises(BackendError, match=r"packages\(\) raised ZeroDivisionError: .*test_session.py") as raised:
        start(place)
    assert "authors of that plug-in" in raised.value.remedy


def fall_over():
    return 1 // 0


def test_a_folder_that_is_no_run_cannot_be_resumed(place):
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        resume_run(place, Display())


def host_fact(name):
    def change(stored):
        fact = next(fact for fact in stored["host"] if fact["name"] == name)
        fact["text"] = "something else"

    return change


def set_in(*path, value):
    def change(stored):
        for key in path[:-1]:
            stored = stored[key]
        assert stored[path[-1]] != value
        stored[path[-1]] = value

    return change


CONDITIONS = {
    "host name": (host_fact("host name"), "host name: something else then"),
    "cpu model": (host_fact("cpu model"), "cpu model: something else then"),
    "cpus": (host_fact("cpus"), "cpus: something else then"),
    "memory": (host_fact("memory"), "memory: something else then"),
    "kernel": (host_fact("kernel"), f"kernel: something else then, {os.uname().release} now"),
    "storage file system": (host_fact("storage file system"), "storage file system: something else then"),
    "fingerprint": (set_in("fingerprint", "digest", value="0123456789abcdef"), "0123456789abcdef then"),
    "image": (set_in("image", "digest", value="f" * 64), "image: " + "f" * 19),
    "envelope": (set_in("envelope", "scratch_bytes", value=2**21), "envelope: "),
    "label": (
        set_in("backends", "fake-box", "label", value="vm (kvm)"),
        r"fake-box: vm \(kvm\) then, fake-box label now",
    ),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_run_does_not_go_on_under_other_conditions(place, name):
    run = interrupted(place)
    change, says = CONDITIONS[name]
    stored = manifest(run)
    change(stored)
    (run / "manifest.json").write_text(json.dumps(stored))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(RunDirectoryError, match=says) as caught:
        resume_run(run, Display())
    assert "new run" in (caught.value.remedy or "")
    assert not Orders.starts
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_run_does_not_go_on_without_a_backend_that_it_had(place):
    run = interrupted(place)
    Orders.missing = frozenset({"fake-box"})
    with pytest.raises(RunDirectoryError, match="fake-box: fake-box label then, not available now"):
        resume_run(run, Display())


def test_every_condition_that_differs_is_named(place):
    run = interrupted(place)
    stored = manifest(run)
    for name in ("kernel", "memory", "envelope"):
        CONDITIONS[name][0](stored)
    (run / "manifest.json").write_text(json.dumps(stored))
    with pytest.raises(RunDirectoryError, match=r"(?s)memory: .*kernel: .*envelope: "):
        resume_run(run, Display())


def test_what_may_differ_does_not_keep_a_run_from_going_on(place):
    run = interrupted(place)
    stored = manifest(run)
    for fact in stored["host"]:
        if fact["name"] in ("load average", "swappiness", "python"):
            fact["text"] = "something else"
    (run / "manifest.json").write_text(json.dumps(stored))
    assert resume_run(run, Display()).outcome.done == PLANNED - 2


def test_a_suite_that_names_what_is_not_there_is_refused(place):
    with pytest.raises((UnknownNameError, TareError), match="fake-cloud"):
        start(place, SUITE.replace('"fake-box"', '"fake-cloud"'))


# --- on disk before the next instance ---------------------------------------------------------------


class Synced:
    """What was written to disk: the size of each file, and the names in each folder, when it was last synced."""

    def __init__(self, monkeypatch):
        self.sizes = {}
        self.names = {}
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._watching(getattr(os, name)))

    def _watching(self, real):
        def sync(file):
            descriptor = file if isinstance(file, int) else file.fileno()
            real(descriptor)
            status = os.fstat(descriptor)
            self.sizes[status.st_dev, status.st_ino] = status.st_size
            folder = Path(f"/proc/self/fd/{descriptor}")
            if folder.is_dir():
                self.names[status.st_dev, status.st_ino] = entries(folder)

        return sync

    def missing(self, folder):
        """What below ``folder`` a crash now could lose: files with unwritten bytes, names that no folder has kept."""
        lost = []
        for path in (folder, *sorted(folder.rglob("*"))):
            status = path.stat()
            key = status.st_dev, status.st_ino
            if path.is_dir():
                kept = self.names.get(key, set())
                lost += [f"{path.name}/{name}" for name, _ in entries(path) - kept]
            elif status.st_size > self.sizes.get(key, 0):
                lost.append(f"{path.name}: {status.st_size - self.sizes.get(key, 0)} bytes")
        return [one for one in lost if not one.endswith("/.lock")]


def entries(folder):
    return {(path.name, path.stat().st_ino) for path in folder.iterdir()}


def test_all_of_an_instance_is_on_disk_before_the_next_one_starts(place, monkeypatch):
    synced = Synced(monkeypatch)
    at_start = []

    def look(_):
        *_, last = (place / "run" / "events.jsonl").read_bytes().splitlines(keepends=True)
        assert json.loads(last)["kind"] == "instance_started"
        at_start.append((synced.missing(place / "run"), len(last)))

    Orders.on_start = look
    start(place)
    assert len(at_start) == PLANNED
    for missing, announced in at_start[1:]:  # all but the line that says that this one starts
        assert missing == [f"events.jsonl: {announced} bytes"]
    assert synced.missing(place / "run") == []


def test_what_an_interrupted_instance_left_is_on_disk_when_the_run_ends(place, monkeypatch):
    synced = Synced(monkeypatch)
    run = interrupted(place, at=4)
    assert len(events(run, "instance_done")) == 3
    assert synced.missing(run) == []


def test_an_instance_is_said_to_be_done_only_after_what_it_measured_is_on_disk(place, monkeypatch):
    run = interrupted(place)
    synced = Synced(monkeypatch)
    loaded = load_run(run)
    with RunStore(run, loaded.manifest) as writing:
        writing.add_sample(loaded.samples[0])
        writing.add_raw("b09i00-new", "001-measured", Completed(("x",), 0, None, b"out", b"err", 0.0, 1.0))
        assert {one.partition(":")[0] for one in synced.missing(run)} >= {"samples.jsonl", "raw/b09i00-new"}
        events_before = (run / "events.jsonl").stat().st_size
        writing.add_event(make_event(EventKind.INSTANCE_DONE, instance="b09i00-new"))
        lost = [one for one in synced.missing(run) if "b09i00-new" in one or one.startswith(("samples", "histograms"))]
        assert lost == []
        assert (run / "events.jsonl").stat().st_size > events_before


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (lambda: BackendDescription("odd"), "Missing required argument 'kind'"),
        (lambda: BackendDescription("odd", "unikernel"), "of the kind 'unikernel', which does not exist"),
        (lambda: None, "returned None, not a BackendDescription"),
        (lambda: BackendDescription("odd", "container", facts={"a": "b"}), "that no run can keep"),
        (lambda: BackendDescription("odd", "container", facts={"a": object()}), "that no run can keep"),
    ],
)
def test_a_backend_that_does_not_say_what_it_is_is_unavailable_and_the_others_are_measured(
    place, monkeypatch, described, said
):
    monkeypatch.setattr(Box, "prepare", lambda *_: described())
    result = start(place)
    assert said in result.unavailable["fake-box"].reason
    assert result.outcome.done == PLANNED / 2
    assert list(manifest(place / "run")["backends"]) == ["fake-metal"]


@pytest.mark.parametrize(
    ("probed", "said"),
    [(fall_over, "probe() raised ZeroDivisionError"), (lambda: None, "probe() returned None, not an Availability")],
)
def test_a_backend_whose_probe_is_at_fault_is_unavailable_and_the_others_are_measured(place, monkeypatch, probed, said):
    monkeypatch.setattr(Box, "probe", lambda _: probed())
    result = start(place)
    assert said in result.unavailable["fake-box"].reason
    assert result.outcome.done == PLANNED / 2


def test_a_backend_whose_close_is_at_fault_is_named_after_the_run_is_complete(place, monkeypatch):
    monkeypatch.setattr(Box, "close", lambda _: fall_over())
    with pytest.raises(BackendError, match=r"close\(\) raised ZeroDivisionError"):
        start(place)
    assert manifest(place / "run")["status"] == "complete"
    assert Orders.closed == ["fake-metal"]


def test_traits_that_no_run_can_keep_are_refused_before_anything_is_measured(place, monkeypatch):
    monkeypatch.setattr(Counting, "category", object())
    with pytest.raises(BackendError, match="no run can keep"):
        start(place)
    assert not Orders.starts


# --- priming ------------------------------------------------------------------------------------------

PRIMING = SUITE.replace("prime = false\n", "")


def primed(run):
    return [one["details"] for one in events(run, "note") if one["details"]["code"] == "primed"]


def test_each_backend_is_primed_before_the_first_measured_instance(place):
    display = Display()
    result = start_run(RunRequest(suite_file(place, PRIMING), place / "run"), display)
    assert (result.outcome.done, result.outcome.failed) == (PLANNED, 0)
    assert manifest(place / "run")["planned_instances"] == PLANNED
    first, last = Orders.starts[:2], Orders.starts[2:]
    assert [name for name, _ in first] == ["fake-box", "fake-metal"]
    assert all("-p0i00" in name or "-p1i00" in name for _, name in first)
    assert len(last) == PLANNED
    assert all("-b0" in name for _, name in last)
    assert [(one["backend"], one["instances"], one["failed"]) for one in primed(place / "run")] == [
        ("fake-box", 1, {}),
        ("fake-metal", 1, {}),
    ]
    assert all("-p" not in sample["instance"] for sample in samples(place / "run"))
    assert len({sample["instance"] for sample in samples(place / "run")}) == PLANNED
    assert [step for step in display.steps if step.startswith("priming")] == [
        f"priming {name}: each workload once, unmeasured" for name in ("fake-box", "fake-metal")
    ]


def test_a_run_that_is_interrupted_while_it_is_primed_goes_on_and_is_primed_again(place):
    Orders.interrupt_at = 2
    result = start(place, PRIMING)
    assert (result.outcome.done, result.outcome.interrupted) == (0, True)
    assert manifest(place / "run")["status"] == "interrupted"
    Orders.reset()
    result = resume_run(place / "run", Display())
    assert (result.outcome.done, result.outcome.interrupted) == (PLANNED, False)
    assert [one["backend"] for one in primed(place / "run")] == ["fake-box", "fake-box", "fake-metal"]


def test_a_backend_that_cannot_be_primed_is_measured_all_the_same(place):
    def refuse(spec):
        if "-p0" in spec.identifier:
            raise BackendError("not this one")

    Orders.on_start = refuse
    result = start(place, PRIMING)
    assert (result.outcome.done, result.outcome.failed) == (PLANNED, 0)
    box, metal = primed(place / "run")
    assert (box["instances"], list(box["failed"].values())) == (0, ["not this one"])
    assert metal["failed"] == {}


# --- order --------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_in_the_order_of_the_seed_that_was_drawn(place):
    unseeded = SUITE.replace("seed = 3\n", "")
    Orders.interrupt_at = 3
    assert start(place, unseeded).outcome.interrupted
    first = [identifier.split("-", 2)[2] for _, identifier in Orders.starts[:2]]
    seed = manifest(place / "run")["seed"]
    assert manifest(place / "run")["suite"]["sampling"]["seed"] == seed
    Orders.reset()
    resume_run(place / "run", Display())
    rest = [identifier.split("-", 2)[2].removesuffix("r2") for _, identifier in Orders.starts]
    assert manifest(place / "run")["seed"] == seed
    stated = resolve_suite(manifest(place / "run")["suite"], Path("manifest.json"), find_backends(), find_workloads())
    assert first + rest == [planned.identifier for planned in make_design(bind_suite(stated))]
    Orders.reset()
    again = place / "again"
    assert not start_run(RunRequest(suite_file(place, unseeded), again), Display()).outcome.interrupted
    assert manifest(again)["seed"] != seed
