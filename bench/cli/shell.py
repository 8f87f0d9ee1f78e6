"""``tare shell``: the terminal that `tare` was started on, lent to a program in a fresh instance."""

import contextlib
import fcntl
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator

from tare.bench.cli.exec import InstanceRequest, start_instance
from tare.bench.cli.guard import complain
from tare.bench.errors import ExitCode, NoTerminalError, UnsupportedError
from tare.bench.model import Command

_SHELLS = ("/bin/bash", "/bin/sh")
_CHUNK_BYTES = 1 << 16
_CHUNK_PTY = 4096
"""The most that Linux returns for one read of a terminal."""
_MOST_BUFFERED = 1 << 20
"""More than Linux keeps in a terminal that nobody reads."""
_SIZE_BYTES = 8
"""Of ``struct winsize``."""


def shell_command(request: InstanceRequest, argv: tuple[str, ...]) -> int:
    """Lend this terminal to a shell in an instance; returns the exit code to end with."""
    suite, name = request.suite(), request.backend
    if not suite.backends[0].type.interactive:
        raise UnsupportedError(
            f"{name} does not offer a terminal",
            remedy=f"use `tare exec {name} -- COMMAND`, or `tare shell` with bare-metal or native",
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise NoTerminalError(
            "a shell needs a terminal, and standard input or output is not one", remedy="use `tare exec`"
        )
    with start_instance(suite, request.image) as (instance, root):
        # The first shell that the image has. One that has none is told so by the instance.
        shells = (shell for shell in _SHELLS if (root.rootfs / shell[1:]).exists())
        program = argv or (next(shells, _SHELLS[-1]),)
        with _start_raw_terminal() as terminal:
            ended = instance.interact(Command(program, env={"TERM": os.environ.get("TERM", "dumb")}), terminal)
    if ended.signal is not None:
        complain(f"{program[0]} was killed by signal {ended.signal}")
        return 128 + ended.signal
    return ended.returncode if ended.returncode is not None else ExitCode.ENVIRONMENT


class _UserTerminal:
    """A ``Terminal`` of keyboard and screen. Made by ``_start_raw_terminal``."""

    def __init__(self, keyboard: int, screen: int) -> None:
        self._keyboard = keyboard
        self._screen = screen

    def size(self) -> bytes:
        return fcntl.ioctl(self._screen, termios.TIOCGWINSZ, bytes(_SIZE_BYTES))

    def relay(self, pty: int, ended: int) -> None:
        before = signal.signal(signal.SIGWINCH, lambda *_: self._resize(pty))
        try:
            self._resize(pty)
            os.set_blocking(pty, False)
            self._pass_on(pty, ended)
        finally:
            signal.signal(signal.SIGWINCH, before)

    def _resize(self, pty: int) -> None:
        with contextlib.suppress(OSError):  # a program that has just ended needs no size
            fcntl.ioctl(pty, termios.TIOCSWINSZ, self.size())

    def _pass_on(self, pty: int, ended: int) -> None:
        typed = b""
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        while True:
            # Nothing more is read from the keyboard until the program has taken what was typed before.
            poll.register(self._keyboard, 0 if typed else select.POLLIN)
            poll.register(pty, select.POLLIN | (select.POLLOUT if typed else 0))
            events = dict(poll.poll())
            if pty in events:
                self._show(pty)
                typed = _type(pty, typed)
            if ended in events:
                self._show_rest(pty)
                return
            if self._keyboard in events and not typed:
                typed = _read(self._keyboard)
                if not typed:
                    return

    def _show_rest(self, pty: int) -> None:
        for _ in range(_MOST_BUFFERED // _CHUNK_PTY):  # a program left in the background may print for ever
            if not self._show(pty):
                return

    def _show(self, pty: int) -> bool:
        """Show what the program has printed; whether it was anything."""
        printed = memoryview(_read(pty))
        shown = 0
        with contextlib.suppress(OSError):  # a screen that is gone: the keyboard tells
            while shown < len(printed):
                shown += os.write(self._screen, printed[shown:])
        return len(printed) > 0


def _read(descriptor: int) -> bytes:
    """What is there; nothing also from a terminal that has been hung up."""
    try:
        return os.read(descriptor, _CHUNK_BYTES)
    except OSError:
        return b""


def _type(pty: int, typed: bytes) -> bytes:
    """Hand over what was typed; what could not be taken yet."""
    try:
        return typed[os.write(pty, typed) :] if typed else b""
    except BlockingIOError:
        return typed
    except OSError:
        return b""


@contextlib.contextmanager
def _start_raw_terminal() -> Iterator[_UserTerminal]:
    """The terminal of `tare` in raw mode, and as it was before on every way out."""
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    saved = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        yield _UserTerminal(keyboard, screen)
    finally:
        with contextlib.suppress(termios.error):  # a terminal that is gone needs nothing
            termios.tcsetattr(keyboard, termios.TCSADRAIN, saved)
