"""What bare metal and containers share: probing, the zygote, an instance's folders and cgroup, start and stop."""

import contextlib
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from tare.backends.cgroups.layout import Layout, Version, find_layout
from tare.backends.cgroups.lifecycle import begin_cgroup, complete_cgroup, try_limits
from tare.backends.cgroups.limits import limit_confounds, limits_of
from tare.backends.native.descriptors import raise_descriptor_limit, require_descriptors
from tare.backends.native.explain import explain_start
from tare.backends.native.identities import write_maps
from tare.backends.native.instance import ProcessInstance
from tare.backends.native.launcher import Zygote, start_zygote
from tare.backends.native.places import make_folders, make_plan, make_shared_folders
from tare.backends.native.plan import Settings
from tare.backends.native.resident import Resident, start_resident
from tare.backends.native.rest import Rest
from tare.backends.native.unprivileged import (
    CGROUP_REMEDY,
    PRIVILEGED,
    Way,
    confounds_of,
    is_privileged,
    probe_switches,
)
from tare.backends.native.zygotes import Zygotes
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.interfaces import Backend, BackendContext, Instance
from tare.bench.ledger import ResourceKind
from tare.bench.linux.mounts import find_block_device
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

_MOUNT_POINTS = ("proc", "sys", "dev")


class _Prepared(msgspec.Struct, frozen=True):
    """What ``prepare`` found and made. ``missing`` are mount points that the image lacks.

    ``shared_bytes`` is the image's tree, which all instances have for their lower layer.
    """

    image: Image
    folder: Path
    settings: Settings
    missing: tuple[str, ...]
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
        self._way = PRIVILEGED
        self._resident: tuple[Resident, Rest] | None = None

    def _find_way(self) -> Way:
        """How this user makes instances. Raises TareError."""
        return PRIVILEGED

    @abstractmethod
    def _describe(self, layout: Layout) -> BackendDescription:
        """The label, facts and confounds that are this backend's own."""

    @abstractmethod
    def _settings(self, folder: Path, image: Image, envelope: Envelope, missing: tuple[str, ...]) -> Settings:
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
        """See ``Backend.probe``: root, overlay, the namespaces, and a cgroup hierarchy."""
        return probe_host(self.namespaces)

    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        """See ``Backend.prepare``: starts the zygote, and one instance to prove that starting works."""
        found = self.probe()
        if not found.available:
            raise UnavailableError(f"{self.name}: {found.reason}", remedy=found.remedy)
        self.close()
        raise_descriptor_limit()
        self._way = self._find_way()
        layout, shared_bytes = find_layout(), image.rootfs_bytes
        folder = self.context.work_directory / f"{self.name}-{secrets.token_hex(4)}"
        self._stack.enter_context(self._start_folder(folder))
        missing = tuple(name for name in _MOUNT_POINTS if not (image.rootfs / name).is_dir())
        settings = self._settings(folder, image, envelope, missing)
        self._prepared = _Prepared(image, folder, settings, missing, layout, find_block_device(folder), shared_bytes)
        try:
            make_shared_folders(folder, settings)
            resident = self._stack.enter_context(start_resident(self.context.cache_directory))
            if resident is not None and not settings.system:
                self._resident = resident, self._stack.enter_context(contextlib.closing(Rest()))
            self._network = self._stack.enter_context(self._start_network())
            with self.start(InstanceSpec(f"proof-{secrets.token_hex(4)}", image, envelope)):
                pass
            unaccounted = (*self._unaccounted(self._prepared), *self._unlimited(self._prepared, envelope))
        except BaseException:
            self.close()
            raise
        own = self._describe(layout)
        controllers = ",".join(sorted(layout.granted()))
        init = "python" if self._resident is None else f"python, c ({self._resident[0].library}) when idle"
        told = named_facts({"init": init, "cgroups": layout.version.value, "controllers": controllers})
        unprivileged = confounds_of(self._way, image.rootfs, self.name)
        confounds = (*own.confounds, *unprivileged, *unaccounted)
        return msgspec.structs.replace(own, facts={**told, **own.facts}, confounds=confounds)

    def explain(self, spec: InstanceSpec) -> list[str]:
        """See ``Backend.explain``."""
        self._way = self._find_way()
        folder = self.context.work_directory / self.name
        settings = self._settings(folder, spec.image, spec.envelope, ())
        storage = next(path for path in folder.parents if path.exists())  # nothing of ours is made here
        limits = limits_of(spec.envelope, find_block_device(storage))
        return explain_start(settings, spec, folder / spec.identifier, find_layout(), limits)

    def _unaccounted(self, prepared: _Prepared) -> tuple[Confound, ...]:
        # Asked after the proof instance, which has made the kernel hand on what it will.
        confounds = prepared.layout.confounds(self.name, prepared.layout.granted())
        if prepared.io_device is None and prepared.layout.version is not Version.V2:
            text = f"{prepared.folder} lies on no block device, so I/O bytes are not accounted"
            confounds = (*confounds, Confound("io-unaccounted", text, self.name))
        return confounds

    def _unlimited(self, prepared: _Prepared, envelope: Envelope) -> Iterator[Confound]:
        limits = limits_of(envelope, prepared.io_device)
        unenforced = try_limits(self.context.ledger, limits, prepared.layout)
        yield from limit_confounds(self.name, limits, unenforced, prepared.layout.version)

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        """See ``Backend.start``. Raises BackendError with the failing step, its errno and path."""
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
                network = self._network
                connect = None if network is None else lambda pid: port.enter_context(network.start_port(pid))
                with self._undisturbed(), self._zygotes.borrow() as zygote:
                    channel = zygote.request(make_plan(prepared.settings, spec, folder, cgroup), cgroup.clone_into)
                    try:
                        # The kernel takes a millisecond to clone the process; the rest is made meanwhile.
                        complete_cgroup(cgroup, limits)
                        make_folders(folder, prepared.settings, prepared.missing)
                    except BaseException:
                        zygote.abandon(channel)
                        raise
                    launched = zygote.launch(channel, connect, self._identify(prepared.settings))
                cgroup.adopt(launched.pid)
                timeline.mark(Phase.CREATED, launched.created_s)
                timeline.mark(Phase.FIRST_INSTRUCTION, launched.first_instruction_s)
                timeline.mark(Phase.READY, time.monotonic())
                if launched.connect_s is not None:
                    timeline.splits["network"] = launched.connect_s
                shrink = None if self._resident is None else self._resident[1].now
                instance = ProcessInstance(
                    *(launched, cgroup, folder, timeline, prepared.shared_bytes, zygote.why_gone),
                    shrink=shrink,
                    system=prepared.settings.system,
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
        """See ``Backend.expect_starts``. Raises BackendError."""
        self._zygotes.have(at_once)

    def _undisturbed(self) -> AbstractContextManager[None]:
        """While several instances are started at once, none that is there becomes smaller."""
        return contextlib.nullcontext() if self._resident is None else self._resident[1].starting()

    def _identify(self, settings: Settings) -> Callable[[int], None] | None:
        """What gives a new instance's process its identities, if it has a user namespace."""
        if not settings.uid_map:
            return None

        def identify(pid: int) -> None:
            try:
                write_maps(pid, settings.uid_map, settings.gid_map)
            except OSError as error:
                raise BackendError(
                    f"the user namespace could not be given its identities: {error.strerror}: {error.filename}",
                    remedy='user_namespace = false in the options of "native"',
                ) from error

        return identify

    @contextlib.contextmanager
    def _start_zygote(self) -> Iterator[Zygote]:
        assert self._prepared is not None
        zygote = start_zygote(
            self.context.ledger,
            self._prepared.folder,
            self._prepared.settings,
            self.context.housekeeping_cpus,
            self._way.prefix,
            None if self._resident is None else (self._resident[0].descriptor, self._resident[1].fileno()),
        )
        with contextlib.ExitStack() as stack:
            with self._zygote_place():
                started = stack.enter_context(zygote)
            yield started

    @contextlib.contextmanager
    def _start_folder(self, folder: Path) -> Iterator[None]:
        with self.context.ledger.holding(ResourceKind.DIRECTORY, folder):
            folder.mkdir(parents=True)
            try:
                yield
            finally:
                _remove_folder(folder)

    def close(self) -> None:
        """See ``Backend.close``."""
        self._prepared = None
        self._network = None
        self._resident = None
        self._zygotes.close()
        self._stack.close()


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
        return Availability(available=False, reason="no /proc is mounted", remedy="mount -t proc proc /proc")
    if not privileged and not without_root:
        return Availability(
            available=False,
            reason="it needs root (CAP_SYS_ADMIN), for mounts and cgroups of the host's own",
            remedy="run tare as root, for example with sudo",
        )
    if not privileged and (forbidden := probe_switches(root)) is not None:
        return forbidden
    if "\toverlay" not in (root / "proc/filesystems").read_text():
        return Availability(available=False, reason="this kernel has no overlay file system", remedy="modprobe overlay")
    for name in (*namespaces, *(() if privileged else ("user",))):
        if not (root / "proc/self/ns" / name).is_symlink():
            return Availability(available=False, reason=f"this kernel has no {name} namespaces")
    return _probe_cgroups(find_layout(root), privileged=privileged)


def _probe_cgroups(layout: Layout, *, privileged: bool) -> Availability:
    if layout.version is Version.NONE and privileged:
        return Availability(
            available=False,
            reason="no cgroup hierarchy is mounted, so nothing can be limited or accounted",
            remedy="mount -t cgroup2 none /sys/fs/cgroup",
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
