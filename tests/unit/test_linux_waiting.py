"""Waiting for descriptors: of any number, with a deadline, and nowhere by what refuses large numbers."""

import fcntl
import os
import resource
from pathlib import Path

import pytest

import tare.backends
import tare.bench
import tare.reports
import tare.workloads
from tare.bench.linux.waiting import is_readable, readable_of

HIGH = 1500


@pytest.fixture
def pipe():
    """The reading end has a number that ``select`` refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 100), hard))
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(reader)
    yield high, writer
    os.close(high)
    os.close(writer)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptors_of_any_number_are_waited_for(pipe):
    reader, writer = pipe
    assert reader >= HIGH
    assert not is_readable(reader)
    assert not is_readable(reader, -1.0)
    os.write(writer, b"x")
    assert is_readable(reader, 60.0)
    assert readable_of((writer, reader), 60.0) == [reader]


def test_nothing_in_tare_waits_by_select():
    """A population of 500 instances of an engine has more than a thousand descriptors."""
    folders = [Path(package.__file__).parent for package in (tare.backends, tare.bench, tare.reports, tare.workloads)]
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(sources) > 200
    assert [path for path in sources if "select.select(" in path.read_text("utf-8")] == []
