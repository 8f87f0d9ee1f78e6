"""A short fleet on hosts made of namespaces, with one kill each: of a worker, of a run, and of the command itself.

The full proof, eight hosts and fifty random combinations, is ``nox -s fleet``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tare.bench.process import find_tool

pytest.importorskip("distributed")
pytest.importorskip("asyncssh")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces"),
    pytest.mark.skipif(find_tool("ip") is None, reason="needs iproute2"),
]
SCRIPT = Path(__file__).parents[2] / "benchmarks/fleet_local.py"


def fleet(*options: str) -> dict:
    argv = [sys.executable, str(SCRIPT), "--combinations", "1", "--json", *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout, done.stderr
    (result,) = json.loads(done.stdout)["combinations"]
    assert not result["problems"], json.dumps(result, indent=2)
    assert all(hit for *_, hit in result["faults"]), result["faults"]
    return result


def test_kills_lose_nothing_and_measure_nothing_twice(image):
    assert image
    result = fleet("--hosts", "2", "--blocks", "12", "--exactly", "worker:0:0.5,run:0:1.5,scheduler:0:2.5")
    assert len(result["faults"]) == 3


@pytest.mark.skipif(find_tool("sshd") is None, reason="needs openssh-server")
def test_a_worker_over_ssh_is_started_again(image):
    assert image
    fleet("--hosts", "1", "--blocks", "12", "--ssh", "--exactly", "worker:0:0.5")
