"""Runs the long tools of a build: their lines are followed, and each can be found by its marker and ended."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence

from tare.bench.errors import TareError
from tare.bench.ledger import MARKER_VARIABLE
from tare.bench.process import DEVNULL, PIPE, PLAIN_ENVIRONMENT, STDOUT, Popen, ToolFailedError, require_tool

Progress = Callable[[str], None]
"""Told what a build does now, in a few words."""


class Runner:
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
