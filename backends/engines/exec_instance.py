"""An instance whose commands go through the engine's own exec, where nothing inside reaches the harness.

Each is run by tare's program, which says on standard error when it begins and how it ended, so that "not found", "not
executable", a signal and an exit code are told apart whatever the engine makes of them.
"""

import contextlib
import os
import secrets
import select
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tare.backends.engines.box import BoxMeters
from tare.backends.engines.start import INSIDE, Started
from tare.bench.errors import BackendError, WorkloadError
from tare.bench.interfaces import Instance
from tare.bench.interrupts import interruptible
from tare.bench.model import (
    BASE_ENVIRONMENT,
    Command,
    Completed,
    StartTimeline,
)
from tare.bench.spool import Spool

if TYPE_CHECKING:
    from tare.backends.engines.box import Box
    from tare.backends.engines.commands import EngineCommand
    from tare.backends.engines.core import Engine

_PROGRAM = f"{INSIDE}/program"
_CHUNK_BYTES = 1 << 20
_KILLED_DEADLINE_S = 20.0
_LATE_S = 30.0
"""How long the engine itself may take around a command."""


class ExecInstance(BoxMeters, Instance):
    """A container whose first process is ``HOLD``."""

    def __init__(self, engine: "Engine", box: "Box", started: Started, timeline: StartTimeline) -> None:
        self.timeline = timeline
        self.pid = started.pid
        self._engine = engine
        self._box = box
        self._gone = os.pidfd_open(started.pid)
        self._met: dict[str, int] = {}

    def execute(self, command: Command) -> Completed:
        """Raises WorkloadError if the working directory is not there."""
        environment = {**BASE_ENVIRONMENT, **command.env}
        variables = [f"{name}={value}" for name, value in environment.items()]
        if any("\0" in text for text in (*command.argv, *variables)):
            raise WorkloadError(f"{command.argv[0]!r}: an argument or environment variable holds a NUL character")
        mark = f"\x01tare-{secrets.token_hex(8)}"
        argv = (_PROGRAM, "run", mark, command.cwd, str(len(variables)), *variables, *command.argv)
        with contextlib.ExitStack() as stack:
            streams = _Streams(stack, command, mark.encode(), self._box.folder)
            asked_s = time.monotonic()
            running = stack.enter_context(self._spawn(argv, streams.given))
            streams.passed_on()
            timed_out = not streams.collect(running, asked_s + command.timeout_s)
            if timed_out:
                self._sweep()
                streams.collect(running, time.monotonic() + _KILLED_DEADLINE_S)
            return self._completed(command, streams, running, timed_out=timed_out)

    def _completed(
        self, command: Command, streams: "_Streams", running: "EngineCommand", *, timed_out: bool
    ) -> Completed:
        if streams.refused:
            raise WorkloadError(f"{command.argv[0]}: working directory {command.cwd}: {streams.refused}")
        met = self._limits_met()
        ended = timed_out or streams.outcome is not None or met["oom_kills"]
        if streams.began_s is None or not ended:
            raise BackendError(
                f"{self._engine.name} did not execute a command: is the instance gone?",
                evidence=running.printed(),
            )
        # Without an outcome it was killed: for its timeout, or with the whole instance for memory.
        code, number, took_ns = streams.outcome or (-1, signal.SIGKILL, None)
        return Completed(
            argv=command.argv,
            returncode=None if number else code,
            signal=number or None,
            started_s=streams.began_s,
            ended_s=streams.ended_s or time.monotonic(),
            timed_out=timed_out,
            guest_duration_s=None if took_ns is None else took_ns / 1e9,
            **streams.spool.fields(),
            **met,
        )

    def _spawn(self, argv: tuple[str, ...], streams: tuple[int, ...]) -> AbstractContextManager["EngineCommand"]:
        asked = self._engine.exec_command(self._box, argv)
        assert asked is not None
        return self._engine.spawn(self._box, asked, streams=streams)

    def _sweep(self) -> None:
        """End all that runs inside: processes inside are none of the host's, so no cgroup tells them from the first."""
        with self._spawn((_PROGRAM, "sweep"), ()) as running:
            running.finish(time.monotonic() + _KILLED_DEADLINE_S)

    def _limits_met(self) -> dict[str, Any]:
        group = self._box.groups.container
        try:
            now = {name: int(group.meter.read(name) or 0) for name in ("oom_kills", "pids_refused")}
        except OSError:  # the engine removes the group with the container
            return {"oom_kills": 0, "pids_refused": 0}
        since: dict[str, Any] = {name: count - self._met.get(name, 0) for name, count in now.items()}
        self._met = now
        return since | ({"outer_limit": group.outer_memory_limit()} if since["oom_kills"] else {})

    def gone_descriptor(self) -> int:
        """Of the sandbox's process."""
        return self._gone

    def end(self) -> None:
        self._box.groups.begin_kill()

    def close(self) -> None:
        """Let go of its first process."""
        os.close(self._gone)


class _Streams:
    """The streams of one command, and what its lines with the mark say."""

    def __init__(self, stack: contextlib.ExitStack, command: Command, mark: bytes, folder: Path) -> None:
        """``folder`` is for output that is too long for memory."""
        self.spool = Spool(command.argv[0], folder)
        self._mark = mark
        self._pending = b""
        self._readers: dict[int, str] = {}
        self._passed = stack.enter_context(contextlib.ExitStack())
        given = os.memfd_create("stdin", os.MFD_CLOEXEC)
        self._passed.callback(os.close, given)
        _fill(given, command.stdin)
        writers = []
        for name in ("stdout", "stderr"):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reader, False)
            stack.callback(os.close, reader)
            self._passed.callback(os.close, writer)
            self._readers[reader] = name
            writers.append(writer)
        self.given = (given, *writers)
        self.began_s: float | None = None
        self.ended_s = 0.0
        self.outcome: tuple[int, int, int] | None = None
        self.refused = ""

    def passed_on(self) -> None:
        """Called once the command has them."""
        self._passed.close()

    def collect(self, running: "EngineCommand", deadline: float) -> bool:
        """Empty the streams until the command has said how it ended, or the engine's has; False at the deadline."""
        poll = select.poll()
        for descriptor in (*self._readers, running.fileno()):
            poll.register(descriptor, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            with interruptible():
                ready = poll.poll(left * 1000)
            for descriptor, _ in ready:
                if descriptor != running.fileno() and self._read(descriptor) is False:
                    poll.unregister(descriptor)
                if descriptor == running.fileno() or self.outcome is not None or self.refused:
                    self._drain()
                    return True
        self.ended_s = time.monotonic()
        return False

    def _drain(self) -> None:
        """What was written before the end is in the pipes by now."""
        for reader in self._readers:
            while self._read(reader):
                pass
        if self.outcome is None and not self.refused:
            self.spool.add("stderr", self._pending)
        self._pending = b""

    def _read(self, reader: int) -> bool | None:
        """Whether there was something; False at the end, None for nothing yet."""
        try:
            part = os.read(reader, _CHUNK_BYTES)
        except BlockingIOError:
            return None
        if self._readers[reader] == "stdout":
            self.spool.add("stdout", part)
        elif self.outcome is None and not self.refused:  # what comes later is of processes that it has left behind
            self._pending += part
            self._look()
        return bool(part)

    def _look(self) -> None:
        """Take the lines with the mark out of standard error, and keep the rest."""
        now = time.monotonic()
        while (at := self._pending.find(self._mark)) >= 0:
            line, newline, rest = self._pending[at:].partition(b"\n")
            self.spool.add("stderr", self._pending[:at])
            self._pending = self._pending[at:]
            if not newline:
                return
            self._pending = rest
            kind, *said = line[len(self._mark) :].decode(errors="replace").split()
            if kind == "begin":
                self.began_s = self.began_s or now
            elif kind == "end":
                self.outcome = int(said[0]), int(said[1]), int(said[2])
                self.ended_s = now
                return
            else:
                self.refused = " ".join(said)
                return
        kept = min(len(self._pending), len(self._mark) - 1)  # a mark may have begun
        self.spool.add("stderr", self._pending[: len(self._pending) - kept])
        self._pending = self._pending[len(self._pending) - kept :]


def _fill(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
