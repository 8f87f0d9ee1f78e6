"""``python -m tests.campaign``: kills, power cuts, hostile images and workloads, and a census of the machine.

Prints what was tried and what was lost, doubled, left, wrong or hung; the exit code is 1 if anything was. With the same
seed the same things are tried, at the same moments as far as the machine's pace allows.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tare.bench.locations import cache_directory
from tests.campaign.hostile_runs import HostileCommands, HostileImages
from tests.campaign.kills import Figures, Kills
from tests.campaign.machine import Place, read_host

HOSTILE = ("images", "commands")
KINDS = ("kills", "guests", *HOSTILE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=["kills"], choices=KINDS, metavar="KIND")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each kind (default 10)")
    parser.add_argument("--count", type=int, default=10**9, help="most of each kind")
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    _import_what_commands_need()
    host = read_host()
    found: dict[str, Figures] = {}
    for kind in arguments.kinds:
        found[kind] = _hostile(arguments, kind) if kind in HOSTILE else _kills(arguments, guests=kind == "guests")
    changes = read_host().changes(host)
    failed = sum(figures.failures for figures in found.values()) + len(changes)
    if arguments.json:
        told = {kind: msgspec.to_builtins(figures) for kind, figures in found.items()}
        sys.stdout.write(json.dumps({"kinds": told, "changed": changes}) + "\n")
    else:
        _print(found, changes)
    return int(failed > 0)


def _kills(arguments: argparse.Namespace, *, guests: bool) -> Figures:
    end = time.monotonic() + arguments.minutes * 60
    folder = Path(tempfile.gettempdir()) / f"tare-campaign-{arguments.seed}-{time.monotonic_ns()}"
    with Place(folder, cache_directory()) as place:
        kills = Kills(place, arguments.seed, guests=guests)
        kills.prepare()
        for _ in range(arguments.count):
            if time.monotonic() >= end:
                break
            kills.one()
    return kills.figures


def _hostile(arguments: argparse.Namespace, kind: str) -> Figures:
    end = time.monotonic() + arguments.minutes * 60
    folder = Path(tempfile.gettempdir()) / f"tare-campaign-{kind}-{arguments.seed}-{time.monotonic_ns()}"
    with Place(folder, cache_directory()) as place:
        if kind == "images":
            hostile: HostileImages | HostileCommands = HostileImages(place, arguments.seed, cache_directory())
        else:
            hostile = HostileCommands(place, arguments.seed)
            hostile.prepare()
        for _ in range(arguments.count):
            if time.monotonic() >= end:
                break
            hostile.one()
    return hostile.figures


def _import_what_commands_need() -> None:
    """So that a forked command does not import it each time."""
    import tare.bench.cli.main
    import tare.bench.session
    import tare.reports.html
    import tare.reports.samples  # noqa: F401


def _print(found: dict[str, Figures], changes: list[str]) -> None:
    for kind, figures in found.items():
        tried = ", ".join(f"{name} {count}" for name, count in sorted(figures.tried.items()))
        counts = f"lost {figures.lost}, doubled {figures.doubled}, left {figures.left}"
        wrong = f"wrong exit codes {figures.wrong_codes}, hung {figures.hung}"
        total = figures.tried.total()
        sys.stdout.write(f"{kind}: {total} tried ({tried}), {figures.ended_before} ended before; {counts}, {wrong}\n")
        for problem in figures.problems:
            sys.stdout.write(f"  {problem}\n")
    for change in changes:
        sys.stdout.write(f"changed on the host: {change}\n")


if __name__ == "__main__":
    sys.exit(main())
