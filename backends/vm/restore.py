"""Guests that go on from the saved memory of one that was ready, instead of booting: ``start = "restore"``.

libvirt saves a guest as a file: a header, the domain's XML, and what QEMU wrote. It restores no other domain from it
than the one that was saved. So what it is given here is a pipe: a header of ours, the XML of the new domain, and then
QEMU's part of the file, which the kernel moves from the page cache without a copy.
"""

import contextlib
import fcntl
import os
import select
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tare.bench.errors import BackendError
from tare.bench.model import Envelope

MAGIC = b"LibvirtQemudSave"
_VERSION = 2
_HEADER = struct.Struct("<16sIIIII56x")
"""Magic, version, length of the XML with what follows it, whether it ran, compression (0: none), offset of a cookie."""
_PIPE_BYTES = 2**20


class Saved(msgspec.Struct, frozen=True):
    """A guest saved when it was ready, in ``envelope``.

    QEMU's part begins ``offset`` bytes into ``file``; ``scratch`` is the scratch disk as the guest's memory knows it.
    """

    file: Path
    offset: int
    scratch: Path
    envelope: Envelope

    def obstacle(self, envelope: Envelope) -> str | None:
        """Why no guest of ``envelope`` can go on from it, or None: its memory knows CPUs, memory and limits."""
        for name in ("memory_bytes", "pids_max", "scratch_bytes"):
            saved, wanted = getattr(self.envelope, name), getattr(envelope, name)
            if saved != wanted:
                return f"the saved guest has {name} = {saved}, and {wanted} was asked for"
        if len(self.envelope.cpus) != len(envelope.cpus):
            return f"the saved guest has {len(self.envelope.cpus)} CPUs, and {len(envelope.cpus)} were asked for"
        return None


def encode_header(xml: str) -> bytes:
    """What libvirt reads first: a running, uncompressed guest with this domain."""
    text = xml.encode() + b"\0"
    return _HEADER.pack(MAGIC, _VERSION, len(text), 1, 0, 0) + text


def find_offset(file: Path) -> int:
    """Where QEMU's part of a saved guest begins. Raises BackendError for what is no such file."""
    with file.open("rb") as reader:
        head = reader.read(_HEADER.size)
    if len(head) == _HEADER.size:
        magic, version, length, _, compressed, _ = _HEADER.unpack(head)
        if magic == MAGIC and version == _VERSION and not compressed:
            return _HEADER.size + int(length)
    raise BackendError(
        f"libvirt saved the guest in a form that is not known here: {head[:24]!r}",
        remedy='use start = "cold", and report libvirt\'s version',
    )


@contextlib.contextmanager
def start_feeding(saved: Saved, xml: str) -> Iterator[Path]:
    """A path that gives the saved guest with another domain to whom opens it once, until the exit.

    It is that of a pipe without a name, whose end is open here: opening a fifo would wait for a writer, and what a
    writer that has ended left in it would be lost.
    """
    with contextlib.ExitStack() as stack:
        end, pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, end)
        stop = os.eventfd(0, os.EFD_CLOEXEC)
        stack.callback(os.close, stop)
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        thread = threading.Thread(target=_feed, args=(saved, encode_header(xml), pipe, stop), name="restore")
        thread.start()
        stack.callback(thread.join)
        stack.callback(os.eventfd_write, stop, 1)
        yield Path(f"/proc/{os.getpid()}/fd/{end}")


def _feed(saved: Saved, head: bytes, pipe: int, stop: int) -> None:
    """Write all of it, as fast as it is read; then close the pipe, which is the end for its reader."""
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    poll.register(stop, select.POLLIN)
    try:
        with saved.file.open("rb") as source:
            at, end = saved.offset, os.fstat(source.fileno()).st_size
            while head or at < end:
                if any(descriptor == stop for descriptor, _ in poll.poll()):
                    return
                with contextlib.suppress(BlockingIOError):
                    if head:
                        head = head[os.write(pipe, head) :]
                    else:
                        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
                        at += os.splice(source.fileno(), pipe, _PIPE_BYTES, offset_src=at, flags=flags)
    finally:
        os.close(pipe)
