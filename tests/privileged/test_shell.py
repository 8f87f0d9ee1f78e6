"""`tare shell` on a real terminal: job control, its size, its exit status, and the terminal afterwards."""

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios
import time

import pytest

from tare.bench.process import DEVNULL, PIPE, Popen

pytestmark = [pytest.mark.root, pytest.mark.image]

DEADLINE_S = 60
PROMPT = "ready> "


class Typist:
    """`tare shell` on the other side of a terminal, and somebody who types and reads."""

    def __init__(self, *arguments):
        self.ours, theirs = os.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(theirs)
        argv = [sys.executable, "-m", "tare", "shell", *arguments]
        self.process = Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        self.terminal = theirs
        self.seen = ""

    def resize(self, rows, columns):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("=4H", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.ours, text.encode())

    def expect(self, pattern):
        """Read until a regular expression matches what has come since the last match."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come: {self.seen!r}"
            self.seen += os.read(self.ours, 65536).decode(errors="replace")
        self.seen = self.seen[found.end() :]
        return found

    def press(self, key, pattern):
        """Press a key until it has shown: the program may not be in the foreground yet when it is pressed first."""
        deadline = time.monotonic() + DEADLINE_S
        while not re.search(pattern, self.seen):
            assert time.monotonic() < deadline, self.seen
            self.type(key)
            while select.select([self.ours], [], [], 0.2)[0]:
                self.seen += os.read(self.ours, 65536).decode(errors="replace")
        self.expect(pattern)

    def run(self, line):
        self.type(line + "\r")
        return self.expect(r"(?s)\n(.*?)" + re.escape(PROMPT))[1].replace("\r", "").strip()


@contextlib.contextmanager
def start_shell(*arguments):
    typist = Typist(*arguments)
    try:
        yield typist
    finally:
        typist.process.kill()
        typist.process.wait()
        os.close(typist.ours)
        os.close(typist.terminal)


def begin(typist):
    typist.expect(r"[#$] ")
    typist.type(f"PS1='{PROMPT[:3]}'\"{PROMPT[3:]}\"; bind 'set enable-bracketed-paste off'\r")
    typist.expect(re.escape(PROMPT))


@pytest.mark.parametrize("backend", ["native", "bare-metal"])
def test_a_session(backend):
    with start_shell(backend) as typist:
        begin(typist)
        assert typist.run("tty").startswith("/dev/pts/")
        assert typist.run("stty size") == "24 80"
        typist.resize(40, 132)
        typist.process.send_signal(signal.SIGWINCH)  # as the kernel does for a foreground process of the terminal
        assert typist.run("stty size") == "40 132"
        # Job control: stopped, in the background, in the foreground, interrupted.
        typist.type("sleep 1000\r")
        typist.expect("sleep 1000\r\n")
        typist.press("\x1a", r"Stopped[^\n]*sleep 1000\r\n" + re.escape(PROMPT))
        assert "sleep 1000 &" in typist.run("bg")
        assert re.search(r"Running\s+sleep 1000 &", typist.run("jobs"))
        typist.type("fg\r")
        typist.expect("sleep 1000")
        typist.press("\x03", re.escape(PROMPT))
        assert typist.run("echo status $?") == "status 130"
        assert typist.run("jobs") == ""
        typist.type("exit 7\r")
        assert typist.process.wait(DEADLINE_S) == 7
        assert termios.tcgetattr(typist.terminal) == typist.before


def test_a_hundred_kilobytes_are_pasted_while_as_much_is_printed():
    with start_shell(
        "native", "--", "sh", "-c", "stty raw -echo; echo go; head -c 100000 | tr x y; echo end"
    ) as typist:
        typist.expect("go")
        sent = 0
        while sent < 100_000:
            _, writable, _ = select.select([], [typist.ours], [], DEADLINE_S)
            assert writable
            sent += os.write(typist.ours, b"x" * min(1000, 100_000 - sent))
            readable, _, _ = select.select([typist.ours], [], [], 0)
            if readable:
                typist.seen += os.read(typist.ours, 65536).decode()
        typist.expect("end")
        assert typist.process.wait(DEADLINE_S) == 0


def test_the_terminal_is_restored_when_the_shell_is_killed_from_outside():
    with start_shell("native") as typist:
        begin(typist)
        assert termios.tcgetattr(typist.terminal) != typist.before
        typist.process.send_signal(signal.SIGTERM)
        assert typist.process.wait(DEADLINE_S) == 130
        assert termios.tcgetattr(typist.terminal) == typist.before


def test_a_signal_that_ends_the_program_is_told():
    with start_shell("native", "--", "sh", "-c", "kill -9 $$") as typist:
        typist.expect("killed by signal 9")
        assert typist.process.wait(DEADLINE_S) == 137


def test_what_is_no_terminal_and_what_has_none():
    for backend, said in (("native", b"needs a terminal"), ("vm", b"vm does not offer a terminal")):
        argv = [sys.executable, "-m", "tare", "shell", backend]
        with Popen(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE) as process:
            assert said in process.stderr.read()
            assert process.wait(DEADLINE_S) == (3 if backend == "native" else 4)
