"""Where the kernel does not let tare choose its CPUs there is one message, and the exit code of the docs."""

import os
import subprocess
import sys

import pytest

pyseccomp = pytest.importorskip("pyseccomp")

CODE = """
import errno, sys
import pyseccomp
kept = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
kept.add_rule(pyseccomp.ERRNO(errno.EPERM), "sched_setaffinity")
kept.load()
from tare.bench.cli import main
sys.argv = ["tare", "exec", "native", "--", "true"]
main()
"""


def test_a_refused_affinity_is_one_message(tmp_path):
    environment = {**os.environ, "TARE_STATE_DIR": str(tmp_path / "state"), "TARE_WORK_DIR": str(tmp_path / "work")}
    command = [sys.executable, "-c", CODE]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 6, ended.stderr
    message, remedy = ended.stderr.splitlines()
    assert message.startswith("tare: tare may not choose its CPUs (sched_setaffinity to ")
    assert "Operation not permitted" in message
    assert remedy.startswith("  what to do: allow sched_setaffinity")
    assert list(tmp_path.rglob("*.jsonl")) == []
