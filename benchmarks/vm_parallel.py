"""Whether many guests that are started at the same time all answer, and whether they are all gone afterwards.

    python benchmarks/vm_parallel.py [--guests N] [--cpus N] [--image NAME] [--json]

As many threads as guests each start one, on the same CPUs. Each executes a command when all are ready; then all are
stopped. With --json one object: `answered` and `left` count guests, `first_s` and `last_s` are the times until the
first and the last was ready, `stopped_s` the time from asking them to end until nothing was left. The exit code is 1 if
one did not answer or something was left.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vm_start import find_image, start_folder

from tare.backends.cgroups.layout import find_layout
from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.options import VmOptions
from tare.bench.errors import ExitCode, TareError
from tare.bench.interfaces import BackendContext, Instance
from tare.bench.ledger import Ledger, ResourceKind, clean
from tare.bench.locations import cache_directory
from tare.bench.model import Command, Envelope, InstanceSpec, Phase

BASE = Path("/var/tmp/tare-vm-parallel")
MEMORY_BYTES = 256 * 2**20
SCRATCH_BYTES = 64 * 2**20
PIDS_MAX = 512


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--cpus", type=int, default=2, help="on how many CPUs, each guest on all (default 2)")
    parser.add_argument("--image", default="", help="name or digest of the image (default: the newest)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        result = measure(arguments.guests, arguments.cpus, arguments.image)
    except TareError as error:
        print(f"vm_parallel: {error}", file=sys.stderr)
        return int(error.exit_code)
    if arguments.json:
        print(json.dumps(result))
    else:
        print("  ".join(f"{name} {value}" for name, value in result.items()))
    return ExitCode.OK if result["answered"] == arguments.guests and not result["left"] else 1


def measure(guests: int, cpus: int, reference: str) -> dict[str, Any]:
    """Start them all, ask them all, stop them all. Raises TareError."""
    clean(BASE / "ledger")
    folder = BASE / str(os.getpid())
    envelope = Envelope(tuple(sorted(os.sched_getaffinity(0))[-cpus:]), MEMORY_BYTES, SCRATCH_BYTES, PIDS_MAX)
    prefix = f"parallel-{os.getpid()}-"
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(BASE / "ledger"))
        stack.enter_context(ledger.holding(ResourceKind.DIRECTORY, folder))
        stack.enter_context(start_folder(folder))
        image = find_image(reference, ledger)
        backend = VirtualMachine(BackendContext(ledger, folder, cache_directory(), VmOptions(), ()))
        stack.callback(backend.close)
        described = backend.prepare(image, envelope)
        began = time.monotonic()
        specs = [InstanceSpec(f"{prefix}{number}", image, envelope) for number in range(guests)]
        answered, ready, asked = _run(backend, specs)
        stopped = time.monotonic()
    with contextlib.suppress(OSError):  # somebody else's benchmark may be using them
        (BASE / "ledger").rmdir()
        BASE.rmdir()
    return {
        "guests": guests,
        "answered": answered,
        "left": _left(prefix),
        "first_s": min(ready) - began,
        "last_s": max(ready) - began,
        "stopped_s": stopped - asked,
        "accel": described.accelerator,
    }


def _run(backend: VirtualMachine, specs: list[InstanceSpec]) -> tuple[int, list[float], float]:
    """How many answered, when (monotonic) each was ready, and when they were asked to end. Raises BackendError."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(specs)) as pool:
        contexts = [backend.start(spec) for spec in specs]

        def start(number: int) -> Instance:
            instance = contexts[number].__enter__()
            stack.push(contexts[number])
            return instance

        instances = list(pool.map(start, range(len(specs))))
        answers = [instance.execute(Command(("echo", "here"))).stdout for instance in instances]
        asked = time.monotonic()
        for instance in instances:
            instance.end()
    return answers.count(b"here\n"), [instance.timeline.marks[Phase.READY] for instance in instances], asked


def _left(prefix: str) -> int:
    """How many guests have a process or a cgroup left."""
    layout = find_layout()
    roots = {folder for folder in (layout.unified, *layout.controllers.values()) if folder is not None}
    names = {folder.name for root in roots for folder in root.glob(f"tare-{prefix}*")}
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = process.read_bytes().decode(errors="replace")
            if "qemu-system" in line and prefix in line:
                names.add(process.parent.name)
    return len(names)


if __name__ == "__main__":
    sys.exit(main())
