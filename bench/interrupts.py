"""Ctrl-C, SIGTERM and SIGHUP as requests, granted at safe points.

A signal handler runs between any two instructions: an exception raised there could leave a thing made and not yet in
anybody's hands, or break off its removal. So where a command has live things (``held``), a signal is noted only, and
waits that may take long (``interruptible``, ``check``) are where it interrupts. Code that offers no such point, as a
plug-in may, is interrupted ``GRACE_S`` after the signal wherever it is; what it then leaves is in the ledger.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

GRACE_S = 10.0
SLICE_S = 0.2
"""How long a wait that no signal ends goes on before it looks for a request."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN = b"tare: still cleaning up; what is left after a kill -9 is removed by `tare clean`\n"


class _Requests:
    """What is known of this process's one interruption. ``holds`` counts what keeps it from being raised anywhere."""

    def __init__(self) -> None:
        self.heeded = False
        self.requested = False
        self.raised = False
        self.holds = 0

    def interrupt(self) -> None:
        self.raised = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            with contextlib.suppress(OSError):  # not by the stream, which this may have interrupted in a write
                os.write(2, _AGAIN)
        elif self.holds:
            self.requested = True
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)
        else:
            self.requested = True
            self.interrupt()

    def on_grace_over(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested and not self.raised:
            self.interrupt()


_requests = _Requests()


@contextlib.contextmanager
def heed() -> Iterator[None]:
    """Note the first signal for the length of the block; further ones only say that it is being cleaned up.

    It interrupts by KeyboardInterrupt, once, within ``interruptible``. Signals that came in ignored (``nohup``, a
    shell's background) stay ignored. For the main thread; within another ``heed`` it does nothing.
    """
    if _requests.heeded:
        yield
        return
    _requests.__init__()  # type: ignore[misc]  # a process may run one command after another
    _requests.heeded, _requests.holds = True, 1
    heeded = [name for name in _SIGNALS if signal.getsignal(name) is not signal.SIG_IGN]
    before = {name: signal.signal(name, _requests.on_signal) for name in heeded}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _requests.on_grace_over)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _requests.heeded = False
        for name, handler in before.items():
            signal.signal(name, handler)


def _concerns_this_thread() -> bool:
    return _requests.heeded and threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A signal is only noted meanwhile; it interrupts at the end of the block at the latest."""
    if not _concerns_this_thread():
        yield
        return
    _requests.holds += 1
    try:
        yield
    finally:
        _requests.holds -= 1
    if not _requests.holds:
        check()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A signal interrupts anywhere in the block, also one that came before it."""
    if not _concerns_this_thread():
        yield
        return
    holds, _requests.holds = _requests.holds, 0
    try:
        check()
        yield
    finally:
        _requests.holds = holds


def check() -> None:
    """Raise KeyboardInterrupt if a signal came: once in the main thread, in others each time."""
    if _requests.requested:
        if threading.current_thread() is not threading.main_thread():
            raise KeyboardInterrupt
        if not _requests.raised:
            _requests.interrupt()


def sleep(seconds: float) -> None:
    """``time.sleep`` that a signal ends."""
    with interruptible():
        time.sleep(seconds)
