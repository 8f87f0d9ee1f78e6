"""Restoring from saved memory: the pipe that libvirt reads, and what no guest can go on from."""

import os
import time
from pathlib import Path

import msgspec
import pytest

from tare.backends.vm.boot import _HEADER, MAGIC, Saved, encode_header, find_offset, start_feeding
from tare.bench.errors import BackendError
from tare.bench.model import Envelope

ENVELOPE = Envelope((1,), 2**28, 2**26, 64)
XML = "<domain><name>ünï</name></domain>"


def make_saved(folder: Path, memory: bytes) -> Saved:
    file = folder / "saved"
    file.write_bytes(encode_header("<domain>the saved one</domain>") + memory)
    return Saved(file, find_offset(file), folder / "scratch", ENVELOPE)


def test_what_is_read_is_another_domain_with_the_same_memory(tmp_path):
    memory = os.urandom(3 * 2**20 + 17)
    with start_feeding(make_saved(tmp_path, memory), XML) as path:
        read = path.read_bytes()
    magic, version, length, ran, compressed, cookie = _HEADER.unpack(read[:92])
    assert (magic, version, ran, compressed, cookie) == (MAGIC, 2, 1, 0, 0)
    assert read[92 : 92 + length] == XML.encode() + b"\0"
    assert read[92 + length :] == memory


def test_a_reader_that_gives_up_is_not_waited_for(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    saved = make_saved(tmp_path, bytes(8 * 2**20))
    with start_feeding(saved, XML) as path, path.open("rb") as reader:
        assert reader.read(len(MAGIC)) == MAGIC
    with start_feeding(saved, XML):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_ends_too_early_is_an_end_and_not_a_wait(tmp_path):
    with start_feeding(make_saved(tmp_path, b"short"), XML) as path:
        time.sleep(0.1)  # all of it fits into the pipe, and its writer has ended
        assert path.read_bytes().endswith(b"short")


@pytest.mark.parametrize("content", [b"", b"Libvirt", b"LibvirtQemudPart" + bytes(76), MAGIC + bytes(76)])
def test_a_file_in_another_form_is_refused(tmp_path, content):
    file = tmp_path / "saved"
    file.write_bytes(content)
    with pytest.raises(BackendError, match="in a form that is not known here"):
        find_offset(file)


def test_only_the_same_guest_goes_on(tmp_path):
    saved = make_saved(tmp_path, b"")
    assert saved.obstacle(ENVELOPE) is None
    assert saved.obstacle(msgspec.structs.replace(ENVELOPE, cpus=(0,), cpu_quota=0.5)) is None
    for change, said in (({"cpus": (0, 1)}, "has 1 CPUs, and 2 were"), ({"memory_bytes": 2**27}, "memory_bytes")):
        assert said in saved.obstacle(msgspec.structs.replace(ENVELOPE, **change))
