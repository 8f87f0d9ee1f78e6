"""The daemon of an engine: its readiness, its end, what it leaves, and what of its CPU time is an instance's."""

import contextlib
import os
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tare.backends.cgroups.layout import find_layout
from tare.backends.engines.daemon import DaemonFolder, start_daemon
from tare.backends.engines.groups import Groups, start_groups
from tare.backends.native.zygote import find_program
from tare.bench.errors import BackendError
from tare.bench.ledger import Ledger
from tare.bench.linux.memory import process_footprint
from tare.bench.linux.processes import find_status
from tare.bench.locations import cache_directory, work_directory

pytestmark = [pytest.mark.root, pytest.mark.tools]

SAYS_READY = """
import os, socket, subprocess, sys
open("/etc/tare-was-here", "w").close()
child = subprocess.Popen(["setsid", "sleep", "3600"])
busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
print([line.split(':')[0].strip() for line in open('/proc/net/dev')][2:], flush=True)
to.sendto(b"STATUS=nearly", os.environ["NOTIFY_SOCKET"])
to.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
child.wait()
"""


@pytest.fixture
def place(tmp_path):
    folder = work_directory() / f"tare-daemon-{secrets.token_hex(4)}" / ("long" * 30)
    folder.mkdir(parents=True)
    program = folder / "program"
    program.write_bytes(find_program(cache_directory(), tmp_path).content)
    program.chmod(0o755)
    with Ledger(tmp_path / "ledger") as ledger:
        yield folder, program, ledger
        assert ledger.entries() == ()
    shutil.rmtree(folder.parent)


@contextlib.contextmanager
def running(place, script, **more):
    folder, program, ledger = place
    name = f"tare-daemon-{secrets.token_hex(4)}"
    argv = [sys.executable, "-c", script]
    cpus = (max(os.sched_getaffinity(0)),)
    with start_daemon(
        ledger, program, argv, DaemonFolder(folder / "daemon"), name, layout=find_layout(), cpus=cpus, **more
    ) as daemon:
        yield daemon


def test_a_daemon_lives_apart_from_the_host_and_leaves_nothing(place):
    with running(place, SAYS_READY) as daemon:
        members = daemon.cgroup.members()
        assert daemon.pid in members
        assert len(members) == 3, "what it starts is in its cgroup, whatever session it makes"
        assert "['lo']" in daemon.printed()
        assert not Path("/etc/tare-was-here").exists()
        assert daemon.memory_bytes() == pytest.approx(process_footprint(members)[0], rel=0.2)
        assert daemon.is_alive()
        folders = daemon.cgroup.folders
    assert [pid for pid in members if find_status(pid) is not None] == [], "zombies are init's"
    assert [folder for folder in folders if folder.exists()] == []


def test_a_second_daemon_goes_on_in_the_same_folder(place):
    for _ in range(2):
        with running(place, SAYS_READY) as daemon:
            os.kill(daemon.pid, signal.SIGKILL)
            os.waitid(os.P_PID, daemon.pid, os.WEXITED | os.WNOWAIT)
            assert not daemon.is_alive()
            with pytest.raises(BackendError, match="has ended"):
                daemon.require_alive()


def test_one_that_ends_before_it_is_ready_says_why(place):
    with pytest.raises(BackendError, match="no such storage"), running(place, "print('no such storage'); exit(1)"):
        pass


def test_one_that_is_silent_is_killed_at_its_deadline(place):
    began = time.monotonic()
    with (
        pytest.raises(BackendError, match="was not ready within its deadline"),
        running(place, "import time; time.sleep(3600)", deadline_s=0.5),
    ):
        pass
    assert time.monotonic() - began < 10


def test_what_a_helper_used_is_the_instances_and_no_longer_the_daemons(place):
    _, _, ledger = place
    with running(place, SAYS_READY) as daemon:
        groups = Groups(find_layout(), f"tare-{secrets.token_hex(4)}", at_top=True, container="container")
        with start_groups(ledger, groups, daemon.cgroup.folders):
            groups.make({"cpus": (max(os.sched_getaffinity(0)),)}, (), premade=True)
            helper = max(daemon.cgroup.members())  # that which never rests
            while daemon.cpu_s() < 0.5:
                time.sleep(0.05)
            daemon.hand_over(groups.take_in(helper))
            assert helper not in daemon.cgroup.members()
            taken, memory = groups.share()
            left = daemon.cpu_s()
            assert taken > 0.3
            assert memory > 0
            while groups.share()[0] < taken + 0.2:
                time.sleep(0.05)
            assert daemon.cpu_s() - left < 0.1, "what it uses now is charged to the instance's group"
