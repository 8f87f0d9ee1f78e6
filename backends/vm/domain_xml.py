"""The libvirt domain of a guest, from typed values. Pure: the same values give the same text.

Schema: libvirt's ``domain.rng`` (checked with ``virt-xml-validate`` in the tests). What is not written here is what
libvirt and QEMU choose by themselves for a ``q35`` machine.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU_NAMESPACE)

MACHINE = "q35"
TB_CACHE_MIB = 48
"""Bound on TCG's cache of translated code. Unbounded it takes 300 MB of host memory and is no faster."""
SLOW_QUERY = "cpu-unavailable-features"
"""A QEMU capability that libvirt is told not to use: with it, it asks for some 400 CPU properties one by one while the
guest waits, which is 0.35 s of every start. Without it, it reads the same from two properties."""


class Accelerator(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


_DOMAIN_TYPE = {Accelerator.KVM: "kvm", Accelerator.TCG: "qemu"}
CPU_MODE = {Accelerator.KVM: "host-passthrough", Accelerator.TCG: "maximum"}


class Disk(msgspec.Struct, frozen=True):
    """A raw disk on virtio-blk. ``serial`` is how the guest finds it; ``cache`` and ``io`` are libvirt's names.

    ``io_thread`` numbers the I/O thread that serves it, from 1; 0 leaves it to QEMU's main loop.
    """

    path: Path
    device: str
    serial: str
    cache: str
    io: str
    read_only: bool = False
    io_thread: int = 0


class Guest(msgspec.Struct, frozen=True):
    """Everything that decides a domain.

    ``cpus`` are the host CPUs, one for each vCPU; QEMU's other threads may run on all of them and nowhere
    else. The sockets are Unix sockets: QEMU connects to those of the console and of the command port, and
    listens on the agent's, to which libvirt connects. ``environment`` is QEMU's.
    """

    name: str
    accelerator: Accelerator
    emulator: Path
    cpus: tuple[int, ...]
    memory_bytes: int
    kernel: Path
    initramfs: Path
    kernel_arguments: tuple[str, ...]
    disks: tuple[Disk, ...]
    console_socket: Path
    command_socket: Path
    agent_socket: Path
    command_port: str
    agent_port: str
    environment: Mapping[str, str] = {}


def domain_xml(guest: Guest) -> str:
    """The XML that ``virDomainCreateXML`` takes."""
    domain = ET.Element("domain", type=_DOMAIN_TYPE[guest.accelerator])
    _text(domain, "name", guest.name)
    _text(domain, "memory", str(guest.memory_bytes), unit="b")
    _add_cpus(domain, guest)
    _add_boot(domain, guest)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    if guest.accelerator is Accelerator.TCG:
        _text(ET.SubElement(features, "tcg"), "tb-cache", str(TB_CACHE_MIB), unit="MiB")
    _add_cpu_model(domain, guest.accelerator)
    _text(domain, "on_reboot", "destroy")
    _text(domain, "on_crash", "destroy")
    _add_devices(domain, guest)
    _add_qemu_extensions(domain, guest)
    return ET.tostring(domain, encoding="unicode")


def _add_cpus(domain: ET.Element, guest: Guest) -> None:
    every = ",".join(map(str, guest.cpus))
    io_threads = max((disk.io_thread for disk in guest.disks), default=0)
    _text(domain, "vcpu", str(len(guest.cpus)), placement="static", cpuset=every)
    if io_threads:
        _text(domain, "iothreads", str(io_threads))
    tuning = ET.SubElement(domain, "cputune")
    for vcpu, cpu in enumerate(guest.cpus):
        ET.SubElement(tuning, "vcpupin", vcpu=str(vcpu), cpuset=str(cpu))
    ET.SubElement(tuning, "emulatorpin", cpuset=every)
    for number in range(1, io_threads + 1):
        ET.SubElement(tuning, "iothreadpin", iothread=str(number), cpuset=every)


def _add_boot(domain: ET.Element, guest: Guest) -> None:
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=MACHINE)
    _text(system, "kernel", str(guest.kernel))
    _text(system, "initrd", str(guest.initramfs))
    _text(system, "cmdline", " ".join(guest.kernel_arguments))


def _add_cpu_model(domain: ET.Element, accelerator: Accelerator) -> None:
    cpu = ET.SubElement(domain, "cpu", mode=CPU_MODE[accelerator], check="none")
    if accelerator is Accelerator.KVM:
        cpu.set("migratable", "off")


def _add_devices(domain: ET.Element, guest: Guest) -> None:
    devices = ET.SubElement(domain, "devices")
    _text(devices, "emulator", str(guest.emulator))
    for disk in guest.disks:
        _add_disk(devices, disk)
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    for element in ("serial", "console"):
        console = ET.SubElement(devices, element, type="unix")
        ET.SubElement(console, "source", mode="connect", path=str(guest.console_socket))
        target = ET.SubElement(console, "target", port="0")
        if element == "console":
            target.set("type", "serial")
    _add_channel(devices, "bind", guest.agent_socket, guest.agent_port)
    _add_channel(devices, "connect", guest.command_socket, guest.command_port)
    ET.SubElement(devices, "memballoon", model="none")


def _add_disk(devices: ET.Element, disk: Disk) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    # A full host disk is an I/O error in the guest, as it is elsewhere; QEMU's own choice is to pause the guest.
    policy = {"error_policy": "report"}
    driver = ET.SubElement(
        element, "driver", {"name": "qemu", "type": "raw", "cache": disk.cache, "io": disk.io, **policy}
    )
    if disk.io_thread:
        driver.set("iothread", str(disk.io_thread))
    ET.SubElement(element, "source", file=str(disk.path))
    ET.SubElement(element, "target", dev=disk.device, bus="virtio")
    if disk.read_only:
        ET.SubElement(element, "readonly")
    _text(element, "serial", disk.serial)


def _add_channel(devices: ET.Element, mode: str, path: Path, port: str) -> None:
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode=mode, path=str(path))
    ET.SubElement(channel, "target", type="virtio", name=port)


def _add_qemu_extensions(domain: ET.Element, guest: Guest) -> None:
    command_line = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline")
    for name, value in guest.environment.items():
        ET.SubElement(command_line, f"{{{QEMU_NAMESPACE}}}env", name=name, value=value)
    capabilities = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}capabilities")
    ET.SubElement(capabilities, f"{{{QEMU_NAMESPACE}}}del", capability=SLOW_QUERY)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
