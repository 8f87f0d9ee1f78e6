"""What every backend has to do; where the contract leaves a thing to the backend, only if the backend has it.

Run it with ``pytest --pyargs tare.bench.testing.contract --tare-backend NAME``. A test is skipped, with the reason,
where the backend declares that it lacks something: a field of ``Usage`` in ``missing``, a limit by a confound,
``interactive``, ``address``. On the host it looks only for what carries the instance's identifier, so that other runs
of tare do not disturb it.
"""

import contextlib
import errno
import itertools
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from tare.bench.catalogue import ConfoundCode
from tare.bench.errors import TareError, UnavailableError, UnsupportedError
from tare.bench.image import ImageStore
from tare.bench.ledger import Ledger, clean, work_folder
from tare.bench.linux.processes import threads_of
from tare.bench.linux.waiting import is_readable
from tare.bench.locations import cache_directory, ledger_directory, work_directory
from tare.bench.model import SCRATCH, Availability, Command, Image, IsolationKind, Phase
from tare.bench.process import PIPE, Popen
from tare.bench.testing.fake import Fake
from tare.bench.testing.subject import (
    BackendUnderTest,
    Live,
    Typist,
    cgroups_of,
    find_image,
    host_as_image,
    load_backend,
    processes_of,
    require,
    start_subject,
    traces_of,
)

ALWAYS = {
    *(Phase.REQUESTED, Phase.CREATED, Phase.FIRST_INSTRUCTION, Phase.READY),
    *(Phase.STOP_REQUESTED, Phase.STOPPED),
}
GONE_WITHIN_S = 30.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test runs on every backend that was asked for."""
    if "subject" in metafunc.fixturenames:
        names = metafunc.config.getoption("--tare-backend")
        if not names:
            raise pytest.UsageError("say what to test: --tare-backend NAME, or MODULE:CLASS")
        metafunc.parametrize("subject", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def tare_image(request: pytest.FixtureRequest) -> Image:
    with Ledger(ledger_directory()) as ledger:
        return find_image(ImageStore(cache_directory(), ledger), request.config.getoption("--tare-image"))


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest) -> Iterator[BackendUnderTest]:
    """The backend, prepared; all that it made is gone in the end."""
    kind = load_backend(request.param)
    image = host_as_image() if issubclass(kind, Fake) else request.getfixturevalue("tare_image")
    options = request.config.getoption("--tare-option")
    work = work_directory() / secrets.token_hex(4)
    with Ledger(ledger_directory()) as ledger, work_folder(ledger, work):
        before = ledger.entries()
        try:
            with start_subject(kind, ledger, work, image, options) as found:
                yield found
        except UnavailableError as error:
            pytest.skip(str(error))
        assert ledger.entries() == before


@pytest.fixture(scope="session")
def live(subject: BackendUnderTest) -> Iterator[Live]:
    identifier, starting = subject.start()
    with starting as instance:
        yield Live(subject, identifier, instance)


@pytest.fixture
def isolated(subject: BackendUnderTest) -> None:
    """Asked for by tests of what instances with files and processes of their own have."""
    if not subject.isolated:
        pytest.skip("the backend declares that its instances are not isolated")


# --- what it says of itself ------------------------------------------------------------------------------------------


def test_description(subject: BackendUnderTest) -> None:
    description = subject.description
    assert description.label
    assert isinstance(description.kind, IsolationKind)
    guest = description.kind in {IsolationKind.VIRTUAL_MACHINE, IsolationKind.EMULATED}
    assert bool(description.accelerator) == guest, "a guest has an accelerator, and nothing else has"
    for name, fact in description.facts.items():
        assert name
        assert fact.text
    for confound in description.confounds:
        assert confound.code
        assert confound.detail


def test_probe_and_facilities_say_why(subject: BackendUnderTest) -> None:
    facilities = dict(subject.backend.facilities())
    for found in (subject.backend.probe(), *facilities.values()):
        assert isinstance(found, Availability)
        assert found.reason
    assert all(isinstance(package, str) for package in subject.backend.packages(subject.backend.context.options))


def test_explain_starts_nothing(subject: BackendUnderTest) -> None:
    entries = subject.ledger.entries()
    identifier = "tare-explained-contract"
    lines = type(subject.backend)(subject.backend.context).explain(subject.spec(identifier))
    assert traces_of(identifier, subject.backend.context.work_directory) == []
    assert subject.ledger.entries() == entries
    require(tuple(lines))
    assert all(isinstance(line, str) and line for line in lines)


# --- commands --------------------------------------------------------------------------------------------------------


def test_output_and_status(live: Live) -> None:
    done = live.shell("printf out; printf err >&2")
    assert (done.returncode, done.signal, done.stdout, done.stderr) == (0, None, b"out", b"err")
    assert not done.timed_out


def test_exit_code(live: Live) -> None:
    assert live.shell("exit 7").returncode == 7


def test_signal_is_told_apart_from_exit_code(live: Live) -> None:
    done = live.shell("kill -TERM $$")
    assert (done.returncode, done.signal) == (None, 15)
    assert live.shell("exit 143").returncode == 143


def test_missing_program(live: Live) -> None:
    assert live.execute("no-such-program-here").returncode == 127
    assert live.execute("/no/such/program").returncode == 127


def test_program_that_is_not_executable(live: Live) -> None:
    assert live.execute("/etc/passwd").returncode == 126


def test_arguments_arrive_as_given(live: Live) -> None:
    arguments = ("", "two words", "$HOME", "quote'\"", "back\\slash", "new\nline", "ünï")
    done = live.execute("printf", r"%s\0", *arguments)
    assert done.stdout.decode().split("\0")[:-1] == list(arguments)


def test_environment(live: Live) -> None:
    done = live.shell('printf "%s|" "$GIVEN"; command -v ls', env={"GIVEN": "a=b c\nd"})
    value, _, found = done.stdout.decode().partition("|")
    assert value == "a=b c\nd"
    assert found.strip().endswith("/ls"), "PATH has to be set without being given"


def test_working_directory(live: Live) -> None:
    assert live.execute("pwd").stdout.strip() == b"/"
    assert live.execute("pwd", cwd="/usr/share").stdout.strip() == b"/usr/share"


def test_binary_stdin_and_stdout(live: Live) -> None:
    content = bytes(range(256)) * 17
    assert live.instance.execute(Command(("cat",), stdin=content)).stdout == content


def test_no_stdin_is_an_empty_one(live: Live) -> None:
    assert live.execute("cat", timeout_s=120).stdout == b""


def test_large_streams_do_not_deadlock(live: Live) -> None:
    content = os.urandom(4_000_000)
    script = "head -c 3000000 /dev/zero >&2; cat"
    done = live.instance.execute(Command(("sh", "-c", script), stdin=content))
    assert done.stdout == content
    assert done.stderr == bytes(3_000_000)


def test_unread_stdin_is_no_error(live: Live) -> None:
    assert live.instance.execute(Command(("true",), stdin=bytes(4_000_000))).returncode == 0


def test_times_bracket_the_program(live: Live) -> None:
    before = time.monotonic()
    done = live.execute("sleep", "0.3")
    after = time.monotonic()
    assert before <= done.started_s <= done.ended_s <= after
    assert done.duration_s >= 0.3


def left_after_timeout(live: Live, script: str) -> int:
    """How many processes that are told by their argument are there after a timeout."""
    mark = str(900_000_000 + os.getpid())
    done = live.shell(script.format(mark=mark), timeout_s=1.0)
    assert done.timed_out
    listing = live.shell("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; echo end")
    assert b"end" in listing.stdout, "the instance stays usable"
    return listing.stdout.decode(errors="replace").split("\n").count(mark)


def test_timeout_kills_the_whole_tree_and_the_instance_stays_usable(live: Live) -> None:
    assert left_after_timeout(live, "sleep {mark} & sleep {mark}") == 0


def test_timeout_also_kills_what_left_the_session(live: Live) -> None:
    assert left_after_timeout(live, "(setsid sleep {mark} &) ; setsid sleep {mark} & sleep {mark}") == 0


def test_a_command_that_ends_does_not_wait_for_what_it_left_running(live: Live) -> None:
    done = live.shell("sleep 300 & echo started", timeout_s=120)
    assert (done.stdout, done.timed_out) == (b"started\n", False)


def test_a_terminal(live: Live) -> None:
    user = Typist()
    command = Command(("sh", "-c", "stty size; printf 'name? '; read name; echo hello $name; tty -s && exit 5"))
    if not live.subject.backend.interactive:
        with pytest.raises(UnsupportedError):
            live.instance.interact(command, user)
        return
    assert live.instance.interact(command, user).returncode == 5
    assert b"40 100" in user.shown
    assert b"hello tare" in user.shown


# --- the envelope ----------------------------------------------------------------------------------------------------


def test_sees_as_many_cpus_as_the_envelope_has(live: Live) -> None:
    assert int(live.execute("nproc").stdout) == len(live.subject.envelope.cpus)


def test_every_thread_stays_on_the_envelope(live: Live) -> None:
    live.shell("sleep 20 & :")
    folders = cgroups_of(live.identifier)
    pids = {int(pid) for folder in folders for pid in (folder / "cgroup.procs").read_text().split()}
    require(pids or None, "no cgroup on this host is named by the instance")
    allowed = set(live.subject.envelope.cpus)
    found = []
    for thread in (int(task.name) for pid in pids for task in threads_of(pid)):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            found.append(os.sched_getaffinity(thread))
    assert found
    assert all(affinity <= allowed for affinity in found)


def test_usage_grows_with_work(live: Live) -> None:
    before, began = live.instance.usage(), time.monotonic()
    for field, reason in before.missing.items():
        assert getattr(before, field) is None
        assert reason
    require(before.cpu_s, before.missing.get("cpu_user_s"))
    live.execute("python3", "-c", "import time\nwhile time.process_time() < 0.6: pass")
    after, took = live.instance.usage(), time.monotonic() - began
    assert before.cpu_s is not None
    assert after.cpu_s is not None
    # A guest's clock and its host's need not agree to the millisecond; an emulator has threads of its own. A kernel
    # that is a process takes the time in which it had no CPU for its program's.
    least = 0.1 if live.subject.description.kind is IsolationKind.USER_MODE_KERNEL else 0.5
    assert least < after.cpu_s - before.cpu_s < took * 1.5 + 0.5
    require(after.memory_peak_bytes, after.missing.get("memory_peak_bytes"))
    assert (after.memory_peak_bytes or 0) > 1_000_000


def test_io_is_accounted(live: Live, isolated: None) -> None:
    before = live.instance.usage()
    require(before.io_write_bytes, before.missing.get("io_write_bytes"))
    script = f"dd if=/dev/zero of={SCRATCH}/io bs=1M count=8 oflag=direct 2>/dev/null && rm {SCRATCH}/io"
    assert live.shell(script).returncode == 0
    assert (live.instance.usage().io_write_bytes or 0) - (before.io_write_bytes or 0) >= 8 * 2**20


def test_steal_of_the_guest(live: Live) -> None:
    before = live.instance.guest_steal_s()
    require(before, "no kernel of its own, or one that does not tell")
    live.execute("true")
    assert 0 <= (before or 0) <= (live.instance.guest_steal_s() or 0)


def test_footprint(live: Live) -> None:
    held = live.instance.footprint()
    for value in (held.pss_bytes, held.private_bytes, held.cgroup_bytes):
        assert value is None or value > 0
    if held.pss_bytes is not None and held.private_bytes is not None:
        assert held.pss_bytes >= held.private_bytes
        assert held.processes >= 1
    assert held.disk_shared_bytes <= live.subject.image.size_bytes


def test_footprint_holds_what_it_wrote(live: Live, isolated: None) -> None:
    held = live.instance.footprint()
    live.shell(f"head -c 5000000 /dev/urandom > {SCRATCH}/held; sync")
    assert live.instance.footprint().disk_owned_bytes - held.disk_owned_bytes >= 4_000_000
    live.shell(f"rm {SCRATCH}/held")


def test_memory_limit_holds_and_the_instance_survives(live: Live) -> None:
    reason = live.subject.not_limited("memory")
    require(reason is None, reason)
    greedy = live.subject.envelope.memory_bytes * 3
    script = f"import mmap\nm = mmap.mmap(-1, {greedy})\nfor at in range(0, {greedy}, 4096): m[at] = 1\nprint('got it')"
    # Near the limit the kernel may evict and read back the program's own pages for minutes before it kills: the limit
    # holds all the same.
    done = live.execute("python3", "-c", script, timeout_s=30)
    assert b"got it" not in done.stdout
    assert done.signal == signal.SIGKILL or done.returncode not in {0, None}
    assert live.execute("true").returncode == 0


def test_the_limit_on_processes_holds_and_the_instance_survives(subject: BackendUnderTest) -> None:
    reason = subject.not_limited("pids")
    require(reason is None, reason)
    most = 64
    script = (
        "import os, signal, time\nchildren = []\ntry:\n"
        f" while len(children) < {2 * most}:\n  pid = os.fork()\n  if not pid: time.sleep(60)\n  children.append(pid)\n"
        "except OSError as error: print(error.errno)\n"
        "print(len(children))\nfor pid in children: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)"
    )
    envelope = msgspec.structs.replace(subject.envelope, pids_max=most)
    spec = msgspec.structs.replace(subject.spec(f"tare-{secrets.token_hex(4)}-pids"), envelope=envelope)
    with subject.backend.start(spec) as instance:
        done = instance.execute(Command(("python3", "-c", script), timeout_s=60))
        after = instance.execute(Command(("true",), timeout_s=60))
    said = [int(text) for text in done.stdout.split()]
    assert len(said) == 2, done
    assert said[0] == errno.EAGAIN
    assert 0 < said[1] <= most
    assert after.returncode == 0


def test_a_cpu_quota_holds(subject: BackendUnderTest) -> None:
    """Of a CPU that a loop wants whole, it gets the share that the envelope states."""
    quota, wall_s = 0.3, 2.0
    envelope = msgspec.structs.replace(subject.envelope, cpu_quota=quota)
    spec = msgspec.structs.replace(subject.spec(f"tare-{secrets.token_hex(4)}-quota"), envelope=envelope)
    loop = f"import time\nend = time.monotonic() + {wall_s}\nwhile time.monotonic() < end: pass"
    with subject.backend.start(spec) as instance:
        before, began = instance.usage(), time.monotonic()
        if before.cpu_throttled_s is not None:
            instance.execute(Command(("python3", "-c", loop), timeout_s=60))
        after, took_s = instance.usage(), time.monotonic() - began
    # Not before the exit: what an instance is left with by an exception stays in the ledger.
    require(before.cpu_throttled_s, before.missing.get("cpu_throttled_s", "no quota on CPU time is enforced"))
    assert before.cpu_s is not None
    assert after.cpu_s is not None
    assert after.cpu_s - before.cpu_s <= quota * (took_s + 0.2) + 0.1
    assert (after.cpu_throttled_s or 0) > (before.cpu_throttled_s or 0)


# --- the network -----------------------------------------------------------------------------------------------------

SERVE = """
import os, socket, sys
server = socket.create_server((sys.argv[1], 0))
if os.fork():
    print(server.getsockname()[1])
else:
    os.close(1)
    client, _ = server.accept()
    client.send(b"reached")
"""
CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 20).recv(99).decode())"


def test_an_instance_with_an_address_is_reached_there_and_one_without_has_no_other_side(live: Live) -> None:
    subject, spec = live.subject, live.subject.spec(live.identifier + "-host")
    if live.instance.address is None:
        with pytest.raises(UnsupportedError), subject.backend.host_side(spec):
            pass
        return
    with subject.backend.host_side(spec) as side:
        for server, client in ((live.instance, side), (side, live.instance)):
            assert server.address
            done = server.execute(Command(("python3", "-c", SERVE, server.address)))
            assert done.returncode == 0, done.stderr
            reach = Command(("python3", "-c", CONNECT, server.address, done.stdout.decode().strip()))
            assert client.execute(reach).stdout == b"reached\n"


# --- the life of an instance -----------------------------------------------------------------------------------------


def test_instances_leave_nothing_and_tell_when_it_happened(subject: BackendUnderTest) -> None:
    entries = subject.ledger.entries()
    identifier, starting = subject.start()
    with starting as instance:
        assert instance.execute(Command(("true",))).returncode == 0
        instance.await_idle()
    marks = [phase for phase, _ in sorted(instance.timeline.marks.items(), key=lambda mark: mark[1])]
    assert set(marks) >= ALWAYS
    assert marks == [phase for phase in Phase if phase in marks]
    start = (Phase.REQUESTED, Phase.CREATED, Phase.FIRST_INSTRUCTION, Phase.READY)
    assert all(instance.timeline.between(*pair) for pair in itertools.pairwise(start)), "each takes time"
    assert traces_of(identifier, subject.backend.context.work_directory) == []
    assert subject.ledger.entries() == entries


def test_the_hosts_devices_stay_as_they_are(subject: BackendUnderTest) -> None:
    """An engine may give what it is handed as a standard stream to the user inside: never a node of the host's."""
    nodes = [Path("/dev", name) for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx")]

    def states() -> dict[Path, tuple[int, int, int]]:
        found = {path: path.stat() for path in nodes if path.exists()}
        return {path: (status.st_mode, status.st_uid, status.st_gid) for path, status in found.items()}

    before = states()
    with subject.start()[1] as instance:
        instance.execute(Command(("true",)))
    assert states() == before


def test_instances_are_private(subject: BackendUnderTest, isolated: None, live: Live) -> None:
    live.shell(f"echo mine > {SCRATCH}/mine; echo mine > /root/mine")
    _, starting = subject.start()
    with starting as instance:
        script = f"cat {SCRATCH}/mine /root/mine 2>/dev/null; touch {SCRATCH}/b /root/b; echo /usr/*"
        seen = instance.execute(Command(("sh", "-c", script)))
        assert b"mine" not in seen.stdout
        assert b"bin" in seen.stdout
    assert live.shell(f"ls {SCRATCH}/b /root/b").returncode != 0
    kept = f"{SCRATCH}/mine" if ConfoundCode.IMAGE_READ_ONLY in subject.declared else f"{SCRATCH}/mine /root/mine"
    assert live.shell(f"cat {kept}").stdout == b"mine\n" * len(kept.split())
    assert not (subject.image.rootfs / "root/b").exists()
    assert not (subject.image.rootfs / "root/mine").exists()


def test_as_many_start_at_once_as_it_says_and_end_at_once(subject: BackendUnderTest) -> None:
    at_once = min(subject.backend.concurrent_starts, 3)
    require(at_once > 1, "it starts one at a time")
    subject.backend.expect_starts(at_once)
    begun = [subject.start() for _ in range(at_once)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(at_once) as pool:
        entering = [pool.submit(starting.__enter__) for _, starting in begun]
        for (_, starting), entered in zip(begun, entering, strict=True):
            entered.result()
            stack.push(starting.__exit__)
        instances = [entered.result() for entered in entering]
        for number, instance in enumerate(instances):
            assert instance.execute(Command(("sh", "-c", f"exit {number}"))).returncode == number
        for instance in instances:
            instance.end()
    for identifier, _ in begun:
        assert traces_of(identifier, subject.backend.context.work_directory) == []


def test_the_end_of_an_instance_is_told_by_its_descriptor(subject: BackendUnderTest) -> None:
    identifier, starting = subject.start()
    with starting as instance:
        descriptor = instance.gone_descriptor()
        pids = processes_of(identifier)
        if descriptor is not None and pids:
            assert not is_readable(descriptor)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert is_readable(descriptor, GONE_WITHIN_S)
            with pytest.raises(TareError):
                instance.execute(Command(("true",)))
    assert traces_of(identifier, subject.backend.context.work_directory) == []
    require(descriptor)
    require(pids or None, "no process on this host is named by the instance")


def test_what_a_killed_owner_leaves_is_reclaimed(
    subject: BackendUnderTest, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = request.node.callspec.params["subject"]
    image = msgspec.json.encode(subject.image, enc_hook=str).decode()
    work = subject.backend.context.work_directory / "killed"
    work.mkdir()
    argv = [sys.executable, "-m", "tare.bench.testing.subject", name, str(tmp_path), str(work), image]
    with Popen([*argv, *request.config.getoption("--tare-option")], stdin=PIPE, stdout=PIPE) as owner:
        assert owner.stdout is not None
        identifier = owner.stdout.readline().decode().strip()
        assert identifier
        owner.kill()
    cleaned = clean(tmp_path, lambda _: subject.backend.reclaim)
    assert cleaned.failure() is None
    assert cleaned.removed
    assert traces_of(identifier, work) == []
    assert list(work.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
    work.rmdir()
