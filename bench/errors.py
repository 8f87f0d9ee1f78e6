"""What can go wrong for a user, and the exit code each failure has.

Libraries raise these; only the command line prints them and exits. Every message says what failed
and why, and ``remedy`` says what to do about it.
"""

import errno
import resource
from enum import IntEnum

from tare.bench.readable import readable


class ExitCode(IntEnum):
    """Exit codes of ``tare``, as documented in ``docs/exit-codes.md``."""

    OK = 0
    NOT_READY = 1
    """``tare doctor`` found something that does not work here."""
    USAGE = 2
    """The command line itself is wrong."""
    BAD_INPUT = 3
    """A suite, an image or a run directory cannot be used as it is."""
    MISSING = 4
    """A tool, a privilege or a kernel feature that is needed is not here."""
    FAILED_CELLS = 5
    """The run finished, and at least one cell failed."""
    ENVIRONMENT = 6
    """The machine refused something in the middle: full disk, failed build, failed clean-up."""
    NOT_COMPARABLE = 7
    """`tare compare` or `tare run --bridge` was given runs whose conditions forbid it."""
    HOSTS_MISSING = 8
    """`tare fleet`: at least one host has no complete run; the others' are whole."""
    BUSY = 9
    """Another run measures on this host, or another command works on this fleet."""
    REGRESSION = 10
    """`tare gate` found a regression that nobody acknowledged."""
    TOO_LITTLE_JUDGED = 11
    """`tare gate` could judge too little of the night to call it green."""
    ENVIRONMENT_CHANGED = 12
    """`tare gate`: the conditions are not those of the nights before."""
    INCOMPLETE_RUN = 13
    """`tare gate`: the run was interrupted, or cells of it failed."""
    BUG = 70
    """An error inside tare."""
    INTERRUPTED = 130
    """Ended by ctrl-C or SIGTERM; what was measured is kept."""


class TareError(Exception):
    """A failure that is the user's business: what failed and why, with a remedy where there is one.

    Whatever names, tools and archives put into it, all of it can be printed.

    ``evidence`` is what the reader of the report needs to believe it: the last console lines, the
    failing step with its errno, the tail of a log.
    """

    exit_code: ExitCode = ExitCode.ENVIRONMENT

    def __init__(self, message: str, *, remedy: str | None = None, evidence: str = "") -> None:
        self.message = readable(message)
        super().__init__(self.message)
        self.remedy = None if remedy is None else readable(remedy)
        self.evidence = readable(evidence)

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}\n  what to do: {self.remedy}"


class SuiteError(TareError):
    """A suite that cannot be read or makes no sense; ``place`` is the file and the key."""

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, place: str, problem: str, *, remedy: str | None = None) -> None:
        super().__init__(f"{place}: {problem}", remedy=remedy)
        self.place = place


class ImageError(TareError):
    """An image that is missing, corrupt, or could not be built."""

    exit_code = ExitCode.BAD_INPUT


class NoTerminalError(TareError):
    """A command that needs a terminal was started without one."""

    exit_code = ExitCode.BAD_INPUT


class RunDirectoryError(TareError):
    """A run directory that cannot be read or continued."""

    exit_code = ExitCode.BAD_INPUT


class NotComparableError(TareError):
    """Two runs were made under different conditions, so that their difference says nothing about what is compared."""

    exit_code = ExitCode.NOT_COMPARABLE


class HostBusyError(TareError):
    """Another run measures on this host: two at once would measure each other."""

    exit_code = ExitCode.BUSY


class StoreError(TareError):
    """The run directory cannot be written any more: the run ends, what was measured is kept."""


class UnknownNameError(TareError):
    """A backend, workload, reporter or experiment that nobody registered."""

    exit_code = ExitCode.BAD_INPUT


class MissingToolError(TareError):
    """A program that is needed is not installed."""

    exit_code = ExitCode.MISSING


class PrivilegeError(TareError):
    """Something that needs root, or a capability, was asked for without it."""

    exit_code = ExitCode.MISSING


class UnavailableError(TareError):
    """A backend, or one of its features, does not work on this host."""

    exit_code = ExitCode.MISSING


class UnsupportedError(TareError):
    """Something that a backend does not offer on any host."""

    exit_code = ExitCode.MISSING


class BackendError(TareError):
    """A backend could not start, use or stop an instance. The cell fails, the run goes on."""


class WorkloadError(TareError):
    """A workload's command failed inside the instance. The cell fails, the run goes on."""


class OutputTooLargeError(WorkloadError):
    """A command printed more than can be kept; without a limit one in a loop would take the host's memory."""

    def __init__(self, program: str, limit_bytes: int) -> None:
        super().__init__(
            f"{program} printed more than {limit_bytes // 2**20} MiB and was ended",
            remedy="let it print less, or write to a file in the scratch folder",
        )


class ParseError(WorkloadError):
    """A tool's output is not what its parser knows; ``evidence`` is the offending text."""


class TuningError(TareError):
    """A setting of the host could not be changed or restored."""


class CleanUpError(TareError):
    """Something of ours could not be removed."""


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
