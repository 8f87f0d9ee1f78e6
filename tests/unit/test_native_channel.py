"""Messages between harness, zygote and init."""

import contextlib
import os
import random
import select
import socket
import struct
import threading
import time

import pytest

from tare.backends.native import channel as channels
from tare.backends.native.channel import MAX_ANSWER_BYTES, Channel, join_list
from tare.bench.errors import BackendError


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    both = Channel(ours), Channel(theirs)
    yield both
    for channel in both:
        channel.close()


def test_fields_arrive_as_sent(pair):
    fields = [b"", b"one", bytes(range(256)), b"\0"]
    pair[0].send(*fields)
    assert pair[1].receive() == (fields, [])


def test_a_message_without_fields(pair):
    pair[0].send()
    assert pair[1].receive() == ([], [])


def test_a_message_larger_than_any_socket_buffer(pair):
    field = os.urandom(5_000_000)
    sender = threading.Thread(target=pair[0].send, args=(field, b"end"))
    sender.start()
    received = b""
    while len(received) < 4 + 4 + len(field) + 4 + 3:
        select.select([pair[1].fileno()], [], [])
        received += os.read(pair[1].fileno(), 1 << 20)
    sender.join()
    assert received[8:-7] == field


def test_descriptors_arrive_and_close_on_exec(pair):
    reader, writer = os.pipe()
    pair[0].send(b"take", descriptors=(writer,))
    fields, (received,) = pair[1].receive()
    assert fields == [b"take"]
    assert not os.get_inheritable(received)
    os.write(received, b"through")
    assert os.read(reader, 10) == b"through"
    for descriptor in (reader, writer, received):
        os.close(descriptor)


def test_the_other_end_gone(pair):
    pair[0].close()
    with pytest.raises(EOFError):
        pair[1].receive()
    with pytest.raises(BrokenPipeError):
        pair[1].send(b"hello")


def test_the_other_end_gone_in_the_middle_of_a_message(pair):
    os.write(pair[0].fileno(), b"\x10\0\0\0half")
    pair[0].close()
    with pytest.raises(EOFError):
        pair[1].receive()


@pytest.mark.parametrize("length", [MAX_ANSWER_BYTES, 386_000_000, 0xFFFFFFFF])
def test_a_forged_length_is_refused_at_once(pair, length):
    os.write(pair[0].fileno(), struct.pack("=I", length) + b"x")
    with pytest.raises(BackendError, match=r"malformed message: .* bytes announced"):
        pair[1].receive()


def test_a_field_longer_than_its_message_is_refused(pair):
    for body in (b"\xff\xff\xff\xffx", b"\2\0\0\0x", b"abc"):
        os.write(pair[0].fileno(), struct.pack("=I", len(body)) + body)
        with pytest.raises(BackendError, match="a field is longer than the message"):
            pair[1].receive()


def test_what_anybody_could_send_ends_within_the_deadline(pair, monkeypatch):
    monkeypatch.setattr(channels, "DEADLINE_S", 0.05)
    seeded = random.Random(18)
    for _ in range(200):
        ours, theirs = socket.socketpair()
        reader = Channel(theirs)
        os.write(ours.fileno(), seeded.randbytes(seeded.randrange(1, 200)))
        if seeded.random() < 0.5:
            ours.close()
        began = time.monotonic()
        with contextlib.suppress(EOFError, BackendError):
            fields, _ = reader.receive()
            assert sum(map(len, fields)) < MAX_ANSWER_BYTES
        assert time.monotonic() - began < 20
        ours.close()
        reader.close()


def test_nothing_is_waited_for_without_end(pair, monkeypatch):
    monkeypatch.setattr(channels, "DEADLINE_S", 0.2)
    with pytest.raises(TimeoutError):
        pair[1].receive(time.monotonic() + 0.1)
    os.write(pair[0].fileno(), b"\x10\0\0\0half")
    with pytest.raises(BackendError, match="it did not end"):
        pair[1].receive()
    with pytest.raises(TimeoutError):
        pair[1].send(bytes(5_000_000))


def test_descriptors_of_a_refused_message_are_closed(pair):
    reader, writer = os.pipe()
    body = b"\xff\xff\xff\xff"
    socket.send_fds(pair[0]._socket, [struct.pack("=I", len(body)) + body], [writer])
    os.close(writer)
    with pytest.raises(BackendError):
        pair[1].receive()
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.mark.parametrize("items", [[], ["one"], ["a", "", "c"], ["\udcff raw byte", "\u00fc"]])
def test_lists(items):
    joined = join_list(items)
    assert (joined.decode("utf-8", "surrogateescape").split("\0") if joined else []) == items
