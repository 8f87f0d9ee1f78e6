"""How often two runs of the same thing are said to differ: identical short runs in a row, all pairs compared.

    python benchmarks/false_alarms.py [--runs N] [--blocks N] [--busy] [--keep FOLDER] [--json]

Each run measures starting, computing, memory and storage on bare metal and in a container. Every pair of runs is
compared as `tare compare --format junit` does. A pair *fails* if its JUnit has a failure, and *differs* if any line has
a verdict of faster or slower. With `--busy` a process that spins comes and goes during every second run, on the
instances' own CPU, for a few seconds at a time.

Bar: at most 5 % of the pairs fail. `levels` is for comparison what comparing levels, as if runs did not differ, says.
Needs root and the image (`tare image build`).
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import junitparser as junit

from tare.bench.analysis.comparison import ComparisonRequest, Line, LineKind, RunComparison, compare_request
from tare.bench.errors import ExitCode, TareError
from tare.bench.model import Metric
from tare.bench.process import DEVNULL, Popen
from tare.bench.stats.comparisons import Verdict, judge
from tare.reports.junit import JUnitReporter

SUITE = """
[suite]
name = "false-alarms"

[sampling]
blocks = {blocks}
iterations = 2
warmup = 1

[[backend]]
type = "bare-metal"

[[backend]]
type = "native"

[[experiment]]
kind = "boot"

[[experiment]]
kind = "steady"
workload = "sysbench-cpu"
params = {{ runtime_s = 1 }}
iterations = 1
warmup = 0

[[experiment]]
kind = "steady"
workload = "perf-syscall"
params = {{ loops = 200000 }}

[[experiment]]
kind = "steady"
workload = "fio"
params = {{ rw = "randread", block_size = "4KiB", size = "16MiB", runtime_s = 0.5 }}
iterations = 1
warmup = 0
"""
LONGEST_S = 900.0
"""No run takes longer, and no busy process lives longer."""
SPIN = "import os, sys, time; end = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"
DIFFERENT = (Verdict.FASTER, Verdict.SLOWER)


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="identical runs (default 10)")
    parser.add_argument("--blocks", type=int, default=4, help="blocks of each (default 4)")
    parser.add_argument("--busy", action="store_true", help="a busy process comes and goes in every second run")
    parser.add_argument("--seed", type=int, default=1, help="of the busy process's times (default 1)")
    parser.add_argument("--keep", type=Path, help="folder for the runs, which are kept; compared alone if it has them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="false-alarms-")))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            runs = make_runs(folder, given.runs, given.blocks, busy=given.busy, seed=given.seed)
            result = compare_all(runs, folder)
        except TareError as error:
            print(f"false_alarms: {error}", file=sys.stderr)
            return int(error.exit_code)
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED
    result |= {"runs": given.runs, "blocks": given.blocks, "busy": given.busy}
    if given.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:24} {value}")
    return ExitCode.OK if result["failing"] <= 0.05 else ExitCode.FAILED_CELLS


def make_runs(folder: Path, count: int, blocks: int, *, busy: bool, seed: int) -> list[Path]:
    """Identical runs one after another; those that the folder already has are taken as they are."""
    suite = folder / "suite.toml"
    suite.write_text(SUITE.format(blocks=blocks), "utf-8")
    runs = [folder / f"run-{number:02d}" for number in range(count)]
    for number, run in enumerate(runs):
        if run.exists():
            continue
        is_beside = busy and number % 2 == 1
        with comes_and_goes(random.Random(f"{seed}/{number}")) if is_beside else contextlib.nullcontext():
            measure(suite, run)
    return runs


def measure(suite: Path, run: Path) -> None:
    """One run by the command line. Raises TareError if it did not complete."""
    argv = [sys.executable, "-m", "tare", "run", str(suite), "--output", str(run), "--no-report"]
    with Popen(argv, stdout=DEVNULL, stderr=DEVNULL) as process:
        try:
            code = process.wait(LONGEST_S)
        except BaseException:
            process.kill()
            raise
    if code:
        raise TareError(f"{' '.join(argv)} ended with exit code {code}")


@contextlib.contextmanager
def comes_and_goes(chance: random.Random) -> Iterator[None]:
    """A process that spins on the last CPU, where instances run, for 1 to 4 s, then rests as long, until left."""
    left = threading.Event()

    def spin() -> None:
        end = time.monotonic() + LONGEST_S
        while not left.wait(chance.uniform(1, 4)) and time.monotonic() < end:
            with Popen([sys.executable, "-c", SPIN, f"{chance.uniform(1, 4)}"]) as process:
                os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
                process.wait()

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def compare_all(runs: list[Path], folder: Path) -> dict[str, Any]:
    """What all pairs of runs say."""
    failing, differing, levels, named = 0, 0, 0, []
    pairs = list(itertools.combinations(runs, 2))
    for first, second in pairs:
        comparison = compare_request(ComparisonRequest((first,), (second,)))
        failing += has_failure(comparison, folder / "pair.junit.xml")
        wrong = [line for line in comparison.lines if line.found.verdict_adjusted in DIFFERENT]
        differing += bool(wrong)
        levels += any(map(is_level_different, comparison.lines))
        named += [f"{first.name} {second.name} {told(line)}" for line in wrong]
    return {
        "pairs": len(pairs),
        "failing": failing / len(pairs),
        "differing": differing / len(pairs),
        "levels": levels / len(pairs),
        "which": named,
    }


def has_failure(comparison: RunComparison, output: Path) -> bool:
    """Whether CI would fail."""
    JUnitReporter().write_comparison(comparison, output)
    return junit.JUnitXml.fromfile(str(output)).failures > 0


def is_level_different(line: Line) -> bool:
    """Whether a level alone, taken at its word and not corrected, would be called different."""
    found, metric = line.found, line.metric
    return line.kind is LineKind.LEVEL and found.ratio is not None and _verdict(metric, line) in DIFFERENT


def _verdict(metric: Metric, line: Line) -> Verdict:
    found = line.found
    return judge(found.ratio or 1.0, found.low, found.high, metric.direction, found.margin)


def told(line: Line) -> str:
    """A wrong verdict with its figures."""
    found = line.found
    return f"{line.kind} {line.title} {line.metric.name}: {found.ratio:.3f} ({found.low:.3f} to {found.high:.3f})"


if __name__ == "__main__":
    sys.exit(main())
