"""What a suite may choose about a guest: each field is a dimension of the comparison (docs/vm.md says why these).

And what this host offers to them, asked before a start: huge pages, io_uring, a daemon, CPU models.
"""

import contextlib
import difflib
import socket
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from tare.backends.vm.domain_xml import Accelerator, Machine, Memory
from tare.bench.errors import UnavailableError
from tare.bench.linux.files import HERE, HostRoots, find_text
from tare.bench.linux.memory import read_meminfo
from tare.bench.model import Availability

AUTO = "auto"
EMBEDDED = "qemu:///embed"
DRIVERS = (EMBEDDED, "qemu:///system")


class Pinning(StrEnum):
    """Where QEMU's threads run.

    ``together``: each vCPU on a CPU of the envelope, all other threads on the envelope's CPUs too. ``apart``: those
    others on the CPUs that are left, which gives the guest more than a container gets. ``none``: all threads anywhere
    on the envelope's CPUs.
    """

    TOGETHER = "together"
    APART = "apart"
    NONE = "none"


class Balloon(StrEnum):
    """Whether the host can ask for memory back, and whether the guest reports by itself which pages it does not use."""

    OFF = "off"
    ON = "on"
    REPORTING = "free-page-reporting"


class DiskBus(StrEnum):
    """What the guest sees its disks at."""

    BLK = "virtio-blk"
    SCSI = "virtio-scsi"


class Scratch(StrEnum):
    """What ``/scratch`` is: a disk with a file system of the guest's, or a folder of the host's."""

    DISK = "disk"
    VIRTIOFS = "virtiofs"


class Profile(StrEnum):
    """What boots in the guest.

    ``minimal``: the kernel, and tare's small init with the guest agent. ``full``: the image's whole Debian, with
    systemd up to multi-user.target and the guest agent as one of its services. ``firmware``: the same, from a disk with
    a boot loader that the machine's firmware (SeaBIOS) finds, where QEMU hands the kernel to the others itself.
    """

    MINIMAL = "minimal"
    FULL = "full"
    FIRMWARE = "firmware"


SYSTEM_MEMORY_BYTES = 192 * 2**20


class DiskFormat(StrEnum):
    """What the disks' files are: the blocks as they are, or QEMU's format with maps and copying on write."""

    RAW = "raw"
    QCOW2 = "qcow2"


class Cache(StrEnum):
    """How QEMU opens the scratch disk, by QEMU's names. ``auto``: ``none``, or ``writeback`` without direct I/O."""

    AUTO = "auto"
    NONE = "none"
    DIRECTSYNC = "directsync"
    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    UNSAFE = "unsafe"


class Io(StrEnum):
    """How QEMU does the scratch disk's I/O. ``auto``: ``native`` past the page cache, ``threads`` through it."""

    AUTO = "auto"
    NATIVE = "native"
    THREADS = "threads"
    IO_URING = "io_uring"


PAST_THE_PAGE_CACHE = frozenset({Cache.NONE, Cache.DIRECTSYNC})


class Network(StrEnum):
    """What a guest is connected to.

    ``none``: lo only. ``tap``: a bridge in a network namespace that tare made, at an address of its own. ``user``:
    QEMU's own stack, by which the guest reaches the host's side there and nobody the guest.
    """

    NONE = "none"
    TAP = "tap"
    USER = "user"


class VmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``options`` of a ``[[backend]]`` of the type ``vm``; the default of each is what a good operator would choose.

    ``machine``: ``microvm`` has no PCI and few devices, and needs KVM.
    ``accel``: ``kvm`` is refused where no guest boots under it; ``auto`` then emulates, and says so.
    ``connection`` is libvirt's URI of a QEMU driver on this host; ``qemu:///embed`` needs no daemon. ``cpu_model`` is
    ``auto`` (``host-passthrough`` under KVM, ``maximum`` under TCG), a mode of libvirt's, or QEMU's name of a model.
    ``profile``: what boots in the guest, tare's small init or the whole distribution.
    ``start``: ``cold`` boots; ``restore`` goes on from the memory of a guest that was booted and saved once a run.
    ``stop``: ``kill`` ends QEMU at once; ``shutdown`` has the guest's init end what runs and power off first.
    ``scratch``: the folder that ``virtiofs`` shows is on the suite's storage.
    ``proof_timeout_s``: how long the guest that proves KVM may take while it gets somewhere, once a host.
    ``cache``, ``io`` and ``iothread`` (a thread of its own for the disk's I/O) are those of the scratch disk.
    """

    accel: Literal["auto", "kvm", "tcg"] = "auto"
    connection: str = EMBEDDED
    machine: Machine = Machine.Q35
    profile: Profile = Profile.MINIMAL
    cpu_model: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = AUTO
    pinning: Pinning = Pinning.TOGETHER
    memory_backing: Memory = Memory.PLAIN
    balloon: Balloon = Balloon.OFF
    disk_bus: DiskBus = DiskBus.BLK
    disk_format: DiskFormat = DiskFormat.RAW
    cache: Cache = Cache.AUTO
    io: Io = Io.AUTO
    iothread: bool = True
    scratch: Scratch = Scratch.DISK
    start: Literal["cold", "restore"] = "cold"
    stop: Literal["kill", "shutdown"] = "kill"
    network: Network = Network.NONE
    proof_timeout_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 120.0

    def __post_init__(self) -> None:
        _check_uri(self.connection)
        if self.accel == "tcg" and self.cpu_model == "host-passthrough":
            raise ValueError('cpu_model = "host-passthrough" needs KVM, and accel = "tcg" emulates: use "maximum"')
        if self.machine is Machine.MICROVM:
            self._check_microvm()
        if self.start == "restore":
            self._check_restore()
        if self.io is Io.NATIVE and self.cache not in PAST_THE_PAGE_CACHE | {Cache.AUTO}:
            raise ValueError(f'io = "native" needs cache = "none" or "directsync", not "{self.cache}"')
        if self.network is not Network.NONE and self.connection != EMBEDDED:
            raise ValueError(
                f'network = "{self.network}" needs connection = "{EMBEDDED}": a daemon starts QEMU elsewhere'
            )
        if self.scratch is Scratch.VIRTIOFS:
            self._check_virtiofs()

    def _check_microvm(self) -> None:
        """Its kernel has no clock but KVM's, and its firmware finds no disk."""
        if self.accel == "tcg":
            raise ValueError('machine = "microvm" needs KVM, whose clock is the only one that its kernel finds')
        if self.profile is Profile.FIRMWARE:
            raise ValueError('profile = "firmware" needs machine = "q35": a microvm boots from no disk')
        if self.scratch is Scratch.VIRTIOFS:
            raise ValueError('scratch = "virtiofs" needs machine = "q35": on a microvm writes to it hang')
        if self.disk_bus is DiskBus.SCSI and self.iothread:
            raise ValueError('disk_bus = "virtio-scsi" needs iothread = false on a microvm: libvirt has none there')

    def _check_restore(self) -> None:
        """What a guest's memory knows of the world outside has to be the same in the next guest."""
        for key, value, needed in (
            ("connection", self.connection, EMBEDDED),
            ("disk_format", self.disk_format, DiskFormat.RAW),
            ("scratch", self.scratch, Scratch.DISK),
            ("network", self.network, Network.NONE),
            ("profile", self.profile, Profile.MINIMAL),
        ):
            if value != needed:
                raise ValueError(f'start = "restore" needs {key} = "{needed}", not "{value}"')

    def _check_virtiofs(self) -> None:
        if self.memory_backing is Memory.PLAIN:
            raise ValueError(
                'scratch = "virtiofs" needs memory that its server can map: memory_backing = "memfd" or "hugepages"'
            )
        for key, value in (("cache", self.cache), ("io", self.io)):
            if value != AUTO:
                raise ValueError(f'{key} = "{value}" is for a disk, and with scratch = "virtiofs" there is none')

    @property
    def modules(self) -> tuple[str, ...]:
        """The kernel modules that a guest needs for them, beyond those that every guest loads."""
        bus = ("virtio_mmio",) if self.machine is Machine.MICROVM else ()
        scsi = ("virtio_scsi", "sd_mod") if self.disk_bus is DiskBus.SCSI else ()
        balloon = ("virtio_balloon",) if self.balloon is not Balloon.OFF else ()
        return bus + scsi + balloon


def _check_uri(uri: str) -> None:
    """Raises ValueError for what is no QEMU driver on this host."""
    parts = urlsplit(uri)
    driver, _, transport = parts.scheme.partition("+")
    what = f'connection = "{uri}"'
    if driver != "qemu":
        raise ValueError(f"{what} is no QEMU driver of libvirt's: those are {', '.join(DRIVERS)}")
    if parts.netloc or transport not in {"", "unix"}:
        raise ValueError(f"{what} is a driver on another host, and tare measures on the one it runs on")
    if parts.path == "/session":
        raise ValueError(
            f"{what} is for ordinary users, and libvirt has none for root, as which guests run: {DRIVERS[1]}"
        )
    if f"qemu://{parts.path}" not in DRIVERS:
        raise ValueError(f"{what} names no driver that there is: {', '.join(DRIVERS)}")
    if f"qemu://{parts.path}" == EMBEDDED and uri != EMBEDDED:
        raise ValueError(f'{what}: the embedded driver is "{EMBEDDED}", with a folder that tare makes')


def probe_huge_pages(needed_bytes: int = 0, roots: HostRoots = HERE) -> Availability:
    """Whether as many huge pages are free as ``needed_bytes`` take, and any at all."""
    fields = read_meminfo(roots)
    page = fields.get("Hugepagesize", 0)
    if not page:
        return Availability.no("this kernel has no huge pages", 'leave out memory_backing = "hugepages"')
    free = fields.get("HugePages_Free", 0) - fields.get("HugePages_Rsvd", 0)
    needed = max(1, -(-needed_bytes // page))
    said = f"{free} huge pages of {page // 2**20} MiB are free"
    if free < needed:
        return Availability.no(
            f"{said}, and a guest needs {needed}" if needed_bytes else said,
            "reserve them (sysctl vm.nr_hugepages=N, for all guests that live at the same time), best at boot",
        )
    return Availability(available=True, reason=said)


def probe_io_uring(roots: HostRoots = HERE) -> Availability:
    """Whether this kernel lets root use io_uring. That QEMU was built with it shows when it starts."""
    switch = roots.proc / "sys/kernel/io_uring_disabled"
    if find_text(switch) == "2":  # before Linux 6.6 there is no switch
        return Availability.no(f"{switch} is 2", 'set it to 1 or 0, or leave out io = "io_uring"')
    return Availability(available=True, reason="the kernel allows it")


def probe_daemon(folder: Path = Path("/run/libvirt")) -> Availability:
    """Whether a libvirt daemon for QEMU answers here."""
    sockets = [folder / name for name in ("virtqemud-sock", "libvirt-sock")]
    for path in sockets:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, contextlib.suppress(OSError):
            client.connect(str(path))
            return Availability(available=True, reason=f"a daemon answers at {path}")
    return Availability.no(
        "no libvirt daemon answers, which only this connection needs",
        "install libvirt-daemon-system and start it (systemctl start libvirtd)",
    )


def parse_cpu_models(capabilities: str) -> Mapping[str, bool]:
    """The modes and models in what ``virDomainGetDomainCapabilities`` returns, and whether each can be had."""
    cpu = ET.fromstring(capabilities).find("cpu")  # noqa: S314 - it is libvirt's own
    if cpu is None:
        return {}
    found = {mode.get("name", ""): mode.get("supported") == "yes" for mode in cpu.findall("mode")}
    del found["custom"]
    models = {model.text or "": model.get("usable") == "yes" for model in cpu.findall("mode[@name='custom']/model")}
    return {**models, **found}


def require_cpu_model(model: str, accelerator: Accelerator, capabilities: str) -> None:
    """Raises UnavailableError, with the key and the names that come close, if guests cannot have ``model``."""
    known = parse_cpu_models(capabilities)
    if known.get(model):
        return
    usable = sorted(name for name, can in known.items() if can)
    close = difflib.get_close_matches(model, usable, n=5, cutoff=0.5) or usable
    why = "lacks features that this host cannot give" if model in known else "is not known to libvirt"
    if model in {"host-passthrough", "maximum", "host-model"}:
        why = "is not possible"
    raise UnavailableError(
        f"options.cpu_model: {model} {why} under {accelerator}", remedy=f"choose one of: auto, {', '.join(close)}"
    )
