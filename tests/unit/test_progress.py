"""The display: plain lines where nobody watches, an estimate that learns from what was seen."""

import io
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from tare.bench.design import make_design
from tare.bench.errors import BackendError
from tare.bench.progress import RunDisplay, TimeLeft
from tare.bench.ready_suites import find_suite
from tare.bench.registry import find_backends, find_workloads
from tare.bench.suite import bind_suite, resolve_suite
from tests.unit.test_runner import suite


def test_the_estimate_learns_what_each_cell_takes():
    two = suite("fake", "broken")
    plan = make_design(two) * 6
    left = TimeLeft(two, plan)
    seconds = {"fake": 1.0, "broken": 10.0}
    for planned in plan[: len(plan) // 2]:
        left.ended(planned, seconds[planned.cell.backend])
    rest = sum(seconds[planned.cell.backend] for planned in plan[len(plan) // 2 :])
    assert left.seconds() == pytest.approx(rest)
    for planned in plan[len(plan) // 2 :]:
        left.ended(planned, seconds[planned.cell.backend])
    assert left.seconds() == 0


SECONDS = {"bare-metal": (0.05, 2.2, 0.6, 2.4), "native": (0.05, 2.1, 0.7, 2.5), "vm": (5.5, 9.0, 9.6, 11.9)}
"""What the instances of the ready suite quickstart took where the guest is emulated: start, CPU, system calls, disk."""


@pytest.mark.parametrize("seed", range(12))
def test_the_time_left_of_a_simulated_run_never_jumps_twofold(seed):
    found = find_backends(), find_workloads()
    file = find_suite(Path("quickstart"))
    quickstart = bind_suite(resolve_suite(tomllib.loads(file.read_text("utf-8")), file, *found, seed=seed))
    plan = make_design(quickstart)
    random = np.random.default_rng(seed)
    subjects = list(dict.fromkeys(planned.cell.subject for planned in sorted(plan, key=lambda one: one.cell.subject)))
    usual = {
        (backend, subject): seconds
        for backend, each in SECONDS.items()
        for subject, seconds in zip(subjects, each, strict=True)
    }
    durations = [usual[one.cell.backend, one.cell.subject] * random.lognormal(0, 0.3) for one in plan]
    left = TimeLeft(quickstart, plan)
    shown = [left.seconds()]
    for planned, seconds in zip(plan, durations, strict=True):
        left.ended(planned, seconds)
        shown.append(left.seconds())
    for before, after, seconds in zip(shown, shown[1:-1], durations, strict=False):
        assert (before - seconds) / 2 < after < 2 * before
    assert shown[-1] == 0
    half = len(plan) // 2
    assert shown[half] == pytest.approx(sum(durations[half:]), rel=0.3)


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


def test_what_runs_now_is_never_cut():
    out = io.StringIO()
    one = suite("fake")
    plan = make_design(one)
    params = {f"parameter_{number}": "a" * 12 for number in range(5)}
    long = msgspec.structs.replace(plan[0], cell=msgspec.structs.replace(plan[0].cell, params=params))
    with RunDisplay(Console(file=out, force_terminal=True, width=80, color_system=None)) as display:
        display.begin(one, plan, {})
        display.instance_started(long, 1, len(plan))
        display._live.refresh()
    shown = "".join(out.getvalue().split())
    assert "…" not in shown
    for name, value in params.items():
        assert f"{name}={value}" in shown


def test_names_and_failures_cannot_give_orders_to_a_terminal():
    """What a suite, a backend or a tool wrote is shown, never obeyed."""
    order, shown = "\x1b]0;owned\x07\x9b2J", "\ufffd]0;owned\ufffd\ufffd2J"
    one = suite("fake")
    plan = make_design(one)
    cell = msgspec.structs.replace(plan[0].cell, params={"file": f"{order}\rx"}, workload=f"w{order}")
    hostile = msgspec.structs.replace(plan[0], cell=cell)
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=300, color_system=None)
        with RunDisplay(console) as display:
            display.step(f"removed {order}")
            display.begin(one, plan, {"fake": f"vm {order}"})
            display.instance_started(hostile, 1, len(plan))
            if display._live is not None:
                display._live.refresh()
            display.instance_ended(hostile, str(BackendError(f"no {order}")), 1.5)
        for bad in ("\x1b]", "\x07", "\x9b", "owned\r"):
            assert bad not in out.getvalue()
        assert f"removed {shown}" in out.getvalue()
        assert f"vm {shown}" in out.getvalue()
        assert f"no {shown}" in out.getvalue()
        assert f"w{shown} file={shown} x" in out.getvalue()
