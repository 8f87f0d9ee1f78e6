"""Power cuts in a real run: recorded at each call that writes, rebuilt in every way, looked at and resumed."""

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from tare.bench.errors import TareError
from tare.bench.store import attempt_of, find_progress, load_run
from tests.campaign.after_power_cuts import Whole, check_told
from tests.campaign.disk import Cut, Disk, Left
from tests.campaign.kills import BACKENDS, ENDED_WELL, SUITE, Figures
from tests.campaign.machine import Place


class PowerCuts:
    """Cuts of one recorded run in ``place``."""

    def __init__(self, place: Place, seed: int) -> None:
        self.place = place
        self.chance = random.Random(seed)
        self.figures = Figures()
        self._cuts: list[Cut] = []
        self._numbers = iter(range(10**9))
        self._disk = place.folder / "disk"
        self._run = self._disk / "runs" / "one"

    def prepare(self) -> None:
        """Record a run."""
        suite = self.place.folder / "suite.toml"
        suite.write_text(SUITE.format(backends=BACKENDS))
        self._disk.mkdir()
        kept = self.place.folder / "cuts"

        def recorded(run_tare: Callable[[], None]) -> None:
            with Disk(self._disk) as disk:
                try:
                    run_tare()
                finally:
                    kept.write_bytes(pickle.dumps(disk.cuts))

        code = self.place.run("run", str(suite), "--output", str(self._run), "--no-report", within=recorded)
        assert code == 0, self.place.said()
        self._cuts = pickle.loads(kept.read_bytes())
        self.whole = Whole.of(self._run)
        self.planned = find_progress(load_run(self._run)).done

    def one(self) -> None:
        """One power cut, in one of the ways that it may end; every third run is resumed."""
        number = next(self._numbers)
        place = self.chance.randrange(len(self._cuts))
        cut, left = self._cuts[place], list(Left)[number % len(Left)]
        folder = self.place.folder / f"cut-{number}"
        cut.rebuild(folder, left, self.chance)
        self.figures.tried[left] += 1
        try:
            self._look_at(folder / "runs" / "one", _told(cut), resume=number % 3 == 0)
        except (AssertionError, TareError, OSError, KeyError) as error:
            told = f"{type(error).__name__}: {error}"
            self.figures.note("lost", f"after call {place} of {len(self._cuts)} ({cut.call}), left {left}: {told}")

    def _look_at(self, path: Path, told: set[str], *, resume: bool) -> None:
        if not (path / "manifest.json").exists():
            assert not told, f"{sorted(told)} had been reported as done, and there is no run"
            return
        check_told(path, told, self.whole)
        complete = load_run(path).manifest.status == "complete" and find_progress(load_run(path)).done == self.planned
        if not resume or complete:
            return
        code = self.place.run("run", "--resume", str(path), "--no-report")
        if code not in ENDED_WELL:
            self.figures.note("wrong_codes", f"resume ended with {code}: {self.place.said()[-1000:]}")
            return
        check_told(path, told, self.whole)
        run = load_run(path)
        assert find_progress(run).done == self.planned
        attempts = {(attempt_of(one.instance)[0], one.instance) for one in run.samples}
        if len(attempts) > len(self.planned):
            self.figures.note("doubled", f"{sorted(attempts)}")
        for left in self.place.left():
            self.figures.note("left", left)


def _told(cut: Cut) -> set[str]:
    """The planned instances that were reported as done: something was written to the events after each."""
    names = {inode for tree in cut.written.names.values() for name, inode in tree.items() if name == "events.jsonl"}
    lines = [line for inode in names for line in cut.written.contents[inode].splitlines()]
    events = [msgspec.json.decode(line) for line in lines if line.endswith(b"}") and json.loads(line)]
    ended = [place for place, event in enumerate(events) if event["kind"] in {"instance_done", "instance_failed"}]
    return {attempt_of(events[place]["instance"])[0] for place in ended if place < len(events) - 1}
