"""Open files of the harness: each live instance holds some, so many instances need many."""

import contextlib
import errno
import fcntl
import os
import resource
import threading

from tare.bench.errors import BackendError

RESERVE = 16
"""What has to be free before another instance is made, so that those that live can still be used and stopped."""
_LARGE = 1 << 16
"""With a limit beyond this, memory runs out before descriptors do."""
_looking = threading.Lock()
"""Held while one looks: two that look at once would take each other's descriptor for an instance's."""
_given = resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may be let."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def given_descriptor_limit() -> int:
    """The limit that this process was started with, for what it starts: instances inherit it."""
    return min(_given[0], resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def require_descriptors() -> None:
    """Raises BackendError if fewer than ``RESERVE`` files can still be opened."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit > _LARGE:
        return
    with _looking:
        try:
            # The kernel gives the lowest free number, so the last ones are free if the first of them is.
            found = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, max(0, limit - RESERVE))
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.EINVAL}:
                return  # standard input is closed: nothing can be told
        else:
            os.close(found)
            if found == limit - RESERVE:
                return
    raise BackendError(
        f"the limit of {limit} open files (RLIMIT_NOFILE, hard limit {hard}) leaves none for another instance",
        remedy="raise it: `ulimit -n 65536` before tare, or LimitNOFILE= in its systemd unit",
    ) from OSError(errno.EMFILE, os.strerror(errno.EMFILE))
