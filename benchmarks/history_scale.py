"""How a history of 1,000 nights with 300 ratios behaves: time and memory of an update, a gate, a publication; kills.

The nights before the last enter the index directly, as rows with the values a run would have; the last is a run
directory of 150 subjects with bare metal, a container and a guest in 4 blocks, entered by `tare history update`. Each
command is a process of its own, as a user would start it; its memory is the peak of its resident set. On a busy machine
its CPU seconds, printed too, say more than its seconds.

    python -m benchmarks.history_scale [--nights N] [--kills N] [--folder DIR] [--json]

Bars: update of one night under 2 s, gate under 3 s, publish under 30 s and 20 MB, each under 500 MB of memory. After
kill -9 of an update at each of 50 moments the index is whole or rebuilt by itself, and no run is lost.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tare.bench.errors import ExitCode
from tare.bench.history.entries import Indexed, read_entry
from tare.bench.history.index import FOLDER, add_indexed, open_history, update_history
from tests.nights import FIRST, Night, Plan, write_night

SUBJECTS = 150
PLAN = Plan(subjects=tuple(f"work-{n:03d}" for n in range(SUBJECTS)), blocks=4)
BARS = {"update": (2.0, "s"), "gate": (3.0, "s"), "publish": (30.0, "s"), "site": (20.0, "MB"), "memory": (500.0, "MB")}


def fill(runs: Path, nights: int) -> None:
    """Enter all nights but the last, made from one real entry by moving its values."""
    model = read_entry(write_night(runs, 0, Night(), plan=PLAN), 1)
    shutil.rmtree(runs / model.entry.folder)
    chance = np.random.default_rng(1)

    def night(number: int, place: int) -> Indexed:
        started = FIRST + timedelta(days=place)
        name = f"{started:%Y%m%d}-nightly"
        entry = msgspec.structs.replace(
            model.entry, number=number, run=name, folder=name, started_utc=started.isoformat(timespec="seconds")
        )
        moved = chance.standard_normal((len(model.rows), 2)) * 0.02
        rows = [
            msgspec.structs.replace(
                row,
                number=number,
                run=name,
                level=None if row.level is None else row.level + move[0],
                ratio=None if row.ratio is None else row.ratio + move[1],
                ratio_sd=None if row.ratio_sd is None else row.ratio_sd * math.exp(10 * move[0]),
                medians=[value * (1 + move[0]) for value in row.medians],
            )
            for row, move in zip(model.rows, moved.tolist(), strict=True)
        ]
        return Indexed(entry, rows, model.texts)

    for begin in range(0, nights - 1, 100):
        places = range(begin, min(begin + 100, nights - 1))
        add_indexed(runs, lambda first, places=places: [night(first + n, place) for n, place in enumerate(places)])  # type: ignore[misc]  # mypy knows no default of a lambda


_PARENT = """
import json, resource, subprocess, sys, time
began = time.monotonic()
done = subprocess.run([sys.executable, "-m", "tare", *sys.argv[1:]], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
print(json.dumps([done.returncode, seconds, cpu, used.ru_maxrss * 1024 / 1e6]))
"""


def timed(*words: str) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak memory in MB of a command of tare. Raises CalledProcessError for any failure.

    A small parent of its own tells them: a child's peak begins with that of the process that started it.
    """
    parent = [sys.executable, "-c", _PARENT, *words]
    code, seconds, cpu, peak = json.loads(subprocess.run(parent, stdout=subprocess.PIPE, text=True, check=True).stdout)
    if code not in (0, 10, 11):
        raise subprocess.CalledProcessError(code, words)
    return seconds, cpu, peak


def measure(runs: Path, nights: int) -> dict[str, float]:
    """The figures of the bars."""
    write_night(runs, nights - 1, Night(), plan=PLAN)
    site = runs.parent / "site"
    figures, memory = {}, 0.0
    for name, words in (
        ("update", ("history", "update", str(runs))),
        ("gate", ("gate", "--runs", str(runs))),
        ("publish", ("history", "publish", str(runs), "--output", str(site))),
    ):
        figures[name], figures[f"{name}_cpu"], peak = timed(*words)
        memory = max(memory, peak)
    figures["site"] = sum(path.stat().st_size for path in site.iterdir()) / 1e6
    return figures | {"memory": memory}


def kill_updates(folder: Path, kills: int) -> dict[str, Any]:
    """Kill updates at random moments; after each the index must be readable, and in the end hold every run."""
    runs = folder / "killed"
    plan = Plan(subjects=PLAN.subjects[:20], blocks=4)
    runs.mkdir()
    chance = random.Random(1)
    write_night(runs, 0, Night(), plan=plan)
    update_history(runs)
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "tare", "history", "update", str(runs)], check=True, capture_output=True)
    usual = time.monotonic() - began
    killed = unreadable = 0
    for number in range(1, kills + 1):
        write_night(runs, number, Night(), plan=plan)
        child = subprocess.Popen([sys.executable, "-m", "tare", "history", "update", str(runs)], stdout=subprocess.PIPE)
        time.sleep(chance.uniform(0.3, 1.6) * usual)
        killed += child.poll() is None
        child.kill()
        child.wait()
        try:
            with open_history(runs).start_query() as connection:
                connection.execute("SELECT sum(level) FROM cells").fetchall()
        except Exception:  # noqa: BLE001 - whatever it is, the index could not be read
            unreadable += 1
    update_history(runs)
    history = open_history(runs)
    with history.start_query() as connection:
        found = connection.execute("SELECT count(DISTINCT run) FROM cells").fetchall()[0][0]
    strangers = {path.name for path in (runs / FOLDER).glob("cells-*")} - set(history.catalogue.files)
    return {"killed": killed, "unreadable": unreadable, "lost": kills + 1 - found, "left_behind": len(strangers)}


def main() -> int:
    """Print the figures; the exit code says whether all bars are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        (folder / "runs").mkdir()
        fill(folder / "runs", given.nights)
        figures = measure(folder / "runs", given.nights)
        kills = kill_updates(folder, given.kills)
    missed = [name for name, (bar, _) in BARS.items() if figures[name] > bar]
    kept = not missed and not (kills["unreadable"] or kills["lost"] or kills["left_behind"])
    if given.json:
        print(
            json.dumps(
                {"nights": given.nights, "load": os.getloadavg()[0], **figures, "kills": kills, "missed": missed}
            )
        )
    else:
        for name, (bar, unit) in BARS.items():
            cpu = f", {figures[f'{name}_cpu']:.2f} s of CPU" if f"{name}_cpu" in figures else ""
            print(f"{'MISSED ' if name in missed else 'ok '}{name}: {figures[name]:.2f} {unit} (bar {bar:g}){cpu}")
        print(f"kills: {kills}; load {os.getloadavg()[0]:.1f}")
    return ExitCode.OK if kept else ExitCode.FAILED_CELLS


if __name__ == "__main__":
    sys.exit(main())
