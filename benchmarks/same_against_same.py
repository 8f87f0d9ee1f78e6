"""Bare metal against itself, with every built-in workload: nothing may differ after correction.

One run of a suite with two backends that are both bare metal, in which ``boot`` and every workload are measured side by
side as any two backends are: same path, balanced order, primed, paired by block, all metrics compared and corrected.
Every difference that is left is a false one: an order, a side, a first touch or a place that tare did not make equal.

    python benchmarks/same_against_same.py [--blocks N] [--seed N] [--workload NAME ...] [--image NAME] [--json]

The bar: no metric differs after correction. Uncorrected differences are listed too: of ``compared`` metrics with a
p-value about one in forty should have a wrong verdict at most (a verdict also asks for a ratio outside the margin).
About ten minutes with four blocks on two cores.

Needs root and an image of tare's with all workloads in it (`tare image build`).
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from tare.bench.analysis import analyse
from tare.bench.catalogue import Builtin
from tare.bench.errors import ExitCode, PrivilegeError, TareError
from tare.bench.noise import TWINS
from tare.bench.process import run
from tare.bench.registry import find_workloads
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.bench.store import load_run

SHORT: dict[str, dict[str, Any]] = {
    "fio": {"size": "16MiB", "runtime_s": 0.5},
    "fio-metadata": {"files": 500},
    "hpcc": {"order": 1000},
    "perf-sched-messaging": {"loops": 50},
    "perf-syscall": {"loops": 500_000},
    "redis": {"requests": 10_000},
    "stress-ng": {},
}
"""Parameters of workloads whose defaults take longer than needed here, where they have them."""
DIFFERENT = (Verdict.FASTER, Verdict.SLOWER)
_TIME_LIMIT_S = 3600.0


class Difference(TypedDict):
    """A metric that was called different from itself."""

    subject: str
    metric: str
    ratio: float
    interval: tuple[float, float]
    q_value: float | None


class Result(TypedDict):
    """What `--json` prints."""

    seed: int
    blocks: int
    seconds: float
    workloads: list[str]
    failed: list[str]
    compared: int
    different: list[Difference]
    uncorrected: list[Difference]


def main() -> int:
    """Run, print, and return the exit code: 0 if the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4, help="blocks (default 4)")
    parser.add_argument("--seed", type=int, default=19, help="seed of the order (default 19)")
    parser.add_argument("--workload", action="append", help="only this one; may be repeated (default: all)")
    parser.add_argument("--image", default="", help="use this image of tare's instead of the suite's own")
    parser.add_argument("--keep", type=Path, help="keep the run in this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        if os.geteuid() != 0:
            raise PrivilegeError("bare metal in a chroot needs root", remedy="run it as root")
        names = arguments.workload or sorted(find_workloads().loaded)
        with tempfile.TemporaryDirectory(prefix="tare-same-") as folder:
            output = arguments.keep or Path(folder) / "run"
            result = measure(names, output, arguments.blocks, arguments.seed, arguments.image)
    except TareError as error:
        print(f"same_against_same: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    print(json.dumps(result) if arguments.json else described(result))
    return ExitCode.OK if not result["different"] and not result["failed"] else ExitCode.FAILED_CELLS


def measure(names: Sequence[str], output: Path, blocks: int, seed: int, image: str) -> Result:
    """Run the suite and read what differs. Raises TareError."""
    suite = output.parent / f"{output.name}.toml"
    suite.write_text(suite_of(names, blocks, image), "utf-8")
    began = time.monotonic()
    argv = [sys.executable, "-m", "tare", "run", str(suite), "--seed", str(seed), "--output", str(output)]
    with contextlib.suppress(TareError):  # cells that failed are in the run, and said below
        run([*argv, "--no-report"], timeout_s=_TIME_LIMIT_S)
    found = load_run(output)
    analysis = analyse(found)
    compared = [
        (subject.name, row.metric.name, comparison)
        for subject, row, _, comparison in analysis.comparisons
        if comparison.p_value is not None
    ]
    return {
        "seed": seed,
        "blocks": blocks,
        "seconds": round(time.monotonic() - began, 1),
        "workloads": list(names),
        "failed": sorted({f"{event.cell}: {event.message}" for event in analysis.failures}),
        "compared": len(compared),
        "different": [_difference(*one) for one in compared if one[2].verdict_adjusted in DIFFERENT],
        "uncorrected": [_difference(*one) for one in compared if one[2].verdict in DIFFERENT],
    }


def suite_of(names: Sequence[str], blocks: int, image: str) -> str:
    """The suite as TOML: two names for bare metal, ``boot`` and every workload with short parameters."""
    parts = [
        f'[suite]\nname = "same-against-same"\n[image]\nuse = {json.dumps(image)}',
        '[envelope]\ncpus = 1\nmemory = "1GiB"\nscratch = "512MiB"\npids = 1024',
        f"[sampling]\nblocks = {blocks}\niterations = 1\nwarmup = 0",
        *(f'[[backend]]\ntype = "bare-metal"\nname = {json.dumps(name)}' for name in TWINS),
        f'[report]\nbaseline = {json.dumps(TWINS[0])}\n[[experiment]]\nkind = "{Builtin.BOOT}"',
    ]
    for name in names:
        params = ", ".join(f"{key} = {json.dumps(value)}" for key, value in SHORT.get(name, {}).items())
        parts.append(
            f'[[experiment]]\nkind = "{Builtin.STEADY}"\nworkload = {json.dumps(name)}\nparams = {{ {params} }}'
        )
    return "\n".join(parts) + "\n"


def _difference(subject: str, metric: str, found: Comparison) -> Difference:
    assert found.ratio is not None
    assert found.low is not None
    assert found.high is not None
    interval = (found.low, found.high)
    return {"subject": subject, "metric": metric, "ratio": found.ratio, "interval": interval, "q_value": found.q_value}


def described(result: Result) -> str:
    """The result in lines."""
    lines = [
        (
            f"{result['compared']} metrics of {len(result['workloads'])} workloads and boot, "
            f"{result['blocks']} blocks, seed {result['seed']}, {result['seconds']:.0f} s"
        )
    ]
    for name, kind in (("after correction", result["different"]), ("before correction", result["uncorrected"])):
        lines.append(f"different {name}: {len(kind)}")
        lines += [
            f"  {one['subject']} {one['metric']}: {one['ratio']:.3f} "
            f"({one['interval'][0]:.3f} to {one['interval'][1]:.3f})"
            for one in kind
        ]
    return "\n".join([*lines, *(f"failed: {text}" for text in result["failed"])])


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
