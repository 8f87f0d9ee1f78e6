"""The start of a container: what is waited for, by descriptors, and the marks that it leaves."""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from tare.backends.engines.groups import JoinWatch
from tare.backends.native.channel import Channel
from tare.bench.engine import StartedBy
from tare.bench.errors import BackendError
from tare.bench.interrupts import interruptible
from tare.bench.model import Phase, StartTimeline

if TYPE_CHECKING:
    from tare.backends.engines.line import Line

INSIDE = "/.tare"
"""Where tare's own folder appears in a container, read-only: its program, and the socket by which that reports."""
LIVE = (f"{INSIDE}/program", "live", f"{INSIDE}/socket")
"""The command of a container: its first process, which reports by a socket and runs commands for the harness."""
HOLD = (f"{INSIDE}/program", "hold")
"""The same where nothing inside reaches a socket of the host's: it writes a byte to its standard output, and stays."""
START_DEADLINE_S = 60.0
_PANIC = "Kernel panic"
_READY = struct.Struct("=qq")
_CREDENTIALS = struct.Struct("=3i")


def last_line(printed: str) -> str:
    """What a program said last, which is most often the reason of its end; a kernel says it before its stack."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    panic = next((line for line in lines if line.startswith(_PANIC)), None)
    return panic or (lines[-1] if lines else "(it printed nothing)")


class Begun(Protocol):
    """A start that was asked for: ``EngineCommand``, or what an engine with an interface of its own returns."""

    def fileno(self) -> int:
        """A descriptor that is readable once the engine has returned."""

    def finish(self, deadline: float) -> None:
        """Raises BackendError if it failed, or has not returned by ``deadline`` (monotonic)."""

    def printed(self) -> str:
        """What the engine said, as evidence."""


class Started(msgspec.Struct, frozen=True):
    """A container whose first process has reported: its pid on the host, and when (host monotonic seconds)."""

    pid: int
    first_s: float
    ready_s: float
    channel: Channel | None = None
    line: "Line | None" = None

    def close(self) -> None:
        """Let go of the first process."""
        for way in (self.channel, self.line):
            if way is not None:
                way.close()


class Report(Protocol):
    """How the first process of a container reports."""

    def fileno(self) -> int:
        """A descriptor that is readable once it has."""

    def begun(self, begun: Begun) -> None:
        """Called once the engine has what is the container's."""

    def hear(self, deadline: float) -> Started | None:
        """What it said; None if it ended instead."""


class SocketReport:
    """By a socket in the folder that is given to the container."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        """It listens for as long as ``stack``, however long the path of ``folder`` is."""
        self._listener = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
        above = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listener.bind(f"/proc/self/fd/{above}/socket")
        finally:
            os.close(above)
        self._listener.listen(1)

    def fileno(self) -> int:
        return self._listener.fileno()

    def begun(self, begun: Begun) -> None:
        """Nothing is passed on."""

    def hear(self, deadline: float) -> Started | None:
        connection, _ = self._listener.accept()
        channel = Channel(connection)
        try:
            fields, _ = channel.receive(deadline)
            ready_s = time.monotonic()
            first_s = _READY.unpack(fields[1])[1] / 1e9
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except (EOFError, TimeoutError, struct.error, IndexError):
            channel.close()
            return None
        except BaseException:
            channel.close()
            raise
        return Started(_CREDENTIALS.unpack(peer)[0], first_s, ready_s, channel)


class StreamReport:
    """By its standard output; its standard input ends with the harness, and it with that."""

    def __init__(
        self, starting: contextlib.ExitStack, living: contextlib.ExitStack, members: Callable[[], list[int]]
    ) -> None:
        """``starting`` lives until the container has reported, ``living`` as long as it does.

        ``members`` finds the container's processes on the host.
        """
        given, keep = os.pipe2(os.O_CLOEXEC)
        told, tell = os.pipe2(os.O_CLOEXEC)
        living.callback(os.close, keep)
        starting.callback(os.close, told)
        self.streams = (given, tell)
        self._told = told
        self._members = members
        self._passed = starting.enter_context(contextlib.ExitStack())
        for descriptor in self.streams:
            self._passed.callback(os.close, descriptor)

    def fileno(self) -> int:
        return self._told

    def begun(self, begun: Begun) -> None:
        del begun
        self._passed.close()

    def hear(self, deadline: float) -> Started | None:
        del deadline
        now = time.monotonic()
        if not os.read(self._told, 1):
            return None
        members = self._members()
        return Started(min(members), now, time.monotonic()) if members else None


class Start:
    """One start: what the engine was asked, and what is waited for until the instance is ready."""

    def __init__(self, name: str, report: Report, watch: JoinWatch, timeline: StartTimeline, deadline: float) -> None:
        """``name`` is the engine's, ``deadline`` monotonic."""
        self._name = name
        self._report = report
        self._watch = watch
        self._timeline = timeline
        self._deadline = deadline
        self._started: Started | None = None

    def run(self, begun: Begun, *, returns: bool) -> Started:
        """Wait until the first process has reported, and the engine has returned if it does. Raises BackendError."""
        poll = select.poll()
        waited = {self._report.fileno(), *([begun.fileno()] if returns else [])}
        for descriptor in (begun.fileno(), self._report.fileno(), self._watch.fileno()):
            poll.register(descriptor, select.POLLIN)
        try:
            while waited:
                ready = self._wait(poll, begun)
                # The engine first: its reason is better than the container's silence.
                ordered = sorted(ready, key=lambda descriptor: descriptor != begun.fileno())
                done = {descriptor for descriptor in ordered if self._take_note(descriptor, begun, returns=returns)}
                for descriptor in done:
                    poll.unregister(descriptor)
                waited -= done
        except BaseException:
            if self._started is not None:
                self._started.close()
            raise
        assert self._started is not None
        return self._started

    def _wait(self, poll: "select.poll", begun: Begun) -> set[int]:
        """The descriptors that tell something. Raises BackendError at the deadline."""
        with interruptible():
            ready = {descriptor for descriptor, _ in poll.poll(1000 * max(0.0, self._deadline - time.monotonic()))}
        if not ready:
            what = "has started nothing that reports" if self._started is None else "has not returned"
            raise BackendError(
                f"{self._name} {what} within its deadline, and was killed",
                remedy="see what it printed; `tare doctor` shows whether it works here at all",
                evidence=begun.printed(),
            )
        return ready

    def _take_note(self, descriptor: int, begun: Begun, *, returns: bool) -> bool:
        """Note what a descriptor tells; whether it has told all. Raises BackendError if the engine failed."""
        now = time.monotonic()
        if descriptor == self._watch.fileno():
            if self._watch.joined():
                self._timeline.marks.setdefault(Phase.CREATED, now)
            return Phase.CREATED in self._timeline.marks
        if descriptor == self._report.fileno():
            self._hear(begun)
            return True
        begun.finish(self._deadline)
        self._timeline.started[StartedBy.RETURNED] = now
        if not returns:
            ended = f"{self._name} ended before its container was ready: {last_line(begun.printed())}"
            raise BackendError(ended, evidence=begun.printed())
        return True

    def _hear(self, begun: Begun) -> None:
        """What the first process says; the marks of the start. Raises BackendError."""
        started = self._report.hear(self._deadline)
        if started is None:
            ended = f"the container of {self._name} ended before it was ready: {last_line(begun.printed())}"
            raise BackendError(ended, evidence=begun.printed())
        self._started = started
        if self._watch.joined():
            self._timeline.marks.setdefault(Phase.CREATED, started.first_s)
        created_s = self._timeline.marks.pop(Phase.CREATED, started.first_s)
        self._timeline.mark(Phase.CREATED, min(created_s, started.first_s))
        self._timeline.mark(Phase.FIRST_INSTRUCTION, started.first_s)
        self._timeline.mark(Phase.READY, started.ready_s)
        self._timeline.started[StartedBy.INSTRUCTION] = started.first_s
