"""``python -m tests.campaign``: kills, power cuts, hostile images and workloads, and a census of the machine.

Prints what was tried and what was lost, doubled, left, wrong or hung; the exit code is 1 if anything was. With the same
seed the same things are tried, at the same moments as far as the machine's pace allows.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from tare.bench.locations import cache_directory
from tare.bench.process import PIPE, STDOUT, Popen
from tare.bench.trees import remove_tree
from tests.campaign.hostile_runs import HostileCommands, HostileImages
from tests.campaign.kills import Figures, Kills
from tests.campaign.machine import Place, read_host
from tests.campaign.power_cuts import PowerCuts
from tests.campaign.sealed import layer, real_folder


class Kind(Protocol):
    """One kind of trial in a place."""

    figures: Figures

    def prepare(self) -> None: ...
    def one(self) -> None: ...


_UNIT_TESTS = "simulated power cuts, and every reader of foreign bytes"


class Fuzz:
    """The unit tests of power cuts and of readers of foreign bytes, with hundreds of examples each time."""

    def __init__(self, place: Place, seed: int) -> None:
        self.figures = Figures()
        self._seeds = itertools.count(seed)
        self._place = place

    def prepare(self) -> None: ...

    def one(self) -> None:
        """One pass with a seed of its own."""
        folder = str(self._place.folder / "pytest")
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", folder]
        argv += ["tests/unit/test_power_cuts.py", "tests/unit/test_foreign_bytes.py", "tests/unit/test_image_damage.py"]
        seed = str(next(self._seeds))
        argv += ["--hypothesis-seed", seed, "--tb=short"]
        more = {"TARE_POWER_CUTS": "200", "TARE_POWER_CUTS_SEED": seed, "TARE_FUZZ_EXAMPLES": "400"}
        env = {**os.environ, **more}
        with Popen(argv, stdout=PIPE, stderr=STDOUT, text=True, env=env) as process:
            said, _ = process.communicate()
        self.figures.tried[_UNIT_TESTS] += 1
        if process.returncode != 0:
            self.figures.note("lost", said[-4000:])


KINDS: Mapping[str, Callable[[Place, int], Kind]] = {
    "kills": Kills,
    "guests": partial(Kills, guests=True),
    "power-cuts": PowerCuts,
    "fuzz": Fuzz,
    "images": HostileImages,
    "commands": HostileCommands,
}
_SEALED = {"images", "commands"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*KINDS], choices=[*KINDS], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--minutes", type=float, default=10.0, help="of each kind (default 10)")
    parser.add_argument("--count", type=int, default=10**9, help="most of each kind")
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    _import_what_commands_need()
    host = read_host()
    apart = [kind for kind in arguments.kinds if kind in _SEALED and layer() is None]
    found = {kind: _run(KINDS[kind], arguments) for kind in arguments.kinds if kind not in apart}
    if apart:
        found |= _run_in_view(apart, arguments)
    changes = read_host().changes(host)
    failed = sum(figures.failures for figures in found.values()) + len(changes)
    if arguments.json:
        told = {kind: msgspec.to_builtins(figures) for kind, figures in found.items()}
        sys.stdout.write(json.dumps({"kinds": told, "changed": changes}) + "\n")
    else:
        _print(found, changes)
    return int(failed > 0)


def _run_in_view(kinds: list[str], arguments: argparse.Namespace) -> dict[str, Figures]:
    """These kinds in a view of the machine that may be spoilt."""
    base = Path(tempfile.mkdtemp(prefix="tare-campaign-view-", dir="/var/tmp"))
    bounds = [f"--{name}={getattr(arguments, name)}" for name in ("minutes", "count", "seed")]
    argv = [sys.executable, "-m", "tests.campaign.sealed", str(base), *kinds, *bounds, "--json"]
    try:
        with Popen(argv, stdout=PIPE) as process:
            said, _ = process.communicate()
    finally:
        remove_tree(base)
    if not said:
        sys.exit(f"the campaign in a view of its own ended with {process.returncode}")
    told = msgspec.json.decode(said)
    found = {kind: Figures(**one | {"tried": Counter(one["tried"])}) for kind, one in told["kinds"].items()}
    for change in told["changed"]:
        found[kinds[0]].note("lost", change)
    return found


def _run(make: Callable[[Place, int], Kind], arguments: argparse.Namespace) -> Figures:
    end = time.monotonic() + arguments.minutes * 60
    above = Path(tempfile.gettempdir()) if layer() is None else real_folder()
    folder = above / f"tare-campaign-{arguments.seed}-{time.monotonic_ns()}"
    with Place(folder, cache_directory()) as place:
        kind = make(place, arguments.seed)
        kind.prepare()
        for _ in range(arguments.count):
            if time.monotonic() >= end:
                break
            kind.one()
    return kind.figures


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
