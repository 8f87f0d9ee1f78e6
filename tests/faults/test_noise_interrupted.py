"""``tare doctor --noise`` on real bare metal: to its end, and ended by ctrl-C; nothing stays behind either way."""

import json
import os
import signal
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.image,
    pytest.mark.usefixtures("image"),
    pytest.mark.skipif(os.geteuid() != 0, reason="bare metal needs root"),
]
SHORTER = """
import sys
import tare.bench.cli.noise
import tare.bench.noise
from tare.bench.cli import main
tare.bench.noise.FEWEST_BLOCKS = 1
tare.bench.cli.noise.SHORTEST_S = 0
sys.argv = ["tare", "doctor", "--noise", *sys.argv[1:]]
main()
"""


def start(tmp_path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TARE_WORK_DIR": str(tmp_path / "work"), "TARE_STATE_DIR": str(tmp_path / "state")}
    argv = [sys.executable, "-u", "-c", SHORTER, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(argv, env=environment, **pipes)


def test_to_the_end_as_json(tmp_path):
    with start(tmp_path, "--time", "1s", "--json", "--output", str(tmp_path / "kept")) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    told = json.loads(out)
    assert {"boot", "sysbench-cpu", "sysbench-memory", "fio"} == {floor["subject"] for floor in told["floors"]}
    assert all(floor["n_blocks"] == 1 for floor in told["floors"])
    assert told["failed"] == 0
    assert "block 1/1" in err
    assert (tmp_path / "kept/manifest.json").exists()
    assert list((tmp_path / "work").iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path):
    with start(tmp_path, "--time", "1m") as process:
        for line in process.stdout:
            if "block 1/" in line:
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in out + err
    assert list((tmp_path / "work").iterdir()) == []
    assert list((tmp_path / "state/ledger").iterdir()) == []
