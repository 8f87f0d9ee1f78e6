"""Docker: containers by the Docker Engine's API, of a private daemon that tare starts, or of the user's own.

The private one (``docker_server.py``) has its images and containers in the run's folder, in namespaces and in a cgroup
of its own; neither it nor a container outlives the run. In the user's own daemon tare touches only what carries its
label. Life cycle by the API; the workload's commands by tare's program inside.
"""

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from tare.backends.cgroups.layout import Version
from tare.backends.engines.box import Box, EngineOptions, Network, Seccomp
from tare.backends.engines.calls import Call
from tare.backends.engines.core import Engine
from tare.backends.engines.daemon import RUN
from tare.backends.engines.docker_api import (
    Api,
    NoAnswerError,
    NotFoundError,
    have_library,
    read_frame,
    why_not_reached,
)
from tare.backends.engines.docker_container import LIMITED, describe_version, make_container
from tare.backends.engines.docker_server import (
    CALL_DEADLINE_S,
    SOCKET,
    DaemonsSide,
    Place,
    PrivateServer,
    Server,
    UsersServer,
    import_tree,
)
from tare.backends.engines.exec_instance import ExecInstance
from tare.backends.engines.gvisor import GVISORS_OWN, Gvisor, Platform, find_confounds, gvisors_network, without_writes
from tare.backends.engines.oci_config import Bind, Plan
from tare.backends.engines.start import HOLD, INSIDE, LIVE, Begun, Started
from tare.backends.native.backend import find_thermal
from tare.backends.native.seccomp import DEFAULT_CAPABILITIES
from tare.backends.native.steps import Step, unmount
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.interfaces import BackendContext, Instance
from tare.bench.ledger import Entry
from tare.bench.linux.processes import find_status
from tare.bench.model import SCRATCH, Availability, Confound, Envelope, Image, IsolationKind, StartTimeline, Usage
from tare.bench.network_path import OtherSide
from tare.bench.packages import remedy_for
from tare.bench.process import find_tool

LABEL = "tarebench"
"""On all that tare makes in a daemon."""
_GIVE_UP_S = 5.0
_PAST_S = 3600.0
_CONTAINER, _IMAGE = "docker container", "docker image"


class Runtime(StrEnum):
    """The OCI runtime below Docker."""

    RUNC = "runc"
    CRUN = "crun"
    RUNSC = "runsc"


class Storage(StrEnum):
    """How the private daemon keeps layers: as an overlay, or as a whole copy for each container."""

    OVERLAY2 = "overlay2"
    VFS = "vfs"


class DockerOptions(EngineOptions, frozen=True, forbid_unknown_fields=True):
    """``[backend.options]`` of ``docker``.

    ``platform`` is that of the private daemon's ``runsc`` (gVisor). ``socket`` is that of a daemon of the user's own on
    this host; empty for a private one, which ``storage`` is for.
    """

    runtime: Runtime = Runtime.RUNC
    storage: Storage = Storage.OVERLAY2
    platform: Platform = Platform.PTRACE
    socket: str = ""


class Docker(Engine):
    """Containers of a Docker daemon."""

    name = "docker"
    summary = "containers by Docker, from a daemon of the run's own"
    program = "dockerd"
    package = "docker.io"
    Options = DockerOptions
    engine_limits: ClassVar[Collection[str]] = LIMITED
    groups_at_top = True
    premade = False
    overlay = False
    networks: ClassVar[Collection[Network]] = tuple(Network)
    _server: Server | None = None
    _image = ""
    _import_s: float | None = None

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        if self._is_gvisor:  # as the backend gvisor
            self.interactive = Gvisor.interactive  # type: ignore[misc]  # what the class says is of its other runtimes
            self.concurrent_starts = Gvisor.concurrent_starts  # type: ignore[misc]

    @property
    def options(self) -> DockerOptions:
        assert isinstance(self.context.options, DockerOptions)
        return self.context.options

    @property
    def _is_gvisor(self) -> bool:
        return self.options.runtime is Runtime.RUNSC

    def isolation(self) -> IsolationKind:
        return IsolationKind.USER_MODE_KERNEL if self._is_gvisor else self.kind

    def tells_by_stream(self) -> bool:
        return self._is_gvisor

    def hides_empty_unified(self) -> bool:
        return self.options.runtime is Runtime.CRUN and self.layout.version is Version.HYBRID

    @classmethod
    def check(cls, options: EngineOptions, envelope: Envelope) -> None:
        super().check(options, envelope)
        assert isinstance(options, DockerOptions)
        if options.network is Network.BRIDGE and options.runtime is Runtime.RUNSC:
            raise ValueError(f'network: the runtime "{Runtime.RUNSC}" has no "{Network.BRIDGE}" here')

    def address_of(self, box: Box) -> str | None:
        if self.options.network is Network.BRIDGE:
            return self.server.api.address(box.identifier)
        return super().address_of(box)

    def other_side(self) -> OtherSide | None:
        """Of its bridge: a private daemon's network namespace."""
        if self.options.network is not Network.BRIDGE:
            return None
        namespace = None if self.daemon is None else Path(f"/proc/{self.daemon.pid}/ns/net")
        return DaemonsSide(self.server.api.bridge_address(), namespace)

    @property
    def server(self) -> Server:
        """The daemon. Raises BackendError before ``prepare``."""
        if self._server is None:
            raise BackendError("docker: start before prepare")
        return self._server

    # --- before a run -------------------------------------------------------------------------------------------------

    def is_installed(self) -> bool:
        """The user's own daemon needs no program here."""
        return bool(self.options.socket) or super().is_installed()

    def probe_engine(self) -> Availability:
        """The library, the runtime, and who answers at the user's socket. ``prepare`` tries a private daemon."""
        if not have_library():
            return Availability.no("the Python library docker is not installed", "pip install 'tarebench[docker]'")
        if self.options.socket:
            return self._probe_socket(Path(self.options.socket))
        runtime = self.options.runtime
        if find_tool(runtime) is None:
            return Availability.no(f"the runtime {runtime} is not installed", remedy_for([runtime]))
        return Availability(available=True, reason="dockerd is here")

    def _probe_socket(self, socket: Path) -> Availability:
        if reason := why_not_reached(socket):
            return Availability.no(
                reason, "start the daemon, or leave out `socket`: tare then starts one of its own for the run"
            )
        with contextlib.closing(Api(str(socket), timeout_s=CALL_DEADLINE_S)) as api:
            info = api.info()
        if info.get("CgroupDriver") != "cgroupfs":
            return Availability.no(
                f"the daemon at {socket} has the cgroup driver {info.get('CgroupDriver')}, and tare needs cgroupfs",
                "leave out `socket`: tare then starts a daemon of its own for the run",
            )
        if self.options.runtime not in info.get("Runtimes", {}):
            return Availability.no(
                f"the daemon at {socket} knows no runtime {self.options.runtime}",
                f"choose one of: {', '.join(sorted(info.get('Runtimes', {})))}",
            )
        return Availability(available=True, reason=f"the daemon at {socket} answers")

    def prepare_engine(self, image: Image, envelope: Envelope) -> None:
        """A daemon with the image in it. Of the user's, an image that tare brings in is removed at the end."""
        self._image = f"{LABEL}:{image.digest[:16]}"
        if self.options.socket:
            self._server = UsersServer(Path(self.options.socket), self.start_deadline_s)
        else:
            self._server = PrivateServer(self._place(envelope), self.start_deadline_s)
        self.stack.callback(self._close_server)
        self.daemon = self._server.daemon
        if self.options.socket:
            if self._server.api.have_image(self._image):  # another run's
                return
            self.stack.enter_context(self._holding(_IMAGE, self._image))
            self.stack.callback(self._server.api.remove_image, self._image)
        self._import_s = import_tree(self._server.api, image.rootfs, self._image, f"{LABEL}={self._image}")

    def _place(self, envelope: Envelope) -> Place:
        return Place(
            ledger=self.context.ledger,
            folder=self.folder,
            launcher=self.launcher,
            layout=self.layout,
            cpus=envelope.cpus,
            storage=self.options.storage,
            hosts_network=self.options.network is Network.HOST,
            bridge=self.options.network is Network.BRIDGE,
            gvisor=(f"--platform={self.options.platform}", f"--network={gvisors_network(self.options.network)}"),
            steps=[unmount(str(self.layout.unified_root))] if self.hides_empty_unified() else [],
        )

    def _close_server(self) -> None:
        server, self._server, self.daemon = self._server, None, None
        if server is not None:
            server.close()

    @contextlib.contextmanager
    def _holding(self, kind: str, name: str) -> Iterator[Entry | None]:
        """What is made in the user's daemon is in the ledger; a private one goes as a whole."""
        if not self.options.socket:
            yield None
            return
        with self.context.ledger.holding(kind, f"{self.options.socket} {name}", backend=self.name) as entry:
            yield entry

    @classmethod
    def reclaim(cls, target: str) -> bool:
        """Remove a container or an image, with tare's label, from a daemon of the user's."""
        socket, _, name = target.rpartition(" ")
        if not have_library():
            raise UnavailableError("the library docker is not installed", remedy="pip install 'tarebench[docker]'")
        with contextlib.closing(Api(socket, timeout_s=CALL_DEADLINE_S)) as api:
            if name.startswith(f"{LABEL}:"):
                return api.remove_image(name)
            try:
                if LABEL not in api.labels(name):
                    return False
                api.remove(name)
            except NotFoundError:
                return False
            return True

    # --- an instance --------------------------------------------------------------------------------------------------

    def container_group(self, box_identifier: str) -> str:
        """Docker names it by the container's id, which it chooses."""
        del box_identifier
        return "*"

    def require_daemon(self) -> None:
        self.server.require()
        self.daemon = self.server.daemon

    def begin(self, box: Box, stack: contextlib.ExitStack) -> Begun:
        return stack.enter_context(self._starting(box))

    @contextlib.contextmanager
    def _starting(self, box: Box) -> Iterator[Call]:
        """Create and start it; whatever way the block is left, there is no such container afterwards."""
        api, config = self.server.starting, self.container(box)

        asked = threading.Event()

        def start() -> None:
            try:
                made = api.create(box.identifier, config)
                if box.streams is not None:
                    self._relay(attached.enter_context(api.attach(made)), report, asked)
                api.start(made)
            finally:
                asked.set()

        with self._holding(_CONTAINER, box.identifier), contextlib.ExitStack() as attached:
            report = os.dup(box.streams[1]) if box.streams is not None else -1
            call = Call("Docker's start", start, lambda: self._printed(box))
            try:
                yield call
            finally:
                try:
                    if call.have_ended(_GIVE_UP_S):
                        self.remove(box)
                    elif not self.server.give_up():
                        raise NoAnswerError("Docker's daemon still starts a container that was given up")
                finally:
                    call.close()

    @staticmethod
    def _relay(stream: socket.socket, report: int, asked: threading.Event) -> None:
        """Pass the first piece of output of an attached container on, in a thread that ends with that or the stream.

        A stream that ends without any is an error only after the start was answered: that answer says why.
        """

        def relay() -> None:
            with contextlib.suppress(OSError), open(report, "wb", buffering=0) as told:
                told.write(read_frame(stream)[:1])
                asked.wait()

        threading.Thread(target=relay, name="docker attach", daemon=True).start()

    def _printed(self, box: Box) -> str:
        with contextlib.suppress(BackendError):
            return self.server.api.logs(box.identifier)
        return ""

    def container(self, box: Box) -> dict[str, object]:
        """What the API is asked for."""
        return make_container(
            self.plan(box),
            labels={LABEL: box.identifier},
            runtime=self.options.runtime,
            network=self.options.network.value,
            device=self._make_device(box),
            counts_by_rules=self.layout.version is not Version.V2,
            attached=self._is_gvisor,
        )

    def plan(self, box: Box) -> Plan:
        """The container of ``box``."""
        return Plan(
            root=self._image,
            argv=HOLD if self._is_gvisor else LIVE,
            hostname=box.identifier[:63],
            cgroup=f"/{box.groups.name}",
            limits={name: value for name, value in box.limits.items() if not (self._is_gvisor and name == "pids_max")},
            binds=(Bind(str(box.given), INSIDE, read_only=True), Bind(str(box.scratch), SCRATCH)),
            capabilities=tuple(dict(DEFAULT_CAPABILITIES).values()),
            seccomp=self.options.seccomp is Seccomp.DEFAULT,
            machine=os.uname().machine,
            masked=find_thermal(),
        )

    def _make_device(self, box: Box) -> str | None:
        """A node of the device that is limited: Docker takes no numbers, and the host's /dev may have none."""
        if "io_device" not in box.limits:
            return None
        node = box.folder / "device"
        os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(*map(int, box.limits["io_device"].split(":"))))
        return str(node)

    def remove(self, box: Box) -> None:
        """Raises BackendError; a daemon that does not answer is ended, if it is tare's."""
        try:
            self.server.api.remove(box.identifier)
        except NotFoundError:
            return
        except NoAnswerError:
            self.server.give_up()
            raise

    def make_instance(self, box: Box, started: Started, timeline: StartTimeline) -> Instance:
        return (
            ExecInstance(self, box, started, timeline)
            if self._is_gvisor
            else super().make_instance(box, started, timeline)
        )

    def exec_command(self, box: Box, argv: Sequence[str]) -> Sequence[str]:
        """By Docker's command line, whose streams lose nothing; for ``ExecInstance`` alone."""
        return [
            "docker",
            "--host",
            f"unix://{self.options.socket or RUN / SOCKET}",
            "exec",
            "-i",
            box.identifier,
            *argv,
        ]

    def mounts(self, box: Box) -> Sequence[Step]:
        """For Docker's command line: the daemon's /run."""
        del box
        return [] if self.options.socket else self.server.folder.mounts()

    def usage_of(self, box: Box) -> Usage:
        found = super().usage_of(box)
        return without_writes(found, self.layout) if self._is_gvisor else found

    def confounds(self) -> Sequence[Confound]:
        return find_confounds(self.name, self.options.seccomp, self.layout) if self._is_gvisor else ()

    def time_exec(self, box: Box) -> float | None:
        asked_s = time.monotonic()
        code, printed = self.server.api.execute(box.identifier, ("/bin/true",))
        took_s = time.monotonic() - asked_s
        if code:
            raise BackendError(
                f"Docker's exec of /bin/true ended with {code}", evidence=printed.decode(errors="replace")
            )
        return took_s

    def own_folders(self, box: Box) -> Sequence[Path]:
        """With the container's layer, where the storage driver names it."""
        layer = self.server.api.layer(box.identifier)
        return (box.folder, *([] if layer is None else [layer]))

    def find_running_s(self, box: Box) -> float | None:
        """By the event ``start`` of Docker's stream."""
        now_s = time.time()
        return self.server.api.find_event_s(box.identifier, "start", now_s - _PAST_S, now_s)

    def find_helper(self, pid: int) -> int | None:
        """Of the user's daemon, whose own cgroup is not asked for: the shim, by its name."""
        if not self.options.socket:
            return super().find_helper(pid)
        child = find_status(pid)
        parent = None if child is None else find_status(child.parent)
        return child.parent if child is not None and parent is not None and "shim" in parent.name else None

    # --- what a report says -------------------------------------------------------------------------------------------

    def version(self) -> str:
        return describe_version(self.server.api.version())

    def facts(self) -> dict[str, str]:
        info = self.server.api.info()
        imported = "was there" if self._import_s is None else f"{self._import_s:.1f} s"
        return {
            "daemon": "the user's" if self.options.socket else "of the run's own",
            "runtime": self.options.runtime.value,
            "storage driver": str(info.get("Driver")),
            "image import": imported,
            "namespaces": "mnt,pid,ipc,uts,cgroup" + ("" if self.options.network is Network.HOST else ",net"),
            "capabilities": ",".join(dict(DEFAULT_CAPABILITIES)),
            "no_new_privs": "yes",
            "seccomp": "default (that of tare's own containers)" if self.options.seccomp is Seccomp.DEFAULT else "none",
            **({"platform": self.options.platform.value, **GVISORS_OWN} if self._is_gvisor else {}),
        }
