"""The parsers on real outputs of the tools, and the declarations that go with them."""

import json
import math
import re

import msgspec
import pytest

from tare.bench.errors import ParseError
from tare.bench.interfaces import Workload
from tare.bench.model import SCRATCH
from tare.bench.units import Unit, decode_quantity
from tests.unit.workload_captures import (
    MAY_BE_ZERO,
    WORKLOADS,
    Capture,
    captures,
    completed,
    envelope,
    identify,
    is_refused,
    load,
    measured,
)

EXPECTED = {
    *("7zip", "hpcc", "openssl-speed", "pixz", "pyperformance", "stress-ng", "sysbench-cpu", "xz"),
    *("huge-pages", "perf-mem", "stress-ng-memory", "sysbench-memory"),
    *("perf-sched-messaging", "perf-sched-pipe", "perf-syscall", "stress-ng-process"),
    *("cyclictest", "first-write", "fio", "fio-metadata"),
    *("iperf3", "nginx-connections", "sockperf"),
    *("mariadb", "nginx", "postgresql", "redis"),
}


def values(workload: str, capture: Capture) -> dict[str, float]:
    return {m.metric: m.value for m in WORKLOADS[workload].parse(capture.completed)}


def test_every_built_in_workload_is_registered_under_its_own_name() -> None:
    assert {name: workload.name for name, workload in WORKLOADS.items()} == {name: name for name in EXPECTED}


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_declarations_say_what_a_reader_needs(workload: Workload) -> None:
    names = [metric.name for metric in workload.metrics]
    assert len(set(names)) == len(names)
    assert workload.packages
    assert workload.licence
    assert workload.summary
    for metric in workload.metrics:
        assert re.fullmatch(r"[a-z_]+(\.[a-z0-9_]+)+(\.9)?", metric.name), metric.name
        assert metric.description.endswith(".")
        rates_and_times = (Unit.SECOND, Unit.BYTES_PER_SECOND, Unit.OPERATIONS_PER_SECOND, Unit.RATIO)
        assert metric.unit in (*rates_and_times, Unit.BYTE) or metric.name in MAY_BE_ZERO


@pytest.mark.parametrize("capture", measured(), ids=identify)
def test_a_real_output_gives_declared_finite_positive_values(capture: Capture) -> None:
    workload = WORKLOADS[capture.header["workload"]]
    found = workload.parse(capture.completed)
    names = [measurement.metric for measurement in found]
    assert found
    assert len(set(names)) == len(names)
    assert set(names) <= {metric.name for metric in workload.metrics}
    assert all(math.isfinite(one.value) and (one.value > 0 or one.metric in MAY_BE_ZERO) for one in found)


@pytest.mark.parametrize("capture", [c for c in captures() if "workload" in c.header], ids=identify)
def test_captures_were_made_by_the_commands_that_the_workloads_build_today(capture: Capture) -> None:
    workload = WORKLOADS[capture.header["workload"]]
    params = msgspec.convert(capture.header.get("params", {}), workload.Params, dec_hook=decode_quantity)
    assert list(workload.commands(params, capture.envelope).measured.argv) == capture.header["argv"]


def test_every_metric_is_seen_in_a_real_output() -> None:
    for name, workload in WORKLOADS.items():
        seen = {metric for capture in measured(name) for metric in values(name, capture)}
        assert seen == {metric.name for metric in workload.metrics}


@pytest.mark.parametrize("capture", [c for c in captures() if is_refused(c)], ids=identify)
def test_real_outputs_that_are_no_measurement_are_refused_with_the_text(capture: Capture) -> None:
    tool = capture.tool.rpartition("-")[0]
    own = capture.header.get("workload", {"rt-tests": "cyclictest"}.get(tool, tool))
    tried = [workload for name, workload in WORKLOADS.items() if name.startswith(own)]
    assert tried
    for workload in tried:
        with pytest.raises(ParseError) as caught:
            workload.parse(capture.completed)
        assert caught.value.message
        said = capture.text.strip() or capture.header["stderr"].strip()
        assert said[:60] in caught.value.evidence


def test_a_skipped_stressor_is_explained_by_what_stress_ng_said() -> None:
    with pytest.raises(ParseError) as caught:
        WORKLOADS["stress-ng"].parse(load("stress-ng-0.15.06", "apparmor-skipped").completed)
    assert "apparmor stressor will be skipped" in caught.value.evidence


def test_stress_ng_without_metrics_is_explained_by_its_log() -> None:
    text = load("stress-ng-0.15.06", "cpu-1-instance").text
    bare = re.sub(r"metrics:.*?(?=\.\.\.)", "", text, flags=re.DOTALL)
    with pytest.raises(ParseError, match="ran no stressor") as caught:
        WORKLOADS["stress-ng"].parse(completed(bare.encode(), b"stress-ng: error: it was not possible\n"))
    assert "it was not possible" in caught.value.evidence


def test_notes_before_fio_json_are_read_over_and_nothing_else_is() -> None:
    noted = load("fio-3.33", "noted-sync-engine-depth")
    assert noted.text.startswith("note: both iodepth")
    found = values("fio", noted)
    assert {name.partition(".")[0] for name in found} == {"read", "write"}
    assert found == {m.metric: m.value for m in WORKLOADS["fio"].parse(completed(b"fio: a remark\n" + noted.stdout))}
    with pytest.raises(ParseError, match="precedes the JSON"):
        WORKLOADS["fio"].parse(completed(b"Segmentation fault\n" + noted.stdout))


def test_a_refused_io_uring_is_explained() -> None:
    fio = WORKLOADS["fio"]
    refused = load("fio-3.33", "refused-io_uring").completed
    found = fio.diagnose(refused)
    assert found is not None
    assert "io_uring is refused in this instance (EPERM)" in found.reason
    assert "seccomp" in found.remedy
    old = msgspec.structs.replace(refused, stdout=b"", stderr=b"fio: your kernel doesn't support io_uring\n")
    assert "kernel has no io_uring" in str(fio.diagnose(old))
    assert fio.diagnose(load("fio-3.33", "refused-no-file").completed) is None
    assert fio.diagnose(msgspec.structs.replace(refused, stdout=b"", stderr=b"No space left on device\n")) is None


def test_a_refused_priority_is_explained() -> None:
    cyclictest = WORKLOADS["cyclictest"]
    found = cyclictest.diagnose(load("rt-tests-2.4", "refused-priority").completed)
    assert found is not None
    assert "real-time priority is refused in this instance" in found.reason
    assert "policy = 'other'" in found.remedy
    assert cyclictest.diagnose(completed(b"", b"out of memory", 1)) is None


def test_wake_ups_beyond_the_histogram_are_kept_and_decide_no_percentile() -> None:
    cyclictest = WORKLOADS["cyclictest"]
    report = json.loads(load("rt-tests-2.4", "cyclictest").text)
    thread = report["thread"]["0"]
    thread["cycles"] += 1
    thread["max"] = 123_456
    few = completed(json.dumps(report).encode())
    (histogram,) = cyclictest.histograms(few)
    assert (histogram.bounds[-1], histogram.counts[-1]) == (0.123456, 1)
    assert {m.metric: m.value for m in cyclictest.parse(few)}["wakeup.latency.max"] == 0.123456
    thread["cycles"] += thread["cycles"] // 10
    with pytest.raises(ParseError, match=r"more than 1 % of the wake-ups were late by more than 0\.1 s"):
        cyclictest.parse(completed(json.dumps(report).encode()))


def test_files_that_were_all_written_to_are_explained() -> None:
    first_write = WORKLOADS["first-write"]
    found = first_write.diagnose(load("python3-3.11.2", "refused-no-files-left").completed)
    assert found is not None
    assert "too few files of this size" in found.reason
    assert first_write.diagnose(completed(b"", b"OSError: [Errno 28] No space left on device\n", 1)) is None


def test_a_direction_in_which_nothing_finished_is_told_plainly() -> None:
    """Seen in an emulated guest on a busy host: one read in a second, and not one write."""
    text = load("fio-3.33", "randread-psync").text.replace('"rw" : "randread"', '"rw" : "randrw"')
    with pytest.raises(ParseError, match="finished not one write within its run time") as caught:
        WORKLOADS["fio"].parse(completed(text.encode()))
    assert "runtime_s" in str(caught.value.remedy)


@pytest.mark.parametrize("capture", measured("fio"), ids=identify)
def test_fio_reports_the_directions_that_were_asked_for(capture: Capture) -> None:
    rw = capture.header.get("params", {}).get("rw", "randread").removeprefix("rand")
    expected = {"rw": {"read", "write"}}.get(rw, {rw})
    if capture.header.get("params", {}).get("fsync"):
        expected |= {"sync"}
    assert {name.partition(".")[0] for name in values("fio", capture)} == expected


def test_known_values_of_one_capture_each() -> None:
    """Read off the captured files by eye; the recomputing test covers the rest."""
    assert values("sysbench-cpu", load("sysbench-1.0.20", "cpu-1-thread"))["cpu.events_per_second"] == 3294.37
    assert values("perf-sched-pipe", load("perf-6.1.192", "sched-pipe")) == {
        "pipe.operations_per_second": 122359.0,
        "pipe.time_per_operation": 8.17265e-06,
    }
    assert values("stress-ng", load("stress-ng-0.15.06", "hdd")) == {
        "bogo.operations_per_second": 8740.519687,
        "bogo.operations_per_cpu_second": 12579.847319,
    }
    fio = values("fio", load("fio-3.33", "randread-psync"))
    assert (fio["read.iops"], fio["read.latency.p99.9"]) == (9063.936064, 0.008159232)
    udp = values("iperf3", load("iperf3-3.12", "udp-send-lossy"))
    assert udp == {"udp.bandwidth": 45682000 / 1.001212, "udp.loss": 27582 / 60212, "udp.jitter": 4.13065970348874e-05}
    memory = values("sysbench-memory", load("sysbench-1.0.20", "memory-write-1-thread"))
    assert memory["memory.bandwidth"] == 17279.37 * 2**20


def test_a_server_that_does_not_answer_sockperf_is_the_reason() -> None:
    gone = completed(b"", b"sockperf: No messages were received from the server. Is the server down?\n", 1)
    found = WORKLOADS["sockperf"].diagnose(gone)
    assert found is not None
    assert found.reason == "sockperf: No messages were received from the server"
    assert WORKLOADS["sockperf"].diagnose(completed(b"", b"killed", 1)) is None
    with pytest.raises(ParseError, match="No messages were received from the server"):
        WORKLOADS["sockperf"].parse(completed(gone.stderr + b"end of 4 lines\n"))


def test_what_iperf3_says_went_wrong_is_the_reason() -> None:
    with pytest.raises(ParseError, match="iperf3 failed: unable to connect to server: Connection refused"):
        WORKLOADS["iperf3"].parse(load("iperf3-3.12", "refused-no-server").completed)


def test_the_scratch_folder_is_where_files_go() -> None:
    fio = WORKLOADS["fio"]
    commands = fio.commands(fio.Params(), envelope())
    assert all(f"--filename={SCRATCH}/" in " ".join(c.argv) for c in (*commands.setup, commands.measured))
    stress = WORKLOADS["stress-ng"]
    argv = stress.commands(stress.Params(), envelope()).measured.argv
    assert argv[argv.index("--temp-path") + 1] == SCRATCH
