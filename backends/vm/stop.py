"""How a guest is ended: its QEMU killed, or its init asked to power off."""

import time

from tare.backends.vm.commands import GUEST_PROGRAM
from tare.backends.vm.connection import Domain
from tare.backends.vm.watch import Watch
from tare.bench.errors import BackendError

SHUTDOWN_DEADLINE_S = 60.0
"""From asking a guest to power off until its QEMU is gone; a guest of 192 MiB takes 0.3 s under emulation."""
_AGENT_DEADLINE_S = 10


class Stopping:
    """Ends one guest.

    By SIGKILL to QEMU; that it is gone is for the caller to wait for, who has to kill it in any case. Or, if ``asks``,
    by its init, which ends every process, lets go of its disks and powers the machine off.
    """

    def __init__(self, domain: Domain, watch: Watch, *, asks: bool) -> None:
        self._domain = domain
        self._watch = watch
        self._asks = asks
        self._deadline: float | None = None

    def begin(self) -> None:
        """Have it begin to end, and return at once. May be called again. A guest that cannot be asked is killed."""
        if not self._asks:
            self._watch.begin_kill()
        elif self._deadline is None and self._watch.failure is None:
            self._deadline = time.monotonic() + SHUTDOWN_DEADLINE_S
            try:
                request = {"path": GUEST_PROGRAM, "arg": ["poweroff"]}
                self._domain.ask_agent("guest-exec", request, timeout_s=_AGENT_DEADLINE_S)
            except BackendError:
                self._watch.begin_kill()

    def finish(self) -> bool:
        """Begin if need be, and wait until QEMU is gone if the guest is to see to that; whether it did in time.

        One that failed before it was asked has nothing to be waited for.
        """
        self.begin()
        if self._deadline is None:
            return True
        return self._watch.wait(lambda: self._watch.gone, self._deadline) and self._watch.down_s is not None
