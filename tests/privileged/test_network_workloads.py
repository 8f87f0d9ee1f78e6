"""The workloads of the network between two real containers, and a server that dies under its client."""

import msgspec
import pytest

from tare.backends.native.options import NativeOptions, Network
from tare.bench.errors import ParseError, WorkloadError
from tare.bench.experiments.work import Work
from tare.bench.ledger import Ledger
from tare.bench.model import Command, Commands
from tare.bench.registry import find_workloads
from tare.bench.units import decode_quantity
from tare.workloads.iperf3 import Iperf3
from tests.privileged.host_kernel import ENVELOPE, spec, start_backend
from tests.privileged.test_applications import Run, prepare

pytestmark = [pytest.mark.root, pytest.mark.image]


@pytest.fixture(scope="module")
def veth(catalogue_image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("network-workloads")
    options = NativeOptions(network=Network.VETH)
    with (
        Ledger(folder / "ledger") as ledger,
        start_backend("native", catalogue_image, folder / "w", ledger, options) as backend,
    ):
        yield backend


@pytest.mark.parametrize(
    ("name", "params", "metrics"),
    [
        ("iperf3", {}, {"tcp.bandwidth", "tcp.retransmits"}),
        (
            "iperf3",
            {"protocol": "udp", "direction": "receive", "streams": 2},
            {"udp.bandwidth", "udp.loss", "udp.jitter"},
        ),
        ("sockperf", {"protocol": "udp"}, None),
        ("nginx-connections", {}, None),
    ],
)
def test_a_client_measures_a_server_in_another_container(veth, catalogue_image, name, params, metrics):
    workload = find_workloads().get(name)()
    commands = workload.commands(msgspec.convert(params, workload.Params, dec_hook=decode_quantity), ENVELOPE)
    with veth.start(spec("server", catalogue_image)) as server, veth.start(spec("client", catalogue_image)) as client:
        work = Work(Run(), commands, client, serving=server)
        completed, _ = work.measure()
        found = {one.metric: one.value for one in workload.parse(completed)}
        work.end()
    assert found.keys() == (metrics or {metric.name for metric in workload.metrics})
    if name == "sockperf":
        (histogram,) = workload.histograms(completed)
        assert histogram.bounds[0] <= found["round_trip.p50"] * (1 + 1 / 64) <= histogram.bounds[-1] * (1 + 1 / 64)


def test_one_test_after_another_finds_the_server_ready(veth, catalogue_image):
    """iperf3's server opens its listener anew after each test: a client that comes at once has to wait for it."""
    (service,) = Iperf3().commands(Iperf3.Params(), ENVELOPE).services
    short = Iperf3().commands(Iperf3.Params(), ENVELOPE).measured
    once = tuple(
        "--bytes" if part == "--time" else "1" if previous == "--time" else part
        for previous, part in zip(("", *short.argv), short.argv, strict=False)
    )
    many = Command(("sh", "-c", 'for _ in $(seq 60); do "$@" | grep \'"error"\' && exit 1; done; :', "sh", *once))
    with veth.start(spec("serial", catalogue_image)) as instance:
        work = prepare(instance, Commands(measured=many, services=(service,)))
        work.measure()


KILLED_IN_THE_MIDDLE = """
(until grep -q ":1451 .*:.* 01 " /proc/net/tcp; do sleep 0.05; done
sleep 0.3; kill -9 $(pidof iperf3 | tr " " "\\n" | sort -n | head -n 1)) &
exec "$@"
"""


def test_a_server_that_dies_ends_its_client_and_is_named(veth, catalogue_image):
    """iperf3 ends with status 0 then: it is its report that says so."""
    workload = Iperf3()
    commands = workload.commands(Iperf3.Params(runtime_s=60), ENVELOPE)
    dies = Command(("sh", "-c", KILLED_IN_THE_MIDDLE, "sh", *commands.measured.argv), timeout_s=50)
    with veth.start(spec("dies", catalogue_image)) as instance:
        work = prepare(instance, Commands(measured=dies, services=commands.services))
        completed, _ = work.measure()
        assert completed.duration_s < 50, "the client ended by itself"
        with pytest.raises(ParseError, match="iperf3 failed: "):
            workload.parse(completed)
        with pytest.raises(WorkloadError, match="the service iperf3 ended while it was used"):
            work.end()
