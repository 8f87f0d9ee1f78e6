"""What a suite may choose about a guest: each field is a dimension of the comparison (docs/vm.md says why these)."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from backends.vm.domain_xml import Memory

AUTO = "auto"


class Pinning(StrEnum):
    """Where QEMU's threads run.

    ``together``: each vCPU on a CPU of the envelope, all other threads on the envelope's CPUs too. ``apart``: those
    others on the CPUs that are left, which gives the guest more than a container gets. ``none``: all threads anywhere
    on the envelope's CPUs.
    """

    TOGETHER = "together"
    APART = "apart"
    NONE = "none"


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

    ``accel``: ``kvm`` is refused where no guest boots under it; ``auto`` then emulates, and says so. ``cpu_model`` is
    ``auto`` (``host-passthrough`` under KVM, ``maximum`` under TCG), a mode of libvirt's, or QEMU's name of a model.
    ``stop``: ``kill`` ends QEMU at once; ``shutdown`` has the guest's init end what runs and power off first.
    ``cache``, ``io`` and ``iothread`` (a thread of its own for the disk's I/O) are those of the scratch disk.
    """

    accel: Literal["auto", "kvm", "tcg"] = "auto"
    cpu_model: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = AUTO
    pinning: Pinning = Pinning.TOGETHER
    memory_backing: Memory = Memory.PLAIN
    disk_format: DiskFormat = DiskFormat.RAW
    cache: Cache = Cache.AUTO
    io: Io = Io.AUTO
    iothread: bool = True
    stop: Literal["kill", "shutdown"] = "kill"
    network: Network = Network.NONE

    def __post_init__(self) -> None:
        if self.accel == "tcg" and self.cpu_model == "host-passthrough":
            raise ValueError('cpu_model = "host-passthrough" needs KVM, and accel = "tcg" emulates: use "maximum"')
        if self.io is Io.NATIVE and self.cache not in PAST_THE_PAGE_CACHE | {Cache.AUTO}:
            raise ValueError(f'io = "native" needs cache = "none" or "directsync", not "{self.cache}"')
