"""One guest from its request to its end: starts it, waits for it phase by phase, stops it."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from tare.backends import distribution
from tare.backends.cgroups.layout import Layout
from tare.backends.cgroups.lifecycle import Cgroup, start_cgroup
from tare.backends.cgroups.limits import Limits, limits_of
from tare.backends.vm.boot import (
    NO_USER_SPACE,
    RESET,
    SHUTDOWN_DEADLINE_S,
    Failure,
    Saved,
    Stopping,
    await_boot,
    await_restored,
    concurrent_starts,
    find_offset,
    kernel_arguments,
    start_feeding,
)
from tare.backends.vm.connection import Connection, Domain
from tare.backends.vm.disks import SHARED_MODE, DiskMode, copy_sparse, start_virtiofsd
from tare.backends.vm.domain_xml import BOOT_SERIAL, IMAGE_SERIAL, SCRATCH_SERIAL, Disk, Guest, domain_xml
from tare.backends.vm.emulator import BORN_VARIABLE, JOIN_VARIABLE, Emulator, choose_identity, confinement
from tare.backends.vm.network import GuestNetwork, GuestPort
from tare.backends.vm.options import AUTO, EMBEDDED, Balloon, DiskBus, Pinning, Scratch, VmOptions
from tare.backends.vm.pinning import Placement, place_threads
from tare.backends.vm.proof import Acceleration
from tare.backends.vm.watch import Watch, start_watch
from tare.bench.errors import BackendError
from tare.bench.ledger import MARKER_VARIABLE, Ledger, ResourceKind
from tare.bench.model import Envelope, Image, InstanceSpec, Phase, StartTimeline
from tare.bench.removers import REMOVERS

KILL_DEADLINE_S = 20.0
_CONSOLE_DEADLINE_S = 10.0
_SHARE_SOCKET = "share"
_SHARE_LOG = "share.log"


class GuestSetup(msgspec.Struct, frozen=True):
    """What all guests of a run stand on: made once by ``prepare``.

    ``folder`` is below the work directory, ``template`` the scratch disk to copy, ``scratch_mode`` how QEMU opens it.
    ``clone`` is the qcow2 over the image's disk, None where that is used as it is. ``emulator_cpus`` are those of
    QEMU's threads other than the vCPUs, none where they are the envelope's. ``network`` is what each guest gets a port
    of, None for none. ``boot_disk`` is what the firmware boots from, None where QEMU hands over the kernel. ``saved``
    is what guests go on from, once there is such a thing; until then they boot.
    """

    options: VmOptions
    connection: Connection
    emulator: Emulator
    acceleration: Acceleration
    image: Image
    folder: Path
    template: Path
    scratch_mode: DiskMode
    layout: Layout
    io_device: str | None
    clone: Path | None
    emulator_cpus: tuple[int, ...]
    network: GuestNetwork | None
    boot_disk: Path | None
    saved: Saved | None = None


class Running(msgspec.Struct, frozen=True):
    """A guest that is ready."""

    cgroup: Cgroup
    domain: Domain
    watch: Watch
    scratch: Path
    memory_bytes: int
    failure: Failure
    stopping: Stopping
    address: str | None


def guest_limits(envelope: Envelope, io_device: str | None, emulator_cpus: tuple[int, ...] = ()) -> Limits:
    """What QEMU's cgroup enforces: CPUs, their time and I/O. Memory and processes are limited by the guest itself."""
    cpus = tuple(sorted({*envelope.cpus, *emulator_cpus}))
    limits = {**limits_of(envelope, io_device), "cpus": cpus}
    return {name: value for name, value in limits.items() if name not in {"memory_bytes", "pids_max"}}


@contextlib.contextmanager
def start_guest(setup: GuestSetup, spec: InstanceSpec, ledger: Ledger, timeline: StartTimeline) -> Iterator[Running]:
    """A guest that has answered; on exit its QEMU, its cgroup and its files are gone. Raises BackendError."""
    name = spec.identifier
    limits = guest_limits(spec.envelope, setup.io_device, setup.emulator_cpus)
    if setup.saved is not None and (obstacle := setup.saved.obstacle(spec.envelope)):
        raise BackendError(f"a restored guest is what it was when it was saved: {obstacle}", remedy='start = "cold"')
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_start_folder(setup.folder / name))
        scratch = _make_scratch(setup, folder)
        # The sockets' paths have to be short.
        sockets = stack.enter_context(_start_folder(setup.connection.root / f"i{time.monotonic_ns():x}"))
        embedded = setup.options.connection == EMBEDDED
        boots = setup.saved is None
        watch = stack.enter_context(start_watch(sockets, born_by_console=not embedded, boots=boots))
        marker = f"vm-{name}"
        with _entered(ledger, marker, watch), contextlib.ExitStack() as live:
            cgroup = live.enter_context(start_cgroup(ledger, name, limits, setup.layout))
            cgroup.meter.waits_for_all = True  # QEMU and its helpers live as long as the guest
            port = stack.enter_context(_start_port(setup.network, timeline))
            guest = _connected(_describe(setup, spec, scratch, watch, cgroup, marker), port)
            failure = _failure_of(setup, watch, guest)
            try:
                if setup.options.scratch is Scratch.VIRTIOFS:
                    said = sockets / _SHARE_LOG
                    stack.enter_context(
                        start_virtiofsd(sockets / _SHARE_SOCKET, scratch, said, marker, cgroup.join_files)
                    )
                adopt = None if embedded else partial(_adopt, watch, cgroup)
                with concurrent_starts.counted():
                    domain = stack.enter_context(_start_domain(setup, guest, watch, failure, adopt))
                    _place(watch, guest)
                    if setup.saved is None:
                        await_boot(domain, watch, timeline, failure, spec.envelope, setup.options.profile)
                    else:
                        await_restored(domain, watch, timeline, failure, spec.envelope)
                    _place(watch, guest)
                stopping = Stopping(domain, watch, asks=setup.options.stop == "shutdown")
                address = None if port is None else port.address
                yield Running(cgroup, domain, watch, scratch, spec.envelope.memory_bytes, failure, stopping, address)
                timeline.mark(Phase.STOP_REQUESTED, time.monotonic())
                if not stopping.finish():
                    raise failure(
                        f"the guest did not power off when it was asked to (within {SHUTDOWN_DEADLINE_S:g} s)"
                    )
            finally:
                timeline.marks.setdefault(Phase.STOP_REQUESTED, time.monotonic())
                if not watch.kill(time.monotonic() + KILL_DEADLINE_S):
                    raise BackendError(f"QEMU (pid {watch.pid}) did not end within {KILL_DEADLINE_S:g} s of SIGKILL")
                _mark_end(watch, timeline)
    timeline.mark(Phase.STOPPED, time.monotonic())


def _mark_end(watch: Watch, timeline: StartTimeline) -> None:
    """The phases of the stop that were seen; what ended before it was asked to had none of them."""
    for phase, at_s in ((Phase.GUEST_DOWN, watch.down_s), (Phase.PROCESS_GONE, watch.gone_s)):
        if at_s is not None and at_s >= timeline.marks[Phase.STOP_REQUESTED]:
            timeline.mark(phase, at_s)


@contextlib.contextmanager
def _entered(ledger: Ledger, marker: str, watch: Watch) -> Iterator[None]:
    """An entry for QEMU, struck out on every way out on which QEMU is gone."""
    entry = ledger.enter(ResourceKind.PROCESS, marker)
    try:
        yield
    finally:
        if watch.gone or watch.pid is None:
            ledger.strike(entry)


def _describe(setup: GuestSetup, spec: InstanceSpec, scratch: Path, watch: Watch, cgroup: Cgroup, marker: str) -> Guest:
    image, envelope = spec.image, spec.envelope
    assert image.disk is not None
    assert image.kernel is not None
    assert image.initramfs is not None
    options = setup.options
    shared = options.scratch is Scratch.VIRTIOFS
    return Guest(
        name=spec.identifier,
        accelerator=setup.acceleration.accelerator,
        emulator=setup.connection.emulator(setup.emulator),
        cpus=envelope.cpus,
        memory_bytes=envelope.memory_bytes,
        kernel=image.kernel,
        initramfs=image.initramfs,
        kernel_arguments=kernel_arguments(options, envelope),
        disks=_disks(setup, image.disk, scratch),
        console_socket=watch.console_socket,
        command_socket=watch.command_socket,
        agent_socket=watch.agent_socket,
        saved=setup.options.start == "restore",
        environment={
            MARKER_VARIABLE: marker,
            JOIN_VARIABLE: "\n".join(map(str, cgroup.join_files)),
            BORN_VARIABLE: str(watch.born_fifo),
        },
        arguments=_confinement(setup),
        cpu_model="" if options.cpu_model == AUTO else options.cpu_model,
        emulator_cpus=setup.emulator_cpus,
        pinned=options.pinning is not Pinning.NONE,
        memory=options.memory_backing,
        balloon=options.balloon is not Balloon.OFF,
        free_page_reporting=options.balloon is Balloon.REPORTING,
        share_socket=watch.console_socket.with_name(_SHARE_SOCKET) if shared else None,
        security_models=setup.connection.security_models,
        machine=options.machine,
    )


def _confinement(setup: GuestSetup) -> tuple[str, ...]:
    """None for a daemon, which has its own. A saved guest's QEMU opens its disks again, by name, so it stays root."""
    if setup.options.connection != EMBEDDED:
        return ()
    identity = None if setup.options.start == "restore" else choose_identity()
    return confinement(identity, setup.emulator.version)


def _disks(setup: GuestSetup, image: Path, scratch: Path) -> tuple[Disk, ...]:
    """The image's disk, which all guests read through the host's page cache, and the instance's own."""
    options, mode = setup.options, setup.scratch_mode
    prefix = "sd" if options.disk_bus is DiskBus.SCSI else "vd"
    root = Disk(
        setup.clone or image,
        f"{prefix}a",
        IMAGE_SERIAL,
        SHARED_MODE.cache,
        SHARED_MODE.io,
        read_only=True,
        format=options.disk_format,
        backing=None if setup.clone is None else image,
    )
    boot: tuple[Disk, ...] = ()
    if setup.boot_disk is not None:
        of_image = (SHARED_MODE.cache, SHARED_MODE.io)
        boot = (Disk(setup.boot_disk, "vdc", BOOT_SERIAL, *of_image, read_only=True, boots=True),)
    if options.scratch is Scratch.VIRTIOFS:
        return root, *boot
    own = Disk(
        scratch,
        f"{prefix}b",
        SCRATCH_SERIAL,
        mode.cache,
        mode.io,
        io_thread=1 if options.iothread else 0,
        format=options.disk_format,
    )
    return root, own, *boot


@contextlib.contextmanager
def _start_port(network: GuestNetwork | None, timeline: StartTimeline) -> Iterator[GuestPort | None]:
    """A port of the guests' network, if they have one; what making it took is a split of the start."""
    if network is None:
        yield None
        return
    began = time.monotonic()
    with network.start_port() as port:
        timeline.splits["network"] = time.monotonic() - began
        yield port


def _connected(guest: Guest, port: GuestPort | None) -> Guest:
    if port is None:
        return guest
    arguments = (*guest.kernel_arguments, *port.kernel_arguments)
    return msgspec.structs.replace(guest, interface=port.interface, kernel_arguments=arguments)


@contextlib.contextmanager
def _start_domain(
    setup: GuestSetup,
    guest: Guest,
    watch: Watch,
    failure: Failure,
    before: Callable[[], None] | None,
) -> Iterator[Domain]:
    xml = domain_xml(guest)
    with contextlib.ExitStack() as stack:
        inside = contextlib.nullcontext() if setup.network is None else setup.network.bridge.inside()
        with contextlib.ExitStack() as feeding:
            fed = None if setup.saved is None else feeding.enter_context(start_feeding(setup.saved, xml))
            domain = setup.connection.start_domain(
                *(guest.name, xml, watch.on_agent, watch.on_running),
                before=before,
                saved=fed,
                deadline_s=concurrent_starts.deadline_s(len(guest.cpus)),
                give_up=partial(_end_marked, guest.environment[MARKER_VARIABLE]),
            )
            try:
                with inside:
                    running = stack.enter_context(domain)
            except BackendError as error:
                raise failure(error.message, error.remedy) from error
        yield running


def _end_marked(marker: str) -> None:
    """Kill QEMU and whatever else carries its mark, also where it has not reported its pid yet."""
    with contextlib.suppress(OSError):  # what is stuck in the kernel is named when the instance is stopped
        REMOVERS[ResourceKind.PROCESS](marker)


def _place(watch: Watch, guest: Guest) -> None:
    """See to it that each thread that QEMU has by now runs where the option ``pinning`` says. Raises BackendError."""
    watch.wait(lambda: watch.pid is not None, time.monotonic() + _CONSOLE_DEADLINE_S)
    if watch.pid is not None:
        others = frozenset(guest.emulator_cpus or guest.cpus)
        place_threads(watch.pid, Placement(guest.cpus, others, guest.pinned))


def _adopt(watch: Watch, cgroup: Cgroup) -> None:
    """Move a QEMU that a daemon started, and that runs no guest yet, to its instance's cgroup. Raises BackendError."""
    if not watch.wait(lambda: watch.pid is not None, time.monotonic() + _CONSOLE_DEADLINE_S) or watch.pid is None:
        raise BackendError(f"the guest's QEMU did not open its console within {_CONSOLE_DEADLINE_S:g} s")
    try:
        cgroup.move(watch.pid)
    except OSError as error:
        raise BackendError(f"QEMU could not be moved to its cgroup: {error.strerror}: {error.filename}") from error


def save_prepared(setup: GuestSetup, envelope: Envelope, ledger: Ledger) -> GuestSetup:
    """Boot a guest, save it when it is ready, and have all others go on from there. Raises BackendError."""
    spec = InstanceSpec(f"{setup.folder.name}-saved", setup.image, envelope)
    file, scratch = setup.folder / "saved-memory", setup.folder / "saved-scratch.raw"
    with start_guest(setup, spec, ledger, StartTimeline()) as running:
        running.domain.save(file)
        copy_sparse(running.scratch, scratch)
    saved = Saved(file, find_offset(file), scratch, envelope)
    return msgspec.structs.replace(setup, saved=saved, template=scratch)


def _failure_of(setup: GuestSetup, watch: Watch, guest: Guest) -> Failure:
    """Makes errors about a guest, with what its console and QEMU said last."""

    def failure(message: str, remedy: str | None = None) -> BackendError:
        said = {"console": watch.console_tail(), "QEMU": setup.connection.log_tail(guest.name)}
        with contextlib.suppress(OSError):
            said["virtiofsd"] = watch.console_socket.with_name(_SHARE_LOG).read_text(errors="replace").strip()
        evidence = "\n".join(f"--- {who} ---\n{text}" for who, text in said.items() if text)
        return BackendError(message, remedy=remedy or _remedy(message, said["console"]), evidence=evidence)

    return failure


def _remedy(message: str, console: str) -> str | None:
    text = f"{message}\n{console}"
    if "Out of memory" in text or "System is deadlocked on memory" in text or "Initramfs unpacking failed" in text:
        return "give the envelope more memory: the guest's kernel lives in it too"
    if NO_USER_SPACE in message and not console:
        return (
            "give the envelope more memory: under KVM a kernel that does not fit spins without a word; if it has "
            "enough, see whether guests boot here at all (tare doctor --prove-kvm)"
        )
    if RESET in text:
        return "give the envelope more memory, for a kernel that does not fit ends like this; or build the image again"
    if "unable to map backing store" in message:
        return "reserve more huge pages: each guest that lives takes all of its memory from them at once"
    if "virtlogd" in message:
        return "start virtlogd, to which libvirt's daemon gives QEMU's output (systemctl start virtlogd)"
    if "hugetlbfs" in message:
        return (
            "mount a hugetlbfs (mount -t hugetlbfs hugetlbfs /dev/hugepages) and restart libvirt's daemon, or leave "
            "out connection"
        )
    if "starting the distribution's init" in text:
        return f"give a profile other than minimal an image with systemd (packages {', '.join(distribution.PACKAGES)})"
    if "mounting /lower" in text:
        return (
            "the image's disk is damaged: remove the image and build it again (`tare image remove`, `tare image build`)"
        )
    return None


def _make_scratch(setup: GuestSetup, folder: Path) -> Path:
    """An instance's fresh scratch disk, or the folder that it shares. What is above is in the ledger."""
    if setup.options.scratch is Scratch.VIRTIOFS:
        shared = folder / "scratch"
        shared.mkdir(mode=0o755)
        return shared
    scratch = folder / f"scratch.{setup.options.disk_format}"
    try:
        copy_sparse(setup.template, scratch)
    except OSError as error:
        raise BackendError(
            f"could not make the scratch disk: {error.strerror}: {error.filename or scratch}",
            remedy="see that the work directory has space left",
        ) from error
    return scratch


@contextlib.contextmanager
def _start_folder(folder: Path) -> Iterator[Path]:
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
