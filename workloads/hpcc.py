"""HPC Challenge 1.5 as Debian builds it: Linpack (HPL), STREAM, RandomAccess, matrix product and Fourier transform.

``hpcc`` runs all of its tests, one after the other, and nothing makes it leave one out; so they are one workload with a
metric each. One process on one CPU: of several the differences are those of the message passing between them, which is
another question. How much memory the others work on follows from the order of Linpack's matrix.
"""

import math
import re
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from tare.bench.interfaces import Workload
from tare.bench.model import SCRATCH, Command, Commands, Completed, Envelope, Measurement
from tare.bench.traits import Category, Parameter
from tare.workloads.metrics import bandwidth_of, rate_of
from tare.workloads.output import LINES, one_match, positive, read_output, refuse
from tare.workloads.parameters import START_MARGIN_S, require_memory

_TOOL = "hpcc"
_FOLDER = f"{SCRATCH}/tare-hpcc"
_WRITE = 'mkdir -p "$1" && cat >"$1/hpccinf.txt"'
# It adds to a report that is there.
_RUN = "rm -f hpccoutf.txt && hpcc >&2 && cat hpccoutf.txt"
_ENVIRONMENT = {
    # Open MPI looks for networks and other processes else, of which there are none.
    "OMPI_MCA_btl": "self",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# The values of hpccinf.txt with what they are; hpcc reads the first word of each line, by the number of the line.
_INPUT = """HPLinpack benchmark input file
written by tare
HPL.out output file, not used
8 device out: the report of hpcc
1 problem size
{order} N
1 block size
128 NB
0 process mapping by rows
1 process grid
1 P
1 Q
16.0 threshold of the residual
1 panel factorisation
2 right-looking
1 recursive stopping criterion
4 NBMIN
1 number of panels in recursion
2 NDIV
1 recursive panel factorisation
1 Crout
1 broadcast
1 1-ring modified
1 look-ahead depth
1 DEPTH
2 mixed swapping
64 swapping threshold
0 L1 transposed
0 U transposed
1 equilibration
8 memory alignment in doubles
# hpcc does not read this line
0 additional problem sizes for PTRANS
0
0 additional block sizes for PTRANS
0
"""
_FIRST = re.compile(r"\A#{72}\nThis is the DARPA/DOE HPC Challenge Benchmark version 1\.5\.\d ", re.ASCII)
_LAST = re.compile(r"^Success=1\n(?:.*\n)*End of HPC Challenge tests\.\n[^\n]*\n\n#{72}\n*\Z", re.ASCII | re.MULTILINE)
_PASSED = re.compile(r"^ +1 tests completed and passed residual checks,$", LINES)
_HPL = re.compile(r"^WR\w+ +\d+ +\d+ +1 +1 +\d+\.\d\d +(\d\.\d{3})e([+-]\d\d)$", LINES)
_RANDOM_ACCESS = re.compile(
    r"^Begin of SingleRandomAccess section\.\n(?:(?!End of).*\n)*?"
    r"(\d{1,9}\.\d{9}) Billion\(10\^9\) Updates    per second \[GUP/s\]\n"
    r"Found \d+ errors in \d+ locations \(passed\)\.\n",
    LINES,
)
_KERNELS = ("Copy", "Scale", "Add", "Triad")
_SLOWEST = 200
"""How many times slower a guest with emulated floating-point operations may be."""


class Hpcc(Workload):
    """Dense linear algebra in the caches, and streams and single words from memory."""

    name = "hpcc"
    summary = "Linpack, STREAM, RandomAccess, DGEMM and FFT of HPC Challenge, one process"
    title = "Scientific computing (HPC Challenge)"
    parameters = (Parameter("order", "Order of the matrix"),)
    packages = ("hpcc", "libopenblas0-serial")
    licence = "BSD-3-Clause"
    category = Category.CPU
    metrics = (
        rate_of(
            "hpl.operations_per_second",
            "Floating-point operations per second of Linpack, which solves a system of linear equations.",
            "Linpack operations per second",
        ),
        *(
            bandwidth_of(
                f"stream.{kernel.lower()}.bandwidth",
                f"Bytes read and written per second by STREAM's {kernel}, in its best round.",
                f"Memory bandwidth (STREAM {kernel})",
            )
            for kernel in _KERNELS
        ),
        rate_of(
            "random_access.operations_per_second",
            "Updates of random 64-bit words of a table per second, by one process (GUP/s times 10^9).",
            "Random memory updates per second",
        ),
        rate_of(
            "dgemm.operations_per_second",
            "Floating-point operations per second of a product of two double-precision matrices.",
            "Matrix product operations per second",
        ),
        rate_of(
            "fft.operations_per_second",
            "Floating-point operations per second of a one-dimensional Fourier transform.",
            "Fourier transform operations per second",
        ),
    )
    nominal_element_s: ClassVar[float] = 1.2e-6

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """Linpack's matrix and STREAM's arrays have 8 × ``order``² bytes, RandomAccess's table half at most."""

        order: Annotated[int, Meta(ge=500, le=50_000, description="of Linpack's matrix")] = 2000

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """One process on one CPU. Raises WorkloadError if its matrix does not fit the memory of ``envelope``."""
        # The matrix with its border, and what MPI and OpenBLAS take for themselves.
        needed = 12 * params.order**2 + 96 * 2**20
        require_memory(envelope, needed, f"hpcc (order = {params.order})", "a smaller order")
        write = Command(("sh", "-c", _WRITE, "sh", _FOLDER), stdin=_INPUT.format(order=params.order).encode())
        timeout_s = START_MARGIN_S + _SLOWEST * self.duration_s(params)
        run = Command(("sh", "-c", _RUN), env=_ENVIRONMENT, cwd=_FOLDER, timeout_s=timeout_s)
        return Commands(run, setup=(write,), teardown=(Command(("rm", "-rf", _FOLDER)),))

    def parse(self, completed: Completed) -> list[Measurement]:
        """Each figure from the place with the most digits, checked against the other place."""
        text = read_output(_TOOL, completed)
        one_match(_TOOL, "the line with the version", _FIRST, text)
        one_match(_TOOL, "the summary of a success", _LAST, text)
        one_match(_TOOL, "a residual that passed", _PASSED, text)
        hpl = one_match(_TOOL, "Linpack's row", _HPL, text)
        # With five digits in the summary, and four in the row.
        flops = _summary(text, "HPL_Tflops", 12)
        row = positive(_TOOL, "Linpack's rate", hpl[1], text, exponent=int(hpl[2]) + 9)
        _check_same(text, "HPL_Tflops", row, flops)
        found = [Measurement("hpl.operations_per_second", flops)]
        for kernel in _KERNELS:
            value = _single(text, f"STREAM {kernel} GB/s")
            _check_same(text, f"SingleSTREAM_{kernel}", _summary(text, f"SingleSTREAM_{kernel}", 9), value)
            found.append(Measurement(f"stream.{kernel.lower()}.bandwidth", value))
        digits = one_match(_TOOL, "the result of SingleRandomAccess", _RANDOM_ACCESS, text)[1]
        updates = positive(_TOOL, "the rate of updates", digits, text, exponent=9)
        _check_same(text, "SingleRandomAccess_GUPs", _summary(text, "SingleRandomAccess_GUPs", 9), updates)
        found.append(Measurement("random_access.operations_per_second", updates))
        for test in ("DGEMM", "FFT"):
            value = _single(text, f"{test} Gflop/s")
            _check_same(text, f"Single{test}_Gflops", _summary(text, f"Single{test}_Gflops", 9), value)
            found.append(Measurement(f"{test.lower()}.operations_per_second", value))
        return found

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """From 1.2 µs an element of the matrix: most of it are the updates of RandomAccess."""
        return params.order**2 * cls.nominal_element_s


def _single(text: str, name: str) -> float:
    """The value of the line ``Single NAME``, printed in 10^9."""
    digits = one_match(_TOOL, f"Single {name}", re.compile(rf"^Single {name} (\d{{1,9}}\.\d{{6}})$", LINES), text)[1]
    return positive(_TOOL, name, digits, text, exponent=9)


def _summary(text: str, name: str, exponent: int) -> float:
    """The value of a line of the summary, which has six digits and perhaps an exponent."""
    form = re.compile(rf"^{name}=(\d{{1,12}}(?:\.\d{{1,12}})?)(?:e([+-]\d\d))?$", LINES)
    match = one_match(_TOOL, name, form, text)
    return positive(_TOOL, name, match[1], text, exponent=exponent + int(match[2] or 0))


def _check_same(text: str, name: str, rounded: float, value: float) -> None:
    if not math.isclose(rounded, value, rel_tol=6e-4):
        refuse(_TOOL, f"{name} is {rounded:g} in one place and {value:g} in the other", text)
