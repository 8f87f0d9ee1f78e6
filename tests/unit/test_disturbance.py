"""What disturbs an instance is read from files under roots that tests can put anywhere, as differences of counters."""

import msgspec
import pytest

from tare.bench.disturbance import Disturbance, DisturbanceMeter, between, disturbance_of, read_counters
from tare.bench.linux.files import HostRoots
from tare.bench.model import Completed, Usage
from tare.bench.records import Event, EventKind
from tests.unit.fakes import BrokenBackend, FakeBackend, FakeInstance
from tests.unit.test_runner import run

STAT = """cpu  999 0 999 999 0 0 0 999 0 0
cpu0 500 0 500 100 0 0 0 50 0 0
cpu1 {user} 10 20 300 4 5 6 {steal} 7 8
intr 12 34
"""
CPU1 = "sys/devices/system/cpu/cpu1"


def write(tmp_path, name: str, content: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)


@pytest.fixture
def roots(tmp_path) -> HostRoots:
    write(tmp_path, "proc/stat", STAT.format(user=100, steal=50))
    for name, total in (("cpu", 1_500_000), ("memory", 0)):
        write(tmp_path, f"proc/pressure/{name}", f"some avg10=0.00 total={total}\nfull avg10=0.00 total=7\n")
    write(tmp_path, f"{CPU1}/cpufreq/scaling_cur_freq", "3100000\n")
    write(tmp_path, f"{CPU1}/thermal_throttle/core_throttle_count", "3\n")
    write(tmp_path, "sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n")
    return HostRoots(tmp_path / "proc", tmp_path / "sys", tmp_path / "etc")


def usage(seconds: float | None) -> Usage:
    return Usage(seconds, 0.25 if seconds is not None else None, None, None, None, None)


def test_only_the_envelope_s_cpus_count_and_only_what_the_instance_did_not_use(roots, tmp_path):
    meter = DisturbanceMeter((1,), roots)
    write(tmp_path, "proc/stat", STAT.format(user=400, steal=70))
    write(tmp_path, "proc/pressure/cpu", "some avg10=0.00 total=2000000\n")
    write(tmp_path, f"{CPU1}/cpufreq/scaling_cur_freq", "2400000\n")
    write(tmp_path, f"{CPU1}/thermal_throttle/core_throttle_count", "5\n")
    meter.instance_ends(usage(1.25))
    found = meter.result()
    assert (found.busy_s, found.steal_s, found.interrupt_s) == (3.0, 0.2, 0.0)
    assert found.other_s == pytest.approx(1.5)
    assert (found.cpu_stall_s, found.memory_stall_s, found.io_stall_s) == (0.5, 0.0, None)
    assert (found.frequency_hz, found.throttles, found.clock_source) == (2.4e9, 2, "")


def test_what_comes_after_the_instance_s_end_is_not_its_disturbance(roots, tmp_path):
    meter = DisturbanceMeter((1,), roots)
    meter.instance_ends(usage(0.0))
    write(tmp_path, "proc/stat", STAT.format(user=900, steal=50))
    assert meter.result().busy_s == 0.0


def test_an_instance_that_cannot_tell_its_cost_leaves_the_other_load_unknown(roots):
    meter = DisturbanceMeter((1,), roots)
    meter.instance_ends(usage(1.0))
    meter.instance_ends(usage(None))
    assert meter.result().other_s is None


def test_clock_steps_and_changes_of_the_clock_source(roots):
    first = read_counters((1,), roots)
    later = msgspec.structs.replace(
        first, at_s=first.at_s + 10, raw_s=first.raw_s + 10.001, wall_s=first.wall_s - 2.5, clock_source="hpet"
    )
    found = between(first, later, 1, None)
    assert found.clock_step_s == pytest.approx(-2.5)
    assert found.clock_slew == pytest.approx(-1e-4, rel=1e-3)
    assert found.clock_source == "tsc to hpet"


def test_a_host_that_tells_nothing(tmp_path):
    found = DisturbanceMeter((0, 1), HostRoots(tmp_path, tmp_path, tmp_path)).result()
    assert (found.busy_s, found.other_s, found.cpu_stall_s, found.frequency_hz, found.throttles) == (None,) * 5
    assert found.span_s >= 0


def test_this_very_host_steps_no_clock_in_a_moment():
    found = DisturbanceMeter((0,)).result()
    assert abs(found.clock_step_s) < 1
    assert found.busy_s is not None


def test_it_survives_the_way_through_the_run_directory(roots):
    meter = DisturbanceMeter((1,), roots)
    meter.instance_ends(usage(0.0))
    event = Event(EventKind.INSTANCE_DONE, 5.0, "", details={"disturbance": meter.result()})
    back = msgspec.json.decode(msgspec.json.encode(event), type=Event)
    assert disturbance_of(back, 1.0) == meter.result()


def test_earlier_runs_tell_their_stalls():
    event = Event(EventKind.INSTANCE_DONE, 5.0, "", details={"steal_s": 9.0, "cpu_stall_s": 0.5, "load": [1.0]})
    assert disturbance_of(event, 1.0) == Disturbance(span_s=4.0, cpu_stall_s=0.5)
    assert disturbance_of(Event(EventKind.INSTANCE_DONE, 5.0, ""), 1.0) is None
    assert disturbance_of(msgspec.structs.replace(event, details={"disturbance": {"span_s": "x"}}), 1.0) is None


def test_every_instance_tells_it_also_the_failed_ones(tmp_path):
    _, loaded = run(tmp_path, {"fake": FakeBackend(), "broken": BrokenBackend()})
    ended = [event for event in loaded.events if event.kind in (EventKind.INSTANCE_DONE, EventKind.INSTANCE_FAILED)]
    told = {event.kind: disturbance_of(event, None) for event in ended}
    assert told[EventKind.INSTANCE_DONE].other_s is not None
    assert told[EventKind.INSTANCE_FAILED].other_s is None  # it never told what it cost


def test_an_instance_that_is_too_broken_to_tell_its_cost_fails_with_its_own_reason(tmp_path, monkeypatch):
    def breaks(self):
        raise RuntimeError("no meter")

    monkeypatch.setattr(FakeInstance, "usage", breaks)
    backend = FakeBackend()
    backend.answer = lambda command: Completed(command.argv, 3, None, b"", b"", 1.0, 2.0)
    _, loaded = run(tmp_path, {"fake": backend})
    failed = (event.message for event in loaded.events if event.kind is EventKind.INSTANCE_FAILED)
    messages = {message.partition(" (/")[0] for message in failed}  # without the place in the source
    assert messages == {
        "RuntimeError: no meter",
        "prepare failed with exit status 3",
    }  # boot asks for it, the other fails first
    assert backend.live == 0
