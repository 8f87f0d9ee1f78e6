"""User-mode Linux without its kernel: the command line, the jail's order, what its init says over the line."""

import contextlib
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from tare.backends.engines.box import Box, Network, Seccomp
from tare.backends.engines.line import CONSOLE_BYTES, WINDOW, Console, Line, LineReport
from tare.backends.engines.uml import UmlOptions, UserModeLinux, kernel_arguments, module_members
from tare.backends.native.steps import Kind
from tare.backends.vm.commands import CommandPort, encode_frame
from tare.bench.errors import BackendError, ImageError, UnavailableError
from tare.bench.image import guest as guest_side
from tare.bench.interfaces import BackendContext
from tare.bench.linux.waiting import is_readable
from tare.bench.model import Command, Envelope, Image, InstanceSpec

ENVELOPE = Envelope((1,), 320 << 20, 64 << 20, 99)
GUEST = Path(guest_side.__file__).parent


def test_the_command_line_names_what_the_jail_shows_and_what_init_knows():
    arguments = dict(word.partition("=")[::2] for word in kernel_arguments(ENVELOPE))
    assert arguments["mem"] == "327680K"
    assert arguments["ubd0rc"] == "/image,,tare-image", "read-only, with the serial number that init looks for"
    known = set(re.findall(r'"(tare\.\w+)"', (GUEST / "parameters.c").read_text()))
    assert {name for name in arguments if name.startswith("tare.")} == {"tare.pids", "tare.scratch", "tare.line"}
    assert {"tare.pids", "tare.scratch", "tare.line"} <= known
    serials = re.findall(r'#define \w+ "(tare-\w+)"', (GUEST / "files.c").read_text())
    assert [arguments["ubd0rc"], arguments["ubd1c"]] == [f"/image,,{serials[0]}", f"/scratch,,{serials[1]}"]


def test_both_ends_send_as_much_before_they_are_asked():
    source = (GUEST / "guest.h").read_text()
    assert f"#define LINE_WINDOW {WINDOW}\n" in source


def test_its_kernels_modules_take_the_place_of_the_images(tmp_path):
    (tmp_path / "fs").mkdir()
    for name in ("erofs", "overlay", "crc"):
        (tmp_path / f"fs/{name}.ko").write_bytes(name.encode())
    (tmp_path / "modules.dep").write_text("fs/erofs.ko: fs/crc.ko\nfs/overlay.ko:\nfs/crc.ko:\n")
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    found = {member.path: member.data for member in module_members(tmp_path)}
    assert found["modules/order"] == b"crc.ko\nerofs.ko\noverlay.ko\n"
    assert found["modules/optional"] == b""
    assert found["modules/erofs.ko"] == b"erofs"
    (tmp_path / "modules.builtin").write_text("")
    with pytest.raises(ImageError, match="no module ext4"):
        module_members(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [(UmlOptions(network=Network.HOST), "network: "), (UmlOptions(seccomp=Seccomp.NONE), "seccomp: ")],
)
def test_what_a_guest_cannot_have_is_refused_with_the_key(options, message):
    with pytest.raises(ValueError, match=message):
        UserModeLinux.check(options, ENVELOPE)
    UserModeLinux.check(UmlOptions(stop="shutdown"), ENVELOPE)


@pytest.fixture
def backend(tmp_path):
    return UserModeLinux(BackendContext(None, tmp_path, tmp_path, UmlOptions(), ()))


@pytest.fixture
def box(tmp_path):
    disk = tmp_path / "disk"
    image = Image("0" * 64, "", tmp_path, tmp_path, disk, None, None, "", packages={}, size_bytes=0)
    (tmp_path / "disk").write_bytes(b"")
    return Box(InstanceSpec("tare-x", image, ENVELOPE), tmp_path, None, {})


def test_the_jail_is_entered_before_anything_is_given_up_and_shows_nothing_else(backend, box, monkeypatch, tmp_path):
    program = tmp_path / "linux.uml"
    monkeypatch.setattr("tare.backends.engines.uml.require_tool", lambda _: program)
    monkeypatch.setattr(UserModeLinux, "folder", tmp_path / "run")
    backend._libraries = ["/lib/libc.so"]
    calls = [call for step in backend.mounts_for(box) for call in step.calls]
    kinds = [call.kind for call in calls]
    last = [Kind.PIVOT, Kind.KEYRING, Kind.LIMIT, Kind.LIMIT, Kind.BOUND_CAPABILITIES, Kind.IDENTITY, Kind.PRCTL]
    assert kinds[-len(last) :] == last
    assert calls[-2].numbers == (os.getuid(),), "the owner of its scratch disk"
    shown = {call.strings[0].removeprefix(str(box.root)): call for call in calls if call.kind is Kind.BIND}
    assert set(shown) == {str(program), "/lib/libc.so", "/initramfs", "/image", "/scratch"}
    assert {path for path, call in shown.items() if not call.numbers[1] & 1} == {"/scratch"}, "the rest is read-only"


# --- the line ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reporting():
    """A report, and the guest's end of the line, whose process is this one."""
    with contextlib.ExitStack() as living, contextlib.ExitStack() as starting:
        report = LineReport(starting, Console(living))
        guest = living.enter_context(socket.socket(fileno=os.dup(report.streams[0])))
        report._passed.close()
        report._pid = os.getpid()
        yield report, guest


MARKS = encode_frame(b"M", b"line 1.250000") + encode_frame(b"M", b"ready 1.500000")


@pytest.mark.parametrize("cut", [1, 7, len(MARKS) - 1])
def test_a_guest_is_ready_when_its_init_says_so(cut):
    with reporting() as (report, guest):
        guest.sendall(MARKS[:cut])
        later = threading.Timer(0.05, guest.sendall, (MARKS[cut:],))
        later.start()
        started = report.hear(time.monotonic() + 20)
        later.join()
        assert started.line.marks == {"line": 1.25, "ready": 1.5}
        assert started.pid == os.getpid()
        assert started.first_s <= started.ready_s
        started.close()
        assert guest.recv(1) == b"", "the guest notices that nobody has a use for it"


@pytest.mark.parametrize(
    "said", [(b"O", b"ready 1.500000"), (b"M", b"ready"), (b"M", b"ready nan"), (b"M", b"\xff 1.0")]
)
def test_what_no_init_says_is_refused(said):
    with reporting() as (report, guest):
        guest.sendall(encode_frame(*said))
        with pytest.raises(BackendError, match="what it never does"):
            report.hear(time.monotonic() + 20)


def test_a_guest_that_ends_or_stays_silent():
    with reporting() as (report, guest):
        guest.sendall(MARKS[:18])
        with pytest.raises(BackendError, match="did not finish in time"):
            report.hear(time.monotonic() + 0.05)
        guest.close()
        assert report.hear(time.monotonic() + 20) is None


def test_a_console_holds_its_end_and_takes_no_more_than_it_can():
    with contextlib.ExitStack() as living:
        console = Console(living)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += console.given.send(b"x" * 1000)
        assert sent < 1 << 22
        while is_readable(console._end.fileno()):
            console.said()
        console.given.send(b"the end")
        assert console.said().endswith("xthe end")
        assert len(console.said()) == CONSOLE_BYTES
        console.given.send(b"tare: failed for a reason\nreboot: System halted\n")
        assert console.said().endswith("failed for a reason\n")
        console.given.close()


def test_a_long_request_goes_in_parts_as_the_guest_asks():
    """The kernel's line is lost for good once its reader is 4 KiB behind."""
    host, guest = socket.socketpair()
    most = 0

    def serve():
        nonlocal most
        taken = b""
        want = 5 + WINDOW
        while len(taken) < 5 or len(taken) < 5 + int.from_bytes(taken[1:5], "little"):
            part = guest.recv(1 << 20)
            most = max(most, len(part))
            taken += part
            if len(taken) == want and len(taken) < 5 + int.from_bytes(taken[1:5], "little"):
                want += WINDOW
                guest.sendall(encode_frame(b"W", WINDOW.to_bytes(4, "little")))
        end = (0).to_bytes(8, "little") + (5).to_bytes(8, "little")
        frames = [(b"S", bytes(8)), (b"X", end), (b"D", b"")]
        guest.sendall(b"".join(encode_frame(*frame) for frame in frames))

    failed = os.eventfd(0)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        done = CommandPort(host, failed, window=WINDOW).run(Command(("true", "x" * 5000)))
    finally:
        thread.join()
        host.close()
        guest.close()
        os.close(failed)
    assert done.returncode == 0
    assert most <= 5 + WINDOW


def test_a_guest_that_is_gone_runs_nothing():
    with contextlib.ExitStack() as living:
        ours, theirs = socket.socketpair()
        theirs.close()
        line = Line(ours, os.getpid(), {}, Console(living))
        assert not line.is_gone()
        assert line.power_off(0.01) is False, "nobody answers, and the process lives on"
        line.console.given.close()
        line.close()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("ptrace set fp regs failed, err = 22", "cannot run a program on this processor"),
        ("tare: failed reading the kernel's command line: this image's init has no parameter tare.line", "older tare"),
    ],
)
def test_why_its_kernel_cannot_boot_is_said(backend, monkeypatch, said, message):
    def dies(self, image, envelope):
        raise BackendError("linux.uml was killed by signal 6: Aborted", evidence=said)

    monkeypatch.setattr("tare.backends.engines.core.Engine.prepare", dies)
    with pytest.raises(UnavailableError, match=message) as caught:
        backend.prepare(None, ENVELOPE)
    assert caught.value.remedy
    monkeypatch.setattr(
        "tare.backends.engines.core.Engine.prepare", lambda *_: (_ for _ in ()).throw(BackendError("another reason"))
    )
    with pytest.raises(BackendError, match="another reason"):
        backend.prepare(None, ENVELOPE)
