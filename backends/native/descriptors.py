"""Open files of the harness: each live instance holds some, so many instances need many."""

import contextlib
import errno
import fcntl
import os
import resource
from collections.abc import Iterator

from bench.errors import BackendError

RESERVE = 16
"""What has to be free before another instance is made, so that those that live can still be used and stopped."""
_LARGE = 1 << 16
"""With a limit beyond this, memory runs out before descriptors do."""
_given = resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may be let."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def given_descriptor_limit() -> Iterator[None]:
    """The limit that this process was started with, for what it starts: instances inherit it."""
    now = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_given[0], now[1]), now[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, now)


def require_descriptors() -> None:
    """Raises BackendError if fewer than ``RESERVE`` files can still be opened."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit > _LARGE:
        return
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
