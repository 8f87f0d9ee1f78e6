"""The ``vm`` backend: guests through libvirt, on KVM where a guest was seen to boot under it, else emulated."""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from tare.backends import distribution
from tare.backends.cgroups.layout import Version, find_layout
from tare.backends.cgroups.lifecycle import try_limits
from tare.backends.cgroups.limits import limit_confounds, outer_confounds
from tare.backends.vm import connection, emulator, proof
from tare.backends.vm.boot import LOADER_ARGUMENTS
from tare.backends.vm.description import describe
from tare.backends.vm.disks import (
    choose_scratch_mode,
    find_or_make_boot_disk,
    make_clone,
    make_qcow2,
    make_scratch_template,
    probe_boot_disk,
    probe_virtiofsd,
)
from tare.backends.vm.domain_xml import Accelerator, Machine, Memory
from tare.backends.vm.embedded import start_embedded
from tare.backends.vm.guest import GuestSetup, guest_limits, save_prepared, start_guest
from tare.backends.vm.instance import VmInstance
from tare.backends.vm.network import check_server, probe_network, start_guest_network
from tare.backends.vm.options import (
    AUTO,
    EMBEDDED,
    SYSTEM_MEMORY_BYTES,
    DiskFormat,
    Io,
    Network,
    Pinning,
    Profile,
    Scratch,
    VmOptions,
    probe_daemon,
    probe_huge_pages,
    probe_io_uring,
    require_cpu_model,
)
from tare.bench.errors import BackendError, UnavailableError, UnsupportedError
from tare.bench.interfaces import Backend, BackendContext, Instance, Proved
from tare.bench.ledger import Ledger, ResourceKind
from tare.bench.linux.mounts import find_block_device
from tare.bench.model import (
    Availability,
    BackendDescription,
    Envelope,
    Image,
    InstanceSpec,
    Phase,
    StartTimeline,
)
from tare.bench.network_path import ServerPlace
from tare.bench.packages import load_packages, remedy_for

if TYPE_CHECKING:
    from tare.backends.bare_metal import HostSide


class VirtualMachine(Backend):
    """Each instance is a libvirt domain that boots the image's kernel on the image's disk."""

    name = "vm"
    summary = "guests through libvirt (QEMU; KVM where it works, else emulated)"
    Options = VmOptions
    minimum_memory_bytes: ClassVar[int] = 96 * 2**20
    concurrent_starts: ClassVar[int] = 32

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._cache = context.cache_directory / "vm"
        self._setup: GuestSetup | None = None
        self._stack = contextlib.ExitStack()
        self._host: HostSide | None = None

    @classmethod
    def check_server(cls, options: VmOptions, place: ServerPlace) -> None:
        check_server(options.network, place)

    def probe(self) -> Availability:
        packages = [
            package.name for package in load_packages() if "vm" in package.needed_by and not package.is_present()
        ]
        if packages:
            return Availability.no(f"not installed: {', '.join(packages)}", remedy_for(packages))
        if not connection.have_library():
            missing = [package.name for package in load_packages() if "build" in package.needed_by]
            return Availability.no(
                "libvirt-python is not installed",
                f"pip install 'tarebench[vm]' (it is compiled: {remedy_for(missing)})",
            )
        if os.geteuid() != 0:
            return Availability.no("needs root, for QEMU's cgroup and libvirt's driver", "run tare as root")
        if find_layout().version is Version.NONE:
            return Availability.no("no cgroup hierarchy is mounted", "mount -t cgroup2 none /sys/fs/cgroup")
        for facility in self._needed_facilities():
            if not facility.available:
                return facility
        return Availability(available=True, reason=proof.known_outcome(self._cache))

    def facilities(self) -> tuple[tuple[str, Availability], ...]:
        return (
            ('memory_backing = "hugepages"', probe_huge_pages()),
            ('io = "io_uring"', probe_io_uring()),
            ('scratch = "virtiofs"', probe_virtiofsd()),
            ('connection = "qemu:///system"', probe_daemon()),
            ('network = "tap"', probe_network(Network.TAP)),
            ('profile = "firmware"', probe_boot_disk()),
        )

    def prove(self, image: Image | None, *, verbose: bool = False) -> Proved:
        """Boot a guest under KVM."""
        found, obstacle = self.probe(), proof.find_obstacle()
        if not found.available:
            return Proved(found)
        if obstacle is not None:
            return Proved(Availability.no(obstacle, proof.REMEDY))
        if image is None or image.kernel is None or image.initramfs is None:
            return Proved(Availability.no("no image with a kernel is in the cache", "tare image build"))
        qemu = emulator.find_emulator(self._cache)
        bound_s = self.context.options.proof_timeout_s
        ledger = self.context.ledger
        proved = proof.prove(
            qemu, image.kernel, image.initramfs, cache=self._cache, ledger=ledger, bound_s=bound_s, verbose=verbose
        )
        texts = proof.proof_texts(qemu, proved) | {"kernel of the guest": image.kernel_version}
        return Proved(proof.outcome(proved), texts)

    def forget(self) -> None:
        proof.forget(self._cache)

    @classmethod
    def packages(cls, options: VmOptions) -> tuple[str, ...]:
        return () if options.profile is Profile.MINIMAL else distribution.PACKAGES

    @classmethod
    def check(cls, options: VmOptions, envelope: Envelope) -> None:
        if options.pinning is Pinning.APART and not os.sched_getaffinity(0) - set(envelope.cpus):
            raise ValueError('pinning = "apart" needs a host CPU that the envelope does not have')
        if options.profile is not Profile.MINIMAL and envelope.memory_bytes < SYSTEM_MEMORY_BYTES:
            raise ValueError(f'profile = "{options.profile}" needs memory = "{SYSTEM_MEMORY_BYTES >> 20} MiB" at least')

    def _needed_facilities(self, memory_bytes: int = 0) -> Iterator[Availability]:
        options = self.context.options
        if options.memory_backing is Memory.HUGEPAGES:
            yield probe_huge_pages(memory_bytes)
        if options.io is Io.IO_URING:
            yield probe_io_uring()
        if options.scratch is Scratch.VIRTIOFS:
            yield probe_virtiofsd()
        yield probe_network(options.network)
        if options.profile is Profile.FIRMWARE:
            yield probe_boot_disk()

    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        """Find QEMU, prove KVM, open libvirt, format the scratch disk to copy."""
        self.probe().require(self.name)
        if image.guest_problem or image.kernel is None or image.initramfs is None or image.disk is None:
            raise UnavailableError(
                f"{self.name}: {image.guest_problem or f'image {image.digest} has no kernel, and a guest needs one'}",
                remedy="build the image with `tare image build`, or leave this backend out of the suite",
            )
        for facility in self._needed_facilities(envelope.memory_bytes):
            facility.require(self.name)
        self.close()
        try:
            self._setup = setup = self._set_up(image, envelope)
            limits = guest_limits(envelope, setup.io_device, setup.emulator_cpus)
            unenforced = try_limits(self.context.ledger, limits, setup.layout)
        except BaseException:
            self.close()
            raise
        own = describe(setup, self.name)
        unlimited = limit_confounds(self.name, limits, unenforced, setup.layout.version)
        outer = outer_confounds(self.name, envelope.memory_bytes, setup.layout)
        return msgspec.structs.replace(own, confounds=(*own.confounds, *unlimited, *outer))

    def _set_up(self, image: Image, envelope: Envelope) -> GuestSetup:
        ledger, options = self.context.ledger, self.context.options
        assert image.kernel is not None
        assert image.initramfs is not None
        assert image.disk is not None
        qemu = emulator.find_emulator(self._cache)
        acceleration = proof.decide(
            options.accel,
            qemu,
            image.kernel,
            image.initramfs,
            cache=self._cache,
            ledger=ledger,
            bound_s=options.proof_timeout_s,
        )
        if options.machine is Machine.MICROVM and acceleration.accelerator is not Accelerator.KVM:
            raise UnavailableError(
                f'machine = "microvm" needs KVM, and here guests are emulated: {acceleration.reason}',
                remedy=f"leave it out; or {proof.REMEDY}",
            )
        opening = (
            start_embedded(ledger, self._cache / "capabilities")
            if options.connection == EMBEDDED
            else connection.start_daemon_connection(options.connection, ledger)
        )
        libvirt = self._stack.enter_context(opening)
        found = libvirt.learn(qemu, acceleration.accelerator)
        if options.cpu_model != AUTO:
            require_cpu_model(options.cpu_model, acceleration.accelerator, found)
        folder = self.context.work_directory / f"vm-{secrets.token_hex(4)}"
        self._stack.enter_context(ledger.holding(ResourceKind.DIRECTORY, folder))
        self._stack.callback(shutil.rmtree, folder)
        folder.mkdir(parents=True)
        mode = choose_scratch_mode(folder, options.cache, options.io)
        template, clone = _make_disks(ledger, folder, image.disk, envelope.scratch_bytes, options.disk_format)
        apart = options.pinning is Pinning.APART
        boot_disk = None
        if options.profile is Profile.FIRMWARE:
            boot_disk = find_or_make_boot_disk(image.kernel, image.initramfs, LOADER_ARGUMENTS, self._cache)
        setup = GuestSetup(
            boot_disk=boot_disk,
            options=options,
            connection=libvirt,
            emulator=qemu,
            acceleration=acceleration,
            image=image,
            folder=folder,
            template=template,
            scratch_mode=mode,
            layout=find_layout(),
            io_device=find_block_device(folder),
            clone=clone,
            emulator_cpus=tuple(sorted({*self.context.housekeeping_cpus} - {*envelope.cpus})) if apart else (),
            network=self._stack.enter_context(start_guest_network(options.network)),
        )
        return save_prepared(setup, envelope, ledger) if options.start == "restore" else setup

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        """Raises BackendError with the last lines of the guest's console."""
        timeline = StartTimeline()
        timeline.mark(Phase.REQUESTED, time.monotonic())
        if self._setup is None:
            raise BackendError(f"{self.name}: start before prepare")
        with start_guest(self._setup, spec, self.context.ledger, timeline) as running:
            yield VmInstance(running, self._setup, timeline)

    def host_side(self, spec: InstanceSpec) -> AbstractContextManager[Instance]:
        """Bare metal in the namespace that the guests' QEMUs are in."""
        network = None if self._setup is None else self._setup.network
        if network is None:
            raise UnsupportedError(
                "a guest with the network none reaches nothing outside",
                remedy='options = { network = "tap" }, or "user", for the backend "vm"',
            )
        if self._host is None:
            from tare.backends.bare_metal import start_host_side

            starting = start_host_side(self.context, network.bridge, spec.image, spec.envelope)
            self._host = self._stack.enter_context(starting)
        return self._host.host_side(spec)

    def close(self) -> None:
        self._setup = None
        self._host = None
        self._stack.close()


def _make_disks(
    ledger: Ledger, folder: Path, image_disk: Path, scratch_bytes: int, form: DiskFormat
) -> tuple[Path, Path | None]:
    """The scratch disk to copy, and the clone of the image's disk if the disks are qcow2. Raises BackendError."""
    template = folder / "scratch-template.raw"
    make_scratch_template(ledger, template, scratch_bytes)
    if form is DiskFormat.RAW:
        return template, None
    converted, clone = folder / "scratch-template.qcow2", folder / "image.qcow2"
    make_qcow2(template, converted)
    make_clone(image_disk, clone)
    return converted, clone
