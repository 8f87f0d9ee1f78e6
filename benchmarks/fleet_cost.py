"""What a fleet adds to a run: the same suite on a host, by hand and by a fleet, alternated; and what the worker does.

Run as root: ``python benchmarks/fleet_cost.py [--pairs 6]``. The host is made of namespaces (``made_hosts.py``); the
fleet's command stays on the CPUs that the instances do not have, as if it were elsewhere. Printed are, for each
backend, the ratio of the medians of a CPU workload (fleet over by hand) with the percentile bootstrap over pairs, and
of the worker's threads while the run goes on: the CPUs they may use, and their context switches a second.
"""

import argparse
import json
import os
import random
import re
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fleet_local import LocalFleet
from made_hosts import MadeHost, made_hosts, require_inside, wait_for

from tare.bench.fleet.collection import HostState, run_folder
from tare.bench.linux.cpus import parse_cpus
from tare.bench.store import load_run

SUITE = """
[suite]
name = "cost"
[envelope]
memory = "64MiB"
scratch = "16MiB"
[sampling]
blocks = 4
iterations = 2
warmup = 1
prime = false
[[backend]]
type = "bare-metal"
[[backend]]
type = "native"
[[experiment]]
kind = "steady"
workload = "sysbench-cpu"
params = { runtime_s = 1 }
"""
METRIC = "cpu.events_per_second"


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=6)
    asked = parser.parse_args()
    require_inside()
    by_hand: list[dict[str, float]] = []
    by_fleet: list[dict[str, float]] = []
    watched: list[dict[str, Any]] = []
    with made_hosts(1) as (base, (host,)):
        for pair in range(asked.pairs):
            order = (run_by_hand, run_by_fleet) if pair % 2 else (run_by_fleet, run_by_hand)
            for one in order:
                found, seen = one(base, host, pair)
                (by_hand if one is run_by_hand else by_fleet).append(found)
                watched += seen
            print(f"pair {pair + 1}: {by_hand[-1]} by hand, {by_fleet[-1]} by the fleet", file=sys.stderr, flush=True)
    result = {
        "ratios": {
            name: ratio([(a[name], b[name]) for a, b in zip(by_hand, by_fleet, strict=True)]) for name in by_hand[0]
        },
        "worker": watched,
    }
    print(json.dumps(result, indent=2))


def ratio(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The ratio of the second to the first: the median over pairs, and its 95 % percentile bootstrap."""
    ratios = [b / a for a, b in pairs]
    rng = random.Random(1)
    drawn = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(4000))
    return {"ratio": statistics.median(ratios), "low": drawn[100], "high": drawn[3899], "pairs": len(ratios)}


def run_by_hand(_base: Path, host: MadeHost, pair: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """``tare run`` on the host."""
    (host.folder / "cost.toml").write_text(SUITE)
    path = host.folder / f"by-hand-{pair}"
    host.run(sys.executable, "-m", "tare", "run", str(host.folder / "cost.toml"), "-o", str(path), "--no-report")
    return values(path), []


def run_by_fleet(base: Path, host: MadeHost, _pair: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The same by a fleet, whose worker is watched."""
    own = min(os.sched_getaffinity(0))  # instances have the last
    fleet = LocalFleet(
        base, [host], 0, set(), ssh=False, suite=SUITE, progress="10s", pinned=("taskset", "-c", str(own))
    )
    wait_for("the run begins", 300, fleet.is_running)
    seen: list[dict[str, Any]] = []
    thread = threading.Thread(target=watch, args=(fleet, host, seen))
    thread.start()
    fleet.command.wait()
    thread.join()
    manifest = fleet.manifest()
    assert manifest is not None
    row = manifest.row(host.name)
    if row.state is not HostState.COLLECTED:
        raise RuntimeError(f"{row.state}: {row.reason}\n{fleet.log.read_text()[-2000:]}")
    return values(run_folder(fleet.folder, row)), seen


def watch(fleet: LocalFleet, host: MadeHost, seen: list[dict[str, Any]]) -> None:
    """Note the worker's context switches from a while after the run has begun until it ends."""
    time.sleep(3)
    pid = host.pid_in("fleet/worker.lock")
    before, at = threads(host, pid), time.monotonic()
    while host.pid_in("measuring.lock") is not None and fleet.command.poll() is None:
        now, cpus = threads(host, pid), instance_cpus(host)
        measured = time.monotonic() - at, now
        time.sleep(0.5)
    seconds, now = measured
    switches = sum(now[task][1] - before[task][1] for task in now if task in before)
    allowed = sorted({cpu for name, _ in now.values() for cpu in parse_cpus(name)})
    seen.append({"seconds": seconds, "switches_per_s": switches / seconds, "cpus": allowed, "instances": sorted(cpus)})


def threads(host: MadeHost, pid: int | None) -> dict[str, tuple[str, int]]:
    """Of each thread of a process on the host: the CPUs it may use, and its context switches."""
    text = host.run("sh", "-c", f"grep -H '' /proc/{pid}/task/*/status").stdout
    found: dict[str, tuple[str, int]] = {}
    for task in set(re.findall(r"task/(\d+)/", text)):
        own = "".join(line.partition("status:")[2] + "\n" for line in text.splitlines() if f"task/{task}/" in line)
        counts = [int(one) for one in re.findall(r"voluntary_ctxt_switches:\s*(\d+)", own)]
        found[task] = re.search(r"Cpus_allowed_list:\s*(\S+)", own)[1], sum(counts)  # type: ignore[index]
    return found


def instance_cpus(host: MadeHost) -> tuple[int, ...]:
    """The CPUs of the instances, as the run that measures there states them."""
    holder = json.loads((host.state / "measuring.lock").read_bytes() or b'{"run": ""}')
    manifest = Path(holder["run"]) / "manifest.json"
    return tuple(json.loads(manifest.read_bytes())["envelope"]["cpus"]) if manifest.is_file() else ()


def values(path: Path) -> dict[str, float]:
    """The median of the workload's rate over the instances of each backend."""
    run = load_run(path)
    found: dict[str, list[float]] = {}
    for sample in run.samples:
        if sample.metric.endswith(METRIC) and not sample.warmup:
            found.setdefault(sample.backend, []).append(sample.value)
    return {backend: statistics.median(those) for backend, those in found.items()}


if __name__ == "__main__":
    main()
