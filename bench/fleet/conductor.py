"""A fleet from the user's side: each host is brought to a complete run that lies here, whatever goes away meanwhile.

A host has a coroutine of its own. Everything it asks of its host may be asked again: where a worker went away, the same
call goes to the worker that comes back, which finds what there is (``bench/fleet/on_host.py``).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from tare.bench.errors import TareError
from tare.bench.fleet.collection import FleetManifest, HostRow, HostState, run_folder, save_fleet_manifest
from tare.bench.fleet.conditions import Hello, choose_image, find_differences, refuse_alone, refuse_together
from tare.bench.fleet.credentials import Credentials
from tare.bench.fleet.fetching import collect, fetch_image
from tare.bench.fleet.hosts import Host, Start
from tare.bench.fleet.on_host import Order, Standing, utc_now
from tare.bench.fleet.purpose import Purpose
from tare.bench.fleet.wire import Exchange, LostError
from tare.bench.readable import readable

_T = TypeVar("_T")
_HELLO_S = 300.0
_LEAVE_S = 30.0
_TRIES = 3
_SAVE_EVERY_S = 2.0
_START_AGAIN_S = 15.0


class FleetRequest(msgspec.Struct, frozen=True):
    """What the user asked for.

    ``suite`` is resolved. A host that has not answered within ``wait_s`` is left out; one that goes away is waited for
    as long as ``patience_s``. ``goes_on``: runs that were stopped are resumed.
    """

    folder: Path
    hosts: tuple[Host, ...]
    suite: Mapping[str, Any]
    credentials: Credentials | None
    purpose: Purpose = Purpose.RUN
    wait_s: float = 120.0
    patience_s: float = 3600.0
    interval_s: float = 10.0
    goes_on: bool = False


class Watcher(Protocol):
    """Who is told how the hosts stand."""

    def changed(self, manifest: FleetManifest) -> None:
        """A host's row is another."""

    def step(self, text: str) -> None:
        """Say what is being done."""


class Starter(Protocol):
    """Starts the worker of a host that has none."""

    async def start(self, host: Host, address: str) -> None:
        """Start it. Raises TareError."""


class AbsentError(TareError):
    """A host did not answer in time."""


class Conductor:
    """One command on a fleet. ``manifest`` is how it stands; it is in the folder at each change."""

    def __init__(self, request: FleetRequest, manifest: FleetManifest, watcher: Watcher, starter: Starter) -> None:
        self.request = request
        self.manifest = manifest
        self._watcher = watcher
        self._starter = starter
        self._exchange: Exchange
        self._hellos: dict[str, Hello] = {}
        self._expected = {host.name for host in request.hosts}
        self._all_answered = asyncio.Event()
        self._refused: dict[str, str] = {}
        self._image_lock = asyncio.Lock()
        self._pack: Any = None
        self._goes_on = {host.name: request.goes_on for host in request.hosts}
        self._saved_at = 0.0
        self._own_version = ["", ""]

    async def conduct(self, here: Hello) -> FleetManifest:
        """See each host to its end, and return how they stand. Raises TareError if it cannot listen."""
        self._own_version = [here.version, here.commit]
        names = [host.name for host in self.request.hosts]
        async with contextlib.AsyncExitStack() as stack:
            stack.callback((self.request.folder / "image.tar").unlink, missing_ok=True)
            exchange = Exchange(self.manifest.address, self.request.credentials, names, self._fetch)
            try:
                self._exchange = await stack.enter_async_context(exchange)
            except OSError as error:
                raise TareError(
                    f"cannot listen at {self.manifest.address}: {error.strerror or error}",
                    remedy="name a free address of this machine that the hosts reach with --address ADDRESS:PORT",
                ) from error
            self._save(msgspec.structs.replace(self.manifest, address=exchange.address))
            self._watcher.step(f"waiting for {len(names)} hosts at {exchange.address}")
            await asyncio.gather(*(self._attend(host, here) for host in self.request.hosts))
        self._save(msgspec.structs.replace(self.manifest, ended_utc=utc_now()))
        return self.manifest

    async def _attend(self, host: Host, here: Hello) -> None:
        """One host from the first word to the last. Whatever is wrong with it is its row's reason."""
        try:
            if self.request.purpose is Purpose.RUN:
                await self._run(host, here)
            else:
                await self._finish(host)
            await self._dismiss(host)
        except AbsentError as error:
            seen = bool(self.manifest.row(host.name).seen_utc)
            self._set(host, state=HostState.LOST if seen else HostState.SILENT, reason=str(error))
        except (TareError, OSError) as error:
            self._set(host, state=HostState.FAILED, reason=readable(str(error)))
            with contextlib.suppress(TareError):
                await self._dismiss(host)
        finally:
            self._answered(host.name)

    async def _run(self, host: Host, here: Hello) -> None:
        asked = time.monotonic()
        try:
            async with asyncio.timeout(_HELLO_S + self.request.wait_s):
                hello = _as(await self._ask(host, "hello", self._question()), Hello)
        except TimeoutError:
            raise AbsentError(f"it connected, and said nothing of itself for {_HELLO_S:g} s") from None
        problem = refuse_alone(hello, msgspec.structs.replace(here, utc=utc_now()), time.monotonic() - asked)
        self._set(host, fingerprint=hello.fingerprint, conditions=hello.conditions, state=HostState.READY)
        if not problem:
            self._hellos[host.name] = hello
        self._answered(host.name)
        await self._all_answered.wait()
        problem = problem or self._refused.get(host.name, "")
        if problem:
            self._set(host, state=HostState.REFUSED, reason=problem)
            return
        digest = await self._provide_image(host)
        await self._measure(host, self._order(host, digest))

    async def _measure(self, host: Host, order: Order) -> None:
        def on_told(kind: str, content: Any) -> None:
            if kind == "standing":
                self._stands(host, _as(content, Standing))
                self._goes_on[host.name] = False

        def content() -> Any:
            return msgspec.to_builtins(msgspec.structs.replace(order, goes_on=self._goes_on[host.name]))

        standing = _as(await self._ask(host, "carry_out", content, on_told), Standing)
        self._stands(host, standing)
        if not standing.complete:
            self._set(host, state=HostState.FAILED, reason=readable(standing.reason))
            return
        await self._collect(host, order, standing)

    async def _finish(self, host: Host) -> None:
        """Collect what is complete, or stop what is not."""
        order = self._order(host, self.manifest.image)
        call = "stop" if self.request.purpose is Purpose.STOP else "look"
        standing = _as(await self._ask(host, call, lambda: msgspec.to_builtins(order)), Standing)
        self._stands(host, standing)
        if standing.complete and self.request.purpose is Purpose.COLLECT:
            await self._collect(host, order, standing)
        elif not standing.complete and not standing.running:
            reason = standing.reason or "its run is not complete: `tare fleet run --resume` goes on with it"
            self._set(host, state=HostState.FAILED, reason=reason)

    async def _collect(self, host: Host, order: Order, standing: Standing) -> None:
        self._set(host, state=HostState.FINISHED, reason="", run=order.run, digest=standing.digest)
        target = run_folder(self.request.folder, self.manifest.row(host.name))

        async def ask(call: str, content: Any) -> Any:
            return await self._ask(host, call, lambda: content)

        await collect(ask, order, standing.digest, target)
        self._set(host, state=HostState.COLLECTED)

    async def _dismiss(self, host: Host) -> None:
        """Let the worker go; where its run goes on it stays, to be asked again."""
        if self.manifest.row(host.name).state is not HostState.RUNNING and self._is_here(host):
            with contextlib.suppress(LostError, TimeoutError):
                async with asyncio.timeout(_LEAVE_S):
                    await self._exchange.call(host.name, "leave", None)

    # What is asked of hosts

    def _question(self) -> Callable[[], Any]:
        return lambda: {"suite": self.request.suite, "image": self.manifest.image, "asked_by": self._own_version}

    def _order(self, host: Host, digest: str) -> Order:
        image = {"use": digest} if digest else self.request.suite.get("image", {})
        suite = {**self.request.suite, "image": image}
        run = f"{self.manifest.fleet}.{host.name}"
        return Order(self.manifest.fleet, host.name, run, suite, host.work, self.request.interval_s)

    async def _ask(
        self,
        host: Host,
        call: str,
        content: Callable[[], Any],
        on_told: Callable[[str, Any], None] = lambda _kind, _content: None,
    ) -> Any:
        """The answer of a host, of whichever worker of it has one first. Raises AbsentError, and TareError it gives."""
        lost = 0
        while True:
            await self._await_worker(host)
            self._set(host, seen_utc=utc_now())
            try:
                answer = await self._exchange.call(host.name, call, content(), on_told)
            except LostError as error:
                lost += self._is_here(host)
                if lost > _TRIES:
                    raise TareError(f"its worker cannot carry out {call}: {error.message}") from error
                self._set(host, state=HostState.LOST, reason="the connection was lost; waiting for it")
                continue
            self._set(host, seen_utc=utc_now())
            if not isinstance(answer, dict) or "error" in answer:
                given = answer if isinstance(answer, dict) else {"error": "its answer makes no sense"}
                raise TareError(str(given["error"]), remedy=str(given.get("remedy", "")) or None)
            return answer.get("value")

    def _is_here(self, host: Host) -> bool:
        return self._exchange.desk.hosts[host.name].is_set()

    async def _await_worker(self, host: Host) -> None:
        """Wait until a worker of the host is here, and start it if that is ours to do. Raises AbsentError."""
        arrived = self._exchange.desk.hosts[host.name]
        seen = bool(self.manifest.row(host.name).seen_utc) and self.request.purpose is Purpose.RUN
        limit = self.request.patience_s if seen else self.request.wait_s
        deadline, reason = time.monotonic() + limit, ""
        while not arrived.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                what = "has not come back" if seen else "did not answer"
                raise AbsentError(f"it {what} within {limit:g} s" + (f": {reason}" if reason else ""))
            if host.start is Start.SSH:
                try:
                    await self._starter.start(host, self.manifest.address)
                except TareError as error:
                    if not seen:
                        raise AbsentError(error.message, remedy=error.remedy) from error
                    reason = error.message
                left = min(left, _START_AGAIN_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(arrived.wait(), left)

    # What holds for all hosts

    def _answered(self, name: str) -> None:
        """Once each host has answered or is given up, compare those that did."""
        self._expected.discard(name)
        if self._expected or self._all_answered.is_set():
            return
        ordered = {host.name: self._hellos[host.name] for host in self.request.hosts if host.name in self._hellos}
        self._refused = refuse_together(ordered)
        taking = {name: hello for name, hello in ordered.items() if name not in self._refused}
        self._hellos = taking
        self._save(msgspec.structs.replace(self.manifest, differences=find_differences(taking)))
        self._all_answered.set()

    async def _provide_image(self, host: Host) -> str:
        """See that a host has the one image of this fleet; its digest."""
        async with self._image_lock:
            if not self.manifest.image:
                digest = choose_image(self._hellos)
                if not digest:
                    self._watcher.step(f"{host.name} builds the image")
                    digest = str(await self._ask(host, "build_image", self._question()))
                    self._has_image(host.name, digest)
                self._save(msgspec.structs.replace(self.manifest, image=digest))
        digest = self.manifest.image
        if self._hellos[host.name].image != digest:
            await self._pack_image(digest)
            self._watcher.step(f"sending image {digest[:12]} to {host.name}")
            await self._ask(host, "receive_image", lambda: {"digest": digest, **self._pack})
            self._has_image(host.name, digest)
        return digest

    async def _pack_image(self, digest: str) -> None:
        """Fetch the image from a host that has it, once."""
        async with self._image_lock:
            if self._pack is not None:
                return
            source = next((one for one in self.request.hosts if self._image_of(one) == digest), None)
            if source is None:
                raise TareError(
                    f"no host that takes part has the image {digest[:12]}", remedy="start a new fleet without --resume"
                )

            async def ask(call: str, content: Any) -> Any:
                return await self._ask(source, call, lambda: content)

            self._watcher.step(f"fetching image {digest[:12]} from {source.name}")
            self._pack = await fetch_image(ask, digest, self.request.folder / "image.tar")

    def _image_of(self, host: Host) -> str:
        return self._hellos[host.name].image if host.name in self._hellos else ""

    def _has_image(self, name: str, digest: str) -> None:
        self._hellos[name] = msgspec.structs.replace(self._hellos[name], image=digest)

    def _fetch(self, _host: str, what: str, offset: int, size: int) -> bytes:
        """A piece of the image for a host that lacks it."""
        if what != "image":
            raise TareError(f"there is no {readable(what)!r} to fetch")
        with (self.request.folder / "image.tar").open("rb") as file:
            file.seek(offset)
            return file.read(size)

    # How it stands

    def _stands(self, host: Host, standing: Standing) -> None:
        if not standing.running and standing.reason:
            self._set(host, done=standing.done, planned=standing.planned, failed=standing.failed)
            return
        state = {"state": HostState.RUNNING, "reason": ""} if standing.running else {}
        counts = {"done": standing.done, "planned": standing.planned, "failed": standing.failed}
        self._set(host, run=f"{self.manifest.fleet}.{host.name}", seen_utc=utc_now(), **counts, **state)

    def _set(self, host: Host, **changes: Any) -> None:
        """Change a host's row. Its state is kept at once, how far it is and when it was seen every other second."""
        row = self.manifest.row(host.name)
        changed: HostRow = msgspec.structs.replace(row, **changes)
        if changed == row:
            return
        rows = tuple(changed if one.name == host.name else one for one in self.manifest.hosts)
        self.manifest = msgspec.structs.replace(self.manifest, hosts=rows)
        if changed.state is not row.state or time.monotonic() - self._saved_at > _SAVE_EVERY_S:
            self._save(self.manifest)
        self._watcher.changed(self.manifest)

    def _save(self, manifest: FleetManifest) -> None:
        self.manifest = manifest
        self._saved_at = time.monotonic()
        save_fleet_manifest(self.request.folder, manifest)


def _as(value: Any, kind: type[_T]) -> _T:
    """What a host answered, as what it has to be. Raises TareError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise TareError(f"its answer makes no sense: {error}") from error
