"""fio 3, from its JSON (``json+``) with its histograms: reads and writes of one file, and the making of many.

The one file in the scratch folder is laid out and synced by a command of its own before the first measured one, so that
no measured command allocates blocks, and the measured one refuses to make the file itself. Each CPU runs one job on a
region of its own. Files are created, looked at and removed by fio's engines for metadata, each kind by its own fio,
because one fio makes the files of all of its jobs before the first begins.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tare.bench.errors import ParseError, WorkloadError
from tare.bench.interfaces import Workload
from tare.bench.model import SCRATCH, Command, Commands, Completed, Diagnosis, Envelope, Histogram, Measurement, Metric
from tare.bench.traits import Category, Parameter
from tare.bench.units import Size, Unit, format_size
from tare.workloads.metrics import bandwidth_of, percentiles_of, rate_of, time_of
from tare.workloads.output import excerpt, read_output, refuse
from tare.workloads.parameters import (
    START_MARGIN_S,
    Seconds,
    TimedWorkload,
    require_scratch,
    require_size,
    timeout_of,
)

TOOL = "fio"
PERCENTILES: Mapping[str, str] = {"p50": "50.000000", "p99": "99.000000", "p99.9": "99.900000"}
PERCENTILE_LIST = "--percentile_list=50:99:99.9"

_NOTE = re.compile(r"(?:fio|note): .*", re.ASCII)
_VERSION = re.compile(r"fio-3\.\d+\S*", re.ASCII)
_WHOLE = re.compile(r"0|[1-9]\d{0,18}", re.ASCII)

_FILE = f"{SCRATCH}/tare-fio"
_DIRECTIONS: Mapping[str, tuple[str, ...]] = {
    "read": ("read",),
    "randread": ("read",),
    "write": ("write",),
    "randwrite": ("write",),
    "rw": ("read", "write"),
    "randrw": ("read", "write"),
}
_SLOWEST_LAYOUT_BYTES_PER_S = 2 * 2**20


class Latency(msgspec.Struct, frozen=True):
    """What fio says of one kind of operation, in seconds: its own mean and percentiles, and its histogram.

    ``bounds`` are the upper edges of fio's buckets, each 1.6 % wide or narrower; empty ones are left out, as fio does.
    """

    mean: float
    percentiles: Mapping[str, float]
    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    def measurements(self, name: str) -> list[Measurement]:
        """As the metrics that ``declare_latency`` declares under ``name``."""
        found = [Measurement(f"{name}.mean", self.mean)]
        return found + [Measurement(f"{name}.{key}", value) for key, value in self.percentiles.items()]

    def histogram(self, name: str) -> Histogram:
        """The distribution under ``name``."""
        return Histogram(name, Unit.SECOND, self.bounds, self.counts)


def declare_latency(name: str, what: str, title: str) -> tuple[Metric, ...]:
    """The metrics of a ``Latency``; ``what`` follows "time" (``from submitting a read to ...``)."""
    return (
        time_of(f"{name}.mean", f"Mean time {what}.", f"{title}, mean"),
        *percentiles_of(name, PERCENTILES, what, "buckets of fio's histogram, 1.6 % wide", title),
    )


def _declare(direction: str, verb: str) -> tuple[Metric, ...]:
    return (
        rate_of(
            f"{direction}.iops",
            f"Blocks {verb} per second by all jobs.",
            f"{{rw}} {{block_size}} {direction}s per second",
        ),
        bandwidth_of(f"{direction}.bandwidth", f"Bytes {verb} per second by all jobs.", f"Bytes {verb} per second"),
        *declare_latency(
            f"{direction}.latency",
            f"from submitting a {direction} to its completion",
            f"{direction.capitalize()} latency",
        ),
    )


class Fio(TimedWorkload):
    """Storage as the instance sees it. ``direct`` keeps the page cache of the kernel that runs fio out of it.

    In a guest that is the guest's page cache: whether the host caches the guest's disk is the backend's doing, and
    is part of its description. Buffered runs read what the layout left in the cache, except what fio drops at start.
    """

    name = "fio"
    summary = "storage: random or sequential reads and writes of a file in the scratch folder"
    title = "Disk (fio)"
    parameters = (
        Parameter(
            "rw",
            "Access",
            {
                "read": "sequential",
                "write": "sequential",
                "randread": "random",
                "randwrite": "random",
                "rw": "sequential",
                "randrw": "random",
            },
        ),
        Parameter("block_size", "Block size"),
        Parameter("io_depth", "Queue depth"),
        Parameter("engine", "Engine"),
        Parameter("direct", "Direct I/O"),
        Parameter("size", "File"),
        Parameter("runtime_s", "Run time (s)"),
        Parameter("read_percent", "Reads (%)"),
        Parameter("fsync", "Writes between syncs"),
    )
    packages = ("fio",)
    licence = "GPL-2.0-only"
    category = Category.STORAGE
    overhead_s = 0.3
    metrics = (
        *_declare("read", "read"),
        *_declare("write", "written"),
        *declare_latency("sync.latency", "of an fsync", "Sync latency"),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``io_depth`` above 1 needs an asynchronous ``engine``; libaio is asynchronous with ``direct`` only.

        ``size`` is the whole file, shared out evenly among the jobs. In a mix, ``read_percent`` of the blocks are read.
        Each job calls fsync after every ``fsync`` writes; 0: never.
        """

        rw: Literal["read", "write", "randread", "randwrite", "rw", "randrw"] = "randread"
        block_size: Size = Size("4KiB")
        io_depth: Annotated[int, Meta(ge=1, le=1024)] = 1
        engine: Literal["psync", "libaio", "io_uring"] = "psync"
        direct: bool = True
        size: Size = Size("64MiB")
        runtime_s: Seconds = 1.0
        read_percent: Annotated[int, Meta(ge=1, le=99)] = 50
        fsync: Annotated[int, Meta(ge=0, le=1_000_000, description="writes between two fsyncs, 0 for none")] = 0

        def __post_init__(self) -> None:
            require_size("block_size", self.block_size, 512, 64 * 2**20)
            if self.block_size % 512:
                raise ValueError(f"block_size: {self.block_size} is not a multiple of 512 bytes")
            require_size("size", self.size, self.block_size, 16 * 2**40)
            if self.io_depth > 1 and self.engine == "psync":
                raise ValueError("io_depth: the engine psync has one operation in flight; use 'libaio' or 'io_uring'")
            if self.engine == "libaio" and not self.direct:
                raise ValueError("direct: libaio is synchronous without it; set direct = true, or use 'io_uring'")
            if self.fsync and _DIRECTIONS[self.rw] == ("read",):
                raise ValueError(f"fsync: with rw = {self.rw!r} nothing is written that could be synced")

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """Lay the file out, run the jobs, remove the file.

        Raises WorkloadError if the file does not fit the scratch folder of ``envelope``, or has no block for each job.
        """
        jobs = len(envelope.cpus)
        region = _region_bytes(params, envelope)
        measured = (
            "fio",
            "--name=tare",
            f"--filename={_FILE}",
            f"--rw={params.rw}",
            f"--rwmixread={params.read_percent}",
            f"--bs={int(params.block_size)}",
            f"--ioengine={params.engine}",
            f"--iodepth={params.io_depth}",
            f"--direct={int(params.direct)}",
            f"--size={region}",
            f"--offset_increment={region}",
            f"--numjobs={jobs}",
            "--time_based",
            f"--runtime={round(params.runtime_s * 1000)}ms",
            "--allow_file_create=0",
            "--fallocate=none",
            # The same blocks in the same order on every backend.
            "--randrepeat=1",
            "--group_reporting",
            *([f"--fsync={params.fsync}"] if params.fsync else []),
            PERCENTILE_LIST,
            "--output-format=json+",
        )
        return Commands(
            measured=Command(measured, timeout_s=timeout_of(params.runtime_s)),
            setup=(_layout(region * jobs),),
            teardown=(Command(("rm", "-f", _FILE)),),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        """What the job reports for each direction that its own options ask for, and for the fsyncs if they do."""
        text = read_output(TOOL, completed)
        job = find_job(text)
        measurements: list[Measurement] = []
        for name, latency in _latencies(job, text):
            if name != "sync":
                measurements += [
                    Measurement(f"{name}.iops", number(job, text, name, "iops")),
                    Measurement(f"{name}.bandwidth", number(job, text, name, "bw_bytes")),
                ]
            measurements += latency.measurements(f"{name}.latency")
        return measurements

    def histograms(self, completed: Completed) -> list[Histogram]:
        """Every latency in the buckets in which fio counts it."""
        text = read_output(TOOL, completed)
        return [latency.histogram(f"{name}.latency") for name, latency in _latencies(find_job(text), text)]

    def diagnose(self, completed: Completed) -> Diagnosis | None:
        said = completed.stdout + completed.stderr
        if "--ioengine=io_uring" not in completed.argv:
            return None
        if b"Operation not permitted" in said:
            return Diagnosis(
                "io_uring is refused in this instance (EPERM), as by the system-call filter of a container",
                "let the suite give the container no filter (native: seccomp = 'none'), or use engine = 'libaio'",
            )
        if b"doesn't support io_uring" in said:
            return Diagnosis("the instance's kernel has no io_uring", "use engine = 'libaio'")
        return None


def _region_bytes(params: Fio.Params, envelope: Envelope) -> int:
    """The part of the file that one job works on, in whole blocks."""
    size, block, jobs = int(params.size), int(params.block_size), len(envelope.cpus)
    require_scratch(envelope, size, f"fio's file (size = {params.size})", "a smaller size")
    region = size // jobs // block * block
    if region == 0:
        raise WorkloadError(
            f"fio's file (size = {params.size}) has less than one block of {params.block_size} for each of {jobs} jobs",
            remedy="state a larger size or a smaller block_size",
        )
    return region


def _layout(size: int) -> Command:
    argv = (
        "fio",
        "--name=layout",
        f"--filename={_FILE}",
        "--rw=write",
        "--bs=1048576",
        f"--size={size}",
        "--ioengine=psync",
        "--fallocate=none",
        # Blocks that differ, so that no layer below can store them once.
        "--refill_buffers=1",
        "--end_fsync=1",
        "--output-format=json",
    )
    return Command(argv, timeout_s=START_MARGIN_S + size / _SLOWEST_LAYOUT_BYTES_PER_S)


def _latencies(job: Mapping[str, Any], text: str) -> Iterator[tuple[str, Latency]]:
    """The latencies of each direction that the job's options ask for, and of its fsyncs. Raises ParseError."""
    rw = get(job, text, "job options", "rw")
    if not isinstance(rw, str) or rw not in _DIRECTIONS:
        refuse(TOOL, f"the job's option rw is {rw!r}", text)
    asked = [(direction, "clat_ns") for direction in _DIRECTIONS[rw]]
    if "fsync" in get(job, text, "job options"):
        asked.append(("sync", "lat_ns"))
    for name, key in asked:
        if get(job, text, name, "total_ios") == 0:
            raise ParseError(
                f"fio finished not one {name} within its run time, so there is nothing to measure",
                remedy="raise runtime_s, or lower block_size",
                evidence=excerpt(text),
            )
        yield name, read_latency(job, text, name, key, count=number(job, text, name, "total_ios"))


def find_job(text: str) -> Mapping[str, Any]:
    """The one job of a report, before which fio may note what it changed of what was asked. Raises ParseError."""
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if line == "{"), None)
    if start is None:
        refuse(TOOL, "there is no JSON", text)
    stray = next((line for line in lines[:start] if line and not _NOTE.fullmatch(line)), None)
    if stray is not None:
        refuse(TOOL, f"{stray!r} precedes the JSON", text)
    try:
        report = json.loads("\n".join(lines[start:]), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        refuse(TOOL, f"its JSON cannot be read: {error}", text)
    version, jobs = get(report, text, "fio version"), get(report, text, "jobs")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        refuse(TOOL, f"its version is {version!r}", text)
    if not isinstance(jobs, list) or len(jobs) != 1 or not isinstance(jobs[0], dict):
        refuse(TOOL, "it does not report exactly one group of jobs", text)
    job: dict[str, Any] = jobs[0]
    if get(job, text, "error") != 0:
        refuse(TOOL, f"the job ended with error {job['error']!r}", text)
    return job


def get(value: Any, text: str, *keys: str) -> Any:
    """The value at the path ``keys`` of ``value``. Raises ParseError if one is missing."""
    for depth, key in enumerate(keys):
        if not isinstance(value, dict) or key not in value:
            refuse(TOOL, f"{'.'.join(keys[: depth + 1])} is missing", text)
        value = value[key]
    return value


def number(value: Any, text: str, *keys: str) -> float:
    """The positive number under ``keys``. Raises ParseError if it is none."""
    found = get(value, text, *keys)
    # bool is an int to Python; an integer beyond a float's range is no measurement either.
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < 1e300:
        refuse(TOOL, f"{'.'.join(keys)} is {found!r}", text)
    return float(found)


def read_latency(job: Mapping[str, Any], text: str, *keys: str, count: float) -> Latency:
    """The latencies under ``keys``, of ``count`` operations. Raises ParseError if they are not what fio prints."""
    where = ".".join(keys)
    if number(job, text, *keys, "N") != count:
        refuse(TOOL, f"{where} has latencies of other than the {count:.0f} operations that it counts", text)
    bins = get(job, text, *keys, "bins")
    if not isinstance(bins, dict) or not all(_WHOLE.fullmatch(middle) for middle in bins):
        refuse(TOOL, f"{where}.bins is not a histogram", text)
    if not all(type(found) is int and found > 0 for found in bins.values()) or sum(bins.values()) != count:
        refuse(TOOL, f"{where}.bins does not hold the {count:.0f} operations that fio counts", text)
    edges = [_upper_edge_ns(int(middle), where, text) for middle in bins]
    if edges != sorted(set(edges)):
        refuse(TOOL, f"{where}.bins does not rise", text)
    shortest = get(job, text, *keys, "min")
    if type(shortest) is not int or not 0 <= shortest <= edges[0]:
        refuse(TOOL, f"{where}.min is {shortest!r}, which is not in the first bucket", text)
    # fio's last bucket has no upper edge: it holds whatever took longer than 17 seconds.
    edges[-1] = max(edges[-1], round(number(job, text, *keys, "max")))
    return Latency(
        number(job, text, *keys, "mean") / 1e9,
        {name: number(job, text, *keys, "percentile", key) / 1e9 for name, key in PERCENTILES.items()},
        tuple(edge / 1e9 for edge in edges),
        tuple(bins.values()),
    )


def _upper_edge_ns(middle: int, where: str, text: str) -> int:
    """The longest time in the bucket that fio names by its ``middle``: 64 buckets for each power of two from 128 on."""
    if middle < 128:
        return middle
    width = 1 << (middle.bit_length() - 7)
    if middle % width != width // 2:
        refuse(TOOL, f"{where}.bins has a bucket at {middle}, where fio has none", text)
    return middle + width // 2 - 1


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


_FOLDER = f"{SCRATCH}/tare-fio-metadata"
_ENGINES = {"create": "filecreate", "stat": "filestat", "unlink": "filedelete"}
_SCRIPT = """
set -e
folder=$1; shift
rm -rf "$folder"; mkdir "$folder"
fio --name=create --ioengine=filecreate "$@"
fio --name=stat --ioengine=filestat "$@"
fio --name=unlink --ioengine=filedelete "$@"
"""
_BYTES_OF_SCRATCH_PER_FILE = 16 * 2**10
"""ext4 has at least one inode for this many bytes."""
_NOMINAL_FILE_S = 0.4e-3
_SLOWEST = 50.0


class FioMetadata(Workload):
    """What a file system does besides moving data. The files are empty when created and 4 KiB large from then on.

    Nothing is synced: what is timed is the file system of the kernel that runs fio, its journal now and then included.
    """

    name = "fio-metadata"
    summary = "storage: create, stat and remove many files in the scratch folder"
    title = "Many small files (fio)"
    parameters = (Parameter("files", "Files"),)
    packages = ("fio",)
    licence = "GPL-2.0-only"
    category = Category.STORAGE
    metrics = (
        *declare_latency("create.latency", "to create and open an empty file", "Time to create a file"),
        *declare_latency("stat.latency", "of a stat() of a file that was just written", "Time to look up a file"),
        *declare_latency("unlink.latency", "to remove a 4 KiB file", "Time to remove a file"),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``files`` are all files together, shared out evenly among one job for each CPU, in one folder."""

        files: Annotated[int, Meta(ge=10, le=10_000_000)] = 2000

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """One script of three fios. Raises WorkloadError if the scratch folder of ``envelope`` has no room for it."""
        jobs = len(envelope.cpus)
        if params.files < jobs:
            raise WorkloadError(
                f"files: {params.files} files are less than one for each of {jobs} jobs", remedy="state more files"
            )
        if params.files * _BYTES_OF_SCRATCH_PER_FILE > envelope.scratch_bytes:
            raise WorkloadError(
                f"files: a scratch folder of {format_size(envelope.scratch_bytes)} has inodes for "
                f"{envelope.scratch_bytes // _BYTES_OF_SCRATCH_PER_FILE} files, not for {params.files}",
                remedy="state fewer files, or more scratch in the envelope",
            )
        options = (
            f"--directory={_FOLDER}",
            "--filename_format=f.$jobnum.$filenum",
            f"--nrfiles={params.files // jobs}",
            # Otherwise fio may hold them all open.
            "--openfiles=1",
            "--filesize=4096",
            "--bs=4096",
            "--fallocate=none",
            f"--numjobs={jobs}",
            "--group_reporting",
            PERCENTILE_LIST,
            "--output-format=json+",
        )
        timeout = START_MARGIN_S + _SLOWEST * params.files * _NOMINAL_FILE_S
        measured = Command(("sh", "-c", _SCRIPT, "sh", _FOLDER, *options), timeout_s=timeout)
        return Commands(measured, teardown=(Command(("rm", "-rf", _FOLDER)),))

    def parse(self, completed: Completed) -> list[Measurement]:
        return [one for name, latency in _of_each_kind(completed) for one in latency.measurements(f"{name}.latency")]

    def histograms(self, completed: Completed) -> list[Histogram]:
        """Every latency in the buckets in which fio counts it."""
        return [latency.histogram(f"{name}.latency") for name, latency in _of_each_kind(completed)]

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """About 0.4 ms a file in all, and what three fios take to start."""
        return params.files * _NOMINAL_FILE_S + 0.5


def _of_each_kind(completed: Completed) -> Iterator[tuple[str, Latency]]:
    """The latencies of each kind. Raises ParseError unless there is one report of each, of all files."""
    text = read_output(TOOL, completed)
    reports = text.split("\n}\n")
    if len(reports) != len(_ENGINES) + 1 or reports.pop().strip():
        refuse(TOOL, f"it does not end after {len(_ENGINES)} reports", text)
    for (name, engine), report in zip(_ENGINES.items(), reports, strict=True):
        job = find_job(f"{report}\n}}\n")
        options = get(job, text, "job options")
        if get(options, text, "ioengine") != engine:
            refuse(TOOL, f"a report of {get(options, text, 'ioengine')!r} is in the place of {name}", text)
        files = number(job, text, "read", "total_ios")
        asked = str(get(options, text, "nrfiles")), str(get(options, text, "numjobs"))
        if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in asked) or files != int(
            asked[0]
        ) * int(asked[1]):
            refuse(TOOL, f"{name} has {files:.0f} operations, and not one for each file", text)
        yield name, read_latency(job, text, "read", "clat_ns", count=files)
