"""A user's own pyperf script as a workload: ``[[workload]] pyperf = "bench_mine.py"``.

The script is written into the instance by the set-up and run by the python3 of the image, whose pyperf calibrates,
warms up and repeats as it always does. Its result file is read by pyperf itself.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import Meta

from tare.bench.errors import ParseError
from tare.bench.interfaces import NoOptions, Workload, WorkloadKind, WorkloadSection
from tare.bench.model import (
    SCRATCH,
    Command,
    Commands,
    Completed,
    Envelope,
    Histogram,
    Measurement,
)
from tare.bench.units import Duration, Unit
from tare.workloads.metrics import time_of
from tare.workloads.output import excerpt, read_output

if TYPE_CHECKING:
    import pyperf

PYPERF = "pypi:pyperf==2.10.0"
"""The package that measures in the image."""
_FOLDER = f"{SCRATCH}/tare-pyperf"
_WRITE = 'mkdir -p "$1" && cat >"$1/$2"'
# pyperf adds to a result file that is there, and prints for people; with --stdout it would print several documents.
_RUN = """
cd "$1" && shift && rm -f result.json && script=$1 && shift &&
python3 "$script" --output result.json "$@" >&2 && cat result.json
"""
_PACKAGES = ("python3", PYPERF)
_MOST_S = 1e9
_OWN_OPTIONS = ("-o", "--output", "--append", "--stdout", "--worker", "--copy-env")


class PyperfSection(WorkloadSection, frozen=True, kw_only=True):
    """The keys of a ``[[workload]]`` made of a pyperf script.

    ``pyperf`` is the script's file, relative to the suite, ``benchmarks`` are the names of its benchmarks, each of
    which becomes a metric, and ``arguments`` go to it (``--fast``). ``script`` is its text, read when the suite is.
    """

    pyperf: Annotated[str, Meta(min_length=1)]
    benchmarks: Annotated[tuple[str, ...], Meta(min_length=1)]
    arguments: tuple[str, ...] = ()
    timeout: Duration = Duration("10m")
    script: str = ""

    def __post_init__(self) -> None:
        names = [_metric_name(name) for name in self.benchmarks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"benchmarks: two of them would be the metric {twice!r}")
        own = next((one for one in self.arguments if one.split("=")[0] in _OWN_OPTIONS), None)
        if own is not None:
            raise ValueError(f"arguments: tare itself says where the result goes, so {own} cannot be there")


class PyperfKind(WorkloadKind):
    """``pyperf = "FILE"``: a script that uses ``pyperf.Runner``."""

    name = "pyperf"
    summary = "a pyperf script of your own, each of its benchmarks a metric"
    Section = PyperfSection

    def complete(self, section: PyperfSection, folder: Path) -> PyperfSection:
        """With the script's text, unless it is there already, and compiled once to see that it is Python."""
        script = section.script
        if not script:
            path = folder / Path(section.pyperf).expanduser()
            try:
                script = path.read_text("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"pyperf: {path} is not UTF-8 text: {error.reason}") from None
        try:
            compile(script, section.pyperf, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"pyperf: {section.pyperf} is not valid Python: {error}") from None
        return msgspec.structs.replace(section, script=script)

    def make(self, section: PyperfSection) -> type[Workload]:
        """A class of its own for each section."""
        return type(
            "PyperfWorkload",
            (PyperfWorkload,),
            {
                "name": section.name,
                "summary": section.summary or f"the pyperf script {section.pyperf}",
                "metrics": tuple(
                    time_of(
                        _metric_name(name),
                        f"Mean time of one run of the pyperf benchmark {name}, over all of its values.",
                        f"Time of {name}",
                    )
                    for name in section.benchmarks
                ),
                "packages": (*_PACKAGES, *section.packages),
                "licence": section.licence,
                "category": section.category,
                "title": section.title,
                "section": section,
            },
        )


class PyperfWorkload(Workload):
    """What ``PyperfKind`` makes; ``section`` is what the suite states."""

    section: ClassVar[PyperfSection]

    def commands(self, params: NoOptions, envelope: Envelope) -> Commands:
        del params, envelope
        section = self.section
        name = Path(section.pyperf).name
        write = Command(("sh", "-c", _WRITE, "sh", _FOLDER, name), stdin=section.script.encode())
        run = ("sh", "-c", _RUN, "sh", _FOLDER, name, *section.arguments)
        return Commands(Command(run, timeout_s=section.timeout), setup=(write,))

    def parse(self, completed: Completed) -> list[Measurement]:
        values = self._values(completed)
        return [Measurement(_metric_name(name), statistics.fmean(values[name])) for name in self.section.benchmarks]

    def histograms(self, completed: Completed) -> list[Histogram]:
        """Every value of each benchmark: pyperf's warm-ups are not among them."""
        return [histogram_of(_metric_name(name), values) for name, values in self._values(completed).items()]

    def _values(self, completed: Completed) -> Mapping[str, tuple[float, ...]]:
        """The values of each declared benchmark, in seconds. Raises ParseError."""
        text = read_output(self.section.pyperf, completed)
        values = dict(read_suite(self.section.pyperf, text))
        if sorted(values) != sorted(self.section.benchmarks):
            raise ParseError(
                f"{self.section.pyperf} measured {', '.join(sorted(values)) or 'nothing'}, "
                f"and the suite says {', '.join(self.section.benchmarks)}",
                remedy="name exactly the script's benchmarks under benchmarks",
                evidence=excerpt(text),
            )
        return values


def _metric_name(benchmark: str) -> str:
    """The name of a benchmark in the form that metrics have."""
    return re.sub(r"[^a-z0-9_.]+", "-", benchmark.lower()).strip("-.") or "benchmark"


def read_suite(tool: str, text: str) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Each benchmark of a result file with its values in seconds, as pyperf reads them. Raises ParseError."""
    import pyperf

    try:
        for benchmark in pyperf.BenchmarkSuite.loads(text):
            yield _seconds_of(benchmark)
    except Exception as error:  # noqa: BLE001 - whatever pyperf makes of a broken file, the answer is the same
        raise ParseError(
            f"the output of {tool} is not a usable pyperf result: {type(error).__name__}: {error}",
            remedy="run the script by hand with --output, and see that python3 -m pyperf show reads it",
            evidence=excerpt(text),
        ) from None


def histogram_of(name: str, values: Sequence[float]) -> Histogram:
    """Every value, each in a bucket of its own: pyperf's warm-ups are not among them."""
    counts = Counter(sorted(values))
    return Histogram(name, Unit.SECOND, tuple(counts), tuple(counts.values()))


def _seconds_of(benchmark: "pyperf.Benchmark") -> tuple[str, tuple[float, ...]]:
    """Its name and values. Raises ValueError unless they are times."""
    name, unit = benchmark.get_name(), benchmark.get_unit()
    if unit != "second":
        raise ValueError(f"{name} is measured in {unit}, and only times can be compared")
    values = tuple(float(value) for value in benchmark.get_values())
    if not values or not all(math.isfinite(value) and 0 < value < _MOST_S for value in values):
        raise ValueError(f"{name} has values that are not times")
    return str(name), values
