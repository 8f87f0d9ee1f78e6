"""Parts of the engines' backends that need no engine: marks in a stream, watches, profiles in each engine's form."""

import contextlib
import os
import re
import select
import time
from datetime import UTC, datetime

import pytest

from tare.backends.engines.bubblewrap import protect
from tare.backends.engines.containerd import find_start
from tare.backends.engines.exec_instance import _Streams
from tare.backends.engines.groups import JoinWatch
from tare.backends.engines.lxc import seccomp_profile
from tare.backends.engines.podman import device_node
from tare.backends.engines.profile import Protection, find_protection
from tare.backends.engines.start import SocketReport, Start, StreamReport, last_line
from tare.backends.native import syscalls
from tare.backends.native.seccomp import DEFAULT_CAPABILITIES, allowed_calls, conditions
from tare.bench.engine import StartedBy
from tare.bench.errors import BackendError
from tare.bench.model import Command, Phase, StartTimeline

MARK = b"\x01tare-0123456789abcdef"
SAID = MARK + b" begin\nfirst\n\x01tare-other\n" + MARK + b" end 7 0 1234\n"


@contextlib.contextmanager
def streams(tmp_path):
    with contextlib.ExitStack() as stack:
        yield _Streams(stack, Command(("tool",), stdin=b"given"), MARK, tmp_path)


def feed(made, *parts):
    _, out, err = made.given
    del out
    reader = next(number for number, name in made._readers.items() if name == "stderr")
    for part in parts:
        os.write(err, part)
        made._read(reader)


@pytest.mark.parametrize("cut", range(1, len(SAID)))
def test_marks_are_taken_out_of_standard_error_wherever_a_read_ends(tmp_path, cut):
    with streams(tmp_path) as made:
        feed(made, SAID[:cut], SAID[cut:])
        assert made.began_s is not None
        assert made.outcome == (7, 0, 1234)
        assert made.spool.fields()["stderr"] == b"first\n\x01tare-other\n"


def test_what_a_process_left_behind_prints_later_is_dropped(tmp_path):
    with streams(tmp_path) as made:
        feed(made, SAID, b"later\n" + MARK + b" end 0 0 1\n")
        assert made.outcome == (7, 0, 1234)
        assert made.spool.fields()["stderr"] == b"first\n\x01tare-other\n"


def test_a_command_without_its_working_directory_says_so(tmp_path):
    with streams(tmp_path) as made:
        feed(made, MARK + b" no-cwd No such file or directory\n")
        assert made.refused == "No such file or directory"


def test_output_without_an_end_is_kept_when_the_engines_command_has_ended(tmp_path):
    class Ended:
        def fileno(self):
            return self.pipe[0]

    ended = Ended()
    ended.pipe = os.pipe()
    os.close(ended.pipe[1])
    with streams(tmp_path) as made:
        os.write(made.given[2], b"sandbox is gone")
        assert made.collect(ended, time.monotonic() + 5)
        assert made.outcome is None
        assert made.spool.fields()["stderr"] == b"sandbox is gone"
    os.close(ended.pipe[0])


def test_a_watch_tells_of_the_names_it_waits_for_alone(tmp_path):
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "cpu.max").touch()
    with contextlib.closing(JoinWatch([tmp_path], ("cgroup.procs",), syscalls.IN_MODIFY)) as watch:
        assert not watch.joined()
        (tmp_path / "cpu.max").write_text("1")
        assert select.select([watch], [], [], 5)[0]
        assert not watch.joined()
        (tmp_path / "cgroup.procs").write_text("1")
        assert select.select([watch], [], [], 5)[0]
        assert watch.joined()
    with contextlib.closing(JoinWatch([tmp_path], ("container",), syscalls.IN_CREATE)) as watch:
        (tmp_path / "container").mkdir()
        assert watch.joined()
    with contextlib.closing(JoinWatch([tmp_path], ("libpod-*",), syscalls.IN_CREATE)) as watch:
        (tmp_path / "conmon").mkdir()
        assert not watch.joined()
        (tmp_path / "libpod-17").mkdir()
        assert watch.joined()


EVENTS = """\
ctr: warning
2026-12-01 10:00:00.123456789 +0000 UTC tare /tasks/create {"container_id":"one","pid":7}
2026-12-01 10:00:00.5 +0000 UTC tare /tasks/start {"container_id":"two","pid":8}
2026-12-01 10:00:01.25 +0000 UTC tare /tasks/start {"container_id":"one","pid":7}
"""


def test_an_event_of_containerd_has_its_time():
    assert find_start(EVENTS, "one") == datetime(2026, 12, 1, 10, 0, 1, 250000, UTC).timestamp()
    assert find_start(EVENTS, "three") is None
    assert find_start("", "one") is None


def test_podman_limits_a_disk_by_its_name(tmp_path):
    folder = tmp_path / "dev/block/254:0"
    folder.mkdir(parents=True)
    (folder / "uevent").write_text("MAJOR=254\nMINOR=0\nDEVNAME=vda\n")
    assert device_node("254:0", tmp_path) == "/dev/vda"
    with pytest.raises(BackendError, match="no name for the block device 8:1"):
        device_node("8:1", tmp_path)


class Engine:
    """A start that returns when it is told to."""

    def __init__(self, failure=None):
        self.reader, self.writer = os.pipe()
        self.failure = failure

    def fileno(self):
        return self.reader

    def returned(self):
        os.close(self.writer)

    def finish(self, _):
        if self.failure:
            raise BackendError(self.failure)

    def printed(self):
        return "what it printed\nat last\n"


def start(tmp_path, deadline_s=5.0):
    stack = contextlib.ExitStack()
    timeline = StartTimeline()
    report = StreamReport(stack, stack, lambda: [41, 40])
    watch = stack.enter_context(contextlib.closing(JoinWatch([tmp_path], ("tasks",), syscalls.IN_MODIFY)))
    made = Start("engine", report, watch, timeline, time.monotonic() + deadline_s)
    return stack, timeline, report, made


def test_a_start_waits_for_the_report_and_the_return(tmp_path):
    (tmp_path / "tasks").touch()
    stack, timeline, report, made = start(tmp_path)
    engine = Engine()
    with stack:
        (tmp_path / "tasks").write_text("40")
        os.write(report.streams[1], b"r")
        engine.returned()
        started = made.run(engine, returns=True)
    assert started.pid == 40
    assert timeline.marks[Phase.CREATED] <= timeline.marks[Phase.FIRST_INSTRUCTION] < timeline.marks[Phase.READY]
    assert set(timeline.started) == {StartedBy.RETURNED, StartedBy.INSTRUCTION}


@pytest.mark.parametrize(
    ("returned", "reported", "returns", "message"),
    [
        (False, False, True, "engine has started nothing that reports within its deadline"),
        (False, True, True, "engine has not returned within its deadline"),
        (True, False, False, "engine ended before its container was ready: at last"),
    ],
)
def test_a_start_that_does_not_come_says_what_is_missing(tmp_path, returned, reported, returns, message):
    stack, _, report, made = start(tmp_path, deadline_s=0.2)
    engine = Engine()
    with stack:
        if reported:
            os.write(report.streams[1], b"r")
        if returned:
            engine.returned()
        with pytest.raises(BackendError, match=message) as caught:
            made.run(engine, returns=returns)
    assert caught.value.evidence == engine.printed()


def test_a_container_that_ends_instead_of_reporting(tmp_path):
    stack, _, report, made = start(tmp_path)
    with stack:
        report.begun(None)
        with pytest.raises(BackendError, match="ended before it was ready: at last"):
            made.run(Engine(), returns=True)


def test_the_socket_has_a_path_of_any_length(tmp_path):
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        SocketReport(stack, folder)
        assert (folder / "socket").is_socket()


def test_the_last_line_that_says_something():
    assert last_line("one\n two \n\n") == "two"
    assert last_line("\n") == "(it printed nothing)"
    assert (
        last_line("one\nKernel panic - not syncing: no root\n [<60>] a+0x1\n") == "Kernel panic - not syncing: no root"
    )


def test_lxc_is_given_the_filter_of_tares_own_containers():
    capabilities = tuple(dict(DEFAULT_CAPABILITIES).values())
    lines = seccomp_profile().splitlines()
    assert lines[:3] == ["2", "allowlist errno 1", "[all]"]
    plain = {line for line in lines[3:] if " " not in line}
    assert plain == set(allowed_calls(capabilities))
    conditional = [line for line in lines[3:] if "[" in line]
    assert len(conditional) == len(conditions(capabilities))
    assert "clone allow [0,0x0,SCMP_CMP_MASKED_EQ,0x7e020000]" in conditional
    assert "clone3 errno 38" in lines
    assert all(
        re.fullmatch(r"\w+( allow \[\d,0x[0-9a-f]+,SCMP_CMP_\w+(,0x[0-9a-f]+)?\]| errno 38)?", line)
        for line in lines[3:]
    )


def test_what_is_protected_is_what_this_host_has(tmp_path):
    for name in ("proc/irq", "proc/sys", "proc/acpi", "sys/firmware"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/keys").touch()
    found = find_protection(tmp_path)
    assert set(found.read_only) == {"/proc/irq", "/proc/sys"}
    assert set(found.folders) == {"/proc/acpi", "/sys/firmware"}
    assert found.files == ("/proc/keys",)


def test_bubblewraps_arguments_protect_it():
    found = protect(Protection(("/proc/sys",), ("/sys/firmware",), ("/proc/keys",)))
    assert found == (
        *("--ro-bind", "/proc/sys", "/proc/sys"),
        *("--tmpfs", "/sys/firmware", "--remount-ro", "/sys/firmware"),
        *("--ro-bind", "/dev/null", "/proc/keys"),
    )
