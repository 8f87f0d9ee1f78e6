"""What tare itself takes: reports and commands with much output, in a memory cgroup too small for carelessness."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tare.backends.cgroups.layout import find_layout
from tare.backends.cgroups.lifecycle import start_cgroup
from tare.bench.ledger import Ledger
from tests.unit.test_stored_runs import unpacked

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif("memory" not in find_layout().controllers, reason="no memory cgroup controller"),
]


def limited(command: list[str], mib: int, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a memory cgroup of its own, without swap."""
    with (
        Ledger(folder / "ledger") as ledger,
        start_cgroup(ledger, f"tare-test-{os.getpid()}", {"memory_bytes": mib << 20}) as cgroup,
    ):

        def join() -> None:
            for file in cgroup.join_files:
                file.write_text("0")

        return subprocess.run(command, capture_output=True, preexec_fn=join, timeout=200, check=False)


@pytest.mark.parametrize("form", ["html", "text", "parquet"])
def test_the_report_of_a_normal_run_fits_200_mib(form, tmp_path):
    run, output = unpacked("quickstart", tmp_path), tmp_path / "report"
    command = [sys.executable, "-m", "tare", "report", str(run), "-f", form, "-o", str(output)]
    ended = limited(command, 200, tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert output.stat().st_size > 10_000


@pytest.mark.image
@pytest.mark.usefixtures("image")
def test_output_without_end_kills_the_command_and_not_tare(tmp_path, monkeypatch):
    """2 GB are twice what a command may print."""
    for variable in ("TARE_STATE_DIR", "TARE_WORK_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    program = ["head", "-c", "2G", "/dev/zero"]
    command = [sys.executable, "-m", "tare", "exec", "native", "--memory", "64MiB", "--", *program]
    ended = limited(command, 300, tmp_path)
    assert ended.returncode == 6, ended.stderr[-2000:]
    assert b"head printed more than 1024 MiB and was ended" in ended.stderr
    assert list((tmp_path / "TARE_WORK_DIR").iterdir()) == []


HUNGRY = "x = bytearray(300 << 20); print(len(x))"


@pytest.mark.image
@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("outer", "memory", "named"),
    [(250, "512MiB", "by the 250 MiB memory limit of the cgroup"), (1000, "128MiB", "by the 128 MiB memory limit")],
)
def test_the_limit_that_killed_is_named(outer, memory, named, tmp_path, monkeypatch):
    for variable in ("TARE_STATE_DIR", "TARE_WORK_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    command = [sys.executable, "-m", "tare", "exec", "native", "--memory", memory, "--", "python3", "-c", HUNGRY]
    ended = limited(command, outer, tmp_path)
    assert ended.returncode == 137, ended.stderr
    assert f"python3 was killed {named}".encode() in ended.stderr
