"""Runs a command in a guest: the host's half of the protocol that ``bench/image/guest/command.c`` describes.

The guest agent starts the guest's half, which then speaks with us over a virtio port of its own. Nothing is polled:
the frames are stamped as they come.
"""

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tare.bench.errors import BackendError, WorkloadError
from tare.bench.interrupts import interruptible
from tare.bench.model import BASE_ENVIRONMENT, Command, Completed
from tare.bench.spool import Spool

_HEADER = struct.Struct("<cI")
_COUNTS = struct.Struct("<3I")
_TIME = struct.Struct("<Q")
_FAILURE = struct.Struct("<ci")
_END = struct.Struct("<iiQ")
_WELCOME = struct.Struct("<I")
_READ_BYTES = 1 << 18
_MAX_FRAME_BYTES = 1 << 17
"""Twice what the guest's half sends at once."""
_MOST_STATUS, _MOST_SIGNAL = 255, 64
_STREAMS = {b"O": "stdout", b"E": "stderr"}

GUEST_PROGRAM = "/run/tare/guest"
"""Where a guest has its own program (bench/image/guest, where a test compares it)."""
START_DEADLINE_S = 30.0
"""For the guest's half to start and to start the program, which takes 0.1 s under emulation."""
KILLED_DEADLINE_S = 15.0
"""For a killed command's processes to be gone; the guest itself gives up after 10 s."""
SEND_DEADLINE_S = 30.0


def encode_frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEADER.pack(kind, len(payload)) + payload


def encode_request(command: Command, environment: Mapping[str, str]) -> bytes:
    """The frame that asks for a command."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    strings = (command.cwd, *command.argv, *variables)
    counts = _COUNTS.pack(bool(command.stdin), len(command.argv), len(variables))
    return encode_frame(b"R", counts + b"".join(os.fsencode(text) + b"\0" for text in strings))


class Decoder:
    """Frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The frames (kind, payload) that are complete with ``data``. Raises BackendError for one that is too long."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer)
            if length > _MAX_FRAME_BYTES:
                raise _malformed(f"{length} bytes announced, and none has more than {_MAX_FRAME_BYTES}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield kind, payload


class Conversation:
    """What has been said about one command; ``on_frame`` is given the guest's frames as they come."""

    def __init__(self, command: Command, send: Callable[[bytes], None], folder: Path | None = None) -> None:
        """``folder`` is where much output is kept."""
        self.command = command
        self.started_s: float | None = None
        self.ended_s: float | None = None
        self.done = False
        self.request = memoryview(b"")
        """What the guest has not asked for yet."""
        self._send = send
        self._stdin = memoryview(command.stdin)
        self._spool = Spool(command.argv[0], folder)
        self._failure: tuple[bytes, int] | None = None
        self._guest_started_ns = 0
        self._end = (-1, 0, 0)

    def on_frame(self, kind: bytes, payload: bytes, at_s: float) -> None:
        """Take in one frame of the guest. Raises BackendError for one that its own half does not send."""
        try:
            self._take(kind, payload, at_s)
        except struct.error as error:
            raise _malformed(f"{kind!r} with {len(payload)} bytes") from error

    def _take(self, kind: bytes, payload: bytes, at_s: float) -> None:
        match kind:
            case b"S":
                self.started_s = at_s
                (self._guest_started_ns,) = _TIME.unpack(payload)
            case b"O" | b"E":
                self._spool.add(_STREAMS[kind], payload)
            case b"W":
                self._feed(*_WELCOME.unpack(payload))
            case b"F":
                self._failure = _FAILURE.unpack(payload)
            case b"X":
                self.ended_s = at_s
                self._end = _END.unpack(payload)
                if not (-1 <= self._end[0] <= _MOST_STATUS and 0 <= self._end[1] <= _MOST_SIGNAL):
                    raise _malformed(f"status {self._end[0]}, signal {self._end[1]}")
            case b"D":
                self.done = True

    def _feed(self, welcome: int) -> None:
        if self.request:
            more, self.request = self.request[:welcome], self.request[welcome:]
            self._send(bytes(more))
            return
        part, self._stdin = self._stdin[:welcome], self._stdin[welcome:]
        self._send(encode_frame(b"I", bytes(part)) if part else encode_frame(b"Z"))

    def completed(self, *, timed_out: bool) -> Completed:
        """How the command ended. Raises WorkloadError or BackendError if it never was a program."""
        step, number = self._failure or (b"", 0)
        if step == b"c":
            raise WorkloadError(f"{self.command.argv[0]}: working directory {self.command.cwd}: {os.strerror(number)}")
        if step == b"f" or self.started_s is None or self.ended_s is None:
            raise BackendError(f"the guest could not start a process: {os.strerror(number)}")
        status, ended_by, guest_ended_ns = self._end
        if step == b"e":
            status = 127 if number == errno.ENOENT else 126
        return Completed(
            argv=self.command.argv,
            returncode=None if ended_by else status,
            signal=ended_by or None,
            started_s=self.started_s,
            ended_s=self.ended_s,
            timed_out=timed_out,
            guest_duration_s=(guest_ended_ns - self._guest_started_ns) / 1e9,
            **self._spool.fields(),
        )


def _malformed(how: str) -> BackendError:
    return BackendError(
        f"the guest sent what its own program never does: {how}",
        remedy="see whether what runs in the guest writes to tare's port",
    )


class GuestSilentError(Exception):
    """The guest did not answer in time, or its process on the host is gone; the message says what was waited for."""


class CommandPort:
    """The host's end of the port. ``failed`` is a descriptor that becomes readable when the guest is of no use."""

    def __init__(
        self,
        connection: socket.socket,
        failed: int,
        folder: Path | None = None,
        window: int | None = None,
        who: str = "QEMU",
    ) -> None:
        """``window`` is how much of a request the guest takes before it asks for more; None for all of it.

        ``who`` runs the guest.
        """
        self._folder = folder
        self._who = who
        self._window = window
        self._connection = connection
        self._connection.settimeout(SEND_DEADLINE_S)
        self._decoder = Decoder()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(failed, select.POLLIN)

    def run(self, command: Command) -> Completed:
        """Run a command whose guest half was started already. Raises GuestSilentError, WorkloadError, BackendError."""
        conversation = Conversation(command, self._send, self._folder)
        self._ask(conversation, encode_request(command, {**BASE_ENVIRONMENT, **command.env}))
        started = self._listen(
            conversation,
            lambda: conversation.started_s is not None or conversation.done,
            time.monotonic() + START_DEADLINE_S,
        )
        if not started:
            raise GuestSilentError(f"the guest did not start the command within {START_DEADLINE_S:g} s")
        deadline = (conversation.started_s or time.monotonic()) + command.timeout_s
        timed_out = not self._listen(conversation, lambda: conversation.ended_s is not None, deadline)
        if timed_out:
            self._send(encode_frame(b"K"))
        if not self._listen(conversation, lambda: conversation.done, time.monotonic() + KILLED_DEADLINE_S):
            raise GuestSilentError("the guest did not report the command's end")
        return conversation.completed(timed_out=timed_out)

    def _ask(self, conversation: Conversation, request: bytes) -> None:
        """Send a request, its parts as the guest asks for them."""
        part = len(request) if self._window is None else _HEADER.size + self._window
        self._send(request[:part])
        conversation.request = memoryview(request)[part:]

    def _listen(self, conversation: Conversation, heard: Callable[[], bool], deadline: float) -> bool:
        while not heard():
            left = deadline - time.monotonic()
            with interruptible():
                events = self._poll.poll(left * 1000) if left > 0 else []
            now = time.monotonic()
            if not events:
                return False
            if not any(descriptor == self._connection.fileno() for descriptor, _ in events):
                raise GuestSilentError("the guest failed while it ran the command")
            data = self._connection.recv(_READ_BYTES)
            if not data:
                raise GuestSilentError(f"{self._who} ended while the command ran")
            for kind, payload in self._decoder.feed(data):
                conversation.on_frame(kind, payload, now)
        return True

    def _send(self, frame: bytes) -> None:
        try:
            self._connection.sendall(frame)
        except OSError as error:
            raise GuestSilentError(f"the guest does not read what it is sent ({error})") from error
