"""A call to an engine that has no command: it blocks in a thread of its own, and its end is a descriptor."""

import os
import threading
import time
from collections.abc import Callable

from tare.bench.errors import BackendError
from tare.bench.linux.waiting import is_readable


class Call:
    """A call that has begun; what ``Engine.begin`` returns (``Begun``)."""

    def __init__(self, name: str, call: Callable[[], object], printed: Callable[[], str] = str) -> None:
        """``name`` is what messages call it, ``printed`` asks for evidence once it is needed."""
        self._name = name
        self._call = call
        self._printed = printed
        self._error: BaseException | None = None
        self._ended, self._tell = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - raised by ``finish``, in the thread that waits
            self._error = error
        finally:
            os.close(self._tell)

    def fileno(self) -> int:
        """A descriptor that is readable once it has returned or failed."""
        return self._ended

    def have_ended(self, wait_s: float) -> bool:
        """Wait for its end."""
        return is_readable(self._ended, wait_s)

    def finish(self, deadline: float) -> None:
        """Raises what the call raised, and BackendError if it has not returned by ``deadline`` (monotonic)."""
        if not self.have_ended(deadline - time.monotonic()):
            raise BackendError(f"{self._name} did not end in time", evidence=self.printed())
        if self._error is not None:
            raise self._error

    def printed(self) -> str:
        """What the engine said."""
        return str(self._error) if self._error is not None else self._printed()

    def close(self) -> None:
        """Let go of it. One that still blocks is left to its own deadline."""
        if self.have_ended(0.0):
            self._thread.join()
        os.close(self._ended)
