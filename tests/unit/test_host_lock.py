"""One run at a time on a host: who holds it is said, and a killed one lets go."""

import os
import signal
import subprocess
import sys

import pytest

from tare.bench.errors import ExitCode, HostBusyError
from tare.bench.host_lock import find_holder, measuring

HOLD = """
import pathlib, sys
from tare.bench.host_lock import measuring
with measuring(pathlib.Path("/runs/other")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("TARE_STATE_DIR", str(tmp_path / "state"))


def test_the_host_is_held_and_let_go(tmp_path):
    assert find_holder() is None
    with measuring(tmp_path / "run"):
        holder = find_holder()
        assert holder is not None
        assert (holder.pid, holder.run) == (os.getpid(), str(tmp_path / "run"))
    assert find_holder() is None


def test_a_run_that_raises_lets_go_too(tmp_path):
    with pytest.raises(ZeroDivisionError), measuring(tmp_path / "run"):
        raise ZeroDivisionError
    assert find_holder() is None


def test_another_run_is_refused_until_it_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(HostBusyError, match=rf"process {other.pid}, /runs/other, since") as raised:
            measuring(tmp_path / "run").__enter__()
        assert raised.value.exit_code == ExitCode.BUSY == 9
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert find_holder() is None  # the file still names it
        with measuring(tmp_path / "run"):
            pass
