"""``tare fleet worker``: stays on a host and works for a fleet, through lost connections, until it is dismissed."""

import asyncio
import contextlib
import ipaddress
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import typer

from tare.bench.cli.fleet_commands import missing_extra
from tare.bench.errors import ExitCode, HostBusyError, SuiteError, TareError, UnavailableError
from tare.bench.host_lock import Holder
from tare.bench.linux.locks import lock_within
from tare.bench.linux.processes import find_status
from tare.bench.locations import state_directory
from tare.bench.process import DEVNULL, STDOUT, Popen
from tare.bench.units import Duration

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.5, 15.0
_CONNECT_S = 10.0
_LOCK = "worker.lock"
_ROOM_BYTES = 65_536


def worker_command(address: str, name: str, keys: Path | None, patience: str) -> ExitCode:
    """Work for the fleet at ``address``. Returns the exit code."""
    try:
        from tare.bench.fleet.keys import require_credentials
        from tare.bench.fleet.tasks import CALLS
        from tare.bench.fleet.wire import LostError, work
    except ImportError as error:
        raise missing_extra(error) from error
    host, port = _parse(address, encrypted=keys is not None)
    credentials = None if keys is None else require_credentials(keys, name)
    try:
        limit = Duration(patience)
    except ValueError as error:
        raise SuiteError("--patience", str(error)) from None

    async def stay() -> ExitCode:
        last, pause = time.monotonic(), _FIRST_PAUSE_S
        while True:
            if await _answers(host, port):
                typer.echo(f"{name}: connecting to {address}", err=True)
                try:
                    with connected():
                        if await work(address, name, CALLS, credentials, scratch):
                            return ExitCode.OK
                    last, pause = time.monotonic(), _FIRST_PAUSE_S
                except LostError as error:
                    if "name taken" not in error.message:
                        raise UnavailableError(f"the fleet at {address} refuses {name}: {error.message}") from error
            if time.monotonic() - last > limit:
                raise UnavailableError(
                    f"no fleet has answered at {address} for {patience}", remedy="start it again when one is to run"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_S)

    with _only_worker(address) as connected, _scratch() as scratch:
        return asyncio.run(stay())


def detach_command(address: str, name: str, keys: Path | None, patience: str) -> ExitCode:
    """Start the same worker as a process of its own. Returns once it works, or the exit code that it ended with."""
    folder = state_directory() / "fleet"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    argv = [sys.executable, "-m", "tare", "fleet", "worker", address, "--name", name, "--patience", patience]
    argv += [] if keys is None else ["--keys", str(keys.absolute())]
    log = folder / "worker.log"
    with log.open("wb") as file:
        _require_room(file)
        process = Popen(argv, stdin=DEVNULL, stdout=file, stderr=STDOUT, cwd="/", start_new_session=True)
    while (code := process.poll()) is None:
        found = _find_working(folder / _LOCK)
        if found is not None and found.pid == process.pid:
            return ExitCode.OK
        time.sleep(0.05)
    typer.echo(log.read_text("utf-8", "replace").strip(), err=True)
    return ExitCode(code) if code in set(ExitCode) else ExitCode.BUG


def _require_room(file: BinaryIO) -> None:
    """See that there is room for a worker's messages. Raises OSError, with the file's name."""
    try:
        file.write(bytes(_ROOM_BYTES))
        file.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            file.truncate(0)
        raise OSError(error.errno, error.strerror, file.name) from error
    file.seek(0)
    file.truncate()


class _Working(msgspec.Struct, frozen=True):
    """Which worker is on this host: its process, the fleet's address, and whether it is connected."""

    pid: int
    started: int
    address: str
    connected: bool


@contextlib.contextmanager
def _only_worker(address: str) -> Iterator["_Connected"]:
    """Be the one worker with this state folder; what ``connected`` enters is for those who want to be it.

    One that waits for another fleet, and has no connection, is ended. Raises HostBusyError, and typer.Exit where the
    worker of this fleet is here already.
    """
    path = state_directory() / "fleet" / _LOCK
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not lock_within(descriptor):
            _make_way(path, address)
            if not lock_within(descriptor, within_s=20.0):
                raise HostBusyError("the worker of another fleet does not end here", remedy="end it, then try again")
        connected = _Connected(descriptor, path, address)
        connected.enter(now=False)
        try:
            yield connected
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


class _Connected:
    """Enters in the lock file whether this worker is connected; called, for the length of a block."""

    def __init__(self, descriptor: int, path: Path, address: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self._address = address

    def enter(self, *, now: bool) -> None:
        status = find_status(os.getpid())
        content = msgspec.json.encode(_Working(os.getpid(), status.started if status else 0, self._address, now))
        os.ftruncate(self._descriptor, 0)
        try:
            os.pwrite(self._descriptor, content, 0)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.enter(now=True)
        try:
            yield
        finally:
            self.enter(now=False)


def _find_working(path: Path) -> _Working | None:
    """Who says in the lock file that it works here, if it is alive."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        found = msgspec.json.decode(path.read_bytes(), type=_Working)
        return found if Holder(found.pid, found.started, "", "").is_alive else None
    return None


def _make_way(path: Path, address: str) -> None:
    """End the worker that is here if it is idle and another fleet's. Raises typer.Exit if it is this fleet's."""
    found = _find_working(path)
    if found is None:
        return
    if found.address == address:
        typer.echo(f"the worker for {address} is here already (process {found.pid})", err=True)
        raise typer.Exit(ExitCode.OK)
    if found.connected:
        raise HostBusyError(
            f"the worker of another fleet works here (process {found.pid}, for {found.address})",
            remedy="wait until that fleet has ended, or stop it with `tare fleet stop`",
        )
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.pid, signal.SIGTERM)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """The folder that Dask wants; what a killed worker left of it goes first."""
    folder = state_directory() / "fleet" / "worker"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _answers(host: str, port: int) -> bool:
    """Whether somebody listens there: a connection that is closed again at once."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _parse(address: str, *, encrypted: bool) -> tuple[str, int]:
    found = re.fullmatch(r"(tcp|tls)://\[?([0-9A-Za-z.:_-]+?)\]?:(\d{1,5})", address)
    if found is None:
        raise SuiteError("ADDRESS", f"{address!r} is no address", remedy="use the one that `tare fleet run` prints")
    if (found[1] == "tls") != encrypted:
        needs = "needs the certificate of this host: name its folder with --keys" if not encrypted else "has no TLS"
        raise SuiteError("ADDRESS", f"{address} {needs}")
    if found[1] == "tcp" and found[2] != "localhost" and not _is_loopback(found[2]):
        raise TareError(
            f"{address} is not on this machine, and without TLS anybody on the network could run commands here as root",
            remedy="`tare fleet keys` makes certificates; give this worker its own with --keys",
        )
    return found[2], int(found[3])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
