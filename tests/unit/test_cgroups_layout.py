"""Finding the cgroup hierarchies of hosts of every kind, from copies of their /proc."""

import os

import pytest

from tare.backends.cgroups.layout import WANTED, Layout, Version, find_layout
from tare.backends.cgroups.limits import outer_confounds
from tare.bench.linux.cgroups import find_memory_limit, has_met_memory_limit
from tare.bench.linux.files import HostRoots
from tare.bench.linux.mounts import find_block_device

HYBRID_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:9 - cgroup cgroup rw,cpuset
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_MEMBERSHIP = """\
9:name=systemd:/
8:pids:/
4:memory:/job/one
3:cpuset:/
1:cpu,cpuacct:/
0::/
"""


def below(root):
    return HostRoots(root / "proc", root / "sys")


def make_host(root, mounts, membership, folders):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mounts)
    (root / "proc/self/cgroup").write_text(membership)
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return root


def test_hybrid(tmp_path):
    folders = [
        f"sys/fs/cgroup/{name}" for name in ("cpu,cpuacct", "memory/job/one", "cpuset", "pids", "systemd", "unified")
    ]
    layout = find_layout(make_host(tmp_path, HYBRID_MOUNTS, HYBRID_MEMBERSHIP, folders))
    assert layout.version is Version.HYBRID
    assert layout.controllers["memory"] == tmp_path / "sys/fs/cgroup/memory/job/one"
    assert layout.controllers["cpu"] == layout.controllers["cpuacct"] == tmp_path / "sys/fs/cgroup/cpu,cpuacct"
    assert layout.unified == tmp_path / "sys/fs/cgroup/unified"
    assert layout.missing() == ("blkio",)
    assert [confound.code for confound in layout.confounds("native")] == ["no-blkio-controller"]


def test_what_v1_does_not_count_is_a_confound_unless_processes_are_asked(tmp_path):
    layout = Layout(Version.HYBRID, dict.fromkeys((*WANTED, "blkio"), tmp_path), tmp_path)
    assert [found.code for found in layout.confounds("engine")] == ["io-writes-partly"]
    assert layout.confounds("native", waits_for_all=True) == ()
    unified = Layout(Version.V2, {}, tmp_path, tmp_path)
    assert "io-writes-partly" not in [found.code for found in unified.confounds("engine")]


def test_v1_only(tmp_path):
    mounts = HYBRID_MOUNTS.replace(HYBRID_MOUNTS.splitlines(keepends=True)[-1], "")
    folders = [f"sys/fs/cgroup/{name}" for name in ("cpu,cpuacct", "memory/job/one", "cpuset", "pids", "systemd")]
    layout = find_layout(make_host(tmp_path, mounts, HYBRID_MEMBERSHIP, folders))
    assert layout.version is Version.V1
    assert layout.unified is None


def test_v2(tmp_path):
    mounts = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    host = make_host(tmp_path, mounts, "0::/user.slice/a\n", ["sys/fs/cgroup/user.slice/a"])
    (host / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory pids\n")
    (host / "sys/fs/cgroup/cgroup.subtree_control").write_text("memory\n")
    layout = find_layout(host)
    assert layout.version is Version.V2
    assert layout.unified == host / "sys/fs/cgroup/user.slice/a"
    assert layout.missing() == ("cpuset", "io")
    assert layout.granted() == {"memory"}, "cpu and pids can be enabled, and are not yet"


def test_a_named_hierarchy_beside_v2_is_v2(tmp_path):
    mounts = "35 24 0:30 / /cg2 rw - cgroup2 none rw\n36 24 0:31 / /cg1 rw - cgroup none rw,name=systemd\n"
    layout = find_layout(make_host(tmp_path, mounts, "1:name=systemd:/\n0::/\n", ["cg1", "cg2"]))
    assert layout.version is Version.V2


def test_a_container_sees_only_its_part_of_the_tree(tmp_path):
    mounts = "35 24 0:30 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    layout = find_layout(make_host(tmp_path, mounts, "0::/docker/abc/inner\n", ["sys/fs/cgroup/inner"]))
    assert layout.unified == tmp_path / "sys/fs/cgroup/inner"


@pytest.mark.parametrize(
    ("mounts", "membership"),
    [("", ""), ("22 27 0:21 / /proc rw - proc proc rw\n", "0::/\n"), ("garbage\n - \n", "garbage\n")],
)
def test_no_cgroups(tmp_path, mounts, membership):
    assert find_layout(make_host(tmp_path, mounts, membership, [])).version is Version.NONE


def test_no_proc(tmp_path):
    assert find_layout(tmp_path).version is Version.NONE


def test_escapes_in_mount_points(tmp_path):
    mounts = r"35 24 0:30 / /a\040b rw - cgroup2 none rw" + "\n"
    assert find_layout(make_host(tmp_path, mounts, "0::/\n", ["a b"])).unified == tmp_path / "a b"


def test_block_device_of_a_partition_is_its_disk(tmp_path):
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    if os.major(device) == 0:
        pytest.skip("the temporary folder of this test is on a file system without a device number")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    disk = tmp_path / "sys/devices/disk"
    (disk / "part").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (tmp_path / "sys/dev/block" / number).symlink_to(disk / "part")
    assert find_block_device(tmp_path, below(tmp_path)) == number
    (disk / "part/partition").write_text("1\n")
    assert find_block_device(tmp_path, below(tmp_path)) == "8:0"


def test_no_block_device(tmp_path):
    assert find_block_device(tmp_path, below(make_host(tmp_path, "", "", []))) is None


GIB = 2**30
V1_NONE = str(2**63 - 4096)


def limited(top, file, texts, stat=""):
    """A hierarchy below ``top`` whose groups, one in the other, have ``file`` with these texts; the last folder."""
    folder = top
    for number, text in enumerate(texts):
        folder = folder / f"g{number}" if number else top
        folder.mkdir(parents=True)
        (folder / "cgroup.procs").touch()
        if text:
            (folder / file).write_text(text)
    (folder / "memory.stat").write_text(stat)
    return folder


@pytest.mark.parametrize(
    ("file", "texts", "stat", "smallest"),
    [
        ("memory.max", ["", "max", "max"], "anon 0", None),
        ("memory.max", ["", str(GIB), "max"], "", ("g1", GIB)),
        ("memory.max", ["", str(GIB), str(GIB // 2)], "", ("g1/g2", GIB // 2)),
        ("memory.limit_in_bytes", [V1_NONE, V1_NONE], f"hierarchical_memory_limit {V1_NONE}", None),
        ("memory.limit_in_bytes", [V1_NONE, str(GIB)], f"cache 0\nhierarchical_memory_limit {GIB}\n", ("g1", GIB)),
        ("memory.limit_in_bytes", [V1_NONE, str(GIB)], f"hierarchical_memory_limit {GIB // 4}\n", (None, GIB // 4)),
    ],
)
def test_the_smallest_memory_limit_on_the_way_up(tmp_path, file, texts, stat, smallest):
    found = find_memory_limit(limited(tmp_path / "top", file, texts, stat))
    if smallest is None:
        assert found is None
    else:
        where, size = smallest
        assert found == (size, None if where is None else tmp_path / "top" / where)


def test_a_smaller_limit_around_the_instance_is_a_confound(tmp_path):
    own = limited(tmp_path / "memory", "memory.limit_in_bytes", [V1_NONE, str(400 << 20)])
    layout = Layout(Version.V1, {"memory": own}, None)
    assert list(outer_confounds("native", 400 << 20, layout)) == []
    (found,) = outer_confounds("native", 512 << 20, layout)
    assert (found.code, found.backend) == ("outer-memory-limit", "native")
    assert f"the 400 MiB memory limit of the cgroup {own} around tare holds" in found.detail
    assert "the envelope's 512 MiB" in found.detail


@pytest.mark.parametrize(
    ("files", "met"),
    [
        ({"memory.events": "low 0\nhigh 0\nmax 3\noom 1\n"}, True),
        ({"memory.events": "low 0\nhigh 9\nmax 0\noom_kill 1\n"}, False),
        ({"memory.max_usage_in_bytes": "134217728\n", "memory.limit_in_bytes": "134217728\n"}, True),
        ({"memory.max_usage_in_bytes": "134180864\n", "memory.limit_in_bytes": "134217728\n"}, True),
        ({"memory.max_usage_in_bytes": "100000000\n", "memory.limit_in_bytes": "134217728\n"}, False),
        ({"memory.max_usage_in_bytes": "134217728\n", "memory.limit_in_bytes": V1_NONE}, False),
        ({}, False),
    ],
)
def test_whether_the_own_limit_was_met(tmp_path, files, met):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert has_met_memory_limit(tmp_path) is met
