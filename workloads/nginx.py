"""nginx: one page asked for again and again by wrk, over connections that are kept or made anew.

wrk prints latencies with three digits. A Lua script, which wrk runs at its end, prints what wrk counted:
every latency in microseconds, and how often.
"""

import functools
import re
from typing import Annotated, NoReturn

import msgspec
from msgspec import Meta

from tare.bench.errors import ParseError
from tare.bench.model import SCRATCH, SERVER, Command, Commands, Completed, Envelope, Histogram, Measurement, Service
from tare.bench.traits import Category, Parameter
from tare.bench.units import Size, Unit
from tare.workloads.metrics import bandwidth_of, percentiles_of, rate_of, time_of
from tare.workloads.output import LINES, excerpt, one_match, positive, read_output, refuse
from tare.workloads.parameters import (
    READY_WITHIN_S,
    TimedWorkload,
    WholeSeconds,
    require_scratch,
    require_size,
    timeout_of,
)

_TOOL = "wrk"
_PORT = "28080"
_SMALL_PAGE = Size("64B")
"""Not HTTP's own, which a server of the host's may have where an instance shares the host's network."""
_FOLDER = f"{SCRATCH}/nginx"
_SCRIPT = f"{SCRATCH}/wrk.lua"

_CONFIGURATION = f"""\
daemon off;
user www-data;
worker_processes WORKERS;
pid {_FOLDER}/nginx.pid;
error_log stderr error;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {_FOLDER}/body;
  proxy_temp_path {_FOLDER}/proxy;
  fastcgi_temp_path {_FOLDER}/fastcgi;
  uwsgi_temp_path {_FOLDER}/uwsgi;
  scgi_temp_path {_FOLDER}/scgi;
  server {{ listen ADDRESS:{_PORT}; root {_FOLDER}/www; }}
}}
"""
_LAY_OUT = f"""\
set -e
umask 022
mkdir -p {_FOLDER}/www
sed -e "s/ADDRESS/$1/" -e "s/WORKERS/$2/" >{_FOLDER}/nginx.conf
head -c "$3" /dev/zero | tr '\\0' x >{_FOLDER}/www/page
"""
_GET = r"""
exec 3<>"/dev/tcp/$1/$2" && printf 'GET /page HTTP/1.0\r\n\r\n' >&3 && read -r line <&3 && [[ $line == HTTP/1.1\ 200* ]]
"""
_LUA = """\
function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format("counted %d requests, %d bytes, %d us", summary.requests, summary.bytes, summary.duration))
  print(string.format("errors connect %d read %d write %d status %d timeout %d",
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
  print(string.format("latency us mean %.6f p50 %d p90 %d p99 %d p99.9 %d max %d", latency.mean,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max))
  for place = 1, #latency do
    local value, count = latency(place)
    print(string.format("%d %d", value, count))
  end
  print("counted all")
end
"""

_BEGIN = re.compile(r"\ARunning \d+[smh] test @ http://\S+\n", re.ASCII)
_RATE = re.compile(r"^Requests/sec: +(\d+\.\d\d)$", LINES)
_COUNTED = re.compile(
    r"^counted (?P<requests>\d{1,15}) requests, (?P<bytes>\d{1,18}) bytes, (?P<us>\d{1,12}) us$", LINES
)
_ERRORS = re.compile(r"^errors connect (\d+) read (\d+) write (\d+) status (\d+) timeout (\d+)$", LINES)
_PERCENTILES = ("p50", "p90", "p99", "p99.9")
_LATENCY = re.compile(
    r"^latency us mean (\d{1,12}\.\d{6})"
    r" p50 (\d{1,12}) p90 (\d{1,12}) p99 (\d{1,12}) p99\.9 (\d{1,12}) max (\d{1,12})\n"
    r"((?:\d{1,12} \d{1,15}\n)+)counted all\n*\Z",
    LINES,
)
_number = functools.partial(positive, _TOOL)


class Nginx(TimedWorkload):
    """Small requests are system calls and wake-ups on both sides; a large page is copying.

    A latency begins when a request is sent: making a connection is not in it, but in the rate. Where a connection stood
    still, wrk adds the requests that would have been sent meanwhile (it corrects for coordinated omission).
    """

    name = "nginx"
    summary = "a web server: GET of one page over several connections, kept alive or new for each request"
    title = "Web server (nginx)"
    parameters = (
        Parameter("connections", "Connections"),
        Parameter("keep_alive", "Keep-alive"),
        Parameter("page_size", "Page"),
        Parameter("runtime_s", "Run time (s)"),
    )
    packages = ("nginx-light", "wrk")
    licence = "BSD-2-Clause (nginx), Apache-2.0 (wrk)"
    metrics = (
        rate_of(
            "http.requests_per_second", "Requests answered per second, over all connections.", "Requests per second"
        ),
        bandwidth_of(
            "http.bandwidth", "Bytes of answers received per second, headers included.", "Bytes served per second"
        ),
        time_of("http.latency.mean", "Mean time from sending a request to the whole answer.", "Request latency, mean"),
        *percentiles_of(
            "http.latency", _PERCENTILES, "from sending a request to the whole answer", "to 1 µs", "Request latency"
        ),
        time_of(
            "http.latency.max", "Longest time of a request; a single event decides it.", "Request latency, longest"
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``page_size`` is of the body. Without ``keep_alive`` each request has a connection of its own."""

        connections: Annotated[int, Meta(ge=1, le=1000)] = 10
        keep_alive: bool = True
        page_size: Size = Size("1KiB")
        runtime_s: WholeSeconds = 1

        def __post_init__(self) -> None:
            require_size("page_size", self.page_size, 1, 2**30)

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """A worker of nginx and, where there are as many connections, a thread of wrk on each CPU.

        Raises WorkloadError if the page does not fit the scratch folder of ``envelope``.
        """
        size, cpus = int(params.page_size), len(envelope.cpus)
        what = f"nginx's page (page_size = {params.page_size})"
        require_scratch(envelope, size, what, "a smaller page_size", share=1 / 2)
        closing = () if params.keep_alive else ("-H", "Connection: close")
        measured = (
            *("wrk", f"-t{min(cpus, params.connections)}", f"-c{params.connections}", f"-d{params.runtime_s}s"),
            # An emulated guest may take longer than the usual 2 s for one of many.
            *("--timeout", "30s", "-s", _SCRIPT, *closing, f"http://{SERVER}:{_PORT}/page"),
        )
        lay_out = ("sh", "-c", _LAY_OUT, "sh", SERVER, str(cpus), str(size))
        server = ("nginx", "-p", _FOLDER, "-e", "stderr", "-c", f"{_FOLDER}/nginx.conf")
        get = Command(("bash", "-c", _GET, "get", SERVER, _PORT))
        return Commands(
            measured=Command(measured, timeout_s=timeout_of(params.runtime_s)),
            setup=(Command(lay_out, stdin=_CONFIGURATION.encode()),),
            services=(Service("nginx", Command(server), get, READY_WITHIN_S),),
            load=(Command(("sh", "-c", f"cat >{_SCRIPT}"), stdin=_LUA.encode()),),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        """The rate as wrk prints it, and what the script printed; output with failed requests is refused."""
        text = read_output(_TOOL, completed)
        one_match(_TOOL, "the first line", _BEGIN, text)
        counted = one_match(_TOOL, "the line of the counts", _COUNTED, text)
        errors = one_match(_TOOL, "the line of the errors", _ERRORS, text)
        if any(int(number) for number in errors.groups()):
            _refuse_failures(errors[0], text)
        rate = _number("the rate", one_match(_TOOL, "the rate", _RATE, text)[1], text)
        duration_s = _number("the duration", counted["us"], text, exponent=-6)
        if abs(_number("the number of requests", counted["requests"], text) / duration_s - rate) > _HALF_PRINTED:
            refuse(_TOOL, f"{counted['requests']} requests in {duration_s:g} s are not {rate:g} a second", text)
        latency = one_match(_TOOL, "the latency", _LATENCY, text)
        _check_counts(latency, text)
        names = ("mean", *_PERCENTILES, "max")
        return [
            Measurement("http.requests_per_second", rate),
            Measurement("http.bandwidth", _number("the bytes", counted["bytes"], text) / duration_s),
            *(
                Measurement(f"http.latency.{name}", _number(f"the latency {name}", digits, text, exponent=-6))
                for name, digits in zip(names, latency.groups(), strict=False)
            ),
        ]

    def histograms(self, completed: Completed) -> list[Histogram]:
        text = read_output(_TOOL, completed)
        counts = _counts(one_match(_TOOL, "the latency", _LATENCY, text))
        bounds = tuple(_number("a latency", value, text, exponent=-6) for value, _ in counts)
        return [Histogram("http.latency", Unit.SECOND, bounds, tuple(int(count) for _, count in counts))]


class NginxConnections(TimedWorkload):
    """How fast TCP connections are made and taken down: the handshake, one request of a few bytes, the end.

    The server closes, so that what waits after the end (TIME_WAIT) is on its side.
    """

    name = "nginx-connections"
    summary = "new TCP connections, each with one small request, by several clients at a time"
    title = "New connections (nginx)"
    parameters = (Parameter("clients", "Clients"), Parameter("runtime_s", "Run time (s)"))
    packages = Nginx.packages
    licence = Nginx.licence
    category = Category.NETWORK
    metrics = (
        rate_of(
            "connections.per_second",
            "Connections opened, answered and closed per second.",
            "New connections per second",
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``clients`` is how many connections there are at a time."""

        clients: Annotated[int, Meta(ge=1, le=1000)] = 10
        runtime_s: WholeSeconds = 1

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        chosen = Nginx.Params(
            connections=params.clients, keep_alive=False, page_size=_SMALL_PAGE, runtime_s=params.runtime_s
        )
        return Nginx().commands(chosen, envelope)

    def parse(self, completed: Completed) -> list[Measurement]:
        """The rate of requests, as each had its own connection."""
        rates = {one.metric: one.value for one in Nginx().parse(completed)}
        return [Measurement("connections.per_second", rates["http.requests_per_second"])]


_HALF_PRINTED = 0.0051
"""How far a rate printed with two decimals may be from the true one."""


def _refuse_failures(errors: str, text: str) -> NoReturn:
    raise ParseError(
        f"requests failed: {errors}",
        remedy="fewer connections, or more memory and processes in the envelope",
        evidence=excerpt(text),
    )


def _counts(latency: re.Match[str]) -> list[tuple[str, str]]:
    return [(value, count) for value, _, count in (line.partition(" ") for line in latency[7].splitlines())]


def _check_counts(latency: re.Match[str], text: str) -> None:
    """The table rises up to the slowest, and has the mean that wrk took of it."""
    counts = [(int(value), int(count)) for value, count in _counts(latency)]
    values, total = [value for value, _ in counts], sum(count for _, count in counts)
    if values != sorted(set(values)) or values[-1] != int(latency[6]) or not total:
        refuse(_TOOL, f"its table of latencies does not rise to the slowest, {latency[6]} µs", text)
    mean = sum(value * count for value, count in counts) / total
    if abs(mean - float(latency[1])) > 1e-3 + 1e-6 * mean:
        refuse(_TOOL, f"its mean is {latency[1]} µs, and that of its table {mean:.3f} µs", text)
