"""Messages between the harness, the zygote and an instance's init: byte fields and file descriptors.

A message is its length, then each field with its length; descriptors ride on the first byte. Every connection is a
request and its answer in turn, so a message never shares a read with the next. What comes is not trusted: an instance
may have taken over its init (on bare metal its root can), so lengths are bounded and every wait ends.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Sequence

from tare.bench.errors import BackendError

_LENGTH = struct.Struct("=I")
_INT = struct.calcsize("=i")
_MAX_DESCRIPTORS = 8
_ANCILLARY = socket.CMSG_SPACE(_MAX_DESCRIPTORS * _INT)
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
MAX_ANSWER_BYTES = 1 << 16
"""Far above anything that the zygote or an init says."""
DEADLINE_S = 10.0
"""For the rest of a message that has begun, and for taking one."""


class Channel:
    """The harness's end of a connected stream socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.settimeout(0)

    def fileno(self) -> int:
        """The descriptor, for ``poll``."""
        return self._socket.fileno()

    def send(self, *fields: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one message. Raises OSError: BrokenPipeError if the other end is gone, TimeoutError if it takes none."""
        body = b"".join([_LENGTH.pack(len(field)) + field for field in fields])
        message = memoryview(_LENGTH.pack(len(body)) + body)
        rights = [(*_RIGHTS, struct.pack(f"={len(descriptors)}i", *descriptors))] if descriptors else []
        deadline = time.monotonic() + DEADLINE_S
        while message:
            try:
                sent = self._socket.sendmsg([message], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
            else:
                message, rights = message[sent:], []

    def receive(self, deadline: float | None = None) -> tuple[list[bytes], list[int]]:
        """The next message: its fields and descriptors (close-on-exec), begun by ``deadline`` (monotonic).

        Raises EOFError if the other end is gone, TimeoutError, and BackendError for what is no message.
        """
        if deadline is not None:
            self._wait(select.POLLIN, deadline)
        descriptors: list[int] = []
        try:
            return _split(self._receive_body(descriptors)), descriptors
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def _receive_body(self, descriptors: list[int]) -> bytes:
        deadline = time.monotonic() + DEADLINE_S
        body, wanted = b"", _LENGTH.size
        while len(body) < wanted:
            try:
                part, ancillary, _, _ = self._socket.recvmsg(MAX_ANSWER_BYTES, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                if not self.wait(deadline):
                    raise malformed("it did not end") from None
                continue
            except ConnectionResetError:
                raise EOFError from None
            for level, kind, data in ancillary:
                if (level, kind) == _RIGHTS:
                    descriptors += struct.unpack(f"={len(data) // _INT}i", data[: len(data) - len(data) % _INT])
            if not part:
                raise EOFError
            body += part
            if len(body) >= _LENGTH.size:
                wanted = _LENGTH.size + _LENGTH.unpack_from(body)[0]
                if wanted > MAX_ANSWER_BYTES:
                    raise malformed(f"{wanted} bytes announced, and none has more than {MAX_ANSWER_BYTES}")
        return body[_LENGTH.size :]

    def _wait(self, event: int, deadline: float) -> None:
        if not self.wait(deadline, event):
            raise TimeoutError("no answer from the other end of the channel")

    def wait(self, deadline: float, event: int = select.POLLIN) -> bool:
        """Wait for something to receive, or the other end's end; False once ``deadline`` (monotonic) has passed."""
        poll = select.poll()
        poll.register(self.fileno(), event)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def close(self) -> None:
        """Close this end. Safe to call twice."""
        self._socket.close()


def _split(body: bytes) -> list[bytes]:
    fields = []
    at = 0
    while at < len(body):
        end = at + _LENGTH.size
        end += _LENGTH.unpack_from(body, at)[0] if end <= len(body) else 1
        if end > len(body):
            raise malformed("a field is longer than the message")
        fields.append(body[at + _LENGTH.size : end])
        at = end
    return fields


def malformed(how: str) -> BackendError:
    """What to raise for a message that no program of tare's sends."""
    return BackendError(
        f"the instance's init sent a malformed message: {how}",
        remedy="see whether what runs in the instance has taken over its first process",
    )


def join_list(items: Sequence[str]) -> bytes:
    """Strings without NUL as one field. An empty list and a list of one empty string are the same field."""
    return "\0".join(items).encode("utf-8", "surrogateescape")
