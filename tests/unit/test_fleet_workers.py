"""Starting workers: one message with the host's name for each thing that is wrong, and one worker on a host."""

import asyncio
import errno
import fcntl
import os
import socket

import msgspec
import pytest
import typer

from tare.bench.cli.fleet_worker import _only_worker, _parse, _Working, detach_command
from tare.bench.cli.guard import guard
from tare.bench.errors import ExitCode, HostBusyError, SuiteError, TareError
from tare.bench.fleet.hosts import Host
from tare.bench.fleet.setup import listening_address
from tare.bench.linux.processes import find_status

HERE, THERE = Host("here", "127.0.0.1"), Host("there", "192.0.2.7")


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TARE_STATE_DIR", str(tmp_path))
    (tmp_path / "fleet").mkdir()
    return tmp_path / "fleet/worker.lock"


def hold(lock, address, *, connected):
    """Hold the lock as the worker of another process would, under this process's name."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    status = find_status(os.getpid())
    assert status is not None
    os.write(descriptor, msgspec.json.encode(_Working(os.getpid(), status.started, address, connected)))
    return descriptor


def test_a_worker_is_alone_and_says_whether_it_is_connected(lock):
    with _only_worker("tcp://127.0.0.1:1") as connected:
        with connected():
            assert msgspec.json.decode(lock.read_bytes(), type=_Working).connected
        assert not msgspec.json.decode(lock.read_bytes(), type=_Working).connected
    assert lock.read_bytes() == b""


def test_two_fleets_at_once_are_refused(lock):
    hold(lock, "tcp://127.0.0.1:1", connected=True)
    with pytest.raises(HostBusyError, match=r"the worker of another fleet works here .* for tcp://127.0.0.1:1"):
        _only_worker("tcp://127.0.0.1:2").__enter__()


def test_the_worker_of_the_same_fleet_is_enough(lock):
    hold(lock, "tcp://127.0.0.1:1", connected=True)
    with pytest.raises(typer.Exit) as raised:
        _only_worker("tcp://127.0.0.1:1").__enter__()
    assert raised.value.exit_code == ExitCode.OK


@pytest.mark.parametrize(
    ("address", "encrypted", "message"),
    [
        ("192.0.2.1:8786", True, "is no address"),
        ("tls://192.0.2.1", True, "is no address"),
        ("tls://192.0.2.1:8786", False, "needs the certificate of this host"),
        ("tcp://127.0.0.1:8786", True, "has no TLS"),
        ("tcp://192.0.2.1:8786", False, "without TLS anybody on the network could run commands here as root"),
    ],
)
def test_a_worker_goes_beyond_loopback_with_tls_only(address, encrypted, message):
    with pytest.raises((SuiteError, TareError), match=message):
        _parse(address, encrypted=encrypted)


def test_a_fleet_listens_beyond_loopback_with_tls_only():
    assert listening_address("", [HERE], encrypted=False) == "tcp://127.0.0.1:0"
    assert listening_address("192.0.2.1:8786", [THERE], encrypted=True) == "tls://192.0.2.1:8786"
    for hosts, stated in (([HERE, THERE], "127.0.0.1"), ([HERE], "0.0.0.0"), ([HERE], "192.0.2.1:5")):
        with pytest.raises(TareError, match="without TLS anybody on the network") as raised:
            listening_address(stated, hosts, encrypted=False)
        assert "tare fleet keys" in str(raised.value.remedy)


def test_ssh_that_cannot_be_reached_is_one_message(tmp_path):
    asyncssh = pytest.importorskip("asyncssh")
    assert asyncssh
    from tare.bench.fleet.ssh import SshStarter

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for host, message in (
        (Host("a", "127.0.0.1", port=port, user="root"), rf"SSH to root@127.0.0.1:{port}: Connection refused"),
        (Host("b", "no-such-host.invalid"), "SSH to no-such-host.invalid:22: [A-Z]"),
        (Host("c", "127.0.0.1", port=port, key=str(tmp_path / "missing")), f"SSH to 127.0.0.1:{port}: "),
    ):
        with pytest.raises(TareError, match=message):
            asyncio.run(SshStarter(None).start(host, "tls://192.0.2.1:1"))


FULL = "/dev/full"
"""Takes nothing: each write ends with ENOSPC."""


def test_a_full_disk_is_one_message_of_the_worker_that_is_to_start(lock, capfd):
    (lock.parent / "worker.log").symlink_to(FULL)
    with pytest.raises(typer.Exit) as raised, guard():
        detach_command("tcp://127.0.0.1:1", "a", None, "1s")
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
    said = capfd.readouterr().err
    assert said.startswith(f"tare: cannot write to {lock.parents[1]}: ")
    assert "No space left on device\n  what to do: " in said


def test_a_full_disk_is_named_where_the_worker_enters_itself(lock, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as raised:
        _only_worker("tcp://127.0.0.1:1").__enter__()
    assert raised.value.filename == str(lock)


def test_what_a_worker_said_last_is_the_hosts_reason():
    pytest.importorskip("asyncssh")
    from tare.bench.fleet.ssh import _failed

    bug = "Traceback (most recent call last):\n  File x\nKeyError: 'y'\ntare: this is a bug in tare; please report it"
    full = "a: connecting to tls://x\ntare: there is no room\n  what to do: make some"
    for code, said, message in (
        (70, bug, "the worker of here did not start: KeyError: 'y': this is a bug in tare; please report it"),
        (6, full, "the worker of here did not start: there is no room\n  what to do: make some"),
        (1, "", "the worker of here did not start: exit code 1"),
        (127, "sh: 1: tare: not found", "there is no `tare` on here: sh: 1: tare: not found"),
    ):
        assert _failed(HERE, code, said).message == message
