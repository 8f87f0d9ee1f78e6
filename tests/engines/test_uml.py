"""User-mode Linux: its jail, its line, its ends. All is skipped where it is not installed or cannot run a program."""

import os
import secrets
import time
from pathlib import Path

import msgspec
import pytest

from tare.backends.engines.uml import UserModeLinux
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.ledger import Ledger, work_folder
from tare.bench.locations import work_directory
from tare.bench.model import Command, Phase
from tare.bench.testing.subject import start_subject, traces_of

pytestmark = [pytest.mark.root, pytest.mark.image, pytest.mark.tools]


@pytest.fixture(scope="module")
def subject(image, tmp_path_factory):
    work = work_directory() / secrets.token_hex(4)
    with Ledger(tmp_path_factory.mktemp("ledger")) as ledger, work_folder(ledger, work):
        try:
            with start_subject(UserModeLinux, ledger, work, image) as made:
                yield made
        except UnavailableError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def guest(subject):
    with subject.start()[1] as instance:
        yield instance


def shell(instance, script, **more):
    return instance.execute(Command(("sh", "-c", script), **more))


def test_root_inside_sees_the_jail_alone(guest, subject):
    """``hostfs`` shows a guest's root what the kernel's own process can reach on the host."""
    shell(guest, "mkdir /tmp/host; mount -t hostfs none /tmp/host -o /")
    done = shell(guest, "cd /tmp/host && find . -xdev -type f | sort")
    files = done.stdout.decode().split()
    libraries = {f".{path}" for path in subject.backend._libraries}
    assert {"./image", "./initramfs", "./scratch"} <= set(files)
    assert set(files) - libraries == {"./image", "./initramfs", "./scratch", "./usr/bin/linux.uml"}
    disk = subject.image.disk.stat()
    refused = shell(guest, "cd /tmp/host; for at in image initramfs new usr/bin/new; do echo taken > $at; done")
    assert refused.stderr.count(b"cannot create") == 4
    assert b"echo" in shell(guest, "echo taken > /dev/ubda; umount /tmp/host").stderr
    assert (subject.image.disk.stat().st_size, subject.image.disk.stat().st_mtime_ns) == (
        disk.st_size,
        disk.st_mtime_ns,
    )


def test_its_process_is_nobody_with_nothing(guest):
    status = dict(line.split(":", 1) for line in Path(f"/proc/{guest.pid}/status").read_text().splitlines())
    user = int(status["Uid"].split()[0])
    assert user not in {0, os.getuid()}
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["Groups"].strip() == ""
    assert int(status["NoNewPrivs"]) == 1
    for name in ("mnt", "net", "ipc", "uts"):
        assert Path(f"/proc/{guest.pid}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink()
    opened = [str(path.readlink()) for path in Path(f"/proc/{guest.pid}/fd").iterdir()]
    files = [path for path in opened if path.startswith("/") and "(deleted)" not in path]
    assert sorted(files) == ["/image", "/scratch"]


def test_what_it_can_fill_has_an_end(guest):
    """Its disk's file and the folder for its memory's are all of the host's that it can write to."""
    done = shell(
        guest, "mkdir -p /tmp/again; mount -t hostfs none /tmp/again -o /; : > /tmp/again/tmp/mine && echo made"
    )
    assert done.stdout == b"made\n"
    done = shell(guest, "cd /tmp/again/tmp; for at in $(seq 100); do : > $at || exit 3; done")
    assert done.returncode != 0, "the folder has room for a few files"
    limits = Path(f"/proc/{guest.pid}/limits").read_text()
    most = int(next(line for line in limits.splitlines() if line.startswith("Max file size")).split()[3])
    assert most < 4 << 30
    assert "Max core file size        0 " in limits


def test_the_line_lives_on_after_much_and_a_pause(guest):
    """Its driver takes no interrupt any more once it was throttled, so the host never sends that much at once."""
    content = os.urandom(300_000)
    for _ in range(2):
        assert guest.execute(Command(("cat",), stdin=content)).stdout == content
        long = "x" * 100_000
        done = guest.execute(Command(("sh", "-c", 'sleep 0.3; printf %s "$0"; cat', long), stdin=content))
        assert done.stdout == long.encode() + content


def test_a_full_console_stops_nobody_else(guest):
    flood = "head -c 1000000 /dev/zero | tr '\\0' x > /dev/console"
    assert shell(guest, flood, timeout_s=2).timed_out, "who writes to it waits"
    assert shell(guest, "echo alive").stdout == b"alive\n"


def test_its_memory_is_counted_once(guest):
    """Its thread for the disks is a process that shares the kernel's memory."""
    held = guest.footprint()
    assert held.pss_bytes < 1.2 * held.cgroup_bytes


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("echo c > /proc/sysrq-trigger", "it was killed"),
        ("kill -s RTMIN+4 1; sleep 60", "its kernel ended|failed while"),
    ],
)
def test_a_guest_that_ends_by_itself_says_so(subject, script, how):
    identifier, starting = subject.start()
    with starting as instance:
        with pytest.raises(BackendError, match=how) as caught:
            shell(instance, script)
        assert caught.value.evidence
        with pytest.raises(BackendError, match="the guest is gone"):
            shell(instance, "true")
    assert traces_of(identifier, subject.backend.context.work_directory) == []


def test_an_init_that_refuses_its_parameters_says_so(subject, monkeypatch):
    """As that of an image from an older tare does, which knows no line."""
    backend = subject.backend
    asked = backend.start_command
    monkeypatch.setattr(backend, "start_command", lambda box: [*asked(box), "tare.unheard=of"])
    identifier, starting = subject.start()
    with pytest.raises(BackendError, match=r"this image's init has no parameter tare\.unheard"), starting:
        pass
    assert traces_of(identifier, backend.context.work_directory) == []


def test_a_guest_that_is_asked_powers_off(subject):
    options = msgspec.structs.replace(subject.backend.context.options, stop="shutdown")
    context = msgspec.structs.replace(subject.backend.context, options=options)
    backend = UserModeLinux(context)
    try:
        backend.prepare(subject.image, subject.envelope)
        identifier = f"tare-{secrets.token_hex(4)}-off"
        with backend.start(subject.spec(identifier)) as instance:
            assert shell(instance, "echo kept > /scratch/kept").returncode == 0
            asked_s = time.monotonic()
        marks = instance.timeline.marks
        assert asked_s <= marks[Phase.STOP_REQUESTED] < marks[Phase.PROCESS_GONE]
        assert traces_of(identifier, backend.context.work_directory) == []
    finally:
        backend.close()
