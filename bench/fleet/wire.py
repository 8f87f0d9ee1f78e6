"""The one place that knows Dask: the scheduler next to the user, the worker on a host, and what they say to each other.

Dask carries calls to hosts and nothing else. A call is a task pinned to one worker, which tells its answer to the
scheduler as plain data (``tell``); results of tasks are never used, since Dask would unpickle them here. What comes
from a host is bounded in ``_FleetScheduler``: known operations, plain data, under the name of its certificate. A worker
takes tasks, which are pickles, from the scheduler alone: beyond loopback it knows it by the user's own authority.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import dask
from distributed import Client, Scheduler, SchedulerPlugin, Security, Worker
from distributed.comm.core import CommClosedError
from distributed.core import Status
from distributed.protocol import core as protocol
from distributed.protocol.pickle import dumps
from tornado.httpserver import HTTPServer

from tare.bench.errors import TareError
from tare.bench.fleet.credentials import Credentials

HEARTBEAT_S = 60.0
LOST_AFTER_S = 30.0
"""Data that a peer does not acknowledge for this long ends its connection (TCP_USER_TIMEOUT)."""
_FROM_HOSTS = frozenset({"register-worker", "heartbeat_worker", "close", "close-stream", "tell", "fetch"})
_ON_STREAMS = frozenset(
    {"task-finished", "task-erred", "release-worker-data", "keep-alive", "worker-status-change", "long-running"}
)
_MOST_TOLD = 64 * 2**20
_SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.worker-ttl": f"{10 * HEARTBEAT_S:g}s",
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.terminate": False,
    "distributed.admin.tick.interval": "1h",
    "distributed.admin.tick.limit": "24h",
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": f"{LOST_AFTER_S:g}s",
    "distributed.diagnostics.nvml": False,
}


def security_of(credentials: Credentials | None) -> Any:
    """Credentials as Dask has them."""
    if credentials is None:
        return None
    files = {"cert": credentials.certificate, "key": credentials.key}
    own = {f"tls_{role}_{kind}": str(path) for role in _ROLES for kind, path in files.items()}
    return Security(require_encryption=True, tls_ca_file=str(credentials.authority), **own)


_ROLES = ("scheduler", "worker", "client")


class LostError(TareError):
    """The worker of a host went away, or its task did: the call may be made again."""


Told = Callable[[str, Any], None]
"""Gets what a host tells before its answer: the kind, and the content as plain data."""
Fetch = Callable[[str, str, int, int], bytes]
"""Gives a host a piece of what the user's side has: by host, name, offset and size."""


def quiet() -> None:
    """Dask's own settings for a fleet, and none of its messages."""
    dask.config.set(_SETTINGS)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="distributed")
    # Dask gives some loggers below its own a level and a handler, which hold whatever the one above says.
    below = [name for name in logging.root.manager.loggerDict if name.startswith("distributed.")]
    for name in ("distributed", "tornado", "asyncio", *below):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _NoPickles:
    """Takes the place of Dask's pickle where messages are read: what a host says is data."""

    dumps = staticmethod(dumps)

    @staticmethod
    def loads(*_: Any, **__: Any) -> Any:
        raise ValueError("a host sent a pickle, which the user's side does not read")


class _Presence(SchedulerPlugin):  # type: ignore[misc]  # Dask's types are not read
    """Passes on to the desk which workers come and go, and which tasks failed."""

    name = "tare-presence"

    def __init__(self, desk: "Desk") -> None:
        self._desk = desk
        self._names: dict[str, str] = {}

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self._names[worker] = scheduler.workers[worker].name
        self._desk.came(self._names[worker])

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:  # noqa: ARG002 - Dask's names
        self._desk.went(self._names.pop(worker, ""))

    def transition(self, key: str, _start: str, finish: str, *_: Any, **details: Any) -> None:
        if finish == "erred":
            self._desk.failed(key, str(details.get("exception_text", ""))[:500])


class _FleetScheduler(Scheduler):  # type: ignore[misc]
    """A scheduler that believes hosts no more than it must. Its client is in this process."""

    def __init__(self, desk: "Desk", **options: Any) -> None:
        super().__init__(dashboard=False, extensions={}, **options)
        self._desk = desk
        self.handlers["tell"] = self._tell
        self.handlers["fetch"] = self._fetch

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """None: nobody needs one."""
        self.http_server = HTTPServer(lambda _: None)

    async def _handle_comm(self, comm: Any) -> None:
        if not comm.peer_address.startswith("inproc://"):
            self._bound(comm)
        await super()._handle_comm(comm)

    def _bound(self, comm: Any) -> None:
        """Let through only what a worker has to say, under the name that its certificate has."""
        read, name = comm.read, certified_name(comm.extra_info)

        async def bounded(deserializers: Any = None) -> Any:
            message = await read(deserializers)
            if isinstance(message, dict):
                if message.get("op") not in _FROM_HOSTS:
                    raise _abort(comm, f"a host asked for {message.get('op')!r}")
                stated = message.get("name")
                if stated is not None and (stated not in self._desk.hosts or name not in {None, stated}):
                    raise _abort(comm, f"a host said that it is {stated!r}")
            elif isinstance(message, list | tuple):
                for one in message:
                    _plain(comm, one)
            return message

        comm.read = bounded

    async def add_worker(self, comm: Any, **details: Any) -> None:
        self._desk.hosts[str(details["name"])]
        await super().add_worker(comm, **details)

    def heartbeat_worker(self, *args: Any, **details: Any) -> Any:
        response = super().heartbeat_worker(*args, **details)
        return {**response, "heartbeat-interval": HEARTBEAT_S}

    async def _tell(self, name: str, ticket: str, kind: str, content: Any) -> str:
        self._desk.told(name, ticket, kind, content)
        return "OK"

    async def _fetch(self, name: str, what: str, offset: int, size: int) -> bytes:
        return await asyncio.to_thread(self._desk.fetch, name, what, offset, min(size, _MOST_TOLD))


def _abort(comm: Any, problem: str) -> CommClosedError:
    comm.abort()
    return CommClosedError(problem)


def _plain(comm: Any, one: Any) -> None:
    """Check a message of a worker's stream; take out of it what a client would unpickle."""
    if not isinstance(one, dict) or one.get("op") not in _ON_STREAMS:
        raise _abort(comm, f"a worker sent {one.get('op') if isinstance(one, dict) else type(one)!r}")
    if one["op"] == "task-finished":
        one["type"] = b""
    if one["op"] == "task-erred":
        one["exception"] = one["traceback"] = None


def certified_name(extra: Mapping[str, Any]) -> str | None:
    """The common name of the certificate at the other end of a connection; None where there is no TLS."""
    certificate = extra.get("peercert")
    if certificate is None:
        return None
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return str(names[0]) if len(names) == 1 else ""


class Desk:
    """What the user's side knows of calls that are under way and of workers that are there."""

    def __init__(self, hosts: Iterable[str], fetch: Fetch) -> None:
        self.hosts = {name: asyncio.Event() for name in hosts}
        self.fetch = fetch
        self._calls: dict[str, tuple[str, asyncio.Future[Any], Told]] = {}

    def came(self, name: str) -> None:
        """A worker of this host is here."""
        self.hosts[name].set()

    def went(self, name: str) -> None:
        """It is not any more: what it was asked is lost."""
        if name in self.hosts:
            self.hosts[name].clear()
        for host, answer, _ in list(self._calls.values()):
            if host == name and not answer.done():
                answer.set_exception(LostError(f"the connection to {name} was lost"))

    def failed(self, ticket: str, why: str) -> None:
        """The task of a call did not come to an answer."""
        if ticket in self._calls and not self._calls[ticket][1].done():
            self._calls[ticket][1].set_exception(LostError(why or "its task was lost"))

    def told(self, name: str, ticket: str, kind: str, content: Any) -> None:
        """A host told something of a call, which has to be its own."""
        host, answer, on_told = self._calls.get(ticket, ("", None, None))
        if host != name or answer is None or on_told is None or answer.done():
            return
        if kind == "answer":
            answer.set_result(content)
        else:
            on_told(kind, content)

    @contextlib.contextmanager
    def expecting(self, host: str, ticket: str, on_told: Told) -> Iterator[asyncio.Future[Any]]:
        """The answer to a call, for as long as it is waited for."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[ticket] = host, answer, on_told
        try:
            yield answer
        finally:
            del self._calls[ticket]
            answer.cancel()


class Exchange:
    """The scheduler and its client. Use as an asynchronous context manager."""

    def __init__(self, address: str, credentials: Credentials | None, hosts: Iterable[str], fetch: Fetch) -> None:
        quiet()
        protocol.pickle = _NoPickles
        self.desk = Desk(hosts, fetch)
        security = security_of(credentials)
        scheme, _, place = address.partition("://")
        listen = {"protocol": ["inproc", scheme], "host": [None, place]}
        self._scheduler = _FleetScheduler(self.desk, **listen, security=security)
        self._scheduler.add_plugin(_Presence(self.desk))
        self._client: Any = None

    async def __aenter__(self) -> Self:
        try:
            await self._scheduler
        except RuntimeError as error:  # Dask's, for whatever keeps it from listening
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            raise
        self._client = await Client(self._scheduler.listeners[0].contact_address, asynchronous=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._scheduler.close()

    @property
    def address(self) -> str:
        """Where workers reach it."""
        return str(self._scheduler.listeners[1].contact_address)

    async def call(self, host: str, call: str, content: Any, on_told: Told = lambda _kind, _content: None) -> Any:
        """Have a host carry out a call, and return its answer. Raises LostError if it or its worker went away."""
        ticket = f"{call}-{host}-{secrets.token_hex(6)}"
        with self.desk.expecting(host, ticket, on_told) as answer:
            pinned = {"workers": [host], "allow_other_workers": False, "retries": 0, "pure": False}
            future = self._client.submit(perform, ticket, call, content, key=ticket, **pinned)
            try:
                return await answer
            finally:
                future.release()  # a task that goes on is cancelled; to wait for that may take for ever


Calls = Mapping[str, Callable[["FleetWorker", Any, Told], Awaitable[Any]]]
_working: list["FleetWorker"] = []


async def perform(ticket: str, call: str, content: Any) -> None:
    """The one task there is: carry out a call on this host and tell the answer."""
    worker = _working[-1]
    answer = await worker.answer(ticket, call, content)
    await worker.tell(ticket, "answer", answer)
    if worker.dismissed:
        asyncio.ensure_future(worker.close(nanny=False))  # noqa: RUF006 - Dask holds what closes it


class FleetWorker(Worker):  # type: ignore[misc]
    """A worker that carries out tare's calls, and is silent in between.

    Nobody connects to it: it answers no requests but those of the scheduler it registered with.
    """

    def __init__(self, scheduler: str, name: str, calls: Calls, credentials: Credentials | None, folder: Path) -> None:
        super().__init__(
            scheduler,
            name=name,
            nthreads=4,
            memory_limit=0,
            dashboard=False,
            extensions={},
            heartbeat_interval=f"{HEARTBEAT_S:g}s",
            death_timeout=LOST_AFTER_S,
            local_directory=str(folder),
            security=security_of(credentials),
        )
        self.handlers.clear()
        self._calls = calls
        self.dismissed = False
        """Whether the scheduler has said that it needs this worker no more."""
        self.usable_cpus = tuple(sorted(os.sched_getaffinity(0)))
        _working[:] = [self]

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """None: nobody needs one."""
        self.http_server = HTTPServer(lambda _: None)

    async def start_unsafe(self) -> Any:  # noqa: D102 - Dask's
        started = await super().start_unsafe()
        for name, callback in self.periodic_callbacks.items():
            if name not in {"heartbeat", "keep-alive"}:
                callback.stop()
        return started

    async def answer(self, ticket: str, call: str, content: Any) -> Any:
        """The answer to a call, or its ``error`` and ``remedy``."""
        told: set[asyncio.Task[None]] = set()

        def on_told(kind: str, more: Any) -> None:
            task = asyncio.ensure_future(self.tell(ticket, kind, more, insist=False))
            told.add(task)
            task.add_done_callback(told.discard)

        try:
            return {"value": await self._calls[call](self, content, on_told)}
        except TareError as error:
            return {"error": error.message, "remedy": error.remedy or ""}
        except OSError as error:
            return {"error": f"{error.filename or call}: {error.strerror or error}", "remedy": ""}
        except Exception as error:  # noqa: BLE001 - a bug on a host is that host's reason
            return {"error": f"{call} raised {type(error).__name__}: {error}", "remedy": ""}

    async def tell(self, ticket: str, kind: str, content: Any, *, insist: bool = True) -> None:
        """Tell the scheduler something; with ``insist``, until it is heard or this worker is closed."""
        while self.status is Status.running:
            try:
                await self.scheduler.tell(name=self.name, ticket=ticket, kind=kind, content=content)
            except OSError:
                if not insist:
                    return
                await asyncio.sleep(0.5)
            else:
                return

    async def fetch(self, what: str, offset: int, size: int) -> bytes:
        """A piece of what the user's side has. Raises OSError."""
        return bytes(await self.scheduler.fetch(name=self.name, what=what, offset=offset, size=size))

    def keep_off(self, cpus: Sequence[int]) -> None:
        """Run on the other CPUs from now on, all threads; on all of them if none are left."""
        own = sorted(set(self.usable_cpus) - set(cpus)) or self.usable_cpus
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(task.name), own)


async def work(scheduler: str, name: str, calls: Calls, credentials: Credentials | None, folder: Path) -> bool:
    """Work for a scheduler until it needs this worker no more (True), or the connection is lost (False).

    Raises LostError with the reason if the scheduler refuses it.
    """
    quiet()
    worker = FleetWorker(scheduler, name, calls, credentials, folder)
    try:
        await worker
        await worker.finished()
    except (ValueError, TimeoutError, OSError) as error:
        raise LostError(f"{error or type(error).__name__}") from error
    finally:
        await worker.close(nanny=False)
    return worker.dismissed
