"""The network modes of containers: what connects them, and that nothing of it stays or touches the host's own."""

import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import pytest

from tare.backends.native.backend import Native
from tare.backends.native.options import NativeOptions, Network
from tare.backends.network.bridge import GATEWAY, SUBNET
from tare.bench.errors import UnsupportedError
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger, clean
from tare.bench.model import Command
from tare.bench.network_path import find_path
from tare.bench.process import PIPE, Popen
from tests.privileged.host_kernel import ENVELOPE, spec, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]

SIOCGIFHWADDR = 0x8927
CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 10).recv(99).decode())"
SERVE = """
import os, socket, sys
server = socket.create_server(("", 0))
if os.fork():
    print(server.getsockname()[1])
else:
    os.close(1)
    client, peer = server.accept()
    client.send(f"hello {peer[0]}".encode())
"""


def links():
    """The links of tare's names in the network of the host, where none belongs."""
    return [name for _, name in socket.if_nameindex() if name.startswith(("tare", "veth0-"))]


@pytest.fixture(scope="module")
def veth(image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("veth")
    before = links()
    options = NativeOptions(network=Network.VETH)
    with Ledger(folder / "ledger") as ledger, start_backend("native", image, folder / "w", ledger, options) as backend:
        yield backend
    assert links() == before, "the host's own network is not ours to change"


def python(instance, script, *arguments):
    done = instance.execute(Command(("python3", "-c", script, *arguments)))
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_containers_reach_one_another(veth, image):
    with veth.start(spec("one", image)) as one, veth.start(spec("two", image)) as two:
        assert one.address != two.address
        port = python(one, SERVE)
        assert python(two, CONNECT, one.address, port) == f"hello {two.address}"
        assert one.timeline.splits["network"] > 0


def test_the_hosts_side_is_bare_metal_in_the_namespace_of_the_bridge(veth, image):
    entries = veth.context.ledger.entries()
    with veth.host_side(spec("side", image)) as side, veth.start(spec("guest", image)) as instance:
        assert side.address == GATEWAY
        assert python(instance, CONNECT, GATEWAY, python(side, SERVE)) == f"hello {instance.address}"
        assert python(side, CONNECT, instance.address, python(instance, SERVE)) == f"hello {GATEWAY}"
        assert int(python(side, "import os; print(os.getppid())")) == side.pid, "no pid namespace"
        allowed = json.loads(python(side, "import json, os; print(json.dumps([*os.sched_getaffinity(0)]))"))
        assert tuple(sorted(allowed)) == (veth.context.housekeeping_cpus or ENVELOPE.cpus)
        began = len(veth.context.ledger.entries())
    with veth.host_side(spec("again", image)) as side:
        assert python(side, "print(1)") == "1"
        assert len(veth.context.ledger.entries()) < began
    assert {entry.target for entry in entries} <= {entry.target for entry in veth.context.ledger.entries()}


def test_a_container_has_its_pair_and_nothing_of_the_host(veth, image):
    with veth.start(spec("links", image)) as instance:
        names = python(instance, "import socket; print(*[name for _, name in socket.if_nameindex()])").split()
        assert {"lo", "eth0"} <= set(names)
        assert "tare0" not in names
        assert inside_links(veth) == {"tare0", "veth" + "-".join(instance.address.split(".")[2:])}
        # Only the subnet is routed: there is no way out to the host or beyond.
        done = instance.execute(Command(("cat", "/proc/net/route")))
        routes = [line.split()[:2] for line in done.stdout.decode().splitlines()[1:]]
        assert routes == [["eth0", f"{socket.ntohl(int(SUBNET.network_address)):08X}"]]


def test_a_stopped_container_leaves_no_link(veth, image):
    with veth.start(spec("gone", image)) as instance:
        address = instance.address
    deadline = time.monotonic() + 60
    while inside_links(veth) != {"tare0"}:
        assert time.monotonic() < deadline, inside_links(veth)
        time.sleep(0.05)  # the kernel takes namespaces apart when it has time
    assert veth._network._used == set()
    with veth.start(spec("next", image)) as instance:
        assert instance.address != address, "the kernel may not have let go of it yet"


def test_the_hosts_side_keeps_its_hardware_address_while_others_come_and_go(veth, image):
    with veth.start(spec("stays", image)):
        before = bridge_address(veth)
        for number in range(8):  # a bridge takes the lowest address of its ports unless it has one of its own
            with veth.start(spec(f"comes-{number}", image)):
                assert bridge_address(veth) == before, "what others know it by"


def bridge_address(backend):
    """The hardware address of tare's bridge."""

    def ask():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            return fcntl.ioctl(any_socket, SIOCGIFHWADDR, struct.pack("256s", b"tare0"))[18:24].hex()

    return backend._network.run_inside(ask)


def inside_links(backend):
    """Links of tare's namespace that are ours; a kernel may put devices of its own (tunl0) into every namespace."""
    names = backend._network.run_inside(socket.if_nameindex)
    return {name for _, name in names if name.startswith(("tare", "veth"))}


def test_host_mode_shares_the_hosts_network(image, tmp_path):
    options = NativeOptions(network=Network.HOST)
    with Ledger(tmp_path / "ledger") as ledger, start_backend("native", image, tmp_path, ledger, options) as backend:
        description = backend.prepare(image, ENVELOPE)
        assert description.texts["network"] == "the host's"
        assert "net" not in description.texts["namespaces"].split(",")
        assert "own-network" not in {confound.code for confound in description.confounds}
        with backend.start(spec("host", image)) as instance:
            assert instance.address == "127.0.0.1"
            seen = instance.execute(Command(("readlink", "/proc/self/ns/net"))).stdout.decode().strip()
            assert seen == str(Path("/proc/self/ns/net").readlink())
            with backend.host_side(spec("side", image)) as side:
                assert python(instance, CONNECT, side.address, python(side, SERVE)) == "hello 127.0.0.1"


def test_a_container_without_a_network_has_no_other_side(image, tmp_path):
    context = BackendContext(Ledger(tmp_path), tmp_path, tmp_path, NativeOptions(), ())
    with pytest.raises(UnsupportedError, match="reaches nothing outside"):
        Native(context).host_side(spec("side", image))


def test_veth_is_a_fact_and_a_confound(veth, image):
    described = veth._describe()
    assert "veth" in described.texts["network"]
    assert find_path(described.texts, "other-instance") == "veth, bridge, veth"
    assert [confound.code for confound in described.confounds].count("own-network") == 1


KILLED = """
import os, sys, time
from pathlib import Path
from tare.backends.native.backend import Native
from tare.backends.native.options import NativeOptions, Network
from tare.bench.ledger import Ledger
from tare.bench.model import Command, Image
from tests.privileged.host_kernel import spec, start_backend
rootfs, folder = sys.argv[1:]
image = Image("", "", Path(rootfs), Path(rootfs), None, None, None, "", {}, 0)
options = NativeOptions(network=Network.VETH)
with (
    Ledger(Path(folder) / "ledger") as ledger,
    start_backend("native", image, Path(folder) / "work", ledger, options) as backend,
    backend.start(spec("victim", image)) as instance,
    backend.host_side(spec("side", image)) as side,
):
    side.execute(Command(("sh", "-c", "sleep 1000 & :")))
    own = backend._network.run_inside(lambda: os.readlink("/proc/thread-self/ns/net"))
    print(instance.pid, side.cgroup.members()[-1], own, flush=True)
    time.sleep(1000)
"""


def test_nothing_survives_a_killed_harness(image, tmp_path):
    before = links()
    with Popen([sys.executable, "-c", KILLED, str(image.rootfs), str(tmp_path)], stdout=PIPE, text=True) as process:
        pid, sleeper, tares = process.stdout.readline().split()
        theirs = str(Path(f"/proc/{pid}/ns/net").readlink())
        assert str(Path(f"/proc/{sleeper}/ns/net").readlink()) == tares
        # A namespace that is held keeps its number, which another would soon have otherwise.
        held = [os.open(f"/proc/{one}/ns/net", os.O_RDONLY) for one in (pid, sleeper)]
        ends = [os.pidfd_open(int(one)) for one in (pid, sleeper)]
        process.send_signal(signal.SIGKILL)
    assert clean(tmp_path / "ledger").failed == ()
    for end in ends:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        assert poll.poll(60_000)
        os.close(end)
    assert list((tmp_path / "ledger").iterdir()) == []
    assert links() == before
    assert holders({theirs, tares}) == []
    for descriptor in held:
        os.close(descriptor)


def holders(namespaces):
    """Processes in one of these network namespaces: none means that the kernel has taken or takes them apart."""
    found = []
    for process in Path("/proc").glob("[0-9]*/task/*"):
        try:
            if str((process / "ns/net").readlink()) in namespaces:
                found.append(process)
        except OSError:
            continue
    return found
