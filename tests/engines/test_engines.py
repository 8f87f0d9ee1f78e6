"""Engines on this machine: many starts and stops, kills at any moment, and their own figures against the meter's.

The ordinary run takes a short slice of two engines; ``nox -s engines`` takes all that are installed, a hundred starts
and thirty kills of each.
"""

import contextlib
import json
import os
import random
import re
import secrets
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from tare.backends.engines.command_engine import CommandEngine
from tare.backends.engines.uml import UserModeLinux
from tare.bench.engine import StartedBy
from tare.bench.errors import BackendError
from tare.bench.ledger import Ledger, clean, work_folder
from tare.bench.locations import work_directory
from tare.bench.model import Command, Phase
from tare.bench.process import DEVNULL, PIPE, Popen, TimeoutExpired
from tare.bench.registry import find_backends
from tare.bench.testing.subject import load_backend, start_subject, traces_of

ALL = ("bubblewrap", "crun", "runc", "lxc", "nspawn", "gvisor", "podman", "containerd", "docker", "uml")
WHOLE = os.environ.get("TARE_TEST_ENGINES") == "all"
ENGINES = ALL if WHOLE else ("bubblewrap", "runc")
STARTS, KILLS = (100, 30) if WHOLE else (4, 3)
LATEST_KILL_S = {"docker": 20.0, "uml": 4.0}
"""After an owner has entered its first thing; preparing and a start take about as long. Of the others: 0.8."""

pytestmark = [pytest.mark.root, pytest.mark.image, pytest.mark.tools]


@pytest.fixture(scope="module", params=ENGINES)
def subject(request, image, tmp_path_factory):
    kind = load_backend(request.param)
    work = work_directory() / secrets.token_hex(4)
    with Ledger(tmp_path_factory.mktemp("ledger")) as ledger, work_folder(ledger, work):
        found = kind(context_of(kind, ledger, work)).probe()
        if not found.available:
            pytest.skip(found.reason)
        with start_subject(kind, ledger, work, image) as made:
            yield made


def context_of(kind, ledger, work):
    from tare.bench.interfaces import BackendContext
    from tare.bench.locations import cache_directory

    return BackendContext(ledger, work, cache_directory(), kind.Options(), ())


def test_starts_and_stops_leave_nothing(subject):
    before = subject.ledger.entries()
    for _ in range(STARTS):
        identifier, starting = subject.start()
        with starting as instance:
            assert instance.execute(Command(("true",))).returncode == 0
        assert traces_of(identifier, subject.backend.context.work_directory) == []
    assert subject.ledger.entries() == before
    assert sorted(path.name for path in subject.backend.folder.glob("tare-*")) == []


def test_what_people_call_started_is_told_apart(subject):
    _, starting = subject.start()
    with starting as instance:
        seconds = instance.time_exec()
        share = instance.engine_share()
        usage = instance.usage()
    marks, started = instance.timeline.marks, instance.timeline.started
    assert started[StartedBy.INSTRUCTION] == marks[Phase.FIRST_INSTRUCTION]
    if subject.backend.returns:
        assert marks[Phase.CREATED] < started[StartedBy.RETURNED] < marks[Phase.STOP_REQUESTED]
        assert seconds is not None
        assert seconds > 0
        assert 0 < share.cpu_s < usage.cpu_s, "the engine's commands are part of what the instance costs"
    else:
        assert StartedBy.RETURNED not in started
        assert seconds is None


def require_command(backend):
    if type(backend).begin not in {CommandEngine.begin, UserModeLinux.begin}:
        pytest.skip("it is started by no command; tests/engines/test_docker.py has the like")


ANSWERS = """
import ctypes, errno, threading
libc = ctypes.CDLL(None, use_errno=True)
def answer(*call):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(*call) < 0 else "done"
print(answer(272, 0x10000000), answer(425, 1, 0), answer(435, 0, 0), answer(165, 0, 0, 0, 0, 0), answer(41, 40, 1, 0))
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
print(next(line for line in open("/proc/self/status") if line.startswith("CapEff")).split()[1])
"""
"""On x86_64: unshare a user namespace, io_uring_setup, clone3, mount, a socket of AF_VSOCK; and the capabilities."""


SETTINGS = ("/proc/sys/kernel/core_pattern", "/proc/irq/default_smp_affinity")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the calls are those of x86_64")
def test_the_profile_is_that_of_tares_own_containers(subject):
    _, starting = subject.start()
    with starting as instance:
        done = instance.execute(Command(("python3", "-c", ANSWERS)))
    assert done.returncode == 0, done.stderr
    calls, capabilities = done.stdout.decode().splitlines()
    if "other-seccomp" not in subject.declared:
        assert calls == "EPERM EPERM ENOSYS EPERM EPERM"
        assert capabilities == "00000000a80425fb", "Docker's fourteen"


def test_the_hosts_own_files_cannot_be_changed_from_inside(subject):
    """What root inside can reach of the host's: device nodes, /proc and /sys."""
    files = (*map(Path, ("/dev/null", "/dev/tty", "/proc/sys/kernel/core_pattern")), subject.backend.folder / "program")
    before = [(path.stat().st_mode, path.stat().st_uid) for path in files]
    script = """
    for path in /dev/null /dev/tty /proc/keys /.tare/program; do chmod 600 $path; chown 1:1 $path; done
    echo taken > /proc/sys/kernel/core_pattern; echo taken > /.tare/program; rm -f /.tare/program
    echo 1 > /proc/irq/default_smp_affinity
    """
    settings = [path for path in map(Path, SETTINGS) if path.exists()]
    values = [path.read_text() for path in settings]
    _, starting = subject.start()
    with starting as instance:
        instance.execute(Command(("sh", "-c", script)))
    assert [(path.stat().st_mode, path.stat().st_uid) for path in files] == before
    assert [path.read_text() for path in settings] == values


def test_an_instance_that_was_killed_is_removed_all_the_same(subject):
    identifier, starting = subject.start()
    with starting as instance:
        instance.end()
    assert traces_of(identifier, subject.backend.context.work_directory) == []


def test_an_engine_that_fails_says_why_and_leaves_nothing(subject, monkeypatch):
    """A start command that cannot work fails the instance with what the engine printed."""
    backend, asked = subject.backend, []
    require_command(backend)

    def refused(box):
        asked.append(box)
        return [type(backend).program, "--no-such-option-of-any-engine"]

    monkeypatch.setattr(backend, "start_command", refused)
    identifier, starting = subject.start()
    with pytest.raises(Exception, match=r"no-such-option|ended|failed|panic") as caught, starting:
        pass
    assert caught.value.evidence
    assert traces_of(identifier, backend.context.work_directory) == []
    assert not asked[0].folder.exists()


def test_an_engine_that_hangs_is_killed_at_its_deadline(subject, monkeypatch):
    backend = subject.backend
    require_command(backend)
    monkeypatch.setattr(type(backend), "start_deadline_s", 1.0)
    # In the jail of user-mode Linux there is no other program; without a line its init never reports.
    hangs = ["linux.uml", "mem=64M", "initrd=/initramfs"] if subject.name == "uml" else ["sleep", "3600"]
    monkeypatch.setattr(backend, "start_command", lambda _: hangs)
    identifier, starting = subject.start()
    began = time.monotonic()
    with pytest.raises(Exception, match="within its deadline"), starting:
        pass
    assert time.monotonic() - began < 10
    assert traces_of(identifier, backend.context.work_directory) == []


@pytest.mark.parametrize("name", ENGINES)
def test_an_owner_killed_at_any_moment_leaves_what_clean_removes(name, image, tmp_path):
    """Also in the middle of the engine's start: everything in its ledger is gone afterwards."""
    if (
        not find_backends()
        .get(name)(context_of(load_backend(name), Ledger(tmp_path / "probe"), tmp_path))
        .probe()
        .available
    ):
        pytest.skip("the engine does not work here")
    chance, ledger = random.Random(name), tmp_path / "ledger"
    given = msgspec.json.encode(image, enc_hook=str).decode()
    work = work_directory() / f"tare-kill-{secrets.token_hex(4)}"
    work.mkdir(parents=True)
    for _ in range(KILLS):
        argv = [sys.executable, "-m", "tare.bench.testing.subject", name, str(ledger), str(work), given]
        with Popen(argv, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL) as owner:
            wait_for_entry(ledger, owner)
            try:
                owner.wait(chance.uniform(0.0, LATEST_KILL_S.get(name, 0.8)))
            except TimeoutExpired:
                owner.kill()
        entered = [
            entry["target"]
            for file in ledger.glob("*.jsonl")
            for entry in map(json.loads, file.read_text().splitlines())
            if entry.get("kind")
        ]
        assert entered
        assert clean(ledger, lambda kind: find_backends().get(kind).reclaim).failure() is None
        assert [target for target in entered if target.startswith("/") and Path(target).exists()] == []
        assert list(work.iterdir()) == []
        assert processes_with(str(work)) == []
    work.rmdir()


def wait_for_entry(ledger, owner):
    """Until the owner has entered the first thing that it makes."""
    deadline = time.monotonic() + 30
    while not any(file.stat().st_size for file in ledger.glob("*.jsonl")):
        assert owner.poll() is None, "the owner ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processes_with(text):
    """Processes that have a text in their command line, environment or cgroup."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = b"".join((folder / name).read_bytes() for name in ("cmdline", "environ", "cgroup"))
        except OSError:
            continue
        if text.encode() in said and int(folder.name) != os.getpid():
            found.append(f"{folder.name} {said[:200]!r}")
    return found


def figures_of_runc(backend, box):
    said = json.loads(said_by(backend, box, ["runc", "--root", f"{backend.folder}/state", "events", "--stats"]))
    return said["data"]["cpu"]["usage"]["total"] / 1e9, said["data"]["memory"]["usage"]["usage"]


def figures_of_podman(backend, box):
    """CPU time as Go writes durations, memory in steps of a thousandth of a unit."""
    said = json.loads(said_by(backend, box, backend._call("stats", "--no-stream", "--format", "json")))[0]
    seconds = sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([0-9.]+)([a-zµ]+)", said["cpu_time"]))
    number, unit = re.match(r"([0-9.]+)([A-Za-z]+)", said["mem_usage"]).groups()
    return seconds, float(number) * UNITS[unit]


def figures_of_containerd(backend, box):
    said = said_by(backend, box, backend._client("tasks", "metrics", "--format", "json"))
    found = json.loads(said[said.index("{") :])
    return int(found["cpu"]["usage"]["total"]) / 1e9, int(found["memory"]["usage"]["usage"])


UNITS = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
FIGURES = {"runc": figures_of_runc, "podman": figures_of_podman, "containerd": figures_of_containerd}


def said_by(backend, box, argv):
    """What an engine's command prints about a container that lives."""
    out, given = os.pipe(), os.open("/dev/null", os.O_RDONLY)
    try:
        with backend.spawn(box, [*argv, box.identifier], streams=(given, out[1])) as command:
            os.close(out[1])
            command.finish(time.monotonic() + 20)
            return os.read(out[0], 1 << 16).decode()
    finally:
        os.close(out[0])
        os.close(given)


@pytest.mark.parametrize("subject", [name for name in ENGINES if name in FIGURES], indirect=True)
def test_the_meter_agrees_with_the_engines_own_figures(subject):
    """The container's own group: CPU time within 2 %, memory within 5 %."""
    _, starting = subject.start()
    with starting as instance:
        busy = "import time\nheld = bytearray(b'x') * 60_000_000\nwhile time.process_time() < 1.0: pass"
        instance.execute(Command(("python3", "-c", busy)))
        instance.execute(Command(("sh", "-c", "head -c 40000000 /dev/zero > /dev/shm/held")))
        cpu_s, memory_bytes = FIGURES[subject.name](subject.backend, instance._box)
        usage = instance.cgroup.meter.usage()
    assert usage.cpu_s == pytest.approx(cpu_s, rel=0.02)
    assert usage.memory_current_bytes == pytest.approx(memory_bytes, rel=0.05)


@pytest.mark.parametrize("subject", [name for name in ENGINES if name in {"podman", "containerd"}], indirect=True)
def test_the_engine_itself_says_when_a_container_runs(subject):
    _, starting = subject.start()
    with starting as instance:
        running_s = instance.engine_running_s()
    marks = instance.timeline.marks
    assert marks[Phase.CREATED] < running_s < marks[Phase.STOP_REQUESTED]
    assert running_s == pytest.approx(instance.timeline.started[StartedBy.RETURNED], abs=0.5)


@pytest.mark.parametrize("subject", [name for name in ENGINES if name == "containerd"], indirect=True)
def test_a_daemon_killed_at_any_moment_fails_one_instance_and_leaves_nothing(subject):
    """Its shims live on: they end with the instance. The next instance has a new daemon."""
    chance = random.Random("daemon")
    for _ in range(KILLS):
        identifier, starting = subject.start()
        subject.backend.require_daemon()
        killer = threading.Timer(chance.uniform(0.0, 0.8), os.kill, (subject.backend.daemon.pid, 9))
        killer.start()
        with contextlib.suppress(BackendError), starting as instance:
            killer.join()
            instance.execute(Command(("true",)))
        killer.join()
        assert traces_of(identifier, subject.backend.context.work_directory) == []
    identifier, starting = subject.start()
    with starting as instance:
        assert instance.execute(Command(("true",))).returncode == 0
    assert traces_of(identifier, subject.backend.context.work_directory) == []
