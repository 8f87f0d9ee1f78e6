"""What a report has to know about guests: their facts, and what else than isolation may explain a difference."""

import platform
from collections.abc import Iterator

import msgspec

from tare.backends.vm.disks import OPTIONS as SHARE_OPTIONS
from tare.backends.vm.disks import SHARED_MODE, allocated_bytes
from tare.backends.vm.domain_xml import CPU_MODE, TB_CACHE_MIB, Accelerator
from tare.backends.vm.emulator import choose_identity
from tare.backends.vm.guest import GuestSetup
from tare.backends.vm.network import no_network_facts
from tare.backends.vm.options import AUTO, EMBEDDED, PAST_THE_PAGE_CACHE, Cache, Pinning, Profile, Scratch, VmOptions
from tare.bench.catalogue import ConfoundCode
from tare.bench.linux.hypervisor import find_hypervisor
from tare.bench.model import BackendDescription, Confound, Fact, IsolationKind, named_facts
from tare.bench.units import Unit

_PINNED = {
    Pinning.TOGETHER: "a vCPU on each of the envelope's CPUs; QEMU's other threads on all of them and no other",
    Pinning.APART: "a vCPU on each of the envelope's CPUs; QEMU's other threads on the host's other CPUs",
    Pinning.NONE: "all of QEMU's threads anywhere on the envelope's CPUs",
}


_KERNEL_THREADS = (
    "kvm-nx-lpage-recovery and vhost are charged to the guest's cgroup and counted as no process of it; kvm-pit runs "
    "in the root group and is charged to nobody"
)
_PROFILES = {
    Profile.MINIMAL: "minimal: kernel from QEMU, tare's init",
    Profile.FULL: "full: kernel from QEMU, systemd to multi-user.target",
    Profile.FIRMWARE: "firmware: SeaBIOS, syslinux from a disk, systemd to multi-user.target",
}


def describe(setup: GuestSetup, backend: str) -> BackendDescription:
    """What guests with this setup turned out to be, for the backend of this name."""
    accelerator, options = setup.acceleration.accelerator, setup.options
    thread = "iothread" if options.iothread else "main loop"
    texts = {
        "accel": accelerator.value,
        "accel_reason": setup.acceleration.reason,
        "qemu": setup.emulator.version,
        "libvirt": setup.connection.version,
        "connection": options.connection,
        "qemu_user": _qemu_user(options),
        "machine": options.machine.value,
        "profile": _PROFILES[options.profile],
        "cpu_model": CPU_MODE[accelerator] if options.cpu_model == AUTO else options.cpu_model,
        "pinning": _PINNED[options.pinning],
        "memory_backing": options.memory_backing.value,
        "balloon": options.balloon.value,
        "image_disk": f"{options.disk_bus},{options.disk_format},read-only,{SHARED_MODE}",
        "scratch_disk": f"{options.disk_bus},{options.disk_format},{setup.scratch_mode},{thread}",
        "root": "overlay of a tmpfs on erofs",
        **(no_network_facts() if setup.network is None else setup.network.facts()),
        "start": options.start,
        "stop": options.stop,
        "guest_kernel": setup.image.kernel_version,
    }
    if options.scratch is Scratch.VIRTIOFS:
        texts["scratch_disk"] = f"virtiofs,{SHARE_OPTIONS}"
    facts = named_facts(texts)
    if setup.saved is not None:
        saved = allocated_bytes(setup.saved.file)
        facts["saved_memory"] = Fact("saved_memory", f"{saved} bytes", "st_blocks", saved, Unit.BYTE)
    if accelerator is Accelerator.KVM:
        facts |= named_facts({"kernel_threads": _KERNEL_THREADS})
    if accelerator is Accelerator.TCG:
        cache = f"{TB_CACHE_MIB} MiB"
        facts["tcg_tb_cache"] = Fact("tcg_tb_cache", cache, "", TB_CACHE_MIB * 2**20, Unit.BYTE)
    return BackendDescription(
        f"vm ({accelerator.value})",
        IsolationKind.VIRTUAL_MACHINE if accelerator is Accelerator.KVM else IsolationKind.EMULATED,
        accelerator.value,
        facts,
        tuple(_confounds(setup, backend)),
    )


def _qemu_user(options: VmOptions) -> str:
    if options.connection != EMBEDDED:
        return "root, in the daemon's sandbox"
    if options.start == "restore":
        return "root, to open the disks of a restored guest again"
    return "root" if choose_identity() is None else "an identity of its own, without capabilities, once all is open"


def _confounds(setup: GuestSetup, backend: str) -> Iterator[Confound]:
    for found in (*_of_what_runs(setup), *_of_storage(setup), *_of_cpus(setup)):
        yield msgspec.structs.replace(found, backend=backend)
    if setup.network is not None:
        yield from setup.network.confounds(backend)
    yield from setup.layout.confounds(backend, waits_for_all=True)


def _of_what_runs(setup: GuestSetup) -> Iterator[Confound]:
    if setup.acceleration.accelerator is Accelerator.TCG:
        yield Confound(
            ConfoundCode.EMULATED,
            "no hardware virtualization was measured: the guest's processor is emulated in software (TCG), so its "
            f"figures say nothing about a guest under KVM ({setup.acceleration.reason})",
        )
    elif (under := find_hypervisor()) is not None:
        yield Confound(
            ConfoundCode.NESTED,
            f"the guest is nested: it ran under KVM on a host that is itself a virtual machine ({under.name})"
            + (", whose processor is emulated in software: nothing here was measured on hardware" * under.emulated),
        )
    if setup.image.kernel_version != platform.release():
        yield Confound(
            ConfoundCode.OTHER_KERNEL,
            f"the guest runs Linux {setup.image.kernel_version}, the host {platform.release()}: a part of any "
            "difference may be the kernel's",
        )
    if setup.saved is not None:
        yield Confound(
            "restored-memory",
            "every guest goes on from the memory of one that was booted once in this run: what differs from boot "
            "to boot (addresses, page cache, where things lie) is the same in all of them, so that the intervals "
            "do not hold it",
        )
    yield Confound(
        ConfoundCode.GUEST_MEMORY,
        "the envelope's memory is the guest's RAM: its kernel takes a part, what is changed in its root another, "
        "and what QEMU needs in addition is charged but not limited",
    )


def _of_storage(setup: GuestSetup) -> Iterator[Confound]:
    options, mode = setup.options, setup.scratch_mode
    yield Confound(
        ConfoundCode.OTHER_ROOT, "the guest's root is a tmpfs over erofs; elsewhere it is an overlay on the host's disk"
    )
    path = f"a file system of the guest's own on {options.disk_bus} ({options.disk_format}, {mode})"
    if options.scratch is Scratch.VIRTIOFS:
        path = f"a folder of the host's through virtiofsd ({SHARE_OPTIONS})"
    yield Confound(ConfoundCode.STORAGE_PATH, f"/scratch is {path}; elsewhere it is a folder of the host's")
    if options.scratch is Scratch.DISK and mode.cache not in PAST_THE_PAGE_CACHE:
        asked = f"cache = {mode.cache} was asked for"
        why = "the work directory's file system has no direct I/O" if options.cache is Cache.AUTO else asked
        yield Confound(ConfoundCode.SCRATCH_CACHED, f"{why}, so the scratch disk goes through two page caches")
    if mode.cache == Cache.UNSAFE:
        yield Confound("scratch-unsafe", "cache = unsafe: what a guest syncs is not on the disk")


def _of_cpus(setup: GuestSetup) -> Iterator[Confound]:
    if setup.options.connection != EMBEDDED:
        yield Confound(
            "start-not-charged",
            f"QEMU was started by the daemon of {setup.options.connection}, in a cgroup of its own, and moved to its "
            "instance's before the guest's first instruction: what QEMU used until then is not in the costs",
        )
    if setup.emulator_cpus:
        yield Confound(
            "more-cpus-than-others",
            "QEMU's main loop and its I/O thread run on CPUs outside the envelope (pinning = apart), which the "
            "other backends' instances do not have",
        )
    else:
        yield Confound(
            "cpus-shared-with-hypervisor",
            "QEMU's main loop and its I/O thread run on the same CPUs as the guest's vCPUs, so that the guest gets "
            "no CPU that the others do not have",
        )
