"""Where QEMU's threads run: set, and looked at before it is said."""

import os
import threading
from pathlib import Path

import pytest

from tare.backends.vm import pinning
from tare.backends.vm.pinning import Placement, place_threads
from tare.bench.errors import BackendError

CPUS = tuple(sorted(os.sched_getaffinity(0)))

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")


@pytest.fixture
def process():
    """A stand-in of QEMU: threads of this process with its names. They end with the test."""
    done = threading.Event()
    named = threading.Barrier(4)

    def run(name):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        named.wait()
        done.wait()

    threads = [threading.Thread(target=run, args=(name,)) for name in ("CPU 0/KVM", "CPU 1/KVM", "IO iothread1")]
    for thread in threads:
        thread.start()
    named.wait()
    yield {thread.native_id: Path(f"/proc/self/task/{thread.native_id}/comm").read_text().strip() for thread in threads}
    done.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def place(process, monkeypatch):
    """Places those threads, and says where they are by name."""
    monkeypatch.setattr(pinning, "threads_of", lambda _pid: [Path(f"/proc/self/task/{thread}") for thread in process])

    def placed(placement):
        place_threads(os.getpid(), placement)
        return {name: os.sched_getaffinity(thread) for thread, name in process.items()}

    return placed


def test_each_vcpu_has_a_cpu_and_the_others_theirs(place):
    where = place(Placement(CPUS[:2], frozenset(CPUS[:1]), pinned=True))
    assert where == {"CPU 0/KVM": {CPUS[0]}, "CPU 1/KVM": {CPUS[1]}, "IO iothread1": {CPUS[0]}}
    where = place(Placement(CPUS[1:2] * 2, frozenset(CPUS[:2]), pinned=False))
    assert where == {"CPU 0/KVM": {CPUS[1]}, "CPU 1/KVM": {CPUS[1]}, "IO iothread1": set(CPUS[:2])}


def test_what_does_not_hold_is_not_said(place, monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    with pytest.raises(BackendError, match=r"pinning does not hold: QEMU's thread CPU 0/KVM may run on") as caught:
        place(Placement(CPUS[:2], frozenset(CPUS[:1]), pinned=True))
    assert "a tuning daemon" in caught.value.remedy


def test_a_cpu_that_may_not_be_had_is_named(place):
    with pytest.raises(BackendError, match=r"not \[1023\] \(Invalid argument\)"):
        place(Placement((1023, 1023), frozenset(CPUS), pinned=True))


def test_a_process_that_is_gone_has_no_threads():
    place_threads(2**22 - 1, Placement(CPUS[:1], frozenset(CPUS), pinned=True))
