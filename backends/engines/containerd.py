"""containerd, by ``ctr``: a private daemon of the run's, and a shim for each container.

The container is described by tare's own ``config.json``, as ``ctr`` has no options for CPUs, processes and I/O rates.
Its root is the overlay of tare's, mounted in the daemon's mount namespace, where the shim and the runtime see it.
"""

import contextlib
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from tare.backends.cgroups.lifecycle import start_cgroup
from tare.backends.engines.box import Box, EngineOptions, Network, overlay_step
from tare.backends.engines.commands import start_command
from tare.backends.engines.core import STOP_DEADLINE_S
from tare.backends.engines.daemon import DaemonFolder, start_daemon
from tare.backends.engines.exec_instance import ExecInstance
from tare.backends.engines.groups import JoinWatch
from tare.backends.engines.oci import OciRuntime
from tare.backends.engines.oci_config import Plan, make_config
from tare.backends.engines.start import HOLD, LIVE, Begun, Started
from tare.backends.native import steps, syscalls
from tare.bench.errors import BackendError
from tare.bench.interfaces import BackendContext, Instance
from tare.bench.linux.waiting import is_readable
from tare.bench.model import Availability, Envelope, Image, StartTimeline
from tare.bench.packages import remedy_for
from tare.bench.process import find_tool

_SHIM = "io.containerd.runc.v2"
_ADDRESS = "/run/containerd/containerd.sock"
_EVENTS = "events"
_EVENT_DEADLINE_S = 5.0


class ContainerdOptions(EngineOptions, frozen=True, forbid_unknown_fields=True):
    """``[backend.options]`` of ``containerd``.

    ``runtime`` is the name of the shim, or its path. ``binary`` is the OCI runtime below that of runc (``runc``,
    ``crun``). Any other shim than runc's may have a kernel between the container and the host (Kata), so its first
    process reports by its standard output and commands go through ``ctr tasks exec``.
    """

    runtime: str = _SHIM
    binary: str = ""


class Containerd(OciRuntime):
    """``ctr run`` in a containerd that serves nobody else."""

    name = "containerd"
    summary = "containers by containerd and its shim, from a daemon of the run's own"
    program = "containerd"
    package = "containerd"
    Options = ContainerdOptions
    _started = 0

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self.returns = not self.tells_by_stream()

    def tells_by_stream(self) -> bool:
        return self.options.runtime != _SHIM

    @property
    def options(self) -> ContainerdOptions:
        assert isinstance(self.context.options, ContainerdOptions)
        return self.context.options

    def probe_engine(self) -> Availability:
        needed = ["ctr", shim_program(self.options.runtime)]
        if self.options.binary or self.options.runtime == _SHIM:
            needed.append(self.options.binary or "runc")
        missing = [program for program in needed if find_tool(program) is None]
        if missing:
            return Availability.no(f"containerd needs {', '.join(missing)}", remedy_for(["containerd", "runc"]))
        return super().probe_engine()

    def hides_empty_unified(self) -> bool:
        return self.options.binary.endswith("crun")

    # --- the daemon ---------------------------------------------------------------------------------------------------

    def prepare_engine(self, image: Image, envelope: Envelope) -> None:
        del image
        self._cpus = envelope.cpus
        self._serving = self.stack.enter_context(contextlib.ExitStack())
        self._serve()

    def require_daemon(self) -> None:
        """The next one, if it has ended: it has none of the former's containers."""
        self._bury()
        if self.daemon is None:
            self._serve()

    def _bury(self) -> None:
        """Once the daemon has ended, end what it left in its group: the shims of starts that it did not finish."""
        if self.daemon is not None and not self.daemon.is_alive():
            self.daemon = None
            self._serving.close()

    def _serve(self) -> None:
        self._started += 1
        place = DaemonFolder(self.folder / f"daemon-{self._started}")
        place.path.mkdir()
        settings = place.path / "config.toml"
        settings.write_text(configuration(str(place.path / "root")))
        self._folder = place
        name = f"tare-containerd-{secrets.token_hex(4)}"
        with contextlib.ExitStack() as stack:
            self.daemon = stack.enter_context(
                start_daemon(
                    self.context.ledger,
                    self._ready.program,
                    ["containerd", "--config", str(settings)],
                    place,
                    name,
                    layout=self.layout,
                    cpus=self._cpus,
                    own_network=self.options.network is not Network.HOST,
                )
            )
            self._listen(stack, f"{name}-events")
            self._serving.push(stack.pop_all())

    def _listen(self, stack: contextlib.ExitStack, name: str) -> None:
        """Have ``ctr events`` write down what happens when; its cost is neither the daemon's nor an instance's."""
        (self._folder.path / _EVENTS).touch()
        cgroup = stack.enter_context(start_cgroup(self.context.ledger, name, {"cpus": self._cpus}, self.layout))
        argv = self._client("events")
        log = self._folder.path / _EVENTS
        stack.enter_context(
            start_command(self._ready.program, argv, cgroup.join_files, [self._enter()], log, {})
        ).require_executed(time.monotonic() + STOP_DEADLINE_S)

    def _enter(self) -> steps.Step:
        if self.daemon is None:
            raise BackendError("containerd has ended, and its containers with it")
        return steps.enter_mounts(f"/proc/{self.daemon.pid}/ns/mnt")

    # --- its containers -----------------------------------------------------------------------------------------------

    def mounts_for(self, box: Box) -> list[steps.Step]:
        """Those of the daemon, where the root is, and the daemon's socket."""
        del box
        return [self._enter()]

    def begin(self, box: Box, stack: contextlib.ExitStack) -> Begun:
        def leave(kind: type[BaseException] | None, *_: object) -> None:
            if kind is None:
                self._forget(box)
                return
            with contextlib.suppress(BackendError):  # perhaps there is no task
                self.remove(box)
            with contextlib.suppress(BackendError):  # and no container
                self._forget(box)

        stack.push(leave)
        argv = self.start_command(box)
        return stack.enter_context(self.spawn(box, argv, streams=box.streams, more=[overlay_step(box)]))

    def start_command(self, box: Box) -> Sequence[str]:
        config = box.folder / "config.json"
        config.write_bytes(msgspec.json.encode(make_config(self.plan(box))))
        below = ("--runc-binary", self.options.binary) if self.options.binary else ()
        detached = () if self.tells_by_stream() else ("--detach", "--log-uri", f"file://{box.folder / 'output'}")
        return self._client(
            *("run", *detached, "--runtime", self.options.runtime, *below, "--config", str(config), box.identifier),
        )

    def plan(self, box: Box) -> Plan:
        return msgspec.structs.replace(super().plan(box), argv=HOLD if self.tells_by_stream() else LIVE)

    def make_instance(self, box: Box, started: Started, timeline: StartTimeline) -> Instance:
        if self.tells_by_stream():
            return ExecInstance(self, box, started, timeline)
        return super().make_instance(box, started, timeline)

    def exec_command(self, box: Box, argv: Sequence[str]) -> Sequence[str]:
        return self._client("tasks", "exec", "--exec-id", secrets.token_hex(4), box.identifier, *argv)

    def remove_command(self, box: Box) -> Sequence[str]:
        return self._client("tasks", "delete", "--force", box.identifier)

    def _forget(self, box: Box) -> None:
        """Have the daemon forget a container that has ended, or was never made, and unmount its root."""
        self._bury()
        if self.daemon is None:
            return
        argv = self._client("containers", "delete", box.identifier)
        with self.spawn(box, argv, more=[steps.unmount(str(box.root))]) as command:
            command.finish(time.monotonic() + STOP_DEADLINE_S)

    def _client(self, *arguments: str) -> list[str]:
        return ["ctr", f"--address={_ADDRESS}", "--namespace=tare", *arguments]

    def find_running_s(self, box: Box) -> float | None:
        """By the daemon's event ``/tasks/start``."""
        log = self._folder.path / _EVENTS
        deadline = time.monotonic() + _EVENT_DEADLINE_S
        with contextlib.closing(JoinWatch([log.parent], [_EVENTS], syscalls.IN_MODIFY)) as watch:
            while True:
                at_s = find_start(log.read_text(), box.identifier)
                left_s = deadline - time.monotonic()
                if at_s is not None or left_s <= 0 or not is_readable(watch.fileno(), left_s):
                    return at_s
                watch.joined()

    def facts(self) -> dict[str, str]:
        below = {"binary": self.options.binary} if self.options.binary else {}
        return {**super().facts(), "runtime": self.options.runtime, **below}


def shim_program(runtime: str) -> str:
    """The program that containerd starts for a runtime: ``io.containerd.runc.v2`` is ``containerd-shim-runc-v2``."""
    return runtime if runtime.startswith("/") else "-".join(("containerd-shim", *runtime.split(".")[-2:]))


def configuration(root: str) -> str:
    """Containerd's settings: its own folders, no Kubernetes, no other way to keep images than as overlays."""
    return f"""version = 2
root = "{root}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = "{_ADDRESS}"
"""


def find_start(printed: str, identifier: str) -> float | None:
    """When a task was started by what ``ctr events`` printed, in seconds since 1970."""
    for line in printed.splitlines():
        day, clock, zone, _, _, topic, content = (*line.split(" ", 6), *[""] * 7)[:7]
        if topic == "/tasks/start" and msgspec.json.decode(content)["container_id"] == identifier:
            whole, _, part = clock.partition(".")
            at = datetime.strptime(f"{day} {whole} {zone}", "%Y-%m-%d %H:%M:%S %z").astimezone(UTC)
            return at.timestamp() + float(f"0.{part or 0}")
    return None
