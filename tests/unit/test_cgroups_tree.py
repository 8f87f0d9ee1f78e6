"""Where an ordinary user may make no cgroup: a tree of real processes, counted, accounted for and killed."""

import os
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from tare.backends.cgroups.layout import Layout, Version, find_layout
from tare.backends.cgroups.lifecycle import begin_cgroup, complete_cgroup
from tare.bench.errors import UnavailableError
from tare.bench.ledger import Ledger
from tare.bench.process import DEVNULL, Popen

LIMITS = {"cpus": (0,), "memory_bytes": 1, "pids_max": 1, "io_device": "8:0", "cpu_quota": 0.5}
NOWHERE = Layout(Version.NONE, {}, None, unprivileged=True)


@pytest.fixture
def tree(tmp_path):
    script = "sleep 100 & (sleep 100 & sleep 100) & while :; do :; done"
    with Ledger(tmp_path) as ledger, Popen(["sh", "-c", script], stdout=DEVNULL, stderr=DEVNULL) as process:
        try:
            with begin_cgroup(ledger, "tree", NOWHERE) as cgroup:
                cgroup.adopt(process.pid)
                yield cgroup, process
        finally:
            process.kill()
    assert process.returncode == -9


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_members_are_found_accounted_for_and_killed(tree):
    cgroup, process = tree
    wait_for(lambda: len(cgroup.members()) == 4)
    wait_for(lambda: cgroup.meter.usage().cpu_user_s > 0.1)
    usage = cgroup.meter.usage()
    absent = {name for name in usage.__struct_fields__ if getattr(usage, name) is None}
    assert absent - {"cpu_vcpu_s"} == set(usage.missing)
    cgroup.kill(keep=(process.pid,))
    assert cgroup.members() == [process.pid]


def test_no_limit_is_enforced_and_each_is_told(tree):
    cgroup, _ = tree
    unenforced = complete_cgroup(cgroup, LIMITS)
    assert set(unenforced) == {"cpus", "memory_bytes", "pids_max", "cpu_quota"}
    assert {cgroup.meter.read(name) for name in ("oom_kills", "pids_refused", "memory_current_bytes")} == {None}


def test_a_process_that_took_the_number_of_a_gone_init_is_left_alone(tree):
    cgroup, process = tree
    started, cgroup.meter._started = cgroup.meter._started, 1
    assert cgroup.members() == []
    cgroup.kill()
    assert process.poll() is None
    cgroup.meter._started = started


def test_root_without_any_hierarchy_has_something_to_mend(tmp_path):
    with (
        Ledger(tmp_path) as ledger,
        pytest.raises(UnavailableError, match="no cgroup hierarchy"),
        begin_cgroup(ledger, "x", msgspec.structs.replace(NOWHERE, unprivileged=False)),
    ):
        pass


@pytest.fixture
def open_folder():
    """A folder that an ordinary user can read; pytest's own lie in one that only root can."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become an ordinary user")
def test_groups_that_are_not_ours_do_not_count(open_folder):
    tmp_path = open_folder
    (tmp_path / "proc/self").mkdir(parents=True)
    mounts = "35 24 0:30 / /cg/pids rw - cgroup cgroup rw,pids\n36 24 0:31 / /cg/cpu rw - cgroup cgroup rw,cpu\n"
    (tmp_path / "proc/self/mountinfo").write_text(mounts)
    (tmp_path / "proc/self/cgroup").write_text("2:pids:/\n1:cpu:/mine\n")
    (tmp_path / "cg/pids").mkdir(parents=True)
    (tmp_path / "cg/cpu/mine").mkdir(parents=True)
    os.chown(tmp_path / "cg/cpu/mine", 54321, -1)
    assert set(find_layout(tmp_path).controllers) == {"pids", "cpu"}
    pid = os.fork()
    if pid == 0:
        os.setresuid(54321, 54321, 54321)
        layout = find_layout(tmp_path)
        os._exit(0 if set(layout.controllers) == {"cpu"} and layout.unprivileged else 1)
    assert os.waitpid(pid, 0)[1] == 0
