"""One run at a time on a host: two that measure at once would measure each other.

A run holds ``flock`` on one file in tare's state folder for as long as it measures; the kernel lets go of it when the
process ends, however it ends. The file says who holds it. Users with state folders of their own do not see each other.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tare.bench.errors import CleanUpError, HostBusyError
from tare.bench.linux.locks import lock_within
from tare.bench.linux.processes import find_status
from tare.bench.locations import state_directory
from tare.bench.readable import readable

_LOCK = "measuring.lock"


class Holder(msgspec.Struct, frozen=True):
    """Who measures: the process (``started`` as in ``Status``), and the folder of its run."""

    pid: int
    started: int
    run: str
    since_utc: str

    @property
    def is_alive(self) -> bool:
        """Whether that process still runs; one that got its pid later is another."""
        status = find_status(self.pid)
        return status is not None and status.started == self.started


def find_holder() -> Holder | None:
    """Who measures on this host now; None if nobody does. Takes no lock, so it keeps nobody from measuring."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        holder = msgspec.json.decode((state_directory() / _LOCK).read_bytes(), type=Holder)
        return holder if holder.is_alive else None
    return None


@contextlib.contextmanager
def measuring(run: Path) -> Iterator[None]:
    """Hold the host for the length of a block that measures into the folder ``run``.

    Raises HostBusyError if another process does, CleanUpError if the state folder cannot be written.
    """
    path = state_directory() / _LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CleanUpError(
            f"the state folder {path.parent} cannot be used: {error.strerror}",
            remedy="set TARE_STATE_DIR to a folder that can be written",
        ) from error
    try:
        if not lock_within(descriptor):
            raise _busy()
        status = find_status(os.getpid())
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = Holder(os.getpid(), status.started if status else 0, readable(str(run.absolute())), since)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, msgspec.json.encode(holder), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _busy() -> HostBusyError:
    holder = find_holder()
    who = "" if holder is None else f" (process {holder.pid}, {holder.run}, since {holder.since_utc})"
    return HostBusyError(
        f"another run measures on this host{who}, and two at once would measure each other",
        remedy="wait until it has ended",
    )
