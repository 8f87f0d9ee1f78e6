"""The Docker daemon that instances come from: a private one of the run's, or the user's own behind a socket."""

import contextlib
import secrets
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tare.backends.cgroups.layout import Layout
from tare.backends.engines.daemon import RUN, Daemon, DaemonFolder, start_daemon
from tare.backends.engines.docker_api import Api
from tare.backends.native.steps import Step
from tare.backends.network.bridge import inside_network
from tare.bench.errors import BackendError
from tare.bench.ledger import Ledger
from tare.bench.process import DEVNULL, PIPE, Popen, find_tool, require_tool
from tare.bench.trees import remove_tree

SOCKET = "docker.sock"
"""Of a private daemon, in its /run."""
CALL_DEADLINE_S = 30.0
"""For calls that start no container."""
_CHUNK_BYTES = 1 << 20


class Place(msgspec.Struct, frozen=True):
    """Where and how a private daemon runs.

    ``folder`` is the run's, ``launcher`` tare's program. ``hosts_network``: in the host's network namespace, where it
    touches nothing. ``bridge``: it has one, in a namespace of its own. ``gvisor`` are flags of runsc. ``steps`` are
    carried out in its mount namespace before it starts.
    """

    ledger: Ledger
    folder: Path
    launcher: Path
    layout: Layout
    cpus: Sequence[int]
    storage: str
    hosts_network: bool
    bridge: bool
    gvisor: Sequence[str]
    steps: Sequence[Step] = ()


class Server(ABC):
    """A daemon. ``api`` is for calls with a deadline of their own, ``starting`` for those that start containers.

    ``folder`` is a private one's.
    """

    api: Api
    starting: Api
    folder: DaemonFolder
    daemon: Daemon | None = None

    @abstractmethod
    def require(self) -> None:
        """See that it lives. Raises BackendError."""

    @abstractmethod
    def give_up(self) -> bool:
        """It does not answer: end it, if it is tare's. Whether it was."""

    def close(self) -> None:
        """Let go of it."""
        self.starting.close()
        self.api.close()


class UsersServer(Server):
    """The user's own."""

    def __init__(self, socket: Path, start_deadline_s: float) -> None:
        self.api = Api(str(socket), timeout_s=CALL_DEADLINE_S)
        self.starting = Api(str(socket), timeout_s=start_deadline_s)

    def require(self) -> None:
        """It is the user's to start; the next call says why it does not answer."""

    def give_up(self) -> bool:
        return False


class PrivateServer(Server):
    """One that tare starts; once it has ended, ``require`` starts the next, which has its images and no container."""

    def __init__(self, place: Place, start_deadline_s: float) -> None:
        self._place = place
        self._start_deadline_s = start_deadline_s
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._started = 0
        (place.folder / "docker").mkdir()
        self._start()

    def _start(self) -> None:
        place = self._place
        self._started += 1
        data = place.folder / "docker"
        for name in ("containers", "containerd"):  # those of a daemon that has ended
            with contextlib.suppress(FileNotFoundError):
                remove_tree(data / name)
        folder = self.folder = DaemonFolder(place.folder / f"daemon-{self._started}")
        folder.path.mkdir()
        config = folder.path / "daemon.json"
        config.write_bytes(msgspec.json.encode(configuration(data, place.storage, place.gvisor, bridge=place.bridge)))
        with contextlib.ExitStack() as stack:
            self.daemon = stack.enter_context(
                start_daemon(
                    place.ledger,
                    place.launcher,
                    ["dockerd", "--config-file", str(config)],
                    folder,
                    f"tare-dockerd-{secrets.token_hex(4)}",
                    layout=place.layout,
                    cpus=place.cpus,
                    own_network=not place.hosts_network,
                    more=place.steps,
                )
            )
            socket = stack.enter_context(folder.reach(SOCKET))
            self.api = Api(socket, timeout_s=CALL_DEADLINE_S)
            stack.callback(self.api.close)
            self.starting = Api(socket, timeout_s=self._start_deadline_s)
            stack.callback(self.starting.close)
            self._stack = stack.pop_all()

    def require(self) -> None:
        with self._lock:
            if self.daemon is None or not self.daemon.is_alive():
                self._stack.close()
                self._start()

    def give_up(self) -> bool:
        if self.daemon is not None:
            self.daemon.kill()
        return True

    def close(self) -> None:
        self._stack.close()


class DaemonsSide:
    """The other end of its containers' network, at the bridge; ``namespace`` is a file of it, None for the host's."""

    def __init__(self, address: str, namespace: Path | None) -> None:
        self.address = address
        self._namespace = namespace

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """As of ``OtherSide``."""
        if self._namespace is None:
            yield
            return
        with self._namespace.open("rb") as file, inside_network(file.fileno()):
            yield


def configuration(data: Path, storage: str, gvisor: Sequence[str], *, bridge: bool = False) -> dict[str, object]:
    """``daemon.json`` of a private daemon: it makes no rules, no bridge unless asked, and leaves cgroups to tare."""
    others: dict[str, list[str]] = {"crun": [], "runsc": list(gvisor)}
    found = {name: find_tool(name) for name in others}
    return {
        "data-root": str(data),
        "exec-root": str(RUN / "docker"),
        "pidfile": str(RUN / "docker.pid"),
        "hosts": [f"unix://{RUN / SOCKET}"],
        "group": "root",
        "storage-driver": storage,
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "bridge": "" if bridge else "none",
        "iptables": False,
        "ip6tables": False,
        "ip-forward": False,
        "ip-masq": False,
        "userland-proxy": False,
        "raw-logs": True,
        "log-level": "warn",
        "runtimes": {
            name: {"path": str(path), "runtimeArgs": others[name]} for name, path in found.items() if path is not None
        },
    }


@contextlib.contextmanager
def start_archive(tree: Path) -> Iterator[Iterator[bytes]]:
    """A tar archive of a folder, piece by piece, with owners, modes and extended attributes. Raises BackendError."""
    argv = [str(require_tool("tar")), "--create", "--numeric-owner", "--xattrs", "--one-file-system"]
    argv += [f"--directory={tree}", "."]
    with tempfile.TemporaryFile() as said, Popen(argv, stdin=DEVNULL, stdout=PIPE, stderr=said) as tar:
        assert tar.stdout is not None
        try:
            yield iter(lambda: tar.stdout.read(_CHUNK_BYTES), b"")  # type: ignore[union-attr]
            if tar.wait():
                said.seek(0)
                reason = said.read().decode(errors="replace").strip()
                raise BackendError(f"tar could not archive the image: {reason.partition(chr(10))[0]}", evidence=reason)
        finally:
            tar.kill()


def import_tree(api: Api, tree: Path, name: str, label: str) -> float:
    """Give the daemon a folder as an image, without a registry; the seconds it took. Raises BackendError."""
    began_s = time.monotonic()
    with start_archive(tree) as content:
        api.import_image(content, name, [f"LABEL {label}"])
    return time.monotonic() - began_s
