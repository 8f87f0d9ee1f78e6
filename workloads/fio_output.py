"""Reads fio's ``json+`` reports: the one group of jobs in each, and latencies with the histogram that fio counted."""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from tare.bench.model import Histogram, Measurement, Metric
from tare.bench.units import Unit
from tare.workloads.metrics import percentiles_of, time_of
from tare.workloads.output import refuse

TOOL = "fio"
PERCENTILES: Mapping[str, str] = {"p50": "50.000000", "p99": "99.000000", "p99.9": "99.900000"}
PERCENTILE_LIST = "--percentile_list=50:99:99.9"

_NOTE = re.compile(r"(?:fio|note): .*", re.ASCII)
_VERSION = re.compile(r"fio-3\.\d+\S*", re.ASCII)
_WHOLE = re.compile(r"0|[1-9]\d{0,18}", re.ASCII)


class Latency(msgspec.Struct, frozen=True):
    """What fio says of one kind of operation, in seconds: its own mean and percentiles, and its histogram.

    ``bounds`` are the upper edges of fio's buckets, each 1.6 % wide or narrower; empty ones are left out, as fio does.
    """

    mean: float
    percentiles: Mapping[str, float]
    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    def measurements(self, name: str) -> list[Measurement]:
        """As the metrics that ``declare_latency`` declares under ``name``."""
        found = [Measurement(f"{name}.mean", self.mean)]
        return found + [Measurement(f"{name}.{key}", value) for key, value in self.percentiles.items()]

    def histogram(self, name: str) -> Histogram:
        """The distribution under ``name``."""
        return Histogram(name, Unit.SECOND, self.bounds, self.counts)


def declare_latency(name: str, what: str) -> tuple[Metric, ...]:
    """The metrics of a ``Latency``; ``what`` follows "time" (``from submitting a read to ...``)."""
    return (
        time_of(f"{name}.mean", f"Mean time {what}."),
        *percentiles_of(name, PERCENTILES, what, "buckets of fio's histogram, 1.6 % wide"),
    )


def find_job(text: str) -> Mapping[str, Any]:
    """The one job of a report, before which fio may note what it changed of what was asked. Raises ParseError."""
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if line == "{"), None)
    if start is None:
        refuse(TOOL, "there is no JSON", text)
    stray = next((line for line in lines[:start] if line and not _NOTE.fullmatch(line)), None)
    if stray is not None:
        refuse(TOOL, f"{stray!r} precedes the JSON", text)
    try:
        report = json.loads("\n".join(lines[start:]), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        refuse(TOOL, f"its JSON cannot be read: {error}", text)
    version, jobs = get(report, text, "fio version"), get(report, text, "jobs")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        refuse(TOOL, f"its version is {version!r}", text)
    if not isinstance(jobs, list) or len(jobs) != 1 or not isinstance(jobs[0], dict):
        refuse(TOOL, "it does not report exactly one group of jobs", text)
    job: dict[str, Any] = jobs[0]
    if get(job, text, "error") != 0:
        refuse(TOOL, f"the job ended with error {job['error']!r}", text)
    return job


def get(value: Any, text: str, *keys: str) -> Any:
    """The value at the path ``keys`` of ``value``. Raises ParseError if one is missing."""
    for depth, key in enumerate(keys):
        if not isinstance(value, dict) or key not in value:
            refuse(TOOL, f"{'.'.join(keys[: depth + 1])} is missing", text)
        value = value[key]
    return value


def number(value: Any, text: str, *keys: str) -> float:
    """The positive number under ``keys``. Raises ParseError if it is none."""
    found = get(value, text, *keys)
    # bool is an int to Python; an integer beyond a float's range is no measurement either.
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < 1e300:
        refuse(TOOL, f"{'.'.join(keys)} is {found!r}", text)
    return float(found)


def read_latency(job: Mapping[str, Any], text: str, *keys: str, count: float) -> Latency:
    """The latencies under ``keys``, of ``count`` operations. Raises ParseError if they are not what fio prints."""
    where = ".".join(keys)
    if number(job, text, *keys, "N") != count:
        refuse(TOOL, f"{where} has latencies of other than the {count:.0f} operations that it counts", text)
    bins = get(job, text, *keys, "bins")
    if not isinstance(bins, dict) or not all(_WHOLE.fullmatch(middle) for middle in bins):
        refuse(TOOL, f"{where}.bins is not a histogram", text)
    if not all(type(found) is int and found > 0 for found in bins.values()) or sum(bins.values()) != count:
        refuse(TOOL, f"{where}.bins does not hold the {count:.0f} operations that fio counts", text)
    edges = [_upper_edge_ns(int(middle), where, text) for middle in bins]
    if edges != sorted(set(edges)):
        refuse(TOOL, f"{where}.bins does not rise", text)
    shortest = get(job, text, *keys, "min")
    if type(shortest) is not int or not 0 <= shortest <= edges[0]:
        refuse(TOOL, f"{where}.min is {shortest!r}, which is not in the first bucket", text)
    # fio's last bucket has no upper edge: it holds whatever took longer than 17 seconds.
    edges[-1] = max(edges[-1], round(number(job, text, *keys, "max")))
    return Latency(
        number(job, text, *keys, "mean") / 1e9,
        {name: number(job, text, *keys, "percentile", key) / 1e9 for name, key in PERCENTILES.items()},
        tuple(edge / 1e9 for edge in edges),
        tuple(bins.values()),
    )


def _upper_edge_ns(middle: int, where: str, text: str) -> int:
    """The longest time in the bucket that fio names by its ``middle``: 64 buckets for each power of two from 128 on."""
    if middle < 128:
        return middle
    width = 1 << (middle.bit_length() - 7)
    if middle % width != width // 2:
        refuse(TOOL, f"{where}.bins has a bucket at {middle}, where fio has none", text)
    return middle + width // 2 - 1


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
