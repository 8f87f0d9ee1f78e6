"""The domain of a guest: what was asked for stands in it, and libvirt's own schema takes it."""

import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tare.backends.vm.domain_xml import QEMU_NAMESPACE, Accelerator, Disk, Guest, Interface, Machine, Memory, domain_xml
from tare.bench.process import ToolFailedError, find_tool, run


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
        "environment": {"TARE_JOIN": "/sys/a\n/sys/b", "QUOTED": "<&\"'>"},
    }
    return Guest(**{**values, **more})


def parsed(**more):
    return ET.fromstring(domain_xml(guest(**more)))


BOOT_DISK = Disk(Path("/cache/boot.raw"), "vdc", "tare-boot", "writeback", "threads", read_only=True, boots=True)


def test_a_guest_with_a_boot_loader_is_told_through_its_firmware():
    domain = parsed(disks=(*guest().disks, BOOT_DISK), kernel_arguments=("tare.pids=5", "tare.profile=full"))
    system = domain.find("os")
    assert [system.find(name) for name in ("kernel", "initrd", "cmdline")] == [None, None, None]
    assert system.find("smbios").get("mode") == "sysinfo"
    assert [entry.text for entry in domain.findall("sysinfo/oemStrings/entry")] == ["tare.pids=5", "tare.profile=full"]
    booted = [disk.findtext("serial") for disk in domain.findall("devices/disk") if disk.find("boot") is not None]
    assert booted == ["tare-boot"]


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


def test_apart_leaves_only_the_vcpus_on_the_envelope():
    tuning = parsed(emulator_cpus=(0, 1)).find("cputune")
    assert [pin.get("cpuset") for pin in tuning.findall("vcpupin")] == ["2", "5"]
    assert tuning.find("emulatorpin").get("cpuset") == "0,1"
    assert tuning.find("iothreadpin").get("cpuset") == "0,1"


def test_unpinned_vcpus_stay_on_the_envelope():
    domain = parsed(pinned=False)
    assert domain.findall("cputune/vcpupin") == []
    assert domain.find("vcpu").get("cpuset") == "2,5"


def test_a_named_model_is_taken_or_refused_and_never_replaced():
    cpu = parsed(cpu_model="EPYC-Rome").find("cpu")
    assert (cpu.get("mode"), cpu.findtext("model"), cpu.find("model").get("fallback")) == (
        "custom",
        "EPYC-Rome",
        "forbid",
    )
    assert parsed(cpu_model="maximum", accelerator=Accelerator.KVM).find("cpu").attrib == {
        "mode": "maximum",
        "check": "none",
    }


@pytest.mark.parametrize(
    ("values", "elements"),
    [
        ({}, None),
        ({"memory": Memory.MEMFD}, ["source", "access"]),
        ({"memory": Memory.HUGEPAGES}, ["hugepages", "source", "access"]),
    ],
)
def test_memory_backings(values, elements):
    backing = parsed(**values).find("memoryBacking")
    assert (None if backing is None else [element.tag for element in backing]) == elements


def test_a_scsi_disk_has_a_controller_of_its_own_that_its_thread_serves():
    domain = parsed(disks=(scsi("sda", "one", 0), scsi("sdb", "two", 2)))
    controllers = domain.findall("devices/controller[@type='scsi']")
    assert [controller.get("index") for controller in controllers] == ["0", "1"]
    assert [controller.get("model") for controller in controllers] == ["virtio-scsi", "virtio-scsi"]
    assert controllers[0].find("driver") is None
    assert controllers[1].find("driver").get("iothread") == "2"
    disks = domain.findall("devices/disk")
    assert [disk.find("address").get("controller") for disk in disks] == ["0", "1"]
    assert [disk.find("driver").get("iothread") for disk in disks] == [None, None]
    assert domain.findtext("iothreads") == "2"


def scsi(device, serial, io_thread, **more):
    return Disk(Path(f"/{serial}"), device, serial, "none", "io_uring", io_thread=io_thread, **more)


def test_a_clone_names_the_file_below_so_that_nothing_is_probed():
    disk = Disk(Path("/c"), "vda", "x", "none", "native", format="qcow2", backing=Path("/image/disk.erofs"))
    element = parsed(disks=(disk,)).find("devices/disk")
    assert element.find("driver").get("type") == "qcow2"
    assert element.find("backingStore/source").get("file") == "/image/disk.erofs"
    assert element.find("backingStore/format").get("type") == "raw"


def test_balloon_and_share():
    assert parsed().find("devices/memballoon").attrib == {"model": "none"}
    balloon = parsed(balloon=True, free_page_reporting=True).find("devices/memballoon")
    assert balloon.attrib == {"model": "virtio", "freePageReporting": "on"}
    folder = parsed(share_socket=Path("/run/s")).find("devices/filesystem")
    assert (folder.find("source").get("socket"), folder.find("target").get("dir")) == ("/run/s", "tare-scratch")


def test_every_pci_device_has_a_slot_of_the_root_bus():
    disks = (Disk(Path("/image/disk.erofs"), "sda", "tare-image", "writeback", "threads"), guest().disks[1])
    share, interface = Path("/run/a/share"), Interface("52:54:00:00:00:01", tap="tap0")
    domain = parsed(disks=disks, memory=Memory.MEMFD, balloon=True, share_socket=share, interface=interface)
    addresses = domain.findall("devices/*/address[@type='pci']")
    assert {address.get("bus") for address in addresses} == {"0x00"}
    slots = [int(address.get("slot"), 16) for address in addresses]
    assert slots == [1, 2, 3, 4, 5, 6], "virtio disk, SCSI and serial controllers, share, interface, balloon"


def test_every_device_of_a_microvm_is_on_mmio():
    disks = (Disk(Path("/image/disk.erofs"), "sda", "tare-image", "writeback", "threads"), guest().disks[1])
    share, interface = Path("/run/a/share"), Interface("52:54:00:00:00:01", tap="tap0")
    domain = parsed(
        machine=Machine.MICROVM,
        disks=disks,
        memory=Memory.MEMFD,
        balloon=True,
        share_socket=share,
        interface=interface,
    )
    assert domain.find("os/type").get("machine") == "microvm"
    assert parsed().find("os/type").get("machine") == "q35"
    assert domain.findall("devices/*/address[@type='pci']") == domain.findall("devices/interface/rom") == []
    placed = [
        device.tag for device in domain.find("devices") if device.find("address[@type='virtio-mmio']") is not None
    ]
    assert sorted(placed) == ["controller", "controller", "disk", "filesystem", "interface", "memballoon"]


def test_interfaces():
    assert parsed().find("devices/interface") is None
    tap = parsed(interface=INTERFACES[1]).find("devices/interface")
    assert tap.get("type") == "ethernet"
    assert tap.find("target").attrib == {"dev": "tap0-2", "managed": "no"}
    assert tap.find("mac").get("address") == "52:54:00:9d:00:02"
    assert tap.find("driver").get("name") == "qemu"
    assert parsed(interface=INTERFACES[2]).find("devices/interface/driver").get("name") == "vhost"
    user = parsed(interface=INTERFACES[3]).find("devices/interface")
    assert user.get("type") == "user"
    assert user.find("ip").attrib == {"family": "ipv4", "address": "10.0.2.0", "prefix": "24"}
    assert [one.find("rom").get("enabled") for one in (tap, user)] == ["no", "no"], "no time for an option ROM"


def test_no_daemon_changes_owners_or_drops_to_another_user():
    assert parsed().find("seclabel") is None
    dac, other = parsed(security_models=("dac", "apparmor")).findall("seclabel")
    assert (dac.get("type"), dac.get("relabel"), dac.findtext("label")) == ("static", "no", "+0:+0")
    assert other.attrib == {"type": "none", "model": "apparmor"}


def skip_without_validator():
    for tool, package in (("virt-xml-validate", "libvirt-clients"), ("xmllint", "libxml2-utils")):
        if find_tool(tool) is None:
            pytest.skip(f"{tool} ({package}) is not installed")


def every_set_of_disks():
    """The image in each form with the scratch disk in each form, and without one."""
    modes = [(cache, io) for cache in ("none", "directsync") for io in ("native", "threads", "io_uring")]
    modes += [(cache, io) for cache in ("writeback", "unsafe") for io in ("threads", "io_uring")]
    image, below = Path("/image/disk.erofs"), Path("/image/below")
    for prefix, (kind, backing) in itertools.product(("vd", "sd"), (("raw", None), ("qcow2", below))):
        root = Disk(
            image, f"{prefix}a", "tare-image", "writeback", "threads", read_only=True, format=kind, backing=backing
        )
        yield (root,)
        for (cache, io), number in itertools.product(modes, (0, 1)):
            scratch = Path("/work/a & b")
            yield root, Disk(scratch, f"{prefix}b", "tare-scratch", cache, io, io_thread=number, format=kind)


INTERFACES = (
    None,
    Interface("52:54:00:9d:00:02", tap="tap0-2"),
    Interface("52:54:00:9d:00:02", tap="tap0-2", vhost=True),
    Interface("52:54:00:9d:00:02", subnet=("10.0.2.0", 24)),
)


def every_guest():
    """Every domain that options can lead to: the disks in all combinations, and all that is not disks in all."""
    for disks in every_set_of_disks():
        yield guest(disks=disks)
    yield guest(disks=(BOOT_DISK,))
    yield guest(pinned=False)
    yield guest(machine=Machine.MICROVM, accelerator=Accelerator.KVM, interface=INTERFACES[1], balloon=True)
    for accelerator, interface in itertools.product(Accelerator, INTERFACES):
        yield guest(accelerator=accelerator, interface=interface)
    for accelerator, cpus, model, apart, memory, balloon, share, models in itertools.product(
        Accelerator,
        [(0,), (1, 3, 7)],
        ["", "maximum", "host-model", "EPYC-Rome"],
        [(), (2, 4)],
        Memory,
        [{}, {"balloon": True}, {"balloon": True, "free_page_reporting": True}],
        [None, Path("/run/fs")],
        [(), ("dac", "apparmor")],
    ):
        yield guest(
            accelerator=accelerator,
            cpus=cpus,
            cpu_model=model,
            emulator_cpus=apart,
            memory=memory,
            share_socket=share,
            security_models=models,
            **balloon,
        )


SCHEMA = re.compile(r'SCHEMA="(.*)/\$\{TYPE\}\.rng"')


@pytest.mark.tools
def test_every_variant_is_valid_for_libvirt(tmp_path):
    skip_without_validator()
    # virt-xml-validate takes one file and hands it to xmllint with the schema of its kind; here all go to one xmllint.
    schema = SCHEMA.search(find_tool("virt-xml-validate").read_text())[1]
    files = []
    for number, variant in enumerate(every_guest()):
        files.append(tmp_path / f"{number}.xml")
        files[-1].write_text(domain_xml(variant))
    assert len(files) > 1000
    run(["virt-xml-validate", str(files[0]), "domain"], timeout_s=60)
    run(["xmllint", "--noout", "--relaxng", f"{schema}/domain.rng", *map(str, files)], timeout_s=300)


OTHERS = {"Cloud Hypervisor": "kvm", "ESX": "vmware", "Hyper-V": "hyperv", "VirtualBox": "vbox", "Xen": "xen"}
"""Hypervisors of docs/engines.md that libvirt has a driver for, by the type of their domains."""


def domain_for(kind):
    """The smallest guest as it would be for another driver of libvirt's: without what only QEMU has."""
    domain = ET.fromstring(domain_xml(guest(accelerator=Accelerator.KVM)))
    domain.set("type", kind)
    for element in [one for one in domain if QEMU_NAMESPACE in one.tag]:
        domain.remove(element)
    devices = domain.find("devices")
    for element in [devices.find("emulator"), *devices.findall("channel"), *devices.findall("controller")]:
        if element is not None:
            devices.remove(element)
    for element in devices:
        for address in element.findall("address"):
            element.remove(address)
    del domain.find("os/type").attrib["machine"]
    return ET.tostring(domain, encoding="unicode")


@pytest.mark.tools
@pytest.mark.parametrize("kind", sorted(set(OTHERS.values())))
def test_the_domain_of_another_hypervisor_is_valid_for_libvirt(kind, tmp_path):
    """Nothing more is known of them here: docs/engines.md says so."""
    skip_without_validator()
    file = tmp_path / "domain.xml"
    file.write_text(domain_for(kind))
    run(["virt-xml-validate", str(file), "domain"], timeout_s=60)
    file.write_text(domain_for("no-such-hypervisor"))
    with pytest.raises(ToolFailedError, match="lement domain"):
        run(["virt-xml-validate", str(file), "domain"], timeout_s=60)


def test_the_page_of_engines_names_each_hypervisor_whose_domain_is_checked():
    said = (Path(__file__).parents[2] / "docs/engines.md").read_text()
    assert [system for system in OTHERS if system not in said] == []


@pytest.mark.tools
def test_the_schema_is_really_asked(tmp_path):
    skip_without_validator()
    file = tmp_path / "wrong.xml"
    file.write_text(domain_xml(guest()).replace("<vcpu", "<vcpus").replace("</vcpu>", "</vcpus>"))
    with pytest.raises(ToolFailedError, match="vcpus"):
        run(["virt-xml-validate", str(file), "domain"], timeout_s=60)


@pytest.mark.parametrize(("saved", "migratable"), [(False, "off"), (True, "on")])
def test_a_guest_that_is_saved_has_no_feature_that_cannot_be(saved, migratable):
    assert parsed(accelerator=Accelerator.KVM, saved=saved).find("cpu").get("migratable") == migratable
