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
from typing import Any, Generic, TypeVar, cast

from tare.backends.vm.domain_xml import Accelerator, Machine
from tare.backends.vm.emulator import JOIN_VARIABLE, Emulator
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.interrupts import SLICE_S, check
from tare.bench.ledger import Ledger, ResourceKind

_LOG = "libvirt.log"
_DAEMON_LOGS = Path("/var/log/libvirt/qemu")
_NOTICE_DEADLINE_S = 5.0
_ANSWER_DEADLINE_S = 30.0
"""For what libvirt does in milliseconds; finding out what a QEMU can do takes some 4 s."""
_SAVE_DEADLINE_S = 300.0
_GIVEN_UP_DEADLINE_S = 10.0
"""For libvirt to notice that the QEMU it waits for was killed."""
_LOST_REMEDY = "see whether QEMU or libvirt's daemon is stopped or stuck, and what its log says"

Result = TypeVar("Result")
Ask = Callable[..., Any]


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
        self._unanswered: _Call[Any] | None = None
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
        found: str = self.ask(
            f"find out what {program} can do",
            lambda: self._handle.getDomainCapabilities(str(program), "x86_64", Machine.Q35.value, kind),
        )
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
        deadline_s: float,
        give_up: Callable[[], None],
    ) -> Iterator["Domain"]:
        """A running domain. Kill its QEMU before the exit, which waits until libvirt knows. Raises BackendError.

        With ``before``, its vCPUs run no instruction until that has returned. Without, it may go on from the file
        ``saved``, which then holds the XML too. ``give_up`` kills a QEMU that libvirt still waits for when
        ``deadline_s`` (a duration) is over or a signal came.
        """
        domain = self._domains[name] = Domain(
            self.ask, on_agent, on_running, held=before is not None or saved is not None
        )
        flags = 0 if before is None else library().VIR_DOMAIN_START_PAUSED
        try:
            with self.starting():
                domain.handle = self.ask(
                    "start the guest",
                    lambda: self._handle.createXML(xml, flags) if saved is None else self._restore(name, saved),
                    deadline_s,
                    give_up,
                )
                if before is not None:
                    before()
                    self.ask("let the guest run", domain.handle.resume)
            yield domain
        finally:
            domain.end()
            del self._domains[name]

    def ask(
        self,
        action: str,
        call: Callable[[], Result],
        deadline_s: float | None = None,
        give_up: Callable[[], None] | None = None,
    ) -> Result:
        """What a ``call`` of libvirt's returns, in a thread of its own: libvirt waits for a stopped QEMU for ever.

        A signal interrupts it where there is something to ``give_up``. Raises BackendError, for libvirt's own errors
        and, at once, for as long as an earlier call has no answer: its driver may be locked.
        """
        if self._unanswered is not None and not self._unanswered.wait(0, interruptible=False):
            raise BackendError(f"libvirt could not {action}: it did not answer before", remedy=_LOST_REMEDY)
        asked = _Call(action, call)
        if deadline_s is None:
            deadline_s = _ANSWER_DEADLINE_S
        try:
            answered = asked.wait(deadline_s, interruptible=give_up is not None)
        except KeyboardInterrupt:
            self._abandon(asked, give_up)
            raise
        if not answered:
            self._abandon(asked, give_up)
            raise BackendError(f"libvirt could not {action} within {deadline_s:g} s", remedy=_LOST_REMEDY)
        return asked.result()

    def _abandon(self, asked: "_Call[Any]", give_up: Callable[[], None] | None) -> None:
        if give_up is not None:
            give_up()
        self._unanswered = None if asked.wait(_GIVEN_UP_DEADLINE_S, interruptible=False) else asked

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
        with contextlib.suppress(BackendError):
            self.ask("close the connection", self._close)

    def _close(self) -> None:
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

    def __init__(
        self, ask: Ask, on_agent: Callable[[], None], on_running: Callable[[float], None], *, held: bool
    ) -> None:
        self._ask = ask
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
        answer: str = self._ask(
            f"have the guest agent do {execute}",
            lambda: libvirt_qemu.qemuAgentCommand(self.handle, json.dumps(question), timeout_s, 0),
            timeout_s + _ANSWER_DEADLINE_S,
        )
        return json.loads(answer)["return"]

    def save(self, file: Path) -> None:
        """Write the guest's memory and devices to ``file``, which ends it. Raises BackendError."""
        self._ask("save the guest", lambda: self.handle.save(str(file)), _SAVE_DEADLINE_S)

    def end(self) -> None:
        """Wait until libvirt knows that QEMU was killed; if it does not notice, have it do that itself."""
        if self.handle is not None and not self.stopped.wait(_NOTICE_DEADLINE_S):
            with contextlib.suppress(BackendError):
                self._ask("end the guest", self.handle.destroy)


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


class _Call(Generic[Result]):
    """A call of libvirt's that runs in a daemon thread, which inherits the namespaces of the one that makes it."""

    def __init__(self, action: str, call: Callable[[], Result]) -> None:
        self._action = action
        self._call = call
        self._done = threading.Event()
        self._outcome: tuple[Result | None, BaseException | None] = None, None
        threading.Thread(target=self._run, name=f"libvirt: {action}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._outcome = self._call(), None
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self._outcome = None, error
        finally:
            self._done.set()

    def wait(self, deadline_s: float, *, interruptible: bool) -> bool:
        """Wait for its end; False if there is none within ``deadline_s``. Raises KeyboardInterrupt for a signal."""
        ends_s = time.monotonic() + deadline_s
        while not self._done.wait(min(SLICE_S, max(0.0, ends_s - time.monotonic()))):
            if interruptible:
                check()
            if time.monotonic() >= ends_s:
                return self._done.is_set()
        return True

    def result(self) -> Result:
        """What it returned. Raises BackendError for libvirt's errors."""
        value, error = self._outcome
        if isinstance(error, library().libvirtError):
            message = error.get_error_message() or error
            raise BackendError(f"libvirt could not {self._action}: {message}") from error
        if error is not None:
            raise error
        return cast("Result", value)


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
