"""The one place where host programs are started (``subprocess`` lives only here)."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tare.bench.errors import MissingToolError, TareError
from tare.bench.interrupts import interruptible
from tare.bench.packages import package_of, remedy_for

PLAIN_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "LANG": "C.UTF-8", "TZ": "UTC"}
"""Locale and zone for every host tool whose output is read."""

Popen = subprocess.Popen
PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT
TimeoutExpired = subprocess.TimeoutExpired


class ToolFailedError(TareError):
    """A host tool ended with an error; ``stderr`` is its last output."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        tail = "\n".join(stderr.strip().splitlines()[-12:])
        how = f"failed with exit status {returncode}"
        if returncode < 0:
            known = f" ({signal.Signals(-returncode).name})" if -returncode in set(signal.Signals) else ""
            how = f"was ended by signal {-returncode}{known}"
        super().__init__(f"{Path(argv[0]).name} {how}: {tail or '(no output)'}")
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr


def find_tool(name: str) -> Path | None:
    """The path of a host program, also where root's sbin folders are not in PATH; None if it is not installed."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = shutil.which(name, path=path)
    return None if found is None else Path(found)


def require_tool(name: str) -> Path:
    """The path of a host program. Raises MissingToolError that names the package to install."""
    path = find_tool(name)
    if path is None:
        package = package_of(name)
        raise MissingToolError(
            f"{name} is not installed" + (f" (Debian package {package})" if package else ""),
            remedy=remedy_for([package]) if package else None,
        )
    return path


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a host tool to its end, with a plain locale and nothing on standard input; returns its standard output.

    ``argv[0]`` is looked up by ``require_tool``. Raises MissingToolError, ToolFailedError, and TareError if it cannot
    be started or on timeout (its whole process group is killed).
    """
    full = [str(require_tool(argv[0])), *argv[1:]]
    process: subprocess.Popen[bytes] | None = None
    try:
        process = subprocess.Popen(
            full,
            env={**os.environ, **PLAIN_ENVIRONMENT, **(env or {})},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        with interruptible():
            out, err = process.communicate(timeout=timeout_s)
    except BaseException as error:
        if process is None:
            if isinstance(error, OSError):
                where = error.filename or full[0]
                raise TareError(f"{argv[0]} cannot be started: {error.strerror} ({where})") from error
            raise
        with process:  # closes the pipes, and waits
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        if isinstance(error, TimeoutExpired):
            raise TareError(f"{argv[0]} did not finish within {timeout_s:g} s and was killed") from None
        raise
    if process.returncode != 0:
        raise ToolFailedError(argv, process.returncode, err.decode(errors="replace"))
    return out.decode(errors="replace")
