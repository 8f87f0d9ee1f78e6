"""The networks of guests: who reaches whom, that it is tare's namespace and no other, and that nothing of it stays."""

import contextlib
import os
import select
import socket
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tare.backends.network.bridge import GATEWAY, make_tap, require_tap, start_network
from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.options import Network, VmOptions
from tare.bench.errors import BackendError, UnavailableError, UnsupportedError
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger, clean
from tare.bench.locations import cache_directory
from tare.bench.model import Command
from tare.bench.network_path import find_path
from tare.bench.process import PIPE, Popen
from tests.privileged.host_kernel import ENVELOPE, spec
from tests.privileged.test_native_network import holders

pytestmark = [pytest.mark.root, pytest.mark.tools, pytest.mark.image]

SERVE = """
import os, socket, sys
server = socket.create_server((sys.argv[1], 0))
if os.fork():
    print(server.getsockname()[1])
else:
    os.close(1)
    client, peer = server.accept()
    size = 0
    while got := client.recv(1 << 20):
        size += len(got)
    client.send(f"{size} bytes from {peer[0]}".encode())
"""
CONNECT = """
import socket, sys
server = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
server.sendall(bytes(1 << 20))
server.shutdown(socket.SHUT_WR)
print(server.recv(99).decode())
"""
LEAVE = """
import socket
for address in ("192.0.2.1", "127.0.0.1"):
    try:
        socket.create_connection((address, 9), 5)
    except OSError as error:
        print(type(error).__name__)
"""


def host_links():
    """The links of tare's names in the network of the host, where none belongs."""
    return [name for _, name in socket.if_nameindex() if name.startswith(("tare", "tap0-", "veth0-"))]


def python(instance, script, *arguments):
    done = instance.execute(Command(("python3", "-c", script, *arguments)))
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def exchange(server, client):
    port = python(server, SERVE, server.address)
    return python(client, CONNECT, server.address, port)


def make_backend(ledger, work, network):
    others = tuple(sorted(os.sched_getaffinity(0) - set(ENVELOPE.cpus)))
    context = BackendContext(ledger, work, cache_directory(), VmOptions(network=network), others)
    backend = VirtualMachine(context)
    found = backend.probe()
    if not found.available:
        pytest.skip(f"vm is not available here: {found.reason}")
    return backend


def namespace_of(pid):
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def taps_of(network):
    return [name for _, name in network.run_inside(socket.if_nameindex) if name.startswith("tap")]


@pytest.mark.guest
def test_two_guests_and_the_host_s_side_are_on_one_bridge(image, tmp_path):
    before = host_links()
    with Ledger(tmp_path / "ledger") as ledger:
        backend = make_backend(ledger, tmp_path / "work", Network.TAP)
        try:
            described = backend.prepare(image, ENVELOPE)
            bridge = backend._setup.network.bridge
            with (
                backend.start(spec("one", image)) as one,
                backend.start(spec("two", image)) as two,
                backend.host_side(spec("side", image)) as side,
            ):
                assert exchange(one, two) == f"1048576 bytes from {two.address}"
                assert exchange(side, one) == f"1048576 bytes from {one.address}"
                assert len(taps_of(bridge)) == 2
                assert one.timeline.splits["network"] > 0
                assert namespace_of(one.pid) == namespace_of(two.pid) == namespace_of(side.pid)
                assert namespace_of(one.pid) != namespace_of(os.getpid())
                assert python(one, LEAVE).split() == ["OSError", "ConnectionRefusedError"], "there is no way out"
                assert one.execute(Command(("cat", "/sys/class/net/eth0/mtu"))).stdout == b"1500\n"
            assert_taps_go(bridge)
        finally:
            backend.close()
        assert ledger.entries() == ()
    assert host_links() == before, "the host's own network is not ours to change"
    path = find_path(described.texts, "other-instance")
    assert path.startswith("virtio-net, ")
    assert path.split(", ").count("tap") == 2
    codes = [confound.code for confound in described.confounds]
    assert codes.count("own-network") == 1
    assert ("no-vhost" in codes) == ("QEMU" in path)


def assert_taps_go(bridge):
    """They are deleted after a stop, which does not wait for it."""
    deadline = time.monotonic() + 60
    while taps_of(bridge) or bridge._used:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # the kernel takes some tens of milliseconds for each


@pytest.mark.guest
def test_user_mode_leads_to_the_host_s_side_and_nowhere_else(image, tmp_path):
    with Ledger(tmp_path / "ledger") as ledger:
        backend = make_backend(ledger, tmp_path / "work", Network.USER)
        try:
            backend.prepare(image, ENVELOPE)
            with backend.start(spec("user", image)) as guest, backend.host_side(spec("side", image)) as side:
                assert guest.address is None
                assert exchange(side, guest) == f"1048576 bytes from {GATEWAY}", "as QEMU's stack connects anew"
                assert python(guest, LEAVE).split() == ["OSError", "ConnectionRefusedError"]
        finally:
            backend.close()


KILLED = """
import sys
from pathlib import Path
import msgspec
from tare.backends.vm.options import Network
from tare.bench.ledger import Ledger
from tare.bench.model import Image
from tests.privileged.host_kernel import ENVELOPE, spec
from tests.privileged.test_native_network import holders
from tests.privileged.test_vm_network import make_backend
folder, image = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Image, dec_hook=lambda _, text: Path(text))
with Ledger(folder / "ledger") as ledger:
    backend = make_backend(ledger, folder / "work", Network.TAP)
    backend.prepare(image, ENVELOPE)
    print("prepared", flush=True)
    with backend.start(spec("victim", image)):
        sys.stdin.read()
"""


@pytest.mark.guest
def test_a_killed_tare_leaves_no_tap_after_cleaning(image, tmp_path):
    before = host_links()
    given = msgspec.json.encode(image, enc_hook=str).decode()
    with Popen([sys.executable, "-c", KILLED, str(tmp_path), given], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout.readline() == "prepared\n"
        qemu = await_qemu(f"guest=victim-{process.pid},")
        namespace = namespace_of(qemu)
        held = os.open(f"/proc/{qemu}/ns/net", os.O_RDONLY)  # its number is not given to another meanwhile
        end = os.pidfd_open(qemu)
        process.kill()
    assert namespace != namespace_of(os.getpid())
    assert clean(tmp_path / "ledger").failed == ()
    assert select.select([end], [], [], 60)[0]
    os.close(end)
    assert holders({namespace}) == []
    os.close(held)
    assert host_links() == before
    assert list((tmp_path / "ledger").iterdir()) == []


def await_qemu(name):
    """The pid of the QEMU that has ``name`` among its arguments, once it is QEMU."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line, program = (folder / "cmdline").read_bytes(), (folder / "comm").read_bytes()
                if name.encode() in line and b"qemu" in program:
                    return int(folder.name)
    raise AssertionError(f"no QEMU with {name}")


def test_a_name_that_is_taken_is_named():
    try:
        require_tap()
    except UnavailableError as error:
        pytest.skip(error.message)
    with start_network("tap") as bridge, bridge.start_tap() as tap:
        assert (tap.name, tap.address, tap.mac) == ("tap0-2", "10.157.0.2", "52:54:00:9d:00:02")
        assert tap.kernel_argument == "tare.net=10.157.0.2/16"
        bridge.run_inside(lambda: make_tap("tap0-3"))
        with pytest.raises(BackendError, match="its tap is there already"), bridge.start_tap():
            pass
        assert taps_of(bridge) == ["tap0-2", "tap0-3"], "it is not ours to delete"
        with bridge.start_tap() as other:
            assert other.address == "10.157.0.4"


def test_without_a_network_there_is_no_other_side(image, tmp_path):
    with Ledger(tmp_path / "ledger") as ledger:
        backend = make_backend(ledger, tmp_path / "work", Network.NONE)
        with pytest.raises(UnsupportedError, match="reaches nothing outside"):
            backend.host_side(spec("side", image))
