"""libvirt, and nothing else touches it: connections, domains, the guest agent, and its errors translated.

The driver is one in libvirt's daemons (``qemu:///system``), opened here, or in this process (``embedded``). A daemon
starts QEMU itself, without tare's wrapper, which its security module may not let it run, and in a cgroup of its own. So
the guest's vCPUs are held until QEMU was moved to the instance's cgroup (``guest.py``). libvirt writes its log and
every error to stderr unless that is switched off before it is imported. An event loop has to run before a connection is
opened, or waiting for QEMU's answers never ends.
"""

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import sys
import threading
import time
import xml.etree.ElementTree as ET
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tare.backends.vm.domain_xml import MACHINE, Accelerator
from tare.backends.vm.emulator import JOIN_VARIABLE, Emulator
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.ledger import Ledger, ResourceKind

_LOG = "libvirt.log"
_DAEMON_LOGS = Path("/var/log/libvirt/qemu")
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


class Connection(ABC):
    """An open connection. ``version`` is libvirt's.

    ``root`` is a folder of ours with a short path, for sockets. ``security_models`` are those that the driver applies
    to its QEMUs.
    """

    security_models: tuple[str, ...] = ()

    def __init__(self, handle: Any, root: Path) -> None:
        self.root = root
        self._handle = handle
        self._domains: dict[str, Domain] = {}
        version = handle.getLibVersion()
        self.version = f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}"
        lifecycle, agent = library().VIR_DOMAIN_EVENT_ID_LIFECYCLE, library().VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE
        self._callbacks = (
            handle.domainEventRegisterAny(None, lifecycle, self._on_lifecycle, None),
            handle.domainEventRegisterAny(None, agent, self._on_agent, None),
        )

    @abstractmethod
    def emulator(self, found: Emulator) -> Path:
        """The program that it is to start as QEMU."""

    @abstractmethod
    def log_file(self, name: str) -> Path:
        """Where it keeps what the QEMU of a domain prints."""

    @abstractmethod
    def starting(self) -> AbstractContextManager[None]:
        """Around the start of a domain."""

    def learn(self, emulator: Emulator, accelerator: Accelerator) -> str:
        """What an emulator can do, as XML: found out now rather than in the first start. Raises BackendError."""
        program = self.emulator(emulator)
        kind = "kvm" if accelerator is Accelerator.KVM else "qemu"
        with translated(f"find out what {program} can do"):
            found: str = self._handle.getDomainCapabilities(str(program), "x86_64", MACHINE, kind)
        return found

    @contextlib.contextmanager
    def start_domain(
        self,
        name: str,
        xml: str,
        on_agent: Callable[[], None],
        on_running: Callable[[float], None],
        *,
        before: Callable[[], None] | None = None,
        saved: Path | None = None,
    ) -> Iterator["Domain"]:
        """A running domain. Kill its QEMU before the exit, which waits until libvirt knows. Raises BackendError.

        With ``before``, its vCPUs run no instruction until that has returned. Without, it may go on from the file
        ``saved``, which then holds the XML too.
        """
        domain = self._domains[name] = Domain(on_agent, on_running, held=before is not None or saved is not None)
        try:
            with self.starting():
                with translated("start the guest"):
                    flags = 0 if before is None else library().VIR_DOMAIN_START_PAUSED
                    domain.handle = self._handle.createXML(xml, flags) if saved is None else self._restore(name, saved)
                if before is not None:
                    before()
                    with translated("let the guest run"):
                        domain.handle.resume()
            yield domain
        finally:
            domain.end()
            del self._domains[name]

    def _restore(self, name: str, saved: Path) -> Any:
        self._handle.restore(str(saved))
        return self._handle.lookupByName(name)

    def log_tail(self, name: str) -> str:
        """The last lines of QEMU's own output."""
        try:
            return parse_log(self.log_file(name).read_text(errors="replace"))
        except OSError:
            return ""

    def close(self) -> None:
        """Close the connection; running domains stay."""
        with contextlib.suppress(library().libvirtError):
            for callback in self._callbacks:
                self._handle.domainEventDeregisterAny(callback)
            self._handle.close()

    def _on_lifecycle(self, _conn: Any, domain: Any, event: int, _detail: int, _opaque: object) -> None:
        known = self._domains.get(domain.name())
        if known is not None and event == library().VIR_DOMAIN_EVENT_STOPPED:
            known.stopped.set()
        resumed = event == library().VIR_DOMAIN_EVENT_RESUMED
        if known is not None and (resumed or (event == library().VIR_DOMAIN_EVENT_STARTED and not known.held)):
            known.on_running(time.monotonic())

    def _on_agent(self, _conn: Any, domain: Any, state: int, _reason: int, _opaque: object) -> None:
        known = self._domains.get(domain.name())
        if known is not None and state == library().VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED:
            known.on_agent()


class Domain:
    """A domain that runs, or is being started.

    ``on_agent`` is called when its guest agent opens its port, ``on_running`` with the time at which its processors
    began to run. If it is ``held`` or restored, that is not yet when libvirt has started it.
    """

    def __init__(self, on_agent: Callable[[], None], on_running: Callable[[float], None], *, held: bool) -> None:
        self.handle: Any = None
        self.on_agent = on_agent
        self.on_running = on_running
        self.held = held
        self.stopped = threading.Event()

    def ask_agent(self, execute: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int) -> Any:
        """What the guest agent returns for a command of its protocol. Raises BackendError."""
        import libvirt_qemu

        question: dict[str, Any] = {"execute": execute}
        if arguments is not None:
            question["arguments"] = arguments
        with translated(f"have the guest agent do {execute}"):
            answer = libvirt_qemu.qemuAgentCommand(self.handle, json.dumps(question), timeout_s, 0)
        return json.loads(answer)["return"]

    def save(self, file: Path) -> None:
        """Write the guest's memory and devices to ``file``, which ends it. Raises BackendError."""
        with translated("save the guest"):
            self.handle.save(str(file))

    def end(self) -> None:
        """Wait until libvirt knows that QEMU was killed; if it does not notice, have it do that itself."""
        if self.handle is not None and not self.stopped.wait(_NOTICE_DEADLINE_S):
            with contextlib.suppress(library().libvirtError):
                self.handle.destroy()


@contextlib.contextmanager
def entered(ledger: Ledger, kind: ResourceKind, root: Path) -> Iterator[None]:
    """A ledger entry, struck out on every way out on which the root folder was removed."""
    entry = ledger.enter(kind, root)
    try:
        yield
    finally:
        if not root.exists():
            ledger.strike(entry)


def start_library(root: Path) -> None:
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
    implementation = library()
    while True:
        implementation.virEventRunDefaultImpl()


def library() -> Any:
    """The module, imported by ``start_library``, which has to come first."""
    import libvirt

    return libvirt


@contextlib.contextmanager
def translated(action: str) -> Iterator[None]:
    """Errors of libvirt as BackendError."""
    try:
        yield
    except library().libvirtError as error:
        raise BackendError(f"libvirt could not {action}: {error.get_error_message() or error}") from error


class DaemonConnection(Connection):
    """The driver of a daemon on this host."""

    def __init__(self, handle: Any, root: Path) -> None:
        super().__init__(handle, root)
        self.security_models = parse_security_models(handle.getCapabilities())

    def emulator(self, found: Emulator) -> Path:
        return found.program

    def log_file(self, name: str) -> Path:
        return _DAEMON_LOGS / f"{name}.log"

    def starting(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


@contextlib.contextmanager
def start_daemon_connection(uri: str, ledger: Ledger) -> Iterator[Connection]:
    """An open connection to a daemon of this host. Raises UnavailableError."""
    root = Path(f"/run/tare-libvirt-{os.getpid()}-{secrets.token_hex(3)}")
    with entered(ledger, ResourceKind.DIRECTORY, root), contextlib.ExitStack() as stack:
        root.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, root)
        start_library(root)
        try:
            connection = DaemonConnection(library().open(uri), root)
        except library().libvirtError as error:
            why, remedy = explain(uri, error.get_error_message() or str(error))
            raise UnavailableError(f"options.connection: {uri} {why}", remedy=remedy) from error
        stack.callback(connection.close)
        yield connection


def explain(uri: str, message: str) -> tuple[str, str]:
    """Why a connection does not open, by libvirt's ``message``, and what to do."""
    if "ermission denied" in message or "uthenticat" in message or "olkit" in message:
        return (f"may not be opened: {message}", "run tare as root, or join the group that the daemon admits (libvirt)")
    if "Failed to connect" in message or "Cannot recv data" in message or "onnection refused" in message:
        return (
            f"is not answered by a daemon: {message}",
            "start libvirtd and virtlogd (systemctl start libvirtd virtlogd), or leave connection out",
        )
    return (
        f"does not open: {message}",
        f"see what `virsh -c '{uri}' version` says, or leave connection out, which needs no daemon",
    )


def parse_security_models(capabilities: str) -> tuple[str, ...]:
    """The security models in what ``virConnectGetCapabilities`` returns, but ``none``."""
    models = ET.fromstring(capabilities).findall("host/secmodel/model")  # noqa: S314 - it is libvirt's own
    return tuple(model.text for model in models if model.text and model.text != "none")
