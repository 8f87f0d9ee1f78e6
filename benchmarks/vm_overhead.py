"""Whether the vm backend adds anything to what runs in a guest: tools through it, beside the same commands by hand.

Both run in one guest. Ours is the backend's `execute`. By hand is a shell that was started in the guest beforehand,
outside the cgroup of tare's commands: it reads a command from a fifo, runs it with its output in files, and is asked
for them when it has ended; meanwhile what asked it sleeps. The two take turns, in changing order.

    python benchmarks/vm_overhead.py [--image NAME] [--rounds N] [--json]

`ratios` maps `by-hand:WORKLOAD` to our median of its first metric over the median by hand; 1 is what it should be.
`intervals` has 95 % for the centre of the rounds' own ratios, by the way of `tare.bench.stats` (two-sided, paired).
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from vm_start import find_image, start_folder

from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.options import VmOptions
from tare.bench.errors import ExitCode, TareError
from tare.bench.interfaces import BackendContext, Instance, Workload
from tare.bench.ledger import Ledger, ResourceKind, clean
from tare.bench.locations import cache_directory
from tare.bench.model import Command, Completed, Envelope, InstanceSpec
from tare.bench.registry import find_workloads
from tare.bench.stats.comparisons import centre_interval

BASE = Path("/var/tmp/tare-vm-overhead")
ENVELOPE_BYTES = 512 * 2**20
SCRATCH_BYTES = 256 * 2**20
PIDS_MAX = 512
WORKLOADS: Mapping[str, Mapping[str, Any]] = {
    "sysbench-cpu": {"runtime_s": 1},
    "fio": {"rw": "randread", "runtime_s": 1},
    "perf-sched-pipe": {"loops": 10_000},
    "perf-syscall": {"loops": 1_000_000},
}
BY_HAND = """
echo 0 >/sys/fs/cgroup/cgroup.procs
while read -r line </run/by-hand.ask; do
    sh -c "exec $line" </dev/null >/run/by-hand.out 2>/run/by-hand.err
    echo $? >/run/by-hand.end
done
"""


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="", help="name or digest of the image (default: the newest)")
    parser.add_argument("--rounds", type=int, default=30, help="runs of each, after one to warm up (default 30)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        result = measure(arguments.image, max(2, arguments.rounds))
    except TareError as error:
        print(f"vm_overhead: {error}", file=sys.stderr)
        return int(error.exit_code)
    if arguments.json:
        print(json.dumps(result))
        return ExitCode.OK
    for name, ratio in result["ratios"].items():
        low, high = result["intervals"][name]
        print(f"{name:26} {ratio:.4f}  [{low:.4f}, {high:.4f}]")
    print(f"{result['accel']}: {result['accel_reason']}")
    return ExitCode.OK


def measure(reference: str, rounds: int) -> dict[str, Any]:
    """Alternate the two and compare. Raises TareError."""
    clean(BASE / "ledger")
    folder = BASE / str(os.getpid())
    envelope = Envelope((max(os.sched_getaffinity(0)),), ENVELOPE_BYTES, SCRATCH_BYTES, PIDS_MAX)
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(BASE / "ledger"))
        stack.enter_context(ledger.holding(ResourceKind.DIRECTORY, folder))
        stack.enter_context(start_folder(folder))
        image = find_image(reference, ledger)
        backend = VirtualMachine(BackendContext(ledger, folder, cache_directory(), VmOptions(), ()))
        stack.callback(backend.close)
        described = backend.prepare(image, envelope)
        instance = stack.enter_context(backend.start(InstanceSpec(f"overhead-{os.getpid()}", image, envelope)))
        by_hand = ByHand(instance)
        values = {name: alternate(name, instance, by_hand, envelope, rounds) for name in WORKLOADS}
    with contextlib.suppress(OSError):  # somebody else's benchmark may be using them
        (BASE / "ledger").rmdir()
        BASE.rmdir()
    ratios, intervals = {}, {}
    for name, (ours, theirs) in values.items():
        ratios[f"by-hand:{name}"] = statistics.median(ours) / statistics.median(theirs)
        found = centre_interval(np.log(np.array(ours) / np.array(theirs)))
        assert found.low is not None
        assert found.high is not None
        intervals[f"by-hand:{name}"] = (math.exp(found.low), math.exp(found.high))
    return {
        "ratios": ratios,
        "intervals": intervals,
        "accel": described.accelerator,
        "accel_reason": described.texts["accel_reason"],
        "values": {name: {"vm": ours, "by-hand": theirs} for name, (ours, theirs) in values.items()},
    }


def alternate(
    name: str, instance: Instance, by_hand: "ByHand", envelope: Envelope, rounds: int
) -> tuple[list[float], list[float]]:
    """The values of a workload's first metric through the backend and by hand. Raises TareError."""
    workload = find_workloads().get(name)()
    commands = workload.commands(msgspec.convert(WORKLOADS[name], workload.Params), envelope)
    for command in commands.setup:
        check(instance.execute(command))
    ours: list[float] = []
    theirs: list[float] = []
    ways = ((instance.execute, ours), (by_hand.execute, theirs))
    for number in range(rounds + 1):
        for execute, values in ways if number % 2 else reversed(ways):
            values.append(first_value(workload, execute(commands.measured)))
    for command in commands.teardown:
        instance.execute(command)
    return ours[1:], theirs[1:]


def first_value(workload: Workload, completed: Completed) -> float:
    """What a workload says first. Raises TareError."""
    return workload.parse(check(completed))[0].value


def check(completed: Completed) -> Completed:
    """The same, if it ended well. Raises TareError."""
    if completed.returncode != 0:
        raise TareError(f"{shlex.join(completed.argv)} failed: {completed.stderr.decode(errors='replace')[-500:]}")
    return completed


class ByHand:
    """The shell in the guest."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._shell("mkfifo /run/by-hand.ask /run/by-hand.end")
        self._shell(f"setsid sh -c {shlex.quote(BY_HAND)} </dev/null >/dev/null 2>&1 &")

    def execute(self, command: Command) -> Completed:
        """Have it run ``command``; times are not told. Raises TareError."""
        ask = f"echo {shlex.quote(shlex.join(command.argv))} >/run/by-hand.ask; cat /run/by-hand.end"
        status = int(self._shell(ask, timeout_s=command.timeout_s))
        out, err = self._shell("cat /run/by-hand.out"), self._shell("cat /run/by-hand.err")
        return Completed(command.argv, status, None, out, err, 0.0, 0.0)

    def _shell(self, script: str, timeout_s: float = 60.0) -> bytes:
        return check(self._instance.execute(Command(("sh", "-c", script), timeout_s=timeout_s))).stdout


if __name__ == "__main__":
    sys.exit(main())
