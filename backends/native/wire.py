"""Messages between the harness, the zygote and an instance's init: byte fields and file descriptors.

Standard library only. A message is its length, then each field with its length; descriptors ride on the first
byte. Every connection is a request and its answer in turn, so a message never shares a read with the next.
"""

import _socket
import os
import select
import struct

_LENGTH = struct.Struct("=I")
_INT = struct.calcsize("=i")
_MAX_DESCRIPTORS = 8
_ANCILLARY = _socket.CMSG_SPACE(_MAX_DESCRIPTORS * _INT)
_RIGHTS = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)


class Channel:
    """One end of a connected stream socket."""

    def __init__(self, descriptor: int) -> None:
        self._socket = _socket.socket(fileno=descriptor)

    def fileno(self) -> int:
        """The descriptor, for ``poll``."""
        return self._socket.fileno()

    def send(self, *fields: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Send one message. Raises OSError, BrokenPipeError if the other end is gone."""
        body = b"".join([_LENGTH.pack(len(field)) + field for field in fields])
        message = memoryview(_LENGTH.pack(len(body)) + body)
        rights = [(*_RIGHTS, struct.pack(f"={len(descriptors)}i", *descriptors))] if descriptors else []
        sent = self._socket.sendmsg([message], rights, _socket.MSG_NOSIGNAL)
        while sent < len(message):
            sent += self._socket.send(message[sent:], _socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[list[bytes], list[int]]:
        """The next message: its fields and descriptors (close-on-exec). Raises EOFError if the other end is gone."""
        try:
            first, ancillary, _, _ = self._socket.recvmsg(65536, _ANCILLARY, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            first, ancillary = b"", []
        descriptors: list[int] = []
        for level, kind, data in ancillary:
            if (level, kind) == _RIGHTS:
                descriptors += struct.unpack(f"={len(data) // _INT}i", data[: len(data) - len(data) % _INT])
        body = bytearray(first)
        while len(body) < _LENGTH.size or len(body) < _LENGTH.size + _LENGTH.unpack_from(body)[0]:
            part = self._socket.recv(1 << 20) if body else b""
            if not part:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise EOFError
            body += part
        return _split(bytes(body)), descriptors

    def wait(self, seconds: float) -> bool:
        """Whether there is something to receive, or the other end's end, within ``seconds``."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def comes_before(self, other: int) -> bool:
        """Wait for something to receive, or the other end's end, or until ``other`` is readable; False if only that."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        poll.register(other, select.POLLIN)
        return any(descriptor == self.fileno() for descriptor, _ in poll.poll())

    def close(self) -> None:
        """Close this end. Safe to call twice."""
        self._socket.close()


def _split(message: bytes) -> list[bytes]:
    fields = []
    at = _LENGTH.size
    while at < len(message):
        (length,) = _LENGTH.unpack_from(message, at)
        at += _LENGTH.size
        fields.append(message[at : at + length])
        at += length
    return fields


def join_list(items: tuple[str, ...] | list[str]) -> bytes:
    """Strings without NUL as one field. An empty list and a list of one empty string are the same field."""
    return "\0".join(items).encode("utf-8", "surrogateescape")


def split_list(field: bytes) -> list[str]:
    """The strings of ``join_list``."""
    return field.decode("utf-8", "surrogateescape").split("\0") if field else []
