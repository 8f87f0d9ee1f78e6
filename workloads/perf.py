"""``perf bench`` of Linux 6.1: the scheduler, the cheapest system call, and copying memory.

Most run a fixed number of loops, so how long they take is what they measure. They need no hardware counter and no
privilege, and Debian's ``perf`` is one binary that runs on any kernel.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from tare.bench.errors import WorkloadError
from tare.bench.interfaces import Workload
from tare.bench.model import Command, Commands, Completed, Envelope, Measurement
from tare.bench.traits import Category, Parameter
from tare.bench.units import Size
from tare.workloads.metrics import bandwidth_of, rate_of, time_of
from tare.workloads.output import positive, read_output, refuse
from tare.workloads.parameters import START_MARGIN_S, require_memory, require_size

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
_MESSAGING = re.compile(
    r"\A# Running 'sched/messaging' benchmark:\n# 20 sender and receiver (?:processes|threads) per group\n"
    r"# \d{1,4} groups == \d{1,6} (?:processes|threads) run\n\n"
    r" +Total time: (?P<total>\d{1,9}\.\d{3}) \[sec\]\n\Z",
    re.ASCII,
)
_MEMORY = re.compile(
    r"\A# Running 'mem/(?P<operation>memcpy|memset)' benchmark:\n# function 'default' \([^\n]*\)\n"
    r"# Copying \d+B bytes \.\.\.\n\n +(?P<rate>\d{1,9}\.\d{6}) (?P<prefix>[KMGT]?)B/sec\n\Z",
    re.ASCII,
)
_PREFIXES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
"""perf's, which are powers of 1024."""
_TASKS_OF_A_GROUP = 40
_SLOWEST = 100
"""How many times slower than a current host something may be before the command is given up: emulated guests."""

Loops = Annotated[int, Meta(ge=100, le=1_000_000_000, description="how many operations one measurement makes")]


class _Bench(Workload):
    """What all have in common."""

    packages = ("linux-perf",)
    licence = "GPL-2.0-only"
    category = Category.KERNEL

    @classmethod
    def timeout_s(cls, params: Any, times: float = 1.0) -> float:
        """How long its command may take, ``times`` as long as others."""
        return START_MARGIN_S + _SLOWEST * times * cls.duration_s(params)


class _Loop(_Bench):
    """A number of operations, ``params.loops``, in a ``form`` that has their time and their rate."""

    form: ClassVar[re.Pattern[str]]
    prefix: ClassVar[str]
    nominal_operation_s: ClassVar[float]

    def parse(self, completed: Completed) -> list[Measurement]:
        """Both figures as perf prints them: six decimals of a microsecond, whole operations."""
        match, text = _match(completed, self.form)
        time_s = positive(_TOOL, "the time of an operation", match["microseconds"], text, exponent=-6)
        rate = positive(_TOOL, "the rate", match["rate"], text)
        # perf derives both from one interval and cuts the rate to a whole number.
        if not rate <= 1 / time_s * (1 + 1e-4) or not 1 / time_s * (1 - 1e-4) < rate + 1:
            refuse(_TOOL, f"{match['rate']} ops/sec and {match['microseconds']} usecs/op exclude each other", text)
        return [
            Measurement(f"{self.prefix}.operations_per_second", rate),
            Measurement(f"{self.prefix}.time_per_operation", time_s),
        ]

    @classmethod
    def duration_s(cls, params: Any) -> float:
        return float(params.loops * cls.nominal_operation_s)


class SchedPipe(_Loop):
    """``perf bench sched pipe``: two tasks hand one token to and fro over two pipes.

    On one CPU each operation is two context switches; on several the wake-ups cross CPUs, which costs
    inter-processor interrupts, which are expensive in a guest.
    """

    name = "perf-sched-pipe"
    summary = "context switches: two tasks pass a token back and forth over pipes"
    title = "Context switches (perf)"
    parameters = (Parameter("loops", "Round trips"), Parameter("threaded", "Threads"))
    metrics = (
        rate_of(
            "pipe.operations_per_second",
            "Round trips per second of a token between two tasks.",
            "Context-switch round trips per second",
        ),
        time_of(
            "pipe.time_per_operation",
            "Mean time of a round trip: two writes, two reads and the wake-ups between them.",
            "Time of a context-switch round trip",
        ),
    )
    form = _PIPE
    prefix = "pipe"
    nominal_operation_s = 10e-6

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``threaded`` makes the two tasks threads of one process, which spares the switch of address space."""

        loops: Loops = 100_000
        threaded: bool = False

    def commands(self, params: Params, envelope: Envelope) -> Commands:  # noqa: ARG002 - two tasks on any envelope
        """Two tasks, wherever the scheduler puts them within the envelope."""
        threads = ("--threaded",) if params.threaded else ()
        argv = ("perf", "bench", "sched", "pipe", "--loop", str(params.loops), *threads)
        return Commands(Command(argv, timeout_s=self.timeout_s(params)))


class Syscall(_Loop):
    """``perf bench syscall basic``: getppid() in a loop, little more than entering and leaving the kernel."""

    name = "perf-syscall"
    summary = "system calls: getppid() in a loop, on one CPU"
    title = "System calls (perf)"
    parameters = (Parameter("loops", "Calls"),)
    metrics = (
        rate_of(
            "syscall.operations_per_second", "getppid() calls per second of one thread.", "System calls per second"
        ),
        time_of(
            "syscall.time_per_operation",
            "Mean time of a getppid() call, the loop around it included.",
            "Time of a system call",
        ),
    )
    form = _SYSCALL
    prefix = "syscall"
    nominal_operation_s = 0.2e-6

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``loops`` is the number of calls."""

        loops: Loops = 5_000_000

    def commands(self, params: Params, envelope: Envelope) -> Commands:  # noqa: ARG002 - one thread on any envelope
        argv = ("perf", "bench", "syscall", "basic", "--loop", str(params.loops))
        return Commands(Command(argv, timeout_s=self.timeout_s(params)))


class SchedMessaging(_Bench):
    """``perf bench sched messaging`` (hackbench): in each group, 20 senders write to all of 20 receivers.

    Many more tasks than CPUs: what is measured is how the scheduler copes, and what a wake-up costs.
    """

    name = "perf-sched-messaging"
    summary = "scheduling: groups of 20 senders and 20 receivers that pass messages"
    title = "Message passing (perf)"
    parameters = (
        Parameter("groups", "Groups of 40 tasks"),
        Parameter("loops", "Messages"),
        Parameter("threaded", "Threads"),
        Parameter("pipe", "Pipes"),
    )
    metrics = (
        time_of(
            "messaging.time",
            "Time until every task has sent or received all of its 100-byte messages.",
            "Time to pass all messages",
        ),
    )
    nominal_message_s: ClassVar[float] = 1e-6

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``pipe`` replaces socket pairs. ``threaded`` makes the tasks threads of one process."""

        groups: Annotated[int, Meta(ge=1, le=1000, description="of 40 tasks each")] = 4
        loops: Annotated[int, Meta(ge=10, le=10_000_000, description="messages from each sender to each receiver")] = (
            500
        )
        threaded: bool = False
        pipe: bool = False

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """Raises WorkloadError if there would be more tasks than ``envelope`` allows."""
        tasks = params.groups * _TASKS_OF_A_GROUP
        if tasks + 8 > envelope.pids_max:
            raise WorkloadError(
                f"perf-sched-messaging starts {tasks} tasks (groups = {params.groups}), and the instance may have "
                f"{envelope.pids_max}",
                remedy="state fewer groups, or more pids in the envelope",
            )
        options = ("-t",) * params.threaded + ("-p",) * params.pipe
        argv = ("perf", "bench", "sched", "messaging", "-g", str(params.groups), "-l", str(params.loops), *options)
        # An emulated guest starts tasks slowly, and spends most of its time between them.
        timeout_s = self.timeout_s(params, 4) + tasks * 0.5
        return Commands(Command(argv, timeout_s=timeout_s))

    def parse(self, completed: Completed) -> list[Measurement]:
        """The time as printed, to a thousandth of a second."""
        match, text = _match(completed, _MESSAGING)
        return [Measurement("messaging.time", positive(_TOOL, "the total time", match["total"], text))]

    @classmethod
    def duration_s(cls, params: Params) -> float:
        return params.groups * 400 * params.loops * cls.nominal_message_s


class Memory(_Bench):
    """``perf bench mem``: glibc's memcpy or memset over one buffer, again and again, on one CPU."""

    name = "perf-mem"
    summary = "memory: glibc's memcpy or memset over a large buffer, on one CPU"
    title = "Memory copies (perf)"
    parameters = (Parameter("operation", "Operation"), Parameter("size", "Buffer"), Parameter("loops", "Rounds"))
    category = Category.MEMORY
    metrics = (
        bandwidth_of(
            "memcpy.bandwidth",
            "Bytes copied per second; buffers that fit the caches measure the caches.",
            "Memory copied per second",
        ),
        bandwidth_of(
            "memset.bandwidth",
            "Bytes written per second; a buffer that fits the caches measures the caches.",
            "Memory written per second",
        ),
    )
    nominal_byte_s: ClassVar[float] = 0.15e-9

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``size`` is of a buffer, of which memcpy has two; ``loops`` is how often it is gone over."""

        operation: Literal["memcpy", "memset"] = "memcpy"
        size: Size = Size("64MiB")
        loops: Annotated[int, Meta(ge=1, le=1_000_000, description="how often the whole buffer is written")] = 100

        def __post_init__(self) -> None:
            require_size("size", self.size, 4096, 2**40)

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """Raises WorkloadError if the buffers do not fit the memory of ``envelope``."""
        buffers = params.size * (2 if params.operation == "memcpy" else 1)
        what = f"perf-mem (operation = {params.operation!r}, size = {params.size})"
        require_memory(envelope, buffers, what, "a smaller size", share=1 / 2)
        size = f"{int(params.size)}B"
        argv = ("perf", "bench", "mem", params.operation, "-f", "default", "-s", size, "-l", str(params.loops))
        return Commands(Command(argv, timeout_s=self.timeout_s(params)))

    def parse(self, completed: Completed) -> list[Measurement]:
        """The rate as printed; perf's MB and GB are powers of 1024."""
        match, text = _match(completed, _MEMORY)
        rate = positive(_TOOL, "the rate", match["rate"], text) * _PREFIXES[match["prefix"]]
        return [Measurement(f"{match['operation']}.bandwidth", rate)]

    @classmethod
    def duration_s(cls, params: Params) -> float:
        return params.size * params.loops * cls.nominal_byte_s


def _match(completed: Completed, form: re.Pattern[str]) -> tuple[re.Match[str], str]:
    """The whole report in its form, and its text. Raises ParseError."""
    text = read_output(_TOOL, completed)
    match = form.match(text)
    if match is None:
        refuse(_TOOL, "it is not a complete report", text)
    return match, text
