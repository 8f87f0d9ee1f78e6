"""What only a host whose cgroups are all v2 can show. Runs in a guest, as ``test_native_v2.py``."""

import os
from pathlib import Path

import pytest

from backends.cgroups.layout import Version, find_layout
from backends.cgroups.v2 import V2Cgroup
from bench.ledger import Ledger
from bench.model import SCRATCH, Command
from tests.privileged.host_kernel import ENVELOPE, spec, start_backend

CONTROLLERS = {"cpu", "cpuset", "io", "memory", "pids"}
TOP = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module", params=["native", "bare-metal"])
def backend(request, image, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with Ledger(folder / "ledger") as ledger, start_backend(request.param, image, folder / "work", ledger) as backend:
        yield backend


@pytest.fixture(scope="module")
def instance(backend, image):
    with backend.start(spec("v2", image)) as started:
        yield started


def python(instance, script, **more):
    return instance.execute(Command(("python3", "-c", script), **more))


def test_this_host_has_v2_only():
    layout = find_layout()
    assert layout.version is Version.V2
    assert layout.controllers == {}
    assert layout.missing() == ()


def test_nothing_is_said_to_be_missing(backend, image):
    description = backend.prepare(image, ENVELOPE)
    assert description.facts["cgroups"] == "v2"
    assert set(description.facts["controllers"].split(",")) >= CONTROLLERS
    assert not [confound.code for confound in description.confounds if confound.code.endswith("-controller")]


def test_our_own_group_is_left_as_it_was(instance):
    own = find_layout().unified
    if own == TOP:
        return  # the one group that may have both processes and controllers
    assert (own / "cgroup.subtree_control").read_text().strip() == ""
    assert (own / "cgroup.type").read_text().strip() == "domain"
    assert str(os.getpid()) in (own / "cgroup.procs").read_text().split()


def test_the_first_process_is_born_in_its_cgroup(instance):
    assert isinstance(instance.cgroup, V2Cgroup)
    (folder,) = instance.cgroup.folders
    assert instance.cgroup.clone_into == folder
    assert instance.cgroup.join_files_after_clone == (), "then clone3 alone can have put it there"
    assert instance.pid in instance.cgroup.members()
    assert set((folder / "cgroup.controllers").read_text().split()) >= CONTROLLERS


def test_limits_are_set(instance):
    (folder,) = instance.cgroup.folders
    files = ("memory.max", "pids.max", "cpuset.cpus.effective")
    expected = [str(ENVELOPE.memory_bytes), str(ENVELOPE.pids_max), str(ENVELOPE.cpus[0])]
    assert [(folder / file).read_text().strip() for file in files] == expected


def test_memory_limit_kills_and_is_counted(instance):
    before = instance.usage().oom_kills
    greedy = ENVELOPE.memory_bytes * 2
    script = f"import mmap\nm = mmap.mmap(-1, {greedy})\nfor at in range(0, {greedy}, 4096): m[at] = 1"
    assert python(instance, script, timeout_s=120).signal == 9
    usage = instance.usage()
    assert usage.oom_kills == before + 1
    assert ENVELOPE.memory_bytes * 0.9 < usage.memory_peak_bytes <= ENVELOPE.memory_bytes
    assert usage.memory_current_bytes < ENVELOPE.memory_bytes / 2


def test_pids_limit_holds(instance):
    script = (
        "import os, signal\nmade = []\n"
        "try:\n"
        "    while len(made) < 1000:\n"
        "        pid = os.fork()\n"
        "        if pid == 0: signal.pause()\n"
        "        made.append(pid)\n"
        "except BlockingIOError: pass\n"
        "print(len(made))\n"
        "for pid in made: os.kill(pid, 9)"
    )
    done = python(instance, script, timeout_s=120)
    assert ENVELOPE.pids_max - 10 <= int(done.stdout) < ENVELOPE.pids_max


def test_a_process_cannot_leave_its_cpus(instance):
    script = "import os\nos.sched_setaffinity(0, range(os.cpu_count()))\nprint(*os.sched_getaffinity(0))"
    assert python(instance, script).stdout.split() == [str(ENVELOPE.cpus[0]).encode()]


def test_all_of_usage_is_accounted(instance):
    before = instance.usage()
    assert before.missing == {}
    file = f"{SCRATCH}/io"
    script = (
        f"dd if=/dev/zero of={file} bs=1M count=4 oflag=direct && dd if={file} of=/dev/null bs=1M iflag=direct"
        " && python3 -c 'import time\nwhile time.process_time() < 0.3: pass'"
    )
    assert instance.execute(Command(("sh", "-c", script), timeout_s=60)).returncode == 0
    after = instance.usage()
    assert after.io_write_bytes - before.io_write_bytes >= 4 * 2**20
    assert after.io_read_bytes - before.io_read_bytes >= 4 * 2**20
    assert after.cpu_user_s - before.cpu_user_s >= 0.25
    assert after.cpu_system_s > before.cpu_system_s
    assert after.cpu_throttled_s == 0
