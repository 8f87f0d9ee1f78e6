"""cyclictest of rt-tests 2: how late threads wake up that asked for a time, with the histogram.

Before it looks at its own ``--policy``, cyclictest asks for real-time priority and ends where it is refused: in a
container without CAP_SYS_NICE, and in a cgroup v1 without ``cpu.rt_runtime_us``, bare metal's too. With the policy
``other`` nothing uses that priority, so the question is answered with yes and no effect, by a filter of its own around
cyclictest, on every backend alike.
"""

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tare.bench.errors import ParseError
from tare.bench.model import SCRATCH, Command, Commands, Completed, Diagnosis, Envelope, Histogram, Measurement
from tare.bench.traits import Category, Parameter
from tare.bench.units import Unit
from tare.workloads.metrics import time_of
from tare.workloads.output import excerpt, nearest_rank, read_json, read_output, refuse
from tare.workloads.parameters import TimedWorkload, WholeSeconds, timeout_of

_TOOL = "cyclictest"
_NAME = "wakeup.latency"
_FILE = f"{SCRATCH}/tare-cyclictest.json"
_HISTOGRAM_US = 100_000
# It prints its histogram to stdout too, a line for each microsecond.
_SCRIPT = 'file=$1; shift; rm -f "$file"; "$@" --json="$file" >/dev/null && cat "$file"'
# sched_setscheduler, by its number in x86_64 and aarch64, returns 0 and does nothing.
_WITHOUT_PRIORITY = """
import ctypes, os, platform, struct, sys
number = {"x86_64": 144, "aarch64": 119}[platform.machine()]
steps = (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000), (0x06, 0, 0, 0x7FFF0000)
code = b"".join(struct.pack("HBBI", *step) for step in steps)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
program = Program(len(steps), code)
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.addressof(program), 0, 0):
    sys.exit("the filter: " + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
"""


_Count = Annotated[int, Meta(ge=1, lt=2**31)]
_Microseconds = Annotated[int, Meta(ge=0, lt=2**31)]


class _Thread(msgspec.Struct, frozen=True):
    """A thread in the report: how many wake-ups, how late in microseconds, and how many by how late."""

    cycles: _Count
    min: _Microseconds
    max: _Microseconds
    avg: Decimal
    histogram: Annotated[dict[Annotated[str, Meta(pattern="^(0|[1-9][0-9]{0,8})$")], _Count], Meta(min_length=1)]


class _Report(msgspec.Struct, frozen=True):
    """The parts of a report that count; the names are cyclictest's."""

    file_version: Literal[1]
    version: Annotated[str, Meta(pattern=r"^2\.[0-9]+$")] = msgspec.field(name="rt_test_version:")
    return_code: Literal[0]
    num_threads: _Count
    thread: dict[str, _Thread]


class Cyclictest(TimedWorkload):
    """One thread a CPU sleeps until a time and sees how late it is. In whole microseconds, as cyclictest cuts them.

    With the policy ``other`` the kernel may wake an ordinary thread up to 50 µs late on purpose (its timer slack).
    """

    name = "cyclictest"
    summary = "scheduling: delay of timed wake-ups, by cyclictest"
    title = "Timed wake-ups (cyclictest)"
    parameters = (
        Parameter("runtime_s", "Run time (s)"),
        Parameter("interval_us", "Interval (µs)"),
        Parameter("policy", "Policy"),
        Parameter("priority", "Priority"),
    )
    packages = ("rt-tests", "python3")
    licence = "GPL-2.0-only"
    category = Category.KERNEL
    overhead_s = 0.2
    metrics = (
        time_of(
            f"{_NAME}.mean",
            "Mean delay between the requested and the actual wake-up of a thread.",
            "Wake-up delay, mean",
        ),
        time_of(f"{_NAME}.p50", "Median delay of a wake-up.", "Wake-up delay, median"),
        time_of(f"{_NAME}.p99", "99th percentile of the delay of a wake-up.", "Wake-up delay, 99th percentile"),
        time_of(
            f"{_NAME}.max",
            "Longest delay of a wake-up in any thread; a single event decides it.",
            "Wake-up delay, longest",
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``priority`` is for the real-time policies ``fifo`` and ``rr``, which an instance may be refused."""

        runtime_s: WholeSeconds = 1
        interval_us: Annotated[int, Meta(ge=100, le=1_000_000, description="microseconds between wake-ups")] = 1000
        policy: Literal["other", "fifo", "rr"] = "other"
        priority: Annotated[int, Meta(ge=0, le=99, description="of 1 to 99; 0 with policy = other")] = 0

        def __post_init__(self) -> None:
            if self.policy == "other" and self.priority:
                raise ValueError("priority: the policy 'other' has none; state policy = 'fifo' or 'rr'")
            if self.policy != "other" and not self.priority:
                raise ValueError(f"priority: the policy {self.policy!r} needs one from 1 to 99")

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """No tuning of the host's power management, which bare metal could do and a guest could not."""
        ordinary = params.policy == "other"
        program = (
            *(("python3", "-c", _WITHOUT_PRIORITY) if ordinary else ()),
            "cyclictest",
            "--default-system",
            f"--policy={params.policy}",
            *(() if ordinary else (f"--priority={params.priority}",)),
            f"--threads={len(envelope.cpus)}",
            f"--interval={params.interval_us}",
            f"--duration={params.runtime_s}",
            f"--histogram={_HISTOGRAM_US}",
            "--quiet",
        )
        measured = ("sh", "-c", _SCRIPT, "sh", _FILE, *program)
        return Commands(
            Command(measured, timeout_s=timeout_of(params.runtime_s)),
            teardown=(Command(("rm", "-f", _FILE)),),
        )

    def parse(self, completed: Completed) -> list[Measurement]:
        """Over all threads. Raises ParseError if a percentile lies beyond the histogram, 0.1 s late."""
        threads, text = _read_threads(completed)
        counts = _merge(threads)
        total = sum(thread.cycles for thread in threads)
        mean = sum((thread.avg * thread.cycles for thread in threads), Decimal()) / total
        return [
            Measurement(f"{_NAME}.mean", float(mean.scaleb(-6))),
            Measurement(f"{_NAME}.p50", _percentile(counts, total, 50, text) / 1e6),
            Measurement(f"{_NAME}.p99", _percentile(counts, total, 99, text) / 1e6),
            Measurement(f"{_NAME}.max", max(thread.max for thread in threads) / 1e6),
        ]

    def histograms(self, completed: Completed) -> list[Histogram]:
        """All threads together; delays beyond 0.1 s share one bucket up to the longest."""
        threads, _ = _read_threads(completed)
        counts = _merge(threads)
        beyond = sum(thread.cycles for thread in threads) - sum(counts.values())
        if beyond:
            counts[max(thread.max for thread in threads)] = beyond
        bounds = tuple(late / 1e6 for late in counts)
        return [Histogram(_NAME, Unit.SECOND, bounds, tuple(counts.values()))]

    def diagnose(self, completed: Completed) -> Diagnosis | None:
        if b"Unable to change scheduling policy" not in completed.stderr:
            return None
        return Diagnosis(
            "real-time priority is refused in this instance: it lacks the capability CAP_SYS_NICE, or its cgroup "
            "has no cpu.rt_runtime_us",
            "state policy = 'other'; a guest has real-time priorities of its own",
        )


def _read_threads(completed: Completed) -> tuple[list[_Thread], str]:
    """What cyclictest says of each thread, and the whole text. Raises ParseError if it contradicts itself."""
    text = read_output(_TOOL, completed)
    report = read_json(_TOOL, text, _Report)
    if len(report.thread) != report.num_threads:
        refuse(_TOOL, f"it counts {report.num_threads} threads and reports {len(report.thread)}", text)
    for name, thread in report.thread.items():
        _check_thread(name, thread, text)
    return list(report.thread.values()), text


def _check_thread(name: str, thread: _Thread, text: str) -> None:
    """Raises ParseError unless the figures of a thread agree with its histogram."""
    late = [int(key) for key in thread.histogram]
    counted = sum(thread.histogram.values())
    if late != sorted(late) or late[0] != thread.min or late[-1] >= _HISTOGRAM_US or counted > thread.cycles:
        refuse(_TOOL, f"the histogram of thread {name} is not one of its {thread.cycles} cycles", text)
    if not (thread.min <= thread.avg <= thread.max and thread.avg > 0):
        refuse(_TOOL, f"thread {name} has avg {thread.avg} between min {thread.min} and max {thread.max}", text)
    if counted < thread.cycles:
        if thread.max < _HISTOGRAM_US:
            refuse(_TOOL, f"thread {name} has cycles beyond its histogram, and its max is {thread.max} µs", text)
        return
    again = Decimal(sum(int(key) * count for key, count in thread.histogram.items())) / counted
    if abs(again - thread.avg) > Decimal("0.01") or late[-1] != thread.max:
        refuse(_TOOL, f"the histogram of thread {name} gives avg {again:.2f} and max {late[-1]}", text)


def _merge(threads: list[_Thread]) -> dict[int, int]:
    """Microseconds late, rising: how many wake-ups of all threads."""
    counts: Counter[int] = Counter()
    for thread in threads:
        for late, count in thread.histogram.items():
            counts[int(late)] += count
    return dict(sorted(counts.items()))


def _percentile(counts: Mapping[int, int], total: int, percent: int, text: str) -> int:
    """The nearest rank, in microseconds. Raises ParseError where the histogram does not hold it, or it is 0."""
    late = nearest_rank(counts.items(), total, 10 * percent)
    if late is None:
        raise ParseError(
            f"more than {100 - percent} % of the wake-ups were late by more than {_HISTOGRAM_US / 1e6:g} s, "
            "where the histogram ends",
            remedy="give the envelope CPUs that nobody else uses",
            evidence=excerpt(text),
        )
    if late == 0:
        raise ParseError(
            f"cyclictest counts in microseconds, and {percent} % of the wake-ups were late by less than one",
            remedy="use policy = 'other'",
            evidence=excerpt(text),
        )
    return late
