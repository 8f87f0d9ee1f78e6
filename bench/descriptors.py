"""What to say when this process, or the host, has no file descriptor left, wherever that shows first."""

import errno
import resource

from tare.bench.errors import TareError


def lack_of_descriptors(error: BaseException) -> TareError | None:
    """The failure that ``error`` comes down to, if it or what caused it is a lack of file descriptors; else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno == errno.EMFILE:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            return TareError(
                f"tare has no file descriptor left: it may have {soft} at a time",
                remedy=f"`ulimit -n {hard}` in the shell that starts tare"
                if hard > soft
                else "raise the hard limit on open files (nofile in /etc/security/limits.conf)",
            )
        if isinstance(cause, OSError) and cause.errno == errno.ENFILE:
            return TareError("this host has no file descriptor left", remedy="raise the sysctl fs.file-max")
        cause = cause.__cause__
    return None
