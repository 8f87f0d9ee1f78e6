"""The zygotes of a backend: one as long as instances are started one after another, more when starts come together."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from tare.backends.native.launcher import Zygote


class Zygotes:
    """Lends a zygote to each start, so that no two are asked of one at a time. Safe to use from several threads."""

    def __init__(self, start: Callable[[], AbstractContextManager[Zygote]]) -> None:
        """``start`` starts one more; each lives until it has died and is noticed, or until ``close``."""
        self._start = start
        self._lock = threading.Lock()
        self._idle: list[tuple[Zygote, contextlib.ExitStack]] = []

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Zygote]:
        """The zygote that was used last of those that are idle, or a new one. Raises BackendError."""
        zygote, ending = self._take()
        try:
            yield zygote
        finally:
            with self._lock:
                self._idle.append((zygote, ending))

    def have(self, number: int) -> None:
        """See that so many can be borrowed without a new one. Raises BackendError."""
        with contextlib.ExitStack() as lent:
            for _ in range(number):
                lent.enter_context(self.borrow())

    def pids(self) -> list[int]:
        """Of those that are idle, the one to be used next last."""
        with self._lock:
            return [zygote.pid for zygote, _ in self._idle]

    def close(self) -> None:
        """End them all; none may be lent. Their instances end with them."""
        with self._lock:
            idle, self._idle = self._idle, []
        with contextlib.ExitStack() as stack:
            for _, ending in idle:
                stack.callback(ending.close)

    def _take(self) -> tuple[Zygote, contextlib.ExitStack]:
        while True:
            with self._lock:
                if not self._idle:
                    break
                zygote, ending = self._idle.pop()
            if zygote.is_alive():
                return zygote, ending
            ending.close()
        with contextlib.ExitStack() as stack:
            zygote = stack.enter_context(self._start())
            return zygote, stack.pop_all()
