"""Much output lies on the disk, little in memory, and there is a bound."""

import errno
import gzip
import os
import resource

import pytest

from tare.bench import spool as module
from tare.bench.catalogue import NoteCode
from tare.bench.errors import BackendError, OutputTooLargeError
from tare.bench.model import KEPT_BYTES, MAX_OUTPUT_BYTES
from tare.bench.records import EventKind
from tare.bench.spool import Spool
from tests.unit.test_runner import FakeBackend, end, run


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 1000)
    monkeypatch.setattr(module, "MAX_OUTPUT_BYTES", 50_000)


def filled(size: int, folder=None, stream: str = "stdout") -> Spool:
    spool = Spool("tool", folder)
    for at in range(0, size, 100):
        spool.add(stream, bytes([at // 100 % 251]) * min(100, size - at))
    return spool


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_little_output_is_given_whole(size):
    fields = filled(size).fields()
    assert (len(fields["stdout"]), fields["stderr"], fields["whole"]) == (size, b"", {})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_of_much_output_the_end_is_given_and_all_is_in_a_file_without_a_name(stream, tmp_path):
    expected = b"".join(bytes([number % 251]) * 100 for number in range(400))
    fields = filled(40_000, tmp_path, stream).fields()
    assert fields[stream] == expected[-1000:]
    assert fields["whole"][stream].read() == expected
    assert list(fields["whole"]) == [stream]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_both_streams_together_have_a_bound():
    spool = filled(30_000)
    spool.add("stderr", b"x" * 20_000)
    with pytest.raises(OutputTooLargeError):
        spool.add("stderr", b"x")


def test_a_full_disk_is_said(monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 0)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(BackendError, match="No space left"):
        filled(10_000)


def test_the_most_output_takes_little_memory(tmp_path):
    """Half a GiB here, to be quick; nothing of it may stay in memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spool = Spool("tool", tmp_path)
    chunk = b"x" * (1 << 20)
    for _ in range(MAX_OUTPUT_BYTES // 2 >> 20):
        spool.add("stdout", chunk)
    spool.fields()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5 * KEPT_BYTES >> 10


@pytest.mark.usefixtures("small")
def test_a_run_keeps_all_and_notes_it(tmp_path):
    backend = FakeBackend()
    whole = filled(40_000, tmp_path).fields()
    backend.answer = lambda command: end(command, stdout=b"the end", whole={"stdout": whole["whole"]["stdout"]})
    _, loaded = run(tmp_path / "run", {"fake": backend})
    notes = [event.details for event in loaded.events if event.note_code == NoteCode.LONG_OUTPUT]
    assert notes
    assert notes[0]["bytes"] == 40_000
    commands = [event for event in loaded.events if event.kind is EventKind.COMMAND]
    assert commands[0].details["raw"] == notes[0]["raw"]
    assert len(gzip.decompress((loaded.path / notes[0]["raw"]).read_bytes())) == 40_000
