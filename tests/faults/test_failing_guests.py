"""A guest that dies in a run is a failure with its reason; the other cells are measured and nothing is left."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tare.bench.records import EventKind
from tare.bench.store import load_run
from tests.faults.test_killed_runs import Run

pytestmark = [pytest.mark.root, pytest.mark.image, pytest.mark.guest]
BACKENDS = '[[backend]]\ntype = "vm"\n[[backend]]\ntype = "bare-metal"\n'


@pytest.fixture
def cache(image) -> Path:
    return image.directory.parent.parent


def find_guest(folder: Path) -> tuple[int, str] | None:
    """QEMU's pid and its guest's name, once the run in ``folder`` has a guest."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes()
            # Not the wrapper that becomes QEMU, with the same command line: until then nobody was told of it.
            if not (process / "exe").readlink().name.startswith("qemu-system"):
                continue
            if str(folder).encode() in line and (match := re.search(rb"guest=(tare-[^,]+)", line)):
                return int(process.name), match[1].decode()
    return None


def test_a_run_goes_on_when_its_guests_are_killed(tmp_path, cache):
    run = Run(tmp_path, cache, BACKENDS)
    process = run.start("run", str(run.suite), "--output", str(run.output), "--no-report")
    killed = set()
    while process.poll() is None:
        if (guest := find_guest(tmp_path)) is not None and guest[1] not in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(guest[0], signal.SIGKILL)
            killed.add(guest[1])
        time.sleep(0.05)
    out, _ = process.communicate(timeout=30)
    loaded = load_run(run.output)
    failed = [event for event in loaded.events if event.kind is EventKind.INSTANCE_FAILED]
    measured = [name for name in killed if re.search(r"-b\d+i", name)]  # those that primed were killed too
    assert len(failed) == len(measured) == loaded.manifest.planned_instances // 2, out
    assert all("/vm" in event.cell for event in failed)
    assert all("QEMU ended" in event.message or "libvirt could not start" in event.message for event in failed), failed
    assert {sample.backend for sample in loaded.samples} == {"bare-metal"}
    assert run.left_behind() == []
