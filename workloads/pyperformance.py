"""Benchmarks of pyperformance 1.14, each run by itself through pyperf in the image.

``pyperformance run`` makes a virtual environment for each benchmark and fetches packages; those here need nothing but
Python, so their scripts are run as they lie in the package.
"""

import statistics
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from tare.bench.interfaces import Workload
from tare.bench.model import SCRATCH, Command, Commands, Completed, Envelope, Histogram, Measurement
from tare.bench.traits import Category, Parameter
from tare.workloads.metrics import time_of
from tare.workloads.output import read_output, refuse
from tare.workloads.parameters import START_MARGIN_S
from tare.workloads.pyperf_script import PYPERF, histogram_of, read_suite

_TOOL = "pyperformance"
_FOLDER = f"{SCRATCH}/tare-pyperformance"
# pyperf adds to a result file that is there.
_RUN = """
rm -f result.json && script=$1 && shift &&
package=$(python3 -c 'import pyperformance; print(*pyperformance.__path__)') &&
python3 "$package/data-files/benchmarks/bm_$script/run_benchmark.py" --output result.json "$@" >&2 && cat result.json
"""
_SLOWEST = 100


class Pyperformance(Workload):
    """An interpreter: many small objects, branches and look-ups; ``python_startup`` starts processes."""

    name = "pyperformance"
    summary = "Python: one benchmark of pyperformance, in processes one after the other"
    title = "Python (pyperformance)"
    parameters = (
        Parameter("benchmark", "Benchmark"),
        Parameter("processes", "Processes"),
        Parameter("values", "Values"),
    )
    packages = ("python3", PYPERF, "pypi:pyperformance==1.14.0")
    licence = "MIT"
    category = Category.CPU
    metrics = (
        time_of(
            "benchmark.time",
            "Mean time of one run of the benchmark, over all processes, without warm-ups.",
            "Python: time of {benchmark}",
        ),
    )
    nominal_value_s: ClassVar[float] = 0.15

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """pyperf calibrates in a process more, and each process warms up once before its ``values``."""

        benchmark: Literal[
            "chaos",
            "deltablue",
            "fannkuch",
            "float",
            "go",
            "hexiom",
            "json_dumps",
            "json_loads",
            "nbody",
            "nqueens",
            "python_startup",
            "raytrace",
            "regex_compile",
            "richards",
            "spectral_norm",
            "telco",
        ] = "richards"
        processes: Annotated[int, Meta(ge=1, le=1000, description="one after the other")] = 2
        values: Annotated[int, Meta(ge=1, le=1000, description="of each process, of 0.1 s at least")] = 3

    def commands(self, params: Params, envelope: Envelope) -> Commands:  # noqa: ARG002 - one process at a time
        options = ("--processes", str(params.processes), "--values", str(params.values), "--warmups", "1")
        run = ("sh", "-c", _RUN, "sh", params.benchmark, *options)
        # Each process starts Python and reads much of /proc and /sys, which an emulated guest takes a minute for.
        timeout_s = START_MARGIN_S + _SLOWEST * self.duration_s(params) + 90 * (params.processes + 1)
        return Commands(
            Command(run, cwd=_FOLDER, timeout_s=timeout_s),
            setup=(Command(("mkdir", "-p", _FOLDER)),),
            teardown=(Command(("rm", "-rf", _FOLDER)),),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        return [Measurement("benchmark.time", statistics.fmean(self._values(completed)))]

    def histograms(self, completed: Completed) -> list[Histogram]:
        return [histogram_of("benchmark.time", self._values(completed))]

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """Of each process 0.15 s a value, with a warm-up, and of one process more."""
        return (params.processes + 1) * (params.values + 1) * cls.nominal_value_s

    @staticmethod
    def _values(completed: Completed) -> tuple[float, ...]:
        """Seconds of each value. Raises ParseError."""
        text = read_output(_TOOL, completed)
        benchmarks = list(read_suite(_TOOL, text))
        if len(benchmarks) != 1:
            refuse(_TOOL, f"it has {len(benchmarks)} benchmarks instead of one", text)
        return benchmarks[0][1]
