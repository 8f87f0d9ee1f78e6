"""The host's half of the protocol by which commands run in a guest."""

import errno
import os
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.backends.vm.commands import (
    CommandPort,
    Conversation,
    Decoder,
    GuestSilentError,
    encode_frame,
    encode_request,
)
from tare.bench.errors import BackendError, WorkloadError
from tare.bench.model import Command

FRAMES = st.lists(st.tuples(st.sampled_from([b"S", b"O", b"E", b"X"]), st.binary(max_size=300)), max_size=8)


@given(frames=FRAMES, size=st.integers(1, 50))
def test_frames_survive_any_cutting(frames, size):
    stream = b"".join(encode_frame(kind, payload) for kind, payload in frames)
    decoder = Decoder()
    found = [frame for at in range(0, len(stream), size) for frame in decoder.feed(stream[at : at + size])]
    assert found == frames


def test_a_request_is_as_the_guest_reads_it():
    frame = encode_request(Command(("a", "b c"), cwd="/x", stdin=b"1"), {"N": "v\n"})
    kind, length = struct.unpack_from("<cI", frame)
    assert (kind, length) == (b"R", len(frame) - 5)
    assert struct.unpack_from("<3I", frame, 5) == (1, 2, 1)
    assert frame[17:] == b"/x\0a\0b c\0N=v\n\0"


class Said:
    """A conversation fed with frames, and what it sent."""

    def __init__(self, command, *frames):
        self.sent = []
        self.conversation = Conversation(command, self.sent.append)
        for number, (kind, payload) in enumerate(frames):
            self.conversation.on_frame(kind, payload, 100.0 + number)

    def completed(self, **more):
        return self.conversation.completed(timed_out=False, **more)


def started(at_ns):
    return b"S", struct.pack("<Q", at_ns)


def ended(status, signal, at_ns):
    return b"X", struct.pack("<iiQ", status, signal, at_ns)


COMMAND = Command(("prog",))


def test_an_exit_status():
    done = Said(COMMAND, started(5_000_000_000), (b"O", b"a"), (b"E", b"e"), (b"O", b"b"), ended(3, 0, 7_500_000_000))
    found = done.completed()
    assert (found.returncode, found.signal, found.stdout, found.stderr) == (3, None, b"ab", b"e")
    assert (found.started_s, found.ended_s) == (100.0, 104.0)
    assert found.guest_duration_s == 2.5


def test_a_signal():
    found = Said(COMMAND, started(0), ended(-1, 11, 1)).completed()
    assert (found.returncode, found.signal) == (None, 11)


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOENT, 127), (errno.EACCES, 126), (errno.ENOEXEC, 126), (errno.E2BIG, 126)]
)
def test_a_program_that_cannot_be_executed(number, status):
    failed = (b"F", b"e" + struct.pack("<i", number))
    assert Said(COMMAND, started(0), failed, ended(126, 0, 1)).completed().returncode == status


def test_a_working_directory_that_is_not_there():
    said = Said(Command(("prog",), cwd="/no"), (b"F", b"c" + struct.pack("<i", errno.ENOENT)), ended(126, 0, 1))
    with pytest.raises(WorkloadError, match="prog: working directory /no: No such file or directory"):
        said.completed()


def test_a_guest_that_cannot_fork():
    said = Said(COMMAND, (b"F", b"f" + struct.pack("<i", errno.EAGAIN)), ended(0, 0, 1))
    with pytest.raises(BackendError, match="could not start a process"):
        said.completed()


def test_stdin_is_sent_as_far_as_it_is_welcome():
    said = Said(Command(("cat",), stdin=b"abcdefgh"), *[(b"W", struct.pack("<I", 3))] * 4)
    assert said.sent == [
        encode_frame(b"I", b"abc"),
        encode_frame(b"I", b"def"),
        encode_frame(b"I", b"gh"),
        encode_frame(b"Z"),
    ]


@pytest.mark.parametrize("length", [200_000, 386_000_000, 0xFFFFFFFF])
def test_a_forged_length_is_refused_at_once(length):
    with pytest.raises(BackendError, match=r"never does: .* bytes announced"):
        list(Decoder().feed(struct.pack("<cI", b"O", length)))


@given(kind=st.sampled_from([b"S", b"W", b"F", b"X", b"D", b"O", b"?"]), payload=st.binary(max_size=40))
def test_any_frame_is_understood_or_refused(kind, payload):
    said = Said(COMMAND)
    try:
        said.conversation.on_frame(kind, payload, 1.0)
        said.conversation.completed(timed_out=False)
    except (BackendError, WorkloadError):
        return


@pytest.mark.parametrize("end", [ended(256, 0, 1), ended(-2, 0, 1), ended(0, 65, 1), ended(0, -1, 1)])
def test_an_end_that_no_program_has_is_refused(end):
    with pytest.raises(BackendError, match="never does: status"):
        Said(COMMAND, started(0), end)


@pytest.fixture
def port():
    failed = os.eventfd(0)
    host, guest = socket.socketpair()
    with host, guest:
        yield CommandPort(host, failed), guest, failed
    os.close(failed)


def test_a_guest_that_fails_meanwhile_ends_the_waiting(port):
    commands, guest, failed = port
    os.eventfd_write(failed, 1)
    with pytest.raises(GuestSilentError, match="failed while it ran"):
        commands.run(COMMAND)
    assert guest.recv(1) == b"R"


def test_qemu_that_goes_ends_the_waiting(port):
    commands, guest, _ = port
    guest.shutdown(socket.SHUT_WR)
    with pytest.raises(GuestSilentError, match="QEMU ended"):
        commands.run(COMMAND)


def test_a_timeout_kills_and_hears_the_rest(port):
    commands, guest, _ = port

    def answer():
        guest.sendall(encode_frame(*started(0)))
        received = b""
        while not received.endswith(encode_frame(b"K")):
            received += guest.recv(4096)
        rest = [(b"O", b"late"), ended(-1, 9, 5), (b"D", b"")]
        guest.sendall(b"".join(encode_frame(*frame) for frame in rest))

    thread = threading.Thread(target=answer)
    thread.start()
    done = commands.run(Command(("prog",), timeout_s=0.1))
    thread.join()
    assert (done.timed_out, done.signal, done.returncode, done.stdout) == (True, 9, None, b"late")


def test_a_guest_that_starts_nothing_is_silent(port, monkeypatch):
    monkeypatch.setattr("tare.backends.vm.commands.START_DEADLINE_S", 0.05)
    with pytest.raises(GuestSilentError, match="did not start the command within"):
        port[0].run(COMMAND)


def test_a_guest_that_does_not_tell_the_end_is_silent(port, monkeypatch):
    monkeypatch.setattr("tare.backends.vm.commands.KILLED_DEADLINE_S", 0.05)
    commands, guest, _ = port
    guest.sendall(encode_frame(*started(0)))
    with pytest.raises(GuestSilentError, match="did not report the command's end"):
        commands.run(Command(("prog",), timeout_s=0.05))
