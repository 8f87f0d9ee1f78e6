"""What every backend has to do. Runs on the fake and on every real backend that this machine can run."""

import os
import time
from pathlib import Path

import pytest

from tare.backends.cgroups.layout import find_layout
from tare.bench.errors import UnsupportedError
from tare.bench.model import SCRATCH, Command, Phase

ALWAYS = {
    *(Phase.REQUESTED, Phase.CREATED, Phase.FIRST_INSTRUCTION, Phase.READY),
    *(Phase.STOP_REQUESTED, Phase.PROCESS_GONE, Phase.STOPPED),
}


def shell(script, **more):
    return Command(("sh", "-c", script), **more)


def test_output_and_status(live):
    done = live.execute(shell("printf out; printf err >&2"))
    assert (done.returncode, done.signal, done.stdout, done.stderr) == (0, None, b"out", b"err")
    assert not done.timed_out


def test_exit_code(live):
    assert live.execute(shell("exit 7")).returncode == 7


def test_signal_is_told_apart_from_exit_code(live):
    done = live.execute(shell("kill -TERM $$"))
    assert (done.returncode, done.signal) == (None, 15)
    assert live.execute(shell("exit 143")).returncode == 143


def test_missing_program(live):
    assert live.execute(Command(("no-such-program-here",))).returncode == 127
    assert live.execute(Command(("/no/such/program",))).returncode == 127


def test_program_that_is_not_executable(live):
    assert live.execute(Command(("/etc/passwd",))).returncode == 126


def test_arguments_arrive_as_given(live):
    arguments = ("", "two words", "$HOME", "quote'\"", "back\\slash", "new\nline", "ünï")
    done = live.execute(Command(("printf", r"%s\0", *arguments)))
    assert done.stdout.decode().split("\0")[:-1] == list(arguments)


def test_environment(live):
    done = live.execute(shell('printf "%s|" "$GIVEN"; command -v ls', env={"GIVEN": "a=b c\nd"}))
    value, _, found = done.stdout.decode().partition("|")
    assert value == "a=b c\nd"
    assert found.strip().endswith("/ls"), "PATH has to be set without being given"


def test_working_directory(live):
    assert live.execute(Command(("pwd",))).stdout.strip() == b"/"
    assert live.execute(Command(("pwd",), cwd="/usr/share")).stdout.strip() == b"/usr/share"


def test_binary_stdin_and_stdout(live):
    content = bytes(range(256)) * 17
    assert live.execute(Command(("cat",), stdin=content)).stdout == content


def test_no_stdin_is_an_empty_one(live):
    assert live.execute(Command(("cat",), timeout_s=20)).stdout == b""


def test_large_streams_do_not_deadlock(live):
    content = os.urandom(4_000_000)
    done = live.execute(shell("head -c 3000000 /dev/zero >&2; cat", stdin=content))
    assert done.stdout == content
    assert done.stderr == bytes(3_000_000)


def test_unread_stdin_is_no_error(live):
    assert live.execute(Command(("true",), stdin=bytes(4_000_000))).returncode == 0


def test_times_bracket_the_program(live):
    before = time.monotonic()
    done = live.execute(Command(("sleep", "0.3")))
    after = time.monotonic()
    assert before <= done.started_s <= done.ended_s <= after
    assert 0.3 <= done.duration_s < 5


def test_timeout_kills_the_whole_tree_and_the_instance_stays_usable(live):
    assert left_after_timeout(live, "sleep {mark} & sleep {mark}") == 0


def test_timeout_also_kills_what_left_the_session(live, isolated):
    assert left_after_timeout(live, "(setsid sleep {mark} &) ; setsid sleep {mark} & sleep {mark}") == 0


def left_after_timeout(live, script):
    """How many processes that are told by their argument are there after a timeout."""
    mark = str(900_000_000 + os.getpid())
    before = time.monotonic()
    done = live.execute(shell(script.format(mark=mark), timeout_s=1.0))
    assert done.timed_out
    assert time.monotonic() - before < 20
    listing = live.execute(shell("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; echo end"))
    assert b"end" in listing.stdout
    return listing.stdout.decode(errors="replace").split("\n").count(mark)


def test_a_command_that_ends_does_not_wait_for_what_it_left_running(live, isolated):
    before = time.monotonic()
    assert live.execute(shell("sleep 30 & echo started", timeout_s=25)).stdout == b"started\n"
    assert time.monotonic() - before < 20


def test_sees_as_many_cpus_as_the_envelope_has(live):
    assert int(live.execute(Command(("nproc",))).stdout) == len(live.subject.envelope.cpus)


def test_every_thread_stays_on_the_envelope(live, isolated):
    live.execute(shell("sleep 20 & :"))
    threads = [thread for folder in cgroups_of(live.identifier)[:1] for thread in threads_of(folder)]
    assert threads
    allowed = set(live.subject.envelope.cpus)
    assert all(os.sched_getaffinity(thread) <= allowed for thread in threads)


def test_usage_grows_with_work(live):
    before, began = live.instance.usage(), time.monotonic()
    live.execute(Command(("python3", "-c", "import time\nwhile time.process_time() < 0.6: pass")))
    after, took = live.instance.usage(), time.monotonic() - began
    used = after.cpu_s - before.cpu_s
    # A guest's clock and its host's need not agree to the millisecond; an emulator has threads of its own.
    assert 0.5 < used < took * 1.5 + 0.5
    assert after.memory_peak_bytes > 1_000_000
    for field, reason in after.missing.items():
        assert getattr(after, field) is None
        assert reason


def test_io_is_accounted(live, isolated):
    before = live.instance.usage()
    if before.io_write_bytes is None:
        pytest.skip(f"I/O is not accounted here: {before.missing['io_write_bytes']}")
    script = f"dd if=/dev/zero of={SCRATCH}/io bs=1M count=8 oflag=direct 2>/dev/null && rm {SCRATCH}/io"
    assert live.execute(shell(script)).returncode == 0
    assert live.instance.usage().io_write_bytes - before.io_write_bytes >= 8 * 2**20


def test_footprint(live, isolated):
    held = live.instance.footprint()
    assert held.processes >= 1
    assert held.pss_bytes >= held.private_bytes > 0
    assert held.cgroup_bytes > 0
    live.execute(shell(f"head -c 5000000 /dev/urandom > {SCRATCH}/held; sync"))
    assert live.instance.footprint().disk_owned_bytes - held.disk_owned_bytes >= 4_000_000
    live.execute(shell(f"rm {SCRATCH}/held"))


def test_memory_limit_holds_and_the_instance_survives(live, isolated):
    greedy = live.subject.envelope.memory_bytes * 3
    script = f"import mmap\nm = mmap.mmap(-1, {greedy})\nfor at in range(0, {greedy}, 4096): m[at] = 1\nprint('got it')"
    # Near the limit the kernel may evict and read back the program's own pages for minutes before it kills: the limit
    # holds then too, and the time-out ends it.
    done = live.execute(Command(("python3", "-c", script), timeout_s=30))
    assert b"got it" not in done.stdout
    assert done.signal == 9 or done.returncode not in {0, None}
    assert live.execute(Command(("true",))).returncode == 0


SERVE = """
import os, socket, sys
server = socket.create_server((sys.argv[1], 0))
if os.fork():
    print(server.getsockname()[1])
else:
    os.close(1)
    client, _ = server.accept()
    client.send(b"reached")
"""
CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 20).recv(99).decode())"


def test_an_instance_with_an_address_is_reached_there_and_one_without_has_no_other_side(live, subject):
    identifier, spec = live.identifier + "-host", live.subject.spec
    if live.instance.address is None:
        with pytest.raises(UnsupportedError), subject.backend.host_side(spec(identifier)):
            pass
        return
    with subject.backend.host_side(spec(identifier)) as side:
        for server, client in ((live.instance, side), (side, live.instance)):
            done = server.execute(Command(("python3", "-c", SERVE, server.address)))
            assert done.returncode == 0, done.stderr
            reach = Command(("python3", "-c", CONNECT, server.address, done.stdout.decode().strip()))
            assert client.execute(reach).stdout == b"reached\n"


def test_instances_are_private_and_leave_nothing(subject, isolated, live):
    entries, mounts, processes = subject.ledger.entries(), mount_count(), len(find_processes("contract-"))
    live.execute(shell(f"echo mine > {SCRATCH}/mine; echo mine > /root/mine"))
    identifier, starting = subject.start()
    with starting as instance:
        seen = instance.execute(shell(f"cat {SCRATCH}/mine /root/mine 2>/dev/null; touch {SCRATCH}/b /root/b; ls /usr"))
        assert b"mine" not in seen.stdout
        assert b"bin" in seen.stdout
        assert cgroups_of(identifier)
    assert live.execute(shell(f"ls {SCRATCH}/b /root/b")).returncode != 0
    assert live.execute(shell(f"cat {SCRATCH}/mine /root/mine")).stdout == b"mine\nmine\n"
    assert not (subject.image.rootfs / "root/b").exists()
    assert not (subject.image.rootfs / "root/mine").exists()
    marks = [phase for phase, _ in sorted(instance.timeline.marks.items(), key=lambda mark: mark[1])]
    assert set(marks) >= ALWAYS
    assert marks == [phase for phase in Phase if phase in marks]
    assert cgroups_of(identifier) == []
    assert find_processes(identifier) == []
    assert len(find_processes("contract-")) == processes
    assert mount_count() == mounts
    assert subject.ledger.entries() == entries


def cgroups_of(identifier):
    layout = find_layout()
    folders = dict.fromkeys([layout.unified, *layout.controllers.values()])
    roots = [folder for folder in folders if folder is not None]
    if layout.unified is not None and layout.unified_root is not None:
        # On v2 only, an instance's cgroup is below the nearest of these that can hand controllers on.
        roots += [folder for folder in layout.unified.parents if folder.is_relative_to(layout.unified_root)]
    return [found for root in dict.fromkeys(roots) for found in sorted(root.glob(f"tare-*{identifier}*"))]


def threads_of(folder):
    pids = (folder / "cgroup.procs").read_text().split()
    return [int(task.name) for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]


def mount_count():
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


def find_processes(text):
    """Pids whose command line names ``text``, this process and its like left out."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in line and b"pytest" not in line:
                found.append(int(process.name))
    return found
