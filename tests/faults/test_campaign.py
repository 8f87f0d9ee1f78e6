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
@pytest.mark.parametrize(("kind", "count"), [("images", "8"), ("commands", "6")])
def test_hostile_images_and_commands_change_nothing_hang_nothing_and_are_no_bug(kind, count):
    hostile = campaign(kind, "--count", count, "--seed", "7")[kind]
    assert hostile["problems"] == []
    assert hostile["tried"][kind.removesuffix("s")] == int(count)
