"""Broken output of every kind: a parser answers with valid measurements or with ParseError, and with nothing else."""

import json
import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tare.bench.errors import ParseError
from tare.bench.interfaces import Workload
from tare.bench.model import Completed, Measurement
from tests.unit.workload_captures import MAY_BE_ZERO, WORKLOADS, Capture, completed, identify, load, measured

# No deadline: the machine is shared, and how long an example takes is not what is tested.
calm = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
names = pytest.mark.parametrize("name", WORKLOADS)
NASTY = ["nan", "-nan", "inf", "-inf", "-1.00", "0", "0.00", "1e999", "1,5", "٣.٥٠", "", "0x10", "None", "9" * 5000]


def attempt(workload: Workload, attempted: Completed) -> list[Measurement] | None:
    """The measurements, or None for a refusal that shows the text. Anything else fails the test."""
    refusal = None
    try:
        found = workload.parse(attempted)
    except ParseError as error:
        refusal = error
    if refusal is not None:
        assert refusal.message
        assert refusal.evidence
        return None
    declared = {metric.name for metric in workload.metrics}
    assert found
    assert all(m.metric in declared and math.isfinite(m.value) for m in found)
    assert all(m.value > 0 or (m.value == 0 and m.metric in MAY_BE_ZERO) for m in found)
    return found


@names
@calm
@given(stdout=st.binary(max_size=300), stderr=st.binary(max_size=50), returncode=st.sampled_from([0, 1, None]))
def test_random_bytes_are_refused(name: str, stdout: bytes, stderr: bytes, returncode: int | None) -> None:
    assert attempt(WORKLOADS[name], completed(stdout, stderr, returncode)) is None


@names
@calm
@given(text=st.text(max_size=300))
def test_random_text_is_refused(name: str, text: str) -> None:
    assert attempt(WORKLOADS[name], completed(text.encode(errors="surrogatepass"))) is None


@names
def test_every_truncation_is_refused(name: str) -> None:
    """Anything cut off before the last character that is no white space."""
    for capture in measured(name):
        whole = len(capture.stdout.rstrip())
        step = max(1, whole // 200)
        for length in [*range(0, whole, step), *range(max(0, whole - 40), whole)]:
            cut = completed(capture.stdout[:length])
            # sysbench's and perf's last line may lose a digit and still be a line: the end of the line is missing.
            assert attempt(WORKLOADS[name], cut) is None, (capture.name, length)


@names
@calm
@given(data=st.data())
def test_mutations_give_valid_values_or_a_refusal(name: str, data: st.DataObject) -> None:
    capture = data.draw(st.sampled_from(measured(name)))
    raw = bytearray(capture.stdout)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        length = data.draw(st.integers(0, 12))
        raw[position : position + length] = data.draw(st.binary(max_size=12))
    attempt(WORKLOADS[name], completed(bytes(raw)))


@names
@calm
@given(data=st.data())
def test_lines_lost_doubled_or_swapped_give_valid_values_or_a_refusal(name: str, data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from(measured(name))).stdout.split(b"\n")
    indices = data.draw(st.lists(st.integers(0, len(lines) - 1), min_size=1, max_size=3))
    for index in indices:
        here = min(index, len(lines) - 1)
        match data.draw(st.sampled_from(["drop", "double", "swap"])):
            case "drop" if len(lines) > 1:
                del lines[here]
            case "double":
                lines.insert(here, lines[here])
            case _:
                lines[here], lines[0] = lines[0], lines[here]
    attempt(WORKLOADS[name], completed(b"\n".join(lines)))


# The numbers that end up in metrics: none may be replaced by nonsense, and none may be missing.
DECISIVE = {
    "sysbench-cpu": (
        "cpu-1-thread",
        [r"events per second: +(\S+)", r" sum: +(\S+)", r" max: +(\S+)", r"95th.*: +(\S+)"],
    ),
    "sysbench-memory": ("memory-write-1-thread", [r"operations: (\d+)", r"\((\S+) per second", r"\((\S+) MiB/sec"]),
    "perf-sched-pipe": ("sched-pipe", [r"(\S+) usecs/op", r"(\S+) ops/sec"]),
    "perf-syscall": ("syscall-basic", [r"(\S+) usecs/op", r"(\S+) ops/sec"]),
    "openssl-speed": ("rsa2048-2-processes", [r"\n\+F2:2:2048:([^:]+)", r"\n\+F2:2:2048:[^:]+:(\S+)"]),
    "7zip": (
        "benchmark-2-threads",
        [
            r"Avr: +(\d+)",
            r"Avr:(?: +\d+){3} +(\d+)",
            r"Avr:.*\| +(\d+)",
            r"Avr:.*\|(?: +\d+){3} +(\d+)",
            r"Tot:.* (\d+)",
        ],
    ),
    "xz": ("compress", [r"plain (\d+)", r"packed (\d+)"]),
    "pixz": ("decompress-2-threads", [r"plain (\d+)", r"unpacked (\d+)\nend"]),
    "hpcc": (
        "order-500",
        [
            r"HPL_Tflops=(\S+)",
            r"\nWR\S+(?: +\S+){5} +(\S+)",
            *(rf"Single {test} (\d\S+)" for test in ("STREAM Copy GB/s", "STREAM Triad GB/s", "DGEMM Gflop/s")),
            r"SingleSTREAM_Add=(\S+)",
            r"SingleRandomAccess_GUPs=(\S+)",
            r"Begin of SingleRandomAccess section(?s:.*?)(\S+) Billion",
        ],
    ),
    "huge-pages": (
        "huge-pages-small",
        [r"MemTotal: +(\S+)", r"\nregion: (\S+)", r"\npage: (\S+)", r"touched in: (\S+)"],
    ),
    "perf-mem": ("mem-memcpy", [r"(\S+) [MG]B/sec"]),
    "perf-sched-messaging": ("sched-messaging", [r"time: (\S+)"]),
    # Of the values in their list see below: "1,5" would be two of them.
    "pyperformance": ("richards", [r'"unit":(\S+?)\}']),
    "stress-ng-memory": ("memory-fault", [r"real-time: (\S+)", r"bogo-ops: (\S+)", r"nanosecs-per-page-fault: (\S+)"]),
    "stress-ng-process": ("process-fork", [r"real-time: (\S+)", r"bogo-ops: (\S+)", r"wall-.*: (\S+)"]),
    "stress-ng": ("cpu-1-instance", [r"real-time: (\S+)", r"sys-time: (\S+)", r"bogo-ops: (\S+)", r"wall-.*: (\S+)"]),
    "cyclictest": (
        "cyclictest",
        [r'"avg": (\S+),', r'"max": (\S+),', r'"cycles": (\S+),', r'"histogram": \{\s+"(\d+)"'],
    ),
    "first-write": ("first-write-large", [r'"first_ns": \[(\d+)', r'"volume_ns": \[\d+, (\d+)', r'"format": (\S),']),
    "fio-metadata": (
        "metadata",
        [r'"total_ios" : (\S+),', r'"mean" : ([1-9]\S+),', r'"99.900000" : (\S+)', r'"bins" : \{\s+"(\d+)"'],
    ),
    "postgresql": (
        "pgbench-tpcb-like",
        [r"tps = (\S+)", r"processed: (\S+)", r"(\S+) \S+\ncounted all", r" (\S+)\ncounted all"],
    ),
    "mariadb": (
        "oltp-read-write",
        [
            r"transactions: +\S+ +\((\S+)",
            r"queries: +\S+ +\((\S+)",
            r" sum: +(\S+)",
            r" max: +(\S+)",
            r"95th.*: +(\S+)",
        ],
    ),
    "nginx": (
        "nginx-10-connections",
        [
            r"Requests/sec: +(\S+)",
            r"requests, (\S+) bytes",
            r"bytes, (\S+) us",
            r"us mean (\S+)",
            r" p99 (\S+)",
            r"max (\S+)",
        ],
    ),
    "nginx-connections": ("connections", [r"Requests/sec: +(\S+)", r"counted (\S+) requests"]),
    "redis": (
        "redis-50-clients",
        [
            r"summary: (\S+) requests",
            r"p99 +max\n +(\S+)",
            r"p99 +max\n(?: +\S+){2} +(\S+)",
            r"p99 +max\n(?: +\S+){5} +(\S+)",
        ],
    ),
    "fio": (
        "randread-psync",
        [
            r'"iops" : (\S+),',
            r'"bw_bytes" : (\S+),',
            r'"mean" : ([1-9]\S+),',
            r'"99.900000" : (\S+)',
            r'"bins" : \{\s+"(\d+)"',
            r'"bins" : \{\s+"\d+" : (\d+)',
        ],
    ),
    "sockperf": (
        "tcp",
        [
            r"percentile 50.000 = +(\S+)",
            r"avg-rtt=(\S+)",
            r"percentile 99.900 = +(\S+)",
            r"MAX> observation = +(\S+)",
            r"ReceivedMessages=(\S+)\n.*avg",
            r"bucket \d+ (\d+)",
        ],
    ),
    "iperf3": (
        "udp-send-lossy",
        [
            r'"sum_received":(?s:.*)"bits_per_second":\t([^,]+),',
            *(
                rf'(?s:.*)"sum":\t{{[^}}]*"end"[^}}]*"{key}":\t([^,]+),'
                for key in ("jitter_ms", "lost_packets", "packets")
            ),
        ],
    ),
}


@names
@pytest.mark.parametrize("nasty", NASTY, ids=[value[:8] or "empty" for value in NASTY])
def test_nonsense_in_place_of_a_decisive_number_is_refused(name: str, nasty: str) -> None:
    capture_name, patterns = DECISIVE[name]
    capture = next(c for c in measured(name) if c.name == capture_name)
    for pattern in patterns:
        match = re.search(pattern, capture.text)
        assert match, pattern
        changed = capture.text[: match.start(1)] + nasty + capture.text[match.end(1) :]
        if name.startswith("fio") and pattern.startswith('"mean"'):
            changed = re.sub(r'("clat_ns" : \{[^}]*?"mean" : )[1-9][^,]*', rf"\g<1>{nasty}", capture.text, count=1)
        assert changed != capture.text
        assert attempt(WORKLOADS[name], completed(changed.encode())) is None, (pattern, nasty)


@pytest.mark.parametrize("value", ["0", "-0.5", "1e999", "NaN", "Infinity", "null", '"fast"', "[1]", "true false"])
def test_a_value_of_pyperf_that_is_no_time_is_refused(value: str) -> None:
    text = load("pyperformance-1.14.0", "richards").text
    changed = re.sub(r'("values":\[)[^,\]]+', rf"\g<1>{value}", text, count=1)
    assert changed != text
    assert attempt(WORKLOADS["pyperformance"], completed(changed.encode())) is None


@pytest.mark.parametrize(
    "line",
    ["Prozessorgeschwindigkeit: 3294,37 Ereignisse/s", "events per second:  3.294,37", "events per second:  ٣٢٩٤.٣٧"],
)
def test_localised_sysbench_output_is_refused(line: str) -> None:
    text = load("sysbench-1.0.20", "cpu-1-thread").text
    changed = re.sub(r"events per second: +\S+", line, text)
    assert attempt(WORKLOADS["sysbench-cpu"], completed(changed.encode())) is None


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sysbench-cpu", "total number of events:  ", "total number of events:  1"),
        ("sysbench-cpu", "avg: ", "avg: 9"),
        ("sysbench-memory", "Total operations: ", "Total operations: 1"),
        ("perf-sched-pipe", " usecs/op", "1 usecs/op"),
        ("perf-sched-pipe", " ops/sec", "0 ops/sec"),
        ("openssl-speed", "Got: +F:25:", "Lost: +F:25:"),
        ("openssl-speed", "\n+F:25:AES-256-GCM:", "\n+F:25:AES-256-GCM:1"),
        ("openssl-speed", "Forked child 1\n", ""),
        ("7zip", "Avr:   ", "Avr:  9"),
        ("7zip", "\nTot:   ", "\nTot:  1"),
        ("7zip", "(z) 26.02", "[64] 16.02"),
        ("hpcc", "HPL_Tflops=", "HPL_Tflops=1"),
        ("hpcc", "Success=1", "Success=0"),
        ("hpcc", "1 tests completed and passed residual checks,", "0 tests completed and passed residual checks,"),
        ("hpcc", "Single DGEMM Gflop/s ", "Single DGEMM Gflop/s 1"),
        ("huge-pages", "in huge pages: ", "in huge pages: 9"),
        ("pyperformance", '"unit":"second"', '"unit":"byte"'),
        ("stress-ng-process", "stressor: fork", "stressor: cpu"),
        ("stress-ng-memory", "nanosecs-per-page-fault", "nanosecs-per-page"),
        ("xz", "packed ", "packed 9"),
        ("pixz", "unpacked 4194304\n", "unpacked 4194305\n"),
        ("pixz", "unpacked 4194304\n", ""),
        ("stress-ng", "      wall-clock-time: ", "      wall-clock-time: 1"),
        ("stress-ng", "      user-time: ", "      user-time: 1"),
        ("postgresql", "actually processed: ", "actually processed: 1"),
        ("postgresql", "failed transactions: 0", "failed transactions: 1"),
        ("postgresql", "counted all", "9 1\ncounted all"),
        ("mariadb", "    transactions:      ", "    transactions:     1"),
        ("mariadb", "    reconnects:                          0", "    reconnects:                          1"),
        ("mariadb", "         avg:  ", "         avg: 9"),
        ("nginx", "status 0", "status 7"),
        ("nginx", "Requests/sec:  ", "Requests/sec:  1"),
        ("nginx", " requests, ", "1 requests, "),
        ("nginx", "us mean ", "us mean 1"),
        ("nginx-connections", "errors connect 0", "errors connect 1"),
        ("redis", "000 requests completed", "001 requests completed"),
        ("redis", "98.438% <= ", "98.438% <= x"),
        ("redis", "====== GET", "====== INCR"),
        ("fio", '"total_ios" : 1', '"total_ios" : 2'),
        ("fio", '"error" : 0', '"error" : 5'),
        ("fio", "fio-3.33", "fio-2.1"),
        ("fio-metadata", '"ioengine" : "filestat"', '"ioengine" : "filecreate"'),
        ("fio-metadata", '"nrfiles" : "', '"nrfiles" : "1'),
        ("cyclictest", '"avg": ', '"avg": 1'),
        ("cyclictest", '"num_threads": ', '"num_threads": 1'),
        ("first-write", '"second_ns": [', '"second_ns": [17, '),
        ("fio", '"bins" : {\n', '"bins" : {\n "100" : 1,\n'),
        ("fio", '"jobname"', '"name"  : NaN, "jobname"'),
        ("sockperf", "dropped messages = ", "dropped messages = 1"),
        ("sockperf", "\nbucket ", "\nbuckets "),
        ("sockperf", "percentile 99.000 = ", "percentile 99.000 = 1"),
        ("sockperf", " sec; SentMessages=", " sec; SentMessages=1"),
        ("sockperf", "end of ", "ends after "),
        ("iperf3", '"num_streams":\t', '"num_streams":\t1'),
        ("iperf3", '"sum_received":\t{', '"sum_received":\t{"seconds": 9, "seconds_":\t{'),
        ("iperf3", '"end":\t{', '"error": "interrupted", "end":\t{'),
        ("iperf3", '"sum_sent":\t{', '"sum_gone":\t{'),
        ("iperf3", "iperf 3.12", "iperf 2.1"),
    ],
)
def test_figures_that_contradict_one_another_are_refused(name: str, old: str, new: str) -> None:
    refused = 0
    for capture in measured(name):
        if old in capture.text:
            refused += 1
            changed = capture.text.replace(old, new, 1)
            assert attempt(WORKLOADS[name], completed(changed.encode())) is None, capture.name
    assert refused


@pytest.mark.parametrize("capture", measured(), ids=identify)
def test_a_command_that_did_not_end_well_is_never_a_measurement(capture: Capture) -> None:
    workload = WORKLOADS[capture.header["workload"]]
    for ended in ({"returncode": 1}, {"returncode": None, "signal": 9}, {"timed_out": True}):
        assert attempt(workload, msgspec.structs.replace(capture.completed, **ended)) is None


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(leaf for key, child in items for leaf in _leaves(child, (*path, key)))]
    return [path]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@calm
@given(data=st.data())
def test_fio_json_with_any_value_replaced(data: st.DataObject) -> None:
    report = json.loads(load("fio-3.33", "randrw-psync").text)
    path = data.draw(st.sampled_from(_leaves(report)[1:]))
    target = report
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = data.draw(JSON)
    changed = completed(json.dumps(report, indent=2).encode())
    if attempt(WORKLOADS["fio"], changed) is not None:
        assert WORKLOADS["fio"].histograms(changed)


def test_deep_json_is_refused() -> None:
    deep = b"{\n" + b'"a":[' * 100_000
    assert attempt(WORKLOADS["fio"], completed(deep)) is None


def test_evidence_stays_readable() -> None:
    with pytest.raises(ParseError) as caught:
        WORKLOADS["fio"].parse(completed(b"beginning" + b"x" * 1_000_000 + b"end"))
    assert len(caught.value.evidence) < 5000
    assert caught.value.evidence.startswith("beginning")
    assert caught.value.evidence.endswith("end")
