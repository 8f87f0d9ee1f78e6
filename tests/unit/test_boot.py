"""What ``boot`` makes of marks: the time between them, and nothing where the clock did not resolve it."""

import contextlib
from types import SimpleNamespace

import pytest

from tare.bench.experiments.boot import Boot
from tare.bench.interfaces import Instance
from tare.bench.model import Completed, Footprint, Phase, StartTimeline, Usage

IN_ORDER = {
    Phase.REQUESTED: 1.0,
    Phase.CREATED: 1.25,
    Phase.FIRST_INSTRUCTION: 1.5,
    Phase.READY: 2.0,
    Phase.STOP_REQUESTED: 3.0,
    Phase.PROCESS_GONE: 3.5,
    Phase.STOPPED: 4.0,
}
PHASES = {"create": 0.25, "init": 0.25, "ready": 0.5, "total": 1.0, "stop": 1.0, "stop_process": 0.5, "release": 0.5}


def recorded(marks, footprint=None) -> dict[str, float]:
    """What is recorded of an instance with these marks."""
    timeline, found = StartTimeline(), {}
    for phase, at_s in marks.items():
        timeline.mark(phase, at_s)
    footprint = footprint or Footprint(1000, 500, 2000, 0, 0, 1, 3000)

    class Here(Instance):
        def execute(self, command):
            return Completed(command.argv, 0, None, b"", b"", 2.0, 2.125, timed_out=False)

        def usage(self):
            return Usage(1.0, 1.0, None, None, None, None)

        def footprint(self):
            return footprint

    instance = Here()
    instance.timeline = timeline

    class Run:
        workload = None
        image = SimpleNamespace(lacks=lambda _path: False)
        start = staticmethod(lambda: contextlib.nullcontext(instance))

        def execute(self, _instance, command, _role):
            return Completed(command.argv, 0, None, b"", b"", 2.0, 2.125, timed_out=False), ""

        def record(self, metric, value, *, raw=""):
            del raw
            if value is not None:
                found[metric.name.removeprefix("boot.")] = value

    Boot().run(Run())
    return found


def test_each_phase_is_the_time_between_two_marks():
    found = recorded(IN_ORDER)
    assert {name: found[name] for name in PHASES} == PHASES
    assert found["first_command"] == 0.125


@pytest.mark.parametrize(
    ("phase", "at_s", "without"),
    [
        (Phase.FIRST_INSTRUCTION, 1.25, {"init"}),
        (Phase.FIRST_INSTRUCTION, 1.125, {"init"}),
        (Phase.PROCESS_GONE, 2.5, {"stop_process"}),
        (Phase.PROCESS_GONE, 4.0, {"release"}),
    ],
)
def test_a_phase_that_the_clock_did_not_resolve_has_no_value(phase, at_s, without):
    found = recorded(IN_ORDER | {phase: at_s})
    assert PHASES.keys() - found.keys() == without
    assert all(found[name] > 0 for name in found.keys() & PHASES.keys())


@pytest.mark.parametrize(("ram", "rest"), [(600, 300), (900, None), (1000, None)])
def test_a_rest_of_memory_that_is_none_has_no_value(ram, rest):
    footprint = Footprint(1000, 500, 2000, 0, 0, 1, 3000, guest_ram_bytes=ram, tcg_cache_bytes=100)
    assert recorded(IN_ORDER, footprint).get("hypervisor") == rest
