"""What bare metal and containers share: probing, the zygote, an instance's folders and cgroup, start and stop."""

import contextlib
import secrets
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from tare.backends.cgroups.layout import Layout, Version, find_layout
from tare.backends.cgroups.lifecycle import begin_cgroup, complete_cgroup, try_limits
from tare.backends.cgroups.limits import limit_confounds, limits_of, outer_confounds
from tare.backends.native.descriptors import raise_descriptor_limit, require_descriptors
from tare.backends.native.identities import (
    AS_ROOT,
    CGROUP_REMEDY,
    Privileges,
    confounds_of,
    is_privileged,
    probe_switches,
    write_maps,
)
from tare.backends.native.instance import ProcessInstance
from tare.backends.native.setup import (
    MOUNT_POINTS,
    Setup,
    describe_instance,
    explain_start,
    make_folders,
    make_shared_folders,
)
from tare.backends.native.zygote import (
    Program,
    Zygote,
    ZygoteGoneError,
    Zygotes,
    find_program,
    probe_program,
    start_zygote,
)
from tare.bench.catalogue import ConfoundCode
from tare.bench.errors import BackendError
from tare.bench.interfaces import Backend, BackendContext, Instance
from tare.bench.ledger import ResourceKind
from tare.bench.linux.files import HERE, HostRoots
from tare.bench.linux.mounts import find_block_device, find_mount, read_mounts
from tare.bench.locations import WORK_VARIABLE
from tare.bench.model import (
    Availability,
    BackendDescription,
    Confound,
    Envelope,
    Image,
    InstanceSpec,
    Phase,
    StartTimeline,
    named_facts,
)
from tare.bench.trees import remove_tree

if TYPE_CHECKING:
    from tare.backends.network.bridge import BridgeNetwork


_PROOFS = 3


class _Prepared(msgspec.Struct, frozen=True):
    """What ``prepare`` found and made. ``shared_bytes`` is the image's tree, every instance's lower layer."""

    folder: Path
    setup: Setup
    program: Program
    layout: Layout
    io_device: str | None
    shared_bytes: int


class HostKernelBackend(Backend):
    """A backend whose instances are processes of the host's kernel, made by a zygote."""

    interactive = True
    concurrent_starts: ClassVar[int] = 4
    style: ClassVar[str]
    """Which of ``order.STYLES`` its zygote makes."""
    namespaces: ClassVar[tuple[str, ...]]
    """The namespaces it makes, by their names in ``/proc/self/ns``."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._prepared: _Prepared | None = None
        self._zygotes = Zygotes(self._start_zygote)
        self._stack = contextlib.ExitStack()
        self._network: BridgeNetwork | None = None
        self._privileges = AS_ROOT

    def _find_privileges(self) -> Privileges:
        """How this user makes instances. Raises TareError."""
        return AS_ROOT

    @abstractmethod
    def _describe(self) -> BackendDescription:
        """The label, facts and confounds that are this backend's own."""

    @abstractmethod
    def _make_setup(self, folder: Path, image: Image, envelope: Envelope, missing: tuple[str, ...]) -> Setup:
        """What all its instances have in common, below ``folder``; ``missing`` are mount points the image lacks."""

    @property
    def _shared_address(self) -> str | None:
        """The address of instances that have none of their own, if they can be reached."""
        return None

    def _zygote_place(self) -> AbstractContextManager[None]:
        """Where the zygote is started, and with it whatever it inherits from the calling thread."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _start_network(self) -> "Iterator[BridgeNetwork | None]":
        """What every new instance is connected to, if to anything."""
        yield None

    def probe(self) -> Availability:
        """Root, overlay, the namespaces, a cgroup hierarchy, and the zygote's program."""
        found = probe_host(self.namespaces)
        if not found.available:
            return found
        return probe_storage(self.context.work_directory) or probe_program(self.context.cache_directory) or found

    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        """Starts the zygote, and one instance to prove that starting works."""
        self.probe().require(self.name)
        self.close()
        raise_descriptor_limit()
        self._privileges = self._find_privileges()
        folder = self.context.work_directory / f"{self.name}-{secrets.token_hex(4)}"
        self._stack.enter_context(self._start_folder(folder))
        try:
            layout, program = find_layout(), find_program(self.context.cache_directory, folder)
            setup = self._make_setup(folder, image, envelope, find_missing(image.rootfs))
            self._prepared = _Prepared(folder, setup, program, layout, find_block_device(folder), image.rootfs_bytes)
            make_shared_folders(folder, setup)
            self._network = self._stack.enter_context(self._start_network())
            self._prove(image, envelope)
            limits = limits_of(envelope, self._prepared.io_device)
            unenforced = try_limits(self.context.ledger, limits, layout)
            unaccounted = self._unaccounted(self._prepared)
        except BaseException:
            self.close()
            raise
        own = self._describe()
        controllers = ",".join(sorted(layout.granted()))
        told = named_facts(
            {"init": f"c ({program.library})", "cgroups": layout.version.value, "controllers": controllers}
        )
        unprivileged = confounds_of(self._privileges, image.rootfs, self.name)
        unlimited = limit_confounds(self.name, limits, unenforced, layout.version)
        outer = outer_confounds(self.name, envelope.memory_bytes, layout)
        confounds = (*own.confounds, *unprivileged, *unaccounted, *unlimited, *outer)
        return msgspec.structs.replace(own, facts={**told, **own.facts}, confounds=confounds)

    def _prove(self, image: Image, envelope: Envelope) -> None:
        """Start one instance. A zygote that is killed meanwhile is replaced. Raises BackendError."""
        for left in reversed(range(_PROOFS)):
            try:
                with self.start(InstanceSpec(f"proof-{secrets.token_hex(4)}", image, envelope)):
                    return
            except ZygoteGoneError:
                if not left:
                    raise

    def explain(self, spec: InstanceSpec) -> list[str]:
        self._privileges = self._find_privileges()
        folder = self.context.work_directory / self.name
        setup = self._make_setup(folder, spec.image, spec.envelope, ())
        storage = next(path for path in folder.parents if path.exists())  # nothing of ours is made here
        limits = limits_of(spec.envelope, find_block_device(storage))
        return explain_start(setup, spec, folder / spec.identifier, find_layout(), limits)

    def _unaccounted(self, prepared: _Prepared) -> tuple[Confound, ...]:
        # Asked after the proof instance, which has made the kernel hand on what it will.
        confounds = prepared.layout.confounds(self.name, prepared.layout.granted(), waits_for_all=True)
        if prepared.io_device is None and prepared.layout.version is not Version.V2:
            text = f"{prepared.folder} lies on no block device, so I/O bytes are not accounted"
            confounds = (*confounds, Confound(ConfoundCode.IO_UNACCOUNTED, text, self.name))
        return confounds

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        """Raises BackendError with the failing step, its errno and path."""
        timeline = StartTimeline()
        timeline.mark(Phase.REQUESTED, time.monotonic())
        prepared = self._prepared
        if prepared is None:
            raise BackendError(f"{self.name}: start before prepare")
        require_descriptors()
        folder = prepared.folder / spec.identifier
        try:
            limits = limits_of(spec.envelope, prepared.io_device)
            with (
                begin_cgroup(self.context.ledger, spec.identifier, prepared.layout) as cgroup,
                contextlib.ExitStack() as port,
            ):
                network, mapped = self._network, prepared.setup
                identify = partial(write_maps, mapped.uid_map, mapped.gid_map) if mapped.uid_map else None
                connect = None if network is None else lambda pid: port.enter_context(network.start_port(pid))
                with self._zygotes.borrow() as zygote:
                    own = describe_instance(prepared.setup, spec, folder, cgroup)
                    channel = zygote.request(own, cgroup.clone_into)
                    try:
                        # The kernel takes a millisecond to clone the process; the rest is made meanwhile.
                        complete_cgroup(cgroup, limits)
                        make_folders(folder, prepared.setup)
                    except BaseException:
                        zygote.abandon(channel)
                        raise
                    launched = zygote.launch(channel, connect, identify)
                cgroup.adopt(launched.pid)
                cgroup.meter.waits_for_all = True  # the first process is the parent of orphans
                timeline.mark(Phase.CREATED, launched.created_s)
                timeline.mark(Phase.FIRST_INSTRUCTION, launched.first_instruction_s)
                timeline.mark(Phase.READY, time.monotonic())
                if launched.connect_s is not None:
                    timeline.splits["network"] = launched.connect_s
                instance = ProcessInstance(
                    *(launched, cgroup, folder, timeline, prepared.shared_bytes, zygote.why_gone),
                    system=prepared.setup.system,
                )
                instance.address = launched.address or self._shared_address
                try:
                    yield instance
                finally:
                    timeline.mark(Phase.STOP_REQUESTED, time.monotonic())
                    instance.close()
            assert cgroup.emptied_s is not None
            timeline.mark(Phase.PROCESS_GONE, cgroup.emptied_s)
        finally:
            _remove_folder(folder)
        timeline.mark(Phase.STOPPED, time.monotonic())

    def expect_starts(self, at_once: int) -> None:
        """Raises BackendError."""
        self._zygotes.have(at_once)

    @contextlib.contextmanager
    def _start_zygote(self) -> Iterator[Zygote]:
        assert self._prepared is not None
        zygote = start_zygote(
            self.context.ledger,
            self._prepared.folder,
            self._prepared.setup,
            self._prepared.program,
            self.context.housekeeping_cpus,
            self._privileges.prefix,
        )
        with contextlib.ExitStack() as stack:
            with self._zygote_place():
                started = stack.enter_context(zygote)
            yield started

    @contextlib.contextmanager
    def _start_folder(self, folder: Path) -> Iterator[None]:
        with self.context.ledger.holding(ResourceKind.DIRECTORY, folder):
            folder.mkdir(parents=True, mode=0o700)
            try:
                yield
            finally:
                _remove_folder(folder)

    def close(self) -> None:
        self._prepared = None
        self._network = None
        self._zygotes.close()
        self._stack.close()


def find_missing(rootfs: Path) -> tuple[str, ...]:
    """The mount points that an image lacks. Raises BackendError for one that is a link, or no folder."""
    for path in (rootfs / name for name in MOUNT_POINTS):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            what = f"a symbolic link to {path.readlink()}" if path.is_symlink() else "no folder"
            raise BackendError(
                f"the image's /{path.name} is {what}, so nothing can be mounted there",
                remedy=f"make /{path.name} an empty folder in the image, or leave it out",
            )
    return tuple(name for name in MOUNT_POINTS if not (rootfs / name).exists())


def _remove_folder(folder: Path) -> None:
    try:
        remove_tree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BackendError(f"could not remove an instance's files: {error.strerror}: {error.filename}") from error


def probe_host(namespaces: tuple[str, ...], root: Path = Path("/"), *, without_root: bool = False) -> Availability:
    """Whether this host can make such instances; reads ``proc`` and ``sys`` below ``root``.

    ``without_root``: an ordinary user can make them too, in a user namespace.
    """
    try:
        privileged = is_privileged(root)
    except (OSError, IndexError, ValueError):
        return Availability.no("no /proc is mounted", "mount -t proc proc /proc")
    if not privileged and not without_root:
        return Availability.no(
            "it needs root (CAP_SYS_ADMIN), for mounts and cgroups of the host's own",
            "run tare as root, for example with sudo",
        )
    if not privileged and (forbidden := probe_switches(root)) is not None:
        return forbidden
    if "\toverlay" not in (root / "proc/filesystems").read_text():
        return Availability.no("this kernel has no overlay file system", "modprobe overlay")
    for name in (*namespaces, *(() if privileged else ("user",))):
        if not (root / "proc/self/ns" / name).is_symlink():
            return Availability.no(f"this kernel has no {name} namespaces")
    return _probe_cgroups(find_layout(root), privileged=privileged)


_NO_UPPER_LAYER = frozenset({"overlay", "aufs", "ecryptfs", "nfs", "nfs4", "cifs", "smb3", "9p", "vfat", "exfat"})
"""File systems on which the kernel takes no writable layer of an overlay."""


def probe_storage(work: Path, roots: HostRoots = HERE) -> Availability | None:
    """Why no instance's writable layer can lie in ``work``, as in a Docker container without a volume, or None."""
    mount = find_mount(work.resolve(), read_mounts(roots))
    if mount is None or mount.kind not in _NO_UPPER_LAYER:
        return None
    return Availability.no(
        f"{mount.point} is {mount.kind}, which cannot hold the writable layer of an instance's root",
        f"set {WORK_VARIABLE}, or the suite's storage, to a folder on a disk (in a container: a volume) or on a tmpfs "
        "(then I/O figures are memory figures)",
    )


def _probe_cgroups(layout: Layout, *, privileged: bool) -> Availability:
    if layout.version is Version.NONE and privileged:
        return Availability.no(
            "no cgroup hierarchy is mounted, so nothing can be limited or accounted",
            "mount -t cgroup2 none /sys/fs/cgroup",
        )
    missing = layout.missing()
    without = f", without {', '.join(missing)}" if missing else ""
    if privileged:
        return Availability(available=True, reason=f"overlay and cgroups {layout.version.value}{without}")
    cgroups = "no cgroups" if layout.version is Version.NONE else f"cgroups {layout.version.value}"
    remedy = f"a delegated cgroup gives limits and accounting; {CGROUP_REMEDY}" if missing else None
    return Availability(
        available=True, reason=f"without root: overlay in a user namespace, {cgroups}{without}", remedy=remedy
    )
