"""What the first write to a file of the image costs, against a second one and one to a file in the scratch folder.

A small Python program opens, writes and closes files below /usr, each exactly once for the first time: it takes the
next ones of a list that the set-up makes. It writes what the files already contain, so they do not change.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tare.bench.interfaces import Workload
from tare.bench.model import (
    SCRATCH,
    Command,
    Commands,
    Completed,
    Diagnosis,
    Direction,
    Envelope,
    Histogram,
    Measurement,
    Metric,
)
from tare.bench.traits import Category, Parameter
from tare.bench.units import Size, Unit
from tare.workloads.metrics import time_of
from tare.workloads.output import read_json, read_output, refuse
from tare.workloads.parameters import START_MARGIN_S, require_size

_TOOL = "first-write"
_FOLDER = f"{SCRATCH}/tare-first-write"
_NOMINAL_FILE_S = 10e-3
_SLOWEST = 50.0

# No program and no library, so that nothing that runs is opened for writing. In an order that says nothing of the size.
_CHOOSE = """
import os, random, stat, sys
folder, least = sys.argv[1], int(sys.argv[2])
found = []
for top, _, names in os.walk("/usr"):
    for path in (os.path.join(top, name) for name in names if ".so" not in name):
        status = os.lstat(path)
        if (stat.S_ISREG(status.st_mode) and least <= status.st_size < 2 * least and status.st_nlink == 1
                and not status.st_mode & 0o7111):
            found.append(path)
found.sort()
random.Random(1).shuffle(found)
os.makedirs(folder, exist_ok=True)
with open(folder + "/left", "w", encoding="utf-8", errors="surrogateescape") as file:
    file.writelines(path + "\\n" for path in found)
"""

_MEASURE = """
import json, os, sys, time
folder, number = sys.argv[1], int(sys.argv[2])
text = {"encoding": "utf-8", "errors": "surrogateescape"}
with open(folder + "/left", **text) as file:
    left = file.read().splitlines()
if len(left) < number:
    sys.exit(f"no files left: {number} are asked for, and {len(left)} of the size were not written to yet")
with open(folder + "/left", "w", **text) as file:
    file.writelines(path + "\\n" for path in left[number:])

def write(path, content):
    began = time.perf_counter_ns()
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, content, 0)
    os.close(descriptor)
    return time.perf_counter_ns() - began

times = {"first": [], "second": [], "volume": []}
sizes = []
for path in left[:number]:
    with open(path, "rb") as file:
        whole = file.read()
    volume = folder + "/volume"
    with open(volume, "wb") as file:
        file.write(whole)
        file.flush()
        os.fsync(file.fileno())
    start = whole[:4096]
    times["first"].append(write(path, start))
    times["second"].append(write(path, start))
    times["volume"].append(write(volume, start))
    sizes.append(len(whole))
print(json.dumps({"format": 1, "sizes_bytes": sizes, **{name + "_ns": found for name, found in times.items()}}))
"""

_WRITES: Mapping[str, tuple[str, str]] = {
    "first": ("first_write", "the first write to a file of the image's layer"),
    "second": ("second_write", "a second write to the same file"),
    "volume": ("volume_write", "a write to a file of the same size in the scratch folder"),
}


_Column = Annotated[list[Annotated[int, Meta(gt=0, lt=10**15)]], Meta(min_length=1)]


class _Report(msgspec.Struct, frozen=True):
    """What the program prints: a size and three times of each file."""

    format: Literal[1]
    sizes_bytes: _Column
    first_ns: _Column
    second_ns: _Column
    volume_ns: _Column


def _declare(name: str, what: str) -> tuple[Metric, ...]:
    return (
        time_of(f"{name}.latency.mean", f"Mean time of {what}: open, 4 KiB, close.", f"Time of {what}, mean"),
        time_of(f"{name}.latency.p50", f"Median time of {what}: open, 4 KiB, close.", f"Time of {what}, median"),
    )


class FirstWrite(Workload):
    """The files are read before they are written to: what is timed is the copying and not the disk below.

    On bare metal the image is the lower layer of an overlay too. A layer that is no overlay shows a ratio of 1.
    """

    name = "first-write"
    summary = "storage: the first write to files of the image, against the second and one to the scratch folder"
    title = "First write to the image's files"
    parameters = (Parameter("files", "Files"), Parameter("size", "File size"))
    packages = ("python3",)
    licence = "PSF-2.0"
    category = Category.STORAGE
    metrics = (
        *(metric for write in _WRITES.values() for metric in _declare(*write)),
        Metric(
            "first_write.ratio",
            Unit.RATIO,
            Direction.LOWER,
            "Median time of the first write divided by that of the second, which finds the file in the upper layer.",
            "First write, compared with the second",
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """Each iteration takes ``files`` files of ``size`` up to twice that, none of them twice in an instance."""

        files: Annotated[int, Meta(ge=5, le=100_000)] = 32
        size: Size = Size("16KiB")

        def __post_init__(self) -> None:
            require_size("size", self.size, 4096, 64 * 2**20)

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        del envelope
        choose = ("python3", "-c", _CHOOSE, _FOLDER, str(int(params.size)))
        measure = ("python3", "-c", _MEASURE, _FOLDER, str(params.files))
        timeout = START_MARGIN_S + _SLOWEST * params.files * _NOMINAL_FILE_S
        return Commands(
            Command(measure, timeout_s=timeout),
            setup=(Command(choose, timeout_s=2 * START_MARGIN_S),),
            teardown=(Command(("rm", "-rf", _FOLDER)),),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        times = _read_times(completed)
        medians = {name: statistics.median(found) for name, found in times.items()}
        measurements = []
        for name, (metric, _) in _WRITES.items():
            mean = sum(times[name]) / len(times[name])
            measurements += [
                Measurement(f"{metric}.latency.mean", mean / 1e9),
                Measurement(f"{metric}.latency.p50", medians[name] / 1e9),
            ]
        return [*measurements, Measurement("first_write.ratio", medians["first"] / medians["second"])]

    def histograms(self, completed: Completed) -> list[Histogram]:
        found = []
        for name, times in _read_times(completed).items():
            counts = {time: times.count(time) for time in sorted(set(times))}
            bounds = tuple(time / 1e9 for time in counts)
            found.append(Histogram(f"{_WRITES[name][0]}.latency", Unit.SECOND, bounds, tuple(counts.values())))
        return found

    def diagnose(self, completed: Completed) -> Diagnosis | None:
        if not completed.stderr.startswith(b"no files left: "):
            return None
        return Diagnosis(
            "the image has too few files of this size, each of which can be written to for the first time once",
            "state fewer files, fewer iterations, or another size",
        )

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """About 10 ms a file, most of it to sync its copy."""
        return params.files * _NOMINAL_FILE_S + 0.2


def _read_times(completed: Completed) -> Mapping[str, Sequence[int]]:
    """The times of each kind of write in nanoseconds, as many of each. Raises ParseError."""
    text = read_output(_TOOL, completed)
    if not text.endswith("}\n"):
        refuse(_TOOL, "it is not a complete report", text)
    report = read_json(_TOOL, text, _Report)
    columns = report.first_ns, report.second_ns, report.volume_ns
    if any(len(column) != len(report.sizes_bytes) for column in columns):
        refuse(_TOOL, "it does not have as many times of each kind as files", text)
    return dict(zip(_WRITES, columns, strict=True))
