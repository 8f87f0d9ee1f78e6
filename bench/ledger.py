"""The ledger: whatever can leak is entered here before it is made, so that a killed run can be cleaned up.

Each process that makes things owns one append-only file of JSON lines in the ledger folder and holds its lock
(``flock``) as long as it lives. An entry is written before the thing exists and is struck out after it is gone. What
outlives a reboot, a backend's own things included, is on disk (fsync, 2 ms on a virtual disk) by then; processes and
cgroups do not outlive the kernel that holds the written page, so they cost a write.

``clean`` takes over the files of dead owners and removes what they still list, in reverse order: what is of one of the
kinds of ``tare.bench.removers`` by that kind's remover, what a backend entered by that backend's ``reclaim``. A lock
that is held proves a living owner, and a file of another host is left to that host. What cannot be removed, or whose
backend is not installed any more, stays entered. Everything an entry names was made by tare or one of its backends, so
nothing else is ever removed.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from tare.bench.errors import CleanUpError, TareError
from tare.bench.linux.files import read_boot_id
from tare.bench.linux.processes import find_status
from tare.bench.removers import MARKER_VARIABLE, REMOVERS, Remover, ResourceKind
from tare.bench.trees import make_work_folder, sync

__all__ = ["MARKER_VARIABLE", "Cleaned", "Entry", "Ledger", "ResourceKind", "clean", "remove"]

_DIES_WITH_THE_KERNEL = frozenset({ResourceKind.PROCESS, ResourceKind.CGROUP})

FindBackend = Callable[[str], Remover]
"""Returns the ``reclaim`` of the backend of that name; raises TareError if there is none."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that exists, or is about to; as a line without a kind, the striking out of one.

    ``kind`` is a ResourceKind; or, where ``backend`` names the one that made it, that backend's word for it.
    """

    number: int = msgspec.field(name="entry")
    kind: str = ""
    target: str = ""
    backend: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.target}" + (f" of the backend {self.backend}" if self.backend else "")


class Cleaned(msgspec.Struct, frozen=True):
    """What ``clean`` did: entries removed; those it could not remove, with the reason; ledger files it may not judge.

    The last are of other hosts (on a shared disk), of other users, or on a file system without locks.
    """

    removed: tuple[Entry, ...]
    failed: tuple[tuple[Entry, str], ...]
    unjudged: tuple[Path, ...] = ()

    def failure(self) -> CleanUpError | None:
        """The error that names what could not be removed; None if everything was."""
        if not self.failed:
            return None
        lines = "\n".join(f"  {entry}: {reason}" for entry, reason in self.failed)
        return CleanUpError(
            f"could not remove everything a killed run left:\n{lines}",
            remedy="remove the cause (install a missing backend again), then run `tare clean`",
        )


class _Book:
    """A ledger file and its lock: of this process, or taken over from a dead owner."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.users = 0
        self.lock = threading.Lock()
        with open(descriptor, "rb", closefd=False) as file:
            left = file.read()
        self.open = _decode(left)
        self._next = max(self.open, default=0) + 1
        self._torn = bool(left) and not left.endswith(b"\n")
        self._fd = descriptor

    def enter(self, kind: str, targets: Sequence[str], backend: str) -> tuple[Entry, ...]:
        with self.lock:
            entries = tuple(Entry(number, kind, target, backend) for number, target in enumerate(targets, self._next))
            self._next += len(entries)
            self._write(entries)
            if backend or kind not in _DIES_WITH_THE_KERNEL:
                os.fsync(self._fd)
            self.open.update((entry.number, entry) for entry in entries)
        return entries

    def strike(self, entries: Sequence[Entry]) -> None:
        with self.lock:
            gone = [entry.number for entry in entries if self.open.pop(entry.number, None) is not None]
            self._write([Entry(number) for number in gone])

    def close(self) -> None:
        """Remove the file if nothing in it is open; the lock goes after it."""
        if not self.open:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def _write(self, lines: Sequence[Entry]) -> None:
        data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        if not data:
            return
        if self._torn:
            data = b"\n" + data
        # On a full disk less may be written than asked for: what follows must not be joined to the half of a line.
        self._torn = True
        if os.write(self._fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._torn = False


_books: dict[Path, _Book] = {}
_books_lock = threading.Lock()


class Ledger:
    """The entries of this process. Use as a context manager; closing it with nothing open removes the file.

    A process may open its ledger in a folder more than once, also from several threads: the entries are shared, and
    the file goes with the last to close.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{read_boot_id()}-{_host()}-{_owner(os.getpid())}.jsonl"
        self._closed = False
        with _books_lock:
            if self.path not in _books:
                try:
                    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                    _books[self.path] = _Book(self.path, _open_own(self.path))
                except OSError as error:
                    raise CleanUpError(
                        f"the ledger folder {folder} cannot be used: {error.strerror}",
                        remedy="set TARE_STATE_DIR to a folder that can be written",
                    ) from error
            self._book = _books[self.path]
            self._book.users += 1

    def enter(self, kind: str, target: str | Path, *, backend: str = "") -> Entry:
        """Enter a thing that is about to be made. Written when this returns, and on disk if it outlives a reboot.

        ``kind`` is a ResourceKind; or, with the name of a ``backend``, its word for what its ``reclaim`` removes.
        Raises CleanUpError if it cannot be written: then the thing must not be made.
        """
        return self.enter_all(kind, (target,), backend=backend)[0]

    def enter_all(self, kind: str, targets: Sequence[str | Path], *, backend: str = "") -> tuple[Entry, ...]:
        """Enter several things of one kind at one write. Raises CleanUpError as ``enter``."""
        try:
            return self._book.enter(kind, [str(target) for target in targets], backend)
        except OSError as error:
            raise CleanUpError(
                f"the ledger {self.path} cannot be written ({error.strerror}), so nothing more is started",
                remedy="make room on that disk, or set TARE_STATE_DIR to a folder on another",
            ) from error

    def strike(self, entry: Entry) -> None:
        """Strike out a thing that is gone."""
        self.strike_all((entry,))

    def strike_all(self, entries: Sequence[Entry]) -> None:
        """Strike out several things at one write. Neither fsynced nor insisted on.

        At worst ``clean`` looks for what is gone.
        """
        with contextlib.suppress(OSError):
            self._book.strike(entries)

    @contextlib.contextmanager
    def holding(self, kind: str, target: str | Path, *, backend: str = "") -> Iterator[Entry]:
        """Enter ``target`` for the length of a block that makes it and removes it.

        If the block raises, the entry stays, and the next ``clean`` sees to it.
        """
        entry = self.enter(kind, target, backend=backend)
        yield entry
        self.strike(entry)

    def entries(self) -> tuple[Entry, ...]:
        """What this process has entered in this folder and not struck out."""
        with self._book.lock:
            return tuple(self._book.open.values())

    def close(self) -> None:
        """Close the file, and remove it if everything entered is gone. Safe to call more than once."""
        with _books_lock:
            if self._closed:
                return
            self._closed = True
            self._book.users -= 1
            if self._book.users == 0:
                del _books[self.path]
                self._book.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove(entry: Entry, find_backend: FindBackend | None = None) -> bool:
    """Remove what an entry names; False if it was not there any more.

    Raises OSError, TareError if nobody here can remove it, and whatever a backend's ``reclaim`` raises.
    """
    if entry.backend:
        if find_backend is None:
            raise TareError(f"only the backend {entry.backend} can remove it")
        return bool(find_backend(entry.backend)(entry.target))
    remover = REMOVERS.get(entry.kind)
    if remover is None:
        raise TareError(f"this version of tare does not know the kind {entry.kind}")
    return remover(entry.target)


@contextlib.contextmanager
def work_folder(ledger: Ledger, work: Path) -> Iterator[None]:
    """The folder that instances live in, removed on every way out that this process survives."""
    entry = ledger.enter(ResourceKind.DIRECTORY, work)
    try:
        try:
            make_work_folder(work)
        except OSError as error:
            raise TareError(
                f"the work folder {work} cannot be made: {error.strerror}",
                remedy="set TARE_WORK_DIR (or the suite's storage) to a folder that can be written",
            ) from error
        yield
    finally:
        try:
            remove(entry)
        except OSError as error:
            reason = f"{error.filename or work}: {error.strerror}"
            raise CleanUpError(f"could not remove the work folder: {reason}", remedy="run `tare clean`") from error
        ledger.strike(entry)


def clean(folder: Path, find_backend: FindBackend | None = None) -> Cleaned:
    """Remove what dead owners left behind. Live owners' entries are left alone. Safe to run twice at once."""
    removed: list[Entry] = []
    failed: list[tuple[Entry, str]] = []
    unjudged: list[Path] = []
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        try:
            book = _take_over(path)
        except OSError:
            unjudged.append(path)
            continue
        if book is not None:
            with contextlib.closing(book):
                outcomes = [(entry, *_try_to_remove(entry, find_backend)) for entry in reversed(book.open.values())]
                with contextlib.suppress(OSError):
                    book.strike([entry for entry, _, problem in outcomes if not problem])
            removed += [entry for entry, was_there, _ in outcomes if was_there]
            failed += [(entry, problem) for entry, _, problem in outcomes if problem]
    return Cleaned(tuple(removed), tuple(failed), tuple(unjudged))


def _try_to_remove(entry: Entry, find_backend: FindBackend | None) -> tuple[bool, str]:
    """Whether it was there and is gone, and what went wrong."""
    try:
        return remove(entry, find_backend), ""
    except OSError as error:
        return False, f"{error.strerror or error}: {error.filename or entry.target}"
    except TareError as error:
        return False, error.message
    except Exception as error:  # noqa: BLE001 - a backend's reclaim raises what it likes; the rest still goes
        return False, f"{type(error).__name__}: {error}"


def _decode(data: bytes) -> dict[int, Entry]:
    """The entries, by number, of a ledger file that are not struck out; a half-written line counts as not written."""
    entries: dict[int, Entry] = {}
    for text in data.split(b"\n"):
        try:
            line = msgspec.json.decode(text, type=Entry)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if line.kind:
            entries[line.number] = line
        else:
            entries.pop(line.number, None)
    return entries


def _open_own(path: Path) -> int:
    """A descriptor of this process's own ledger file: made if need be, locked, and its name on disk."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    try:
        descriptor = _open_locked(path, flags, wait=True)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return os.open(path, flags | os.O_CLOEXEC, 0o600)  # nobody else can lock it there either, so it is left alone
    with contextlib.suppress(OSError):  # some file systems know no fsync of a folder
        sync(path.parent)
    return descriptor


_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


def _open_locked(path: Path, flags: int, *, wait: bool) -> int:
    """A descriptor that holds the lock of the file at ``path``, which is still that file.

    Raises BlockingIOError if another holds it and this one does not ``wait``; OSError.
    """
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # noqa: PTH116 - beside fstat
                return descriptor
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                os.close(descriptor)
                raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed, and perhaps made again, while this one waited for the lock


_NAME = re.compile(
    r"(?P<boot>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-(?P<host>[0-9a-f]{12})-(?P<owner>\d{1,10})-[0-9a-f]{16}",
    re.ASCII,
)

_OLDER_NAME = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}-\d+-\d+", re.ASCII)
"""Of a ledger file of tare 0.1."""

_FORKING_S = 1.0
"""A process that a killed owner was just starting has its lock too, until it executes its program."""


def _take_over(path: Path) -> _Book | None:
    """The ledger file of a dead owner; None for that of a living one, and for a file that is no ledger by its name.

    One boot id is one kernel, whatever the containers on it call themselves: there the lock holds across namespaces.
    Raises OSError where a lock would prove nothing (another host's, tare 0.1's), or cannot be had.
    """
    name = _NAME.fullmatch(path.stem)
    if _OLDER_NAME.fullmatch(path.stem):
        raise OSError(errno.EINVAL, "of tare 0.1, whose owners held no lock", str(path))
    if name is None:
        return None
    if name["host"] != _host() and name["boot"] != read_boot_id():
        raise OSError(errno.EREMOTE, "of another host", str(path))
    seems_alive = find_status(int(name["owner"])) is not None
    deadline = time.monotonic() + (0.0 if seems_alive else _FORKING_S)
    while True:
        try:
            return _Book(path, _open_locked(path, os.O_RDWR | os.O_APPEND, wait=False))
        except FileNotFoundError:
            return None
        except BlockingIOError:  # or another `clean` is at it
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.01)


@functools.cache
def _host() -> str:
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    name = f"tare ledger {machine or os.uname().nodename}"
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


@functools.cache
def _owner(pid: int) -> str:
    """A name for this process, other than that of one which had its pid before."""
    return f"{pid}-{secrets.token_hex(8)}"
