"""Messages between harness, zygote and init."""

import os
import socket
import threading

import pytest

from tare.backends.native.wire import Channel, join_list, split_list


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    channels = Channel(ours.detach()), Channel(theirs.detach())
    yield channels
    for channel in channels:
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
    assert pair[1].receive() == ([field, b"end"], [])
    sender.join()


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


@pytest.mark.parametrize("items", [[], ["one"], ["a", "", "c"], ["\udcff raw byte", "ü"]])
def test_lists(items):
    assert split_list(join_list(items)) == items
