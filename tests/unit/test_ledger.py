"""The ledger file: what is entered is found again whatever happened to its owner, and nothing else is touched."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.bench import ledger
from tare.bench.errors import CleanUpError, UnknownNameError
from tare.bench.ledger import MARKER_VARIABLE, Cleaned, Ledger, ResourceKind, clean

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
OTHER_BOOT = "00000000-1111-2222-3333-444444444444"
HERE, ELSEWHERE = ledger._host(), "0123456789ab"
TOKEN = "0123456789abcdef"
DEAD = f"{BOOT}-{HERE}-{os.getpid()}-{TOKEN}.jsonl"
"""A ledger of a process that had our pid before us: it is gone, though the pid lives."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def write(folder: Path, name: str, *lines: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(number: int, target: Path, kind: str = "directory") -> dict[str, object]:
    return {"entry": number, "kind": kind, "target": str(target)}


def targets(cleaned: Cleaned) -> list[str]:
    return [entry.target for entry in cleaned.removed]


@contextlib.contextmanager
def started(code: str, *argv: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that has printed its first line; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *argv],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def test_a_closed_ledger_leaves_nothing_if_all_is_gone(folder: Path) -> None:
    with Ledger(folder) as ledger, ledger.holding(ResourceKind.DIRECTORY, "/somewhere") as entry:
        assert ledger.path.exists()
        assert ledger.entries() == (entry,)
        assert json.loads(ledger.path.read_text()) == {"entry": 1, "kind": "directory", "target": "/somewhere"}
    assert not list(folder.iterdir())
    ledger.close()


def test_the_entry_is_written_before_enter_returns_and_stays_if_the_block_raises(folder: Path, tmp_path: Path) -> None:
    def fail() -> None:
        with ledger.holding(ResourceKind.DIRECTORY, tmp_path / "made"):
            assert "made" in ledger.path.read_text()
            raise RuntimeError("on purpose")

    ledger = Ledger(folder)
    with pytest.raises(RuntimeError):
        fail()
    assert [entry.target for entry in ledger.entries()] == [str(tmp_path / "made")]
    ledger.close()
    assert ledger.path.exists()


def test_several_are_entered_and_struck_at_once(folder: Path) -> None:
    with Ledger(folder) as ledger:
        entries = ledger.enter_all(ResourceKind.CGROUP, ("/a", "/b", Path("/c")))
        assert [entry.target for entry in ledger.entries()] == ["/a", "/b", "/c"]
        ledger.strike_all(entries[:2])
        ledger.strike_all(entries[:2])
        ledger.strike_all(())
        assert [entry.target for entry in ledger.entries()] == ["/c"]


def test_the_folder_is_private(folder: Path) -> None:
    with Ledger(folder) as ledger:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_a_live_owner_is_never_touched(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    with Ledger(folder) as ledger, ledger.holding(ResourceKind.DIRECTORY, made):
        assert clean(folder) == Cleaned((), ())
        assert made.exists()
        assert ledger.path.exists()


OWNER = """
    import sys
    from pathlib import Path
    from tare.bench.ledger import Ledger, ResourceKind
    with Ledger(Path(sys.argv[1])) as ledger:
        ledger.enter(ResourceKind.DIRECTORY, sys.argv[2])
        Path(sys.argv[2]).mkdir()
        print("ready", flush=True)
        sys.stdin.read()
"""


def test_another_process_is_left_alone_while_it_lives_and_cleaned_once_killed(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with started(OWNER, str(folder), str(made)) as owner:
        assert clean(folder) == Cleaned((), ())
        assert made.exists()
        owner.kill()
        # Not waited for: a zombie is as dead as can be.
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
        assert targets(clean(folder)) == [str(made)]
    assert not made.exists()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        DEAD,
        f"{OTHER_BOOT}-{HERE}-{os.getpid()}-{TOKEN}.jsonl",
        f"{BOOT}-{ELSEWHERE}-{os.getpid()}-{TOKEN}.jsonl",
    ],
    ids=["pid reused", "before a reboot", "another container on this kernel"],
)
def test_dead_owners_are_recognised(folder: Path, tmp_path: Path, name: str) -> None:
    made = tmp_path / "made"
    (made / "inner").mkdir(parents=True)
    path = write(folder, name, line(1, made))
    assert targets(clean(folder)) == [str(made)]
    assert not made.exists()
    assert not path.exists()


@pytest.mark.parametrize(
    "name",
    ["notes.jsonl", "a-b-c.jsonl", f"{BOOT}-x-1.jsonl", f"{BOOT}-1.jsonl", "-.jsonl"],
    ids=["notes", "letters", "no pid", "no number", "nothing"],
)
def test_a_file_that_is_no_ledger_is_left_alone(folder: Path, tmp_path: Path, name: str) -> None:
    made = tmp_path / "made"
    made.mkdir()
    path = write(folder, name, line(1, made))
    assert clean(folder) == Cleaned((), ())
    assert made.exists()
    assert path.exists()


def test_what_cannot_be_judged_keeps_nothing_from_being_cleaned(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    write(folder, DEAD, line(1, made))
    elsewhere = write(folder, f"{OTHER_BOOT}-{ELSEWHERE}-1-{TOKEN}.jsonl", line(1, tmp_path))
    assert min(folder.iterdir()) == elsewhere
    cleaned = clean(folder)
    assert targets(cleaned) == [str(made)]
    assert cleaned.unjudged == (elsewhere,)
    assert not made.exists()


def test_no_folder_is_nothing_to_clean(folder: Path) -> None:
    assert clean(folder) == Cleaned((), ())


def test_things_go_in_reverse_order_and_struck_ones_are_not_looked_for(folder: Path, tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("first", "second", "third")]
    for made in names:
        made.mkdir()
    write(folder, DEAD, *(line(number, made) for number, made in enumerate(names, 1)), {"entry": 2})
    assert targets(clean(folder)) == [str(names[2]), str(names[0])]
    assert names[1].exists()


def test_files_and_what_was_never_made(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "file"
    made.write_text("x")
    write(folder, DEAD, line(1, made, "file"), line(2, tmp_path / "never", "file"), line(3, tmp_path / "nor", "cgroup"))
    assert targets(clean(folder)) == [str(made)]
    assert not made.exists()


def test_links_are_removed_and_never_followed(folder: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (others / "precious").write_text("x")
    made = tmp_path / "made"
    made.mkdir()
    (made / "link").symlink_to(others)
    (tmp_path / "file").symlink_to(others / "precious")
    write(folder, DEAD, line(1, made), line(2, tmp_path / "file", "file"))
    assert len(clean(folder).removed) == 2
    assert (others / "precious").read_text() == "x"
    assert not made.exists()
    assert not (tmp_path / "file").is_symlink()


def test_what_cannot_be_removed_is_told_and_kept_and_the_rest_goes(folder: Path, tmp_path: Path) -> None:
    stubborn = tmp_path / "stubborn"
    stubborn.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    path = write(folder, DEAD, line(1, other), line(2, stubborn, "file"))
    cleaned = clean(folder)
    assert targets(cleaned) == [str(other)]
    ((entry, reason),) = cleaned.failed
    assert entry.target == str(stubborn)
    assert str(stubborn) in reason
    assert path.exists()
    failure = cleaned.failure()
    assert isinstance(failure, CleanUpError)
    assert f"file {stubborn}: " in failure.message
    assert [json.loads(text) for text in path.read_text().splitlines()][-1] == {"entry": 1}, (
        "what is gone is struck out"
    )
    stubborn.rmdir()
    assert clean(folder).failure() is None
    assert not path.exists()


@pytest.mark.parametrize("cut", range(1, 60, 4))
def test_a_half_written_last_line_counts_as_not_written(folder: Path, tmp_path: Path, cut: int) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    path = write(folder, DEAD, line(1, first), line(2, second))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert targets(clean(folder)) == ([str(second), str(first)] if cut == 1 else [str(first)])


@settings(deadline=None, max_examples=60)
@given(junk=st.binary(max_size=80).filter(lambda data: b"entry" not in data))
def test_junk_between_lines_hides_none(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    base = tmp_path_factory.mktemp("junk")
    made = base / "made"
    made.mkdir()
    (base / "ledger").mkdir()
    (base / "ledger" / DEAD).write_bytes(junk + b"\n" + json.dumps(line(1, made)).encode() + b"\n" + junk)
    assert targets(clean(base / "ledger")) == [str(made)]


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    from tare.bench.errors import CleanUpError
    from tare.bench.ledger import Ledger, ResourceKind
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ledger = Ledger(Path(sys.argv[1]))
    kept = ledger.enter(ResourceKind.CGROUP, "/first")
    gone = ledger.enter(ResourceKind.CGROUP, "/struck")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.path.stat().st_size + 20, limits[1]))
    for _ in range(2):
        try:
            ledger.enter(ResourceKind.CGROUP, "/lost")
        except CleanUpError as error:
            assert "cannot be written" in str(error) and "TARE_STATE_DIR" in str(error), error
        else:
            raise SystemExit("an entry that is not on disk was said to be")
    ledger.strike(gone)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    ledger.enter(ResourceKind.CGROUP, "/second")
    print([entry.target for entry in ledger.entries()])
"""


def test_a_full_disk_is_told_and_hides_no_later_entry(folder: Path) -> None:
    """The half of a line that was still written must not swallow the next one."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['/first', '/second']"
    (path,) = folder.iterdir()
    found = [text for text in path.read_text().splitlines() if text.endswith("}")]
    assert any("/first" in text for text in found)
    assert any("/second" in text and json.loads(text) for text in found)


def test_a_ledger_opened_twice_is_one(folder: Path) -> None:
    """Entries of two openings have different numbers, and the file goes with the last of them."""
    with Ledger(folder) as outer:
        with Ledger(folder) as inner:
            one, two, three = (book.enter(ResourceKind.CGROUP, f"/{book is inner}") for book in (outer, inner, outer))
            assert len({one.number, two.number, three.number}) == 3
            outer.strike_all((one, three))
            inner.strike(two)
        assert outer.path.exists(), "the inner one must not take the file away"
        later = outer.enter(ResourceKind.CGROUP, "/later")
        assert "/later" in outer.path.read_text()
        outer.strike(later)
    assert not outer.path.exists()


def test_a_ledger_opened_again_goes_on_where_it_was(folder: Path) -> None:
    with Ledger(folder) as first:
        entry = first.enter(ResourceKind.CGROUP, "/left")
    with Ledger(folder) as again:
        assert again.entries() == (entry,)
        assert again.enter(ResourceKind.CGROUP, "/new").number == entry.number + 1
        again.strike_all(again.entries())
    assert not again.path.exists()


def test_threads_share_one_ledger(folder: Path) -> None:
    barrier = threading.Barrier(8)

    def work(index: int) -> None:
        barrier.wait()
        for turn in range(40):
            entry = ledger.enter(ResourceKind.CGROUP, f"/{index}/{turn}")
            if turn % 2:
                ledger.strike(entry)

    with Ledger(folder) as ledger:
        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        entries = ledger.entries()
        assert len(entries) == len({entry.number for entry in entries}) == 8 * 20
        lines = [json.loads(text) for text in ledger.path.read_text().splitlines()]
        assert len(lines) == 8 * 60
        ledger.strike_all(entries)


SLEEPER = """
    import sys
    print("ready", flush=True)
    sys.stdin.read()
"""

# Each generation lives 20 ms, then leaves a child and its session behind. Ends by itself after 500 of them.
FORKER = """
    import os, signal
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for generation in range(500):
        signal.sigtimedwait([signal.SIGUSR1], 0.02)
        if os.fork():
            os._exit(0)
        os.setsid()
"""


def test_marked_processes_are_killed_and_others_are_not(folder: Path) -> None:
    marker = f"test-{os.getpid()}"
    with (
        started(SLEEPER, **{MARKER_VARIABLE: marker}) as ours,
        started(SLEEPER, **{MARKER_VARIABLE: f"{marker}0"}) as others,
        started(SLEEPER) as bystander,
    ):
        write(folder, DEAD, {"entry": 1, "kind": "process", "target": marker})
        assert targets(clean(folder)) == [marker]
        assert ours.wait(5) == -signal.SIGKILL
        assert others.poll() is None
        assert bystander.poll() is None


def test_a_process_that_forks_on_and_on_does_not_escape(folder: Path) -> None:
    """It leaves its parent, its session and its pid behind every 20 ms; only the marker stays."""
    marker = f"forker-{os.getpid()}"
    with started(FORKER, **{MARKER_VARIABLE: marker}):
        write(folder, DEAD, {"entry": 1, "kind": "process", "target": marker})
        began = time.monotonic()
        assert targets(clean(folder)) == [marker]
        assert time.monotonic() - began < 8, "it ended by itself before it was caught"
        for _ in range(5):
            assert marked(marker) == []


def marked(marker: str) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARKER_VARIABLE}={marker}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


CLEANER = """
    import sys
    from pathlib import Path
    from tare.bench.ledger import clean
    print("ready", flush=True)
    sys.stdin.readline()
    cleaned = clean(Path(sys.argv[1]))
    print(len(cleaned.removed), len(cleaned.failed))
"""


FORKING = """
    import os, sys, time
    from pathlib import Path
    from tare.bench.ledger import Ledger, ResourceKind
    ledger = Ledger(Path(sys.argv[1]))
    ledger.enter(ResourceKind.DIRECTORY, Path(sys.argv[2]))
    if os.fork() == 0:
        print("ready", flush=True)
        time.sleep(0.3)  # as long as a child has the parent's descriptors, before it executes its program
        os._exit(0)
    time.sleep(600)
"""


def test_an_owner_killed_while_it_starts_a_process_is_dead_all_the_same(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    with started(FORKING, str(folder), str(made)) as owner:
        owner.kill()
        owner.wait()
        assert targets(clean(folder)) == [str(made)]


def test_two_cleaners_at_once_do_not_harm_each_other(folder: Path, tmp_path: Path) -> None:
    for number in range(40):
        made = tmp_path / f"made{number}"
        for inner in range(20):
            (made / str(inner)).mkdir(parents=True)
        write(folder, f"{OTHER_BOOT}-{HERE}-{number + 1}-{TOKEN}.jsonl", line(1, made))
    with started(CLEANER, str(folder)) as one, started(CLEANER, str(folder)) as two:
        for cleaner in (one, two):
            assert cleaner.stdin
            cleaner.stdin.write(b"\n")
            cleaner.stdin.flush()
        told = [tuple(map(int, cleaner.communicate(timeout=60)[0].split())) for cleaner in (one, two)]
    assert [failed for _, failed in told] == [0, 0]
    assert sum(removed for removed, _ in told) == 40
    assert not list(tmp_path.glob("made*"))
    assert not list(folder.iterdir())


def test_a_tree_that_somebody_else_removes_too_is_gone_in_the_end(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    for inner in range(300):
        (made / str(inner) / "deep").mkdir(parents=True)
    write(folder, DEAD, line(1, made))
    with started(OTHER_REMOVER, str(made)) as other:
        assert other.stdin
        other.stdin.write(b"\n")
        other.stdin.flush()
        assert clean(folder).failed == ()
        assert not made.exists()


OTHER_REMOVER = """
    import os, shutil, sys
    print("ready", flush=True)
    sys.stdin.readline()
    for name in sorted(os.listdir(sys.argv[1]), reverse=True):
        shutil.rmtree(os.path.join(sys.argv[1], name), ignore_errors=True)
"""


def reclaimer(found: dict[str, bool | Exception], asked: list[str]) -> ledger.FindBackend:
    """Where only the backend ``engine`` is installed, and ``found`` says what it does about each target."""

    def reclaim(target: str) -> bool:
        asked.append(target)
        answer = found[target]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def find(name: str) -> ledger.Remover:
        if name != "engine":
            raise UnknownNameError(f"there is no backend {name!r}; there are: engine")
        return reclaim

    return find


def of_backend(number: int, target: str, backend: str = "engine") -> dict[str, object]:
    return {"entry": number, "kind": "container", "target": target, "backend": backend}


def test_what_a_backend_entered_goes_back_to_it_once_its_owner_is_dead(folder: Path) -> None:
    asked: list[str] = []
    find = reclaimer({"one": True, "gone": False}, asked)
    with Ledger(folder) as own, own.holding("container", "live", backend="engine"):
        assert json.loads(own.path.read_text()) == of_backend(1, "live")
        path = write(folder, DEAD, of_backend(1, "one"), of_backend(2, "gone"))
        cleaned = clean(folder, find)
    assert asked == ["gone", "one"]
    assert [str(entry) for entry in cleaned.removed] == ["container one of the backend engine"]
    assert cleaned.failure() is None
    assert not path.exists()


@pytest.mark.parametrize(
    ("backend", "answer", "told"),
    [
        ("uninstalled", True, "there is no backend 'uninstalled'"),
        ("engine", OSError(5, "Input/output error"), "Input/output error: stubborn"),
        ("engine", ValueError("what is this"), "ValueError: what is this"),
        ("engine", CleanUpError("the daemon does not answer"), "the daemon does not answer"),
    ],
)
def test_what_no_backend_takes_back_is_kept_and_named_and_the_rest_goes(
    folder: Path, tmp_path: Path, backend: str, answer: bool | Exception, told: str
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    path = write(folder, DEAD, line(1, made), of_backend(2, "stubborn", backend), of_backend(3, "easy"))
    asked: list[str] = []
    for _ in range(2):
        cleaned = clean(folder, reclaimer({"stubborn": answer, "easy": True}, asked))
        failure = cleaned.failure()
        assert failure is not None
        assert f"container stubborn of the backend {backend}: {told}" in failure.message
        assert not made.exists()
    assert asked.count("easy") == 1, "what is gone is not asked for again"
    assert targets(clean(folder, lambda _: lambda _: True)) == ["stubborn"]
    assert not path.exists()


def test_a_kind_that_only_a_newer_version_knows_is_kept_and_named(folder: Path, tmp_path: Path) -> None:
    path = write(folder, DEAD, line(1, tmp_path, "timer"))
    failure = clean(folder).failure()
    assert failure is not None
    assert f"timer {tmp_path}: this version of tare does not know the kind timer" in failure.message
    assert path.exists()


def test_another_hosts_ledger_on_a_shared_disk_is_left_to_it(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    path = write(folder, f"{OTHER_BOOT}-{ELSEWHERE}-7-{TOKEN}.jsonl", line(1, made))
    assert clean(folder) == Cleaned((), (), (path,))
    assert made.exists()
    assert path.exists()


def test_a_ledger_of_the_version_before_is_named_and_left(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    path = write(folder, f"{OTHER_BOOT}-7-123456.jsonl", line(1, made))
    assert clean(folder) == Cleaned((), (), (path,))
    assert made.exists()
    assert path.exists()


def test_what_outlives_a_reboot_is_on_disk_before_it_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    with Ledger(folder) as own:
        assert synced == [str(folder)], "the file's name"
        for kind, backend, more in (("directory", "", 1), ("cgroup", "", 0), ("process", "", 0), ("cgroup", "x", 1)):
            before = len(synced)
            own.strike(own.enter(kind, "/somewhere", backend=backend))
            assert synced[before:] == [str(own.path)] * more


OPENER = """
    import sys
    from pathlib import Path
    from tare.bench.ledger import Ledger, ResourceKind
    print("ready", flush=True)
    for turn in range(200):
        with Ledger(Path(sys.argv[1])) as ledger, ledger.holding(ResourceKind.CGROUP, f"/none/{turn}"):
            assert f"/none/{turn}" in ledger.path.read_text()
"""


def test_a_ledger_opened_while_another_cleans_is_not_lost(folder: Path) -> None:
    """A cleaner may come upon the file between its making and its locking."""
    with started(OPENER, str(folder)) as one, started(OPENER, str(folder)) as two:
        while one.poll() is None or two.poll() is None:
            assert clean(folder) == Cleaned((), ())
        assert (one.wait(), two.wait()) == (0, 0)


def test_a_file_taken_away_before_it_could_be_locked_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    taken: list[int] = []

    def late(descriptor: int, operation: int) -> None:
        if not taken:
            taken.append(descriptor)
            (path,) = folder.iterdir()
            path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with Ledger(folder) as own, own.holding(ResourceKind.CGROUP, "/kept"):
        assert taken
        assert "/kept" in own.path.read_text()


def test_a_link_is_not_taken_for_a_ledger(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    elsewhere = write(tmp_path / "elsewhere", DEAD, line(1, made))
    folder.mkdir()
    (folder / DEAD).symlink_to(elsewhere)
    assert clean(folder) == Cleaned((), (), (folder / DEAD,))
    assert made.exists()
    assert elsewhere.exists()
