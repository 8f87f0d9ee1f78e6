"""A host's part of a fleet: the run of one fleet here, found, begun, resumed, awaited, stopped.

The run is a process of its own, ``tare run`` as a user would start it. It outlives whoever asked for it; what it did is
in its run directory, and whether it lives in the host's lock (``bench/host_lock.py``). So every function here may be
called again at any time, by another process, and finds what there is.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.errors import ExitCode, RunDirectoryError, TareError
from tare.bench.fleet.listing import PIECE_BYTES, ListedFile, digest_of, list_run
from tare.bench.host_lock import Holder, find_holder
from tare.bench.locations import folder_failure, state_directory
from tare.bench.process import DEVNULL, STDOUT, Popen
from tare.bench.readable import readable
from tare.bench.records import EventKind, Manifest, RunStatus
from tare.bench.store import EVENTS, MANIFEST, attempt_of, load_manifest
from tare.bench.trees import make_folders, replace_file

_RESTARTS = 5
"""How often a run that dies is begun again without one more instance measured."""
_LONGEST = 2000
_NO_USE_AGAIN = frozenset({ExitCode.USAGE, ExitCode.BAD_INPUT, ExitCode.MISSING, ExitCode.ENVIRONMENT, ExitCode.BUG})


class Order(msgspec.Struct, frozen=True):
    """What a host is asked to run: ``suite`` resolved, ``run`` the name of its run directory here.

    ``work`` is the folder for the runs of fleets; empty: in tare's state folder. Progress is told every
    ``interval_s``. ``goes_on``: a run that was stopped on purpose is resumed.
    """

    fleet: str
    host: str
    run: str
    suite: Mapping[str, Any]
    work: str = ""
    interval_s: float = 10.0
    goes_on: bool = False


class Standing(msgspec.Struct, frozen=True):
    """How the run of an order stands: instances that ended, of those planned, and those that failed.

    ``reason`` says why it is over without being complete. ``digest`` is there once it is complete.
    """

    done: int = 0
    planned: int = 0
    failed: int = 0
    complete: bool = False
    running: bool = False
    digest: str = ""
    reason: str = ""


class Place:
    """Where the run of an order lies on this host."""

    def __init__(self, order: Order) -> None:
        base = Path(order.work).expanduser() if order.work else state_directory() / "fleet"
        self.folder = base / order.fleet / order.host
        self.order = order
        self.run = self.folder / order.run
        self.log = self.folder / "run.log"
        self._suite = self.folder / "suite.json"
        self._listing = self.folder / "listing.json"
        self._stopped = self.folder / "stopped"
        self._offset = 0
        self._ended: dict[str, bool] = {}

    @property
    def is_stopped(self) -> bool:
        """Whether the user had the run stopped: then it goes on only if the user says so."""
        return self._stopped.exists()

    def mark_stopped(self) -> None:
        """Enter that the user had the run stopped. Raises OSError."""
        make_folders(self.folder)
        replace_file(self._stopped, b"")

    def go_on(self) -> None:
        """Take that back."""
        self._stopped.unlink(missing_ok=True)

    def manifest(self) -> Manifest | None:
        """The manifest of the run; None if it has not begun. Raises RunDirectoryError for a damaged one."""
        return load_manifest(self.run) if (self.run / MANIFEST).exists() else None

    def look(self) -> Standing:
        """How the run stands by its files."""
        manifest = self.manifest()
        if manifest is None:
            return Standing()
        self._read_events()
        complete = manifest.status is RunStatus.COMPLETE
        failed = sum(self._ended.values())
        return Standing(len(self._ended), max(manifest.planned_instances, len(self._ended)), failed, complete)

    def listing(self) -> tuple[ListedFile, ...]:
        """The files of the complete run; made once and kept. Raises OSError."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(self._listing.read_bytes(), type=tuple[ListedFile, ...])
        files = list_run(self.run)
        replace_file(self._listing, msgspec.json.encode(files))
        return files

    def holder(self) -> Holder | None:
        """Who measures on this host. Raises TareError if that is another run."""
        found = find_holder()
        if found is not None and found.run != readable(str(self.run.absolute())):
            raise TareError(
                f"another run measures there (process {found.pid}, {found.run}, since {found.since_utc})",
                remedy="wait until it has ended, then `tare fleet run --resume`",
            )
        return found

    def start(self, cpus: Sequence[int]) -> Popen[bytes]:
        """Begin the run, or go on with it, on these CPUs, as a process of its own. Raises OSError, TareError."""
        make_folders(self.folder)
        argv = [sys.executable, "-m", "tare", "run"]
        if self.manifest() is not None:
            argv += ["--resume", str(self.run)]
        else:
            if self.run.exists():  # killed before it had measured anything
                shutil.rmtree(self.run)
            replace_file(self._suite, msgspec.json.encode(self.order.suite))
            labels = (f"fleet={self.order.fleet}", f"host={self.order.host}")
            argv += [
                str(self._suite),
                "--output",
                str(self.run),
                *(part for one in labels for part in ("--label", one)),
            ]
        started: list[Popen[bytes] | OSError] = []

        def begin() -> None:
            # The run inherits this thread's CPUs; those of the other threads, which keep off the instances', stay.
            try:
                os.sched_setaffinity(0, cpus)
                with self.log.open("wb") as log:
                    process = Popen(
                        [*argv, "--no-report"],
                        stdin=DEVNULL,
                        stdout=log,
                        stderr=STDOUT,
                        cwd=self.folder,
                        start_new_session=True,
                    )
                started.append(process)
            except OSError as error:
                started.append(error)

        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
        if isinstance(started[0], OSError):
            raise started[0]
        return started[0]

    def last_words(self) -> str:
        """The message with which the run ended."""
        with contextlib.suppress(OSError):
            return last_message(self.log.read_text("utf-8", "replace"))
        return ""

    def _read_events(self) -> None:
        """Take note of the lines that were added to the events since; a half-written last line waits."""
        kinds = {EventKind.INSTANCE_DONE: False, EventKind.INSTANCE_FAILED: True}
        with contextlib.suppress(FileNotFoundError), (self.run / EVENTS).open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                with contextlib.suppress(msgspec.DecodeError):
                    event = msgspec.json.decode(line, type=_Ended)
                    if event.kind in kinds:
                        self._ended[attempt_of(event.instance)[0]] = kinds[EventKind(event.kind)]


class _Ended(msgspec.Struct):
    kind: str
    instance: str = ""


def last_message(said: str) -> str:
    """The last message in what a command of tare's printed, with its remedy; of a bug, with the error it is about.

    Where there is none, the last lines.
    """
    lines = said.splitlines()
    begins = next((number for number in range(len(lines) - 1, -1, -1) if lines[number].startswith("tare: ")), None)
    if begins is None:
        return readable("\n".join(lines[-3:])[:_LONGEST])
    message = "\n".join(lines[begins:]).removeprefix("tare: ")
    is_bug = any(line.startswith("Traceback ") for line in lines[:begins])
    return readable((f"{lines[begins - 1]}: {message}" if is_bug else message)[:_LONGEST])


Tell = Callable[[Standing], Awaitable[None]]


async def carry_out(order: Order, cpus: Sequence[int], tell: Tell) -> Standing:
    """Have the run of an order measured to its end, and return how it stands then. Never raises for what the run does.

    It is begun, resumed, or found running or complete, whichever is the case. A run that dies is begun again. ``cpus``
    are those that the run may use; ``tell`` gets how it stands meanwhile.
    """
    place = Place(order)
    try:
        return await _carry_out(place, cpus, tell)
    except OSError as error:
        failure = folder_failure(error) or f"{error.filename or place.folder}: {error.strerror or error}"
        return _over(place, str(failure))
    except TareError as error:
        return _over(place, str(error))


async def _carry_out(place: Place, cpus: Sequence[int], tell: Tell) -> Standing:
    restarts, before = 0, -1
    if place.order.goes_on:
        place.go_on()
    goes_on = place.order.goes_on
    while True:
        holder = place.holder()
        if holder is not None:
            code = await _ended(holder.pid, None, place, tell)
            continue
        standing, manifest = place.look(), place.manifest()
        if standing.complete:
            files = await asyncio.to_thread(place.listing)
            return msgspec.structs.replace(standing, digest=digest_of(files))
        interrupted = manifest is not None and manifest.status is RunStatus.INTERRUPTED and not goes_on
        if interrupted or place.is_stopped:
            return _over(place, "the run was stopped there")
        restarts = restarts + 1 if standing.done <= before else 0
        if restarts > _RESTARTS:
            died = f"the run died {restarts} times there without measuring anything"
            return _over(place, f"{died}: {said}" if (said := place.last_words()) else died)
        goes_on, before = False, standing.done
        process = place.start(cpus)
        code = await _ended(process.pid, process, place, tell)
        if code in _NO_USE_AGAIN:
            return _over(place, place.last_words() or f"the run ended there with exit code {code}")


async def _ended(pid: int, process: Popen[bytes] | None, place: Place, tell: Tell) -> int | None:
    """Wait until a process has ended; its exit code if it is this one's child. Nothing wakes up but to ``tell``."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return process.wait() if process is not None else None
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        while True:
            standing = place.look()
            await tell(msgspec.structs.replace(standing, running=True, complete=False))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), place.order.interval_s)
                return process.wait() if process is not None else None
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def stop(order: Order, patience_s: float = 60.0) -> Standing:
    """End the run of an order as ctrl-C would: what it measured is kept. Returns how it stands then."""
    place = Place(order)
    try:
        place.mark_stopped()
        holder = place.holder()
    except (TareError, OSError) as error:
        return _over(place, str(error))
    if holder is not None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(holder.pid)
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                ended = asyncio.Event()
                asyncio.get_running_loop().add_reader(descriptor, ended.set)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), patience_s)
            finally:
                asyncio.get_running_loop().remove_reader(descriptor)
                os.close(descriptor)
        if place.holder() is not None:
            return _over(place, f"the run has not ended within {patience_s:g} s of being told to")
    standing = place.look()
    return standing if standing.complete else _over(place, "the run was stopped there")


def look(order: Order) -> Standing:
    """How the run of an order stands; nothing is begun. Raises TareError, OSError."""
    place = Place(order)
    standing = place.look()
    if standing.complete:
        return msgspec.structs.replace(standing, digest=digest_of(place.listing()))
    return msgspec.structs.replace(standing, running=place.holder() is not None)


def read_pieces(order: Order, pieces: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Pieces of files of the complete run, each by name, offset and size; together no more than one piece may have.

    Raises RunDirectoryError for what is no file of the run, OSError.
    """
    place, left, contents = Place(order), PIECE_BYTES, []
    names = {one.name for one in place.listing()}
    for name, offset, size in pieces:
        if name not in names:
            raise RunDirectoryError(f"{name!r} is not a file of the run")
        with (place.run / name).open("rb") as file:
            file.seek(offset)
            contents.append(file.read(min(size, left)))
        left -= len(contents[-1])
    return contents


def _over(place: Place, reason: str) -> Standing:
    standing = Standing()
    with contextlib.suppress(TareError, OSError):
        standing = place.look()
    return msgspec.structs.replace(standing, complete=False, reason=readable(reason))


def utc_now() -> str:
    """Now, as a manifest has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
