"""Locks between processes (``flock``): the kernel lets go of one when its holder ends, however it ends."""

import fcntl
import time

_ASKED_EVERY_S = 0.05


def lock_within(descriptor: int, within_s: float = 0.0) -> bool:
    """Take the exclusive lock of an open file; whether it could be had in that time. Raises OSError.

    The kernel offers no wait with a deadline but by a signal, so the lock is asked for again.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_ASKED_EVERY_S)
        else:
            return True
