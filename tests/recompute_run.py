"""Every value that a run's workloads measured, computed again from the run's raw outputs by another way, exactly.

    python -m tests.recompute_run RUN

Reads the run's files as anybody could: JSON lines and gzip. The arithmetic is that of ``test_workload_recompute``,
which shares nothing with the parsers. Exits with 1 if a value differs, or one that can be computed was not stored.
"""

import gzip
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

from tests.unit.test_workload_recompute import RECOMPUTE
from tests.unit.workload_captures import DURATION_S

HARNESS = ("host.", "command.", "guest.", "instance.", "boot.")
"""What tare measures around a command, and no tool prints."""
BY_CLOCK = {"xz", "pixz"}
"""These print bytes only: their rates are over the host's duration of the command."""


def main(run: Path) -> int:
    """Compare all, print a line for each workload and each value that differs, and return the exit code."""
    durations: dict[str, float] = {}
    stored: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for line in (run / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if sample["metric"] == "command.duration":
            durations[sample["raw"]] = sample["value"]
        if sample["raw"] and not sample["metric"].startswith(HARNESS):
            stored[sample["workload"], sample["raw"]][sample["metric"]] = sample["value"]
    agreed: Counter[str] = Counter()
    differing: list[str] = []
    for (workload, raw), values in stored.items():
        text = gzip.decompress((run / raw).read_bytes()).decode()
        again = {name: float(value) for name, value in RECOMPUTE[workload](text).items()}
        if workload in BY_CLOCK:
            again = {name: round(value * DURATION_S) / durations[raw] for name, value in again.items()}
        for name in sorted(values.keys() | again.keys()):
            if values.get(name) == again.get(name):
                agreed[workload] += 1
            else:
                differing.append(f"{raw}: {name}: stored {values.get(name)}, computed again {again.get(name)}")
    for workload, count in sorted(agreed.items()):
        print(f"{workload}: {count} values agree exactly")
    print(*differing, sep="\n", end="\n" if differing else "")
    print(f"{sum(agreed.values())} values of {len(agreed)} workloads agree exactly, {len(differing)} differ")
    return int(bool(differing) or not agreed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
