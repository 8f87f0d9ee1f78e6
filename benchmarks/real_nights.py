"""Forty short real runs as nights on this machine; in the last ten the container gets 90 % of its CPU.

Each night measures bare metal and tare's container: boot, sysbench's primes, and system calls. Every fourth night has a
busy process of this program's next to it, on whatever CPU the kernel gives it. The regression is put into tare's
container where no record of the run can see it: its instances have a CPU quota that the suite does not state. Each
night is judged as it came, without reruns.

    python benchmarks/real_nights.py FOLDER [--nights N] [--broken N] [--quota CPUS] [--most N] [--json]

FOLDER keeps the nights: the program goes on where it was stopped, and measures at most `--most` of them at a time, for
machines that are shared by turns. Bars: before the regression no night has a finding of a ratio; after it, one is told
that is the container's isolation, and worse.

Needs root and tare's image (`tare image build`).
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec

from tare.bench.errors import ExitCode, TareError
from tare.bench.history.acks import AckFile
from tare.bench.history.findings import Cause, Finding
from tare.bench.history.gate import TOLD, Judgement, judge, save_told
from tare.bench.history.index import History, open_history, update_history
from tare.bench.model import InstanceSpec
from tare.bench.store import load_manifest

SUITE = """\
[suite]
name = "real-nights"

[envelope]
cpus = 1
memory = "512MiB"
scratch = "256MiB"

[sampling]
blocks = 6
iterations = 1
warmup = 0

[[backend]]
type = "bare-metal"

[[backend]]
type = "native"

[[experiment]]
kind = "boot"

[[experiment]]
kind = "steady"
workload = "sysbench-cpu"
params = { runtime_s = 1 }

[[experiment]]
kind = "steady"
workload = "perf-syscall"
params = { loops = 500000 }
"""
BUSY_EVERY = 4


def run_one(suite: Path, folder: Path, quota: float, *, busy: bool) -> int:
    """Measure one night in this process; a quota below 1 holds for the container alone."""
    from tare.backends.native.backend import Native
    from tare.bench.cli.run import run_command

    usual = Native.start

    def start(self: Native, spec: InstanceSpec) -> Any:
        slower = msgspec.structs.replace(spec.envelope, cpu_quota=quota)
        return usual(self, msgspec.structs.replace(spec, envelope=slower))

    load = os.getloadavg()[0]
    labels = {"quota": f"{quota:g}", "busy": "yes" if busy else "no", "load": f"{load:.1f}"}
    regression = patch.object(Native, "start", start) if quota < 1 else contextlib.nullcontext()
    with regression, _busy_process() if busy else contextlib.nullcontext():
        return run_command(suite, None, output=folder, only=(), seed=None, labels=labels, as_json=False, report=True)


def measure(runs: Path, nights: int, broken: int, quota: float, most: int) -> bool:
    """Measure nights that are not there yet; whether all are there now. Raises CalledProcessError."""
    suite = runs.parent / "real-nights.toml"
    suite.write_text(SUITE, "utf-8")
    missing = [n for n in range(nights) if not _is_complete(runs / f"night-{n:02d}")]
    for number in missing[:most]:
        folder = runs / f"night-{number:02d}"
        shutil.rmtree(folder, ignore_errors=True)  # of a night that was stopped in the middle
        slow = quota if number >= nights - broken else 1.0
        busy = number % BUSY_EVERY == BUSY_EVERY - 1
        words = [sys.executable, __file__, str(runs), "--one", str(folder), "--quota", str(slow)]
        began = time.monotonic()
        done = subprocess.run([*words, *(["--busy"] if busy else [])], check=False, stdout=subprocess.DEVNULL)
        if done.returncode not in (ExitCode.OK, ExitCode.FAILED_CELLS):
            done.check_returncode()
        print(f"{folder.name}: {time.monotonic() - began:.0f} s{', busy' if busy else ''}", file=sys.stderr, flush=True)
    return len(missing) <= most


def _is_complete(folder: Path) -> bool:
    try:
        return load_manifest(folder).status == "complete"
    except TareError:
        return False


@contextlib.contextmanager
def _busy_process() -> Iterator[None]:
    program = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    child = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def judge_all(runs: Path) -> list[Judgement]:
    """Judge each night as it came, with what was told before it."""
    update_history(runs)
    history = open_history(runs)
    (history.folder / TOLD).unlink(missing_ok=True)
    judgements = []
    for entry in history.entries:
        judgement = judge(history, entry, AckFile())
        save_told(history, judgement)
        judgements.append(judgement)
    return judgements


def figures(history: History, judgements: list[Judgement], broken: int) -> dict[str, Any]:
    """What was found when, and whether the bars are kept."""
    first = len(judgements) - broken
    told = [(night, one) for night, judgement in enumerate(judgements) for one in _new(judgement)]
    early = [(night, one) for night, one in told if night < first and one.cause is not Cause.HOST]
    found = [(night, one) for night, one in told if night >= first and one.is_regression and one.backend == "native"]
    loads = [float(entry.labels["load"]) for entry in history.entries]
    return {
        "nights": len(judgements),
        "broken": broken,
        "series": judgements[-1].n_series,
        "detectable": judgements[first - 1].middling,
        "load": {"least": min(loads), "median": sorted(loads)[len(loads) // 2], "most": max(loads)},
        "before": [_line(night, one) for night, one in early],
        "found": [_line(night, one) for night, one in found],
        "found_after_nights": found[0][0] - first + 1 if found else None,
        "host": [_line(night, one) for night, one in told if one.cause is Cause.HOST],
        "other": [_line(night, one) for night, one in told if night >= first and not one.is_regression],
        "kept": not early and bool(found),
    }


def _new(judgement: Judgement) -> list[Finding]:
    return [one for one in judgement.findings if one.first_told == judgement.run.run and one.is_open]


def _line(night: int, one: Finding) -> str:
    return (
        f"night {night}: {one.kind} of {one.name} {one.shift.ratio - 1:+.1%} since {one.since} "
        f"({one.cause} {one.backend}, q {one.q:.2g})"
    )


def main() -> int:
    """Print what was found; the exit code says whether the bars are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nights", type=int, default=40)
    parser.add_argument("--broken", type=int, default=10)
    parser.add_argument("--quota", type=float, default=0.9)
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--busy", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        return run_one(given.folder.parent / "real-nights.toml", given.one, given.quota, busy=given.busy)
    runs = given.folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    if not measure(runs, given.nights, given.broken, given.quota, given.most):
        return ExitCode.OK
    judgements = judge_all(runs)
    found = figures(open_history(runs), judgements, given.broken)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    return ExitCode.OK if found["kept"] else ExitCode.FAILED_CELLS


if __name__ == "__main__":
    sys.exit(main())
