"""What is printed on a real terminal fits it, and the same is as wide as ever in a file."""

import os
import subprocess
import sys
import termios

import pytest

from tests.synthetic import QUICK, write_run


@pytest.mark.parametrize("command", [("report", "--format", "text"), ("compare", "--backends", "bare-metal", "vm")])
def test_a_report_fits_the_terminal_that_it_is_printed_on(tmp_path, command):
    name, *options = command
    argv = [sys.executable, "-m", "tare", name, str(write_run(tmp_path / "run", QUICK)), *options]
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (40, 80))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(argv, env=env, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: read(ours), b"")).decode()
        assert process.wait(60) == 0, process.stderr.read().decode()
    os.close(ours)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("slower" in line for line in lines)
    filed = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True).stdout
    assert 80 < max(map(len, filed.splitlines())) <= 120


def read(terminal: int) -> bytes:
    """What a terminal shows next; nothing once its other side is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
