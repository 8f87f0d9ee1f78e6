"""Whatever becomes of the standard streams, a run goes on to its end, and a report is written.

Each command is a process of its own, forked from this one so that it finds the backends of ``session_fakes``. So this
module is run by ``test_streams`` in a process that has no threads: a lock that one of them holds is held for ever in
a forked process.
"""

import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import tare.bench.analysis  # here, so that not each process imports what reports need
import tare.reports.html
from tare.bench.cli import main
from tests.unit import test_session
from tests.unit.session_fakes import Orders
from tests.unit.test_session import manifest, suite_file

machine = test_session.place
"""The fixture of the session's tests, for those of this module."""


def tare(
    arguments: Sequence[str], streams: Sequence[int | None], encoding: str = "utf-8", ignored: Sequence[int] = ()
) -> int:
    """Run a command with these descriptors as its standard streams (None: closed); how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        kept = [None if number is None else os.dup(number) for number in streams]
        for number, descriptor in enumerate(kept):
            os.dup2(descriptor, number) if descriptor is not None else os.close(number)
        sys.stdin, sys.stdout, sys.stderr = (
            None
            if found is None
            else io.TextIOWrapper(io.FileIO(number, "wr"[number == 0], closefd=False), encoding=encoding)
            for number, found in enumerate(kept)
        )
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        sys.argv = ["tare", *arguments]
        try:
            main()
        except SystemExit as ending:
            os._exit(int(ending.code or 0))
    finally:
        os._exit(99)


def run_of(machine: Path, report: str = "--no-report") -> list[str]:
    return ["run", str(suite_file(machine)), "--output", str(machine / "run"), report]


def unread() -> int:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.fixture
def null():
    with Path(os.devnull).open("r+b") as file:
        yield file.fileno()


@pytest.fixture
def full():
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


@pytest.fixture
def errors(machine):
    with (machine / "errors").open("w+b") as file:
        yield file


def messages(errors) -> list[str]:
    return re.findall("^tare: .*", Path(errors.name).read_text("utf-8"), re.MULTILINE)


def test_a_reader_that_goes_away_ends_neither_run_nor_report(machine, null, errors):
    assert tare(run_of(machine, "--report"), (null, unread(), errors.fileno())) == 0
    assert manifest(machine / "run")["status"] == "complete"
    assert (machine / "run" / "report.html").exists()
    for options in (["--format", "json"], ["--output", str(machine / "page.html")]):
        assert tare(["report", str(machine / "run"), *options], (null, unread(), errors.fileno())) == 0
    assert messages(errors) == []


def test_a_full_disk_below_standard_output_is_one_message_and_the_run_is_whole(machine, null, full, errors):
    assert tare(run_of(machine), (null, full, errors.fileno())) == 6
    assert manifest(machine / "run")["status"] == "complete"
    (message,) = messages(errors)
    assert "standard output" in message
    assert "No space left" in message


def test_a_full_disk_below_everything_does_not_end_a_run(machine, null, full):
    assert tare(run_of(machine), (null, full, full)) == 6
    assert manifest(machine / "run")["status"] == "complete"


def test_a_report_that_could_not_be_printed_is_a_failure(machine, null, full, errors):
    assert tare(run_of(machine), (null, null, errors.fileno())) == 0
    assert tare(["report", str(machine / "run"), "--format", "text"], (null, full, errors.fileno())) == 6
    assert len(messages(errors)) == 1


def test_a_failure_keeps_its_own_code(machine, null, full, errors):
    assert tare(["report", str(machine / "none"), "--format", "text"], (null, full, full)) == 3


@pytest.mark.parametrize("missing", [(0,), (0, 1, 2)])
def test_streams_may_be_closed(missing, machine, null, errors):
    streams = [None if number in missing else one for number, one in enumerate((null, null, errors.fileno()))]
    assert tare(run_of(machine), streams) == 0
    assert manifest(machine / "run")["status"] == "complete"
    assert tare(["report", str(machine / "run")], streams) == 0
    assert messages(errors) == []


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_a_terminal_has_no_character_for_is_replaced(encoding, machine, null, errors):
    Orders.label = "a \u03bcVM \u2192 \u4e16"
    out = machine / "out"
    with out.open("wb") as file:
        assert tare(run_of(machine), (null, file.fileno(), errors.fileno()), encoding) == 0
        assert tare(["run", "\u4e16.toml"], (null, file.fileno(), errors.fileno()), encoding) == 3
    assert "a ?VM ? ? is ready" in out.read_bytes().decode(encoding, "surrogateescape")
    assert "?.toml" in (machine / "errors").read_text(encoding)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("ignored", [True, False])
def test_a_signal_that_came_in_ignored_stays_ignored(number, ignored, machine, null, errors):
    """As under ``nohup`` and in the background of a shell."""
    Orders.on_start = lambda _: os.kill(os.getpid(), number)
    code = tare(run_of(machine), (null, null, errors.fileno()), ignored=[number] if ignored else [])
    expected = (0, "complete") if ignored else (130, "interrupted")
    assert (code, manifest(machine / "run")["status"]) == expected


def test_a_terminal_that_is_closed_does_not_end_a_run_that_ignores_hangups(machine):
    ours, theirs = os.openpty()
    Orders.on_start = lambda _: os.close(ours) if len(Orders.starts) == 2 else None
    code = tare(run_of(machine), (theirs, theirs, theirs), ignored=[signal.SIGHUP])
    assert (code, manifest(machine / "run")["status"]) == (0, "complete")
