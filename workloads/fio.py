"""fio 3: reads and writes of one file in the scratch folder, from fio's JSON.

The file is laid out and synced by a command of its own before the first measured one, so that no measured command
allocates blocks, and the measured one refuses to make the file itself. Each CPU runs one job on a region of its own.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bench.errors import ParseError, WorkloadError
from bench.interfaces import Workload
from bench.model import SCRATCH, Category, Command, Commands, Completed, Direction, Envelope, Measurement, Metric
from bench.units import Unit, format_size, parse_size
from workloads.output import excerpt, read_output, refuse
from workloads.parameters import START_MARGIN_S, Seconds, Size, bounded_size

_TOOL = "fio"
_FILE = f"{SCRATCH}/tare-fio"
_NOTE = re.compile(r"(?:fio|note): .*", re.ASCII)
_VERSION = re.compile(r"fio-3\.\d+\S*", re.ASCII)
_DIRECTIONS: Mapping[str, tuple[str, ...]] = {
    "read": ("read",),
    "randread": ("read",),
    "write": ("write",),
    "randwrite": ("write",),
    "rw": ("read", "write"),
    "randrw": ("read", "write"),
}
_PERCENTILES: Mapping[str, str] = {"p50": "50.000000", "p99": "99.000000", "p99.9": "99.900000"}
_SLOWEST_LAYOUT_BYTES_PER_S = 2 * 2**20

SHARE_OF_SCRATCH = 5 / 6
"""How much of the scratch folder the file may fill: a file system of 64 MiB keeps 15 % for itself (ext4)."""


def _declare(direction: str, verb: str) -> tuple[Metric, ...]:
    latency = f"from submitting a {direction} to its completion"
    return (
        Metric(
            f"{direction}.iops",
            Unit.OPERATIONS_PER_SECOND,
            Direction.HIGHER,
            f"Blocks {verb} in a second by all jobs together.",
        ),
        Metric(
            f"{direction}.bandwidth",
            Unit.BYTES_PER_SECOND,
            Direction.HIGHER,
            f"Bytes {verb} in a second by all jobs together.",
        ),
        Metric(
            f"{direction}.latency.mean",
            Unit.SECOND,
            Direction.LOWER,
            f"Mean time {latency}.",
        ),
        *(
            Metric(
                f"{direction}.latency.{name}",
                Unit.SECOND,
                Direction.LOWER,
                f"{name[1:]} % of the times {latency} are shorter (to the bucket of fio's histogram, 1.6 % wide).",
            )
            for name in _PERCENTILES
        ),
    )


class Fio(Workload):
    """Storage as the instance sees it. ``direct`` keeps the page cache of the kernel that runs fio out of it.

    In a guest that is the guest's page cache: whether the host caches the guest's disk is the backend's doing, and
    stands in its description. Buffered runs read what the layout left in the cache, less what fio drops when it starts.
    """

    name = "fio"
    summary = "storage: random or sequential reads and writes of a file in the scratch folder"
    packages = ("fio",)
    licence = "GPL-2.0-only"
    category = Category.STORAGE
    fixed_time = True
    metrics = (*_declare("read", "read"), *_declare("write", "written"))

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``io_depth`` above 1 needs an asynchronous ``engine``; libaio is asynchronous with ``direct`` only.

        ``size`` is the whole file, shared out evenly among the jobs. In a mix, ``read_percent`` of the blocks are read.
        """

        rw: Literal["read", "write", "randread", "randwrite", "rw", "randrw"] = "randread"
        block_size: Size = "4KiB"
        io_depth: Annotated[int, Meta(ge=1, le=1024)] = 1
        engine: Literal["psync", "libaio"] = "psync"
        direct: bool = True
        size: Size = "64MiB"
        runtime_s: Seconds = 1.0
        read_percent: Annotated[int, Meta(ge=1, le=99)] = 50

        def __post_init__(self) -> None:
            block = bounded_size("block_size", self.block_size, 512, 64 * 2**20)
            if block % 512:
                raise ValueError(f"block_size: {self.block_size} is no multiple of 512 bytes")
            bounded_size("size", self.size, block, 16 * 2**40)
            if self.io_depth > 1 and self.engine == "psync":
                raise ValueError("io_depth: the engine psync has one operation in flight; use engine = 'libaio'")
            if self.engine == "libaio" and not self.direct:
                raise ValueError("direct: libaio is synchronous without it; set direct = true or engine = 'psync'")

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
            f"--bs={parse_size(params.block_size)}",
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
            "--percentile_list=50:99:99.9",
            "--output-format=json",
        )
        return Commands(
            measured=Command(measured, timeout_s=2 * params.runtime_s + START_MARGIN_S),
            setup=(_layout(region * jobs),),
            teardown=(Command(("rm", "-f", _FILE)),),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        """What the job reports for each direction that its own options ask for."""
        text = read_output(_TOOL, completed)
        job = _find_job(text)
        rw = _get(job, text, "job options", "rw")
        if not isinstance(rw, str) or rw not in _DIRECTIONS:
            refuse(_TOOL, f"the job's option rw is {rw!r}", text)
        measurements: list[Measurement] = []
        for direction in _DIRECTIONS[rw]:
            measurements += _read_direction(job, direction, text)
        return measurements

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """The run time, and what fio takes to start and to end its jobs."""
        return params.runtime_s + 0.3


def _region_bytes(params: Fio.Params, envelope: Envelope) -> int:
    """The part of the file that one job works on, in whole blocks."""
    size, block, jobs = parse_size(params.size), parse_size(params.block_size), len(envelope.cpus)
    if size > envelope.scratch_bytes * SHARE_OF_SCRATCH:
        raise WorkloadError(
            f"fio's file (size = {params.size}) does not fit the instance's scratch folder of "
            f"{format_size(envelope.scratch_bytes)}, of which a file system leaves five sixths",
            remedy="state a smaller size, or more scratch in the envelope",
        )
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


def _find_job(text: str) -> Mapping[str, Any]:
    """The one job of a report. fio prints notes before the JSON when it changes what was asked for."""
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if line == "{"), None)
    if start is None:
        refuse(_TOOL, "there is no JSON", text)
    stray = next((line for line in lines[:start] if line and not _NOTE.fullmatch(line)), None)
    if stray is not None:
        refuse(_TOOL, f"{stray!r} stands before the JSON", text)
    try:
        report = json.loads("\n".join(lines[start:]), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        refuse(_TOOL, f"its JSON cannot be read: {error}", text)
    version, jobs = _get(report, text, "fio version"), _get(report, text, "jobs")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        refuse(_TOOL, f"its version is {version!r}", text)
    if not isinstance(jobs, list) or len(jobs) != 1 or not isinstance(jobs[0], dict):
        refuse(_TOOL, "it does not report exactly one group of jobs", text)
    job: dict[str, Any] = jobs[0]
    if _get(job, text, "error") != 0:
        refuse(_TOOL, f"the job ended with error {job['error']!r}", text)
    return job


def _read_direction(job: Mapping[str, Any], direction: str, text: str) -> list[Measurement]:
    def number(*keys: str) -> float:
        value = _get(job, text, direction, *keys)
        # bool is an int to Python; an integer beyond a float's range is no measurement either.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
            refuse(_TOOL, f"{direction}.{'.'.join(keys)} is {value!r}", text)
        return float(value)

    if _get(job, text, direction, "total_ios") == 0:
        raise ParseError(
            f"fio finished not one {direction} within its run time, so there is nothing to measure",
            remedy="raise runtime_s, or lower block_size",
            evidence=excerpt(text),
        )
    if number("total_ios") != number("clat_ns", "N"):
        refuse(_TOOL, f"it has latencies for other than the {direction}s it counts", text)
    return [
        Measurement(f"{direction}.iops", number("iops")),
        Measurement(f"{direction}.bandwidth", number("bw_bytes")),
        Measurement(f"{direction}.latency.mean", number("clat_ns", "mean") / 1e9),
        *(
            Measurement(f"{direction}.latency.{name}", number("clat_ns", "percentile", key) / 1e9)
            for name, key in _PERCENTILES.items()
        ),
    ]


def _get(value: Any, text: str, *keys: str) -> Any:
    for depth, key in enumerate(keys):
        if not isinstance(value, dict) or key not in value:
            refuse(_TOOL, f"{'.'.join(keys[: depth + 1])} is missing", text)
        value = value[key]
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
