"""The display: plain lines where nobody watches, an estimate that learns from what was seen."""

import io

from rich.console import Console

from tare.bench.design import make_design
from tare.bench.progress import RunDisplay, TimeLeft
from tests.unit.test_runner import suite


def test_the_estimate_learns_what_each_cell_takes():
    two = suite("fake", "broken")
    plan = make_design(two)
    left = TimeLeft(two, plan)
    seconds = {"fake": 1.0, "broken": 10.0}
    for planned in plan[: len(plan) // 2]:
        left.ended(planned, seconds[planned.cell.backend])
    rest = sum(seconds[planned.cell.backend] for planned in plan[len(plan) // 2 :])
    assert left.seconds() == rest
    for planned in plan[len(plan) // 2 :]:
        left.ended(planned, seconds[planned.cell.backend])
    assert left.seconds() == 0


def test_plain_lines_say_what_ran_how_long_and_what_is_left():
    out = io.StringIO()
    one = suite("fake")
    plan = make_design(one)
    with RunDisplay(Console(file=out, force_terminal=False, width=60)) as display:
        display.step("building [image]")
        display.begin(one, plan, {"fake": "vm (tcg)"})
        for position, planned in enumerate(plan, start=1):
            display.instance_started(planned, position, len(plan))
            display.instance_ended(planned, "it broke" if position == 2 else None, 1.5)
        display.finished()
    lines = out.getvalue().splitlines()
    assert "building [image]" in lines[0]
    assert len(lines) == 1 + len(plan)
    assert all("on vm (tcg)" in line for line in lines[1:])
    assert "1.50 s" in lines[1]
    assert "left" in lines[1]
    assert "failed: it broke" in lines[2]
    assert lines[-1].endswith("done")
    assert "\x1b" not in out.getvalue()


def test_a_terminal_shows_the_block_and_the_time_left():
    out = io.StringIO()
    one = suite("fake")
    plan = make_design(one)
    with RunDisplay(Console(file=out, force_terminal=True, width=120)) as display:
        display.begin(one, plan, {})
        display.instance_started(plan[0], 1, len(plan))
        display._live.refresh()
        display.instance_ended(plan[0], "it [broke]", 1.5)
        display.finished()
    assert "block 1/2" in out.getvalue()
    assert "left" in out.getvalue()
    assert "it [broke]" in out.getvalue()
