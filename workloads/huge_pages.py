"""Pages of memory as the instance sees them: how large they are, and how long it takes until they are there.

A program of the image's Python maps anonymous memory, touches every page of it once, and reads from the kernel in which
sizes it was given. What /proc/meminfo and /sys/kernel/mm say to the instance is printed before, and kept with the
output.
"""

import re
from typing import Literal

import msgspec

from tare.bench.interfaces import Workload
from tare.bench.model import Command, Commands, Completed, Direction, Envelope, Measurement, Metric
from tare.bench.traits import Category, Parameter
from tare.bench.units import Size, Unit
from tare.workloads.metrics import bandwidth_of
from tare.workloads.output import one_match, positive, read_output, refuse
from tare.workloads.parameters import START_MARGIN_S, require_memory, require_size

_TOOL = "the program that touches pages"
_PROGRAM = r"""
import glob, mmap, os, re, sys, time
size, advice = int(sys.argv[1]), sys.argv[2]
for path in ("/proc/meminfo", *sorted(glob.glob("/sys/kernel/mm/transparent_hugepage/*")),
             *sorted(glob.glob("/sys/kernel/mm/hugepages/*/nr_hugepages"))):
    if os.path.isfile(path):
        with open(path) as file:
            print(f"{path}:", file.read().strip(), sep="\n")
page = mmap.PAGESIZE
region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
if advice != "none":
    region.madvise({"huge": mmap.MADV_HUGEPAGE, "small": mmap.MADV_NOHUGEPAGE}[advice])
touch = b"\1" * (size // page)
began = time.monotonic_ns()
region[::page] = touch
took = time.monotonic_ns() - began
with open("/proc/self/smaps_rollup") as file:
    rollup = file.read()
huge = int(re.search(r"^AnonHugePages: +(\d+) kB$", rollup, re.M)[1]) * 1024
huge_page = re.search(r"^Hugepagesize: +(\d+) kB$", open("/proc/meminfo").read(), re.M)
print("end of what the kernel says")
print(f"region: {size} B")
print(f"page: {page} B")
print(f"huge page: {int(huge_page[1]) * 1024 if huge_page else 0} B")
print(f"in huge pages: {min(huge, size)} B")
print(f"touched in: {took} ns")
"""
_TOTAL = re.compile(r"^/proc/meminfo:\nMemTotal: +(\d{1,15}) kB$", re.MULTILINE | re.ASCII)
_RESULT = re.compile(
    r"^end of what the kernel says\nregion: (?P<region>\d{1,18}) B\npage: (?P<page>\d{1,9}) B\n"
    r"huge page: (?P<huge_page>\d{1,12}) B\nin huge pages: (?P<huge>\d{1,18}) B\n"
    r"touched in: (?P<took>\d{1,18}) ns\n+\Z",
    re.MULTILINE | re.ASCII,
)
_SLOWEST = 100


class HugePages(Workload):
    """A guest needs huge pages twice, in its own kernel and in the host's, and may have them in one of them only.

    What is seen here is the instance's own side: a container's is the host's.
    """

    name = "huge-pages"
    summary = "memory pages: size of the pages an instance gets, and time to touch new memory"
    title = "Memory pages"
    parameters = (Parameter("size", "Memory"), Parameter("advice", "Pages asked for"))
    packages = ("python3",)
    licence = "PSF-2.0"
    category = Category.MEMORY
    metrics = (
        bandwidth_of(
            "touch.bandwidth",
            "Bytes of new memory touched per second by one thread: page faults and zeroing.",
            "New memory touched per second",
        ),
        Metric(
            "page.size",
            Unit.BYTE,
            Direction.HIGHER,
            "Mean size of the pages of the memory, as the instance's kernel reports them.",
            "Mean page size",
        ),
        Metric(
            "memory.total",
            Unit.BYTE,
            Direction.HIGHER,
            "MemTotal of /proc/meminfo as the instance sees it.",
            "Memory the instance sees",
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``advice`` is what the program asks for; with ``none`` it is the instance's own setting that counts."""

        size: Size = Size("128MiB")
        advice: Literal["huge", "none", "small"] = "huge"

        def __post_init__(self) -> None:
            require_size("size", self.size, 2**22, 2**40)
            if self.size % 2**16:
                raise ValueError(f"size: {self.size} is not a multiple of 64KiB")

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """One thread. Raises WorkloadError if the memory is not there."""
        size = int(params.size)
        require_memory(envelope, size, f"huge-pages (size = {params.size})", "a smaller size", share=1 / 2)
        argv = ("python3", "-I", "-S", "-c", _PROGRAM, str(size), params.advice)
        return Commands(Command(argv, timeout_s=START_MARGIN_S + _SLOWEST * self.duration_s(params)))

    def parse(self, completed: Completed) -> list[Measurement]:
        text = read_output(_TOOL, completed)
        total = one_match(_TOOL, "MemTotal", _TOTAL, text)[1]
        result = one_match(_TOOL, "the result", _RESULT, text)
        region = positive(_TOOL, "the size of the memory", result["region"], text)
        took_ns = positive(_TOOL, "the time", result["took"], text)
        page, huge_page, huge = (int(result[name]) for name in ("page", "huge_page", "huge"))
        if page == 0 or huge > region or (huge not in (0, region) and (not huge_page or huge % huge_page)):
            refuse(_TOOL, "the sizes exclude each other", text)
        pages = (region - huge) / page + (huge / huge_page if huge and huge_page else 0)
        return [
            Measurement("touch.bandwidth", region / took_ns * 1e9),
            Measurement("page.size", region / pages),
            Measurement("memory.total", positive(_TOOL, "MemTotal", total, text) * 1024),
        ]

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """From 1 ns a byte in small pages, with the start of Python."""
        return 0.5 + params.size * 1e-9
