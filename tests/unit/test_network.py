"""Networks before anything runs: what a suite may ask for, what is refused, and the path that a report states."""

import errno
import os
import re
from dataclasses import replace

import msgspec
import pytest

from tare.backends.network import bridge
from tare.backends.network.bridge import require_tap, why_no_vhost
from tare.backends.vm import network
from tare.backends.vm.network import GuestNetwork, probe_network
from tare.backends.vm.options import Network
from tare.bench.analysis import MeasuredBackend, Subject
from tare.bench.catalogue import TRAITS
from tare.bench.errors import BackendError, SuiteError, UnavailableError
from tare.bench.model import BackendDescription, IsolationKind, named_facts
from tare.bench.network_path import describe_paths, find_path
from tare.bench.registry import find_backends, find_workloads
from tare.bench.store import load_run
from tare.bench.suite import read_suite
from tare.bench.traits import Category, WorkloadTraits
from tare.reports.wording import path_sentence
from tests.synthetic import QUICK, SUBJECTS, write_run

SUITE = """
[suite]
name = "served"
[envelope]
memory = "256MiB"
[[backend]]
type = "bare-metal"
[[backend]]
type = "{kind}"
options = {{ network = "{network}" }}
[[experiment]]
kind = "steady"
workload = "served"
options = {{ server = {servers} }}
[[workload]]
name = "served"
command = ["ask", "@server@"]
[[workload.service]]
name = "answers"
command = ["answer", "@server@"]
ready = ["ask", "@server@"]
[[workload.metric]]
name = "time"
direction = "lower"
description = "All of it."
exit_time = true
"""
USER_ALONE = 'network: "user" lets a guest reach the host\'s side, and nobody reach the guest; "tap" does'
ALL = '["same-instance", "other-instance", "host"]'


def load(tmp_path, kind, network, servers=ALL):
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.format(kind=kind, network=network, servers=servers))
    return read_suite(path, find_backends(), find_workloads())


@pytest.mark.parametrize(
    ("kind", "network", "servers"),
    [
        ("native", "veth", ALL),
        ("native", "host", ALL),
        ("native", "none", '"same-instance"'),
        ("vm", "tap", ALL),
        ("vm", "user", '["same-instance", "host"]'),
        ("vm", "none", '"same-instance"'),
    ],
)
def test_a_way_that_there_is(tmp_path, kind, network, servers):
    assert load(tmp_path, kind, network, servers).scenarios


@pytest.mark.parametrize(
    ("kind", "network", "server", "reason"),
    [
        ("native", "none", "other-instance", 'network: "none" reaches nothing outside; "veth" and "host" do'),
        ("native", "none", "host", 'network: "none" reaches nothing outside; "veth" and "host" do'),
        ("vm", "none", "other-instance", 'network: "none" reaches nothing outside; "tap" does'),
        ("vm", "none", "host", 'network: "none" reaches nothing outside; "tap" does'),
        ("vm", "user", "other-instance", USER_ALONE),
    ],
)
def test_no_way_is_refused_when_the_suite_is_read(tmp_path, kind, network, server, reason):
    with pytest.raises(SuiteError) as caught:
        load(tmp_path, kind, network, f'["same-instance", "{server}"]')
    assert caught.value.place == f"{tmp_path / 'suite.toml'}: backend[1].options"
    assert caught.value.message.endswith(f"the backend '{kind}' has no network route to server = '{server}': {reason}")


def test_a_host_without_tap_devices_is_told_how_to_get_them(tmp_path):
    missing = tmp_path / "net/tun"
    with pytest.raises(UnavailableError, match=f'network = "tap" needs {missing}, which is not here: ') as caught:
        require_tap(missing)
    assert caught.value.remedy is not None
    assert "modprobe tun" in caught.value.remedy
    assert "mknod" in caught.value.remedy
    assert why_no_vhost(tmp_path / "vhost-net") == f"{tmp_path / 'vhost-net'}: No such file or directory"


def test_a_backend_says_what_its_network_lacks(monkeypatch):
    def refuse():
        raise UnavailableError("no tap", remedy="make one")

    monkeypatch.setattr(network, "require_tap", refuse)
    found = probe_network(Network.TAP)
    assert (found.available, found.reason, found.remedy) == (False, "no tap", "make one")
    assert probe_network(Network.USER).available


@pytest.mark.parametrize(
    ("number", "problem", "remedy"),
    [
        (errno.EOPNOTSUPP, "a bridge: this kernel has no bridges", "modprobe bridge"),
        (errno.EPERM, "a bridge: which was refused: Operation not permitted", "run tare as root"),
    ],
)
def test_a_bridge_that_cannot_be_made(monkeypatch, number, problem, remedy):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(bridge.BridgeNetwork, "enter", refuse)
    with pytest.raises(UnavailableError, match=problem) as caught, bridge.start_network("tap"):
        pass
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.EBUSY, "its tap is there already"),
        (errno.EXFULL, "no more than 1023 instances"),
        (errno.EOPNOTSUPP, "this kernel has no tap"),
        (errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_port_that_cannot_be_made(number, problem):
    with pytest.raises(BackendError, match=problem), bridge._port_errors("tap"):
        raise OSError(number, os.strerror(number))


def test_addresses_are_given_once_until_none_is_left(monkeypatch):
    monkeypatch.setattr(bridge, "SUBNET", bridge.ipaddress.IPv4Network("10.157.0.0/29"))
    made = bridge.BridgeNetwork(None, None)  # type: ignore[arg-type]  # its threads are not needed here
    given = [made._take_address() for _ in range(5)]
    assert given == [f"10.157.0.{last}" for last in range(2, 7)]
    with pytest.raises(BackendError, match=re.escape("every address of 10.157.0.0/29 is in use")):
        made._take_address()
    made._let_go("10.157.0.4")
    assert made._take_address() == "10.157.0.4"
    assert bridge._mac("10.157.3.20") == "52:54:00:9d:03:14"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    small = replace(QUICK, subjects=SUBJECTS[:1], iterations=1, blocks=1)
    run = load_run(write_run(tmp_path_factory.mktemp("runs") / "run", small))
    found = describe_paths(inside="lo", other="veth, bridge, veth")
    described = {
        "native": BackendDescription("native (container)", IsolationKind.CONTAINER, facts=named_facts(found)),
        "old": BackendDescription("old", IsolationKind.SANDBOX),
    }
    traits = {"net": WorkloadTraits(Category.NETWORK, fixed_time=True)}
    return msgspec.structs.replace(run.manifest, backends=described, workloads=traits)


def sentence(manifest, workload, **params):
    backends = [
        MeasuredBackend("native", "native (container)", 0, is_baseline=True),
        MeasuredBackend("old", "old", 1, is_baseline=False),
    ]
    return path_sentence(Subject("steady", workload, params, [], TRAITS["steady"]), manifest, backends)


def test_a_guest_s_path_says_who_moves_its_packets():
    made = bridge.BridgeNetwork(None, None)  # type: ignore[arg-type]  # its threads are not needed here
    fast, slow = (GuestNetwork(Network.TAP, made, reason) for reason in ("", "/dev/vhost-net: not here"))
    assert find_path(fast.facts(), "other-instance") == "virtio-net, vhost, tap, bridge, tap, vhost, virtio-net"
    assert find_path(slow.facts(), "host") == "virtio-net, QEMU, tap, bridge"
    assert slow.facts()["packets_moved_by"] == "QEMU (/dev/vhost-net: not here)"
    codes = [[found.code for found in one.confounds("vm")] for one in (fast, slow)]
    assert codes == [["own-network"], ["own-network", "no-vhost"]]
    user = GuestNetwork(Network.USER, made, "")
    assert find_path(user.facts(), "other-instance") == "none"
    assert [found.code for found in user.confounds("vm")] == ["own-network"]
    with user.start_port() as port:
        assert port.kernel_arguments == ("tare.net=10.0.2.15/24", "tare.gateway=10.0.2.2")
        assert (port.address, port.interface.tap) == (None, "")


def test_a_report_states_the_path_where_there_is_a_server(manifest):
    assert sentence(manifest, "redis", server="other-instance") == (
        "Path to the server (other-instance): native (container): veth, bridge, veth."
    )
    assert sentence(manifest, "redis", server="host") == "Path to the server (host): native (container): none."
    assert sentence(manifest, "net") == "Path to the server (same-instance): native (container): lo."
    assert sentence(manifest, "redis") == ""
