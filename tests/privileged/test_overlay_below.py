"""A work folder that is an overlay, as in a Docker container without a volume: doctor says so, and what helps."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.root, pytest.mark.image]

# The overlay is in a mount namespace of its own, which ends with the shell.
SCRIPT = """
set -e
mkdir "$1/lower" "$1/upper" "$1/layer" "$1/over" "$1/disk"
mount -t overlay overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/layer" "$1/over"
export TARE_STATE_DIR=$1/state COLUMNS=300
for work in "$1/over/work" "$1/disk/work"; do
    export TARE_WORK_DIR=$work
    "$2" -m tare doctor | grep -A1 "backend native" || :
    "$2" -m tare exec native -- echo inside 2>&1 || echo "code $?"
done
"""


def test_native_on_an_overlay(tmp_path, image):
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    on_overlay, _, on_disk = done.stdout.partition("code 4\n")
    assert f"{tmp_path}/over is overlay, which cannot hold the writable layer" in on_overlay
    assert on_overlay.count("set TARE_WORK_DIR") == 2, "doctor and exec say the same"
    assert "works" not in on_overlay.partition("tare:")[0]
    assert "inside" in on_disk
    assert "works" in on_disk
