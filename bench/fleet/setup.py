"""What a command on a fleet begins with: its folder, its hosts, where to listen, and who may connect."""

import contextlib
import fcntl
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tare.bench.errors import HostBusyError, TareError
from tare.bench.fleet.collection import FLEET_FILE, FLEET_SCHEMA_VERSION, FleetManifest, HostRow, HostState
from tare.bench.fleet.hosts import Host, select_hosts
from tare.bench.fleet.on_host import utc_now
from tare.bench.registry import find_backends, find_workloads
from tare.bench.suite import SuiteSpec, resolve_suite
from tare.bench.suite_file import read_source
from tare.bench.trees import make_folders
from tare.bench.version import tare_version

SUITE_FILE = "suite.json"
_LOCK = ".lock"


def read_fleet_suite(path: Path) -> SuiteSpec:
    """The suite of a fleet, resolved. Raises SuiteError."""
    return resolve_suite(read_source(path), path, find_backends(), find_workloads())


def choose_hosts(
    hosts: Sequence[Host], suite: SuiteSpec, types: Sequence[str], labels: Mapping[str, str]
) -> tuple[Host, ...]:
    """The hosts that the suite selects, and of these those that the command does. Raises SuiteError."""
    wanted = suite.file.fleet
    of_suite = select_hosts(hosts, wanted.types, wanted.labels, f"{suite.path}: fleet")
    return select_hosts(of_suite, types, labels, "--type and --label")


def new_manifest(suite: SuiteSpec, hosts: Sequence[Host], address: str) -> FleetManifest:
    """The manifest of a fleet that begins."""
    name = re.sub(r"[^a-z0-9]+", "-", suite.file.suite.name.lower()).strip("-")[:40] or "suite"
    fleet = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}-{secrets.token_hex(2)}"
    rows = tuple(HostRow(one.name, one.address, one.type, one.labels) for one in hosts)
    written = suite.file.suite.name
    return FleetManifest(FLEET_SCHEMA_VERSION, fleet, written, tare_version(), utc_now(), rows, address=address)


def resumed(manifest: FleetManifest, hosts: Sequence[Host]) -> FleetManifest:
    """The manifest of a fleet that goes on: what was not collected is asked for again."""
    named = {host.name: host for host in hosts}
    rows = []
    for row in manifest.hosts:
        if row.name in named and row.state is not HostState.COLLECTED:
            rows.append(HostRow(row.name, named[row.name].address, row.type, row.labels, run=row.run))
        else:
            rows.append(row)
    known = {row.name for row in manifest.hosts}
    rows += [HostRow(one.name, one.address, one.type, one.labels) for one in hosts if one.name not in known]
    return FleetManifest(
        manifest.schema_version,
        manifest.fleet,
        manifest.suite,
        manifest.tare_version,
        manifest.started_utc,
        tuple(rows),
        image=manifest.image,
        address=manifest.address,
        differences=manifest.differences,
    )


def listening_address(stated: str, hosts: Sequence[Host], *, encrypted: bool) -> str:
    """Where the scheduler listens, as Dask has it. Raises TareError beyond loopback without TLS.

    ``stated`` is ``HOST`` or ``HOST:PORT``; empty: the address from which the first host is reached, any free port.
    """
    host, port = _split(stated) if stated else (_own_address(hosts), 0)
    outside = [one.name for one in hosts if not one.is_loopback]
    if not encrypted and (outside or not _is_loopback(host)):
        what = f"{outside[0]} is not on this machine" if outside else f"{host} can be reached from other machines"
        raise TareError(
            f"{what}, and without TLS anybody on the network could run commands as root on the hosts",
            remedy="`tare fleet keys --hosts hosts.toml` makes certificates; then name their folder with --keys",
        )
    scheme = "tls" if encrypted else "tcp"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep other commands off the folder of a fleet, and remove it if no fleet has come of it.

    Raises HostBusyError, OSError.
    """
    make_folders(folder)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostBusyError(
                f"another command works on {folder}",
                remedy="`tare fleet status` shows how it stands; end it with ctrl-C",
            ) from None
        try:
            yield
        finally:
            if not (folder / FLEET_FILE).exists():  # it failed before there was a fleet
                for name in (SUITE_FILE, _LOCK):
                    (folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a command works on the folder of a fleet now."""
    try:
        with (folder / _LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _own_address(hosts: Sequence[Host]) -> str:
    if all(host.is_loopback for host in hosts):
        return "127.0.0.1"
    target = next(host.address for host in hosts if not host.is_loopback)
    try:
        family, kind, _, _, address = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # of a datagram socket: looks up the route and sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise TareError(
            f"there is no way from here to {target}: {error.strerror or error}",
            remedy="check its address in the hosts file, or name this machine's with --address",
        ) from error


def _split(stated: str) -> tuple[str, int]:
    plain = stated.rpartition("://")[2]
    found = re.fullmatch(r"\[?([0-9A-Za-z.:_-]+?)\]?(?::(\d{1,5}))?", plain)
    if found is None:
        raise TareError(f"--address {stated}: is no address", remedy="write it as 192.0.2.1 or 192.0.2.1:8786")
    return found[1], int(found[2] or 0)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
