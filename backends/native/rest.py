"""When new instances may rest: not while others are being started beside them."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

PAUSE_S = 0.02
"""Starts pause when none has been asked for in so long a time since the last one was done."""


class Rest:
    """An event that instances' inits wait for: readable while no instance is being started, and unreadable meanwhile.

    What an instance does to become smaller takes its CPU from those that are just being set up, so it is for later.
    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._event = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._changed = threading.Condition()
        self._starting = 0
        self._paused_since: float | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="tare-rest", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """The descriptor to wait at."""
        return self._event

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """No rest for anybody until this ends and the pause after it."""
        with self._changed:
            self._starting += 1
            self._paused_since = None
            with contextlib.suppress(BlockingIOError):  # it is not readable
                os.eventfd_read(self._event)
        try:
            yield
        finally:
            with self._changed:
                self._starting -= 1
                if not self._starting:
                    self._paused_since = time.monotonic()
                    self._changed.notify()

    def now(self) -> None:
        """Rest at once, whoever waits."""
        with self._changed:
            self._begin()

    def close(self) -> None:
        """End the event, which lets everybody rest."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._begin()
            self._changed.notify()
        self._thread.join()
        os.close(self._event)

    def _begin(self) -> None:
        self._paused_since = None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        os.eventfd_write(self._event, 1)

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                if self._paused_since is None:
                    self._changed.wait()
                elif (left := self._paused_since + PAUSE_S - time.monotonic()) > 0:
                    self._changed.wait(left)
                else:
                    self._begin()
