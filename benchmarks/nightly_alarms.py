"""Simulation with known truth: what the gate tells where nothing changed, and how soon it finds what did.

150 subjects with bare metal, a container and a guest: 300 ratios, each with a noise of 2 % from night to night (half of
its variance is the bare metal's, so that the two ratios of a subject share it), and levels that the host moves. Worlds
without any true change of a ratio: independent nights, AR(0.5) between nights, 3 % of the nights of each cell +25 %, a
host of two speeds, a host that drifts, a host that jumps by 15 % twice. Reruns are fresh draws, but for what a night is
taken to keep: all of the AR(1) state, and half of the nights that are 25 % off.

    python benchmarks/nightly_alarms.py [--histories N] [--steps N] [--seed S] [--only PART] [--otava PYTHON] [--json]

``--otava`` names the Python of an environment that has apache-otava; its detector then judges the same histories.

Bars: nights with any new finding at most 1 in 30 without reruns and 1 in 60 with them, in each world, with at most 10 %
of a night's cells measured again; a step of 5 % in one ratio of 300 after 20 nights found within five nights (without)
and two nights (with reruns) in 90 %; one of 3 % within seven nights in 80 % with reruns; located to one night in 80 %;
attributed rightly in 95 %.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tare.bench.errors import ExitCode
from tare.bench.history.changes import FALSE_DISCOVERIES, LEAST_BEFORE, Scan, scan, scan_ratios
from tare.bench.history.findings import Cause, attribute, locate
from tare.bench.history.gate import OTHER_FAMILIES
from tare.bench.history.nights import Nights, Series
from tare.bench.history.reruns import MOST_RERUNS, choose_suspicious, confirm
from tare.bench.model import Direction
from tare.bench.stats.comparisons import Floats

SUBJECTS, NIGHTS, BEFORE = 150, 60, 20
NOISE = 0.02
ASTRAY, FAR_OFF = 0.03, float(np.log(1.25))
OF_SUBJECT = np.repeat(np.arange(SUBJECTS), 2)
"""The subject of each of the 300 ratios."""


@dataclass(frozen=True)
class World:
    """What nights have: correlation of the cells' own noise, cells astray, and the level of the host by night."""

    name: str
    correlation: float = 0.0
    astray: float = 0.0
    host: Callable[[int, np.random.Generator], Floats] = lambda n, _: np.zeros(n)
    host_moves: bool = False


def _two_speeds(n: int, random: np.random.Generator) -> Floats:
    return np.where(random.random(n) < 0.5, 0.1, -0.1)


def _jumps(n: int, _: np.random.Generator) -> Floats:
    return 0.15 * (np.arange(n) >= n // 3) - 0.15 * (np.arange(n) >= 2 * n // 3)


WORLDS = (
    World("independent"),
    World("AR(0.5)", correlation=0.5),
    World("3 % of nights +25 %", astray=ASTRAY),
    World("two speeds of the host", host=_two_speeds),
    World("drift of the host", host=lambda n, _: -0.003 * np.arange(n), host_moves=True),
    World("jumps of the host", host=_jumps, host_moves=True),
)


@dataclass
class History:
    """Levels of bare metal and of the 300 isolated cells by night; what a night keeps for its reruns."""

    base: Floats
    isolated: Floats
    kept_base: Floats
    kept_isolated: Floats
    spread: float
    astray: float

    @property
    def ratios(self) -> Floats:
        """The logs of the ratios to bare metal, a row a night."""
        return self.isolated - self.base[:, OF_SUBJECT]

    def rerun(self, night: int, random: np.random.Generator) -> Floats:
        """The ratios of one more run in the same night."""
        fresh = random.standard_normal(SUBJECTS) * self.spread
        own = random.standard_normal(2 * SUBJECTS) * self.spread
        own += np.where(random.random(2 * SUBJECTS) < self.astray, FAR_OFF, 0.0)
        return self.kept_isolated[night] + own - (self.kept_base[night] + fresh)[OF_SUBJECT]


def make_history(world: World, random: np.random.Generator, nights: int = NIGHTS) -> History:
    """A history of a world, without any true change of a ratio."""
    spread = NOISE / np.sqrt(2)
    base = _process(nights, SUBJECTS, world.correlation, random) * spread
    isolated = _process(nights, 2 * SUBJECTS, world.correlation, random) * spread
    state = (base, isolated) if world.correlation else (np.zeros_like(base), np.zeros_like(isolated))
    off = np.where(random.random(isolated.shape) < world.astray, FAR_OFF, 0.0)
    lasting = np.where(random.random(isolated.shape) < 0.5, off, 0.0)
    host = world.host(nights, random)[:, None]
    left = 0.003 if world.correlation else spread
    return History(base + host, isolated + off + host, state[0], state[1] + lasting, left, world.astray)


def _process(nights: int, series: int, rho: float, random: np.random.Generator) -> Floats:
    values = np.empty((nights, series))
    values[0] = random.standard_normal(series)
    for night in range(1, nights):
        values[night] = rho * values[night - 1] + np.sqrt(1 - rho**2) * random.standard_normal(series)
    return values


class Gate:
    """The decisions of the gate over one history, night by night, with or without reruns."""

    def __init__(self, history: History, random: np.random.Generator, *, reruns: bool) -> None:
        self.history = history
        self.random = random
        self.reruns = reruns
        self.told = np.zeros(2 * SUBJECTS, dtype=bool)
        self.host_told = False
        self.again: dict[int, Floats] = {}
        self.shares: list[float] = []
        self.last: Scan | None = None

    def judge(self, night: int) -> list[int]:
        """The columns that are told for the first time."""
        ratios = self.history.ratios[: night + 1]
        found, plain = scan_ratios(ratios, OF_SUBJECT)
        self.last = found
        flagged = found.q <= FALSE_DISCOVERIES
        if self.reruns:
            suspicious = choose_suspicious(ratios, found, np.flatnonzero(self.told).tolist())
            flagged = self._measured_again(night, ratios, plain, suspicious, flagged)
        new = flagged & ~self.told
        self.told = (self.told & (flagged | self.reruns)) | flagged
        return np.flatnonzero(new).tolist()

    def _measured_again(self, night: int, ratios: Floats, plain: Scan, suspicious: list[int], flagged: Any) -> Any:
        cells = len(suspicious) + len(set(OF_SUBJECT[suspicious].tolist()))
        self.shares.append(cells / (3 * SUBJECTS))
        open_ones, rounds = list(suspicious), []
        confirmed: set[int] = set()
        for _ in range(MOST_RERUNS):
            if not open_ones:
                break
            row = np.full(2 * SUBJECTS, np.nan)
            row[open_ones] = self.history.rerun(night, self.random)[open_ones]
            rounds.append(row)
            self.again[night] = np.array(rounds)
            said = confirm(self.again, ratios, plain, suspicious)
            confirmed = {one.column for one in said if one.is_confirmed}
            decided = {one.column for one in said if one.is_decided}
            open_ones = [column for column in open_ones if column not in decided]
        result = flagged.copy()
        result[suspicious] = False
        result[sorted(confirmed)] = True
        return result

    def judges_host(self, night: int) -> bool:
        """Whether a change of bare metal is told for the first time."""
        q = scan(self.history.base[: night + 1]).q
        moved = bool((q <= OTHER_FAMILIES).any())
        new = moved and not self.host_told
        self.host_told = moved
        return new


def false_alarms(world: World, histories: int, seed: int, *, reruns: bool) -> dict[str, Any]:
    """How many nights have any new finding where no ratio changed."""
    nights = alarms = hosts = 0
    shares: list[float] = []
    for number in range(histories):
        random = np.random.default_rng([seed, number])
        gate = Gate(make_history(world, random), random, reruns=reruns)
        for night in range(LEAST_BEFORE + 1, NIGHTS):
            nights += 1
            alarms += bool(gate.judge(night))
            if not reruns and not world.host_moves:
                hosts += gate.judges_host(night)
        shares += gate.shares
    bar = 1 / 60 if reruns else 1 / 30
    result = {"nights": nights, "with_findings": alarms, "share": alarms / nights, "bar": bar}
    if reruns:
        return result | {"measured_again": float(np.mean(shares)), "measured_again_most": float(np.max(shares))}
    return result | ({} if world.host_moves else {"nights_with_host_findings": hosts})


def power(size: float, steps: int, seed: int, *, reruns: bool, within: int) -> dict[str, Any]:
    """How soon a step in one ratio is found after twenty nights, where, and whose it is called."""
    found_after, located, causes, others = [], [], [], 0
    for number in range(steps):
        random = np.random.default_rng([seed, 1000 + number])
        history = make_history(WORLDS[0], random, BEFORE + within)
        history.isolated[BEFORE:, 0] += np.log1p(size)
        history.kept_isolated[BEFORE:, 0] += np.log1p(size)
        gate = Gate(history, random, reruns=reruns)
        for night in range(BEFORE, BEFORE + within):
            new = gate.judge(night)
            others += len([column for column in new if column])
            if 0 in new:
                found_after.append(night - BEFORE + 1)
                place = locate(history.ratios[: night + 1], 0, gate.last, again=gate.again if reruns else None)  # type: ignore[arg-type]  # it has judged
                located.append(abs(place.row - BEFORE) <= 1)
                causes.append(attribute(_as_nights(history, night), history.ratios[: night + 1, :2], 0, place)[0])
                break
    return {
        "steps": steps,
        "found": len(found_after) / steps,
        "median_nights": float(np.median(found_after)) if found_after else None,
        "located": float(np.mean(located)) if located else None,
        "attributed": float(np.mean([cause is Cause.ISOLATION for cause in causes])) if causes else None,
        "others_told": others,
    }


def _as_nights(history: History, night: int) -> Nights:
    """The first subject as the attribution sees it: container, guest, bare metal."""
    levels = np.column_stack([history.isolated[: night + 1, :2], history.base[: night + 1, 0]])
    series = [
        Series(
            identifier=name,
            subject="s",
            suite="",
            experiment="steady",
            workload="w",
            params="{}",
            backend=name,
            metric="m",
            unit="s",
            direction=Direction.LOWER,
            leads=True,
            own=True,
            margin=0.02,
            is_baseline=name == "bare-metal",
        )
        for name in ("native", "vm", "bare-metal")
    ]
    nothing = np.zeros(levels.shape, dtype=np.int64)
    return Nights([], series, levels, levels, levels, nothing, nothing, nothing, [], np.array([2, 2, 2]), {})


def otava(python: str, histories: int, seed: int) -> dict[str, Any]:
    """Nights on which Apache Otava's detector, with its defaults, has a change point that it did not have before."""
    program = f"""
import json, sys
import numpy as np
from otava.series import AnalysisOptions, Series
for line in sys.stdin:
    values = np.exp(np.array(json.loads(line)))
    nights, alarms, seen = 0, 0, set()
    for night in range({LEAST_BEFORE + 1}, len(values)):
        new = False
        for column in range(values.shape[1]):
            data = {{"m": values[: night + 1, column].tolist()}}
            series = Series("t", None, list(range(night + 1)), {{"m": None}}, data, {{}})
            for point in series.analyze(AnalysisOptions()).change_points.get("m", []):
                if (column, point.index) not in seen:
                    seen.add((column, point.index))
                    new = True
        nights += 1
        alarms += new
    print(json.dumps([nights, alarms]), flush=True)
"""
    result = {}
    for world in WORLDS[:3]:
        lines = [
            json.dumps(make_history(world, np.random.default_rng([seed, number])).ratios.tolist())
            for number in range(histories)
        ]
        done = subprocess.run(
            [python, "-c", program], input="\n".join(lines), capture_output=True, text=True, check=True
        )
        counts = [json.loads(line) for line in done.stdout.splitlines()]
        nights, alarms = map(sum, zip(*counts, strict=True))
        result[world.name] = {"nights": nights, "with_findings": alarms, "share": alarms / nights}
    return result


def parts(given: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Each part with its figures, and whether it keeps its bars."""
    for world in WORLDS:
        for reruns in (False, True):
            name = f"{world.name}, {'with' if reruns else 'without'} reruns"
            if given.only in name:
                found = false_alarms(world, given.histories, given.seed, reruns=reruns)
                # A share of so many nights is itself uncertain: two standard errors.
                allowed = found["bar"] + 2 * np.sqrt(found["bar"] / found["nights"])
                yield name, found, found["share"] <= allowed and found.get("measured_again_most", 0) <= 0.10
    for size, reruns, within, wanted in ((0.05, False, 5, 0.9), (0.05, True, 2, 0.9), (0.03, True, 7, 0.8)):
        name = f"step of {size:.0%} within {within} nights, {'with' if reruns else 'without'} reruns"
        if given.only in name:
            found = power(size, given.steps, given.seed, reruns=reruns, within=within)
            kept = found["found"] >= wanted - 2 * np.sqrt(wanted * (1 - wanted) / given.steps)
            yield (
                name,
                found | {"bar": wanted},
                kept and (found["located"] or 0) >= 0.8 and (found["attributed"] or 0) >= 0.95,
            )
    if given.otava:
        for name, found in otava(given.otava, max(1, given.histories // 20), given.seed).items():
            yield f"Apache Otava, {name}", found, True


def main() -> int:
    """Print each part as it is known; the exit code says whether all bars are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=40)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--otava", default="", metavar="PYTHON")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results, kept = {}, True
    for name, found, good in parts(given):
        results[name] = found | {"kept": bool(good)}
        kept = kept and bool(good)
        if not given.json:
            figures = ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()
            )
            print(f"{'ok ' if good else 'MISSED '}{name}: {figures}", flush=True)
    if given.json:
        print(json.dumps({"seed": given.seed, "at": time.strftime("%F"), "parts": results}, indent=2))
    return ExitCode.OK if kept else ExitCode.FAILED_CELLS


if __name__ == "__main__":
    sys.exit(main())
