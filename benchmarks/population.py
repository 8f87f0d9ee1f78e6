"""A thousand live containers from one run: how fast they start, the last as the first, and the memory of each.

As many at a time as the backend can start, as a ramp does with a batch; the floor starts one after another.

Ours take turns with those of floor.c, a C program doing the same steps whose containers hold nothing but what the
kernel needs for them. Memory is what MemAvailable lost by all of them together, once it no longer changes; what the
kernel keeps in the page lists of single CPUs, which MemAvailable leaves out, is brought to the same level before each
reading. `ready_ratio_to_floor` counts those lists and the room in slabs too. The rate depends on the machine, so the
floor's own is told beside it.

    python benchmarks/population.py [--instances 1000] [--rootfs DIR] [--json]

Needs root and gcc. Leaves nothing behind, and counts that: cgroups, mounts, namespaces, overlay folders, processes.
What a killed run left is removed at the next.
"""

import argparse
import contextlib
import json
import mmap
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from start_latency import LEDGER, MEMORY_BYTES, PIDS_MAX, newest_rootfs, start_floor, start_folder

from tare.backends.cgroups.layout import find_layout
from tare.backends.native.backend import Native
from tare.backends.native.options import NativeOptions
from tare.bench.errors import ExitCode, MissingToolError, TareError
from tare.bench.interfaces import BackendContext, Instance
from tare.bench.ledger import Ledger, ResourceKind, clean
from tare.bench.linux.host_memory import HostMemory, read_memory
from tare.bench.linux.processes import read_statuses
from tare.bench.model import Envelope, Image, InstanceSpec, Phase
from tare.bench.process import find_tool

SETTLED_BYTES = 2 * 2**20
SETTLED_READINGS = 8
LEVELLING_BYTES = 192 * 2**20
REFRESH = Path("/proc/sys/vm/stat_refresh")
REFRESHES = 200
"""Enough for lists of 1.5 GB a CPU, of which each takes 8 MB."""


class Result(TypedDict):
    """What `--json` prints. Rates and latencies are medians over the rounds."""

    instances: int
    rounds: int
    rate_per_s: float
    floor_rate_per_s: float
    rate_ratio_to_floor: float
    growth_last_over_first: float
    floor_growth: float
    memory_bytes_each: float
    floor_memory_bytes_each: float
    memory_ratio_to_floor: float
    ready_ratio_to_floor: float
    stop_s: float
    left_behind: int
    left: list[str]


class Population(TypedDict):
    """One population of ours."""

    rate_per_s: float
    growth: float
    memory_bytes: float
    ready_bytes: float
    stop_s: float
    left: list[str]


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=1000, help="how many live at once (default 1000)")
    parser.add_argument("--rounds", type=int, default=2, help="populations of each kind (default 2)")
    parser.add_argument("--rootfs", type=Path, help="root file system to start (default: tare's newest image)")
    parser.add_argument(
        "--settle", type=float, default=60.0, help="wait at most so many seconds for memory to settle (default 60)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        rootfs = arguments.rootfs or newest_rootfs()
        result = measure(rootfs, arguments.instances, arguments.rounds, arguments.settle)
    except TareError as error:
        print(f"population: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    finally:
        with contextlib.suppress(OSError):  # not there, or another benchmark uses it
            LEDGER.rmdir()
    if arguments.json:
        print(json.dumps(result))
        return ExitCode.OK
    print(f"{result['instances']} containers at {result['rate_per_s']:.0f}/s, stopped in {result['stop_s']:.1f} s")
    print(f"the floor's at {result['floor_rate_per_s']:.0f}/s: {result['rate_ratio_to_floor']:.2f}")
    growths = f"{result['growth_last_over_first']:.2f}, the floor's {result['floor_growth']:.2f}"
    print(f"the last hundred starts / the first: {growths}")
    own, floor = result["memory_bytes_each"] / 1024, result["floor_memory_bytes_each"] / 1024
    print(f"memory: {own:.0f} KiB each, the floor's {floor:.0f} KiB: {result['memory_ratio_to_floor']:.2f}")
    print(f"with the free memory that MemAvailable leaves out: {result['ready_ratio_to_floor']:.2f}")
    print(f"left behind: {result['left_behind']} {' '.join(result['left'])}")
    return ExitCode.OK


def measure(rootfs: Path, count: int, rounds: int, settle_s: float) -> Result:
    """Alternate the two. Raises TareError."""
    if find_tool("gcc") is None:
        raise MissingToolError("gcc is not installed", remedy="apt-get install gcc libc6-dev")
    if count < 10:
        raise TareError("--instances: fewer than 10 tell nothing")
    clean(LEDGER)
    cpu = max(os.sched_getaffinity(0))
    layout = find_layout()
    floors: list[float] = []
    floors_ready: list[float] = []
    rates: list[float] = []
    growths: list[float] = []
    ours: list[Population] = []
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(LEDGER))
        folder = Path(f"/var/tmp/tare-population-{os.getpid()}")
        stack.enter_context(ledger.holding(ResourceKind.DIRECTORY, folder))
        stack.enter_context(start_folder(folder))
        floor = stack.enter_context(start_floor(folder, rootfs, layout, cpu))
        for _ in range(rounds):
            before = wait_settled(settle_s)
            latencies: list[float] = []
            began = time.monotonic()
            for _ in range(count):
                starting = time.monotonic()
                floor("keep")
                latencies.append(time.monotonic() - starting)
            rates.append(count / (time.monotonic() - began))
            growths.append(growth(latencies))
            after = wait_settled(settle_s)
            floors.append((before.available - after.available) / count)
            floors_ready.append((ready(before) - ready(after)) / count)
            floor("end")
            wait_settled(settle_s)
            ours.append(populate(ledger, folder, rootfs, cpu, count, settle_s))
    left = sorted({text for one in ours for text in one["left"]})
    memory = statistics.median(one["memory_bytes"] for one in ours)
    rate, floor_rate = statistics.median(one["rate_per_s"] for one in ours), statistics.median(rates)
    return {
        "instances": count,
        "rounds": rounds,
        "rate_per_s": rate,
        "floor_rate_per_s": floor_rate,
        "rate_ratio_to_floor": rate / floor_rate,
        "growth_last_over_first": statistics.median(one["growth"] for one in ours),
        "floor_growth": statistics.median(growths),
        "memory_bytes_each": memory,
        "floor_memory_bytes_each": statistics.median(floors),
        "memory_ratio_to_floor": memory / statistics.median(floors),
        "ready_ratio_to_floor": statistics.median(one["ready_bytes"] for one in ours) / statistics.median(floors_ready),
        "stop_s": statistics.median(one["stop_s"] for one in ours),
        "left_behind": len(left),
        "left": left,
    }


def populate(ledger: Ledger, folder: Path, rootfs: Path, cpu: int, count: int, settle_s: float) -> Population:
    """One population of ours, from the first start to the last thing removed."""
    work = folder / "native"
    work.mkdir(exist_ok=True)
    tag = f"population-{os.getpid()}"
    image = Image("", "", rootfs.parent, rootfs, None, None, None, "", {}, 0)
    envelope = Envelope((cpu,), MEMORY_BYTES, 2**30, PIDS_MAX)
    others = tuple(sorted(os.sched_getaffinity(0) - {cpu}))
    mounts = mount_lines(folder)
    backend = Native(BackendContext(ledger, work, folder / "cache", NativeOptions(), others))
    entries = len(ledger.entries())
    try:
        backend.prepare(image, envelope)
        before = wait_settled(settle_s)
        with contextlib.ExitStack() as stack:
            specs = [InstanceSpec(f"{tag}-{number}", image, envelope) for number in range(count)]
            began = time.monotonic()
            with ThreadPoolExecutor(backend.concurrent_starts) as threads:
                alive = list(threads.map(lambda spec: stack.enter_context(backend.start(spec)), specs))
            took = time.monotonic() - began
            after = wait_settled(settle_s)
            memory = (before.available - after.available) / count
            with_reserve = (ready(before) - ready(after)) / count
            theirs = set(processes_of(alive))
            stopping = time.monotonic()
            for instance in alive:
                instance.end()
        stopped = time.monotonic() - stopping
    finally:
        backend.close()
    left = [f"cgroup {path}" for path in Path("/sys/fs/cgroup").rglob(f"tare-{tag}-*") if path.is_dir()]
    left += [f"mount {line}" for line in mount_lines(folder) if line not in mounts]
    left += [f"folder {path}" for path in work.iterdir()]
    left += [f"process {text}" for text in processes_left(theirs, tag)]
    left += ["ledger entries"] * (len(ledger.entries()) - entries)
    latencies = [instance.timeline.between(Phase.REQUESTED, Phase.READY) or 0.0 for instance in alive]
    return {
        "rate_per_s": count / took,
        "growth": growth(latencies),
        "memory_bytes": memory,
        "ready_bytes": with_reserve,
        "stop_s": stopped,
        "left": left,
    }


def growth(latencies: list[float]) -> float:
    """The median of the last hundred starts over that of the first, in the order in which they were asked for."""
    part = max(1, min(100, len(latencies) // 4))
    return statistics.median(latencies[-part:]) / statistics.median(latencies[:part])


def wait_settled(deadline_s: float) -> HostMemory:
    """The host's memory once it has changed little for 8 s; there is no event for that, so it is looked at.

    The kernel gives the memory of network namespaces back 6 to 15 s after the last process, not at once.
    """
    deadline = time.monotonic() + deadline_s
    readings = [read_memory()]
    while time.monotonic() < deadline:
        time.sleep(1.0)
        readings.append(read_memory())
        last = [ready(reading) for reading in readings[-SETTLED_READINGS:]]
        if len(last) == SETTLED_READINGS and max(last) - min(last) < SETTLED_BYTES:
            break
    level_page_lists()
    return read_memory()


def level_page_lists() -> None:
    """Bring each CPU's lists of free pages to what the kernel keeps in them at rest.

    Up to 376 MB are in them just after a population has gone, 30 MB after one has been started: as much as 350 KiB for
    each container that MemAvailable would be wrong by. Memory that is given back fills them; since Linux 6.7 they grow
    by that, and each refresh of the kernel's statistics (readable by root) takes some of the growth back.
    """
    own = os.sched_getaffinity(0)
    try:
        for cpu in own:
            os.sched_setaffinity(0, {cpu})
            with mmap.mmap(-1, LEVELLING_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
                memory.madvise(mmap.MADV_NOHUGEPAGE)  # huge pages have lists of their own
                for page in range(0, LEVELLING_BYTES, mmap.PAGESIZE):
                    memory[page] = 1
    finally:
        os.sched_setaffinity(0, own)
    with contextlib.suppress(OSError):  # a kernel without that file has lists that do not grow
        for _ in range(REFRESHES):
            REFRESH.read_bytes()


def ready(memory: HostMemory) -> float:
    """MemAvailable, and the free memory that it leaves out (decision 0119)."""
    return float(memory.available + memory.reserve)


def mount_lines(folder: Path) -> list[str]:
    """Our own mounts that name ``folder``."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


def processes_of(instances: list[Instance]) -> Iterator[tuple[int, int]]:
    """The processes in the network namespaces of live containers: pid and start time, which name one for good.

    A namespace's number does not: the kernel gives it to the next one that is made.
    """
    own = str(Path("/proc/self/ns/net").readlink())
    pids = [getattr(instance, "pid") for instance in instances]  # noqa: B009 - an instance of ours has one
    namespaces = {str(Path(f"/proc/{pid}/ns/net").readlink()) for pid in pids} - {own}
    for pid, status in read_statuses().items():
        with contextlib.suppress(OSError):
            if str(Path(f"/proc/{pid}/ns/net").readlink()) in namespaces:
                yield pid, status.started


def processes_left(theirs: set[tuple[int, int]], tag: str) -> Iterator[str]:
    """Processes that were in the population's namespaces, or are in one of its cgroups."""
    for pid, status in read_statuses().items():
        with contextlib.suppress(OSError):
            if (pid, status.started) in theirs or tag.encode() in Path(f"/proc/{pid}/cgroup").read_bytes():
                yield str(pid)


if __name__ == "__main__":
    sys.exit(main())
