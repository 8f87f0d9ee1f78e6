"""QEMU drivers in libvirt's daemons (``qemu:///system``): opened, and what is different there.

A daemon starts QEMU itself, without tare's wrapper, which its security module may not let it run, and in a cgroup of
its own. So the guest's vCPUs are held until QEMU was moved to the instance's cgroup (``guest.py``).
"""

import contextlib
import os
import secrets
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tare.backends.vm.connection import Connection, entered, library, start_library
from tare.backends.vm.emulator import Emulator
from tare.bench.errors import UnavailableError
from tare.bench.ledger import Ledger, ResourceKind

_LOGS = Path("/var/log/libvirt/qemu")


class DaemonConnection(Connection):
    """The driver of a daemon on this host."""

    def __init__(self, handle: Any, root: Path) -> None:
        super().__init__(handle, root)
        self.security_models = parse_security_models(handle.getCapabilities())

    def emulator(self, found: Emulator) -> Path:
        return found.program

    def log_file(self, name: str) -> Path:
        """See ``Connection.log_file``: where daemons keep it by default."""
        return _LOGS / f"{name}.log"

    def starting(self) -> AbstractContextManager[None]:
        return nullcontext()


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
