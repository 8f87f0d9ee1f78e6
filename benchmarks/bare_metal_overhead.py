"""Whether `bare-metal` is the host: sysbench through the backend beside the same command run by hand.

By hand means a shell that has mounted the same overlay and runs `taskset chroot sysbench` in it, on the same CPU,
in the cgroup that it was started in. The two take turns, in changing order.

    python benchmarks/bare_metal_overhead.py [--rootfs DIR] [--json]

``ratios`` maps ``by-hand`` to our median of events per second over the median by hand; 1 is what it should be.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from start_latency import LEDGER, newest_rootfs, start_folder

from tare.backends.bare_metal import BareMetal
from tare.bench.errors import ExitCode, PrivilegeError, TareError
from tare.bench.interfaces import BackendContext, NoOptions
from tare.bench.ledger import Ledger, ResourceKind, clean
from tare.bench.model import Command, Envelope, Image, InstanceSpec
from tare.bench.process import PIPE, Popen, require_tool

BY_HAND = """
set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
for name in proc sys dev; do mount --rbind /$name "$2/root/$name"; done
while read -r line; do
    taskset -c "$3" chroot "$2/root" sysbench cpu --threads=1 --time="$4" run
    echo done
done
"""
END = "done\n"

Measure = Callable[[], float]


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rootfs", type=Path, help="root file system with sysbench (default: tare's newest image)")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each (default 20)")
    parser.add_argument("--seconds", type=int, default=1, help="length of each (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        result = compare(arguments.rootfs or newest_rootfs(), arguments.rounds, arguments.seconds)
    except TareError as error:
        print(f"bare_metal_overhead: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    finally:
        with contextlib.suppress(OSError):  # not there, or another benchmark uses it
            LEDGER.rmdir()
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"bare-metal / by hand: {result['ratios']['by-hand']:.4f}  {result['medians_per_s']}")
    return ExitCode.OK


def compare(rootfs: Path, rounds: int, seconds: int) -> dict[str, dict[str, float]]:
    """Alternate the two. Raises TareError."""
    if os.geteuid() != 0:
        raise PrivilegeError("it needs root, for mounts", remedy="run it with sudo")
    if not (rootfs / "usr/bin/sysbench").exists():
        raise TareError(f"{rootfs} has no sysbench", remedy="give a root file system with --rootfs DIR")
    clean(LEDGER)
    cpu = max(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {"bare-metal": [], "by-hand": []}
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(LEDGER))
        folder = Path(f"/var/tmp/tare-bare-metal-overhead-{os.getpid()}")
        stack.enter_context(ledger.holding(ResourceKind.DIRECTORY, folder))
        stack.enter_context(start_folder(folder))
        ours = stack.enter_context(start_ours(ledger, folder, rootfs, cpu, seconds))
        by_hand = stack.enter_context(start_by_hand(folder / "by-hand", rootfs, cpu, seconds))
        for number in range(rounds):
            pair = (("bare-metal", ours), ("by-hand", by_hand))
            for name, measure in pair if number % 2 else reversed(pair):
                rates[name].append(measure())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"ratios": {"by-hand": medians["bare-metal"] / medians["by-hand"]}, "medians_per_s": medians}


def events_per_s(output: str) -> float:
    """The rate that sysbench printed. Raises TareError."""
    found = re.search(r"events per second:\s+([\d.]+)", output)
    if found is None:
        raise TareError(f"sysbench printed no rate: {output.strip()[-300:]}")
    return float(found[1])


@contextlib.contextmanager
def start_ours(ledger: Ledger, folder: Path, rootfs: Path, cpu: int, seconds: int) -> Iterator[Measure]:
    """One instance of the backend."""
    image = Image("", "", rootfs.parent, rootfs, None, None, None, "", {}, 0)
    envelope = Envelope((cpu,), 2**29, 2**30, 256)
    others = tuple(sorted(os.sched_getaffinity(0) - {cpu}))
    backend = BareMetal(BackendContext(ledger, folder, folder, NoOptions(), others))
    command = Command(("sysbench", "cpu", "--threads=1", f"--time={seconds}", "run"), timeout_s=seconds + 60)
    try:
        backend.prepare(image, envelope)
        with backend.start(InstanceSpec(f"overhead-{os.getpid()}", image, envelope)) as instance:
            yield lambda: events_per_s(instance.execute(command).stdout.decode())
    finally:
        backend.close()


@contextlib.contextmanager
def start_by_hand(folder: Path, rootfs: Path, cpu: int, seconds: int) -> Iterator[Measure]:
    """A shell in a mount namespace of its own, asked by lines."""
    for below in ("root", "upper", "work"):
        (folder / below).mkdir(parents=True)
    shell = [str(require_tool("unshare")), "--mount", "sh", "-c", BY_HAND, "by-hand"]
    with Popen(
        [*shell, str(rootfs), str(folder), str(cpu), str(seconds)], stdin=PIPE, stdout=PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asking, answers = process.stdin, process.stdout

        def measure() -> float:
            asking.write("\n")
            asking.flush()
            lines = []
            while (line := answers.readline()) not in {END, ""}:
                lines.append(line)
            return events_per_s("".join(lines))

        try:
            yield measure
        finally:
            asking.close()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
