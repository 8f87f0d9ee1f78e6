"""Parameters: what a suite may state, and how a wrong value is refused by its key before anything runs."""

import difflib
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tare.bench.errors import SuiteError, WorkloadError
from tare.bench.model import SERVER, Commands
from tare.bench.registry import Plugins, find_backends
from tare.bench.suite import resolve_suite
from tare.bench.units import decode_quantity, parse_size
from tare.workloads.compression import GENERATOR
from tare.workloads.stress_ng import STRESSORS, UNSAFE_STRESSORS
from tests.unit.workload_captures import WORKLOADS, envelope

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("sysbench-cpu", {"runtime_s": 0}, "runtime_s"),
    ("sysbench-cpu", {"runtime_s": 0.5}, "runtime_s"),
    ("sysbench-cpu", {"runtime_s": "1"}, "runtime_s"),
    ("sysbench-cpu", {"max_prime": 10}, "max_prime"),
    ("sysbench-cpu", {"threads": 2}, "threads"),
    ("sysbench-memory", {"block_size": "1MB"}, "block_size"),
    ("sysbench-memory", {"block_size": "3KiB"}, "block_size"),
    ("sysbench-memory", {"block_size": "512B"}, "block_size"),
    ("sysbench-memory", {"block_size": True}, "block_size"),
    ("sysbench-memory", {"operation": "none"}, "operation"),
    ("sysbench-memory", {"access": "random"}, "access"),
    ("sysbench-memory", {"scope": "thread"}, "scope"),
    ("fio", {"rw": "trim"}, "rw"),
    ("fio", {"block_size": "0KiB"}, "block_size"),
    ("fio", {"block_size": "1000"}, "block_size"),
    ("fio", {"block_size": "-4KiB"}, "block_size"),
    ("fio", {"block_size": "256MiB"}, "block_size"),
    ("fio", {"io_depth": 0}, "io_depth"),
    ("fio", {"io_depth": 4}, "io_depth"),
    ("fio", {"engine": "mmap"}, "engine"),
    ("fio", {"fsync": -1}, "fsync"),
    ("fio", {"fsync": 1, "rw": "randread"}, "fsync"),
    ("fio", {"direct": "yes"}, "direct"),
    ("fio", {"engine": "libaio", "direct": False}, "direct"),
    ("fio", {"size": "1KiB"}, "size"),
    ("fio", {"size": "64 megabytes"}, "size"),
    ("fio", {"runtime_s": 0.01}, "runtime_s"),
    ("fio", {"runtime_s": float("inf")}, "runtime_s"),
    ("fio", {"runtime_s": float("nan")}, "runtime_s"),
    ("fio", {"read_percent": 100}, "read_percent"),
    ("openssl-speed", {"algorithm": "des"}, "algorithm"),
    ("openssl-speed", {"block_size": "8B"}, "block_size"),
    ("7zip", {"dictionary_bits": 28}, "dictionary_bits"),
    ("7zip", {"step_s": 0}, "step_s"),
    ("hpcc", {"order": 100}, "order"),
    ("huge-pages", {"advice": "always"}, "advice"),
    ("huge-pages", {"size": "5000001"}, "size"),
    ("perf-mem", {"size": "1KiB"}, "size"),
    ("perf-mem", {"operation": "find_bit"}, "operation"),
    ("perf-sched-messaging", {"groups": 0}, "groups"),
    ("pyperformance", {"benchmark": "django_template"}, "benchmark"),
    ("pyperformance", {"values": 0}, "values"),
    ("stress-ng-memory", {"operation": "fork"}, "operation"),
    ("stress-ng-process", {"operation": "fault"}, "operation"),
    ("xz", {"preset": 10}, "preset"),
    ("xz", {"size": "1000"}, "size"),
    ("pixz", {"operation": "list"}, "operation"),
    ("pixz", {"seed": -1}, "seed"),
    ("cyclictest", {"priority": 80}, "priority"),
    ("cyclictest", {"policy": "fifo"}, "priority"),
    ("cyclictest", {"policy": "deadline"}, "policy"),
    ("cyclictest", {"interval_us": 10}, "interval_us"),
    ("fio-metadata", {"files": 9}, "files"),
    ("first-write", {"files": 0}, "files"),
    ("first-write", {"size": "1KiB"}, "size"),
    ("perf-sched-pipe", {"loops": 0}, "loops"),
    ("perf-sched-pipe", {"loops": 1e6 + 0.5}, "loops"),
    ("perf-sched-pipe", {"threaded": 1}, "threaded"),
    ("perf-syscall", {"loops": -1}, "loops"),
    ("perf-syscall", {"threaded": True}, "threaded"),
    ("postgresql", {"script": "tpch"}, "script"),
    ("postgresql", {"scale": 0}, "scale"),
    ("postgresql", {"protocol": "binary"}, "protocol"),
    ("mariadb", {"mode": "write"}, "mode"),
    ("mariadb", {"rows": 10}, "rows"),
    ("nginx", {"connections": 0}, "connections"),
    ("nginx", {"keep_alive": "yes"}, "keep_alive"),
    ("nginx", {"page_size": "2GiB"}, "page_size"),
    ("nginx-connections", {"keep_alive": True}, "keep_alive"),
    ("redis", {"clients": 0}, "clients"),
    ("redis", {"requests": 999}, "requests"),
    ("redis", {"clients": 1000, "pipeline": 10, "requests": 5000}, "requests"),
    ("stress-ng", {"stressor": "nonsense"}, "stressor"),
    ("stress-ng", {"stressor": "timeout"}, "stressor"),
    ("stress-ng", {"stressor": "reboot"}, "stressor"),
    ("stress-ng", {"stressor": "CPU"}, "stressor"),
    ("stress-ng", {"stressor": ""}, "stressor"),
    ("stress-ng", {"runtime_s": 3601}, "runtime_s"),
    ("sockperf", {"message_bytes": 13}, "message_bytes"),
    ("sockperf", {"runtime_s": 1}, "runtime_s"),
    ("iperf3", {"protocol": "sctp"}, "protocol"),
    ("iperf3", {"streams": 0}, "streams"),
    ("iperf3", {"port": 80}, "port"),
    ("iperf3", {"offered_per_s": "1GB"}, "offered_per_s"),
    ("iperf3", {"offered_per_s": "1B"}, "offered_per_s"),
    ("iperf3", {"datagram_bytes": 70000}, "datagram_bytes"),
]


def build(name: str, params: dict[str, Any] | None = None, **resources: int) -> Commands:
    workload = WORKLOADS[name]
    return workload.commands(
        msgspec.convert(params or {}, workload.Params, dec_hook=decode_quantity), envelope(**resources)
    )


@pytest.mark.parametrize(("name", "params", "key"), WRONG, ids=str)
def test_a_wrong_value_is_refused_by_its_key(name: str, params: dict[str, Any], key: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(params, WORKLOADS[name].Params, dec_hook=decode_quantity)
    assert key in str(caught.value)


@pytest.mark.parametrize(("name", "params", "key"), WRONG[:12], ids=str)
def test_a_suite_with_a_wrong_value_names_file_and_key(name: str, params: dict[str, Any], key: str) -> None:
    with pytest.raises(SuiteError) as caught:
        _resolve(name, params)
    assert "nightly.toml: experiment[0].params" in str(caught.value)
    assert key in str(caught.value)


def test_a_suite_whose_file_does_not_fit_the_scratch_folder_is_refused() -> None:
    with pytest.raises(SuiteError, match=r"nightly.toml: experiment\[0\].params: fio's file .* does not fit"):
        _resolve("fio", {"size": "250MiB"})


def _resolve(name: str, params: dict[str, Any]) -> None:
    raw = {
        "suite": {"name": "nightly"},
        "envelope": {"cpus": 1, "memory": "512MiB", "scratch": "256MiB"},
        "backend": [{"type": "anything"}],
        "experiment": [{"kind": "steady", "workload": name, "params": params}],
    }
    from tests.unit.fakes import FakeBackend

    backends = Plugins("backend", {"anything": FakeBackend}, {})
    workloads = Plugins("workload", {key: type(value) for key, value in WORKLOADS.items()}, {})
    resolve_suite(raw, Path("nightly.toml"), backends, workloads)


@pytest.mark.parametrize("name", WORKLOADS)
def test_defaults_are_short_and_bounded(name: str) -> None:
    workload = WORKLOADS[name]
    params = workload.Params()
    sleeps = 2.2 if name == "sockperf" else 0.0
    # hpcc cannot leave out any of its tests.
    assert 0.5 <= workload.duration_s(params) - sleeps <= (5.0 if name == "hpcc" else 2.0)
    commands = workload.commands(params, envelope())
    assert commands.measured.timeout_s > min(20 * workload.duration_s(params), 60)
    assert all(command.timeout_s > 0 for command in (*commands.setup, *commands.teardown))


@pytest.mark.parametrize("name", ["sysbench-cpu", "sysbench-memory", "fio", "openssl-speed", "stress-ng", "iperf3"])
def test_duration_and_timeout_follow_the_run_time(name: str) -> None:
    workload = WORKLOADS[name]
    params = msgspec.convert({"runtime_s": 300}, workload.Params, dec_hook=decode_quantity)
    assert workload.duration_s(params) == pytest.approx(300, rel=0.01)
    assert workload.commands(params, envelope()).measured.timeout_s > 400


@pytest.mark.parametrize("name", ["perf-sched-pipe", "perf-syscall"])
def test_duration_and_timeout_follow_the_loops(name: str) -> None:
    workload = WORKLOADS[name]
    few, many = (
        msgspec.convert({"loops": loops}, workload.Params, dec_hook=decode_quantity) for loops in (1000, 1_000_000)
    )
    assert workload.duration_s(many) == pytest.approx(1000 * workload.duration_s(few))
    assert workload.commands(many, envelope()).measured.timeout_s > 60 + 10 * workload.duration_s(many)


@pytest.mark.parametrize("cpus", [1, 2, 7])
def test_threads_follow_the_envelope(cpus: int) -> None:
    assert f"--threads={cpus}" in build("sysbench-cpu", cpus=cpus).measured.argv
    assert f"--threads={cpus}" in build("sysbench-memory", cpus=cpus).measured.argv
    assert f"--numjobs={cpus}" in build("fio", cpus=cpus).measured.argv
    assert f"--threads={cpus}" in build("cyclictest", cpus=cpus).measured.argv
    argv = build("openssl-speed", cpus=cpus).measured.argv
    assert argv[argv.index("-multi") + 1] == str(cpus)
    assert f"-mmt{cpus}" in build("7zip", cpus=cpus).measured.argv
    assert f"-T{cpus}" in build("xz", cpus=cpus).measured.argv
    argv = build("pixz", cpus=cpus).measured.argv
    assert argv[argv.index("-p") + 1] == str(cpus)
    metadata = build("fio-metadata", {"files": 1000}, cpus=cpus).measured.argv
    assert f"--numjobs={cpus}" in metadata
    assert f"--nrfiles={1000 // cpus}" in metadata
    argv = build("stress-ng", {"stressor": "vm"}, cpus=cpus).measured.argv
    assert argv[argv.index("--vm") + 1] == str(cpus)


@pytest.mark.parametrize("cpus", [1, 2, 3, 7])
@pytest.mark.parametrize("block_size", ["4KiB", "1MiB"])
def test_fio_lays_out_exactly_what_its_jobs_use(cpus: int, block_size: str) -> None:
    commands = build("fio", {"block_size": block_size, "size": "50MiB"}, cpus=cpus)
    options = _options(commands.measured.argv)
    laid_out = _options(commands.setup[0].argv)
    assert int(laid_out["size"]) == int(options["size"]) * cpus <= 50 * 2**20
    assert int(options["size"]) % parse_size(block_size) == 0
    assert options["offset_increment"] == options["size"]
    assert options["filename"] == laid_out["filename"]
    assert options["allow_file_create"] == "0"
    assert commands.teardown[0].argv == ("rm", "-f", options["filename"])


def _options(argv: tuple[str, ...]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in argv if "=" in word)


def test_fio_fits_the_scratch_folder_or_says_so() -> None:
    build("fio", {"size": "50MiB"}, scratch_bytes=60 * 2**20)
    with pytest.raises(WorkloadError, match=r"does not fit the instance's scratch folder of 60\.0 MiB") as caught:
        build("fio", {"size": "51MiB"}, scratch_bytes=60 * 2**20)
    assert caught.value.remedy is not None
    with pytest.raises(WorkloadError, match="less than one block of 1MiB for each of 4 jobs"):
        build("fio", {"size": "3MiB", "block_size": "1MiB"}, cpus=4)


def test_many_files_fit_the_scratch_folder_or_say_so() -> None:
    build("fio-metadata", {"files": 4096}, scratch_bytes=64 * 2**20)
    with pytest.raises(WorkloadError, match=r"files: .* of 64\.0 MiB has inodes for 4096 files, not for 4097"):
        build("fio-metadata", {"files": 4097}, scratch_bytes=64 * 2**20)
    with pytest.raises(WorkloadError, match="less than one for each of 11 jobs"):
        build("fio-metadata", {"files": 10}, cpus=11)


def test_sysbench_memory_fits_the_memory_or_says_so() -> None:
    build("sysbench-memory", {"block_size": "256MiB"})
    build("sysbench-memory", {"block_size": "128MiB", "scope": "local"}, cpus=2)
    with pytest.raises(WorkloadError, match="512 MiB"):
        build("sysbench-memory", {"block_size": "512MiB"})
    with pytest.raises(WorkloadError, match="block_size = 256MiB"):
        build("sysbench-memory", {"block_size": "256MiB", "scope": "local"}, cpus=2)


def test_a_corpus_is_cut_into_a_block_a_thread_and_fits_or_says_so() -> None:
    argv = build("xz", {"size": "10MiB"}, cpus=3).measured.argv
    assert f"--block-size={-(-10 * 2**20 // 3)}" in argv
    argv = build("pixz", {"size": "8MiB", "preset": 6}, cpus=2).measured.argv
    assert argv[argv.index("-f") + 1] == "0.500000"
    for name in ("xz", "pixz"):
        with pytest.raises(WorkloadError, match=r"does not fit the instance's scratch folder of 9\.00 MiB"):
            build(name, scratch_bytes=9 * 2**20)
        with pytest.raises(WorkloadError, match=r"with 7 threads at preset = 6"):
            build(name, {"preset": 6}, cpus=7)
    with pytest.raises(WorkloadError, match="dictionary_bits = 25, 1 threads"):
        build("7zip", {"dictionary_bits": 25})


def test_what_does_not_fit_the_envelope_is_refused_with_its_parameter() -> None:
    for name, params, said in (
        ("hpcc", {"order": 6000}, "order = 6000"),
        ("huge-pages", {"size": "300MiB"}, "size = 300MiB"),
        ("perf-mem", {"size": "200MiB"}, "size = 200MiB"),
        ("perf-sched-messaging", {"groups": 13}, "groups = 13"),
    ):
        with pytest.raises(WorkloadError, match=said) as caught:
            build(name, params)
        assert caught.value.remedy


def test_the_corpus_is_the_same_on_every_machine_and_python(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    for seed, digest in ((1, "a092ee865cbdf45f"), (2, "8358a6af7a5b5579")):
        subprocess.run([sys.executable, "-c", GENERATOR, "100001", str(seed), path], check=True, timeout=60)
        assert path.stat().st_size == 100001
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(("name", "params"), [("postgresql", {"scale": 10}), ("mariadb", {"rows": 1_000_000})])
def test_databases_fit_the_scratch_folder_or_say_so(name: str, params: dict[str, Any]) -> None:
    build(name, params, scratch_bytes=2**30)
    with pytest.raises(WorkloadError, match=rf"{name}'s data .* scratch folder of 256 MiB"):
        build(name, params)


def test_fio_takes_fractions_of_a_second() -> None:
    assert "--runtime=250ms" in build("fio", {"runtime_s": 0.25}).measured.argv


def test_iperf3_shares_what_udp_offers_among_its_streams() -> None:
    commands = build("iperf3", {"protocol": "udp", "streams": 4, "offered_per_s": "1MiB", "direction": "receive"})
    argv = commands.measured.argv
    assert argv[argv.index("--bitrate") + 1] == str(2**20 * 8 // 4)
    assert "--reverse" in argv
    assert "--congestion" not in argv
    (service,) = commands.services
    assert service.command.argv[:4] == ("iperf3", "--server", "--bind", SERVER)
    assert "--udp" not in build("iperf3").measured.argv


def test_an_unknown_stressor_is_answered_with_the_nearest() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"did you mean .*matrix"):
        msgspec.convert({"stressor": "matrixx"}, WORKLOADS["stress-ng"].Params, dec_hook=decode_quantity)
    assert difflib.get_close_matches("matrixx", STRESSORS)
    assert not STRESSORS & UNSAFE_STRESSORS
    assert len(STRESSORS | UNSAFE_STRESSORS) == 303, "stress-ng --stressors of 0.15.06 lists 303"


def test_options_that_are_no_stressors_do_not_pass() -> None:
    assert not STRESSORS & {"timeout", "all", "sequential", "class", "taskset", "yaml", "temp-path", "pathological"}


def test_backends_are_never_named_by_workloads() -> None:
    for name, workload in WORKLOADS.items():
        text = " ".join(build(name).measured.argv) + workload.summary
        assert not any(backend in text for backend in find_backends().loaded)
