"""Free memory that the kernel holds ready, read from what this kind of kernel really says."""

from pathlib import Path

import pytest

from tare.bench.linux.files import HostRoots
from tare.bench.linux.host_memory import parse_page_lists, parse_slab_room, read_reserve

DATA = Path(__file__).parent.parent / "data/linux-6.18"
PAGE = 4096


def test_the_lists_of_all_zones_and_cpus_are_counted():
    counts = list(parse_page_lists((DATA / "zoneinfo").read_text()))
    assert len(counts) == 3 * 2, "DMA, DMA32, Normal; two CPUs"
    assert sum(counts) > 1000
    assert all(count >= 0 for count in counts)


def test_room_is_what_slabs_have_beyond_their_objects():
    text = "slabinfo - version: 2.1\n# name\nsome 10 48 1024 16 4 : tunables 0 0 0 : slabdata 3 3 0\n"
    assert parse_slab_room(text) == {"some": 3 * 4 * PAGE - 10 * 1024}
    assert parse_slab_room(text.replace("some 10", "some 48")) == {"some": 0}


def test_a_real_table_is_read_whole():
    text = (DATA / "slabinfo").read_text()
    found = parse_slab_room(text)
    assert len(found) == len(text.splitlines()) - 2
    assert 0 < sum(found.values()) < 1 << 30


def test_what_counts_as_available_anyway_is_left_out(tmp_path):
    (tmp_path / "slabinfo").write_text((DATA / "slabinfo").read_text())
    pages, everything = read_reserve(HostRoots(tmp_path, tmp_path / "nothing"))
    for name in parse_slab_room((DATA / "slabinfo").read_text()):
        (tmp_path / "kernel/slab" / name).mkdir(parents=True)
        (tmp_path / "kernel/slab" / name / "reclaim_account").write_text("1\n" if name == "dentry" else "0\n")
    without_pages, without = read_reserve(HostRoots(tmp_path, tmp_path))
    assert pages == without_pages == 0
    assert everything - without == parse_slab_room((DATA / "slabinfo").read_text())["dentry"] > 0


@pytest.mark.parametrize("files", [(), ("zoneinfo",)])
def test_what_nobody_tells_is_nothing(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text((DATA / name).read_text())
    pages, slab_room = read_reserve(HostRoots(tmp_path, tmp_path))
    assert slab_room == 0
    assert (pages > 0) == bool(files)
