"""Facts come from files under roots that tests can put anywhere; what a host does not tell is left out."""

import platform
from pathlib import Path

import pytest

from tare.bench.catalogue import CONFOUND_WEIGHTS
from tare.bench.host import host_confounds, read_facts, summarise
from tare.bench.linux.files import HostRoots, find_field, find_text
from tare.bench.linux.hypervisor import cpuid_signature
from tare.bench.model import Fact

CPUINFO = """processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu vme {flag}

processor\t: 1
model name\t: AMD EPYC
flags\t\t: fpu vme {flag}
"""
MOUNTS = """22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 22 0:26 / /var/tmp rw - tmpfs scratch rw
32 22 8:1 / /mnt/my\\040disk rw - ext4 /dev/sda1 rw
33 22 8:2 / /mnt/my\\040disk rw - xfs /dev/sdb1 rw
"""


@pytest.fixture
def roots(tmp_path) -> HostRoots:
    files = {
        "proc/cpuinfo": CPUINFO.format(flag="hypervisor"),
        "proc/meminfo": "MemTotal:       24683656 kB\nMemFree: 1 kB\n",
        "proc/self/mountinfo": MOUNTS,
        "proc/cmdline": "root=/dev/vda secret=hunter2 mitigations=off isolcpus=1\n",
        "proc/stat": "cpu  10 0 20 300 4 0 5 250 0 0\ncpu0 1 2 3\n",
        "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 total=0\n",
        "sys/class/dmi/id/sys_vendor": "QEMU\n",
        "sys/class/dmi/id/product_name": "Standard PC\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/devices/system/cpu/vulnerabilities/meltdown": "Not affected\n",
        "sys/devices/system/cpu/vulnerabilities/spectre_v2": "Mitigation: Retpolines\n",
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return HostRoots(tmp_path / "proc", tmp_path / "sys", tmp_path / "etc")


def known(facts: tuple[Fact, ...]) -> dict[str, str]:
    return {fact.name: fact.text for fact in facts}


def test_what_the_host_tells(roots):
    facts = known(read_facts(Path("/var/tmp/tare"), roots))
    assert facts["cpu model"] == "AMD EPYC"
    assert facts["cpus"] == "2"
    assert facts["memory"] == "23.5 GiB"
    assert facts["virtualization"] == "QEMU Standard PC"
    assert facts["cgroup"] == "v1"
    assert facts["storage file system"] == "tmpfs"
    assert facts["mitigation spectre_v2"] == "Mitigation: Retpolines"
    assert "mitigation meltdown" not in facts
    assert "boost" not in facts


def test_the_kernel_command_line_is_not_given_away(roots):
    facts = known(read_facts(Path("/"), roots))
    assert facts["kernel parameters"] == "mitigations=off isolcpus=1"
    assert not any("hunter2" in value for value in facts.values())


def test_a_virtual_host_says_so_as_a_fact_and_as_a_confound(roots):
    facts = read_facts(Path("/var/tmp/tare"), roots)
    assert known(facts)["virtualization"] == "QEMU Standard PC"
    codes = {confound.code for confound in host_confounds(facts, (1,))}
    assert {"host-virtual", "storage-in-memory", "frequency-governor"} <= codes


def test_a_physical_host_does_not(roots):
    (roots.proc / "cpuinfo").write_text(CPUINFO.format(flag="sse2"))
    facts = read_facts(Path("/"), roots)
    assert known(facts)["virtualization"] == "none seen"
    assert "host-virtual" not in {confound.code for confound in host_confounds(facts, (1,))}


def test_an_emulated_processor_is_a_fact_and_the_heaviest_confound(roots):
    (roots.proc / "cpuinfo").write_text(
        CPUINFO.format(flag="hypervisor").replace("AMD EPYC", "QEMU TCG CPU version 2.5+")
    )
    facts = read_facts(Path("/"), roots)
    assert known(facts)["virtualization"] == "QEMU without KVM (TCG), QEMU Standard PC"
    confounds = {confound.code: confound.detail for confound in host_confounds(facts, (1,))}
    assert "emulated in software (QEMU without KVM (TCG), QEMU Standard PC)" in confounds["host-emulated"]
    assert CONFOUND_WEIGHTS["host-emulated"] == max(CONFOUND_WEIGHTS.values())


def test_the_settings_of_kvm_are_facts(roots):
    for name, value in {
        "kvm_amd/parameters/npt": "1",
        "kvm/parameters/halt_poll_ns": "200000",
        "kvm/parameters/x": "N",
    }.items():
        (roots.sys / "module" / name).parent.mkdir(parents=True, exist_ok=True)
        (roots.sys / "module" / name).write_text(f"{value}\n")
    facts = known(read_facts(Path("/"), roots))
    assert (facts["kvm_amd.npt"], facts["kvm.halt_poll_ns"]) == ("1", "200000")
    assert facts["other KVM parameters"] == "kvm.x=N"


def test_cpuid_says_what_the_kernel_says():
    """On x86 with the flag there is a signature of printable characters, and none without."""
    flags = (find_field(find_text(Path("/proc/cpuinfo")), "flags") or "").split()
    signature = cpuid_signature()
    assert signature.isprintable()
    if platform.machine() == "x86_64" and "hypervisor" in flags:
        assert 0 < len(signature) <= 12


def test_this_very_host_can_be_read():
    facts = known(read_facts(Path("/var/tmp")))
    assert int(facts["cpus"]) >= 1
    assert facts["kernel"]


def test_an_empty_host_raises_nothing(tmp_path):
    roots = HostRoots(tmp_path, tmp_path, tmp_path)
    assert summarise(read_facts(Path("/"), roots))


def test_storage_below_a_mount_point_with_a_space_in_its_name(roots):
    facts = known(read_facts(Path("/mnt/my disk/tare"), roots))
    assert facts["storage"] == "/mnt/my disk/tare on /dev/sdb1, mounted at /mnt/my disk"
    assert facts["storage file system"] == "xfs"
