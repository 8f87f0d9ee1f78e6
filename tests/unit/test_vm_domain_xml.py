"""The domain of a guest: what was asked for stands in it, and libvirt's own schema takes it."""

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from backends.vm.domain_xml import QEMU_NAMESPACE, Accelerator, Disk, Guest, domain_xml
from bench.process import ToolFailedError, find_tool, run


def guest(**more):
    values = {
        "name": "one",
        "accelerator": Accelerator.TCG,
        "emulator": Path("/cache/qemu-system-x86_64"),
        "cpus": (2, 5),
        "memory_bytes": 256 * 2**20,
        "kernel": Path("/image/vmlinuz"),
        "initramfs": Path("/image/initramfs"),
        "kernel_arguments": ("console=ttyS0", "quiet"),
        "disks": (
            Disk(Path("/image/disk.erofs"), "vda", "tare-image", "writeback", "threads", read_only=True),
            Disk(Path("/work/scratch & co.raw"), "vdb", "tare-scratch", "none", "native", io_thread=1),
        ),
        "console_socket": Path("/run/a/console"),
        "command_socket": Path("/run/a/command"),
        "agent_socket": Path("/run/a/agent"),
        "command_port": "org.tare.command.0",
        "agent_port": "org.qemu.guest_agent.0",
        "environment": {"TARE_JOIN": "/sys/a\n/sys/b", "QUOTED": "<&\"'>"},
    }
    return Guest(**{**values, **more})


def parsed(**more):
    return ET.fromstring(domain_xml(guest(**more)))


def test_every_thread_is_pinned_to_the_envelope():
    tuning = parsed().find("cputune")
    assert [(pin.get("vcpu"), pin.get("cpuset")) for pin in tuning.findall("vcpupin")] == [("0", "2"), ("1", "5")]
    assert tuning.find("emulatorpin").get("cpuset") == "2,5"
    assert [(pin.get("iothread"), pin.get("cpuset")) for pin in tuning.findall("iothreadpin")] == [("1", "2,5")]
    assert parsed().findtext("vcpu") == "2"


def test_memory_is_the_envelope_s():
    memory = parsed(memory_bytes=12345 * 2**20).find("memory")
    assert (memory.text, memory.get("unit")) == (str(12345 * 2**20), "b")


@pytest.mark.parametrize(
    ("accelerator", "kind", "cpu", "bounded"),
    [(Accelerator.TCG, "qemu", "maximum", True), (Accelerator.KVM, "kvm", "host-passthrough", False)],
)
def test_accelerators(accelerator, kind, cpu, bounded):
    domain = parsed(accelerator=accelerator)
    assert domain.get("type") == kind
    assert domain.find("cpu").get("mode") == cpu
    assert (domain.find("features/tcg/tb-cache") is not None) == bounded


def test_disks_keep_their_order_and_modes():
    disks = parsed().findall("devices/disk")
    assert [disk.findtext("serial") for disk in disks] == ["tare-image", "tare-scratch"]
    assert [disk.find("readonly") is not None for disk in disks] == [True, False]
    drivers = [disk.find("driver").attrib for disk in disks]
    assert [(driver["cache"], driver["io"], driver.get("iothread")) for driver in drivers] == [
        ("writeback", "threads", None),
        ("none", "native", "1"),
    ]
    assert disks[1].find("source").get("file") == "/work/scratch & co.raw"


def test_a_full_host_disk_is_an_error_in_the_guest_and_no_pause():
    assert {disk.find("driver").get("error_policy") for disk in parsed().findall("devices/disk")} == {"report"}


def test_environment_arrives_whole():
    found = parsed().findall(f"{{{QEMU_NAMESPACE}}}commandline/{{{QEMU_NAMESPACE}}}env")
    assert {entry.get("name"): entry.get("value") for entry in found} == guest().environment


def skip_without_validator():
    for tool, package in (("virt-xml-validate", "libvirt-clients"), ("xmllint", "libxml2-utils")):
        if find_tool(tool) is None:
            pytest.skip(f"{tool} ({package}) is not installed")


@pytest.mark.tools
def test_every_variant_is_valid_for_libvirt(tmp_path):
    skip_without_validator()
    accelerators = list(Accelerator)
    cpus = [(0,), (1, 3, 7)]
    disks = [guest().disks, guest().disks[:1]]
    for number, (accelerator, some, given) in enumerate(itertools.product(accelerators, cpus, disks)):
        file = tmp_path / f"{number}.xml"
        file.write_text(domain_xml(guest(accelerator=accelerator, cpus=some, disks=given)))
        run(["virt-xml-validate", str(file), "domain"], timeout_s=60)


@pytest.mark.tools
def test_the_schema_is_really_asked(tmp_path):
    skip_without_validator()
    file = tmp_path / "wrong.xml"
    file.write_text(domain_xml(guest()).replace("<vcpu", "<vcpus").replace("</vcpu>", "</vcpus>"))
    with pytest.raises(ToolFailedError, match="vcpus"):
        run(["virt-xml-validate", str(file), "domain"], timeout_s=60)
