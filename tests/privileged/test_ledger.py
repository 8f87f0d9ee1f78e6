"""The ledger against the kernel: real cgroups whose processes fork on, and owners killed at random moments."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.bench.ledger import MARKER_VARIABLE, Cleaned, Ledger, ResourceKind, clean
from tare.bench.linux.cgroups import remove_cgroup

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root"),
]
DEADLINE_S = 10.0


def hierarchies() -> dict[str, Path]:
    """Our own cgroup in each hierarchy: by controller on v1, ``unified`` for v2."""
    mounts = {}
    for text in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = text.split()
        if kind == "cgroup2":
            mounts["unified"] = Path(place)
        elif kind == "cgroup":
            mounts.update({option: Path(place) for option in options.split(",")})
    found = {}
    for text in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = text.split(":", 2)
        name = controllers.split(",")[0] or "unified"
        own = mounts.get(name, Path("/nowhere")) / path.lstrip("/")
        if own.is_dir():
            found[name] = own
    return found


HIERARCHIES = hierarchies()


@contextlib.contextmanager
def cgroup(hierarchy: str) -> Iterator[Path]:
    if hierarchy not in HIERARCHIES:
        pytest.skip(f"this host has no cgroup hierarchy {hierarchy}")
    path = HIERARCHIES[hierarchy] / f"tare-ledger-test-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        if path.exists():
            remove_cgroup(path)


def join(path: Path, code: str, *argv: str) -> subprocess.Popen[bytes]:
    """A Python process that has entered the cgroup ``path`` and said so."""
    entering = f"open({str(path / 'cgroup.procs')!r}, 'w').write('0')\n"
    process = subprocess.Popen(
        [sys.executable, "-c", entering + textwrap.dedent(code), *argv], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    return process


SLEEPER = """
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    signal.pause()
"""

# Twenty processes, each of which forks and leaves again and again, though not for ever.
FORKERS = """
    import os, signal
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(20):
        if os.fork() == 0:
            os.setsid()
            for _ in range(20_000):
                if os.fork():
                    signal.sigtimedwait([signal.SIGUSR1], 0.003)
                    os._exit(0)
            os._exit(0)
    print("ready", flush=True)
    signal.pause()
"""

every_hierarchy = pytest.mark.parametrize("hierarchy", ["memory", "pids", "freezer", "cpu", "unified"])


@every_hierarchy
def test_a_cgroup_with_children_and_processes_goes(hierarchy: str) -> None:
    with cgroup(hierarchy) as path:
        inner = path / "inner" / "most"
        inner.mkdir(parents=True)
        processes = [join(folder, SLEEPER) for folder in (path, path / "inner", inner)]
        assert remove_cgroup(path)
        assert not path.exists()
        assert [process.wait(DEADLINE_S) for process in processes] == [-signal.SIGKILL] * 3
        assert not remove_cgroup(path)
        for process in processes:
            process.communicate()


@every_hierarchy
def test_processes_that_fork_on_do_not_escape(hierarchy: str) -> None:
    with cgroup(hierarchy) as path:
        parent = join(path, FORKERS)
        assert remove_cgroup(path)
        assert not path.exists()
        parent.communicate(timeout=DEADLINE_S)


def test_more_processes_than_a_process_may_have_descriptors() -> None:
    import resource

    code = """
        import os, signal
        for _ in range(700):
            if os.fork() == 0:
                signal.pause()
        print("ready", flush=True)
        signal.pause()
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with cgroup("memory") as path:
        parent = join(path, code)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (400, limits[1]))
            assert remove_cgroup(path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        parent.communicate(timeout=DEADLINE_S)


def test_a_frozen_parent_does_not_keep_its_children() -> None:
    """On v1 a process in a frozen cgroup does not die of SIGKILL, and thawing the child alone does not thaw it."""
    with cgroup("freezer") as path:
        inner = path / "inner"
        inner.mkdir()
        process = join(inner, SLEEPER)
        (inner / "freezer.state").write_text("FROZEN")
        (path / "freezer.state").write_text("FROZEN")
        started = time.monotonic()
        assert remove_cgroup(path)
        assert time.monotonic() - started < 5
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
        process.communicate()


def test_a_frozen_v2_cgroup_goes() -> None:
    with cgroup("unified") as path:
        if not (path / "cgroup.freeze").exists():
            pytest.skip("this kernel has no cgroup.freeze")
        process = join(path, SLEEPER)
        (path / "cgroup.freeze").write_text("1")
        assert remove_cgroup(path)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
        process.communicate()


def test_a_cgroup_that_this_process_is_in_is_refused_at_once() -> None:
    with cgroup("memory") as path:
        code = """
            import sys, time
            from pathlib import Path
            from tare.bench.linux.cgroups import remove_cgroup
            print("ready", flush=True)
            started = time.monotonic()
            try:
                remove_cgroup(Path(sys.argv[1]))
            except OSError as error:
                print(error.strerror, time.monotonic() - started < 1)
        """
        process = join(path, code, str(path))
        assert process.wait(DEADLINE_S) == 0
        assert process.stdout
        assert process.stdout.read() == b"this process is in it itself True\n"
        assert path.is_dir()
        process.communicate()


def test_a_folder_with_something_mounted_in_it_is_kept(tmp_path: Path) -> None:
    made = tmp_path / "with space"
    (made / "inner").mkdir(parents=True)
    (made / "file").touch()
    code = f"""
        set -e
        mount -t tmpfs tmpfs {str(made / "inner")!r}
        touch {str(made / "inner" / "precious")!r}
        exec {sys.executable} - <<'END'
from pathlib import Path
from tare.bench.ledger import Entry, ResourceKind, remove
made = Path({str(made)!r})
try:
    remove(Entry(1, ResourceKind.DIRECTORY, str(made)))
except OSError as error:
    assert error.filename == str(made / "inner"), error
else:
    raise SystemExit("it was removed")
assert (made / "inner/precious").exists() and (made / "file").exists()
END
    """
    argv = ["unshare", "--mount", "--propagation", "private", "bash", "-c", textwrap.dedent(code)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


# Makes, uses and removes what an instance has, for ever; the ledger is told first each time.
OWNER = """
    import os, shutil, subprocess, sys
    from pathlib import Path
    from tare.bench.ledger import MARKER_VARIABLE, Ledger, ResourceKind, remove
    from tare.bench.linux.cgroups import remove_cgroup
    ledger_folder, work, marker, *parents = sys.argv[1:]
    fork_on = "import os,time\\nfor _ in range(3): os.fork()\\ntime.sleep(600)"
    with Ledger(Path(ledger_folder)) as ledger:
        print("ready", flush=True)
        for number in range(10**6):
            name = f"{marker}-{number}"
            folder = Path(work) / name
            cgroups = [Path(parent) / name for parent in parents]
            directory = ledger.enter(ResourceKind.DIRECTORY, folder)
            process_entry = ledger.enter(ResourceKind.PROCESS, name)
            groups = ledger.enter_all(ResourceKind.CGROUP, cgroups)
            for part in ("upper/deep", "work"):
                (folder / part).mkdir(parents=True)
            for cgroup in cgroups:
                cgroup.mkdir()
            (folder / "upper" / "file").write_bytes(bytes(10_000))
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", fork_on], env={MARKER_VARIABLE: name}, start_new_session=True
            )
            for cgroup in cgroups:
                (cgroup / "cgroup.procs").write_text(str(process.pid))
            for cgroup in cgroups:
                remove_cgroup(cgroup)
            ledger.strike_all(groups)
            process.kill()
            process.wait()
            remove(process_entry)
            ledger.strike(process_entry)
            shutil.rmtree(folder)
            ledger.strike(directory)
"""


def left_of(marker: str, work: Path) -> list[str]:
    """Everything of ``marker`` that is still on this machine."""
    found = [str(path) for path in work.iterdir()]
    found += [str(path) for own in HIERARCHIES.values() for path in own.glob(f"{marker}-*")]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARKER_VARIABLE}={marker}-".encode() in (process / "environ").read_bytes():
                found.append(process.name)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_whenever_an_owner_is_killed_nothing_of_it_stays(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    work = tmp_path / "work"
    work.mkdir()
    folder = tmp_path / "ledger"
    marker = f"tare-ledger-{os.getpid()}-{seed}"
    parents = [str(HIERARCHIES[name]) for name in ("memory", "pids", "unified") if name in HIERARCHIES]
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER), str(folder), str(work), marker, *parents],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with Ledger(folder) as ours, ours.holding(ResourceKind.DIRECTORY, tmp_path / "ours"):
        (tmp_path / "ours").mkdir()
        assert owner.stdout
        assert owner.stdout.readline() == b"ready\n", owner.communicate()
        # The moment is what is tested: uniformly within the first instances, to the microsecond.
        with contextlib.suppress(subprocess.TimeoutExpired):
            owner.wait(rng.uniform(0.0, 0.4))
        assert owner.poll() is None, owner.communicate()
        owner.kill()
        owner.wait()
        assert clean(folder).failure() is None
        owner.communicate()
        assert left_of(marker, work) == []
        assert (tmp_path / "ours").is_dir()
        assert [path.name for path in folder.iterdir()] == [ours.path.name]


LIVE_ELSEWHERE = """
    import sys
    from pathlib import Path
    from tare.bench.ledger import Ledger, ResourceKind
    with Ledger(Path(sys.argv[1])) as ledger, ledger.holding(ResourceKind.DIRECTORY, sys.argv[2]):
        Path(sys.argv[2]).mkdir()
        print("ready", flush=True)
        sys.stdin.read()
"""


def test_an_owner_in_another_pid_and_time_namespace_is_seen_to_live_and_to_die(tmp_path: Path) -> None:
    """As two CI containers with one home are: neither finds the other's pid, or finds another's."""
    made, folder = tmp_path / "made", tmp_path / "ledger"
    with subprocess.Popen(
        [
            *("unshare", "--pid", "--fork", "--kill-child", "--time", "--boottime", "500000", "--mount-proc"),
            *(sys.executable, "-c", textwrap.dedent(LIVE_ELSEWHERE), str(folder), str(made)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == b"ready\n"
        assert clean(folder) == Cleaned((), ())
        assert made.is_dir()
        owner.kill()
        owner.stdout.read()  # ends when the last process that may hold the lock has
    assert [entry.target for entry in clean(folder).removed] == [str(made)]
    assert not made.exists()
    assert not list(folder.iterdir())
