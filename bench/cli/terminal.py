"""The terminal that `tare` itself was started on, lent to an instance."""

import contextlib
import fcntl
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator

from tare.bench.errors import TareError

_CHUNK_BYTES = 1 << 16
_CHUNK_PTY = 4096
"""The most that Linux returns for one read of a terminal."""
_MOST_BUFFERED = 1 << 20
"""More than Linux keeps in a terminal that nobody reads."""
_SIZE_BYTES = 8
"""Of ``struct winsize``."""


class UserTerminal:
    """Keyboard and screen. Made by ``start_raw_terminal``."""

    def __init__(self, keyboard: int, screen: int) -> None:
        self._keyboard = keyboard
        self._screen = screen

    def size(self) -> bytes:
        """See ``Terminal.size``."""
        return fcntl.ioctl(self._screen, termios.TIOCGWINSZ, bytes(_SIZE_BYTES))

    def relay(self, pty: int, ended: int) -> None:
        """See ``Terminal.relay``."""
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


def require_terminal() -> None:
    """Raises TareError if standard input or output is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise TareError("a shell needs a terminal, and standard input or output is none", remedy="use `tare exec`")


@contextlib.contextmanager
def start_raw_terminal() -> Iterator[UserTerminal]:
    """The terminal of `tare` in raw mode, and as it was before on every way out. Raises TareError if there is none."""
    require_terminal()
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    saved = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        yield UserTerminal(keyboard, screen)
    finally:
        with contextlib.suppress(termios.error):  # a terminal that is gone needs nothing
            termios.tcsetattr(keyboard, termios.TCSADRAIN, saved)
