"""Runs the long tools of a build: each can be found by its marker and ended; and tells what fails in a build.

In one message with what to do about it.
"""

import contextlib
import errno
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tare.bench.errors import ExitCode, ImageError, TareError
from tare.bench.ledger import MARKER_VARIABLE
from tare.bench.locations import CACHE_VARIABLE
from tare.bench.process import DEVNULL, PIPE, PLAIN_ENVIRONMENT, STDOUT, Popen, ToolFailedError, require_tool

Progress = Callable[[str], None]
"""Told what a build does now, in a few words."""


class ToolRunner:
    """Runs tools that carry ``marker`` in their environment, so that ``clean`` finds them after a crash.

    Safe to use from several threads. ``stop`` ends everything that runs and lets nothing new start.
    """

    def __init__(self, marker: str) -> None:
        self._env = {**os.environ, **PLAIN_ENVIRONMENT, MARKER_VARIABLE: marker}
        self._lock = threading.Lock()
        self._running: set[Popen[str]] = set()
        self._stopped = False

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        on_line: Callable[[str], None] = lambda _line: None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run a tool to its end and return what it printed, standard error included.

        ``on_line`` gets each line as it comes. Raises MissingToolError, ToolFailedError with the whole output,
        and TareError on timeout.
        """
        full = [str(require_tool(argv[0])), *argv[1:]]
        process = self._start(full, env or {})
        late = threading.Event()

        def end_late() -> None:
            late.set()
            _kill_group(process)

        timer = threading.Timer(timeout_s, end_late)
        timer.daemon = True
        timer.start()
        lines: list[str] = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                on_line(line.rstrip("\n"))
            process.wait()
        finally:
            timer.cancel()
            _kill_group(process)
            process.wait()
            with self._lock:
                self._running.discard(process)
            if process.stdout is not None:
                process.stdout.close()
        if late.is_set():
            raise TareError(f"{argv[0]} did not finish within {timeout_s:g} s and was killed")
        if process.returncode != 0:
            raise ToolFailedError(argv, process.returncode, "".join(lines))
        return "".join(lines)

    def stop(self) -> None:
        """Kill what runs, whatever thread waits for it."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill_group(process)

    def _start(self, full: Sequence[str], env: Mapping[str, str]) -> "Popen[str]":
        with self._lock:
            if self._stopped:
                raise TareError(f"{full[0]} was not started: the build was given up")
            process = Popen(
                full,
                env={**self._env, **env},
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                text=True,
                errors="replace",
                # A session of its own: ctrl-C reaches tare alone, which then ends the whole group.
                start_new_session=True,
                umask=0o022,
            )
            self._running.add(process)
            return process


def _kill_group(process: "Popen[str]") -> None:
    # The leader is not reaped before this (poll is not called), so its number cannot belong to somebody else.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


_FULL_REMEDY = f"free some space, or set {CACHE_VARIABLE} to a folder on a larger disk; then run the same command again"


class ImageBuildError(ImageError):
    """The machine, the network or the archive refused something in the middle of a build."""

    exit_code = ExitCode.ENVIRONMENT


_NOISE = re.compile(r"received signal|mmdebstrap failed to run|^Reading package lists")
"""Lines that say nothing beyond that mmdebstrap has failed."""


def explain_build_failure(output: str, suite: str) -> ImageError:
    """The error for a failed mmdebstrap, from what it and apt printed (their English messages)."""
    told = [line for line in output.splitlines() if line.strip() and not _NOISE.search(line)]
    tail = "\n".join(f"    {line}" for line in told[-8:]) or "    (no output)"
    if "No space left on device" in output:
        return ImageBuildError(f"the disk became full while the image was built:\n{tail}", remedy=_FULL_REMEDY)
    unknown = sorted(set(re.findall(r"Unable to locate package (\S+)", output)))
    unknown += sorted(set(re.findall(r"Package '?([^\s']+)'? has no installation candidate", output)))
    if unknown:
        return ImageError(
            f"Debian {suite} has no package {', '.join(unknown)}",
            remedy="correct the packages of the suite, or of the workload that asks for them",
        )
    if re.search(
        r"Temporary failure resolving|Could not resolve|Could not connect|Network is unreachable|Connection refused"
        r"|Connection timed out|Unable to connect|Failed to fetch|does not have a Release file",
        output,
    ):
        return ImageBuildError(
            f"the Debian archive cannot be reached, or does not have what was asked for:\n{tail}",
            remedy="see that `apt-get update` works on this host; the image is built from the same sources",
        )
    if "NO_PUBKEY" in output or "is not signed" in output:
        return ImageBuildError(
            f"the Debian archive's signature cannot be checked:\n{tail}",
            remedy="apt-get install debian-archive-keyring",
        )
    return ImageBuildError(f"mmdebstrap could not build the root file system:\n{tail}")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn an OSError of the block, a full disk above all, into an ImageBuildError that says what was being done."""
    try:
        yield
    except OSError as error:
        remedy = _FULL_REMEDY if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        place = f" ({error.filename})" if error.filename else ""
        raise ImageBuildError(f"{doing}: {error.strerror or error}{place}", remedy=remedy) from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise ImageBuildError if a build would run into a full disk."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        needed, free = f"{needed_bytes / 1e9:.1f} GB", f"{free_bytes / 1e9:.1f} GB"
        raise ImageBuildError(f"an image takes {needed} while it is made, and {folder} has {free}", remedy=_FULL_REMEDY)
