"""A guest's serial line as the way to it: what its init says of its start, then its commands, one after the other.

Its other half is ``bench/image/guest/line.c``; the frames are those of a virtual machine's port for commands.
"""

import contextlib
import os
import re
import signal
import socket
import time
from typing import TYPE_CHECKING

import msgspec

from tare.backends.engines.box import BoxMeters
from tare.backends.engines.commands import EngineCommand
from tare.backends.engines.start import Begun, Started
from tare.backends.native.syscalls import have_same_memory
from tare.backends.vm.commands import GUEST_PROGRAM, CommandPort, Decoder, GuestSilentError
from tare.bench.catalogue import GuestSplit
from tare.bench.errors import BackendError
from tare.bench.interfaces import Instance
from tare.bench.interrupts import interruptible
from tare.bench.linux.memory import process_footprint
from tare.bench.linux.waiting import is_readable
from tare.bench.model import Command, Completed, Footprint, StartTimeline

if TYPE_CHECKING:
    from tare.backends.engines.box import Box
    from tare.backends.engines.core import Engine

CONSOLE_BYTES = 1 << 16
"""Of what a guest's console says, the last that is kept: root inside may write to it without end."""
WINDOW = 1024
"""How much is sent before the guest asks for more: ``LINE_WINDOW`` of ``bench/image/guest/guest.h``, and why."""
_READ_BYTES = 4096
_ENDING_S = 10.0
_FAREWELL = re.compile(r"reboot: [^\n]*\s*\Z")
"""The kernel's last line, which is not why it ends."""
_MARK = re.compile(rb"([a-z]+) (\d{1,9}\.\d{6})")


class Console:
    """What a guest's console says, through a socket: read when somebody asks, and full once the guest has said much.

    Not through a file: the kernel (6.1) opens no console that ``epoll`` refuses.
    """

    def __init__(self, living: contextlib.ExitStack) -> None:
        """It is open for as long as ``living``."""
        self._end, self.given = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        living.callback(self._end.close)
        self._said = b""

    def said(self) -> str:
        """The end of what it has said so far."""
        with contextlib.suppress(BlockingIOError):
            self._said = (self._said + self._end.recv(CONSOLE_BYTES))[-CONSOLE_BYTES:]
        return _FAREWELL.sub("", self._said.decode(errors="replace"))


class Line:
    """The host's end of the line of a guest that is ready; ``marks`` are its own seconds at each mark of its init."""

    def __init__(self, connection: socket.socket, pid: int, marks: dict[str, float], console: Console) -> None:
        self.connection = connection
        self.marks = marks
        self.console = console
        self.gone = os.pidfd_open(pid)

    def close(self) -> None:
        """The guest, if it is still there, powers off."""
        self.connection.close()
        if self.gone >= 0:
            os.close(self.gone)
        self.gone = -1

    def is_gone(self) -> bool:
        """Whether the guest's kernel has ended."""
        return is_readable(self.gone)

    def power_off(self, timeout_s: float) -> bool:
        """Ask the guest to power off; whether it did within the time."""
        with contextlib.suppress(GuestSilentError, BackendError):  # it may be gone before it has answered
            CommandPort(self.connection, self.gone, window=WINDOW).run(
                Command((GUEST_PROGRAM, "poweroff"), timeout_s=timeout_s)
            )
        return is_readable(self.gone, timeout_s)


class LineReport:
    """By marks on the line, which is the engine's standard input."""

    def __init__(self, starting: contextlib.ExitStack, console: Console) -> None:
        """``starting`` lives until the guest is ready."""
        self.console = console
        self._ours, self._theirs = socket.socketpair()
        starting.callback(self._release)
        self._passed = starting.enter_context(contextlib.ExitStack())
        self._passed.callback(self._theirs.close)
        self._passed.callback(console.given.close)
        self.streams = (self._theirs.fileno(), console.given.fileno(), console.given.fileno())
        self._pid = -1
        self._taken = False

    def _release(self) -> None:
        if not self._taken:
            self._ours.close()

    def fileno(self) -> int:
        return self._ours.fileno()

    def begun(self, begun: Begun) -> None:
        self._passed.close()
        assert isinstance(begun, EngineCommand)
        self._pid = begun.pid

    def hear(self, deadline: float) -> Started | None:
        """All that init says until it is ready. Raises BackendError for what is no mark of it."""
        decoder, marks = Decoder(), dict[str, float]()
        first_s = 0.0
        while "ready" not in marks:
            with interruptible():
                ready = is_readable(self._ours.fileno(), deadline - time.monotonic())
            if not ready:
                raise BackendError("the guest's init did not finish in time", evidence=self.console.said())
            heard_s = time.monotonic()
            data = self._ours.recv(_READ_BYTES)
            if not data:
                return None
            first_s = first_s or heard_s
            for kind, payload in decoder.feed(data):
                found = _MARK.fullmatch(payload)
                if kind != b"M" or found is None:
                    raise BackendError(f"the guest's init said what it never does: {kind!r} {payload[:80]!r}")
                marks[found[1].decode()] = float(found[2])
        self._taken = True
        return Started(self._pid, first_s, heard_s, line=Line(self._ours, self._pid, marks, self.console))


class LineInstance(BoxMeters, Instance):
    """A guest whose commands go over its line."""

    def __init__(self, engine: "Engine", box: "Box", started: Started, timeline: StartTimeline) -> None:
        assert started.line is not None
        self.timeline = timeline
        self.pid = started.pid
        self._engine = engine
        self._box = box
        self._line = started.line
        self._port = CommandPort(self._line.connection, self._line.gone, box.folder, WINDOW, "its kernel")
        marks = self._line.marks
        timeline.splits[GuestSplit.KERNEL] = marks["line"]
        timeline.splits[GuestSplit.INIT] = marks["ready"] - marks["line"]

    def execute(self, command: Command) -> Completed:
        """A guest that does not answer is killed."""
        if self._line.is_gone():
            raise self._failure("the guest is gone")
        try:
            return self._port.run(command)
        except GuestSilentError as error:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._line.gone, signal.SIGKILL)
            is_readable(self._line.gone, _ENDING_S)
            raise self._failure(f"{error}; it was killed") from error

    def _failure(self, message: str) -> BackendError:
        return BackendError(message, evidence=self._line.console.said())

    def footprint(self) -> Footprint:
        """The kernel's thread for its disks is a process with the kernel's own memory, which counts once."""
        held = super().footprint()
        others = (pid for pid in self._box.groups.meter.members() if pid != self.pid)
        again = process_footprint(pid for pid in others if have_same_memory(self.pid, pid))
        parts = zip(("pss_bytes", "private_bytes", "rss_bytes"), again, strict=True)
        less = {name: getattr(held, name) - part for name, part in parts if part is not None}
        return msgspec.structs.replace(held, **less)

    def gone_descriptor(self) -> int:
        """Of the kernel's process."""
        return self._line.gone

    def end(self) -> None:
        self._box.groups.begin_kill()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._line.gone, signal.SIGKILL)
