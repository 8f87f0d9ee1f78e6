"""Signals at random moments, the first milliseconds among them, and to starts that hang: 130, and nothing left."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.bench.records import EventKind
from tare.bench.store import load_run
from tests.faults.test_killed_runs import CONTAINERS, GUESTS, Run

MOMENTS = int(os.environ.get("TARE_SIGNALS", "3"))
"""How many random moments are tried, of which every third is in the first quarter of a second."""
ENDING_S = 30.0
"""For cleaning up on a busy host; a guest takes 2 s."""

pytestmark = [pytest.mark.root, pytest.mark.image]


@pytest.fixture
def cache(image) -> Path:
    return image.directory.parent.parent


def send_and_check(run: Run, process: subprocess.Popen[str], how: signal.Signals) -> None:
    """Send the signal and see how the run ends, and that nothing of it is left."""
    process.send_signal(how)
    out, _ = process.communicate(timeout=ENDING_S)
    code = process.returncode
    if code not in {0, 130}:  # Python itself was still being loaded: docs/exit-codes.md
        assert code in {-how, 1}, out
        assert not (run.folder / "state").exists()
    assert run.left_behind() == [], out


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_signal_at_a_random_moment(tmp_path, cache, moment):
    chance = random.Random(moment)
    run = Run(tmp_path, cache, CONTAINERS)
    how = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    process = run.start("run", str(run.suite), "--output", str(run.output), "--no-report")
    time.sleep(chance.random() * (0.25 if moment % 3 == 0 else 8.0))
    send_and_check(run, process, how)


@pytest.mark.guest
@pytest.mark.parametrize("moment", range(MOMENTS // 3))
def test_a_signal_while_guests_are_made(tmp_path, cache, moment):
    chance = random.Random(1000 + moment)
    run = Run(tmp_path, cache, GUESTS)
    process = run.start("run", str(run.suite), "--output", str(run.output), "--no-report")
    time.sleep(0.5 + chance.random() * 15.0)
    send_and_check(run, process, signal.SIGINT)


def stop_guests(folder: Path, process: subprocess.Popen[str]) -> Iterator[int]:
    """Stops each QEMU of the run in ``folder`` before it has answered libvirt; the pids as they come."""
    stopped = set()
    while process.poll() is None:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pid = int(entry.name)
                if pid in stopped or not re.search(rb"guest=tare-[^,]+", line := (entry / "cmdline").read_bytes()):
                    continue
                if str(folder).encode() in line and (entry / "exe").readlink().name.startswith("qemu-system"):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.add(pid)
                    yield pid


@pytest.mark.guest
def test_ctrl_c_ends_a_start_that_hangs_in_libvirt(tmp_path, cache):
    run = Run(tmp_path, cache, GUESTS)
    process = run.start("run", str(run.suite), "--output", str(run.output), "--no-report")
    next(stop_guests(tmp_path, process))
    time.sleep(1.0)  # nothing is seen of libvirt's waiting
    began = time.monotonic()
    send_and_check(run, process, signal.SIGINT)
    assert process.returncode == 130
    assert time.monotonic() - began < 15


SHORT = """
import sys
import tare.backends.vm.boot
from tare.bench.cli import main
tare.backends.vm.boot.BOOT_DEADLINE_S = 2
main()
"""


@pytest.mark.guest
def test_a_start_that_hangs_in_libvirt_has_a_deadline(tmp_path, cache, monkeypatch):
    run = Run(tmp_path, cache, GUESTS.replace('"vm"', '"vm"\noptions = { accel = "tcg" }'))
    monkeypatch.setattr(run, "command", lambda *arguments: [sys.executable, "-c", SHORT, *arguments])
    process = run.start("run", str(run.suite), "--output", str(run.output), "--no-report")
    stopped = len(list(stop_guests(tmp_path, process)))
    out, _ = process.communicate(timeout=ENDING_S)
    assert process.returncode == 5, out
    loaded = load_run(run.output)
    failed = [event for event in loaded.events if event.kind is EventKind.INSTANCE_FAILED]
    assert len(failed) == loaded.manifest.planned_instances <= stopped  # one that primes is stopped as well
    assert any("libvirt could not start the guest within 2 s" in event.message for event in failed), failed
    assert not loaded.samples
    assert run.left_behind() == []
