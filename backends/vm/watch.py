"""Watches one guest from the host: a thread that stamps the events of its console and of its QEMU as they come."""

import contextlib
import os
import re
import selectors
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from tare.bench.interrupts import SLICE_S, check

_TAIL_LINES = 40
_READ_BYTES = 65536
_REAP_INTERVAL_S = 0.01
"""How often an ended QEMU that is another's child is looked at: no event says when it becomes ours."""
_MAX_LINE_BYTES = 1 << 16
"""Of a line of the console that has not ended, the last part is kept: what runs in the guest may write there too."""
_CREDENTIALS = struct.Struct("3i")
"""``struct ucred``: pid, uid, gid."""


class Mark(msgspec.Struct, frozen=True):
    """The guest's init reached ``name``: on the host's clock, and on the guest's (seconds since its kernel began)."""

    name: str
    host_s: float
    guest_s: float


_MARK = re.compile(r"tare: (?P<name>\w+) (?P<seconds>\d+\.\d+)$")
_FAILED = re.compile(r"tare: failed (?P<reason>.+)")
_PANIC = re.compile(r"(?P<reason>Kernel panic - not syncing.*)")

_LOADER = re.compile(r"SYSLINUX \d")
"""What the boot loader says first, where a guest has one. It prints no time."""
_DOWN = re.compile(r"reboot: Power down$")
"""The kernel's last words, whatever the guest runs and however quiet it is: nothing but the machine is left."""


def parse_line(line: str, host_s: float) -> Mark | str | None:
    """What a line of the console means: a mark, the reason why this guest is of no use, or nothing to us."""
    if match := _MARK.match(line):
        return Mark(match["name"], host_s, float(match["seconds"]))
    if _LOADER.match(line):
        return Mark("loader", host_s, 0.0)
    if match := _FAILED.match(line):
        return f"the guest gave up: {match['reason']}"
    if match := _PANIC.search(line):
        return f"the guest's kernel panicked: {match['reason']}"
    return None


class Watch:
    """What is known about one guest. Made by ``start_watch``; waiting is for one thread.

    ``born_s`` is when QEMU existed, with its ``pid``, ``gone_s`` when it was gone; ``marks`` are init's, ``down_s`` is
    when the guest's kernel had shut down. ``failure`` says why the guest is of no use, if it is; ``failed`` is an
    eventfd that becomes readable with it, for polling.
    ``running_s`` is when its processor began to run.
    ``agent_connected`` says whether the guest agent has opened its port.
    ``command_port`` is the host's end of the guest's command port once QEMU has connected to it.
    ``agent_socket`` is where QEMU listens for whoever speaks with the agent.
    """

    def __init__(self, folder: Path) -> None:
        self.console_socket = folder / "console"
        self.command_socket = folder / "command"
        self.agent_socket = folder / "agent"
        self.born_fifo = folder / "born"
        self.born_s: float | None = None
        self.pid: int | None = None
        self.marks: dict[str, Mark] = {}
        self.failure: str | None = None
        self.gone = False
        self.gone_s: float | None = None
        self.down_s: float | None = None
        self.running_s: float | None = None
        self.agent_connected = False
        self.command_port: socket.socket | None = None
        self._place: socket.socket | None = None
        self.failed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pidfd: int | None = None
        self._changed = threading.Condition()
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._unfinished = b""

    def wait(self, condition: Callable[[], bool], deadline_s: float) -> bool:
        """Wait until ``condition`` holds, the guest failed or ``deadline_s`` (monotonic) came; whether it holds.

        A signal interrupts it, in whichever thread.
        """
        while True:
            check()
            with self._changed:
                left_s = deadline_s - time.monotonic()
                self._changed.wait_for(lambda: condition() or self.failure is not None, min(SLICE_S, max(0.0, left_s)))
                if condition() or self.failure is not None or left_s <= 0:
                    return condition()

    def kill(self, deadline_s: float) -> bool:
        """SIGKILL QEMU and wait until it is gone; whether it is. Nothing to do if it was never born."""
        self.begin_kill()
        with self._changed:
            if self._pidfd is None and self.pid is None:
                return True
            self._changed.wait_for(lambda: self.gone, max(0.0, deadline_s - time.monotonic()))
            return self.gone

    def begin_kill(self) -> None:
        """SIGKILL QEMU, if it was born, and return at once."""
        with self._changed:
            if self._pidfd is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def console_tail(self) -> str:
        """The last lines that the guest wrote to its console."""
        with self._changed:
            unfinished = self._unfinished.decode(errors="replace").strip()
            return "\n".join([*self._lines, *([unfinished] if unfinished else [])])

    def on_born(self, pid: int, at_s: float) -> int | None:
        """QEMU exists. Returns a pidfd for it, or None if it is gone again."""
        with self._changed:
            self.pid, self.born_s = pid, at_s
            with contextlib.suppress(ProcessLookupError):
                self._pidfd = os.pidfd_open(pid)
            self._changed.notify_all()
        if self._pidfd is None:
            self.on_gone(at_s)
        return self._pidfd

    def on_gone(self, at_s: float) -> None:
        """QEMU ended."""
        with self._changed:
            self.gone, self.gone_s = True, at_s
            self._fail("QEMU ended")

    def reap(self) -> bool:
        """Let go of the ended QEMU, which libvirt waits for; False while another has it, who may leave it to us.

        It is our child if libvirt started it while we adopted orphans, and until its starter's end the starter's.
        """
        assert self.pid is not None
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return not Path(f"/proc/{self.pid}").exists()
        return True

    def on_console(self, data: bytes, at_s: float) -> None:
        """The guest wrote to its console."""
        with self._changed:
            *lines, unfinished = (self._unfinished + data).split(b"\n")
            self._unfinished = unfinished[-_MAX_LINE_BYTES:]
            for raw in lines:
                line = raw.decode(errors="replace").rstrip("\r")
                if line:
                    self._lines.append(line)
                match parse_line(line, at_s):
                    case Mark() as mark:
                        self.marks[mark.name] = mark
                    case str(reason):
                        self._fail(reason)
                if _DOWN.search(line):
                    self.down_s = at_s
            self._changed.notify_all()

    def on_running(self, at_s: float) -> None:
        """The guest's processor runs. Called by libvirt's event loop."""
        with self._changed:
            if self.running_s is None:
                self.running_s = at_s
            self._changed.notify_all()

    def keep_place(self) -> None:
        """Be at the host's end of the agent's port until libvirt is, which comes only when the agent has opened it.

        An agent that finds nobody there sleeps for 100 ms (qemu-ga 7.2, ``channel_event_cb``). QEMU has one at a time
        there, and libvirt wait for its turn.
        """
        with self._changed:  # or libvirt might come between, and wait for ever for a place that nobody leaves
            if self.agent_connected:
                return
            place = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                place.connect(str(self.agent_socket))
            except OSError:  # QEMU ends, which another event reports
                place.close()
            else:
                self._place = place

    def on_agent(self) -> None:
        """The guest agent opened its port, and libvirt is there. Called by libvirt's event loop."""
        with self._changed:
            self._leave_place()
            self.agent_connected = True
            self._changed.notify_all()

    def on_command_port(self, connection: socket.socket) -> None:
        """QEMU connected to the command port's socket."""
        with self._changed:
            self.command_port = connection
            self._changed.notify_all()

    def close(self) -> None:
        """Close what is open. After the thread has ended."""
        for descriptor in (self.failed, self._pidfd):
            if descriptor is not None:
                os.close(descriptor)
        if self.command_port is not None:
            self.command_port.close()
        self._leave_place()

    def _leave_place(self) -> None:
        if self._place is not None:
            self._place.close()
            self._place = None

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = reason
            os.eventfd_write(self.failed, 1)
        self._changed.notify_all()


@contextlib.contextmanager
def start_watch(folder: Path, *, born_by_console: bool = False, boots: bool = True) -> Iterator[Watch]:
    """A watch with its fifo and sockets in ``folder`` (short: a socket's path has at most 107 bytes).

    With ``born_by_console`` nobody writes to the fifo: who opens the console is QEMU, and is there since then.
    ``boots`` says whether the guest's agent is still to come, so that its place is kept.
    """
    watch = Watch(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(watch.close)
        stop = os.eventfd(0, os.EFD_CLOEXEC)
        stack.callback(os.close, stop)
        loop = _Loop(watch, stop, stack, born_by_console=born_by_console, boots=boots)
        thread = threading.Thread(target=loop.run, name=f"watch {folder.name}", daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(os.eventfd_write, stop, 1)
        yield watch


class _Loop:
    """The thread's body: one selector over all events of one guest. What it opens is closed with ``stack``."""

    def __init__(
        self, watch: Watch, stop: int, stack: contextlib.ExitStack, *, born_by_console: bool, boots: bool
    ) -> None:
        self._watch = watch
        self._boots = boots
        self._born_by_console = born_by_console
        # Entered before the thread starts, so closed after it has ended, whatever the thread adds.
        self._stack = stack.enter_context(contextlib.ExitStack())
        self._is_reaped = True
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self._selector.register(stop, selectors.EVENT_READ, None)
        os.mkfifo(watch.born_fifo, 0o600)
        # Open for writing too, so that it neither ends when QEMU has written nor keeps QEMU waiting.
        self._born = os.open(watch.born_fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, self._born)
        self._selector.register(self._born, selectors.EVENT_READ, self._read_born)
        self._console = self._listen(watch.console_socket, self._accept_console)
        self._command = self._listen(watch.command_socket, self._accept_command)

    def _listen(self, path: Path, accept: Callable[[float], None]) -> socket.socket:
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(path))
        listener.listen(1)
        self._selector.register(listener, selectors.EVENT_READ, accept)
        return listener

    def run(self) -> None:
        """Serve until ``stop`` is set."""
        while True:
            events = self._selector.select(None if self._is_reaped else _REAP_INTERVAL_S)
            self._is_reaped = self._is_reaped or self._watch.reap()
            now = time.monotonic()
            for key, _ in events:
                if key.data is None:
                    return
                key.data(now)

    def _read_born(self, now: float) -> None:
        self._selector.unregister(self._born)
        self._watch_over(int(os.read(self._born, 64)), now)

    def _watch_over(self, pid: int, now: float) -> None:
        pidfd = self._watch.on_born(pid, now)
        if pidfd is not None:
            self._selector.register(pidfd, selectors.EVENT_READ, lambda now: self._end(pidfd, now))

    def _end(self, pidfd: int, now: float) -> None:
        self._selector.unregister(pidfd)
        self._is_reaped = self._watch.reap()
        self._watch.on_gone(now)

    def _accept_console(self, now: float) -> None:
        connection, _address = self._console.accept()
        self._stack.callback(connection.close)
        if self._boots:
            self._watch.keep_place()
        if self._born_by_console:
            pid, _user, _group = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            self._watch_over(pid, now)
        self._selector.unregister(self._console)
        self._selector.register(connection, selectors.EVENT_READ, lambda now: self._read_console(connection, now))

    def _read_console(self, connection: socket.socket, now: float) -> None:
        try:
            data = connection.recv(_READ_BYTES)
        except ConnectionResetError:
            data = b""
        if data:
            self._watch.on_console(data, now)
        else:
            self._selector.unregister(connection)

    def _accept_command(self, _: float) -> None:
        connection, _address = self._command.accept()
        self._selector.unregister(self._command)
        self._watch.on_command_port(connection)
