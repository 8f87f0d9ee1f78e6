"""Whether a host can make instances, told from a copy of its /proc."""

from pathlib import Path

import pytest

from tare.backends.native.runtime import probe_host, probe_storage
from tare.bench.linux.files import HostRoots

MOUNTS = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


@pytest.fixture
def host(tmp_path):
    own = tmp_path / "proc/self"
    (own / "ns").mkdir(parents=True)
    for name in ("mnt", "pid", "net"):
        (own / "ns" / name).symlink_to(f"{name}:[1]")
    (own / "status").write_text("Name:\tpython\nCapEff:\t000001fffeffffff\n")
    (own / "mountinfo").write_text(MOUNTS)
    (own / "cgroup").write_text("0::/\n")
    (tmp_path / "proc/filesystems").write_text("nodev\tsysfs\nnodev\toverlay\n\text4\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpu cpuset io memory pids")
    (tmp_path / "sys/fs/cgroup/cgroup.subtree_control").write_text("")
    return tmp_path


def test_available(host):
    found = probe_host(("mnt", "pid"), host)
    assert found.available
    assert "v2" in found.reason


def test_a_missing_controller_is_told_and_no_obstacle(host):
    (host / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory pids")
    found = probe_host(("mnt",), host)
    assert found.available
    assert "without cpuset, io" in found.reason


LAYERS = """22 1 0:40 / / rw - overlay overlay rw,lowerdir=/a
30 22 254:0 / /volume rw - ext4 /dev/vda rw
31 22 0:26 / /run rw - tmpfs tmpfs rw
"""


def test_a_folder_that_can_hold_no_layer_is_told_with_what_helps(host):
    (host / "proc/self/mountinfo").write_text(LAYERS)
    roots = HostRoots(host / "proc")
    found = probe_storage(Path("/var/tmp/tare-none"), roots)
    assert not found.available
    assert "/ is overlay" in found.reason
    assert "TARE_WORK_DIR" in found.remedy
    assert probe_storage(Path("/volume/tare"), roots) is probe_storage(Path("/run/tare"), roots) is None


def test_no_root(host):
    (host / "proc/self/status").write_text("CapEff:\t0000000000000000\n")
    found = probe_host(("mnt",), host)
    assert not found.available
    assert "root" in found.reason
    assert "sudo" in found.remedy


def test_an_ordinary_user_needs_no_root_where_it_is_not_asked_for(host):
    (host / "proc/self/status").write_text("CapEff:\t0000000000000000\n")
    (host / "proc/self/ns/user").symlink_to("user:[1]")
    (host / "sys/fs/cgroup/cgroup.controllers").write_text("memory pids")
    found = probe_host(("mnt",), host, without_root=True)
    assert found.available
    assert "without root" in found.reason
    assert "without cpu, cpuset, io" in found.reason
    assert "Delegate=yes" in found.remedy
    (host / "proc/self/mountinfo").write_text("")
    assert "no cgroups" in probe_host(("mnt",), host, without_root=True).reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user/max_user_namespaces", "0"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ],
)
def test_a_switch_against_user_namespaces_is_named_with_its_value(host, name, value):
    (host / "proc/self/status").write_text("CapEff:\t0000000000000000\n")
    (host / "proc/self/ns/user").symlink_to("user:[1]")
    switch = host / "proc/sys" / name
    switch.parent.mkdir(parents=True)
    switch.write_text(f"{value}\n")
    found = probe_host(("mnt",), host, without_root=True)
    assert not found.available
    assert f"{name.replace('/', '.')} = {value}" in found.reason
    assert f"sysctl {name.replace('/', '.')}=" in found.remedy
    switch.write_text("1\n" if value == "0" else "0\n")
    assert probe_host(("mnt",), host, without_root=True).available


def test_no_overlay(host):
    (host / "proc/filesystems").write_text("nodev\tsysfs\n\text4\n")
    assert probe_host(("mnt",), host).remedy == "modprobe overlay"


def test_no_namespace(host):
    assert "time namespaces" in probe_host(("mnt", "time"), host).reason


def test_no_cgroups(host):
    (host / "proc/self/mountinfo").write_text("")
    assert "cgroup" in probe_host(("mnt",), host).reason


def test_no_proc(tmp_path):
    assert not probe_host(("mnt",), tmp_path).available
