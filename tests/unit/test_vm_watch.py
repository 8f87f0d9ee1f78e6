"""What a guest's console and its QEMU tell, and how it is stamped."""

import contextlib
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tare.backends.vm.boot import BOOT_DEADLINE_S, ConcurrentStarts, late_boot, mark_boot, why_not
from tare.backends.vm.connection import parse_log
from tare.backends.vm.guest import _remedy
from tare.backends.vm.watch import Mark, Watch, parse_line, start_watch
from tare.bench.model import Phase, StartTimeline

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def told(tmp_path):
    watch = Watch(tmp_path)
    yield watch
    watch.close()


def lines_of(name):
    return (DATA / "qemu-7.2.22" / name).read_bytes()


def test_marks_of_a_good_start(told):
    told.on_console(lines_of("console-good.txt"), 10.0)
    assert [(mark.name, mark.host_s) for mark in told.marks.values()] == [
        ("init", 10.0),
        ("agent", 10.0),
        ("ready", 10.0),
    ]
    seconds = [mark.guest_s for mark in told.marks.values()]
    assert seconds == sorted(seconds)
    assert told.failure is None


@pytest.mark.parametrize("size", [1, 2, 7])
def test_lines_in_pieces_are_the_same_lines(told, size):
    content = lines_of("console-good.txt")
    for at in range(0, len(content), size):
        told.on_console(content[at : at + size], float(at))
    assert list(told.marks) == ["init", "agent", "ready"]
    # A mark is stamped when its line is whole.
    assert told.marks["init"].host_s >= content.index(b"\n", content.index(b"init")) - size


def test_a_damaged_disk(told):
    told.on_console(lines_of("console-damaged-disk.txt"), 1.0)
    assert told.failure == "the guest gave up: mounting /lower: Invalid argument"
    assert "build it again" in _remedy(told.failure, told.console_tail())


def test_too_little_memory(told):
    told.on_console(lines_of("console-too-little-memory.txt"), 1.0)
    assert told.failure.startswith("the guest's kernel panicked: Kernel panic - not syncing: System is deadlocked")
    assert "more memory" in _remedy(told.failure, told.console_tail())


def test_the_first_failure_is_the_one_that_counts(told):
    told.on_console(lines_of("console-damaged-disk.txt"), 1.0)
    told.on_gone(2.0)
    assert "gave up" in told.failure
    assert os.eventfd_read(told.failed) == 1


def test_a_silent_end_is_named(told):
    told.on_gone(2.0)
    assert "before the kernel had said anything" in why_not(told, 90.0, late_boot)
    assert "more memory" in _remedy(why_not(told, 90.0, late_boot), "")


def test_a_kernel_that_spins_without_a_word_may_have_too_little_memory(told):
    """Under KVM it does, where the emulated machine resets."""
    late = f"the guest did not start: {why_not(told, 90.0, late_boot)}"
    assert "more memory" in _remedy(late, "")
    assert _remedy(late, "[    2.0] Run /init as init process") is None


def test_what_did_not_come_is_named(told):
    assert "did not reach user space" in why_not(told, 90.0, late_boot)
    told.on_console(b"tare: init 1.0\n", 1.0)
    assert "init did not finish" in why_not(told, 90.0, late_boot)
    told.on_console(b"tare: ready 1.0\n", 1.0)
    assert "did not open its port" in why_not(told, 90.0, late_boot)


def test_what_a_whole_distribution_did_not_reach_is_named(told):
    told.on_console(b"tare: init 1.0\n\ntare: system 2.0\n", 1.0)
    assert why_not(told, 240.0, late_boot) == "its guest agent did not open its port within 240 s"
    told.on_agent()
    assert why_not(told, 240.0, late_boot) == "systemd did not reach multi-user.target within 240 s"


def test_a_start_is_told_apart_by_what_was_seen_and_by_the_guest_s_clock(told):
    told.born_s = 9.0
    told.on_running(9.5)
    told.on_running(99.0)
    told.on_console(b"tare: init 2.0\n", 12.0)
    told.on_console(b"tare: system 2.5\n", 12.5)
    told.on_console(b"tare: ready 7.5\n", 17.5)
    timeline = StartTimeline()
    mark_boot(told, timeline)
    assert timeline.marks == {
        Phase.CREATED: 9.0,
        Phase.VCPU_RUNNING: 9.5,
        Phase.KERNEL_ENTERED: 10.0,
        Phase.FIRST_INSTRUCTION: 12.0,
    }
    assert timeline.splits == {
        "guest.kernel": 2.0,
        "guest.init": 5.5,
        "guest.initramfs": 0.5,
        "guest.system": 5.0,
    }


def test_a_boot_loader_is_heard(told):
    told.on_console(b"\r\nSYSLINUX 6.04 20210613 Copyright (C) 1994-2015 H. Peter Anvin et al\r\n", 3.0)
    assert told.marks["loader"].host_s == 3.0


@pytest.mark.parametrize("line", ["", "hello", "tare:", "tare: init", "tare: init x", "not tare: init 1.0"])
def test_other_lines_mean_nothing(line):
    assert parse_line(line, 1.0) is None


def test_a_line_that_is_a_mark():
    assert parse_line("tare: init 2.300001", 5.0) == Mark("init", 5.0, 2.300001)


def test_the_kernel_tells_that_it_is_down(told):
    told.on_console(b"tare: ready 1.0\n[    3.112233] reboot: Power down\r\n", 4.0)
    told.on_gone(4.5)
    assert (told.down_s, told.gone_s) == (4.0, 4.5)


def test_the_tail_is_bounded(told):
    told.on_console(b"".join(b"line %d\r\n" % number for number in range(1000)) + b"unfinished", 1.0)
    tail = told.console_tail().splitlines()
    assert tail[-2:] == ["line 999", "unfinished"]
    assert len(tail) <= 41


def test_those_that_start_together_are_given_time_together():
    starts = ConcurrentStarts()
    with contextlib.ExitStack() as others:
        with starts.counted():
            assert starts.deadline_s(1) == BOOT_DEADLINE_S
            for _ in range(19):
                others.enter_context(starts.counted())
            assert (starts.deadline_s(1), starts.deadline_s(2)) == (20 * BOOT_DEADLINE_S, 10 * BOOT_DEADLINE_S)
        assert starts.deadline_s(1) == 20 * BOOT_DEADLINE_S, "those that are ready still compete for the CPU"
    with starts.counted():
        assert starts.deadline_s(1) == BOOT_DEADLINE_S


def test_a_process_is_followed_from_birth_to_end(tmp_path):
    with start_watch(tmp_path) as watch, subprocess.Popen(["sleep", "100"]) as process:
        before = time.monotonic()
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(watch.console_socket))
            watch.born_fifo.write_text(f"{process.pid}\n")
            console.sendall(b"tare: init 1.5\n")
            assert watch.wait(lambda: watch.born_s is not None and "init" in watch.marks, before + 10)
            assert watch.pid == process.pid
            assert before <= watch.born_s <= time.monotonic()
            assert watch.kill(time.monotonic() + 60)
        assert watch.gone
        assert not watch.wait(lambda: False, time.monotonic() + 60), "a failed guest is not waited for"
        process.returncode = -9  # the watch reaped it


def test_the_agent_finds_somebody_at_its_port_until_libvirt_is_there(tmp_path):
    with start_watch(tmp_path) as watch, socket.socket(socket.AF_UNIX) as console:
        with socket.socket(socket.AF_UNIX) as agent:
            agent.bind(str(watch.agent_socket))
            agent.listen(1)
            agent.settimeout(10)
            console.connect(str(watch.console_socket))
            place = agent.accept()[0]
        with place:
            place.settimeout(10)
            watch.on_agent()
            assert place.recv(1) == b"", "libvirt's turn"


def test_a_restored_agent_s_place_is_taken_already(tmp_path):
    with start_watch(tmp_path, boots=False) as watch, socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(watch.agent_socket))
        agent.listen(1)
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(watch.console_socket))
            console.sendall(b"tare: restored 1.5\n")
            assert watch.wait(lambda: "restored" in watch.marks, time.monotonic() + 60)
        agent.setblocking(False)
        with pytest.raises(BlockingIOError):
            agent.accept()


def test_one_that_was_never_born_needs_no_killing(tmp_path):
    with start_watch(tmp_path) as watch:
        assert watch.kill(time.monotonic())


def test_waiting_ends_at_its_deadline(tmp_path):
    with start_watch(tmp_path) as watch:
        assert not watch.wait(lambda: False, time.monotonic() + 0.05)


def test_the_log_is_reduced_to_what_qemu_said():
    reset = parse_log((DATA / "libvirt-9.0.0/qemu-reset.log").read_text())
    assert len(reset.splitlines()) == 1
    assert "terminating on signal 15" in reset
    refused = parse_log((DATA / "libvirt-9.0.0/qemu-bad-kernel.log").read_text())
    assert refused == "qemu: linux kernel too old to load a ram disk"


def test_a_console_line_without_end_is_not_kept_whole(told):
    for _ in range(50):
        told.on_console(b"x" * 100_000, 1.0)
    assert len(told.console_tail()) <= 1 << 16
    told.on_console(b"\ntare: ready 1.0\n", 2.0)
    assert "ready" in told.marks


def test_a_console_is_open_until_the_thread_has_ended(tmp_path, monkeypatch):
    """What the thread opened is closed after its end: a console that went away before it would end it by an error."""
    closed_while_alive = []
    real = socket.socket.close

    def close(self):
        if self.fileno() >= 0 and any(thread.name == f"watch {tmp_path.name}" for thread in threading.enumerate()):
            closed_while_alive.append(self.getsockname())
        real(self)

    monkeypatch.setattr(socket.socket, "close", close)
    with start_watch(tmp_path) as watch, socket.socket(socket.AF_UNIX) as console:
        console.connect(str(watch.console_socket))
        console.sendall(b"tare: init 1.5\n")
        assert watch.wait(lambda: "init" in watch.marks, time.monotonic() + 60)
    assert str(watch.console_socket) not in closed_while_alive
