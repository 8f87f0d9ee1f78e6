"""A real setting of this kernel is changed and comes back. Only address space randomisation, and only for a moment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tare.bench.tune.settings import read_value

ASLR = Path("/proc/sys/kernel/randomize_va_space")

pytestmark = pytest.mark.root


@pytest.fixture
def state(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("changing a setting of the host needs root")
    if not os.access(ASLR, os.W_OK):
        pytest.skip(f"{ASLR} cannot be written here")
    before = read_value(ASLR)
    yield tmp_path
    if read_value(ASLR) != before:
        ASLR.write_text(before)


def tare(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TARE_STATE_DIR": str(state)}
    argv = [sys.executable, "-m", "tare", "tune", *arguments]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def test_apply_show_and_restore(state):
    before = read_value(ASLR)
    other = "1" if before != "1" else "2"
    applied = tare(state, "apply", "--only", f"aslr={other}")
    assert applied.returncode == 0, applied.stderr
    assert read_value(ASLR) == other
    assert f"aslr: set from {before} to {other}" in applied.stdout
    assert f"{other} (by tare)" in tare(state, "show").stdout
    restored = tare(state, "restore")
    assert (restored.returncode, read_value(ASLR)) == (0, before)
    assert f"aslr: put back from {other} to {before}" in restored.stdout
    assert tare(state, "restore").stdout.strip() == "nothing was changed by tare"


def test_wrong_names_and_values_are_answered_with_the_right_ones(state):
    assert tare(state, "apply", "--only", "turbulence").returncode == 3
    wrong = tare(state, "apply", "--only", "aslr=9")
    assert wrong.returncode == 3
    assert "it can be: 0, 1, 2" in wrong.stderr
    assert tare(state, "show", "--cpus", "x-1").returncode == 2
