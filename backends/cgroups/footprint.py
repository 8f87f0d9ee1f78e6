"""Memory of processes as the host sees it."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def process_footprint(pids: Iterable[int], proc: Path = Path("/proc")) -> tuple[int | None, int | None, int | None]:
    """(PSS, private, RSS) bytes summed over processes by ``smaps_rollup``; None if no process let itself be read.

    A process that ends meanwhile counts nothing. A kernel without ``smaps_rollup`` (before 4.14) gives None.
    """
    pss = private = rss = readable = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = parse_rollup((proc / str(pid) / "smaps_rollup").read_text())
            huge = fields.get("Private_Hugetlb", 0)  # which PSS leaves out
            pss += fields["Pss"] + huge
            private += fields["Private_Clean"] + fields["Private_Dirty"] + huge
            rss += fields["Rss"]
            readable += 1
    return (pss, private, rss) if readable else (None, None, None)


def parse_rollup(text: str) -> dict[str, int]:
    """The fields of ``smaps_rollup`` in bytes."""
    fields = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            fields[words[0].rstrip(":")] = int(words[1]) * 1024
    return fields


def tree_bytes(folder: Path) -> int:
    """Blocks allocated below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, files in os.walk(folder, onerror=None):
        for name in (*files, "."):
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512  # noqa: PTH118 - a walk over many
    return total
