"""What goes wrong in a native or bare-metal instance is said once, clearly, and leaves nothing."""

import contextlib
import os
import select
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from tare.backends.native import zygote as program
from tare.backends.native.options import NativeOptions
from tare.bench.errors import BackendError, OutputTooLargeError, WorkloadError
from tare.bench.ledger import Ledger, ResourceKind, clean
from tare.bench.model import Command, Phase
from tare.bench.process import PIPE, Popen
from tests.privileged.host_kernel import BACKENDS, ENVELOPE, our_cgroups, spec, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]


@pytest.fixture(params=list(BACKENDS))
def backend(request, image, tmp_path):
    with (
        Ledger(tmp_path / "ledger") as ledger,
        start_backend(request.param, image, tmp_path / "work", ledger) as prepared,
    ):
        kinds = [entry.kind for entry in ledger.entries()]
        yield prepared
        zygotes = [ResourceKind.PROCESS] * (len(prepared._zygotes.pids()) - 1)  # the first is in both
        assert sorted(entry.kind for entry in ledger.entries()) == sorted([*kinds, *zygotes])
        assert our_cgroups() == []


def test_an_image_that_is_not_there(image, tmp_path):
    broken = msgspec.structs.replace(image, rootfs=tmp_path / "nowhere")
    with (
        Ledger(tmp_path / "ledger") as ledger,
        pytest.raises(BackendError, match=r"mount overlay .*No such file or directory") as raised,
        start_backend("native", broken, tmp_path / "work", ledger),
    ):
        pass
    assert "errno 2" in raised.value.evidence
    assert list((tmp_path / "work").iterdir()) == []
    assert our_cgroups() == []


def test_a_working_folder_with_separators_in_its_name(image, tmp_path):
    folder = tmp_path / "a:b,c d"
    with Ledger(tmp_path / "ledger") as ledger, start_backend("native", image, folder, ledger) as backend:  # noqa: SIM117
        with backend.start(spec("odd", image)) as instance:
            assert instance.execute(Command(("sh", "-c", "echo x > /x && cat /x"))).stdout == b"x\n"


def test_working_directory_that_is_not_there(backend, image):
    with backend.start(spec("cwd", image)) as instance:
        with pytest.raises(WorkloadError, match="working directory /nowhere: No such file"):
            instance.execute(Command(("true",), cwd="/nowhere"))
        assert instance.execute(Command(("true",))).returncode == 0


def test_nul_in_an_argument(backend, image):
    with backend.start(spec("nul", image)) as instance, pytest.raises(WorkloadError, match="NUL"):
        instance.execute(Command(("echo", "a\0b")))


def test_an_interrupted_command_ends_with_its_instance(backend, image):
    with backend.start(spec("interrupt", image)) as instance:
        previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt):
                instance.execute(Command(("sleep", "30")))
        finally:
            signal.signal(signal.SIGALRM, previous)
        with pytest.raises(BackendError):
            instance.execute(Command(("true",)))


def test_the_zygote_dies_while_an_instance_lives(backend, image):
    with backend.start(spec("orphan", image)) as instance:
        os.kill(backend._zygotes.pids()[-1], signal.SIGKILL)
        with pytest.raises(BackendError, match="the instance is gone"):
            instance.execute(Command(("sleep", "30")))
    with backend.start(spec("next", image)) as instance:
        assert instance.execute(Command(("true",))).returncode == 0


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_zygote_killed_while_it_is_prepared_is_replaced(name, image, tmp_path, monkeypatch):
    begin, killed = program.Zygote.begin, []

    def begin_and_be_killed(zygote, cpus):
        if len(killed) < 2:
            os.kill(zygote.pid, signal.SIGKILL)
            killed.append(zygote.pid)
        begin(zygote, cpus)

    monkeypatch.setattr(program.Zygote, "begin", begin_and_be_killed)
    with Ledger(tmp_path / "ledger") as ledger, start_backend(name, image, tmp_path / "work", ledger) as prepared:
        assert len(killed) == 2
        with prepared.start(spec("after", image)) as instance:
            assert instance.execute(Command(("true",))).returncode == 0
    assert list((tmp_path / "work").iterdir()) == our_cgroups() == []


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_zygote_killed_at_each_start_is_a_failure_that_says_so(name, image, tmp_path, monkeypatch):
    request = program.Zygote.request

    def request_and_be_killed(zygote, *rest):
        os.kill(zygote.pid, signal.SIGKILL)
        return request(zygote, *rest)

    monkeypatch.setattr(program.Zygote, "request", request_and_be_killed)
    with (
        Ledger(tmp_path / "ledger") as ledger,
        pytest.raises(BackendError, match=r"the zygote that makes instances ended \(signal 9\)"),
        start_backend(name, image, tmp_path / "work", ledger),
    ):
        pass
    assert list((tmp_path / "work").iterdir()) == our_cgroups() == []


def test_starts_that_come_together_have_a_zygote_each(backend, image):
    with ThreadPoolExecutor(backend.concurrent_starts) as threads, contextlib.ExitStack() as stack:
        starts = [spec(f"together-{number}", image) for number in range(3 * backend.concurrent_starts)]
        alive = list(threads.map(lambda one: stack.enter_context(backend.start(one)), starts))
        assert len({instance.pid for instance in alive}) == len(alive)
        zygotes = backend._zygotes.pids()
        assert 1 < len(zygotes) <= backend.concurrent_starts
        victim = _parent(alive[0].pid)
        dead = [one for one in alive if _parent(one.pid) == victim]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(BackendError, match="because the zygote that made it ended"):
            dead[0].execute(Command(("sleep", "30")))
        others = [one for one in alive if one not in dead]
        assert [one.execute(Command(("true",))).returncode for one in others] == [0] * len(others)
        for number in range(len(zygotes)):
            one = stack.enter_context(backend.start(spec(f"next-{number}", image)))
            assert _parent(one.pid) != victim


def _parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_init_is_killed(backend, image):
    with backend.start(spec("killed", image)) as instance:
        os.kill(instance.pid, signal.SIGKILL)
        with pytest.raises(BackendError, match=f"init \\(pid {instance.pid}\\) ended"):
            instance.execute(Command(("true",)))


def test_a_fork_bomb_meets_the_limit_and_is_stopped(backend, image):
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    with backend.start(spec("bomb", image)) as instance:
        began = time.monotonic()
        done = instance.execute(Command(("python3", "-c", bomb), timeout_s=1.5))
        assert done.timed_out
        assert time.monotonic() - began < 20
        assert instance.cgroup.members() == [instance.pid]
        assert instance.execute(Command(("echo", "alive"))).stdout == b"alive\n"


def test_an_instance_is_stopped_while_a_fork_bomb_runs(backend, image):
    with backend.start(spec("bomb", image)) as instance:
        instance.execute(
            Command(
                ("sh", "-c", "python3 -c 'import os\nwhile True:\n try: os.fork()\n except OSError: pass' & sleep 1")
            )
        )
        assert len(instance.cgroup.members()) > 50
    assert instance.timeline.between(Phase.STOP_REQUESTED, Phase.STOPPED) < 10


def test_out_of_memory_is_counted(backend, image):
    small = msgspec.structs.replace(ENVELOPE, memory_bytes=64 * 2**20)
    with backend.start(spec("oom", image, small)) as instance:
        done = instance.execute(Command(("python3", "-c", "x = b'1' * (200 << 20)")))
        assert done.signal == signal.SIGKILL
        assert instance.usage().oom_kills == 1
        assert 48 * 2**20 < instance.usage().memory_peak_bytes <= 64 * 2**20
        assert instance.execute(Command(("true",))).returncode == 0


def test_output_counts_against_neither_memory_nor_io(backend, image):
    small = msgspec.structs.replace(ENVELOPE, memory_bytes=48 * 2**20)
    with backend.start(spec("output", image, small)) as instance:
        done = instance.execute(Command(("head", "-c", "150000000", "/dev/zero"), timeout_s=30))
        assert done.whole["stdout"].seek(0, os.SEEK_END) == 150_000_000
        # What tare writes meanwhile may have the kernel write a few blocks of the journal on the instance's account.
        assert (instance.usage().io_write_bytes or 0) < 100_000


def test_orphans_are_reaped(backend, image):
    with backend.start(spec("reaper", image)) as instance:
        instance.execute(Command(("sh", "-c", "for i in 1 2 3; do (sleep 0.2 &) ; done")))
        deadline = time.monotonic() + 60
        while len(instance.cgroup.members()) > 1 or zombies_of(instance.pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def zombies_of(parent):
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                state, owner = (process / "stat").read_text().rpartition(")")[2].split()[:2]
                if state == "Z" and int(owner) == parent:
                    found.append(process.name)
    return found


def test_many_starts_leave_nothing(backend, image):
    mounts = Path("/proc/self/mountinfo").read_text()
    folder = backend._prepared.folder
    names = sorted(path.name for path in folder.iterdir())
    for _ in range(25):
        with backend.start(spec("many", image)):
            pass
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len(list(Path(f"/proc/{backend._zygotes.pids()[-1]}/fd").iterdir())) == 4, "streams, channel"


KILLED_RUN = """
import os, sys, time
from pathlib import Path
import msgspec
from tare.bench.ledger import Ledger
from tare.bench.model import Command, Image
from tests.privileged.host_kernel import spec, start_backend
name, rootfs, folder = sys.argv[1:]
image = Image("", "", Path(rootfs), Path(rootfs), None, None, None, "", {}, 0)
with Ledger(Path(folder) / "ledger") as ledger, start_backend(name, image, Path(folder) / "work", ledger) as backend:
    with backend.start(spec("victim", image)) as instance:
        instance.execute(Command(("sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 & sleep 0.1")))
        print(*instance.cgroup.members(), backend._zygotes.pids()[-1], flush=True)
        instance.execute(Command(("sleep", "1000"), timeout_s=1000))
"""


@pytest.mark.parametrize("name", list(BACKENDS))
def test_nothing_survives_a_killed_harness(name, image, tmp_path):
    argv = [sys.executable, "-c", KILLED_RUN, name, str(image.rootfs), str(tmp_path)]
    with Popen(argv, stdout=PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3, "init, the orphan, the zygote"
        descriptors = [os.pidfd_open(pid) for pid in pids]
        process.kill()
    for descriptor in descriptors:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(10_000), "still there ten seconds after its harness was killed"
        os.close(descriptor)
    cleaned = clean(tmp_path / "ledger")
    assert cleaned.failed == ()
    assert {entry.kind for entry in cleaned.removed} >= {"cgroup", "directory"}
    assert list((tmp_path / "work").iterdir()) == []
    assert list((tmp_path / "ledger").iterdir()) == []


def test_a_command_that_prints_without_end_is_ended(backend, image, monkeypatch):
    monkeypatch.setattr("tare.bench.spool.MAX_OUTPUT_BYTES", 8 * 2**20)
    with (
        pytest.raises(OutputTooLargeError, match="cat printed more than 8 MiB"),
        backend.start(spec("endless", image)) as instance,
    ):
        instance.execute(Command(("cat", "/dev/zero")))


def test_a_filesystem_whose_owners_cannot_be_mapped(image, tmp_path):
    # /proc takes no idmapped mount, as older kernels' file systems do.
    broken = msgspec.structs.replace(image, rootfs=Path("/proc"))
    options = NativeOptions(user_namespace=True)
    with (
        Ledger(tmp_path / "ledger") as ledger,
        pytest.raises(
            BackendError, match=r"setting up what all instances share failed at step .* mount /proc"
        ) as raised,
        start_backend("native", broken, tmp_path / "work", ledger, options),
    ):
        pass
    assert "errno 22" in raised.value.evidence
    assert list((tmp_path / "work").iterdir()) == []
    assert our_cgroups() == []
