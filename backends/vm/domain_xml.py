"""The libvirt domain of a guest, from typed values. Pure: the same values give the same text.

Schema: libvirt's ``domain.rng`` (checked with ``virt-xml-validate`` in the tests). What is not written here is what
libvirt and QEMU choose by themselves for the machine.
"""

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU_NAMESPACE)


class Accelerator(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class Machine(StrEnum):
    """What the guest's board is: a PC with PCI Express, or QEMU's small machine with its devices on virtio-mmio."""

    Q35 = "q35"
    MICROVM = "microvm"


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
IMAGE_SERIAL = "tare-image"
SCRATCH_SERIAL = "tare-scratch"
BOOT_SERIAL = "tare-boot"
AGENT_PORT = "org.qemu.guest_agent.0"
COMMAND_PORT = "org.tare.command.0"
"""Names that the guest's init knows (bench/image/guest, where a test compares them)."""
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

    ``cpus`` are the host CPUs, one for each vCPU, each on its own if ``pinned``, else all on all; QEMU's other threads
    run on ``emulator_cpus``, or on those of the vCPUs if there are none. The sockets are Unix sockets: QEMU connects to
    those of the console and of the command port, and listens on the agent's, to which libvirt connects. ``environment``
    is QEMU's, and so are ``arguments``, beyond those that libvirt gives it. ``cpu_model`` is one of ``CPU_MODES`` or
    QEMU's name; empty is that of ``CPU_MODE``. Where a disk boots, ``kernel_arguments`` are the machine's OEM strings
    instead, and kernel and initramfs its own.
    ``free_page_reporting`` is a property of the balloon. ``share_socket`` is where the virtiofsd of a folder listens.
    ``security_models`` are those that a libvirt daemon applies; none of them is to change how QEMU runs. ``saved`` says
    that it is saved or goes on from what was, which KVM allows only with features that it can save.
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
    environment: Mapping[str, str] = {}
    arguments: tuple[str, ...] = ()
    cpu_model: str = ""
    emulator_cpus: tuple[int, ...] = ()
    pinned: bool = True
    memory: Memory = Memory.PLAIN
    balloon: bool = False
    free_page_reporting: bool = False
    share_socket: Path | None = None
    interface: Interface | None = None
    security_models: tuple[str, ...] = ()
    saved: bool = False
    machine: Machine = Machine.Q35


def domain_xml(guest: Guest) -> str:
    """The XML that ``virDomainCreateXML`` takes."""
    tcg = _e("tcg", _e("tb-cache", str(TB_CACHE_MIB), unit="MiB")) if guest.accelerator is Accelerator.TCG else None
    domain = _e(
        "domain",
        _e("name", guest.name),
        _e("memory", str(guest.memory_bytes), unit="b"),
        _memory_backing(guest),
        *_cpus(guest),
        *_boot(guest),
        _e("features", _e("acpi"), tcg),
        _cpu_model(guest),
        _e("on_reboot", "destroy"),
        _e("on_crash", "destroy"),
        _devices(guest),
        *map(_label, guest.security_models),
        *_qemu_extensions(guest),
        type=_TYPES[guest.accelerator],
    )
    return ET.tostring(domain, encoding="unicode")


def _e(tag: str, *content: ET.Element | str | None, **attributes: str) -> ET.Element:
    """An element with its text and its children; None is left out."""
    element = ET.Element(tag, attributes)
    for part in content:
        if isinstance(part, str):
            element.text = part
        elif part is not None:
            element.append(part)
    return element


def _memory_backing(guest: Guest) -> ET.Element | None:
    shared = guest.memory is not Memory.PLAIN
    backing = _e(
        "memoryBacking",
        _e("hugepages") if guest.memory is Memory.HUGEPAGES else None,
        # Huge pages as a file in memory too: no hugetlbfs has to be mounted. Shared, or each page would be there twice.
        _e("source", type="memfd") if shared else None,
        _e("access", mode="shared") if shared else None,
    )
    return backing if len(backing) else None


def _cpus(guest: Guest) -> Iterator[ET.Element]:
    io_threads = max((disk.io_thread for disk in guest.disks), default=0)
    yield _e("vcpu", str(len(guest.cpus)), placement="static", cpuset=",".join(map(str, guest.cpus)))
    if io_threads:
        yield _e("iothreads", str(io_threads))
    pinned = guest.cpus if guest.pinned else ()
    others = ",".join(map(str, guest.emulator_cpus or guest.cpus))
    yield _e(
        "cputune",
        *(_e("vcpupin", vcpu=str(vcpu), cpuset=str(cpu)) for vcpu, cpu in enumerate(pinned)),
        _e("emulatorpin", cpuset=others),
        *(_e("iothreadpin", iothread=str(number), cpuset=others) for number in range(1, io_threads + 1)),
    )


def _boot(guest: Guest) -> Iterator[ET.Element]:
    machine = _e("type", "hvm", arch="x86_64", machine=guest.machine.value)
    if any(disk.boots for disk in guest.disks):
        yield _e("os", machine, _e("smbios", mode="sysinfo"))
        strings = (_e("entry", argument) for argument in guest.kernel_arguments)
        yield _e("sysinfo", _e("oemStrings", *strings), type="smbios")
        return
    arguments = " ".join(guest.kernel_arguments)
    yield _e(
        "os", machine, _e("kernel", str(guest.kernel)), _e("initrd", str(guest.initramfs)), _e("cmdline", arguments)
    )


def _cpu_model(guest: Guest) -> ET.Element:
    model = guest.cpu_model or CPU_MODE[guest.accelerator]
    if model not in CPU_MODES:
        return _e("cpu", _e("model", model, fallback="forbid"), mode="custom", match="exact", check="none")
    migratable = {"migratable": "on" if guest.saved else "off"} if model == "host-passthrough" else {}
    return _e("cpu", mode=model, check="none", **migratable)


def _devices(guest: Guest) -> ET.Element:
    reporting = {"freePageReporting": "on"} if guest.free_page_reporting else {}
    devices = _e(
        "devices",
        _e("emulator", str(guest.emulator)),
        *map(_disk, guest.disks),
        *_controllers(guest),
        None if guest.share_socket is None else _share(guest.share_socket),
        None if guest.interface is None else _interface(guest.interface, guest.machine),
        *_console(guest.console_socket),
        _channel("bind", guest.agent_socket, AGENT_PORT),
        _channel("connect", guest.command_socket, COMMAND_PORT),
        _e("memballoon", model="virtio" if guest.balloon else "none", **reporting),
    )
    if guest.machine is Machine.MICROVM:
        _place_on_mmio(devices)
    else:
        _place_on_root_bus(devices)
    return devices


def _console(socket: Path) -> Iterator[ET.Element]:
    source = _e("source", mode="connect", path=str(socket))
    yield _e("serial", source, _e("target", port="0"), type="unix")
    yield _e("console", source, _e("target", port="0", type="serial"), type="unix")


def _place_on_root_bus(devices: ET.Element) -> None:
    """Give each PCI device a slot of the machine's own bus (decision 0108).

    libvirt would put each behind a root port of its own, for hot-plugging that no guest here sees, and a port costs
    the firmware and the kernel some 10 ms under emulation.
    """
    slots = itertools.count(FIRST_SLOT)
    for device in devices:
        if _is_virtio(device):
            slot = f"{next(slots):#04x}"
            device.append(_e("address", type="pci", domain="0x0000", bus="0x00", slot=slot, function="0x0"))


def _place_on_mmio(devices: ET.Element) -> None:
    """Say that each device is a virtio-mmio one: libvirt looks for a PCI bus, which a microvm does not have."""
    for device in filter(_is_virtio, devices):
        device.append(_e("address", type="virtio-mmio"))


def _is_virtio(device: ET.Element) -> bool:
    match device.tag:
        case "disk":
            return device.find("target[@bus='virtio']") is not None
        case "controller":
            return device.get("model") != "none"
        case "memballoon":
            return device.get("model") == "virtio"
        case tag:
            return tag in {"filesystem", "interface"}


def _disk(disk: Disk) -> ET.Element:
    threads = {"iothread": str(disk.io_thread)} if disk.io_thread and not disk.is_scsi else {}
    backing = None
    if disk.backing is not None:
        backing = _e("backingStore", _e("format", type="raw"), _e("source", file=str(disk.backing)), type="file")
    return _e(
        "disk",
        # A full host disk is an I/O error in the guest, as it is elsewhere; QEMU's own choice is to pause the guest.
        _e("driver", name="qemu", type=disk.format, cache=disk.cache, io=disk.io, error_policy="report", **threads),
        _e("source", file=str(disk.path)),
        backing,
        _e("target", dev=disk.device, bus="scsi" if disk.is_scsi else "virtio"),
        _e("readonly") if disk.read_only else None,
        _e("serial", disk.serial),
        _e("boot", order="1") if disk.boots else None,
        _e("address", type="drive", controller=_scsi_number(disk)) if disk.is_scsi else None,
        type="file",
        device="disk",
    )


def _scsi_number(disk: Disk) -> str:
    """The number of a disk's own controller: a for 0, b for 1."""
    return str(ord(disk.device[-1]) - ord("a"))


def _controllers(guest: Guest) -> Iterator[ET.Element]:
    for disk in guest.disks:
        if disk.is_scsi:
            thread = _e("driver", iothread=str(disk.io_thread)) if disk.io_thread else None
            yield _e("controller", thread, type="scsi", index=_scsi_number(disk), model="virtio-scsi")
    yield _e("controller", type="usb", model="none")
    yield _e("controller", type="virtio-serial", index="0")


def _share(socket: Path) -> ET.Element:
    source, target = _e("source", socket=str(socket)), _e("target", dir=SCRATCH_SERIAL)
    return _e("filesystem", _e("driver", type="virtiofs"), source, target, type="mount")


def _interface(interface: Interface, machine: Machine) -> ET.Element:
    address, prefix = interface.subnet
    tap = (
        _e("target", dev=interface.tap, managed="no"),
        _e("driver", name="vhost" if interface.vhost else "qemu"),
    )
    return _e(
        "interface",
        _e("mac", address=interface.mac),
        *(tap if interface.tap else (_e("ip", family="ipv4", address=address, prefix=str(prefix)),)),
        _e("model", type="virtio"),
        # A PCI one has an option ROM, to boot from the network, which would cost every start some time.
        None if machine is Machine.MICROVM else _e("rom", enabled="no"),
        type="ethernet" if interface.tap else "user",
    )


def _channel(mode: str, path: Path, port: str) -> ET.Element:
    source = _e("source", mode=mode, path=str(path))
    return _e("channel", source, _e("target", type="virtio", name=port), type="unix")


def _label(model: str) -> ET.Element:
    """Have a daemon run QEMU as root, as the embedded driver does, and change the owner of no file of ours."""
    if model == "dac":
        return _e("seclabel", _e("label", "+0:+0"), type="static", model=model, relabel="no")
    return _e("seclabel", type="none", model=model)


def _qemu_extensions(guest: Guest) -> Iterator[ET.Element]:
    arguments = (_qemu("arg", value=value) for value in guest.arguments)
    variables = (_qemu("env", name=name, value=value) for name, value in guest.environment.items())
    yield _qemu("commandline", *arguments, *variables)
    yield _qemu("capabilities", _qemu("del", capability=SLOW_QUERY))


def _qemu(tag: str, *content: ET.Element, **attributes: str) -> ET.Element:
    return _e(f"{{{QEMU_NAMESPACE}}}{tag}", *content, **attributes)
