"""sockperf: round trips of small messages between a client that is measured and a server, each of them timed.

sockperf logs every round trip. The log is too long to be carried out of an instance (a megabyte a second), so it is
counted there, once sockperf has ended, in buckets 1/64 wide; sockperf's own summary follows the buckets.
"""

import itertools
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tare.bench.errors import ParseError
from tare.bench.model import (
    SCRATCH,
    SERVER,
    Command,
    Commands,
    Completed,
    Diagnosis,
    Envelope,
    Histogram,
    Measurement,
    Service,
)
from tare.bench.traits import Category, Parameter
from tare.bench.units import Unit
from tare.workloads.metrics import percentiles_of, rate_of, time_of
from tare.workloads.output import LINES, excerpt, one_match, one_number, positive, read_output, refuse
from tare.workloads.parameters import READY_WITHIN_S, Port, TimedWorkload, timeout_of

_TOOL = "sockperf"
_LOG = f"{SCRATCH}/tare-sockperf"
_PERCENTILES = {"p50": "50.000", "p90": "90.000", "p99": "99.000", "p99.9": "99.900"}
_SLEEP_S = 2.2
"""sockperf sleeps for two seconds between its connection and its test."""

# Ends with 0 where sockperf failed: then there is no log.
_CLIENT = """
log=$1
shift
rm -f "$log"
"$@" --full-log "$log" >&2 || exit
[ -f "$log" ] || exit 1
awk -F ', ' '
    NF != 4 || !/^[0-9]/ { print; next }
    {
        ns = $4 * 1000
        for (width = 1; ns >= width * 128; width *= 2) { }
        count[int(ns / width) * width + width - 1]++
    }
    END { for (bound in count) printf "bucket %d %d\\n", bound, count[bound]; print "end of " NR " lines" }
' "$log" && rm "$log"
"""

# A message as sockperf's header has it: number, flags (from a client, to be answered), length.
_PING = """
import socket, struct, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
with socket.socket(socket.AF_INET, kind) as link:
    link.settimeout(1)
    link.connect((sys.argv[2], int(sys.argv[3])))
    link.send(struct.pack("!QHI", 1, 3, 14))
    assert link.recv(100)[:8] == struct.pack("!Q", 1)
"""

_NO_ANSWER = "No messages were received from the server"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_VALID = re.compile(
    r"^sockperf: \[Valid Duration\] RunTime=(\d+\.\d{3}) sec; SentMessages=(\d{1,12}); ReceivedMessages=(\d{1,12})$",
    LINES,
)
_MEAN = re.compile(r"^sockperf: ====> avg-rtt=(\d+\.\d{3}) \(std-dev=\d+\.\d{3}\)$", LINES)
_FAULTS = re.compile(
    r"^sockperf: # dropped messages = (\d+); # duplicated messages = (\d+); # out-of-order messages = (\d+)$", LINES
)
_OBSERVED = re.compile(
    r"^sockperf: Total (\d{1,12}) observations; each percentile contains \d+\.\d\d observations$", LINES
)
_EXTREMES = {
    name: re.compile(rf"^sockperf: ---> <{name}> observation = +(\d+\.\d{{3}})$", LINES) for name in ("MIN", "MAX")
}
_BUCKET = re.compile(r"^bucket (\d{1,15}) (\d{1,12})$", LINES)
_END = re.compile(r"^end of (\d{1,12}) lines\n*\Z", LINES)


class Sockperf(TimedWorkload):
    """Request and response, one message in flight: what a call over the path costs in time.

    Every message is answered before the next is sent, and the client waits in recvfrom(): a round trip holds two
    wake-ups of processes. sockperf leaves out what was in the first 0.4 s of the run time and in the last 0.5 s.
    """

    name = "sockperf"
    summary = "network latency: round-trip time of small messages, one at a time"
    title = "Network latency (sockperf)"
    parameters = (
        Parameter("protocol", "Protocol"),
        Parameter("message_bytes", "Message (B)"),
        Parameter("runtime_s", "Run time (s)"),
        Parameter("port", "Port"),
    )
    packages = ("sockperf",)
    licence = "BSD-3-Clause"
    category = Category.NETWORK
    overhead_s = _SLEEP_S
    metrics = (
        *percentiles_of(
            "round_trip", _PERCENTILES, "from sending a message to its answer", "of every message", "Round trip"
        ),
        time_of("round_trip.mean", "Mean time from sending a message to its answer.", "Round trip, mean"),
        rate_of("round_trip.rate", "Messages answered per second, one at a time.", "Messages answered per second"),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """The answer is as long as the message: ``message_bytes``, sockperf's header of 14 included."""

        protocol: Literal["tcp", "udp"] = "tcp"
        message_bytes: Annotated[int, Meta(ge=14, le=65507)] = 64
        runtime_s: Annotated[int, Meta(ge=2, le=600, description="seconds; the tool takes whole ones only")] = 2
        port: Port = 11111

    def commands(self, params: Params, envelope: Envelope) -> Commands:  # noqa: ARG002 - the path decides, not the size
        protocol = ("--tcp",) if params.protocol == "tcp" else ()
        place = (*protocol, "--ip", SERVER, "--port", str(params.port))
        client = (
            *("sockperf", "ping-pong", *place, "--msg-size", str(params.message_bytes)),
            # By the kernel's clock: how fast a guest's time stamp counter runs is a guess of sockperf's.
            *("--time", str(params.runtime_s), "--full-rtt", "--no-rdtsc"),
        )
        ping = ("python3", "-c", _PING, params.protocol, SERVER, str(params.port))
        return Commands(
            measured=Command(
                ("sh", "-c", _CLIENT, "sh", _LOG, *client), timeout_s=timeout_of(params.runtime_s) + _SLEEP_S
            ),
            services=(Service("sockperf", Command(("sockperf", "server", *place)), Command(ping), READY_WITHIN_S),),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        """What sockperf says of all its values; the buckets have to say the same."""
        text = _read(completed)
        duration, sent, received = one_match(_TOOL, "the valid duration", _VALID, text).groups()
        observed = one_match(_TOOL, "the number of observations", _OBSERVED, text)[1]
        histogram = _count(text)
        if not sent == received == observed == str(sum(histogram.counts)):
            refuse(_TOOL, f"of {sent} messages, {received} were answered and {observed} timed", text)
        if any(int(number) for number in one_match(_TOOL, "the number of lost messages", _FAULTS, text).groups()):
            refuse(_TOOL, "messages were lost, doubled or out of order", text)
        values = {
            name: _microseconds(f"the percentile {digits}", _percentile(digits), text)
            for name, digits in _PERCENTILES.items()
        }
        mean = _microseconds("the mean", _MEAN, text)
        _check(histogram, mean, values, text)
        return [
            *(Measurement(f"round_trip.{name}", value) for name, value in values.items()),
            Measurement("round_trip.mean", mean),
            Measurement("round_trip.rate", int(received) / positive(_TOOL, "the valid duration", duration, text)),
        ]

    def histograms(self, completed: Completed) -> list[Histogram]:
        """Every round trip that is not left out, in buckets 1/64 wide or 1 ns."""
        return [_count(_read(completed))]

    def diagnose(self, completed: Completed) -> Diagnosis | None:
        for said in (_NO_ANSWER, "A connection was forcibly closed by a peer"):
            if said.encode() in completed.stderr:
                return Diagnosis(f"sockperf: {said}", "see the server's last words, if it has any")
        return None


def _read(completed: Completed) -> str:
    text = _COLOURS.sub("", read_output(_TOOL, completed))
    if _NO_ANSWER in text:
        raise ParseError(f"sockperf: {_NO_ANSWER}", evidence=excerpt(text))
    return text


def _count(text: str) -> Histogram:
    """The buckets, rising. Raises ParseError if there are none, or one occurs twice."""
    one_match(_TOOL, "the last line", _END, text)
    counts = {int(bound): int(count) for bound, count in _BUCKET.findall(text)}
    if not counts or len(counts) != text.count("\nbucket ") or not all(counts.values()):
        refuse(_TOOL, "the buckets of its log are not whole", text)
    bounds = sorted(counts)
    return Histogram(
        "round_trip", Unit.SECOND, tuple(bound / 1e9 for bound in bounds), tuple(counts[bound] for bound in bounds)
    )


def _check(histogram: Histogram, mean: float, values: dict[str, float], text: str) -> None:
    """The ends of the histogram are the extremes, its buckets hold the mean, and the percentiles to one value."""
    least, most = (_microseconds(f"the {name}imum", _EXTREMES[name], text) for name in ("MIN", "MAX"))
    if not (_holds(histogram.bounds[0], least) and _holds(histogram.bounds[-1], most)):
        refuse(_TOOL, "its extremes are not those of its log", text)
    total = sum(bound * count for bound, count in zip(histogram.bounds, histogram.counts, strict=True))
    if not mean - 2e-9 <= total / sum(histogram.counts) <= mean * (1 + 1 / 64) + 2e-9:
        refuse(_TOOL, f"its mean is {mean:g} s, and its log has another", text)
    seen = list(itertools.accumulate(histogram.counts))
    for name, value in values.items():
        rank = float(_PERCENTILES[name]) / 100 * seen[-1]
        near = [
            bound
            for bound, before, up_to in zip(histogram.bounds, [0, *seen], seen, strict=False)
            if before - 1 <= rank <= up_to + 1
        ]
        if not any(_holds(bound, value) for bound in near):
            refuse(_TOOL, f"{name} is {value:g} s, and its log has another", text)


def _holds(bound_s: float, value_s: float) -> bool:
    """Whether the bucket up to ``bound_s`` holds ``value_s``, to a nanosecond."""
    bound, value = round(bound_s * 1e9), round(value_s * 1e9)
    width = max(1, 1 << max(0, bound.bit_length() - 7))
    return bound - width - 1 <= value <= bound + 1


def _percentile(digits: str) -> re.Pattern[str]:
    return re.compile(rf"^sockperf: ---> percentile {re.escape(digits)} = +(\d+\.\d{{3}})$", LINES)


def _microseconds(what: str, pattern: re.Pattern[str], text: str) -> float:
    return one_number(_TOOL, what, pattern, text, exponent=-6)
