"""libvirt, and nothing else touches it: the embedded driver, domains, the guest agent, and its errors translated.

``qemu:///embed`` runs libvirt's QEMU driver inside this process, without a daemon. Its sharp corners, all of them met
with libvirt 9.0:

- A process has one embedded driver, with one root folder, for as long as it lives; so they are shared here.
- An event loop has to run before it is opened, or waiting for QEMU's answers never ends.
- It writes its log and every error to stderr unless told not to before it is imported.
- As root it looks up the user and group ``libvirt-qemu`` even where qemu.conf names others, and refuses to start where
  there is none. Those come with a package that also installs daemons, so it is shown a private /etc/passwd instead.
- It leaves QEMU to init, whose turn it then is to reap it, and takes QEMU for alive until that is done. Some inits take
  two seconds for it. So this process adopts orphans while QEMU is started, and reaps it (``watch.py``).
"""

import contextlib
import grp
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from backends.native import syscalls
from backends.vm.domain_xml import MACHINE, Accelerator
from backends.vm.emulator import JOIN_VARIABLE
from bench.errors import BackendError, UnavailableError
from bench.ledger import Ledger, ResourceKind

_DRIVER_USER = "libvirt-qemu"
_CONFIGURATION = """\
stdio_handler = "file"
user = "root"
group = "root"
remember_owner = 0
dynamic_ownership = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
"""
_MS_SLAVE = 1 << 19
_LOG = "libvirt.log"
_NOTICE_DEADLINE_S = 5.0


_LIBVIRT_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:")
_LOG_LINES = 12


def parse_log(text: str) -> str:
    """What QEMU itself said last in libvirt's log of it, which also holds its command line and libvirt's remarks."""
    said = [
        line
        for line in text.splitlines()
        if not line.endswith("\\") and not line.startswith(("-", "/")) and not _LIBVIRT_LINE.match(line)
    ]
    return "\n".join([line for line in said if not line.startswith(JOIN_VARIABLE)][-_LOG_LINES:])


def have_library() -> bool:
    """Whether libvirt-python is installed. Does not import it."""
    return importlib.util.find_spec("libvirt") is not None


class Connection:
    """An open embedded driver. Made by ``start_connection``. ``version`` is libvirt's."""

    def __init__(self, handle: Any, root: Path) -> None:
        self.root = root
        self._handle = handle
        self._domains: dict[str, Domain] = {}
        version = handle.getLibVersion()
        self.version = f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}"
        lifecycle, agent = _library().VIR_DOMAIN_EVENT_ID_LIFECYCLE, _library().VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE
        self._callbacks = (
            handle.domainEventRegisterAny(None, lifecycle, self._on_lifecycle, None),
            handle.domainEventRegisterAny(None, agent, self._on_agent, None),
        )

    def learn(self, emulator: Path, accelerator: Accelerator, cache: Path) -> str:
        """What an emulator can do, as XML: found out now rather than in the first start. Raises BackendError.

        libvirt keeps what it found in one file for each emulator, and checks by itself whether it still
        holds; ``cache`` shares these files between processes, whose root folders are their own.
        """
        kind = "kvm" if accelerator is Accelerator.KVM else "qemu"
        with _translated(f"find out what {emulator} can do"):
            found: str = self._handle.getDomainCapabilities(str(emulator), "x86_64", MACHINE, kind)
        _copy_new(_capabilities(self.root), cache)
        return found

    @contextlib.contextmanager
    def start_domain(self, name: str, xml: str, on_agent: Callable[[], None]) -> Iterator["Domain"]:
        """A running domain. Kill its QEMU before the exit, which waits until libvirt knows. Raises BackendError."""
        domain = self._domains[name] = Domain(on_agent)
        try:
            with _translated("start the guest"), _adopted_orphans():
                domain.handle = self._handle.createXML(xml, 0)
            yield domain
        finally:
            domain.end()
            del self._domains[name]

    def log_tail(self, name: str) -> str:
        """The last lines of QEMU's own output."""
        try:
            return parse_log((self.root / f"log/qemu/{name}.log").read_text(errors="replace"))
        except OSError:
            return ""

    def close(self) -> None:
        """Close the connection; running domains stay."""
        with contextlib.suppress(_library().libvirtError):
            for callback in self._callbacks:
                self._handle.domainEventDeregisterAny(callback)
            self._handle.close()

    def _on_lifecycle(self, _conn: Any, domain: Any, event: int, _detail: int, _opaque: object) -> None:
        known = self._domains.get(domain.name())
        if known is not None and event == _library().VIR_DOMAIN_EVENT_STOPPED:
            known.stopped.set()

    def _on_agent(self, _conn: Any, domain: Any, state: int, _reason: int, _opaque: object) -> None:
        known = self._domains.get(domain.name())
        if known is not None and state == _library().VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED:
            known.on_agent()


class Domain:
    """A domain that runs, or is being started. ``on_agent`` is called when its guest agent opens its port."""

    def __init__(self, on_agent: Callable[[], None]) -> None:
        self.handle: Any = None
        self.on_agent = on_agent
        self.stopped = threading.Event()

    def ask_agent(self, execute: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int) -> Any:
        """What the guest agent returns for a command of its protocol. Raises BackendError."""
        import libvirt_qemu

        question: dict[str, Any] = {"execute": execute}
        if arguments is not None:
            question["arguments"] = arguments
        with _translated(f"have the guest agent do {execute}"):
            answer = libvirt_qemu.qemuAgentCommand(self.handle, json.dumps(question), timeout_s, 0)
        return json.loads(answer)["return"]

    def end(self) -> None:
        """Wait until libvirt knows that QEMU was killed; if it does not notice, have it do that itself."""
        if self.handle is not None and not self.stopped.wait(_NOTICE_DEADLINE_S):
            with contextlib.suppress(_library().libvirtError):
                self.handle.destroy()


# --- the embedded driver, one for each process ----------------------------------------------------------------------


class _Embedded:
    """What this process has of the driver: its root folder for good, an open connection while somebody uses it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.root: Path | None = None
        self.folders: list[Path] = []
        self.users = 0
        self.connection: Connection | None = None
        self.closing = contextlib.ExitStack()


_embedded = _Embedded()


@contextlib.contextmanager
def start_connection(ledger: Ledger, cache: Path) -> Iterator[Connection]:
    """The embedded driver, opened by its first user and closed by its last, which removes its root folder.

    ``cache`` holds what libvirt found out about emulators (see ``Connection.learn``). Raises UnavailableError.
    """
    with _embedded.lock:
        if _embedded.connection is None:
            _embedded.connection = _open(ledger, cache)
        _embedded.users += 1
    try:
        yield _embedded.connection
    finally:
        with _embedded.lock:
            _embedded.users -= 1
            if not _embedded.users:
                _embedded.connection = None
                _embedded.closing.close()


def _open(ledger: Ledger, cache: Path) -> Connection:
    root = _embedded.root
    if root is None:
        # Short, because libvirt puts sockets deep below it and a socket's path has at most 107 bytes.
        root = _embedded.root = Path(f"/run/tare-libvirt-{os.getpid()}-{secrets.token_hex(3)}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_entered(ledger, ResourceKind.DIRECTORY, root))
        # Processes by which libvirt finds out what QEMU can do carry this mark (emulator.py).
        stack.enter_context(_entered(ledger, ResourceKind.PROCESS, root))
        _make_root(root)
        stack.callback(_remove_root, root)
        _copy_new(cache, _capabilities(root))
        _start_library(root)
        connection = Connection(_open_in_thread(f"qemu:///embed?root={root}"), root)
        stack.callback(connection.close)
        _embedded.closing = stack.pop_all()
    return connection


@contextlib.contextmanager
def _entered(ledger: Ledger, kind: ResourceKind, root: Path) -> Iterator[None]:
    """A ledger entry, struck out on every way out on which the root folder was removed."""
    entry = ledger.enter(kind, root)
    try:
        yield
    finally:
        if not root.exists():
            ledger.strike(entry)


def _make_root(root: Path) -> None:
    """The driver makes its folders once; when it is opened again they have to be there again."""
    for folder in (root, *_embedded.folders):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/qemu.conf").write_text(_CONFIGURATION)


def _remove_root(root: Path) -> None:
    _embedded.folders = [Path(folder) for folder, _, _ in os.walk(root)]
    shutil.rmtree(root)


def _start_library(root: Path) -> None:
    """Import libvirt with its log in ``root``, and run its event loop, once."""
    if "libvirt" in sys.modules:
        return
    settings = {"LIBVIRT_LOG_OUTPUTS": f"3:file:{root / _LOG}"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        import libvirt
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, name="libvirt events", daemon=True).start()


def _run_events() -> None:
    library = _library()
    while True:
        library.virEventRunDefaultImpl()


def _open_in_thread(uri: str) -> Any:
    """Open in a thread of its own, which can have a mount namespace of its own. Raises UnavailableError."""
    with ThreadPoolExecutor(1, thread_name_prefix="libvirt open") as pool:
        return pool.submit(_open_handle, uri).result()


def _open_handle(uri: str) -> Any:
    try:
        with _driver_user():
            return _library().open(uri)
    except (_library().libvirtError, OSError) as error:
        raise UnavailableError(
            f"libvirt's embedded QEMU driver does not open: {error}",
            remedy="see that tare runs as root and that libvirt's QEMU driver is installed (libvirt-daemon)",
        ) from error


@contextlib.contextmanager
def _driver_user() -> Iterator[None]:
    """The user and group that the driver looks up, if need be in files that only this thread sees."""
    try:
        pwd.getpwnam(_DRIVER_USER)
        grp.getgrnam(_DRIVER_USER)
    except KeyError:
        pass
    else:
        yield
        return
    root = _embedded.root
    assert root is not None
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", _MS_SLAVE | syscalls.MS_REC)
    lines = {"/etc/passwd": f"{_DRIVER_USER}:x:0:0::/:/bin/false\n", "/etc/group": f"{_DRIVER_USER}:x:0:\n"}
    with contextlib.ExitStack() as stack:
        for file, line in lines.items():
            shown = root / Path(file).name
            shown.write_text(Path(file).read_text("utf-8", "surrogateescape") + line, "utf-8", "surrogateescape")
            syscalls.mount(str(shown), file, "", syscalls.MS_BIND)
            # The driver's own threads are born here and stay in this namespace.
            stack.callback(syscalls.umount2, file, syscalls.MNT_DETACH)
        yield


# --- small things -----------------------------------------------------------------------------------------------------


def _library() -> Any:
    """The module, imported by ``_start_library``, which has to come first."""
    import libvirt

    return libvirt


@contextlib.contextmanager
def _translated(action: str) -> Iterator[None]:
    """Errors of libvirt as BackendError."""
    try:
        yield
    except _library().libvirtError as error:
        raise BackendError(f"libvirt could not {action}: {error.get_error_message() or error}") from error


class _Adopting:
    """How many starts are going on that want this process to adopt orphans."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0


_adopting = _Adopting()


@contextlib.contextmanager
def _adopted_orphans() -> Iterator[None]:
    """Have QEMU, which libvirt starts as a daemon, become our child rather than init's."""
    with _adopting.lock:
        _adopting.count += 1
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        with _adopting.lock:
            _adopting.count -= 1
            if not _adopting.count:
                syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)


def _capabilities(root: Path) -> Path:
    return root / "cache/qemu/capabilities"


def _copy_new(source: Path, target: Path) -> None:
    """Copy the files of a folder that differ in the other, each whole and at once."""
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.xml"):
        content = file.read_bytes()
        copy = target / file.name
        if not copy.exists() or copy.read_bytes() != content:
            unfinished = target / f".{secrets.token_hex(4)}"
            unfinished.write_bytes(content)
            unfinished.rename(copy)
