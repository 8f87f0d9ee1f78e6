"""sysbench 1.0: prime numbers for the CPU, block transfers for the memory.

sysbench prints latencies with two decimals of a millisecond, too coarse for events of 0.3 ms. So the mean is
taken from the printed sum and count, and the 95th percentile from the histogram, which has three decimals
(its buckets are 1.8 % apart); both are checked against the rounded values that sysbench prints itself.
"""

import itertools
import math
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tare.bench.model import Command, Commands, Completed, Envelope, Measurement, Metric
from tare.bench.traits import Category, Parameter
from tare.bench.units import Size
from tare.workloads.metrics import bandwidth_of, percentiles_of, rate_of, time_of
from tare.workloads.output import LINES, one_match, one_number, positive, read_output, refuse
from tare.workloads.parameters import (
    TimedWorkload,
    WholeSeconds,
    require_memory,
    require_size,
    timeout_of,
)

SYSBENCH = "sysbench"
_VERSION = re.compile(r"\Asysbench 1\.\d+\.\d+\S* \([^\n]*\)\n", re.ASCII)
_END = re.compile(r"^ +execution time \(avg/stddev\): +\d+\.\d{4}/\d+\.\d\d\n*\Z", LINES)
_THREADS = re.compile(r"^Number of threads: (\d+)$", LINES)
EVENTS = re.compile(r"^ +total number of events: +(\d{1,15})$", LINES)
_LATENCIES = {
    name: re.compile(rf"^ +{name}: +(\d+\.\d\d)$", LINES) for name in ("min", "avg", "max", "95th percentile")
}
_SUM = re.compile(r"^ +sum: +(\d+\.\d\d)$", LINES)
_RATE = re.compile(r"^ +events per second: +(\d+\.\d\d)$", LINES)
_BUCKETS = re.compile(
    r"^Latency histogram \(values are in milliseconds\)\n +value  -+ distribution -+ count\n"
    r"((?: +\d+\.\d{3} \|\** +\d{1,15}\n)+) \n",
    LINES,
)
_BUCKET = re.compile(r"^ +(\d+\.\d{3}) \|\** +(\d{1,15})$", LINES)
_OPERATIONS = re.compile(r"^Total operations: (\d+) \( *(\d+\.\d\d) per second\)$", LINES)
_TRANSFERRED = re.compile(r"^(\d+\.\d\d) MiB transferred \((\d+\.\d\d) MiB/sec\)$", LINES)

_TO_EDGE = math.exp(math.log(1e8) / 1023 / 2)
"""A bucket is printed by its middle; the 1024 of them are evenly spaced, by logarithm, from 1 µs to 100 s."""
_HALF_PRINTED_S = 0.0056e-3
"""How far a latency that sysbench prints with two decimals of a millisecond may be from the true one.

Half a hundredth, and half a thousandth for the bucket it is compared with, which was rounded too.
"""


def declare_latencies(name: str, event: str, title: str) -> tuple[Metric, ...]:
    """The metrics of ``event``s that sysbench prints latencies of; people call them ``title``."""
    return (
        time_of(f"{name}.mean", f"Mean time of {event}.", f"{title}, mean"),
        *percentiles_of(name, ("p95",), f"of {event}", "buckets of sysbench's histogram, 1.8 % wide", title),
        time_of(
            f"{name}.max",
            f"Longest time of {event}, rounded to 0.01 ms; a single event decides it.",
            f"{title}, longest",
        ),
    )


class SysbenchCpu(TimedWorkload):
    """``sysbench cpu``: every event tests all numbers up to a bound for being prime, one event at a time a thread."""

    name = "sysbench-cpu"
    summary = "integer arithmetic: prime numbers up to a bound, one thread per CPU"
    title = "CPU (sysbench)"
    parameters = (Parameter("runtime_s", "Run time (s)"), Parameter("max_prime", "Largest number"))
    packages = ("sysbench",)
    licence = "GPL-2.0-or-later"
    category = Category.CPU
    metrics = (
        rate_of(
            "cpu.events_per_second",
            "Searches for all primes up to a bound finished per second by all threads.",
            "Prime searches per second",
        ),
        *declare_latencies("cpu.latency", "a search", "Time of a prime search"),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``max_prime`` bounds the numbers tested: 10,000 makes events of about 0.3 ms on a current CPU."""

        runtime_s: WholeSeconds = 1
        max_prime: Annotated[int, Meta(ge=1000, le=10_000_000)] = 10_000

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        options = (f"--cpu-max-prime={params.max_prime}", "--histogram=on")
        return Commands(_command("cpu", options, params.runtime_s, envelope))

    def parse(self, completed: Completed) -> list[Measurement]:
        """Counts, sums and rounded values have to agree with one another."""
        text = read_output(SYSBENCH, completed)
        check_frame(text)
        rate = Measurement("cpu.events_per_second", one_number(SYSBENCH, "the rate of events", _RATE, text))
        return [rate, *read_latencies(text, "cpu.latency")]


class SysbenchMemory(TimedWorkload):
    """``sysbench memory``: reads or writes one buffer block by block.

    With blocks that fit the caches this measures the caches: choose blocks well beyond the last level to
    measure memory. Small blocks measure sysbench's two clock readings an event instead.
    """

    name = "sysbench-memory"
    summary = "memory transfers: one buffer read or written block by block, one thread per CPU"
    title = "Memory (sysbench)"
    parameters = (
        Parameter("runtime_s", "Run time (s)"),
        Parameter("block_size", "Block size"),
        Parameter("operation", "Operation", {"read": "read", "write": "written"}),
        Parameter("access", "Access", {"seq": "sequential", "rnd": "random"}),
        Parameter("scope", "Scope"),
    )
    packages = ("sysbench",)
    licence = "GPL-2.0-or-later"
    category = Category.MEMORY
    metrics = (
        bandwidth_of(
            "memory.bandwidth",
            "Bytes read or written per second by all threads; blocks that fit the caches measure the caches.",
            "Memory {operation} per second",
        ),
        rate_of(
            "memory.operations_per_second",
            "Blocks read or written per second by all threads.",
            "Blocks of memory {operation} per second",
        ),
    )

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """``scope`` global is one buffer of a block for all threads, local one for each."""

        runtime_s: WholeSeconds = 1
        block_size: Size = Size("1MiB")
        operation: Literal["read", "write"] = "write"
        access: Literal["seq", "rnd"] = "seq"
        scope: Literal["global", "local"] = "global"

        def __post_init__(self) -> None:
            require_size("block_size", self.block_size, 1024, 64 * 2**30)
            if self.block_size & (self.block_size - 1):
                raise ValueError(f"block_size: sysbench takes powers of two only, not {self.block_size}")

    def commands(self, params: Params, envelope: Envelope) -> Commands:
        """One thread on each CPU. Raises WorkloadError if the buffers do not fit the memory of ``envelope``."""
        block = int(params.block_size)
        buffers = block * (len(envelope.cpus) if params.scope == "local" else 1)
        what = f"sysbench-memory (block_size = {params.block_size}, scope = {params.scope!r})"
        require_memory(envelope, buffers, what, "a smaller block_size", share=1 / 2)
        options = (
            f"--memory-block-size={block}",
            # Never reached: the run ends by time, so that fast and slow backends run equally long.
            "--memory-total-size=1048576T",
            f"--memory-oper={params.operation}",
            f"--memory-access-mode={params.access}",
            f"--memory-scope={params.scope}",
        )
        return Commands(_command("memory", options, params.runtime_s, envelope))

    def parse(self, completed: Completed) -> list[Measurement]:
        """Bandwidth in bytes a second of the printed MiB a second (2^20 bytes)."""
        text = read_output(SYSBENCH, completed)
        check_frame(text)
        operations = one_match(SYSBENCH, "the number of operations", _OPERATIONS, text)
        transferred = one_match(SYSBENCH, "the amount transferred", _TRANSFERRED, text)
        if operations[1] != one_match(SYSBENCH, "the number of events", EVENTS, text)[1]:
            refuse(SYSBENCH, "operations and events differ in number", text)
        return [
            Measurement("memory.bandwidth", positive(SYSBENCH, "the bandwidth", transferred[2], text) * 2**20),
            Measurement("memory.operations_per_second", positive(SYSBENCH, "the rate", operations[2], text)),
        ]


def _command(test: str, options: tuple[str, ...], runtime_s: int, envelope: Envelope) -> Command:
    argv = ("sysbench", test, f"--threads={len(envelope.cpus)}", f"--time={runtime_s}", *options, "run")
    return Command(argv, timeout_s=timeout_of(runtime_s))


def check_frame(text: str) -> None:
    """The first and the last line: what lies between is a whole report of a version that is known."""
    one_match(SYSBENCH, "the line with the version", _VERSION, text)
    one_match(SYSBENCH, "the last line, `execution time`,", _END, text)
    one_match(SYSBENCH, "the number of threads", _THREADS, text)


def read_latencies(text: str, name: str) -> list[Measurement]:
    """The metrics of ``declare_latencies``, mean and percentile with more digits than sysbench prints them.

    They are checked against those. Raises ParseError.
    """
    events = one_number(SYSBENCH, "the number of events", EVENTS, text)
    mean_s = one_number(SYSBENCH, "the sum of latencies", _SUM, text, exponent=-3) / events
    _check_rounded(text, "avg", mean_s)
    p95_s = _percentile_s(text, events, 95)
    _check_rounded(text, "95th percentile", p95_s)
    max_s = one_number(SYSBENCH, "the longest latency", _LATENCIES["max"], text, exponent=-3)
    return [Measurement(f"{name}.{key}", value) for key, value in (("mean", mean_s), ("p95", p95_s), ("max", max_s))]


def read_buckets(text: str) -> list[tuple[float, int]]:
    """The histogram: each bucket's upper edge in seconds and how many events it counts. Raises ParseError."""
    table = one_match(SYSBENCH, "the latency histogram", _BUCKETS, text)[1]
    return [
        (positive(SYSBENCH, "a bucket", digits, text, exponent=-3) * _TO_EDGE, int(count))
        for digits, count in _BUCKET.findall(table)
    ]


def _check_rounded(text: str, name: str, value_s: float) -> None:
    printed = one_number(SYSBENCH, f"the latency `{name}`", _LATENCIES[name], text, exponent=-3)
    if abs(printed - value_s) > _HALF_PRINTED_S:
        refuse(SYSBENCH, f"the latency `{name}` is printed as {printed:g} s and counted as {value_s:g} s", text)


def _percentile_s(text: str, events: float, percentile: int) -> float:
    """The histogram's bucket that sysbench takes for ``percentile``: the same rank, one digit more. In seconds."""
    table = one_match(SYSBENCH, "the latency histogram", _BUCKETS, text)[1]
    buckets = [(digits, int(count)) for digits, count in _BUCKET.findall(table)]
    counted = sum(count for _, count in buckets)
    if counted != events:
        refuse(SYSBENCH, f"the histogram counts {counted} events and the summary {events:.0f}", text)
    rank = math.floor(events * percentile / 100 + 0.5)
    seen = itertools.accumulate(count for _, count in buckets)
    reached = next(digits for (digits, _), so_far in zip(buckets, seen, strict=True) if so_far >= rank)
    return positive(SYSBENCH, "the bucket of the percentile", reached, text, exponent=-3)
