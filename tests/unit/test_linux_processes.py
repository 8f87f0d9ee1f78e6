"""Ending processes: all of them, with few descriptors, however they fork; and what /proc says of a process."""

import contextlib
import mmap
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from tare.bench.linux.files import HostRoots
from tare.bench.linux.processes import find_status, kill_all, read_statuses, signal_all, threads_of, wait_ended
from tare.bench.process import DEVNULL, Popen


def children(parent):
    return [pid for pid, status in read_statuses().items() if status.parent == parent]


@pytest.fixture
def crowd():
    """A shell with 400 children."""
    script = "i=0; while [ $i -lt 400 ]; do sleep 100 & i=$((i+1)); done; wait"
    with Popen(["sh", "-c", script], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL) as shell:
        deadline = time.monotonic() + 30
        while len(children(shell.pid)) < 400:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield shell
        shell.kill()


def test_more_processes_are_killed_than_there_are_descriptors(crowd):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 300, hard))
    try:
        assert kill_all(lambda: children(crowd.pid))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert children(crowd.pid) == []
    assert not kill_all(lambda: children(crowd.pid))


def test_what_is_found_while_they_stand_still_is_killed(crowd):
    held = []

    @contextlib.contextmanager
    def hold():
        os.kill(crowd.pid, signal.SIGSTOP)
        held.append(len(children(crowd.pid)))
        yield

    assert kill_all(lambda: [crowd.pid, *children(crowd.pid)] if crowd.poll() is None else [], hold=hold)
    assert held[0] == 400
    assert crowd.wait(10) == -signal.SIGKILL


def test_this_process_is_never_signalled():
    assert signal_all([os.getpid()]) == []
    wait_ended([], 0.0)


def test_a_name_can_hold_anything(tmp_path):
    (tmp_path / "7").mkdir()
    fields = [
        "S",
        "1",
        *["0"] * 9,
        "250",
        "50",
        "100",
        "25",
        *["0"] * 4,
        "4242",
        "0",
        "3",
        *["0"] * 14,
        "3",
        "0",
        "0",
        "0",
        "75",
    ]
    (tmp_path / "7/stat").write_bytes(b"7 (a) b\xff(c) " + " ".join(fields).encode())
    status = find_status(7, HostRoots(tmp_path))
    assert (status.name, status.parent, status.started, status.cpu) == ("a) b\ufffd(c", 1, 4242, 3)
    assert (status.user_s, status.system_s, status.waited_user_s, status.waited_system_s) == (2.5, 0.5, 1.0, 0.25)
    assert (status.cpu_s, status.guest_s, status.resident_bytes) == (3.0, 0.75, 3 * mmap.PAGESIZE)


def test_threads_of_the_kernel_are_told_from_processes():
    statuses = read_statuses()
    kernels = {pid for pid, status in statuses.items() if status.is_kernel_thread}
    assert os.getpid() not in kernels
    assert {pid for pid in kernels if statuses[pid].resident_bytes} == set(), "they have no memory of their own"
    assert all(statuses[pid].parent in {0, 2} for pid in kernels)


@pytest.mark.parametrize("text", ["", "7 (sh) Z 1 0", "7 (sh) Z " + "0 " * 50])
def test_what_is_gone_or_a_zombie_has_no_status(tmp_path, text):
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text(text)
    roots = HostRoots(tmp_path)
    assert find_status(7, roots) is find_status(8, roots) is None
    assert read_statuses(roots) == {}
    assert read_statuses(HostRoots(tmp_path / "nowhere")) == {}
    assert threads_of(7, roots) == []
