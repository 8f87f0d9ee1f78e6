"""What every engine's backend shares; an engine is one class that says how its commands are called.

tare mounts an overlay of the image (an engine never gets the tree itself), makes the instance's cgroups, starts the
engine's command in them, and hears from a small program of its own, the container's first process, when it runs. That
program executes the workload's commands, as in tare's own containers, so that what is compared is isolation and not
ways of calling ``exec``. The engine's own exec, its return and its events are other definitions of "started", which are
kept next to that (``StartedBy``). ``docs/adding-an-engine.md`` shows how to add one.
"""

import contextlib
import os
import secrets
import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import msgspec

from tare.backends.cgroups.layout import Layout, Version, find_layout
from tare.backends.cgroups.lifecycle import try_limits
from tare.backends.cgroups.limits import limits_of
from tare.backends.engines.box import (
    Box,
    EngineInstance,
    EngineOptions,
    Network,
    make_folders,
    overlay_step,
    remove_folder,
    start_folder,
)
from tare.backends.engines.commands import EngineCommand, start_command
from tare.backends.engines.daemon import Daemon
from tare.backends.engines.description import describe
from tare.backends.engines.exec_instance import ExecInstance
from tare.backends.engines.groups import CONTAINER, Groups, start_groups
from tare.backends.engines.start import (
    LIVE,
    START_DEADLINE_S,
    Begun,
    Report,
    SocketReport,
    Start,
    Started,
    StreamReport,
)
from tare.backends.layers import make_layers
from tare.backends.native import steps
from tare.backends.native.descriptors import raise_descriptor_limit, require_descriptors
from tare.backends.native.runtime import probe_host
from tare.backends.native.zygote import Launched, find_program, probe_program
from tare.bench.engine import EngineShare
from tare.bench.errors import BackendError, TareError, UnsupportedError
from tare.bench.interfaces import Backend, BackendContext, Instance
from tare.bench.ledger import MARKER_VARIABLE
from tare.bench.linux.mounts import find_block_device
from tare.bench.linux.waiting import is_readable
from tare.bench.model import (
    Availability,
    BackendDescription,
    Confound,
    Envelope,
    Image,
    InstanceSpec,
    IsolationKind,
    Phase,
    StartTimeline,
    Usage,
)
from tare.bench.network_path import LOOPBACK, OtherSide, ServerPlace
from tare.bench.packages import remedy_for
from tare.bench.process import find_tool, run

STOP_DEADLINE_S = 30.0
_ENDING_S = 1.0
EXEC_DEADLINE_S = 30.0
_VERSION_DEADLINE_S = 20.0


class _Prepared(msgspec.Struct, frozen=True):
    """What ``prepare`` found and made: the run's folder with the program in it, and what this host enforces."""

    folder: Path
    program: Path
    layout: Layout
    io_device: str | None
    unenforced: Mapping[str, str]
    shared_bytes: int


class Engine(Backend):
    """A backend that drives an engine on this host.

    What a class of an engine says of it: ``program`` is its command and ``package`` what brings it. ``engine_limits``
    are the fields of the envelope that it sets itself; tare writes the others into the container's cgroup. ``returns``:
    its start command returns once the container runs; otherwise it lives as long as the container. ``places``: it puts
    the container into a cgroup of its own; otherwise the command runs in the container's. ``groups_at_top``: it takes
    one path of a cgroup for all hierarchies. ``premade``: it takes a group that is there already; otherwise it makes
    the container's, and sets every limit. ``overlay``: it is given an overlay of tare's as the root; otherwise it has
    the image in its own store. ``waits_for_all``: what its container's processes write is known from those that live.
    ``networks`` are those that it can give a container.
    """

    Options = EngineOptions
    interactive = True
    optional = True
    concurrent_starts: ClassVar[int] = 16
    program: ClassVar[str]
    package: ClassVar[str]
    kind: ClassVar[IsolationKind] = IsolationKind.CONTAINER
    engine_limits: ClassVar[Collection[str]] = ()
    returns: bool = True
    places: ClassVar[bool] = True
    groups_at_top: ClassVar[bool] = False
    premade: ClassVar[bool] = True
    overlay: ClassVar[bool] = True
    waits_for_all: ClassVar[bool] = False
    networks: ClassVar[Collection[Network]] = (Network.NONE, Network.HOST)
    start_deadline_s: ClassVar[float] = START_DEADLINE_S

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._prepared: _Prepared | None = None
        self.stack = contextlib.ExitStack()
        self.daemon: Daemon | None = None

    @abstractmethod
    def begin(self, box: Box, stack: contextlib.ExitStack) -> Begun:
        """Ask the engine for a container whose command is ``LIVE``, and return at once."""

    def exec_command(self, box: Box, argv: Sequence[str]) -> Sequence[str] | None:
        """The command that executes ``argv`` in a container; None if the engine has none."""
        del box, argv
        return None

    def remove_command(self, box: Box) -> Sequence[str] | None:
        """The command that ends and removes a container; None if ending its processes is all."""
        del box
        return None

    def prepare_engine(self, image: Image, envelope: Envelope) -> None:
        """What the engine needs once per run: a daemon, the image in its store. ``self.stack`` undoes it."""

    def is_installed(self) -> bool:
        """Whether its program is on this host."""
        return find_tool(self.program) is not None

    def probe_engine(self) -> Availability:
        """Whether the engine can work here, beyond its program being here."""
        return Availability(available=True, reason=f"{self.program} is here")

    def isolation(self) -> IsolationKind:
        """What kind its instances are of."""
        return self.kind

    def tells_by_stream(self) -> bool:
        """Whether nothing inside reaches the host: ``HOLD`` reports by its output, and commands go through exec."""
        return False

    def hides_empty_unified(self) -> bool:
        """Whether it works next to no empty v2 tree (hybrid)."""
        return False

    def environment(self) -> Mapping[str, str]:
        """Variables for the engine's commands."""
        return {}

    def container_group(self, box_identifier: str) -> str:
        """The name of the container's cgroup below that of the instance, as ``fnmatch`` takes it."""
        del box_identifier
        return CONTAINER

    def mounts(self, box: Box) -> Sequence[steps.Step]:
        """What the engine's commands find mounted, beyond the overlay at ``box.root``."""
        del box
        return ()

    def address_of(self, box: Box) -> str | None:
        """Where the other side reaches a running container; None where no way leads to it. Raises BackendError."""
        del box
        return LOOPBACK if self.options.network is Network.HOST else None

    def other_side(self) -> OtherSide | None:
        """The other end of its containers' network; None for the host's own."""
        return None

    def require_daemon(self) -> None:
        """See that ``daemon`` lives, or start it again: called before a start is timed. Raises BackendError."""
        if self.daemon is not None:
            self.daemon.require_alive()

    def own_folders(self, box: Box) -> Sequence[Path]:
        """The folders that hold what an instance has on the disk for itself."""
        return (box.folder,)

    def find_helper(self, pid: int) -> int | None:
        """What a daemon has started next to a container's first process: its parent, a shim, in the daemon's cgroup."""
        return None if self.daemon is None else self.daemon.find_helper(pid)

    def find_running_s(self, box: Box) -> float | None:
        """When a container runs by the engine's own state or event, in seconds since 1970; None if it does not say.

        Asked for after the start, so that nobody listens meanwhile. Raises BackendError.
        """
        del box
        return None

    def facts(self) -> dict[str, str]:
        """Facts of the engine's own, by name."""
        return {}

    def confounds(self) -> Sequence[Confound]:
        """What of the profile or the envelope this engine does not have."""
        return ()

    @property
    def options(self) -> EngineOptions:
        """What the suite chose."""
        assert isinstance(self.context.options, EngineOptions)
        return self.context.options

    @property
    def folder(self) -> Path:
        """The run's folder, for state of the engine. Raises BackendError before ``prepare``."""
        return self._ready.folder

    @property
    def _ready(self) -> _Prepared:
        if self._prepared is None:
            raise BackendError(f"{self.name}: start before prepare")
        return self._prepared

    @classmethod
    def check_server(cls, options: EngineOptions, place: ServerPlace) -> None:
        if options.network is Network.NONE and place is not ServerPlace.SAME_INSTANCE:
            raise ValueError(f'network: "{Network.NONE}" reaches nothing outside; "{Network.HOST}" does')

    @classmethod
    def check(cls, options: EngineOptions, envelope: Envelope) -> None:
        del envelope
        if options.network not in cls.networks:
            raise ValueError(f'network: {cls.name} has no "{options.network}": {", ".join(cls.networks)}')
        if options.layers > 1 and not cls.overlay:
            raise ValueError(f"layers: {cls.name} has the image in a store of its own, not in an overlay of tare's")

    def probe(self) -> Availability:
        """Root, the kernel's parts, the program, and what the engine itself needs."""
        found = probe_host(("mnt", "pid", "net", "uts", "ipc"))
        if found.available:
            found = probe_program(self.context.cache_directory) or found
        if not found.available:
            return found
        if not self.is_installed():
            return Availability.no(f"{self.program} is not installed", remedy_for([self.package]))
        try:
            return self.probe_engine()
        except (TareError, OSError) as error:
            return Availability.no(f"{self.program} does not work here: {error}")

    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        """Makes the run's folder, has the engine prepare itself, and proves it by one instance."""
        self.probe().require(self.name)
        self.close()
        raise_descriptor_limit()
        layout = find_layout()
        folder = self.context.work_directory / f"{self.name}-{secrets.token_hex(4)}"
        try:
            self.stack.enter_context(start_folder(self.context.ledger, folder))
            program = find_program(self.context.cache_directory, folder)
            make_layers(folder, self.options.layers)
            path = folder / "program"
            path.write_bytes(program.content)
            path.chmod(0o555)
            io_device = find_block_device(folder)
            limits = limits_of(envelope, io_device)
            unenforced = try_limits(self.context.ledger, limits, layout)
            shared = image.rootfs_bytes
            self._prepared = _Prepared(folder, path, layout, io_device, unenforced, shared)
            self.prepare_engine(image, envelope)
            with self.start(InstanceSpec(f"tare-proof-{secrets.token_hex(4)}", image, envelope)):
                pass
        except BaseException:
            self.close()
            raise
        return describe(self, limits, layout, unenforced, program.library)

    def version(self) -> str:
        """The first line of what the program says of its version; empty if it says nothing."""
        try:
            return run([self.program, "--version"], timeout_s=_VERSION_DEADLINE_S).strip().splitlines()[0]
        except (TareError, IndexError):
            return ""

    def explain(self, spec: InstanceSpec) -> list[str]:
        del spec
        root = [f"mount an overlay of the image in a mount namespace of the command's ({self.name} sees no other)"]
        return [
            "make the instance's cgroups: one for the engine's processes, below it the container's",
            *(root if self.overlay else []),
            f"start {self.program} in them, pinned to the envelope's CPUs",
            f"wait until {LIVE[0]} reports from inside, and until {self.program} has returned",
        ]

    @contextlib.contextmanager
    def start(self, spec: InstanceSpec) -> Iterator[Instance]:
        """Raises BackendError with what the engine printed."""
        self.require_daemon()
        daemon_s = None if self.daemon is None else self.daemon.cpu_s()
        timeline = StartTimeline()
        timeline.mark(Phase.REQUESTED, time.monotonic())
        prepared = self._ready
        require_descriptors()
        folder = prepared.folder / spec.identifier
        asked = limits_of(spec.envelope, prepared.io_device)
        limits = {name: value for name, value in asked.items() if name not in prepared.unenforced}
        groups = Groups(
            prepared.layout,
            spec.identifier,
            at_top=self.groups_at_top,
            container=self.container_group(spec.identifier),
        )
        box = Box(spec, folder, groups, limits, daemon_s=daemon_s, layers=self.options.layers)
        daemon_folders = () if self.daemon is None else self.daemon.cgroup.folders
        try:
            with start_groups(self.context.ledger, groups, daemon_folders), contextlib.ExitStack() as stack:
                groups.make(asked, self.engine_limits, premade=self.premade)
                make_folders(box, prepared.program)
                started = self._await(box, timeline, stack)
                instance = self.make_instance(box, started, timeline)
                if isinstance(instance, ExecInstance):
                    stack.callback(instance.close)
                instance.address = self.address_of(box)
                try:
                    yield instance
                finally:
                    timeline.mark(Phase.STOP_REQUESTED, time.monotonic())
                    self._stop(box, started, timeline)
        finally:
            remove_folder(folder)
        timeline.mark(Phase.STOPPED, time.monotonic())

    def _await(self, box: Box, timeline: StartTimeline, stack: contextlib.ExitStack) -> Started:
        """Have the engine begin, and wait until its container is ready and it has returned."""
        with contextlib.ExitStack() as starting:
            report, box = self.make_report(box, starting, stack)
            watch = starting.enter_context(contextlib.closing(box.groups.watch(premade=self.premade)))
            start = Start(self.name, report, watch, timeline, time.monotonic() + self.start_deadline_s)
            begun = self.begin(box, stack)
            report.begun(begun)
            started = start.run(begun, returns=self.returns)
        try:
            box.groups.container.adopt(started.pid)
            box.groups.container.meter.waits_for_all = self.waits_for_all
            self._take_in_helper(box, started.pid)
        except BaseException:
            started.close()
            raise
        return started

    def make_report(self, box: Box, starting: contextlib.ExitStack, living: contextlib.ExitStack) -> tuple[Report, Box]:
        """How the first process reports, and the box with the streams that it takes for that.

        ``starting`` lives until it has reported, ``living`` as long as the instance.
        """
        if not self.tells_by_stream():
            return SocketReport(starting, box.given), box
        report = StreamReport(starting, living, box.groups.container.find_members)
        return report, msgspec.structs.replace(box, streams=report.streams)

    def _take_in_helper(self, box: Box, pid: int) -> None:
        """Have in the instance's groups what a daemon has started for it."""
        helper = self.find_helper(pid)
        found = [] if helper is None else [helper]
        # A runtime that leaves the empty v2 tree alone leaves the container's processes there where the daemon is.
        found += box.groups.find_outside()
        brought_s = sum(box.groups.take_in(one) for one in found)
        if self.daemon is not None:
            self.daemon.hand_over(brought_s)

    def make_instance(self, box: Box, started: Started, timeline: StartTimeline) -> Instance:
        """The instance whose first process has reported."""
        assert started.channel is not None
        launched = Launched(started.channel, started.pid, started.first_s, started.first_s)
        return EngineInstance(self, box, launched, timeline)

    @property
    def launcher(self) -> Path:
        """Tare's program, which starts an engine's commands. Raises BackendError before ``prepare``."""
        return self._ready.program

    @property
    def layout(self) -> Layout:
        """The hierarchies of cgroups here. Raises BackendError before ``prepare``."""
        return self._ready.layout

    @property
    def shared_bytes(self) -> int:
        """What all instances share on the disk."""
        return self._ready.shared_bytes

    def _stop(self, box: Box, launched: Started, timeline: StartTimeline) -> None:
        """End it by the engine's own means; what that leaves is killed with the groups."""
        gone = None
        with contextlib.suppress(ProcessLookupError):
            gone = os.pidfd_open(launched.pid)
        try:
            try:
                self.remove(box)
            except BackendError:
                # An engine may refuse to remove what has ended by itself, or was killed; nothing of it is left then.
                if gone is not None and not is_readable(gone, _ENDING_S):
                    raise
            launched.close()
            if gone is not None:
                box.groups.container.kill()
                is_readable(gone, STOP_DEADLINE_S)
            timeline.mark(Phase.PROCESS_GONE, time.monotonic())
        finally:
            launched.close()
            if gone is not None:
                os.close(gone)

    def remove(self, box: Box) -> None:
        """Have the engine end and remove the container. Raises BackendError if it does not."""
        argv = self.remove_command(box)
        if argv is not None:
            with self.spawn(box, argv) as command:
                command.finish(time.monotonic() + STOP_DEADLINE_S)

    def usage_of(self, box: Box) -> Usage:
        """CPU time and memory with the engine's processes for this instance; the rest is the container's."""
        return box.groups.usage()

    def share_of(self, box: Box) -> EngineShare:
        """What the engine costs next to a container."""
        of_daemon = () if self.daemon is None else self.daemon.share(box.daemon_s)
        return EngineShare(*box.groups.share(), *of_daemon)

    def time_exec(self, box: Box) -> float | None:
        """Seconds of one ``/bin/true`` by the engine's own exec; None if it has none. Raises BackendError."""
        asked_s = time.monotonic()
        argv = self.exec_command(box, ("/bin/true",))
        if argv is None:
            return None
        with self.spawn(box, argv) as command:
            command.finish(asked_s + EXEC_DEADLINE_S)
            return time.monotonic() - asked_s

    def spawn(
        self,
        box: Box,
        argv: Sequence[str],
        files: Sequence[bytes] = (),
        streams: Sequence[int] | None = None,
        more: Sequence[steps.Step] = (),
    ) -> AbstractContextManager[EngineCommand]:
        """A command of the engine's in the groups of ``box``. Raises BackendError, MissingToolError.

        ``files`` are contents that it finds open as descriptors 3, 4, ..., ``streams`` its standard streams, of which
        those that are left out are empty and ``box.log``. ``more`` steps are carried out where it finds its mounts.
        """
        environment = {MARKER_VARIABLE: box.identifier, **self.environment()}
        joins = box.groups.engine_files if self.places else box.groups.container.join_files
        taken = [*self.mounts_for(box), *more]
        layout = self._ready.layout
        if self.hides_empty_unified() and layout.version is Version.HYBRID and layout.unified_root is not None:
            taken.append(steps.unmount(str(layout.unified_root)))
        taken.append(steps.pin(box.spec.envelope.cpus))
        if box.groups.is_killed:
            taken[:0], joins = [steps.join_cgroup(str(file)) for file in joins], ()
        return start_command(
            *(self._ready.program, argv, joins, taken, box.log, environment, files, streams or ()), said=box.said
        )

    def mounts_for(self, box: Box) -> list[steps.Step]:
        """How a command comes to the mounts that it sees: a namespace of its own, with the root in it."""
        root = [overlay_step(box)] if self.overlay else []
        return [steps.LEAVE_MOUNTS, *root, *self.mounts(box)]

    def host_side(self, spec: InstanceSpec) -> AbstractContextManager[Instance]:
        """Bare metal next to the containers, where they share its network."""
        if self.options.network is Network.NONE:
            raise UnsupportedError(
                "a container with the network none reaches nothing outside",
                remedy=f'options = {{ network = "host" }} for the backend "{self.name}"',
            )
        from tare.backends.bare_metal import start_host_side

        starting = start_host_side(self.context, self.other_side(), spec.image, spec.envelope)
        side = self.stack.enter_context(starting)
        return side.host_side(spec)

    def close(self) -> None:
        self._prepared = None
        self.stack.close()
