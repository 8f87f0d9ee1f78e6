"""A daemon that an engine keeps for all its containers, as dockerd and containerd: one for a run, private to it.

It runs in a mount namespace of its own, where /run is a folder of the run's, and what it writes to /etc and /opt stays
in that folder too; in a network namespace of its own, unless its containers are to have the host's; and in a
cgroup of its own, which is in the ledger before it is made: whatever the daemon leaves is killed with that. It is ready
when it says so by systemd's protocol (``NOTIFY_SOCKET``, sd_notify(3)), or its first answer is the engine's to wait
for; nothing is polled.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tare.backends.cgroups.layout import Layout
from tare.backends.cgroups.lifecycle import Cgroup, start_cgroup
from tare.backends.engines.commands import EngineCommand, start_command
from tare.backends.engines.start import last_line
from tare.backends.native import steps, syscalls
from tare.bench.errors import BackendError
from tare.bench.interrupts import interruptible
from tare.bench.ledger import MARKER_VARIABLE, Ledger
from tare.bench.linux.memory import process_footprint
from tare.bench.linux.processes import find_status

READY_DEADLINE_S = 30.0
RUN = Path("/run")
"""Where the daemon, and whoever talks to it, sees the folder ``run`` of ``DaemonFolder``."""
_WRITABLE = ("etc", "opt")
"""Where daemons write unasked: /etc/docker/key.json, /opt/containerd."""
_NOTIFY = "notify"


class DaemonFolder(msgspec.Struct, frozen=True):
    """Where a daemon keeps what is its own. ``path`` is the run's, and removed with it."""

    path: Path

    @property
    def run(self) -> Path:
        """Its /run: sockets, FIFOs, state."""
        return self.path / "run"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.path / "log"

    def make(self) -> None:
        """Make the folders. Those that are there already are a former daemon's, and are gone on with."""
        for name in ("run", *(f"{kind}-{name}" for name in _WRITABLE for kind in ("upper", "work"))):
            (self.path / name).mkdir(mode=0o755, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def reach(self, name: str) -> Iterator[str]:
        """The path of a socket in ``run`` by which this process reaches it, however long that of the folder is."""
        above = os.open(self.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{above}/{name}"
        finally:
            os.close(above)

    def mounts(self) -> list[steps.Step]:
        """What whoever talks to the daemon by its files mounts, after ``steps.LEAVE_MOUNTS``."""
        return [steps.bind(str(self.run), str(RUN))]


class Daemon:
    """A running daemon. Made by ``start_daemon``.

    What it starts for an instance begins in its cgroup and is moved to the instance's (``Groups.take_in``): what that
    had used before is the instance's, and no longer the daemon's (``hand_over``).
    """

    def __init__(self, name: str, command: EngineCommand, cgroup: Cgroup) -> None:
        self.name = name
        self.cgroup = cgroup
        self._command = command
        self._handed_over_s = 0.0

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._command.pid

    def fileno(self) -> int:
        """A descriptor that is readable once it has ended."""
        return self._command.fileno()

    def is_alive(self) -> bool:
        """Whether its first process runs."""
        return not self._command.have_ended(0.0)

    def printed(self) -> str:
        """The end of what it has printed."""
        return self._command.printed()

    def require_alive(self) -> None:
        """Raises BackendError, with what it said last, if it has ended."""
        if not self.is_alive():
            raise BackendError(f"{self.name} has ended: {last_line(self.printed())}", evidence=self.printed())

    def hand_over(self, cpu_s: float) -> None:
        """CPU seconds that its group was charged, and that an instance accounts for from now on."""
        self._handed_over_s += cpu_s

    def cpu_s(self) -> float | None:
        """CPU seconds so far of what is in its group, without what was handed over; None once it is gone."""
        try:
            cpu_s = self.cgroup.meter.usage().cpu_s
        except OSError:
            return None
        return None if cpu_s is None else max(0.0, cpu_s - self._handed_over_s)

    def memory_bytes(self) -> int | None:
        """Proportional set size of what is in its group now; None once it is gone."""
        members = self.cgroup.members()
        return process_footprint(members)[0] if members else None

    def share(self, since_s: float | None) -> tuple[float | None, int | None]:
        """CPU seconds since it had used ``since_s``, and its proportional set size now."""
        now_s = self.cpu_s()
        return (None if now_s is None or since_s is None else now_s - since_s), self.memory_bytes()

    def find_helper(self, pid: int) -> int | None:
        """The parent of a container's first process (a shim), where that is in its group; None otherwise."""
        status = find_status(pid)
        return None if status is None or status.parent not in self.cgroup.members() else status.parent

    def kill(self) -> None:
        """End everything in its group: it may hang. Raises BackendError."""
        self.cgroup.kill()


@contextlib.contextmanager
def start_daemon(
    ledger: Ledger,
    launcher: Path,
    argv: Sequence[str],
    folder: DaemonFolder,
    name: str,
    *,
    layout: Layout,
    cpus: Sequence[int],
    own_network: bool = True,
    more: Sequence[steps.Step] = (),
    deadline_s: float = READY_DEADLINE_S,
) -> Iterator[Daemon]:
    """A daemon that has said that it is ready; it is killed, with all it started, when the block ends.

    ``launcher`` is tare's program, ``name`` that of its cgroup (``tare-...``). The daemon sees ``folder.run`` as /run;
    ``more`` steps are carried out in its namespaces before it starts. Raises BackendError with what it printed,
    MissingToolError.
    """
    folder.make()
    made = [steps.LEAVE_MOUNTS, *folder.mounts()]
    for place in _WRITABLE:
        if folder.path.is_relative_to(f"/{place}"):
            continue  # an overlay cannot have its upper layer in its lower one
        layers = (f"/{place}", str(folder.path / f"upper-{place}"), str(folder.path / f"work-{place}"))
        data = "lowerdir={},upperdir={},workdir={}".format(*map(steps.escape_option, layers))
        made.append(steps.mount("overlay", f"/{place}", 0, data))
    if own_network:
        made += [steps.unshare("network", syscalls.CLONE_NEWNET), steps.RAISE_LOOPBACK]
    deadline = time.monotonic() + deadline_s
    with start_cgroup(ledger, name, {"cpus": cpus}, layout) as cgroup, contextlib.ExitStack() as stack:
        ready = stack.enter_context(_listen(folder))
        environment = {MARKER_VARIABLE: name, "NOTIFY_SOCKET": str(RUN / _NOTIFY)}
        made += [*more, steps.pin(cpus)]
        command = stack.enter_context(start_command(launcher, argv, cgroup.join_files, made, folder.log, environment))
        command.require_executed(deadline)
        _await_ready(Path(argv[0]).name, ready, command, deadline)
        daemon = Daemon(Path(argv[0]).name, command, cgroup)
        try:
            yield daemon
        finally:
            daemon.kill()


@contextlib.contextmanager
def _listen(folder: DaemonFolder) -> Iterator[socket.socket]:
    """A socket for ``READY=1``."""
    (folder.run / _NOTIFY).unlink(missing_ok=True)
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as ready:
        with folder.reach(_NOTIFY) as path:
            ready.bind(path)
        yield ready


def _await_ready(name: str, ready: socket.socket, command: EngineCommand, deadline: float) -> None:
    """Raises BackendError if the daemon ends instead, or says nothing until ``deadline``."""
    poll = select.poll()
    for descriptor in (ready.fileno(), command.fileno()):
        poll.register(descriptor, select.POLLIN)
    while True:
        with interruptible():
            found = {descriptor for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
        if ready.fileno() in found:
            if b"READY=1" in ready.recv(4096).split(b"\n"):
                return
        elif found:
            raise BackendError(
                f"{name} ended before it was ready: {last_line(command.printed())}", evidence=command.printed()
            )
        else:
            raise BackendError(f"{name} was not ready within its deadline, and was killed", evidence=command.printed())
