"""Every metric of every capture computed again by another way, and compared exactly.

The parsers use anchored patterns, floats and JSON. Here the text is cut into fields at white space, as awk would, and
the arithmetic is decimal; fio's report is reduced to paths and values without a JSON parser.
"""

import itertools
import re
from collections import defaultdict
from decimal import Decimal
from math import ceil, floor
from statistics import fmean

import pytest

from tests.unit.workload_captures import DURATION_S, WORKLOADS, Capture, identify, measured

SOCKPERF_PERCENTILES = (("p50", "50.000"), ("p90", "90.000"), ("p99", "99.000"), ("p99.9", "99.900"))


def last_field(text: str, start: str) -> Decimal:
    """The last field of the line that starts with ``start``."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return Decimal(line.split()[-1])


def sysbench_latencies(text: str) -> dict[str, Decimal | float]:
    rows = [line.split() for line in text.splitlines() if " |" in line and not line.strip().startswith("value")]
    # value, bar (may be empty but for "|"), count
    events = sum(int(row[-1]) for row in rows)
    assert events == last_field(text, "total number of events:")
    rank = floor(events * 0.95 + 0.5)
    every = [row[0] for row in rows for _ in range(int(row[-1]))]
    return {
        "mean": float(last_field(text, "sum:") / 1000) / events,
        "p95": Decimal(every[rank - 1]) / 1000,
        "max": last_field(text, "max:") / 1000,
    }


def sysbench_cpu(text: str) -> dict[str, Decimal | float]:
    latencies = {f"cpu.latency.{name}": value for name, value in sysbench_latencies(text).items()}
    return {"cpu.events_per_second": last_field(text, "events per second:"), **latencies}


def sysbench_memory(text: str) -> dict[str, Decimal | float]:
    fields = text.replace("(", " ").replace(")", " ").split()
    return {
        "memory.bandwidth": float(fields[fields.index("MiB/sec") - 1]) * 1024 * 1024,
        "memory.operations_per_second": Decimal(fields[fields.index("second") - 2]),
    }


def perf(text: str) -> dict[str, Decimal | float]:
    fields = text.split()
    prefix = "pipe" if "sched/pipe" in text else "syscall"
    return {
        f"{prefix}.operations_per_second": Decimal(fields[fields.index("ops/sec") - 1]),
        f"{prefix}.time_per_operation": Decimal(fields[fields.index("usecs/op") - 1]) / 10**6,
    }


def stress_ng(text: str) -> dict[str, Decimal | float]:
    return {
        "bogo.operations_per_second": last_field(text, "bogo-ops-per-second-real-time:"),
        "bogo.operations_per_cpu_second": last_field(text, "bogo-ops-per-second-usr-sys-time:"),
    }


def flatten(text: str) -> dict[str, str]:
    """Paths and values of an indented JSON object: ``jobs/read/clat_ns/percentile/99.000000``."""
    path: list[str] = []
    values: dict[str, str] = {}
    for line in text.splitlines():
        opened = re.match(r'\s*(?:"([^"]+)" ?: )?[{\[]$', line)
        given = re.match(r'\s*"([^"]+)" ?: (.*?),?$', line)
        if opened:
            path.append(opened[1] or "")
        elif re.match(r"\s*[}\]],?$", line):
            path.pop()
        elif given:
            values["/".join(part for part in [*path, given[1]] if part)] = given[2]
    return values


FIO_PERCENTILES = (("p50", "50.000000"), ("p99", "99.000000"), ("p99.9", "99.900000"))


def fio(text: str) -> dict[str, Decimal | float]:
    values = flatten(text)
    found: dict[str, Decimal | float] = {}
    for kind, latency in (("read", "clat_ns"), ("write", "clat_ns"), ("sync", "lat_ns")):
        base = f"jobs/{kind}"
        if values[f"{base}/total_ios"] == "0" or (kind == "sync" and "jobs/job options/fsync" not in values):
            continue
        if kind != "sync":
            found[f"{kind}.iops"] = Decimal(values[f"{base}/iops"])
            found[f"{kind}.bandwidth"] = Decimal(values[f"{base}/bw_bytes"])
        found[f"{kind}.latency.mean"] = float(values[f"{base}/{latency}/mean"]) / 10**9
        for name, key in FIO_PERCENTILES:
            found[f"{kind}.latency.{name}"] = Decimal(values[f"{base}/{latency}/percentile/{key}"]) / 10**9
    return found


def openssl_speed(text: str) -> dict[str, Decimal | float]:
    fields = text.splitlines()[-1].split(":")
    names = ("data.bandwidth",) if len(fields) == 4 else ("sign.operations_per_second", "verify.operations_per_second")
    return dict(zip(names, map(Decimal, fields[3:]), strict=True))


def seven_zip(text: str) -> dict[str, Decimal | float]:
    (fields,) = [line.split() for line in text.splitlines() if line.startswith("Avr:")]
    return {
        "compress.bandwidth": Decimal(fields[1]) * 1024,
        "compress.rating": Decimal(fields[4]) * 10**6,
        "decompress.bandwidth": Decimal(fields[6]) * 1024,
        "decompress.rating": Decimal(fields[9]) * 10**6,
    }


def compression(text: str) -> dict[str, Decimal | float]:
    """The bytes of the corpus over the time of the command, as often as it was unpacked."""
    words = text.split()
    if "unpacked" in words:
        unpacked = sum(int(size) for word, size in itertools.pairwise(words) if word == "unpacked")
        return {"decompress.bandwidth": unpacked / DURATION_S}
    return {"compress.bandwidth": int(words[words.index("plain") + 1]) / DURATION_S}


def sockperf(text: str) -> dict[str, Decimal | float]:
    fields = {line.split()[3]: line.split()[-1] for line in text.splitlines() if "> percentile " in line}
    valid = next(line for line in text.splitlines() if "[Valid Duration]" in line).split()
    messages, duration = (valid[place].rpartition("=")[2] for place in (-1, 3))
    return {
        **{f"round_trip.{name}": Decimal(fields[key]) / 10**6 for name, key in SOCKPERF_PERCENTILES},
        "round_trip.mean": Decimal(text.partition("avg-rtt=")[2].split()[0]) / 10**6,
        "round_trip.rate": int(messages.rstrip(";")) / float(duration),
    }


def iperf3(text: str) -> dict[str, Decimal | float]:
    """The blocks at the end are flat: fields are cut out of them without a JSON parser."""

    def last(block: str, key: str) -> Decimal:
        found = text.rpartition(f'"{block}":')[2].partition("}")[0]
        return Decimal(found.partition(f'"{key}":')[2].split(",")[0].strip())

    rate = float(last("sum_received", "bits_per_second")) / 8
    if '"protocol":\t"TCP"' in text:
        return {"tcp.bandwidth": rate, "tcp.retransmits": last("sum_sent", "retransmits")}
    return {
        "udp.bandwidth": rate,
        "udp.loss": float(last("sum", "lost_packets") / last("sum", "packets")),
        "udp.jitter": float(last("sum", "jitter_ms")) / 1000,
    }


def fio_metadata(text: str) -> dict[str, Decimal | float]:
    found: dict[str, Decimal | float] = {}
    for name, report in zip(("create", "stat", "unlink"), text.split("\n}\n"), strict=False):
        values = flatten(report)
        base = "jobs/read/clat_ns"
        assert values["jobs/jobname"] == f'"{name}"'
        found[f"{name}.latency.mean"] = float(values[f"{base}/mean"]) / 10**9
        for key, percent in FIO_PERCENTILES:
            found[f"{name}.latency.{key}"] = Decimal(values[f"{base}/percentile/{percent}"]) / 10**9
    return found


def first_write(text: str) -> dict[str, Decimal | float]:
    found: dict[str, Decimal | float] = {}
    for name, key in (("first_write", "first_ns"), ("second_write", "second_ns"), ("volume_write", "volume_ns")):
        listed = text[text.index(f'"{key}": [') :].partition("[")[2].partition("]")[0]
        times = sorted(Decimal(time) for time in listed.split(", "))
        middle = (times[(len(times) - 1) // 2] + times[len(times) // 2]) / 2
        found[f"{name}.latency.mean"] = float(sum(times) / len(times)) / 10**9
        found[f"{name}.latency.p50"] = middle / 10**9
    found["first_write.ratio"] = Decimal(found["first_write.latency.p50"]) / Decimal(found["second_write.latency.p50"])
    return found


def postgresql(text: str) -> dict[str, Decimal | float]:
    table = text.split("latency us, transactions:\n")[1].splitlines()[:-1]
    every = [Decimal(line.split()[0]) for line in table for _ in range(int(line.split()[1]))]
    fields = text.split()
    found: dict[str, Decimal | float] = {
        "sql.transactions_per_second": Decimal(fields[fields.index("tps") + 2]),
        "sql.latency.mean": Decimal(repr(float(sum(every)) / len(every))) / 10**6,
        "sql.latency.max": every[-1] / 10**6,
    }
    assert len(every) == last_field(text, "number of transactions actually processed:")
    for share in ("50", "95", "99", "99.9"):
        found[f"sql.latency.p{share}"] = every[ceil(len(every) * Decimal(share) / 100) - 1] / 10**6
    return found


def mariadb(text: str) -> dict[str, Decimal | float]:
    rates = {
        line.split(":")[0].strip(): line.partition("(")[2].split()[0]
        for line in text.splitlines()
        if "per sec.)" in line
    }
    alike = sysbench_latencies(text)
    return {
        "sql.transactions_per_second": Decimal(rates["transactions"]),
        "sql.queries_per_second": Decimal(rates["queries"]),
        **{f"sql.latency.{name}": value for name, value in alike.items()},
    }


def nginx(text: str) -> dict[str, Decimal | float]:
    counted = text.split("counted ")[1].split()
    # Each latency as often as it was counted, in µs; wrk takes the rank after the share.
    every = [
        int(line.split()[0])
        for line in text.splitlines()
        if re.fullmatch(r"\d+ \d+", line)
        for _ in range(int(line.split()[1]))
    ]
    fields = text.split()
    found: dict[str, Decimal | float] = {
        "http.requests_per_second": last_field(text, "Requests/sec:"),
        "http.bandwidth": int(counted[2]) / float(Decimal(counted[4]) / 10**6),
        "http.latency.mean": Decimal(fields[fields.index("mean") + 1]) / 10**6,
        "http.latency.max": Decimal(every[-1]) / 10**6,
    }
    for share in ("50", "90", "99", "99.9"):
        rank = floor(len(every) * Decimal(share) / 100 + 1)
        found[f"http.latency.p{share}"] = Decimal(every[rank - 1]) / 10**6
    return found


def redis(text: str) -> dict[str, Decimal | float]:
    found: dict[str, Decimal | float] = {}
    for operation, report in zip(("set", "get"), text.split("======")[2::2], strict=True):
        fields = report.split()
        found[f"{operation}.operations_per_second"] = Decimal(fields[fields.index("throughput") + 2])
        names = ("mean", "min", "p50", "p95", "p99", "max")
        summary = report.split("latency summary (msec):")[1].split()[6:12]
        for name, digits in zip(names, summary, strict=True):
            if name != "min":
                found[f"{operation}.latency.{name}"] = Decimal(digits) / 1000
    return found


def cyclictest(text: str) -> dict[str, Decimal | float]:
    values = flatten(text)
    threads = sorted({path.split("/")[1] for path in values if path.startswith("thread/")})
    late: list[int] = []
    total, cycles = Decimal(0), 0
    for thread in threads:
        base = f"thread/{thread}"
        for path, count in values.items():
            if path.startswith(f"{base}/histogram/"):
                late += [int(path.rpartition("/")[2])] * int(count)
        total += Decimal(values[f"{base}/avg"]) * int(values[f"{base}/cycles"])
        cycles += int(values[f"{base}/cycles"])
    late.sort()
    assert len(late) == cycles
    return {
        "wakeup.latency.mean": (total / cycles) / 10**6,
        "wakeup.latency.p50": Decimal(late[ceil(cycles * 0.5) - 1]) / 10**6,
        "wakeup.latency.p99": Decimal(late[ceil(cycles * 0.99) - 1]) / 10**6,
        "wakeup.latency.max": max(Decimal(values[f"thread/{thread}/max"]) for thread in threads) / 10**6,
    }


def hpcc(text: str) -> dict[str, Decimal | float]:
    """From the lines that end in the number; the updates from the section of their own."""
    giga = 10**9
    section = text.partition("Begin of SingleRandomAccess section.")[2].partition("End of")[0].split()
    found: dict[str, Decimal | float] = {
        "hpl.operations_per_second": last_field(text.replace("=", "= "), "HPL_Tflops=") * 10**12,
        "random_access.operations_per_second": Decimal(section[section.index("Billion(10^9)") - 1]) * giga,
        "dgemm.operations_per_second": last_field(text, "Single DGEMM Gflop/s") * giga,
        "fft.operations_per_second": last_field(text, "Single FFT Gflop/s") * giga,
    }
    for kernel in ("Copy", "Scale", "Add", "Triad"):
        found[f"stream.{kernel.lower()}.bandwidth"] = last_field(text, f"Single STREAM {kernel} GB/s") * giga
    return found


def perf_messaging(text: str) -> dict[str, Decimal | float]:
    fields = text.split()
    return {"messaging.time": Decimal(fields[fields.index("[sec]") - 1])}


def perf_mem(text: str) -> dict[str, Decimal | float]:
    number, unit = text.split()[-2:]
    powers = {"KB/sec": 1, "MB/sec": 2, "GB/sec": 3}
    return {f"{'memset' if 'mem/memset' in text else 'memcpy'}.bandwidth": Decimal(number) * 1024 ** powers[unit]}


def stress_ng_operation(text: str) -> dict[str, Decimal | float]:
    prefix = "paging" if any(f"stressor: {name}" in text for name in ("fault", "mmap", "mremap")) else "process"
    found: dict[str, Decimal | float] = {
        f"{prefix}.operations_per_second": last_field(text, "bogo-ops-per-second-real-time:")
    }
    if "nanosecs-" in text:
        found[f"{prefix}.time_per_operation"] = last_field(text, "nanosecs-") / 10**9
    return found


def huge_pages(text: str) -> dict[str, Decimal | float]:
    values = {line.partition(": ")[0]: line.partition(": ")[2].split()[0] for line in text.splitlines() if ": " in line}
    region, huge = int(values["region"]), int(values["in huge pages"])
    small_pages = (region - huge) // int(values["page"])
    return {
        "touch.bandwidth": region / int(values["touched in"]) * 1e9,
        "page.size": region / (small_pages + huge / int(values["huge page"])),
        "memory.total": int(values["MemTotal"]) * 1024.0,
    }


def pyperformance(text: str) -> dict[str, Decimal | float]:
    """All numbers of the lists called values, which are not the lists of warm-ups."""
    values = [float(one) for found in re.findall(r'"values":\[([^\]]*)\]', text) for one in found.split(",")]
    return {"benchmark.time": fmean(values)}


RECOMPUTE = {
    "cyclictest": cyclictest,
    "hpcc": hpcc,
    "huge-pages": huge_pages,
    "perf-mem": perf_mem,
    "perf-sched-messaging": perf_messaging,
    "pyperformance": pyperformance,
    "stress-ng-memory": stress_ng_operation,
    "stress-ng-process": stress_ng_operation,
    "first-write": first_write,
    "fio-metadata": fio_metadata,
    "sockperf": sockperf,
    "iperf3": iperf3,
    "openssl-speed": openssl_speed,
    "7zip": seven_zip,
    "xz": compression,
    "pixz": compression,
    "sysbench-cpu": sysbench_cpu,
    "sysbench-memory": sysbench_memory,
    "perf-sched-pipe": perf,
    "perf-syscall": perf,
    "stress-ng": stress_ng,
    "fio": fio,
    "nginx": nginx,
    "nginx-connections": lambda text: {"connections.per_second": last_field(text, "Requests/sec:")},
    "redis": redis,
    "postgresql": postgresql,
    "mariadb": mariadb,
}


@pytest.mark.parametrize("capture", measured(), ids=identify)
def test_another_way_gives_the_same_numbers(capture: Capture) -> None:
    workload = capture.header["workload"]
    parsed = {m.metric: m.value for m in WORKLOADS[workload].parse(capture.completed)}
    again = {name: float(value) for name, value in RECOMPUTE[workload](capture.text).items()}
    assert parsed == again


def fio_bins(text: str, path: str) -> dict[int, int]:
    """Middle of a bucket in nanoseconds: how many times fio counted in it."""
    found = {key: value for key, value in flatten(text).items() if key.startswith(f"{path}/bins/")}
    return {int(key.rpartition("/")[2]): int(value) for key, value in found.items()}


@pytest.mark.parametrize("capture", measured(), ids=identify)
def test_histograms_are_whole(capture: Capture) -> None:
    """Where a tool counts a distribution, the counts are positive and the edges rise; the mean lies inside."""
    workload = WORKLOADS[capture.header["workload"]]
    parsed = {m.metric: m.value for m in workload.parse(capture.completed)}
    for histogram in workload.histograms(capture.completed):
        assert len(histogram.bounds) == len(histogram.counts)
        assert list(histogram.bounds) == sorted(set(histogram.bounds))
        assert min(histogram.counts) > 0
        total = sum(bound * count for bound, count in zip(histogram.bounds, histogram.counts, strict=True))
        mean = parsed.get(f"{histogram.name}.mean", parsed.get(histogram.name))
        assert mean is not None
        assert mean <= total / sum(histogram.counts) * (1 + 1e-3)


@pytest.mark.parametrize("capture", measured("fio"), ids=identify)
def test_fio_histograms_are_its_bins_and_give_its_percentiles(capture: Capture) -> None:
    workload = WORKLOADS["fio"]
    parsed = {m.metric: m.value for m in workload.parse(capture.completed)}
    histograms = workload.histograms(capture.completed)
    assert {histogram.name for histogram in histograms} == {
        name.removesuffix(".mean") for name in parsed if name.endswith(".mean")
    }
    for histogram in histograms:
        kind = histogram.name.partition(".")[0]
        path = f"jobs/{kind}/{'lat_ns' if kind == 'sync' else 'clat_ns'}"
        bins = fio_bins(capture.text, path)
        assert histogram.counts == tuple(bins.values())
        low, high = (int(flatten(capture.text)[f"{path}/{end}"]) / 1e9 for end in ("min", "max"))
        assert low <= histogram.bounds[0]
        assert high <= histogram.bounds[-1]
        for middle, bound, following in zip(bins, histogram.bounds, [*bins, 2**63][1:], strict=False):
            assert 0 <= bound * 1e9 - middle <= middle / 64
            assert round(bound * 1e9) < following
        for name, key in FIO_PERCENTILES:
            wanted, seen = float(key) / 100 * sum(bins.values()), 0
            for middle, count in bins.items():  # noqa: B007 - the last one is the answer
                seen += count
                if seen >= wanted:
                    break
            assert parsed[f"{histogram.name}.{name}"] == middle / 1e9


def _fio_plausible(values: dict[str, str], direction: str) -> bool:
    """IOPS, bytes and run time of one direction tell the same story."""
    base = f"jobs/{direction}"
    ios, runtime_ms = int(values[f"{base}/total_ios"]), int(values[f"{base}/runtime"])
    return abs(float(values[f"{base}/iops"]) * runtime_ms / 1000 - ios) <= 1


@pytest.mark.parametrize("capture", measured("fio"), ids=identify)
def test_fio_figures_agree_with_its_own_counts(capture: Capture) -> None:
    values = flatten(capture.text)
    parsed = defaultdict(float, {m.metric: m.value for m in WORKLOADS["fio"].parse(capture.completed)})
    for direction in ("read", "write"):
        if f"{direction}.iops" in parsed:
            assert _fio_plausible(values, direction)
            block = int(values[f"jobs/{direction}/io_bytes"]) / int(values[f"jobs/{direction}/total_ios"])
            assert parsed[f"{direction}.bandwidth"] == pytest.approx(parsed[f"{direction}.iops"] * block, rel=1e-6)
            assert parsed[f"{direction}.latency.p50"] <= parsed[f"{direction}.latency.p99"]
            assert parsed[f"{direction}.latency.p99"] <= parsed[f"{direction}.latency.p99.9"]


@pytest.mark.parametrize("capture", measured("sockperf"), ids=identify)
def test_sockperf_histograms_hold_every_round_trip_and_its_percentiles(capture: Capture) -> None:
    parsed = {m.metric: m.value for m in WORKLOADS["sockperf"].parse(capture.completed)}
    (histogram,) = WORKLOADS["sockperf"].histograms(capture.completed)
    rows = [line.split() for line in capture.text.splitlines() if line.startswith("bucket ")]
    assert dict(zip(histogram.bounds, histogram.counts, strict=True)) == {
        int(bound) / 1e9: int(count) for _, bound, count in rows
    }
    assert list(histogram.bounds) == sorted(histogram.bounds)
    middle = sum(bound * count for bound, count in zip(histogram.bounds, histogram.counts, strict=True))
    assert middle / sum(histogram.counts) == pytest.approx(parsed["round_trip.mean"], rel=1 / 64)
    for name, key in SOCKPERF_PERCENTILES[:3]:
        every = [bound for bound, count in zip(histogram.bounds, histogram.counts, strict=True) for _ in range(count)]
        assert every[floor(float(key) / 100 * len(every))] == pytest.approx(parsed[f"round_trip.{name}"], rel=1 / 32)
