"""iperf3: bytes through TCP, datagrams through UDP, between a client that is measured and a server.

Each side counts for itself, and the client prints both. What is taken is what arrived, by the receiver's clock.
"""

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tare.bench.errors import ParseError
from tare.bench.model import SERVER, Command, Commands, Completed, Direction, Envelope, Measurement, Metric, Service
from tare.bench.traits import Category, Parameter
from tare.bench.units import Size, Unit
from tare.workloads.metrics import bandwidth_of, time_of
from tare.workloads.output import excerpt, read_json, read_output, refuse
from tare.workloads.parameters import (
    READY_WITHIN_S,
    Port,
    TimedWorkload,
    WholeSeconds,
    require_size,
    timeout_of,
)

_TOOL = "iperf3"
_SILENCE_MS = "10000"
_TCP_WRITE_BYTES = 128 * 1024

# After each test the server closes its listener and opens it again; a client that comes too early is refused, or told
# that the server is busy: once in a hundred times where iterations follow one another at once.
_CLIENT = """
tries=0
while
    out=$("$@")
    status=$?
    tries=$((tries + 1))
    case $out in
        *'"error":'*'busy running a test'* | *'"error":'*'Connection refused'*) [ $tries -lt 20 ] ;;
        *) false ;;
    esac
do sleep 0.05; done
printf '%s\\n' "$out"
exit $status
"""

_Positive = Annotated[float, Meta(gt=0)]
_Natural = Annotated[int, Meta(ge=0)]


class _Start(msgspec.Struct, frozen=True):
    protocol: Literal["TCP", "UDP"]
    num_streams: Annotated[int, Meta(ge=1)]
    reverse: Literal[0, 1]


class _Opening(msgspec.Struct, frozen=True):
    version: Annotated[str, Meta(pattern=r"^iperf 3\.\d+")]
    test_start: _Start


class _Sum(msgspec.Struct, frozen=True):
    seconds: _Positive
    bytes: Annotated[int, Meta(gt=0)]
    bits_per_second: _Positive
    retransmits: _Natural | None = None


class _Datagrams(msgspec.Struct, frozen=True):
    jitter_ms: _Positive
    lost_packets: _Natural
    packets: Annotated[int, Meta(gt=0)]
    lost_percent: Annotated[float, Meta(ge=0, lt=100)]


class _Ending(msgspec.Struct, frozen=True):
    sum_sent: _Sum
    sum_received: _Sum
    streams: list[Any]
    sum: _Datagrams | None = None


class _Report(msgspec.Struct, frozen=True):
    start: _Opening
    end: _Ending


class Iperf3(TimedWorkload):
    """Throughput of the path between the client and its server. One stream is one connection, served by one thread."""

    name = "iperf3"
    summary = "network throughput: TCP, or UDP at a given rate, between a client and its server"
    title = "Network throughput (iperf3)"
    parameters = (
        Parameter("protocol", "Protocol"),
        Parameter("streams", "Streams"),
        Parameter("direction", "Direction"),
        Parameter("runtime_s", "Run time (s)"),
        Parameter("congestion", "Congestion control"),
        Parameter("offered_per_s", "Offered rate (B/s)"),
        Parameter("datagram_bytes", "Datagram (B)"),
        Parameter("port", "Port"),
    )
    packages = ("iperf3",)
    licence = "BSD-3-Clause"
    category = Category.NETWORK
    overhead_s = 0.1
    metrics = (
        bandwidth_of("tcp.bandwidth", "Bytes of payload received per second, over all streams.", "TCP throughput"),
        Metric(
            "tcp.retransmits",
            Unit.COUNT,
            Direction.LOWER,
            "TCP segments that the sender's kernel retransmitted, over all streams.",
            "TCP retransmissions",
        ),
        bandwidth_of(
            "udp.bandwidth",
            "Bytes of payload received per second, over all streams; at most the rate that is sent.",
            "UDP throughput",
        ),
        Metric(
            "udp.loss",
            Unit.SHARE,
            Direction.LOWER,
            "Share of datagrams that did not arrive, by gaps in their sequence numbers.",
            "UDP loss",
        ),
        time_of(
            "udp.jitter",
            "Jitter of the transit time (RFC 1889), averaged over the streams.",
            "UDP jitter",
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``direction`` is the client's. ``offered_per_s`` is what UDP sends in a second, over all streams.

        ``congestion`` is the congestion control of TCP, the same on every backend: the kernel of the host and that of a
        guest have defaults of their own. Linux lets everybody have reno; the others only where the host allows them.
        """

        protocol: Literal["tcp", "udp"] = "tcp"
        streams: Annotated[int, Meta(ge=1, le=128)] = 1
        direction: Literal["send", "receive"] = "send"
        runtime_s: WholeSeconds = 1
        congestion: Literal["reno", "cubic", "bbr"] = "reno"
        offered_per_s: Size = Size("16MiB")
        datagram_bytes: Annotated[int, Meta(ge=16, le=65507)] = 1400
        port: Port = 5201

        def __post_init__(self) -> None:
            require_size("offered_per_s", self.offered_per_s, 1024, 2**40)

    def commands(self, params: Params, envelope: Envelope) -> Commands:  # noqa: ARG002 - the path decides, not the size
        port = ("--port", str(params.port))
        server = Command((_TOOL, "--server", "--bind", SERVER, *port))
        ping = (_TOOL, "--client", SERVER, *port, "--connect-timeout", "1000", "--blockcount", "1", "--length", "1")
        argv = (
            *("sh", "-c", _CLIENT, "sh"),
            *(_TOOL, "--client", SERVER, *port),
            *("--connect-timeout", "5000"),
            *("--time", str(params.runtime_s)),
            *("--parallel", str(params.streams)),
            *(_udp(params) if params.protocol == "udp" else _tcp(params)),
            *(("--reverse", "--rcv-timeout", _SILENCE_MS) if params.direction == "receive" else ()),
            "--json",
        )
        return Commands(
            measured=Command(argv, timeout_s=timeout_of(params.runtime_s)),
            services=(Service("iperf3", server, Command(ping), READY_WITHIN_S),),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        """What the receiver counted; bytes, seconds and rates have to agree."""
        text = read_output(_TOOL, completed)
        report = _read(text)
        received = report.end.sum_received
        _check_close(received.bits_per_second, received.bytes * 8 / received.seconds, "the rate received", text)
        if len(report.end.streams) != report.start.test_start.num_streams:
            refuse(_TOOL, f"it has results of {len(report.end.streams)} streams", text)
        bandwidth = received.bits_per_second / 8
        if report.start.test_start.protocol == "TCP":
            sent_again = report.end.sum_sent.retransmits
            if sent_again is None:
                refuse(_TOOL, "end.sum_sent.retransmits is missing", text)
            return [Measurement("tcp.bandwidth", bandwidth), Measurement("tcp.retransmits", float(sent_again))]
        datagrams = report.end.sum
        if datagrams is None:
            refuse(_TOOL, "end.sum is missing", text)
        share = datagrams.lost_packets / datagrams.packets
        _check_close(datagrams.lost_percent, share * 100, "the share of lost datagrams", text)
        return [
            Measurement("udp.bandwidth", bandwidth),
            Measurement("udp.loss", share),
            Measurement("udp.jitter", datagrams.jitter_ms / 1e3),
        ]


def _tcp(params: Iperf3.Params) -> tuple[str, ...]:
    send = ("--snd-timeout", _SILENCE_MS) if params.direction == "send" else ()
    return ("--congestion", params.congestion, "--length", str(_TCP_WRITE_BYTES), *send)


def _udp(params: Iperf3.Params) -> tuple[str, ...]:
    each = round(params.offered_per_s * 8 / params.streams)
    return ("--udp", "--bitrate", str(each), "--length", str(params.datagram_bytes))


def _read(text: str) -> _Report:
    failed = read_json(_TOOL, text, dict[str, Any]).get("error")
    if failed is not None:
        raise ParseError(f"iperf3 failed: {failed}", evidence=excerpt(text))
    return read_json(_TOOL, text, _Report)


def _check_close(printed: float, computed: float, what: str, text: str) -> None:
    if not math.isfinite(printed) or not math.isclose(printed, computed, rel_tol=1e-5):
        refuse(_TOOL, f"{what} is printed as {printed:g}, and its parts give {computed:g}", text)
