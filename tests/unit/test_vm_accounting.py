"""Where the memory and the CPU time of QEMU go, by /proc."""

from pathlib import Path

import pytest

from tare.backends.vm.instance import find_guest_ram, memory_parts, vcpu_seconds
from tare.bench.linux.files import HostRoots
from tare.bench.linux.memory import Mapping, process_footprint

SMAPS = Path(__file__).parents[1] / "data/linux-6.18/smaps-qemu-tcg.txt"
"""Of a guest of 256 MiB under QEMU 7.2.22 with a translation cache of 48 MiB; mappings of libraries left out."""
MEMORY = 256 * 2**20
SHARED_RAM = """\
7f0000000000-7f0010000000 rw-s 00000000 00:01 7 /memfd:pc.ram (deleted)
Size:             262144 kB
Rss:              100000 kB
Pss:               60000 kB
"""
HUGE_RAM = """\
7f0000000000-7f0010000000 rw-s 00000000 00:01 7 /memfd:pc.ram (deleted)
Size:             262144 kB
Pss:                   0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:   81920 kB
"""


@pytest.fixture
def proc(tmp_path):
    def give(pid, **files):
        (tmp_path / str(pid)).mkdir()
        for name, text in files.items():
            (tmp_path / str(pid) / name).write_text(text)
        return HostRoots(proc=tmp_path)

    return give


def test_a_guest_under_tcg_in_its_parts(proc):
    parts = memory_parts(7, [7], MEMORY, translates=True, roots=proc(7, smaps=SMAPS.read_text()))
    assert (parts["guest_ram_bytes"], parts["tcg_cache_bytes"]) == (129024 * 1024, 49148 * 1024)


def test_a_guest_under_kvm_has_no_translated_code(proc):
    assert (
        memory_parts(7, [7], MEMORY, translates=False, roots=proc(7, smaps=SMAPS.read_text()))["tcg_cache_bytes"]
        is None
    )


def test_ram_that_a_helper_maps_too_is_counted_in_both(proc):
    proc(7, smaps=SHARED_RAM)
    root = proc(8, smaps=SHARED_RAM.replace("60000 kB", "40000 kB"))
    assert memory_parts(7, [7, 8, 9], MEMORY, translates=False, roots=root)["guest_ram_bytes"] == 100_000 * 1024


def test_huge_pages_are_counted_though_pss_leaves_them_out(proc):
    rollup = "Rss: 900 kB\nPss: 500 kB\nPrivate_Clean: 100 kB\nPrivate_Dirty: 300 kB\nPrivate_Hugetlb: 81920 kB\n"
    root = proc(7, smaps=HUGE_RAM, smaps_rollup=rollup)
    assert memory_parts(7, [7], MEMORY, translates=False, roots=root)["guest_ram_bytes"] == 81_920 * 1024
    assert process_footprint([7], root) == (82_420 * 1024, 82_320 * 1024, 900 * 1024)


def test_huge_pages_that_a_helper_touched_too_are_not_more_than_the_guest_has(proc):
    full = HUGE_RAM.replace("81920 kB", "262144 kB")
    proc(7, smaps=full)
    assert memory_parts(7, [7, 8], MEMORY, translates=False, roots=proc(8, smaps=full))["guest_ram_bytes"] == MEMORY


def test_the_ram_of_a_guest_is_the_mapping_of_its_size():
    sizes = (64 * 1024, 64 * 2**20, MEMORY, 2**30)
    mappings = [Mapping("rw-p", "", size, number) for number, size in enumerate(sizes)]
    assert find_guest_ram(mappings, MEMORY) == mappings[2]
    assert find_guest_ram(mappings, 2 * 2**30) is None


def test_of_a_process_that_is_gone_nothing_is_known(tmp_path):
    parts = memory_parts(7, [7], MEMORY, translates=True, roots=HostRoots(tmp_path))
    assert (parts["guest_ram_bytes"], parts["tcg_cache_bytes"]) == (None, None)
    assert vcpu_seconds(7, HostRoots(tmp_path)) is None


def test_time_of_the_vcpus_alone(proc):
    root = proc(7)
    threads = {
        "7": ("qemu-system-x86", "156698099 54019511 2037"),
        "8": ("IO iothread1", "2255311 5218337 36"),
        "9": ("CPU 0/TCG", "3333157719 126808841 2107"),
        "10": ("CPU 11/KVM", "1000000000 2500000000 9"),
    }
    for thread, (name, spent) in threads.items():
        folder = root.proc / "7/task" / thread
        folder.mkdir(parents=True)
        (folder / "comm").write_text(f"{name}\n")
        (folder / "schedstat").write_text(f"{spent}\n")
    assert vcpu_seconds(7, root) == pytest.approx(4.333157719)
