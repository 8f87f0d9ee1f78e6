"""What becomes of a command whose standard streams are closed, full, or go away: see ``streams_in_a_process``."""

import subprocess
import sys
from pathlib import Path

CHECKS = Path(__file__).with_name("streams_in_a_process.py")


def test_whatever_becomes_of_the_streams():
    """In a fresh interpreter: in this one other tests draw charts, which leaves threads behind."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CHECKS)]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=600, cwd=CHECKS.parents[2], stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
