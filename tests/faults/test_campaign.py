"""A short slice of the campaign: in a process of its own, because it forks commands and must have no threads."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.root, pytest.mark.image]


def campaign(*arguments: str) -> dict[str, object]:
    argv = [sys.executable, "-m", "tests.campaign", "--json", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode in {0, 1}, done.stderr
    found = json.loads(done.stdout)
    assert found["changed"] == []
    return found["kinds"]


@pytest.mark.usefixtures("image")
def test_kills_and_signals_lose_double_and_leave_nothing():
    kills = campaign("kills", "--count", "5", "--seed", "5")["kills"]
    assert kills["problems"] == []
    assert sum(kills["tried"].values()) + kills["ended_before"] == 5


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(("kind", "count"), [("images", "5"), ("commands", "4")])
def test_hostile_images_and_commands_change_nothing_hang_nothing_and_are_no_bug(kind, count):
    hostile = campaign(kind, "--count", count, "--seed", "7")[kind]
    assert hostile["problems"] == []
    assert hostile["tried"][kind.removesuffix("s")] == int(count)


@pytest.mark.usefixtures("image")
def test_power_cuts_of_a_real_run_lose_nothing():
    cuts = campaign("power-cuts", "--count", "5", "--seed", "5")["power-cuts"]
    assert cuts["problems"] == []
    assert sum(cuts["tried"].values()) == 5


CENSUS = """
import os, subprocess, sys
from pathlib import Path
from tests.campaign.machine import HUNG, Place, read_host, wait
from tests.campaign.sealed import changed
base = Path(sys.argv[1])
with Place(base / "place", base / "cache") as place:
    assert place.left() == [], place.left()
    (place._cgroups[0] / "made").mkdir()
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        (place.folder / "work/made").mkdir()
        (place.folder / "mnt").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place.folder / "mnt"], check=True)
        found = place.left()
        for what in (f"cgroup {place._cgroups[0]}/made", f"process {sleeper.pid}", f"file {place.folder}/work/made",
                     f"mount {place.folder}/mnt"):
            assert any(one.startswith(what) for one in found), (what, found)
        sleeper.kill()
    subprocess.run(["umount", place.folder / "mnt"], check=True)
    (place.folder / "work/made").rmdir()
    (place._cgroups[0] / "made").rmdir()
    assert place.left() == [], place.left()
    assert wait(place.start("--version", within=lambda _: __import__("time").sleep(60)), 0.1) == HUNG
    assert place.run("--version") == 0
    assert place.said().startswith("tare ")
assert not (base / "place").exists()
before = read_host()
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/dev"], check=True)
os.mknod("/dev/null", 0o20600, os.makedev(1, 3))
assert any(change.startswith("/dev/null: ") for change in read_host().changes(before))
upper = base / "upper"
(upper / "etc").mkdir(parents=True)
(upper / "etc/passwd").touch()
(upper / "var/tmp").mkdir(parents=True)
assert changed(upper, [Path("/var/tmp")]) == ["/etc", "/etc/passwd"]
print("all found")
"""


def test_the_census_finds_what_is_left_and_what_has_changed(tmp_path):
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", CENSUS, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=200)
    assert done.stdout == "all found\n", done.stderr
