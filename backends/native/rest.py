"""When new instances may become smaller: not while several are being started at once."""

import contextlib
import os
import threading
from collections.abc import Iterator

_TOGETHER = 2


class Rest:
    """An event that instances' inits wait for: readable unless several instances are being started at once.

    What an instance does to become smaller takes its CPU from those that are just being set up beside it, so in a
    burst it is for later. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._event = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._starting = 0

    def fileno(self) -> int:
        """The descriptor to wait at."""
        return self._event

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """An instance is being started: no rest for anybody while another one is, too."""
        with self._lock:
            self._starting += 1
            if self._starting >= _TOGETHER:
                self._clear()
        try:
            yield
        finally:
            with self._lock:
                self._starting -= 1
                if self._starting < _TOGETHER:
                    self._set()

    def now(self) -> None:
        """Rest at once, whoever waits; the next burst takes it back."""
        with self._lock:
            self._set()

    def close(self) -> None:
        """Close the event. Nobody may be starting an instance."""
        os.close(self._event)

    def _set(self) -> None:
        self._clear()
        os.eventfd_write(self._event, 1)

    def _clear(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it was not readable
            os.eventfd_read(self._event)
