"""``perf bench`` of Linux 6.1: the scheduler's pipe hand-over and the cheapest system call.

Both run a fixed number of loops, so how long they take is what they measure. They need no hardware counter and no
privilege, and Debian's ``perf`` is one binary that runs on any kernel.
"""

import re
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from bench.interfaces import Workload
from bench.model import Category, Command, Commands, Completed, Direction, Envelope, Measurement, Metric
from bench.units import Unit
from workloads.output import positive, read_output, refuse
from workloads.parameters import START_MARGIN_S

_TOOL = "perf bench"
_NUMBERS = (
    r" +Total time: (?P<total>\d{1,9}\.\d{3}) \[sec\]\n\n"
    r" +(?P<microseconds>\d{1,15}\.\d{6}) usecs/op\n"
    r" +(?P<rate>\d{1,15}) ops/sec\n\Z"
)
_PIPE = re.compile(
    r"\A# Running 'sched/pipe' benchmark:\n"
    r"# Executed (?P<loops>\d{1,12}) pipe operations between two (?:processes|threads)\n\n" + _NUMBERS,
    re.ASCII,
)
_SYSCALL = re.compile(
    r"\A# Running 'syscall/basic' benchmark:\n# Executed (?P<loops>\d{1,12}) getppid\(\) calls\n" + _NUMBERS,
    re.ASCII,
)
_SLOWEST = 100
"""How many times slower than a current host something may be before the command is given up: emulated guests."""

Loops = Annotated[int, Meta(ge=100, le=1_000_000_000, description="how many operations one measurement makes")]


class SchedPipe(Workload):
    """``perf bench sched pipe``: two tasks hand one token to and fro over two pipes.

    On one CPU each operation is two context switches; on several the wake-ups cross CPUs, which costs
    inter-processor interrupts that a guest pays dearly for.
    """

    name = "perf-sched-pipe"
    summary = "context switches: two tasks hand a token to and fro over pipes"
    packages = ("linux-perf",)
    licence = "GPL-2.0-only"
    category = Category.KERNEL
    metrics = (
        Metric(
            "pipe.operations_per_second",
            Unit.OPERATIONS_PER_SECOND,
            Direction.HIGHER,
            "Round trips of the token between the two tasks in a second.",
        ),
        Metric(
            "pipe.time_per_operation",
            Unit.SECOND,
            Direction.LOWER,
            "Mean time of one round trip: two writes, two reads and the wake-ups between them.",
        ),
    )
    nominal_operation_s: ClassVar[float] = 10e-6

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``threaded`` makes the two tasks threads of one process, which spares the switch of address space."""

        loops: Loops = 100_000
        threaded: bool = False

    def commands(self, params: Params, envelope: Envelope) -> Commands:  # noqa: ARG002 - two tasks on any envelope
        """Two tasks, wherever the scheduler puts them within the envelope."""
        threads = ("--threaded",) if params.threaded else ()
        argv = ("perf", "bench", "sched", "pipe", "--loop", str(params.loops), *threads)
        return Commands(Command(argv, timeout_s=_timeout_s(self.duration_s(params))))

    def parse(self, completed: Completed) -> list[Measurement]:
        """Both figures as perf prints them: six decimals of a microsecond, whole operations."""
        return _measurements(completed, _PIPE, "pipe")

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """From 10 µs a round trip."""
        return params.loops * cls.nominal_operation_s


class Syscall(Workload):
    """``perf bench syscall basic``: getppid() in a loop, the way into the kernel and back and next to nothing else."""

    name = "perf-syscall"
    summary = "system calls: getppid() in a loop, on one CPU"
    packages = ("linux-perf",)
    licence = "GPL-2.0-only"
    category = Category.KERNEL
    metrics = (
        Metric(
            "syscall.operations_per_second",
            Unit.OPERATIONS_PER_SECOND,
            Direction.HIGHER,
            "Calls of getppid() in a second by one thread.",
        ),
        Metric(
            "syscall.time_per_operation",
            Unit.SECOND,
            Direction.LOWER,
            "Mean time of one getppid(), the loop around it included.",
        ),
    )
    nominal_operation_s: ClassVar[float] = 0.2e-6

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``loops`` is the number of calls."""

        loops: Loops = 5_000_000

    def commands(self, params: Params, envelope: Envelope) -> Commands:  # noqa: ARG002 - one thread on any envelope
        """One thread, on one CPU of the envelope."""
        argv = ("perf", "bench", "syscall", "basic", "--loop", str(params.loops))
        return Commands(Command(argv, timeout_s=_timeout_s(self.duration_s(params))))

    def parse(self, completed: Completed) -> list[Measurement]:
        """Both figures as perf prints them: six decimals of a microsecond, whole operations."""
        return _measurements(completed, _SYSCALL, "syscall")

    @classmethod
    def duration_s(cls, params: Params) -> float:
        """From 0.2 µs a call."""
        return params.loops * cls.nominal_operation_s


def _timeout_s(nominal_s: float) -> float:
    return START_MARGIN_S + _SLOWEST * nominal_s


def _measurements(completed: Completed, form: re.Pattern[str], prefix: str) -> list[Measurement]:
    text = read_output(_TOOL, completed)
    match = form.match(text)
    if match is None:
        refuse(_TOOL, "it is no whole report", text)
    time_s = positive(_TOOL, "the time of an operation", match["microseconds"], text, exponent=-6)
    rate = positive(_TOOL, "the rate", match["rate"], text)
    # perf derives both from one interval and cuts the rate to a whole number.
    if not rate <= 1 / time_s * (1 + 1e-4) or not 1 / time_s * (1 - 1e-4) < rate + 1:
        refuse(_TOOL, f"{match['rate']} ops/sec and {match['microseconds']} usecs/op exclude each other", text)
    return [
        Measurement(f"{prefix}.operations_per_second", rate),
        Measurement(f"{prefix}.time_per_operation", time_s),
    ]
