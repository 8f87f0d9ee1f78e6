"""Power from the kernel's counters of energy: which count, and what happens when one begins again."""

import pytest

from tare.bench.linux import energy
from tare.bench.linux.energy import EnergyMeter
from tare.bench.linux.files import HostRoots

ZONES = {
    "intel-rapl:0": ("package-0", 1_000_000),
    "intel-rapl:0:0": ("core", 5),
    "intel-rapl:0:1": ("dram", 2_000_000),
    "intel-rapl:1": ("psys", 7),
}


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with a package, its cores, its memory and the platform; time is in the test's hands."""
    clock = [100.0]
    monkeypatch.setattr(energy.time, "monotonic", lambda: clock[0])
    for zone, (name, counter) in ZONES.items():
        folder = tmp_path / "sys/class/powercap" / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{counter}\n")
        (folder / "max_energy_range_uj").write_text("9999999\n")

    def move(seconds, **counters):
        clock[0] += seconds
        for zone, counter in counters.items():
            (tmp_path / "sys/class/powercap" / zone.replace("_", ":") / "energy_uj").write_text(f"{counter}\n")

    return HostRoots(sys=tmp_path / "sys"), move


def moved(package, memory):
    return {"intel-rapl_0": package, "intel-rapl_0_1": memory, "intel-rapl_1": 10**9, "intel-rapl_0_0": 10**9}


def test_packages_and_memory_count_and_parts_of_them_do_not(host):
    roots, move = host
    meter = EnergyMeter(roots)
    assert meter.is_there
    move(2.0, **moved(5_000_000, 4_000_000))
    assert meter.watts_since_last() == pytest.approx(3.0)
    move(1.0)
    assert meter.watts_since_last() == 0


def test_a_counter_that_begins_again_is_no_negative_power(host):
    roots, move = host
    meter = EnergyMeter(roots)
    move(1.0, **moved(0, 2_000_000))
    assert meter.watts_since_last() == pytest.approx(9.0)


def test_a_host_without_counters_has_no_power(tmp_path):
    meter = EnergyMeter(HostRoots(sys=tmp_path))
    assert not meter.is_there
    assert meter.watts_since_last() is None


def test_a_counter_that_may_not_be_read_is_none(host):
    roots, _ = host
    (roots.sys / "class/powercap/intel-rapl:0/energy_uj").unlink()
    assert not EnergyMeter(roots).is_there
