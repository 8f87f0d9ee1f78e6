"""The noise floor of a run of twins, and the causes that a host shows."""

from dataclasses import replace

import msgspec
import pytest

from tare.bench.analysis import analyse
from tare.bench.cli.noise import read_time
from tare.bench.disturbance import Disturbance
from tare.bench.linux.files import HostRoots
from tare.bench.model import Fact
from tare.bench.noise import TWINS, HostWatch, find_floors, noise_suite
from tare.bench.store import load_run
from tare.bench.units import Unit
from tests.synthetic import QUICK, write_run

CPU = "sys/devices/system/cpu"
STAT = "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 {other} 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 1\n"
INTERRUPTS = """           CPU0       CPU1
  9:          7        {nine}  IO-APIC   9-edge      acpi
 24:     {disk}          0 PCI-MSIX-0000:00:02.0   1-edge      virtio1-req.0
LOC:    {disk}    900000   Local timer interrupts
ERR:          0
"""
PROCESS = (
    "{pid} (some (odd) name) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 50 0 0 20 0 1 0 777 " + 15 * "1 " + "17 {cpu} 0 0 0 0 0"
)


def twins(tmp_path, **change):
    return twin_run(tmp_path, replace(QUICK, blocks=20, backends=TWINS, ratios={TWINS[1]: 1.0}, **change))


def twin_run(tmp_path, recipe):
    run = load_run(write_run(tmp_path / "run", recipe))
    suite = {"backend": [{"type": "bare-metal", "name": name} for name in TWINS]}
    return msgspec.structs.replace(run, manifest=msgspec.structs.replace(run.manifest, suite=suite))


def test_the_floor_follows_the_noise(tmp_path):
    quiet = find_floors(twins(tmp_path / "a", noise=0.002))
    loud = find_floors(twins(tmp_path / "b", noise=0.02))
    for calm, noisy in zip(quiet, loud, strict=True):
        assert (calm.subject, calm.metric) == (noisy.subject, noisy.metric)
        assert 5 < noisy.smallest_difference / calm.smallest_difference < 20
        assert calm.low < calm.ratio < calm.high
    # Boots of the second name have other values in the synthetic run.
    assert not any(floor.false_alarm for floor in quiet if floor.subject != "boot")


def test_each_subject_has_one_leading_metric_and_sizes_are_left_out(tmp_path):
    floors = find_floors(twins(tmp_path))
    leading = {floor.subject: floor.metric for floor in floors if floor.leading}
    assert leading == {
        "boot": "boot.total",
        "sysbench-cpu": "events",
        "fio": "read.iops",
        "perf-sched-pipe": "operation.time",
    }
    assert len({floor.subject for floor in floors}) == len(leading)
    assert Unit.BYTE not in {floor.unit for floor in floors}
    assert not any(floor.metric.startswith(("host.", "command.")) for floor in floors)


def test_a_host_that_differs_from_itself_is_found_out(tmp_path):
    recipe = replace(QUICK, blocks=20, backends=TWINS, ratios={TWINS[1]: 1.2}, noise=0.002)
    floors = find_floors(twin_run(tmp_path, recipe))
    assert next(floor for floor in floors if floor.metric == "events").false_alarm


def test_an_interrupted_or_empty_run_has_no_floor(tmp_path):
    run = twins(tmp_path)
    assert find_floors(msgspec.structs.replace(run, samples=run.samples[:0])) == []
    one_block = run.samples.taken(run.samples.numbers["block"] == 0)
    assert {floor.smallest_difference for floor in find_floors(msgspec.structs.replace(run, samples=one_block))} == {
        None
    }


def test_the_suite_takes_the_time_asked_for():
    assert noise_suite(90.5).sampling.max_time == 90.5
    assert all(subject.sampling.precision for subject in noise_suite(90.5).scenarios)
    assert [choice.type.name for choice in noise_suite(1).backends] == ["bare-metal", "bare-metal"]


@pytest.mark.parametrize("text", ["5s", "2h", "soon", "-3m"])
def test_times_that_make_no_sense(text):
    import typer

    with pytest.raises(typer.BadParameter, match="--time"):
        read_time(text)


def put(root, name: str, content: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content)


@pytest.fixture
def roots(tmp_path) -> HostRoots:
    put(tmp_path, "proc/stat", STAT.format(other=0))
    put(tmp_path, "proc/interrupts", INTERRUPTS.format(nine=1, disk=5))
    for number in (9, 24):
        put(tmp_path, f"proc/irq/{number}/smp_affinity_list", "0-1\n")
    put(tmp_path, f"{CPU}/online", "0-1\n")
    put(tmp_path, f"{CPU}/cpu1/topology/thread_siblings_list", "0-1\n")
    put(tmp_path, "proc/77/stat", PROCESS.format(pid=77, ticks=100, cpu=1))
    put(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n")
    return HostRoots(tmp_path / "proc", tmp_path / "sys", tmp_path / "etc")


def causes(watch: HostWatch, told=(), facts=()) -> dict[str, tuple[str, str]]:
    return {cause.code: (cause.seen, cause.remedy) for cause in watch.causes(told, facts)}


def test_what_happens_beside_the_measurement_is_named_with_its_remedy(roots, tmp_path):
    watch = HostWatch((1,), roots)
    put(tmp_path, "proc/stat", STAT.format(other=100_000_000))
    put(tmp_path, "proc/interrupts", INTERRUPTS.format(nine=10_000_000, disk=90_000_000))
    put(tmp_path, "proc/77/stat", PROCESS.format(pid=77, ticks=500, cpu=1))
    told = [
        Disturbance(span_s=2.0, cpus=1, steal_s=0.2, other_s=0.5, cpu_stall_s=0.5, frequency_hz=3e9, throttles=2),
        Disturbance(span_s=2.0, cpus=1, steal_s=0.0, other_s=None, frequency_hz=2e9, clock_step_s=-1.5),
    ]
    found = causes(watch, told, [Fact("virtualization", "QEMU", ""), Fact("address space randomisation", "2", "")])
    assert "took 5.0% of" in found["steal"][0]
    assert "other work took 25.0%" in found["other-load"][0]
    assert "some (odd) name (77) 4.0 s" in found["other-load"][0]
    assert "9 acpi" in found["interrupts"][0]
    assert "virtio1" not in found["interrupts"][0]  # on another CPU
    assert "(CPU 0) were busy" in found["smt-siblings"][0]
    assert "--only smt" in found["smt-siblings"][1]
    assert "2.00 to 3.00 GHz" in found["frequency"][0]
    assert "tune apply --only thp" in found["thp"][1]
    assert {"pressure-cpu", "throttling", "clock-step", "virtual-machine", "aslr"} <= found.keys()


def test_a_quiet_physical_host_has_no_cause(roots, tmp_path):
    put(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    quiet = Disturbance(span_s=2.0, cpus=1, steal_s=0.0, other_s=0.01, cpu_stall_s=0.01, frequency_hz=3e9, throttles=0)
    assert causes(HostWatch((1,), roots), [quiet], [Fact("virtualization", "none seen", "")]) == {}


def test_a_host_that_tells_nothing(tmp_path):
    assert causes(HostWatch((0,), HostRoots(tmp_path, tmp_path, tmp_path))) == {}


def test_a_twin_may_be_the_one_without_a_name_of_its_own(tmp_path):
    recipe = replace(QUICK, blocks=4, backends=("bare-metal", "again"), ratios={"again": 1.0})
    run = load_run(write_run(tmp_path / "run", recipe))
    for second, source in (({}, "twin"), ({"options": {"x": 1}}, "split")):
        suite = {"backend": [{"type": "bare-metal"}, {"type": "bare-metal", "name": "again", **second}]}
        manifest = msgspec.structs.replace(run.manifest, suite=suite)
        assert analyse(msgspec.structs.replace(run, manifest=manifest)).noise.source == source
