"""fio 3: creating, looking at and removing many files in the scratch folder, with its engines for metadata.

Each kind is a fio of its own, because one fio makes the files of all of its jobs before the first begins.
"""

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from tare.bench.errors import WorkloadError
from tare.bench.interfaces import Workload
from tare.bench.model import SCRATCH, Category, Command, Commands, Completed, Envelope, Histogram, Measurement
from tare.bench.units import format_size
from tare.workloads.fio import (
    PERCENTILE_LIST,
    TOOL,
    Latency,
    declare_latency,
    find_job,
    get,
    number,
    read_latency,
)
from tare.workloads.output import read_output, refuse
from tare.workloads.parameters import START_MARGIN_S

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
    packages = ("fio",)
    licence = "GPL-2.0-only"
    category = Category.STORAGE
    metrics = (
        *declare_latency("create.latency", "to create and open an empty file"),
        *declare_latency("stat.latency", "of a stat() of a file that was just written"),
        *declare_latency("unlink.latency", "to remove a 4 KiB file"),
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
        """The latencies of each of the three kinds."""
        return [one for name, latency in _latencies(completed) for one in latency.measurements(f"{name}.latency")]

    def histograms(self, completed: Completed) -> list[Histogram]:
        """Every latency in the buckets in which fio counts it."""
        return [latency.histogram(f"{name}.latency") for name, latency in _latencies(completed)]

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """About 0.4 ms a file in all, and what three fios take to start."""
        return params.files * _NOMINAL_FILE_S + 0.5


def _latencies(completed: Completed) -> Iterator[tuple[str, Latency]]:
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
