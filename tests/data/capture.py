"""Captures the real output of the workloads' commands in a built image, as the tests' data.

Run as root: ``python -m tests.data.capture ROOTFS SCRATCH [NAME ...]`` with the root file system of an image
(``tare image list``) and an empty folder on a disk; of all, or of the packages and workloads named. Each command runs
as its workload builds it, in a chroot over a temporary overlay in a mount namespace of its own; those of a workload
with services run in an instance of bare metal. Written are ``<tool>-<version>/<name>.stdout``, byte by byte, and beside
it ``<name>.toml`` with the command line, how it ended and what it said on stderr.
"""

import errno
import functools
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyseccomp

from tare.bench.experiments.work import Work
from tare.bench.image import ImageStore
from tare.bench.interfaces import Instance
from tare.bench.ledger import Ledger
from tare.bench.limits_met import raise_if_failed
from tare.bench.locations import cache_directory
from tare.bench.model import Command, Commands, Completed, Envelope, InstanceSpec
from tare.bench.registry import find_workloads
from tare.bench.units import decode_quantity
from tests.privileged.host_kernel import start_backend

HERE = Path(__file__).parent

INSIDE = """
set -e
ip link set lo up
stage=$(mktemp -d)
trap 'umount -l "$stage"; rmdir "$stage"' EXIT
mount -t tmpfs tmpfs "$stage"
mkdir "$stage/upper" "$stage/work" "$stage/root"
root=$stage/root
mount -t overlay overlay -o "lowerdir=$ROOTFS,upperdir=$stage/upper,workdir=$stage/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mkdir -p "$root/scratch"
mount --bind "$SCRATCH" "$root/scratch"
set +e
env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    chroot "$root" sh -c 'cd "$1" && shift && exec "$@"' inside "$FOLDER" "$@"
"""


def words(line: str) -> tuple[str, ...]:
    return tuple(line.split())


# workload: (tool as Debian's package, name of the capture, parameters, CPUs)
CAPTURES: dict[str, tuple[str, list[tuple[str, dict[str, object], int]]]] = {
    "sysbench-cpu": (
        "sysbench",
        [
            ("cpu-1-thread", {}, 1),
            ("cpu-2-threads", {}, 2),
            ("cpu-2-threads-3s", {"runtime_s": 3}, 2),
            ("cpu-small-primes", {"max_prime": 1000}, 1),
            ("cpu-large-primes", {"max_prime": 200000}, 2),
        ],
    ),
    "sysbench-memory": (
        "sysbench",
        [
            ("memory-write-1-thread", {}, 1),
            ("memory-write-2-threads", {}, 2),
            ("memory-read-small-blocks", {"operation": "read", "block_size": "1KiB"}, 1),
            ("memory-random-local", {"access": "rnd", "scope": "local", "block_size": "4MiB"}, 2),
            ("memory-read-large-blocks", {"operation": "read", "block_size": "128MiB"}, 2),
        ],
    ),
    "fio": (
        "fio",
        [
            ("randread-psync", {}, 1),
            ("randread-psync-2-jobs", {"runtime_s": 0.2}, 2),
            ("randread-libaio-depth-16", {"engine": "libaio", "io_depth": 16, "runtime_s": 0.2}, 2),
            ("randread-io_uring-depth-8", {"engine": "io_uring", "io_depth": 8, "runtime_s": 0.2}, 1),
            ("randread-tiny", {"runtime_s": 0.1, "size": "1MiB"}, 1),
            ("randrw-psync", {"rw": "randrw", "runtime_s": 0.2}, 1),
            (
                "randrw-libaio-2-jobs",
                {"rw": "randrw", "engine": "libaio", "io_depth": 8, "read_percent": 70, "runtime_s": 0.2},
                2,
            ),
            ("randread-buffered-2-jobs", {"direct": False, "runtime_s": 0.2}, 2),
            ("randwrite-io_uring-buffered", {"rw": "randwrite", "engine": "io_uring", "direct": False}, 1),
            ("randwrite-fsync", {"rw": "randwrite", "fsync": 1, "runtime_s": 0.5}, 1),
            ("rw-buffered-fsync", {"rw": "rw", "direct": False, "block_size": "64KiB", "fsync": 16}, 2),
            ("read-1M", {"rw": "read", "block_size": "1MiB"}, 1),
            ("write-1M", {"rw": "write", "block_size": "1MiB"}, 1),
        ],
    ),
    "fio-metadata": ("fio", [("metadata", {"files": 300}, 1), ("metadata-2-jobs", {}, 2)]),
    "first-write": (
        "python3",
        [
            ("first-write", {}, 1),
            ("first-write-large", {"files": 5, "size": "128KiB"}, 1),
            ("refused-no-files-left", {"files": 50000}, 1),
        ],
    ),
    "cyclictest": (
        "rt-tests",
        [
            ("cyclictest", {}, 1),
            ("cyclictest-2-threads", {"interval_us": 5000}, 2),
            ("cyclictest-fifo", {"policy": "fifo", "priority": 80}, 2),
        ],
    ),
    "perf-sched-pipe": (
        "linux-perf",
        [
            ("sched-pipe", {}, 1),
            ("sched-pipe-threaded", {"threaded": True}, 2),
            ("sched-pipe-few", {"loops": 100}, 1),
        ],
    ),
    "perf-syscall": ("linux-perf", [("syscall-basic", {}, 1), ("syscall-basic-few", {"loops": 1000}, 1)]),
    "openssl-speed": (
        "openssl",
        [
            ("aes-256-gcm", {}, 1),
            ("aes-256-gcm-2-processes", {"block_size": "64KiB"}, 2),
            ("sha256-2-processes", {"algorithm": "sha256"}, 2),
            ("rsa2048", {"algorithm": "rsa2048"}, 1),
            ("rsa2048-2-processes", {"algorithm": "rsa2048"}, 2),
        ],
    ),
    "7zip": (
        "7zip",
        [
            ("benchmark-1-thread", {}, 1),
            ("benchmark-2-threads", {}, 2),
            ("benchmark-3-dictionaries", {"dictionary_bits": 20}, 2),
        ],
    ),
    "xz": (
        "xz-utils",
        [
            ("compress", {}, 1),
            ("compress-2-threads", {"preset": 1, "size": "8MiB", "seed": 7}, 2),
            ("decompress", {"operation": "decompress", "size": "2MiB"}, 1),
            ("decompress-2-threads", {"operation": "decompress"}, 2),
        ],
    ),
    "pixz": (
        "pixz",
        [
            ("compress", {}, 1),
            ("compress-2-threads", {"preset": 6, "size": "2MiB"}, 2),
            ("decompress-2-threads", {"operation": "decompress"}, 2),
        ],
    ),
    "hpcc": ("hpcc", [("order-2000", {}, 1), ("order-500", {"order": 500}, 2)]),
    "perf-sched-messaging": (
        "linux-perf",
        [
            ("sched-messaging", {}, 1),
            ("sched-messaging-threaded-pipe", {"groups": 1, "loops": 200, "threaded": True, "pipe": True}, 2),
        ],
    ),
    "perf-mem": (
        "linux-perf",
        [("mem-memcpy", {}, 1), ("mem-memset-small", {"operation": "memset", "size": "64KiB", "loops": 10000}, 1)],
    ),
    "stress-ng-process": (
        "stress-ng",
        [
            (f"process-{operation}", {"operation": operation}, cpus)
            for operation, cpus in (("exec", 2), ("fork", 1), ("futex", 2), ("pthread", 2), ("switch", 2), ("vfork", 1))
        ],
    ),
    "stress-ng-memory": (
        "stress-ng",
        [(f"memory-{operation}", {"operation": operation}, 1) for operation in ("fault", "mmap", "mremap")],
    ),
    "huge-pages": (
        "python3",
        [("huge-pages", {}, 1), ("huge-pages-small", {"size": "10MiB", "advice": "small"}, 1)],
    ),
    "pyperformance": (
        "pypi:pyperformance==1.14.0",
        [
            ("richards", {}, 1),
            ("startup", {"benchmark": "python_startup", "processes": 1, "values": 2}, 1),
        ],
    ),
    "stress-ng": (
        "stress-ng",
        [
            ("cpu-1-instance", {}, 1),
            ("cpu-2-instances", {}, 2),
            ("matrix-2s", {"stressor": "matrix", "runtime_s": 2}, 2),
            ("switch", {"stressor": "switch"}, 1),
            ("hdd", {"stressor": "hdd"}, 1),
            ("getdent-2-instances", {"stressor": "getdent"}, 2),
            ("vm", {"stressor": "vm"}, 1),
            ("sleep", {"stressor": "sleep"}, 1),
            ("fork", {"stressor": "fork"}, 1),
            ("crypt", {"stressor": "crypt"}, 2),
            ("apparmor-skipped", {"stressor": "apparmor"}, 1),
        ],
    ),
    "nginx": (
        "wrk",
        [
            ("nginx-10-connections", {}, 1),
            ("nginx-close", {"keep_alive": False, "connections": 100}, 2),
        ],
    ),
    "nginx-connections": ("wrk", [("connections", {}, 1), ("connections-1-client", {"clients": 1}, 1)]),
    "postgresql": (
        "postgresql-15",
        [
            ("pgbench-tpcb-like", {}, 1),
            ("pgbench-select-only", {"script": "select-only", "clients": 4}, 2),
            ("pgbench-simple-update", {"script": "simple-update", "clients": 2, "protocol": "simple"}, 1),
        ],
    ),
    "mariadb": (
        "sysbench",
        [
            ("oltp-read-write", {}, 1),
            ("oltp-read-only", {"mode": "read-only", "clients": 4}, 2),
        ],
    ),
    "redis": (
        "redis",
        [
            ("redis-50-clients", {}, 1),
            ("redis-1-client", {"clients": 1, "requests": 5000}, 1),
            ("redis-pipeline", {"clients": 100, "pipeline": 16}, 2),
        ],
    ),
}

CAPTURES["iperf3"] = (
    "iperf3",
    [
        ("tcp-send", {}, 1),
        ("tcp-receive-2-streams", {"direction": "receive", "streams": 2}, 2),
        ("tcp-send-4-streams-cubic", {"streams": 4, "congestion": "cubic"}, 1),
        ("udp-send", {"protocol": "udp"}, 1),
        ("udp-send-lossy", {"protocol": "udp", "streams": 2, "offered_per_s": "1GiB"}, 1),
        ("udp-receive-lossy", {"protocol": "udp", "direction": "receive", "offered_per_s": "1GiB"}, 2),
    ],
)

CAPTURES["sockperf"] = (
    "sockperf",
    [
        ("tcp", {}, 1),
        ("udp-large-3s", {"protocol": "udp", "message_bytes": 1400, "runtime_s": 3}, 2),
    ],
)

# Real outputs that are no measurement: (package, name, argv)
REFUSED: list[tuple[str, str, tuple[str, ...]]] = [
    ("sysbench", "refused-bad-option", ("sysbench", "cpu", "--time=0.5", "run")),
    ("sysbench", "refused-bad-block", ("sysbench", "memory", "--memory-block-size=1000", "run")),
    ("sysbench", "refused-no-transfer", ("sysbench", "memory", "--memory-oper=none", "--time=1", "run")),
    (
        "sysbench",
        "refused-no-event-in-time",
        ("sysbench", "cpu", "--cpu-max-prime=100000000", "--time=1", "--histogram=on", "--forced-shutdown=0", "run"),
    ),
    (
        "fio",
        "refused-no-file",
        words(
            "fio --name=tare --filename=/scratch/none --rw=randread --size=1M --ioengine=psync "
            "--allow_file_create=0 --output-format=json"
        ),
    ),
    (
        "fio",
        "refused-normal-output",
        ("fio", "--name=tare", "--filename=/scratch/f", "--rw=randread", "--size=1M", "--ioengine=psync"),
    ),
    (
        "fio",
        "refused-two-groups",
        words(
            "fio --filename=/scratch/f --size=1M --ioengine=psync --output-format=json --name=one --rw=read "
            "--name=two --rw=write"
        ),
    ),
    ("linux-perf", "refused-simple-format", ("perf", "bench", "--format=simple", "sched", "pipe", "--loop", "1000")),
    ("linux-perf", "refused-all-functions", words("perf bench mem memcpy -s 1MB -l 10")),
    ("linux-perf", "refused-unknown-collection", ("perf", "bench", "nonsense")),
    ("openssl", "refused-normal-output", words("openssl speed -elapsed -seconds 1 -multi 2 -bytes 16384 -evp sha256")),
    ("openssl", "refused-one-process", words("openssl speed -mr -elapsed -seconds 1 -bytes 16384 -evp sha256")),
    ("openssl", "refused-unknown-cipher", words("openssl speed -mr -elapsed -seconds 1 -multi 1 -evp nonsense")),
    ("7zip", "refused-one-method", words("7zz b -mmt1 -mm=CRC32 -mtime=1")),
    ("stress-ng", "refused-log-only", ("stress-ng", "--cpu", "1", "--timeout", "1s", "--metrics")),
    ("iperf3", "refused-no-server", words("iperf3 --client 127.0.0.1 --time 1 --json")),
    (
        "stress-ng",
        "refused-two-stressors",
        words("stress-ng --cpu 1 --switch 1 --timeout 1s --metrics --temp-path /scratch --yaml /proc/self/fd/1"),
    ),
]

# fio says on stdout, before the JSON, what it changed of what was asked for.
NOTED: list[tuple[str, str, tuple[str, ...]]] = [
    (
        "fio",
        "noted-sync-engine-depth",
        words(
            "fio --name=tare --filename=/scratch/f --rw=randrw --bs=4096 --size=524288 "
            "--offset_increment=524288 --numjobs=2 --group_reporting --ioengine=psync --iodepth=4 "
            "--time_based --runtime=200ms --percentile_list=50:99:99.9 --output-format=json+"
        ),
    ),
]

# Refused by the kernel, as under a container's filter of system calls: (package, name, denied call, argv)
DENIED: list[tuple[str, str, str, tuple[str, ...]]] = [
    (
        "rt-tests",
        "refused-priority",
        "sched_setscheduler",
        words("cyclictest --default-system --policy=fifo --priority=80 --duration=1 --quiet"),
    ),
    (
        "fio",
        "refused-io_uring",
        "io_uring_setup",
        words(
            "fio --name=tare --filename=/scratch/f --rw=randread --size=1M --ioengine=io_uring "
            "--allow_file_create=0 --output-format=json+"
        ),
    ),
]


def deny(call: str) -> None:
    """Let this system call fail with EPERM for this process and all that it starts."""
    filters = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    filters.add_rule(pyseccomp.ERRNO(errno.EPERM), call)
    filters.load()


def run(rootfs: Path, scratch: Path, command: Command, denied: str = "") -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "ROOTFS": str(rootfs), "SCRATCH": str(scratch)}
    environment["FOLDER"] = command.cwd
    return subprocess.run(
        [
            *words("unshare --mount --net --pid --fork --kill-child --propagation private"),
            "bash",
            "-c",
            INSIDE,
            "inside",
            *command.argv,
        ],
        env=environment,
        input=command.stdin,
        capture_output=True,
        timeout=command.timeout_s + 60,
        preexec_fn=functools.partial(deny, denied) if denied else None,
        check=False,
    )


class Captured:
    """As much of a run as ``Work`` needs: a command that fails ends the capture."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def execute(self, instance: Instance, command: Command, role: str) -> tuple[Completed, str]:
        completed = instance.execute(command)
        return completed, self.keep(command, completed, role)

    def keep(self, command: Command, completed: Completed, role: str) -> str:
        raise_if_failed(command, completed, self._envelope)
        return role


def run_served(
    rootfs: Path, scratch: Path, commands: Commands, envelope: Envelope
) -> subprocess.CompletedProcess[bytes]:
    """The measured command beside its services, in an instance of bare metal."""
    with Ledger(scratch / "ledger") as ledger:
        image = ImageStore(cache_directory(), ledger).get(rootfs.parent.name)
        with (
            start_backend("bare-metal", image, scratch / "work", ledger) as backend,
            backend.start(InstanceSpec("tare-capture", image, envelope)) as instance,
        ):
            run: Any = Captured(envelope)
            work = Work(run, commands, instance)
            done, _ = work.measure()
            work.end()
    return subprocess.CompletedProcess(done.argv, done.returncode or 0, done.stdout, done.stderr)


def version_of(rootfs: Path, scratch: Path, package: str) -> str:
    if package.startswith("pypi:"):
        return package.rpartition("==")[2]
    argv = ("dpkg-query", "--show", "--showformat=${Version}", package)
    return run(rootfs, scratch, Command(argv)).stdout.decode()


def folder_of(package: str, version: str) -> Path:
    # The name of PostgreSQL's package has a version too.
    package = package.rstrip("-0123456789")
    # 7zip's 22.01+really26.02 is 26.02, redis' 5:7.0.15 is 7.0.15.
    upstream = version.rpartition("+really")[2].rpartition(":")[2].partition("+")[0].partition("-")[0]
    name = package.removeprefix("linux-").removeprefix("pypi:").partition("==")[0]
    return HERE / f"{name}-{upstream}"


def write(folder: Path, name: str, header: dict[str, object], done: subprocess.CompletedProcess[bytes]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.stdout").write_bytes(done.stdout)
    fields = {**header, "returncode": done.returncode, "kernel": platform.release(), "stderr": done.stderr.decode()}
    # A JSON string or list of strings is one in TOML too.
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items() if not isinstance(value, dict)]
    params = header.get("params", {})
    assert isinstance(params, dict)
    lines += ["", "[params]", *(f"{key} = {json.dumps(value)}" for key, value in params.items())] if params else []
    (folder / f"{name}.toml").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{folder.name}/{name}: exit status {done.returncode}, {len(done.stdout)} bytes")  # noqa: T201 - a script


def main() -> None:
    rootfs, scratch = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    only = sys.argv[3:]

    def wanted(*names: str) -> bool:
        return not only or not set(names).isdisjoint(only)

    workloads = find_workloads()
    for workload_name, (package, variants) in CAPTURES.items():
        if not wanted(package, workload_name):
            continue
        workload = workloads.get(workload_name)()
        version = version_of(rootfs, scratch, package)
        for name, given, cpus in variants:
            envelope = Envelope(tuple(range(cpus)), 512 * 2**20, 256 * 2**20, 512)
            commands = workload.commands(msgspec.convert(given, workload.Params, dec_hook=decode_quantity), envelope)
            if commands.services:
                done = run_served(rootfs, scratch, commands, envelope)
            else:
                for command in commands.setup:
                    run(rootfs, scratch, command).check_returncode()
                done = run(rootfs, scratch, commands.measured)
                for command in commands.teardown:
                    run(rootfs, scratch, command).check_returncode()
            header = {"package": f"{package} {version}", "argv": commands.measured.argv, "workload": workload_name}
            write(folder_of(package, version), name, {**header, "cpus": cpus, "params": given}, done)
    undenied = [(package, name, "", argv) for package, name, argv in (*NOTED, *REFUSED)]
    for package, name, denied, argv in (*undenied, *DENIED):
        if not wanted(package):
            continue
        version = version_of(rootfs, scratch, package)
        (scratch / "f").write_bytes(bytes(2**20))
        done = run(rootfs, scratch, Command(argv), denied)
        (scratch / "f").unlink()
        write(folder_of(package, version), name, {"package": f"{package} {version}", "argv": argv}, done)


if __name__ == "__main__":
    main()
