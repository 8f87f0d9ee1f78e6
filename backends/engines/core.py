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
import select
import socket
import struct
import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol

import msgspec

from tare.backends.cgroups.layout import Layout, Version, find_layout
from tare.backends.cgroups.lifecycle import try_limits
from tare.backends.cgroups.limits import Limits, limit_confounds, limits_of, outer_confounds
from tare.backends.engines.commands import EngineCommand, start_command
from tare.backends.engines.groups import CONTAINER, Groups, JoinWatch, start_groups
from tare.backends.native import steps
from tare.backends.native.channel import Channel
from tare.backends.native.descriptors import raise_descriptor_limit, require_descriptors
from tare.backends.native.instance import ProcessInstance
from tare.backends.native.runtime import probe_host
from tare.backends.native.zygote import Launched, find_program, probe_program
from tare.bench.catalogue import ConfoundCode
from tare.bench.errors import BackendError, TareError, UnsupportedError
from tare.bench.interfaces import Backend, BackendContext, Instance
from tare.bench.ledger import MARKER_VARIABLE, ResourceKind
from tare.bench.linux.mounts import find_block_device
from tare.bench.model import (
    SCRATCH,
    Availability,
    BackendDescription,
    Confound,
    EngineShare,
    Envelope,
    Image,
    InstanceSpec,
    IsolationKind,
    Phase,
    StartedBy,
    StartTimeline,
    Usage,
    named_facts,
)
from tare.bench.network_path import LOOPBACK, ServerPlace, describe_paths
from tare.bench.packages import remedy_for
from tare.bench.process import find_tool, run
from tare.bench.trees import remove_tree

INSIDE = "/.tare"
"""Where tare's own folder appears in a container, read-only: its program, and the socket by which that reports."""
LIVE = (f"{INSIDE}/program", "live", f"{INSIDE}/socket")
"""The command of a container: its first process."""
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
EXEC_DEADLINE_S = 30.0
_READY = struct.Struct("=qq")
_CREDENTIALS = struct.Struct("=3i")
_MODE = 0o755
_MOUNT_POINTS = ("proc", "sys", "dev")
_VERSION_DEADLINE_S = 20.0


class Network(StrEnum):
    """``none``: lo only. ``host``: the host's own."""

    NONE = "none"
    HOST = "host"


class Seccomp(StrEnum):
    """The system-call filter of tare's own containers, or none."""

    DEFAULT = "default"
    NONE = "none"


class EngineOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[backend.options]`` of an engine."""

    network: Network = Network.NONE
    seccomp: Seccomp = Seccomp.DEFAULT


class Box(msgspec.Struct, frozen=True):
    """One instance as its engine is told of it.

    ``folder`` is its own and removed with it. ``root`` is where the engine's commands see the overlay of the image.
    ``given`` has to appear inside at ``INSIDE``, read-only, and ``scratch`` at ``SCRATCH``. ``limits`` are those of the
    envelope that this host can enforce. ``log`` is what the engine's commands print.
    """

    spec: InstanceSpec
    folder: Path
    groups: Groups
    limits: Limits

    @property
    def identifier(self) -> str:
        """Its name, also to the engine."""
        return self.spec.identifier

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def given(self) -> Path:
        return self.folder / "given"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def log(self) -> Path:
        return self.folder / "engine.log"


class Begun(Protocol):
    """A start that was asked for: ``EngineCommand``, or what an engine with an interface of its own returns."""

    def fileno(self) -> int:
        """A descriptor that is readable once the engine has returned."""

    def finish(self, deadline: float) -> None:
        """Raises BackendError if it failed, or has not returned by ``deadline`` (monotonic)."""

    def printed(self) -> str:
        """What the engine said, as evidence."""


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
    one path of a cgroup for all hierarchies. ``hides_unified``: it works next to no empty v2 tree (hybrid).
    ``overlay``: it is given an overlay of tare's as the root; otherwise it has the image in its own store.
    """

    Options = EngineOptions
    interactive = True
    optional = True
    concurrent_starts: ClassVar[int] = 16
    program: ClassVar[str]
    package: ClassVar[str]
    kind: ClassVar[IsolationKind] = IsolationKind.CONTAINER
    engine_limits: ClassVar[Collection[str]] = ()
    returns: ClassVar[bool] = True
    places: ClassVar[bool] = True
    groups_at_top: ClassVar[bool] = False
    hides_unified: ClassVar[bool] = False
    overlay: ClassVar[bool] = True
    start_deadline_s: ClassVar[float] = START_DEADLINE_S

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._prepared: _Prepared | None = None
        self.stack = contextlib.ExitStack()

    # --- what an engine says ------------------------------------------------------------------------------------------

    @abstractmethod
    def start_command(self, box: Box) -> Sequence[str]:
        """The command that starts a container whose command is ``LIVE``; files that it needs are written here."""

    def start_files(self) -> Sequence[bytes]:
        """What the start command finds open as descriptors 3, 4, ...: contents of memory files."""
        return ()

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

    def probe_engine(self) -> Availability:
        """Whether the engine can work here, beyond its program being here."""
        return Availability(available=True, reason=f"{self.program} is here")

    def container_group(self, box_identifier: str) -> str:
        """The name of the container's cgroup below that of the instance."""
        del box_identifier
        return CONTAINER

    def mounts(self, box: Box) -> Sequence[steps.Step]:
        """What the engine's commands find mounted, beyond the overlay at ``box.root``."""
        del box
        return ()

    def begin(self, box: Box, stack: contextlib.ExitStack) -> Begun:
        """Ask the engine for the container, and return at once. For an engine without a command: override it."""
        return stack.enter_context(self.spawn(box, self.start_command(box), self.start_files()))

    def daemon_share(self) -> tuple[float | None, int | None]:
        """CPU seconds so far and memory (PSS) now of what the engine keeps for all containers."""
        return None, None

    def facts(self) -> dict[str, str]:
        """Facts of the engine's own, by name."""
        return {}

    def confounds(self) -> Sequence[Confound]:
        """What of the profile or the envelope this engine does not have."""
        return ()

    # --- the backend --------------------------------------------------------------------------------------------------

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

    def probe(self) -> Availability:
        """Root, the kernel's parts, the program, and what the engine itself needs."""
        found = probe_host(("mnt", "pid", "net", "uts", "ipc"))
        if found.available:
            found = probe_program(self.context.cache_directory) or found
        if not found.available:
            return found
        if find_tool(self.program) is None:
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
            self.stack.enter_context(self._start_folder(folder))
            program = find_program(self.context.cache_directory, folder)
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
        return self._describe(limits, layout, unenforced, library=program.library)

    def _describe(
        self, limits: Limits, layout: Layout, unenforced: Mapping[str, str], *, library: str
    ) -> BackendDescription:
        asked = [name for name in limits if name != "io_device" and name not in unenforced]
        by_engine = [name for name in asked if name in self.engine_limits]
        by_tare = [name for name in asked if name not in self.engine_limits]
        host_network = self.options.network is Network.HOST
        paths = describe_paths(inside="the container's lo")
        if host_network:
            paths = describe_paths(inside="the host's lo", other="the host's lo", host="the host's lo")
        facts = {
            "engine": self.version(),
            "init": f"tare's ({library})",
            "root": "overlay of tare's" if self.overlay else "the engine's own store",
            "network": "the host's" if host_network else "lo only",
            **paths,
            "cgroups": layout.version.value,
            "controllers": ",".join(sorted(layout.granted())),
            "limits set by the engine": ",".join(by_engine) or "none",
            "limits set by tare": ",".join(by_tare) or "none",
            **self.facts(),
        }
        own_network = "its network namespace holds lo only; bare metal has the host's"
        confounds = [
            *layout.confounds(self.name, layout.granted()),
            *limit_confounds(self.name, limits, unenforced, layout.version),
            *outer_confounds(self.name, limits["memory_bytes"], layout),
            *([] if host_network else [Confound(ConfoundCode.OWN_NETWORK, own_network, self.name)]),
            *self.confounds(),
        ]
        if limits.get("io_device") is None and layout.version is not Version.V2:
            confounds.append(
                Confound(ConfoundCode.IO_UNACCOUNTED, "the work folder lies on no block device", self.name)
            )
        return BackendDescription(self.name, self.kind, "", named_facts(facts), tuple(confounds))

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
        box = Box(spec, folder, groups, limits)
        try:
            with start_groups(self.context.ledger, groups), contextlib.ExitStack() as stack:
                groups.make(asked, self.engine_limits)
                _make_folders(box, prepared.program)
                with contextlib.ExitStack() as starting:
                    launched = _Start(self, box, timeline, starting).run(stack)
                instance = EngineInstance(self, box, launched, timeline, prepared.shared_bytes)
                instance.address = LOOPBACK if self.options.network is Network.HOST else None
                try:
                    yield instance
                finally:
                    timeline.mark(Phase.STOP_REQUESTED, time.monotonic())
                    self._stop(box, launched, timeline)
        finally:
            _remove_folder(folder)
        timeline.mark(Phase.STOPPED, time.monotonic())

    def _stop(self, box: Box, launched: Launched, timeline: StartTimeline) -> None:
        """End it by the engine's own means; what that leaves is killed with the groups."""
        gone = None
        with contextlib.suppress(ProcessLookupError):
            gone = os.pidfd_open(launched.pid)
        try:
            self.remove(box)
            launched.channel.close()
            if gone is not None:
                box.groups.container.kill()
                select.select([gone], [], [], STOP_DEADLINE_S)
            timeline.mark(Phase.PROCESS_GONE, time.monotonic())
        finally:
            launched.channel.close()
            if gone is not None:
                os.close(gone)

    def remove(self, box: Box) -> None:
        """Have the engine end and remove the container. Raises BackendError if it does not."""
        argv = self.remove_command(box)
        if argv is not None:
            with self.spawn(box, argv) as command:
                command.finish(time.monotonic() + STOP_DEADLINE_S)

    def spawn(
        self, box: Box, argv: Sequence[str], files: Sequence[bytes] = ()
    ) -> AbstractContextManager[EngineCommand]:
        """A command of the engine's in the groups of ``box``. Raises BackendError, MissingToolError."""
        environment = {MARKER_VARIABLE: box.identifier}
        return start_command(self._ready.program, argv, self._steps(box), box.log, environment, files)

    def _steps(self, box: Box) -> list[steps.Step]:
        """What is done before an engine's command: its own mounts, the root, the groups, the CPUs."""
        made = [steps.LEAVE_MOUNTS]
        if self.overlay:
            layers = (str(box.spec.image.rootfs), str(box.folder / "upper"), str(box.folder / "work"))
            data = "lowerdir={},upperdir={},workdir={}".format(*map(steps.escape_option, layers))
            made.append(steps.mount("overlay", str(box.root), 0, data))
        made += self.mounts(box)
        files = box.groups.engine_files if self.places else box.groups.container.join_files
        made += [steps.join_cgroup(str(file)) for file in files]
        layout = self._ready.layout
        if self.hides_unified and layout.version is Version.HYBRID and layout.unified_root is not None:
            made.append(steps.unmount(str(layout.unified_root)))
        return [*made, steps.pin(box.spec.envelope.cpus)]

    def host_side(self, spec: InstanceSpec) -> AbstractContextManager[Instance]:
        """Bare metal next to the containers, where they share its network."""
        if self.options.network is Network.NONE:
            raise UnsupportedError(
                "a container with the network none reaches nothing outside",
                remedy=f'options = {{ network = "host" }} for the backend "{self.name}"',
            )
        from tare.backends.bare_metal import start_host_side

        side = self.stack.enter_context(start_host_side(self.context, None, spec.image, spec.envelope))
        return side.host_side(spec)

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
        self.stack.close()


class _Start:
    """One start: what the engine was asked, and what is waited for until the instance is ready."""

    def __init__(self, engine: Engine, box: Box, timeline: StartTimeline, stack: contextlib.ExitStack) -> None:
        self._engine = engine
        self._box = box
        self._timeline = timeline
        self._deadline = time.monotonic() + engine.start_deadline_s
        self._listener = stack.enter_context(_listen(box.given))
        self._watch = stack.enter_context(contextlib.closing(JoinWatch(box.groups.container.folders)))
        self._poll = select.poll()
        self._reported: Launched | None = None

    def run(self, stack: contextlib.ExitStack) -> Launched:
        """The container's first process, once it has reported and the engine has returned. Raises BackendError.

        ``stack`` lives as long as the instance.
        """
        begun = self._engine.begin(self._box, stack)
        waited = {self._listener.fileno(), *([begun.fileno()] if self._engine.returns else [])}
        for descriptor in (begun.fileno(), self._listener.fileno(), self._watch.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        while waited:
            left = max(0.0, self._deadline - time.monotonic())
            ready = {descriptor for descriptor, _ in self._poll.poll(1000 * left)}
            if not ready:
                raise self._late(begun)
            done = {descriptor for descriptor in ready if self._take_note(descriptor, begun)}
            for descriptor in done:
                self._poll.unregister(descriptor)
            waited -= done
        assert self._reported is not None
        return self._reported

    def _take_note(self, descriptor: int, begun: Begun) -> bool:
        """Note what a descriptor tells; whether it has told all. Raises BackendError if the engine failed."""
        now = time.monotonic()
        if descriptor == self._watch.fileno():
            if self._watch.joined():
                self._timeline.marks.setdefault(Phase.CREATED, now)
            return Phase.CREATED in self._timeline.marks
        if descriptor == self._listener.fileno():
            self._reported = self._hear(begun)
            return True
        begun.finish(self._deadline)
        self._timeline.started[StartedBy.RETURNED] = now
        if not self._engine.returns:
            raise BackendError(f"{self._engine.name} ended before its container was ready", evidence=begun.printed())
        return True

    def _hear(self, begun: Begun) -> Launched:
        """What the first process says; the marks of the start. Raises BackendError."""
        connection, _ = self._listener.accept()
        channel = Channel(connection)
        try:
            fields, _ = channel.receive(self._deadline)
            ready_s = time.monotonic()
            first_s = _READY.unpack(fields[1])[1] / 1e9
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid = _CREDENTIALS.unpack(peer)[0]
            self._box.groups.container.adopt(pid)
        except BaseException as error:
            channel.close()
            if isinstance(error, (EOFError, TimeoutError, struct.error, IndexError)):
                ended = f"the container of {self._engine.name} ended before it was ready"
                raise BackendError(ended, evidence=begun.printed()) from error
            raise
        if self._watch.joined():
            self._timeline.marks.setdefault(Phase.CREATED, first_s)
        created_s = min(self._timeline.marks.pop(Phase.CREATED, first_s), first_s)
        self._timeline.mark(Phase.CREATED, created_s)
        self._timeline.mark(Phase.FIRST_INSTRUCTION, first_s)
        self._timeline.mark(Phase.READY, ready_s)
        self._timeline.started[StartedBy.INSTRUCTION] = first_s
        return Launched(channel, pid, created_s, first_s)

    def _late(self, begun: Begun) -> BackendError:
        reported = self._reported is not None
        what = "has not returned" if reported else "has started nothing that reports"
        return BackendError(
            f"{self._engine.program} {what} within {self._engine.start_deadline_s:g} s, and was killed",
            remedy="see what it printed; `tare doctor` shows whether it works here at all",
            evidence=begun.printed(),
        )


class EngineInstance(ProcessInstance):
    """A container of an engine, whose commands are run by tare's program inside."""

    def __init__(
        self, engine: Engine, box: Box, launched: Launched, timeline: StartTimeline, shared_bytes: int
    ) -> None:
        super().__init__(launched, box.groups.container, box.folder, timeline, shared_bytes, lambda: "")
        self._engine = engine
        self._box = box

    def usage(self) -> Usage:
        """CPU time and memory with the engine's processes for this instance; the rest is the container's."""
        own = self.cgroup.meter.usage()
        if not self._engine.places:
            return own
        whole = self._box.groups.meter.usage()
        return msgspec.structs.replace(
            own,
            cpu_user_s=whole.cpu_user_s,
            cpu_system_s=whole.cpu_system_s,
            memory_current_bytes=whole.memory_current_bytes,
        )

    def engine_share(self) -> EngineShare:
        return EngineShare(*self._box.groups.share(), *self._engine.daemon_share())

    def answer_exec(self) -> float | None:
        """Execute a program by the engine's own means, and return when it had answered; None if it has none.

        On the host's monotonic clock. Raises BackendError.
        """
        argv = self._engine.exec_command(self._box, ("/bin/true",))
        if argv is None:
            return None
        with self._engine.spawn(self._box, argv) as command:
            command.finish(time.monotonic() + EXEC_DEADLINE_S)
            return time.monotonic()

    def end(self) -> None:
        self._box.groups.begin_kill()


def _make_folders(box: Box, program: Path) -> None:
    """One instance's folders, and tare's program in what it is given. Raises BackendError."""
    rootfs = box.spec.image.rootfs
    missing = [name for name in _MOUNT_POINTS if not (rootfs / name).exists()]
    upper = ("/upper", "/work", f"/upper{SCRATCH}", f"/upper{INSIDE}", *(f"/upper/{name}" for name in missing))
    try:
        for name in ("", "/root", "/scratch", "/given", *upper):
            os.mkdir(f"{box.folder}{name}")  # noqa: PTH102 - on the measured start path
            os.chmod(f"{box.folder}{name}", _MODE)  # noqa: PTH101 - whatever the umask
        os.link(program, box.given / "program")
    except OSError as error:
        raise BackendError(
            f"could not make the instance's folders: {error.strerror}: {error.filename}",
            remedy=f"see that {box.folder.parent} is writable and has space left",
        ) from error


@contextlib.contextmanager
def _listen(folder: Path) -> Iterator[socket.socket]:
    """A socket that listens at ``folder``'s ``socket``, however long the path is."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        above = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{above}/socket")
        finally:
            os.close(above)
        listener.listen(1)
        yield listener
    finally:
        listener.close()


def _remove_folder(folder: Path) -> None:
    try:
        remove_tree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BackendError(f"could not remove an instance's files: {error.strerror}: {error.filename}") from error
