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
