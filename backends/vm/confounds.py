"""What else than isolation may explain how a guest differs from an instance of another backend."""

import platform
from collections.abc import Iterator

import msgspec

from tare.backends.vm.domain_xml import Accelerator
from tare.backends.vm.guest import Ground
from tare.backends.vm.options import EMBEDDED, PAST_THE_PAGE_CACHE, Cache, Scratch
from tare.backends.vm.share import OPTIONS as SHARE_OPTIONS
from tare.bench.catalogue import ConfoundCode
from tare.bench.model import Confound


def confounds_of(ground: Ground, backend: str) -> Iterator[Confound]:
    """Those of all guests on ``ground``, for the backend of this name."""
    for found in (*_of_what_runs(ground), *_of_storage(ground), *_of_cpus(ground)):
        yield msgspec.structs.replace(found, backend=backend)
    if ground.network is not None:
        yield from ground.network.confounds(backend)
    yield from ground.layout.confounds(backend)


def _of_what_runs(ground: Ground) -> Iterator[Confound]:
    if ground.acceleration.accelerator is Accelerator.TCG:
        yield Confound(
            ConfoundCode.EMULATED,
            "no hardware virtualization was measured: the guest's processor is emulated in software (TCG), so its "
            f"figures say nothing about a guest under KVM ({ground.acceleration.reason})",
        )
    if ground.image.kernel_version != platform.release():
        yield Confound(
            ConfoundCode.OTHER_KERNEL,
            f"the guest runs Linux {ground.image.kernel_version}, the host {platform.release()}: a part of any "
            "difference may be the kernel's",
        )
    if ground.saved is not None:
        yield Confound(
            "restored-memory",
            "every guest goes on from the memory of one that was booted once in this run: what differs from boot "
            "to boot (addresses, page cache, where things lie) is the same in all of them, so that the intervals "
            "do not hold it",
        )
    yield Confound(
        "guest-memory",
        "the envelope's memory is the guest's RAM: its kernel takes a part, what is changed in its root another, "
        "and what QEMU needs beside it is charged but not limited",
    )


def _of_storage(ground: Ground) -> Iterator[Confound]:
    options, mode = ground.options, ground.scratch_mode
    yield Confound(
        "other-root", "the guest's root is a tmpfs over erofs; elsewhere it is an overlay on the host's disk"
    )
    path = f"a file system of the guest's own on {options.disk_bus} ({options.disk_format}, {mode})"
    if options.scratch is Scratch.VIRTIOFS:
        path = f"a folder of the host's through virtiofsd ({SHARE_OPTIONS})"
    yield Confound("storage-path", f"/scratch is {path}; elsewhere it is a folder of the host's")
    if options.scratch is Scratch.DISK and mode.cache not in PAST_THE_PAGE_CACHE:
        asked = f"cache = {mode.cache} was asked for"
        why = "the work directory's file system has no direct I/O" if options.cache is Cache.AUTO else asked
        yield Confound("scratch-cached", f"{why}, so the scratch disk goes through two page caches")
    if mode.cache == Cache.UNSAFE:
        yield Confound("scratch-unsafe", "cache = unsafe: what a guest syncs is not on the disk")


def _of_cpus(ground: Ground) -> Iterator[Confound]:
    if ground.options.connection != EMBEDDED:
        yield Confound(
            "start-not-charged",
            f"QEMU was started by the daemon of {ground.options.connection}, in a cgroup of its own, and moved to its "
            "instance's before the guest's first instruction: what QEMU used until then is not in the costs",
        )
    if ground.emulator_cpus:
        yield Confound(
            "more-cpus-than-others",
            "QEMU's main loop and its I/O thread run on CPUs beside the envelope's (pinning = apart), which the "
            "other backends' instances do not have",
        )
    else:
        yield Confound(
            "cpus-shared-with-hypervisor",
            "QEMU's main loop and its I/O thread run on the same CPUs as the guest's vCPUs, so that the guest gets "
            "no CPU that the others do not have",
        )
