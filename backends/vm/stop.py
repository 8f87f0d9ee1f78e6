"""How a guest is ended: its QEMU killed, or its init asked to power off."""

import time
from abc import ABC, abstractmethod
from typing import Literal

from tare.backends.vm.commands import GUEST_PROGRAM
from tare.backends.vm.connection import Domain
from tare.backends.vm.watch import Watch
from tare.bench.errors import BackendError

SHUTDOWN_DEADLINE_S = 60.0
"""From asking a guest to power off until its QEMU is gone; a guest of 192 MiB takes 0.3 s under emulation."""
_AGENT_DEADLINE_S = 10


class Stopping(ABC):
    """Ends one guest."""

    @abstractmethod
    def begin(self) -> None:
        """Have it begin to end, and return at once. May be called again."""

    @abstractmethod
    def finish(self) -> bool:
        """Begin if need be, and wait until QEMU is gone if the guest is to see to that; whether it did in time."""


class Kill(Stopping):
    """SIGKILL to QEMU. That it is gone is for the caller to wait for, who has to kill it in any case."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def begin(self) -> None:
        self._watch.begin_kill()

    def finish(self) -> bool:
        self.begin()
        return True


class Shutdown(Stopping):
    """The guest's init is asked: it ends every process, lets go of its disks and powers the machine off."""

    def __init__(self, domain: Domain, watch: Watch) -> None:
        self._domain = domain
        self._watch = watch
        self._deadline: float | None = None

    def begin(self) -> None:
        """See ``Stopping.begin``. A guest that cannot be asked is killed."""
        if self._deadline is not None or self._watch.failure is not None:
            return
        self._deadline = time.monotonic() + SHUTDOWN_DEADLINE_S
        try:
            request = {"path": GUEST_PROGRAM, "arg": ["poweroff"]}
            self._domain.ask_agent("guest-exec", request, timeout_s=_AGENT_DEADLINE_S)
        except BackendError:
            self._watch.begin_kill()

    def finish(self) -> bool:
        """See ``Stopping.finish``. One that failed before it was asked has nothing to be waited for."""
        self.begin()
        if self._deadline is None:
            return True
        return self._watch.wait(lambda: self._watch.gone, self._deadline) and self._watch.down_s is not None


def make_stopping(way: Literal["kill", "shutdown"], domain: Domain, watch: Watch) -> Stopping:
    """What ends a guest in the way that a suite asked for."""
    return Shutdown(domain, watch) if way == "shutdown" else Kill(watch)
