"""What is written into a cgroup's files and read out of them, on folders that look like one."""

import pytest

from tare.backends.cgroups.layout import Layout, Version
from tare.backends.cgroups.lifecycle import Cgroup, choose_controllers
from tare.backends.cgroups.limits import limit_confounds
from tare.bench.linux.files import HostRoots
from tare.bench.linux.memory import parse_fields, process_footprint
from tare.bench.linux.metering import keyed, nested, serviced
from tare.bench.linux.pressure import parse_stall_s

LIMITS = {"cpus": (1, 3), "memory_bytes": 2**28, "pids_max": 99, "io_device": "254:0"}


MORE_LIMITS = dict(LIMITS, cpu_quota=0.5, cpu_weight=400, io_read_bytes_per_s=2**20, io_write_ops_per_s=50)
STALL = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


def assert_missing_is_told(usage):
    absent = {name for name in usage.__struct_fields__ if getattr(usage, name) is None}
    assert absent - {"cpu_vcpu_s"} == set(usage.missing)  # a cgroup knows of no guest


def fill(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def v1_layout(root, *controllers, unified=True):
    return Layout(
        Version.HYBRID if unified else Version.V1,
        {name: root / name for name in controllers},
        root / "unified" if unified else None,
    )


def test_v1_takes_part_in_few_hierarchies_where_the_unified_tree_does_the_rest(tmp_path):
    every = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "freezer", "devices", "name=systemd")
    assert choose_controllers(v1_layout(tmp_path, *every)) == ("pids", "memory", "cpuset", "cpu", "blkio")
    assert {"cpuacct", "freezer"} < set(choose_controllers(v1_layout(tmp_path, *every, unified=False)))


def test_v1_joins(tmp_path):
    cgroup = Cgroup(v1_layout(tmp_path, "pids", "memory"), "tare-x")
    assert cgroup.clone_into == tmp_path / "unified/tare-x"
    assert cgroup.join_files_after_clone == (tmp_path / "pids/tare-x/tasks", tmp_path / "memory/tare-x/tasks")
    assert cgroup.join_files == (tmp_path / "unified/tare-x/cgroup.procs", *cgroup.join_files_after_clone)


def test_v1_controllers_mounted_together_share_a_folder(tmp_path):
    both = tmp_path / "cpu,cpuacct"
    layout = Layout(Version.V1, {"cpu": both, "cpuacct": both}, None)
    assert Cgroup(layout, "tare-x").folders == (both / "tare-x",)


def test_v1_limits(tmp_path):
    fill(tmp_path / "cpuset", {"cpuset.mems": "0-1\n", "cpuset.cpus": "0-7\n"})
    for name, files in {
        "cpuset/tare-x": ("cpuset.mems", "cpuset.cpus"),
        "memory/tare-x": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        "pids/tare-x": ("pids.max",),
        "blkio/tare-x": ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"),
    }.items():
        fill(tmp_path / name, dict.fromkeys(files, ""))
    Cgroup(v1_layout(tmp_path, "cpuset", "memory", "pids", "blkio"), "tare-x").set_limits(LIMITS)
    assert (tmp_path / "cpuset/tare-x/cpuset.cpus").read_text() == "1,3"
    assert (tmp_path / "cpuset/tare-x/cpuset.mems").read_text() == "0-1\n"
    assert (tmp_path / "memory/tare-x/memory.limit_in_bytes").read_text() == str(2**28)
    assert (tmp_path / "memory/tare-x/memory.memsw.limit_in_bytes").read_text() == str(2**28)
    assert (tmp_path / "pids/tare-x/pids.max").read_text() == "99"
    for way in ("read", "write"):
        assert (tmp_path / f"blkio/tare-x/blkio.throttle.{way}_bps_device").read_text().startswith("254:0 ")


def test_v1_without_swap_accounting(tmp_path):
    fill(tmp_path / "memory/tare-x", {"memory.limit_in_bytes": ""})
    Cgroup(v1_layout(tmp_path, "memory"), "tare-x").set_limits(LIMITS)
    assert (tmp_path / "memory/tare-x/memory.limit_in_bytes").read_text() == str(2**28)


def test_v1_limits_on_time_and_io(tmp_path):
    throttles = ("read_bps", "write_bps", "read_iops", "write_iops")
    fill(tmp_path / "cpu/tare-x", dict.fromkeys(("cpu.shares", "cpu.cfs_quota_us"), ""))
    fill(tmp_path / "blkio/tare-x", dict.fromkeys([f"blkio.throttle.{name}_device" for name in throttles], ""))
    cgroup = Cgroup(v1_layout(tmp_path, "cpu", "blkio"), "tare-x")
    unenforced = cgroup.set_limits(MORE_LIMITS)
    assert set(unenforced) == {"cpus", "memory_bytes", "swap_bytes", "pids_max"}
    names = ("cpu.shares", "cpu.cfs_quota_us")
    assert [(tmp_path / "cpu/tare-x" / name).read_text() for name in names] == ["4096", "50000"]
    written = [(tmp_path / f"blkio/tare-x/blkio.throttle.{name}_device").read_text() for name in throttles]
    assert written == ["254:0 1048576", f"254:0 {2**64 - 2}", "", "254:0 50"]


def test_v1_limits_that_are_not_enforced_are_told(tmp_path):
    fill(tmp_path / "cpu/tare-x", {"cpu.shares": ""})
    fill(tmp_path / "memory/tare-x", {"memory.limit_in_bytes": ""})
    fill(tmp_path / "blkio/tare-x", {})
    cgroup = Cgroup(v1_layout(tmp_path, "cpu", "memory", "blkio"), "tare-x")
    without_device = {name: value for name, value in MORE_LIMITS.items() if name != "io_device"}
    unenforced = cgroup.set_limits({**without_device, "swap_bytes": 0})
    assert "bandwidth" in unenforced["cpu_quota"]
    assert "swapaccount=1" in unenforced["swap_bytes"]
    assert "no block device" in unenforced["io_read_bytes_per_s"] == unenforced["io_write_ops_per_s"]
    assert "cpu_weight" not in unenforced
    found = {
        c.code for c in limit_confounds("native", MORE_LIMITS, unenforced, Version.HYBRID, host(tmp_path, swap=True))
    }
    assert found == {
        "no-limit-cpu_quota",
        "no-limit-swap",
        "no-limit-io_read_bytes_per_s",
        "no-limit-io_write_ops_per_s",
        "io-limit-direct-only",
    }
    calm = [
        c.code for c in limit_confounds("native", LIMITS, {"swap_bytes": "x"}, Version.V2, host(tmp_path, swap=False))
    ]
    assert calm == []


def host(root, *, swap):
    lines = "Filename Type Size Used Priority\n" + ("/dev/zram0 partition 100 0 -2\n" if swap else "")
    fill(root / "proc", {"swaps": lines})
    return root


def test_v2_limits_that_are_not_enforced_are_told(tmp_path):
    fill(tmp_path, {"cgroup.controllers": "", "cgroup.subtree_control": ""})
    (tmp_path / "tare-x").mkdir()
    unenforced = Cgroup(Layout(Version.V2, {}, tmp_path, tmp_path), "tare-x").set_limits(MORE_LIMITS)
    names = {"cpus", "memory_bytes", "swap_bytes", "pids_max", "cpu_quota", "cpu_weight"}
    assert set(unenforced) == names | {"io_read_bytes_per_s", "io_write_ops_per_s"}


def test_v1_refusal_names_the_file(tmp_path):
    (tmp_path / "pids/tare-x").mkdir(parents=True)
    with pytest.raises(OSError) as raised:
        Cgroup(v1_layout(tmp_path, "pids"), "tare-x").set_limits(LIMITS)
    assert raised.value.filename == str(tmp_path / "pids/tare-x/pids.max")


def test_v1_usage(tmp_path):
    fill(tmp_path / "unified/tare-x", {"cpu.stat": "usage_usec 30\nuser_usec 2500000\nsystem_usec 500000\n"})
    fill(tmp_path / "cpu/tare-x", {"cpu.stat": "nr_periods 3\nnr_throttled 1\nthrottled_time 2000000000\n"})
    memory = {
        "memory.usage_in_bytes": "4096\n",
        "memory.stat": "cache 1\ntotal_cache 2048\n",
        "memory.max_usage_in_bytes": "8192\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    }
    fill(tmp_path / "memory/tare-x", memory)
    usage = Cgroup(v1_layout(tmp_path, "cpu", "memory"), "tare-x").meter.usage()
    assert (usage.cpu_user_s, usage.cpu_system_s, usage.cpu_throttled_s) == (2.5, 0.5, 2.0)
    assert (usage.memory_current_bytes, usage.memory_peak_bytes, usage.oom_kills) == (4096, 8192, 3)
    assert usage.io_read_bytes is None
    assert set(usage.missing) >= {"io_read_bytes", "io_write_bytes", "pids_refused", "cpu_pressure_s"}
    assert_missing_is_told(usage)


def test_v1_usage_without_a_unified_tree_counts_ticks(tmp_path):
    fill(tmp_path / "cpuacct/tare-x", {"cpuacct.stat": "user 250\nsystem 50\n"})
    usage = Cgroup(v1_layout(tmp_path, "cpuacct", unified=False), "tare-x").meter.usage()
    assert (usage.cpu_user_s, usage.cpu_system_s) == (2.5, 0.5)
    assert {"memory_peak_bytes", "cpu_throttled_s"} <= set(usage.missing)
    assert_missing_is_told(usage)


def test_v1_io_is_missing_where_no_rule_makes_the_kernel_count(tmp_path):
    stat = "254:0 Read 10\n254:0 Write 20\n254:0 Sync 30\nTotal 30\n"
    files = {"blkio.throttle.io_service_bytes_recursive": stat, "blkio.throttle.read_bps_device": ""}
    fill(tmp_path / "unified/tare-x", {"cpu.stat": "user_usec 0\nsystem_usec 0\n"})
    fill(tmp_path / "blkio/tare-x", files)
    cgroup = Cgroup(v1_layout(tmp_path, "blkio"), "tare-x")
    assert cgroup.meter.usage().io_read_bytes is None
    rule = "254:0 18446744073709551614\n"
    fill(tmp_path / "blkio/tare-x", {"blkio.throttle.read_bps_device": rule})
    assert (cgroup.meter.usage().io_read_bytes, cgroup.meter.usage().io_write_bytes) == (10, None)
    fill(tmp_path / "blkio/tare-x", {"blkio.throttle.write_bps_device": rule})
    assert (cgroup.meter.usage().io_read_bytes, cgroup.meter.usage().io_write_bytes) == (10, 20)


def test_service_bytes_of_several_devices():
    text = "8:0 Read 1\n8:0 Write 2\n254:0 Read 10\n254:0 Write 20\n254:0 Total 30\nTotal 33\n"
    assert (serviced("Read")(text), serviced("Write")(text)) == (11, 22)
    assert serviced("Read")("Total 0\n") == 0


def test_v2_limits_and_usage(tmp_path):
    top = tmp_path / "cg"
    fill(
        top, {"cgroup.controllers": "cpu cpuset io memory pids", "cgroup.subtree_control": "cpu cpuset io memory pids"}
    )
    files = {
        "cpuset.cpus": "",
        "memory.max": "",
        "memory.swap.max": "",
        "pids.max": "",
        "cpu.max": "",
        "cpu.weight": "",
        "io.max": "",
        "cpu.stat": "usage_usec 3\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 7\nnr_throttled 3\n"
        "throttled_usec 500000\n",
        "memory.peak": "100\n",
        "memory.current": "50\n",
        "memory.events": "low 0\noom 2\noom_kill 1\n",
        "memory.stat": "anon 10\nfile 40\n",
        "pids.events": "max 5\n",
        **{f"{name}.pressure": STALL for name in ("cpu", "memory", "io")},
        "io.stat": "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:0 rbytes=1 wbytes=1\n",
    }
    fill(top / "tare-x", files)
    cgroup = Cgroup(Layout(Version.V2, {}, top, top), "tare-x")
    assert cgroup.set_limits(MORE_LIMITS) == {}
    # A write for each rate: the kernel keeps what a write does not name.
    assert (top / "tare-x/io.max").read_text().startswith("254:0 wiops=50")
    assert [(top / "tare-x" / name).read_text() for name in ("cpu.max", "cpu.weight")] == ["50000 100000", "400"]
    written = [
        (top / "tare-x" / name).read_text() for name in ("cpuset.cpus", "memory.max", "memory.swap.max", "pids.max")
    ]
    assert written == ["1,3", str(2**28), "0", "99"]
    usage = cgroup.meter.usage()
    assert (usage.cpu_user_s, usage.cpu_system_s, usage.cpu_throttled_s) == (2.0, 1.0, 0.5)
    assert (usage.memory_peak_bytes, usage.memory_current_bytes, usage.oom_kills) == (100, 50, 1)
    assert (usage.io_read_bytes, usage.io_write_bytes) == (4097, 8193)
    assert (usage.io_read_operations, usage.io_write_operations) == (1, 2)
    assert (usage.cpu_periods, usage.cpu_throttled_periods) == (7, 3)
    assert (usage.memory_file_bytes, usage.pids_refused) == (40, 5)
    assert (usage.cpu_pressure_s, usage.memory_pressure_s, usage.io_pressure_s) == (1.5, 1.5, 1.5)
    assert usage.missing == {}
    assert cgroup.join_files_after_clone == ()


def test_v2_says_what_is_missing(tmp_path):
    top = tmp_path / "cg"
    fill(top, {"cgroup.controllers": "", "cgroup.subtree_control": ""})
    fill(top / "tare-x", {"cpu.stat": "user_usec 0\nsystem_usec 0\n"})
    cgroup = Cgroup(Layout(Version.V2, {}, top, top), "tare-x")
    cgroup.set_limits(LIMITS)
    usage = cgroup.meter.usage()
    assert usage.memory_peak_bytes is usage.io_read_bytes is usage.cpu_throttled_s is usage.oom_kills is None
    assert_missing_is_told(usage)


def test_io_stat_and_keyed_files():
    assert nested("rbytes")("") == nested("rbytes")("254:0\n") == 0
    assert parse_stall_s("full avg10=0.00 total=1\n") is None
    text = "a 1\nb x\n\nc 2 3\nd 4\n"
    assert [keyed(name)(text) for name in ("a", "b", "c", "d", "e")] == [1, None, None, 4, None]


def test_footprint_of_processes(tmp_path):
    rollup = "5600-7fff ---p 00000000 00:00 0 [rollup]\nRss: 300 kB\nPss: 200 kB\nPrivate_Clean: 10 kB\n"
    rollup += "Private_Dirty: 90 kB\n"
    for pid in (7, 8):
        fill(tmp_path / str(pid), {"smaps_rollup": rollup})
    assert process_footprint([7, 8, 9], HostRoots(tmp_path)) == (400 * 1024, 200 * 1024, 600 * 1024)
    assert process_footprint([9], HostRoots(tmp_path)) == (None, None, None)
    assert parse_fields(rollup)["Rss"] == 300 * 1024
