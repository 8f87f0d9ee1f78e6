"""How long adaptive sampling takes to know a command's duration to 2 %, beside pyperf with its default process count.

One command, ``perf bench syscall basic`` from tare's image, on one CPU. pyperf runs it by ``pyperf command`` with all
its defaults (20 processes, in each one warm-up and three values) under chroot. tare runs it on bare metal, which is the
same chroot, with a precision of 2 %: blocks of one fresh instance with one iteration, as many as it takes. (An instance
costs milliseconds, and instances differ more than iterations, so that more iterations of one tell less than more
instances. Every command is a new process, to either tool, so that there is nothing to warm up.) The two take turns,
the first by turns too. Compared is the time of the whole process of either, from its start to its exit: tare's includes
looking at the host, mounting and the text report, but not the HTML page.

    python benchmarks/adaptive.py [--rounds N] [--loops N] [--precision P] [--json]

``ratio`` is the median over rounds of tare's time over pyperf's; the bar is 0.5. ``half_widths`` says what either knew
in the end: half of the 95 % interval over blocks or processes, as a share. A round in which tare did not reach 2 % in
its time counts with the time it took, and in ``not_reached``.

Needs root and an image of tare's (`tare image build`).
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TypedDict

import numpy as np
from start_latency import newest_rootfs

from tare.bench.errors import ExitCode, PrivilegeError, TareError
from tare.bench.process import run
from tare.bench.stats.comparisons import centre_interval
from tare.bench.store import load_run

PRECISION = 0.02
TIME_LIMIT_S = 600.0
SUITE = """
[suite]
name = "adaptive"
[sampling]
blocks = 2
iterations = 1
warmup = 0
precision = {precision}
max_time = "{limit:.0f}s"
[[backend]]
type = "bare-metal"
[[experiment]]
kind = "steady"
workload = "perf-syscall"
params = {{ loops = {loops} }}
"""


class Result(TypedDict):
    """What `--json` prints. Lists have an entry a round."""

    ratio: float
    ratios: list[float]
    seconds: dict[str, list[float]]
    blocks: list[int]
    half_widths: dict[str, list[float]]
    not_reached: int


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument(
        "--loops", type=int, default=2_000_000, help="system calls of one measurement (default 2000000)"
    )
    parser.add_argument("--precision", type=float, default=PRECISION, help="what is asked of tare (default 0.02)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        if os.geteuid() != 0:
            raise PrivilegeError("chroot needs root", remedy="run it as root")
        with tempfile.TemporaryDirectory(prefix="tare-adaptive-") as folder:
            result = measure(Path(folder), arguments.rounds, arguments.loops, arguments.precision)
    except TareError as error:
        print(f"adaptive: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    if arguments.json:
        print(json.dumps(result))
        return ExitCode.OK
    for name, seconds in result["seconds"].items():
        widths = ", ".join(f"±{100 * width:.2g} %" for width in result["half_widths"][name])
        print(f"{name:7} {', '.join(f'{one:.1f} s' for one in seconds)}  ({widths})")
    print(f"blocks  {', '.join(map(str, result['blocks']))}")
    print(f"tare / pyperf: {result['ratio']:.2f} (bar: 0.5)")
    return ExitCode.OK


def measure(folder: Path, rounds: int, loops: int, wanted: float = PRECISION) -> Result:
    """Alternate the two and compare. Raises TareError."""
    suite = folder / "suite.toml"
    suite.write_text(SUITE.format(precision=wanted, limit=TIME_LIMIT_S / rounds, loops=loops), "utf-8")
    rootfs = newest_rootfs()
    seconds: dict[str, list[float]] = {"tare": [], "pyperf": []}
    widths: dict[str, list[float]] = {"tare": [], "pyperf": []}
    blocks: list[int] = []
    for number in range(rounds):
        order = ("tare", "pyperf") if number % 2 == 0 else ("pyperf", "tare")
        for name in order:
            started = time.monotonic()
            if name == "tare":
                output = folder / f"run-{number}"
                run_tare(suite, output)
            else:
                output = folder / f"pyperf-{number}.json"
                run_pyperf(output, rootfs, loops)
            seconds[name].append(time.monotonic() - started)
            n, width = tare_precision(output) if name == "tare" else pyperf_precision(output)
            widths[name].append(width)
            if name == "tare":
                blocks.append(n)
    ratios = [ours / theirs for ours, theirs in zip(seconds["tare"], seconds["pyperf"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "seconds": seconds,
        "blocks": blocks,
        "half_widths": widths,
        "not_reached": sum(width > wanted for width in widths["tare"]),
    }


def run_tare(suite: Path, output: Path) -> None:
    """One run with adaptive sampling."""
    argv = [sys.executable, "-m", "tare", "run", str(suite), "--output", str(output), "--no-report"]
    run(argv, timeout_s=2 * TIME_LIMIT_S)


def run_pyperf(output: Path, rootfs: Path, loops: int) -> None:
    """The same command by pyperf, on the CPU that tare gives its instances."""
    cpu = max(os.sched_getaffinity(0))
    command = ["chroot", str(rootfs), "perf", "bench", "syscall", "basic", "--loop", str(loops)]
    pyperf = [sys.executable, "-m", "pyperf", "command", f"--affinity={cpu}", "-o", str(output)]
    run([*pyperf, "--", *command], timeout_s=2 * TIME_LIMIT_S)


def tare_precision(path: Path) -> tuple[int, float]:
    """The number of blocks, and half of the interval of the leading metric."""
    (told,) = [event.details["cells"] for event in load_run(path).events if event.details.get("code") == "precision"]
    precision = told[0]["precision"]
    return int(precision["n_blocks"]), float(precision["half_width"])


def pyperf_precision(path: Path) -> tuple[int, float]:
    """The number of processes, and half of the interval over the medians of their values."""
    runs = json.loads(path.read_text("utf-8"))["benchmarks"][0]["runs"]
    medians = [statistics.median(one["values"]) for one in runs if "values" in one]
    interval = centre_interval(np.log(np.array(medians)))
    assert interval.low is not None
    assert interval.high is not None
    return len(medians), math.expm1((interval.high - interval.low) / 2)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
