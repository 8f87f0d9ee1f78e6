"""The libvirt domain of a guest, from typed values. Pure: the same values give the same text.

Schema: libvirt's ``domain.rng`` (checked with ``virt-xml-validate`` in the tests). What is not written here is what
libvirt and QEMU choose by themselves for a ``q35`` machine.
"""

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU_NAMESPACE)


class Accelerator(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


MACHINE = "q35"
_TYPES = {Accelerator.KVM: "kvm", Accelerator.TCG: "qemu"}
"""The values of ``<domain type>``."""
TB_CACHE_MIB = 48
"""Bound on TCG's cache of translated code. Unbounded it takes 300 MB of host memory and is no faster."""
SLOW_QUERY = "cpu-unavailable-features"
"""A QEMU capability that libvirt must not use: with it, libvirt asks for some 400 CPU properties one by one while the
guest waits, which is 0.35 s of every start. Without it, it reads the same from two properties."""
CPU_MODE = {Accelerator.KVM: "host-passthrough", Accelerator.TCG: "maximum"}
"""The CPU model where none is asked for."""
CPU_MODES = frozenset({"host-passthrough", "host-model", "maximum"})
"""The CPU models that are a mode of libvirt's, and no name of QEMU's."""

SCSI_PREFIX = "sd"
FIRST_SLOT = 1
"""Of q35's bus: 0 is the host bridge, 0x1f the chipset."""


class Memory(StrEnum):
    """What the guest's RAM is made of on the host: private memory, huge pages, or a file in memory."""

    PLAIN = "plain"
    HUGEPAGES = "hugepages"
    MEMFD = "memfd"


class Disk(msgspec.Struct, frozen=True):
    """A disk. ``serial`` is how the guest finds it; ``cache`` and ``io`` are libvirt's names.

    ``device`` begins with ``vd`` for virtio-blk, with ``sd`` for virtio-scsi (each disk on a controller of its own).
    ``format`` is ``raw`` or ``qcow2``; ``backing`` is the raw file below a qcow2 one. ``io_thread`` numbers the
    I/O thread that serves it, from 1; 0 leaves it to QEMU's main loop. ``boots`` has the firmware boot from it.
    """

    path: Path
    device: str
    serial: str
    cache: str
    io: str
    read_only: bool = False
    io_thread: int = 0
    format: str = "raw"
    backing: Path | None = None
    boots: bool = False

    @property
    def is_scsi(self) -> bool:
        """Whether it is a disk on virtio-scsi."""
        return self.device.startswith(SCSI_PREFIX)


class Share(msgspec.Struct, frozen=True):
    """A folder of the host's: ``socket`` is where its virtiofsd listens, ``tag`` the name by which it is mounted."""

    socket: Path
    tag: str


class Interface(msgspec.Struct, frozen=True):
    """A virtio network interface: on the device ``tap``, which has to exist, or with a user-mode stack on ``subnet``.

    ``tap`` is looked for in the network namespace of the thread that starts the domain. ``vhost``: the kernel moves its
    packets, not QEMU.
    """

    mac: str
    tap: str = ""
    subnet: tuple[str, int] = ("", 0)
    vhost: bool = False


class Guest(msgspec.Struct, frozen=True):
    """Everything that decides a domain.

    ``cpus`` are the host CPUs, one for each vCPU, each on its own if ``pinned``, else all on all; QEMU's other
    threads run on ``emulator_cpus``, or on those of the vCPUs if there are none. The sockets are Unix sockets: QEMU
    connects to those of the console and of the command port, and listens on the agent's, to which libvirt connects.
    ``environment`` is QEMU's. ``cpu_model`` is one of ``CPU_MODES`` or QEMU's name; empty is that of ``CPU_MODE``.
    Where a disk boots, ``kernel_arguments`` are the machine's OEM strings instead, and kernel and initramfs its own.
    ``free_page_reporting`` is a property of the balloon. ``security_models`` are those that a libvirt daemon
    applies; none of them is to change how QEMU runs. ``saved`` says that it is saved or goes on from what was, which
    KVM allows only with features that it can save.
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
    cpu_model: str = ""
    emulator_cpus: tuple[int, ...] = ()
    pinned: bool = True
    memory: Memory = Memory.PLAIN
    mergeable: bool = True
    balloon: bool = False
    free_page_reporting: bool = False
    share: Share | None = None
    interface: Interface | None = None
    security_models: tuple[str, ...] = ()
    saved: bool = False


def domain_xml(guest: Guest) -> str:
    """The XML that ``virDomainCreateXML`` takes."""
    domain = ET.Element("domain", type=_TYPES[guest.accelerator])
    _text(domain, "name", guest.name)
    _text(domain, "memory", str(guest.memory_bytes), unit="b")
    _add_memory_backing(domain, guest)
    _add_cpus(domain, guest)
    _add_boot(domain, guest)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    if guest.accelerator is Accelerator.TCG:
        _text(ET.SubElement(features, "tcg"), "tb-cache", str(TB_CACHE_MIB), unit="MiB")
    _add_cpu_model(domain, guest)
    _text(domain, "on_reboot", "destroy")
    _text(domain, "on_crash", "destroy")
    _add_devices(domain, guest)
    _add_labels(domain, guest.security_models)
    _add_qemu_extensions(domain, guest)
    return ET.tostring(domain, encoding="unicode")


def _add_memory_backing(domain: ET.Element, guest: Guest) -> None:
    backing = ET.Element("memoryBacking")
    if guest.memory is Memory.HUGEPAGES:
        ET.SubElement(backing, "hugepages")
    if not guest.mergeable:
        ET.SubElement(backing, "nosharepages")
    if guest.memory is not Memory.PLAIN:
        # Huge pages as a file in memory too: no hugetlbfs has to be mounted. Shared, or each page would be there twice.
        ET.SubElement(backing, "source", type="memfd")
        ET.SubElement(backing, "access", mode="shared")
    if len(backing):
        domain.append(backing)


def _add_cpus(domain: ET.Element, guest: Guest) -> None:
    io_threads = max((disk.io_thread for disk in guest.disks), default=0)
    _text(domain, "vcpu", str(len(guest.cpus)), placement="static", cpuset=",".join(map(str, guest.cpus)))
    if io_threads:
        _text(domain, "iothreads", str(io_threads))
    tuning = ET.SubElement(domain, "cputune")
    for vcpu, cpu in enumerate(guest.cpus if guest.pinned else ()):
        ET.SubElement(tuning, "vcpupin", vcpu=str(vcpu), cpuset=str(cpu))
    others = ",".join(map(str, guest.emulator_cpus or guest.cpus))
    ET.SubElement(tuning, "emulatorpin", cpuset=others)
    for number in range(1, io_threads + 1):
        ET.SubElement(tuning, "iothreadpin", iothread=str(number), cpuset=others)


def _add_boot(domain: ET.Element, guest: Guest) -> None:
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=MACHINE)
    if any(disk.boots for disk in guest.disks):
        ET.SubElement(system, "smbios", mode="sysinfo")
        strings = ET.SubElement(ET.SubElement(domain, "sysinfo", type="smbios"), "oemStrings")
        for argument in guest.kernel_arguments:
            _text(strings, "entry", argument)
        return
    _text(system, "kernel", str(guest.kernel))
    _text(system, "initrd", str(guest.initramfs))
    _text(system, "cmdline", " ".join(guest.kernel_arguments))


def _add_cpu_model(domain: ET.Element, guest: Guest) -> None:
    model = guest.cpu_model or CPU_MODE[guest.accelerator]
    if model not in CPU_MODES:
        cpu = ET.SubElement(domain, "cpu", mode="custom", match="exact", check="none")
        _text(cpu, "model", model, fallback="forbid")
        return
    cpu = ET.SubElement(domain, "cpu", mode=model, check="none")
    if model == "host-passthrough":
        cpu.set("migratable", "on" if guest.saved else "off")


def _add_devices(domain: ET.Element, guest: Guest) -> None:
    devices = ET.SubElement(domain, "devices")
    _text(devices, "emulator", str(guest.emulator))
    for disk in guest.disks:
        _add_disk(devices, disk)
    _add_controllers(devices, guest)
    if guest.share is not None:
        _add_share(devices, guest.share)
    if guest.interface is not None:
        _add_interface(devices, guest.interface)
    _add_console(devices, guest.console_socket)
    _add_channel(devices, "bind", guest.agent_socket, guest.agent_port)
    _add_channel(devices, "connect", guest.command_socket, guest.command_port)
    balloon = ET.SubElement(devices, "memballoon", model="virtio" if guest.balloon else "none")
    if guest.free_page_reporting:
        balloon.set("freePageReporting", "on")
    _place_on_root_bus(devices)


def _add_console(devices: ET.Element, socket: Path) -> None:
    for element in ("serial", "console"):
        console = ET.SubElement(devices, element, type="unix")
        ET.SubElement(console, "source", mode="connect", path=str(socket))
        target = ET.SubElement(console, "target", port="0")
        if element == "console":
            target.set("type", "serial")


def _place_on_root_bus(devices: ET.Element) -> None:
    """Give each PCI device a slot of the machine's own bus (decision 0108).

    libvirt would put each behind a root port of its own, for hot-plugging that no guest here sees, and a port costs
    the firmware and the kernel some 10 ms under emulation.
    """
    slots = itertools.count(FIRST_SLOT)
    for device in devices:
        if _is_on_pci(device):
            slot = f"{next(slots):#04x}"
            ET.SubElement(device, "address", type="pci", domain="0x0000", bus="0x00", slot=slot, function="0x0")


def _is_on_pci(device: ET.Element) -> bool:
    match device.tag:
        case "disk":
            return device.find("target[@bus='virtio']") is not None
        case "controller":
            return device.get("model") != "none"
        case "memballoon":
            return device.get("model") == "virtio"
        case tag:
            return tag in {"filesystem", "interface"}


def _add_disk(devices: ET.Element, disk: Disk) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    # A full host disk is an I/O error in the guest, as it is elsewhere; QEMU's own choice is to pause the guest.
    policy = {"error_policy": "report"}
    driver = ET.SubElement(
        element, "driver", {"name": "qemu", "type": disk.format, "cache": disk.cache, "io": disk.io, **policy}
    )
    if disk.io_thread and not disk.is_scsi:
        driver.set("iothread", str(disk.io_thread))
    ET.SubElement(element, "source", file=str(disk.path))
    if disk.backing is not None:
        backing = ET.SubElement(element, "backingStore", type="file")
        ET.SubElement(backing, "format", type="raw")
        ET.SubElement(backing, "source", file=str(disk.backing))
    ET.SubElement(element, "target", dev=disk.device, bus="scsi" if disk.is_scsi else "virtio")
    if disk.read_only:
        ET.SubElement(element, "readonly")
    _text(element, "serial", disk.serial)
    if disk.boots:
        ET.SubElement(element, "boot", order="1")
    if disk.is_scsi:
        ET.SubElement(element, "address", type="drive", controller=str(_scsi_number(disk)))


def _scsi_number(disk: Disk) -> int:
    """The number of a disk's own controller: a for 0, b for 1."""
    return ord(disk.device[-1]) - ord("a")


def _add_controllers(devices: ET.Element, guest: Guest) -> None:
    for disk in guest.disks:
        if disk.is_scsi:
            number = str(_scsi_number(disk))
            controller = ET.SubElement(devices, "controller", type="scsi", index=number, model="virtio-scsi")
            if disk.io_thread:
                ET.SubElement(controller, "driver", iothread=str(disk.io_thread))
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="virtio-serial", index="0")


def _add_share(devices: ET.Element, share: Share) -> None:
    folder = ET.SubElement(devices, "filesystem", type="mount")
    ET.SubElement(folder, "driver", type="virtiofs")
    ET.SubElement(folder, "source", socket=str(share.socket))
    ET.SubElement(folder, "target", dir=share.tag)


def _add_interface(devices: ET.Element, interface: Interface) -> None:
    element = ET.SubElement(devices, "interface", type="ethernet" if interface.tap else "user")
    ET.SubElement(element, "mac", address=interface.mac)
    if interface.tap:
        ET.SubElement(element, "target", dev=interface.tap, managed="no")
        ET.SubElement(element, "driver", name="vhost" if interface.vhost else "qemu")
    else:
        address, prefix = interface.subnet
        ET.SubElement(element, "ip", family="ipv4", address=address, prefix=str(prefix))
    ET.SubElement(element, "model", type="virtio")
    # Its option ROM, to boot from the network, would cost every start some time.
    ET.SubElement(element, "rom", enabled="no")


def _add_channel(devices: ET.Element, mode: str, path: Path, port: str) -> None:
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode=mode, path=str(path))
    ET.SubElement(channel, "target", type="virtio", name=port)


def _add_labels(domain: ET.Element, models: tuple[str, ...]) -> None:
    """Have a daemon run QEMU as root, as the embedded driver does, and change the owner of no file of ours."""
    for model in models:
        if model == "dac":
            label = ET.SubElement(domain, "seclabel", type="static", model=model, relabel="no")
            _text(label, "label", "+0:+0")
        else:
            ET.SubElement(domain, "seclabel", type="none", model=model)


def _add_qemu_extensions(domain: ET.Element, guest: Guest) -> None:
    command_line = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline")
    for name, value in guest.environment.items():
        ET.SubElement(command_line, f"{{{QEMU_NAMESPACE}}}env", name=name, value=value)
    capabilities = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}capabilities")
    ET.SubElement(capabilities, f"{{{QEMU_NAMESPACE}}}del", capability=SLOW_QUERY)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
