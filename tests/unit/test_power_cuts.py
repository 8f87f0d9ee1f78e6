"""A run survives a power cut at any moment: what it reported as done is there, and going on doubles nothing."""

import json
import os
import random
from pathlib import Path

import pytest

from tare.bench.records import EventKind
from tare.bench.session import RunRequest, resume_run, start_run
from tare.bench.store import find_progress, load_run
from tests.campaign.after_power_cuts import Whole, check, shape_of
from tests.campaign.disk import Cut, Disk, Left
from tests.unit.session_fakes import SUITE, Display, Orders, make_place

SLICE = 8
"""Power cuts in the ordinary tests; TARE_POWER_CUTS asks for more."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    yield from make_place(tmp_path, monkeypatch)


class Teller(Display):
    """Notes on the disk what the user is told."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.disk = disk

    def instance_ended(self, planned, failure, seconds) -> None:
        if failure is None:
            self.disk.tell(planned.identifier)


def recorded(place: Path, interrupt_at: int = 0) -> tuple[list[Cut], Path]:
    """The power cuts of a run from its beginning; of one that goes on, if the user interrupts it first."""
    suite = place / "suite.toml"
    suite.write_text(SUITE)
    folder = place / "disk"
    folder.mkdir()
    path = folder / "runs" / "one"
    with Disk(folder) as disk:
        Orders.interrupt_at = interrupt_at
        start_run(RunRequest(suite, path), Teller(disk))
        Orders.reset()
        if interrupt_at:
            resume_run(path, Teller(disk))
    return disk.cuts, path


def resume(path: Path) -> None:
    Orders.reset()
    resume_run(path, Display())


@pytest.mark.parametrize("interrupt_at", [0, 3])
def test_what_was_reported_is_there_and_nothing_is_doubled(place, interrupt_at):
    cuts, path = recorded(place, interrupt_at)
    whole = Whole.of(path)
    assert len(cuts) > 60
    wanted = int(os.environ.get("TARE_POWER_CUTS", SLICE)) // 2
    chance = random.Random(f"{interrupt_at} {os.environ.get('TARE_POWER_CUTS_SEED', '')}")
    found = 0
    for number in range(wanted):
        cut, left = chance.choice(cuts), list(Left)[number % len(Left)]
        folder = place / f"cut-{number}"
        cut.rebuild(folder, left, chance)
        try:
            found += check(folder / "runs" / "one", set(cut.told), whole, resume)
        except Exception as error:
            error.add_note(f"after {cut.call}, number {cuts.index(cut)} of {len(cuts)}, left {left}: {folder}")
            raise
    assert found > wanted / 2


def test_a_power_cut_after_the_end_loses_nothing(place):
    cuts, path = recorded(place)
    cuts[-1].rebuild(place / "after", Left.NOTHING, random.Random(1))
    assert load_run(place / "after" / "runs" / "one").manifest.status == "complete"
    assert shape_of(load_run(place / "after" / "runs" / "one")) == shape_of(load_run(path))


@pytest.mark.parametrize("lost", ["events.jsonl", "samples.jsonl", "histograms.jsonl", "raw"])
@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_a_run_that_lost_any_of_its_files_goes_on_without_doubles(place, lost, how):
    _, path = recorded(place, interrupt_at=4)
    whole = Whole.of(path)
    damage(path / lost, how)
    before, known = names(path), len(load_run(path).events)
    check(path, set(), whole, resume)
    again = {one.instance for one in load_run(path).events[known:] if one.kind is EventKind.INSTANCE_STARTED}
    assert not again & before, "a name that was given is not given again"


def names(path: Path) -> set[str]:
    """The instances that any file of the run names."""
    lines = (line for file in path.glob("*.jsonl") for line in file.read_bytes().splitlines() if line.endswith(b"}"))
    named = {json.loads(line).get("instance", "") for line in lines}
    return {*named, *(folder.name for folder in path.glob("raw/*"))} - {""}


def damage(path: Path, how: str) -> None:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        if how == "missing":
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size * 2 // 3 if how == "cut" else 0)


def test_a_complete_run_whose_samples_are_gone_says_so_and_is_measured_again(place):
    _, path = recorded(place)
    whole = Whole.of(path)
    (path / "samples.jsonl").unlink()
    run = load_run(path)
    assert len(run.lacking) == 6
    assert any("6 instances are said to be done and their samples are not all there" in one for one in run.warnings)
    assert find_progress(run).done == frozenset()
    resume(path)
    again = load_run(path)
    assert shape_of(again) == whole.shape
    assert {one.instance.partition("~")[2] for one in again.samples} == {"2"}
    assert [event.kind for event in again.events].count(EventKind.INSTANCE_DONE) == 12


def test_lines_that_are_there_twice_count_once(place):
    _, path = recorded(place)
    whole = Whole.of(path)
    for name in ("samples.jsonl", "histograms.jsonl", "events.jsonl"):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content + content)
    run = load_run(path)
    assert shape_of(run) == whole.shape
    assert [event.kind for event in run.events].count(EventKind.INSTANCE_DONE) == 6
    assert any("lines are there twice" in warning for warning in run.warnings)
