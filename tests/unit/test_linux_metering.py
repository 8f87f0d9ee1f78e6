"""The meter of a cgroup on copies of the files of kernels, wherever the folder lies and whoever made it."""

import os
from pathlib import Path

import pytest

from tare.bench.linux import metering
from tare.bench.linux.cgroups import find_folders
from tare.bench.linux.files import HostRoots
from tare.bench.linux.metering import CgroupMeter, total
from tare.bench.linux.processes import read_statuses, written_bytes
from tare.bench.model import Footprint, Usage

HYBRID = Path(__file__).parents[1] / "data/linux-6.18/cgroup-hybrid"
"""A group in which a shell wrote and read 20 times 64 KiB, ran out of memory once and of processes thrice."""
EXPECTED = Usage(
    cpu_user_s=0.050937,
    cpu_system_s=0.067944,
    memory_peak_bytes=32 * 2**20,
    memory_current_bytes=8192,
    io_read_bytes=20 * 2**16,
    io_write_bytes=20 * 2**16,
    cpu_throttled_s=0.0,
    oom_kills=1,
    cpu_periods=7,
    cpu_throttled_periods=0,
    memory_file_bytes=0,
    io_read_operations=20,
    io_write_operations=20,
    cpu_pressure_s=0.169527,
    memory_pressure_s=0.008753,
    io_pressure_s=0.003729,
    pids_refused=3,
)


def test_v1_with_a_v2_tree():
    usage = CgroupMeter(HYBRID.iterdir()).usage()
    assert usage == EXPECTED
    assert usage.missing == {}


def test_v1_alone_counts_cpu_time_in_ticks():
    folders = [path for path in HYBRID.iterdir() if path.name != "unified"]
    usage = CgroupMeter(folders).usage()
    assert usage.cpu_s == pytest.approx(EXPECTED.cpu_s, abs=0.02)
    assert set(usage.missing) == {"cpu_pressure_s", "memory_pressure_s", "io_pressure_s"}


def test_v1_alone_counts_cpu_time_in_nanoseconds_where_the_kernel_does(tmp_path):
    for name, text in {"cpuacct.stat": "user 0\nsystem 0\n", "cpuacct.usage_user": "1234567\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "cpuacct.usage_sys").write_text("765433\n")
    usage = CgroupMeter([tmp_path]).usage()
    assert (usage.cpu_user_s, usage.cpu_system_s) == (0.001234567, 0.000765433)


def test_what_v1_does_not_see_written_is_in_the_processes_own_accounts(tmp_path, monkeypatch):
    folder, proc = tmp_path / "blkio", tmp_path / "proc"
    folder.mkdir()
    files = {
        "blkio.throttle.io_service_bytes_recursive": "254:0 Read 0\n254:0 Write 13631488\n",
        "cgroup.procs": "4194301\n4194302\n4194303\n",
    }
    for name, text in (files | {"blkio.throttle.write_bps_device": "254:0 1\n"}).items():
        (folder / name).write_text(text)
    accounts = {"4194301": (67108864, 0), "4194302": (5000, 1000)}
    for pid, (written, cancelled) in accounts.items():
        (proc / pid).mkdir(parents=True)
        text = f"rchar: 1\nwchar: 2\nwrite_bytes: {written}\ncancelled_write_bytes: {cancelled}\n"
        (proc / pid / "io").write_text(text)
    roots = HostRoots(proc, tmp_path)
    monkeypatch.setattr(metering, "written_bytes", lambda pids: written_bytes(pids, roots))
    meter = CgroupMeter([folder])
    assert meter.usage().io_write_bytes == meter.read("io_write_bytes") == 13 * 2**20
    meter.waits_for_all = True
    assert meter.usage().io_write_bytes == meter.read("io_write_bytes") == 64 * 2**20 + 4000
    (folder / "io.stat").write_text("254:0 rbytes=0 wbytes=99 rios=0 wios=1")
    assert CgroupMeter([folder]).usage().io_write_bytes == 99
    assert written_bytes([4194303], roots) is None


def test_the_v2_tree_alone_has_neither_memory_nor_io():
    usage = CgroupMeter([HYBRID / "unified"]).usage()
    assert usage.cpu_s == EXPECTED.cpu_s
    assert usage.missing["memory_peak_bytes"] == "no memory cgroup controller"
    assert usage.missing["cpu_periods"] == "no cpu cgroup controller"
    assert "cpu_pressure_s" not in usage.missing


def test_a_kernel_without_a_file_is_told_from_one_without_the_controller(tmp_path):
    files = {"cgroup.controllers": "memory", "cpu.stat": "user_usec 1\nsystem_usec 1", "memory.current": "4096"}
    for name, text in {**files, "memory.pressure": "", "io.pressure": ""}.items():
        (tmp_path / name).write_text(text)
    missing = CgroupMeter([tmp_path]).usage().missing
    assert missing["memory_peak_bytes"].startswith("this kernel does not account for it in memory.peak")
    assert missing["io_read_bytes"] == "no io cgroup controller"
    assert missing["cpu_throttled_s"] == "no cpu cgroup controller"
    assert missing["memory_pressure_s"] == "the kernel keeps no PSI"


def test_a_group_that_is_gone_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        CgroupMeter([tmp_path / "gone"]).usage()


def test_the_groups_of_a_process_by_its_membership(tmp_path):
    mounts = (
        "1 0 0:9 / /cg/mem\\040ory rw - cgroup cgroup rw,memory\n2 0 0:8 /docker /cg/unified rw - cgroup2 none rw\n"
    )
    for name, text in (("self/mountinfo", mounts), ("7/cgroup", "4:memory:/docker/abc\n0::/docker/abc\n")):
        (tmp_path / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / name).write_text(text)
    folders, tops = find_folders(7, tmp_path)
    assert folders == {"memory": tmp_path / "cg/mem ory/docker/abc", "": tmp_path / "cg/unified/abc"}
    assert tops == {"memory": tmp_path / "cg/mem ory", "": tmp_path / "cg/unified"}
    assert CgroupMeter.of_process(7, tmp_path).folders == (folders[""], folders["memory"])
    assert find_folders(8, tmp_path) == ({}, {})


def test_a_group_that_is_everybody_s_is_not_the_process_s(tmp_path):
    mounts = "1 0 0:9 / /memory rw - cgroup cgroup rw,memory\n2 0 0:7 / /pids rw - cgroup cgroup rw,pids\n"
    mounts += "3 0 0:8 / /unified rw - cgroup2 none rw\n"
    for name, text in (
        ("self/mountinfo", mounts),
        ("self/cgroup", "4:memory:/ours\n3:pids:/\n0::/\n"),
        ("7/cgroup", "4:memory:/ours\n3:pids:/docker/abc\n0::/\n"),
        ("8/cgroup", "4:memory:/\n3:pids:/\n0::/\n"),
    ):
        (tmp_path / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / name).write_text(text)
    assert CgroupMeter.of_process(7, tmp_path).folders == (tmp_path / "pids/docker/abc",)
    with pytest.raises(LookupError, match="process 8 is in no cgroup of its own"):
        CgroupMeter.of_process(8, tmp_path)


def test_readings_are_added_up_by_part():
    one = Usage(1.0, 2.0, 10, 20, None, 5, missing={"io_read_bytes": "no io cgroup controller"})
    both = total({"container": one, "shim": Usage(0.5, 0.25, 1, 2, 3, 4)})
    assert (both.cpu_user_s, both.cpu_system_s, both.memory_peak_bytes, both.io_write_bytes) == (1.5, 2.25, 11, 9)
    assert both.io_read_bytes is None
    assert both.missing == {"io_read_bytes": "container: no io cgroup controller"}
    assert total({"a": Footprint(1, 1, 1, 0, 0, 2), "b": Footprint(2, 2, None, 1, 1, 1)}) == Footprint(
        3, 3, None, 1, 1, 3
    )
    with pytest.raises(ValueError, match="nothing"):
        total({})


def test_threads_of_the_kernel_are_no_members(tmp_path):
    """A guest's cgroup holds those that work for it."""
    kernels = [pid for pid, status in read_statuses().items() if status.is_kernel_thread]
    (tmp_path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in (os.getpid(), *kernels[:3])))
    assert CgroupMeter([tmp_path]).members() == [os.getpid()]
