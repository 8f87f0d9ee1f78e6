"""The ledger: whatever can leak is entered here before it is made, so that a killed run can be cleaned up.

Each process that makes things owns one append-only file of JSON lines in the ledger folder, named by boot,
pid and start time. An entry is written before the thing exists and is struck out after it is gone. Entries of
folders and files are on disk (fsync, 2 ms on a virtual disk) by then; processes and cgroups do not outlive the
kernel that holds the written page, so they cost a write.
``clean`` looks at files whose owner is dead and removes what they still list, in reverse order; a live owner's
entries are never touched. Everything an entry names was made by tare, so nothing else is ever removed.
"""

import contextlib
import errno
import fcntl
import os
import re
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Self

import msgspec

from tare.bench.errors import CleanUpError
from tare.bench.trees import remove_tree

MARKER_VARIABLE = "TARE_RESOURCE"
"""Environment variable by which a process of ours is recognised; its value is the entry's target."""

_KILL_DEADLINE_S = 10.0


class ResourceKind(StrEnum):
    """What can be left behind.

    ``process``: every process with ``TARE_RESOURCE=<target>`` in its environment; one that forks faster than /proc can
    be read is certain to be caught by a cgroup only. ``cgroup``: the absolute
    path of a cgroup folder of ours; its processes are ours too and are killed. ``directory`` and ``file``:
    absolute paths of ours, removed with all they hold.
    """

    PROCESS = "process"
    CGROUP = "cgroup"
    DIRECTORY = "directory"
    FILE = "file"


_OUTLIVES_REBOOT = frozenset({ResourceKind.DIRECTORY, ResourceKind.FILE})


class _Line(msgspec.Struct, frozen=True):
    entry: int
    kind: ResourceKind | None = None
    target: str = ""


class Entry(msgspec.Struct, frozen=True):
    """One thing that exists, or is about to."""

    number: int
    kind: ResourceKind
    target: str


class Cleaned(msgspec.Struct, frozen=True):
    """What ``clean`` did: entries removed, and those it could not remove with the reason."""

    removed: tuple[Entry, ...]
    failed: tuple[tuple[Entry, str], ...]


class _Book:
    """The ledger file of this process in one folder: one descriptor and one numbering, however often it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users = 0
        self.lock = threading.Lock()
        left = path.read_bytes() if path.exists() else b""
        self.open = {entry.number: entry for entry in _decode(left)}
        self._next = max(self.open, default=0) + 1
        self._torn = bool(left) and not left.endswith(b"\n")
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def enter(self, kind: ResourceKind, targets: Sequence[str]) -> tuple[Entry, ...]:
        with self.lock:
            entries = tuple(Entry(number, kind, target) for number, target in enumerate(targets, self._next))
            self._next += len(entries)
            self._write([_Line(entry.number, kind, entry.target) for entry in entries])
            if kind in _OUTLIVES_REBOOT:
                os.fsync(self._fd)
            self.open.update((entry.number, entry) for entry in entries)
        return entries

    def strike(self, entries: Sequence[Entry]) -> None:
        with self.lock:
            gone = [entry.number for entry in entries if self.open.pop(entry.number, None) is not None]
            self._write([_Line(number) for number in gone])

    def close(self) -> None:
        os.close(self._fd)
        self._fd = -1
        if not self.open:
            self.path.unlink(missing_ok=True)

    def _write(self, lines: Sequence[_Line]) -> None:
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
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = folder / f"{_boot_id()}-{os.getpid()}-{_start_time(os.getpid())}.jsonl"
        self._closed = False
        with _books_lock:
            if self.path not in _books:
                _books[self.path] = _Book(self.path)
            self._book = _books[self.path]
            self._book.users += 1

    def enter(self, kind: ResourceKind, target: str | Path) -> Entry:
        """Enter a thing that is about to be made. Written when this returns, and on disk if it outlives a reboot.

        Raises CleanUpError if it cannot be written: then the thing must not be made.
        """
        return self.enter_all(kind, (target,))[0]

    def enter_all(self, kind: ResourceKind, targets: Sequence[str | Path]) -> tuple[Entry, ...]:
        """Enter several things of one kind at one write. Raises CleanUpError as ``enter``."""
        try:
            return self._book.enter(kind, [str(target) for target in targets])
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
    def holding(self, kind: ResourceKind, target: str | Path) -> Iterator[Entry]:
        """Enter ``target`` for the length of a block that makes it and removes it.

        If the block raises, the entry stays, and the next ``clean`` sees to it.
        """
        entry = self.enter(kind, target)
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


def clean(folder: Path) -> Cleaned:
    """Remove what dead owners left behind. Live owners' entries are left alone. Safe to run twice at once."""
    removed: list[Entry] = []
    failed: list[tuple[Entry, str]] = []
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        if _is_alive(path):
            continue
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            kept = []
            for entry in reversed(_read(path)):
                try:
                    if remove(entry):
                        removed.append(entry)
                except OSError as error:
                    kept.append(entry)
                    failed.append((entry, f"{error.strerror}: {error.filename or entry.target}"))
            if not kept:
                path.unlink(missing_ok=True)
    return Cleaned(tuple(removed), tuple(failed))


def remove(entry: Entry) -> bool:
    """Remove what an entry names; False if it was not there any more. Raises OSError."""
    match entry.kind:
        case ResourceKind.PROCESS:
            return _kill_marked(entry.target)
        case ResourceKind.CGROUP:
            return remove_cgroup(Path(entry.target))
        case ResourceKind.DIRECTORY:
            return _remove_tree(Path(entry.target))
        case ResourceKind.FILE:
            present = Path(entry.target).exists()
            Path(entry.target).unlink(missing_ok=True)
            return present


def remove_cgroup(path: Path) -> bool:
    """Kill every process in a cgroup and its children, then remove them all. False if it does not exist.

    Works on v1 and v2 alike: kills what ``cgroup.procs`` lists until it lists nothing, so a process that
    forks meanwhile does not escape. Raises OSError if the cgroup cannot be emptied or removed.
    """
    if not path.is_dir():
        return False
    groups = [path, *(folder for folder in path.rglob("*") if folder.is_dir())]
    if os.getpid() in (pid for group in groups for pid in _members(group)):
        raise OSError(errno.EBUSY, "this process is in it itself", str(path))
    # From the top: a frozen parent keeps its children frozen, and a frozen process does not die.
    for group in groups:
        _write_if_there(group / "freezer.state", "THAWED")
    _write_if_there(path / "cgroup.kill", "1")
    deadline = time.monotonic() + _KILL_DEADLINE_S
    for group in reversed(groups):
        while pids := _members(group):
            _kill_all(pids)
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, f"processes {pids} do not end", str(group))
    for group in reversed(groups):
        _remove_empty_cgroup(group, deadline)
    return True


def _write_if_there(file: Path, text: str) -> None:
    # Help only: a kernel that refuses it leaves processes behind, which is seen and said below.
    with contextlib.suppress(OSError):
        descriptor = os.open(file, os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _remove_empty_cgroup(group: Path, deadline: float) -> None:
    # The kernel lets go of a cgroup a moment after its last process was reaped, and has no event for it on v1.
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            _kill_all(_members(group))  # a process that was on its way here while the others were killed
            time.sleep(0.001)
        else:
            return


def _members(group: Path) -> list[int]:
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _kill_marked(target: str) -> bool:
    """Kill until no marked process is left: one may fork between being found and being killed."""
    deadline = time.monotonic() + _KILL_DEADLINE_S
    found = False
    while pids := [pid for pid in _marked(target) if pid != os.getpid()]:
        found = _kill_all(pids) or found
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, f"processes {pids} do not end", target)
    return found


def _marked(target: str) -> list[int]:
    """The processes marked with ``target``.

    One may have forked and ended between being listed and being looked at, and its child is not in that listing. So
    "none" is believed only of a pass in which no process ended unseen; zombies and kernel threads, whose environment is
    empty for good, count once.
    """
    wanted = f"{MARKER_VARIABLE}={target}".encode()
    deadline = time.monotonic() + _KILL_DEADLINE_S
    unseen_before: set[int] = set()
    while True:
        found, unseen = _look_for(wanted)
        if found or unseen <= unseen_before or time.monotonic() > deadline:
            return found
        unseen_before = unseen


def _look_for(variable: bytes) -> tuple[list[int], set[int]]:
    """One pass over all processes: those with ``variable`` in their environment, and those that showed none at all."""
    found, unseen = [], set()
    for name in os.listdir("/proc"):  # noqa: PTH208 - a few hundred names, many times: no paths are needed
        if not name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
        except PermissionError:
            continue
        except OSError:
            environment = b""
        if not environment:
            unseen.add(int(name))
        elif variable in environment.split(b"\0"):
            found.append(int(name))
    return found, unseen


_BATCH = 256
"""How many processes are killed at a time: each holds a descriptor, of which a process may have but 1,024."""


def _kill_all(pids: list[int]) -> bool:
    """SIGKILL each process and wait until each is gone; a pidfd keeps a reused pid from being hit."""
    deadline = time.monotonic() + _KILL_DEADLINE_S
    found = False
    for first in range(0, len(pids), _BATCH):
        with contextlib.ExitStack() as stack:
            descriptors = []
            for pid in pids[first : first + _BATCH]:
                if pid == os.getpid():
                    continue
                with contextlib.suppress(ProcessLookupError):
                    descriptor = os.pidfd_open(pid)
                    stack.callback(os.close, descriptor)
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    descriptors.append(descriptor)
            for descriptor in descriptors:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            found = found or bool(descriptors)
    return found


def _remove_tree(path: Path) -> bool:
    if not path.exists():
        return False
    deadline = time.monotonic() + _KILL_DEADLINE_S
    for mounted in _mounts_below(path):
        # Deleting on would reach into a file system that is not ours.
        raise OSError(errno.EBUSY, "something is still mounted there", str(mounted))
    while path.exists():
        try:
            remove_tree(path)
        except OSError as error:
            # Somebody else, such as a second `tare clean`, removes or still fills it: what is left is still ours.
            if error.errno not in {errno.ENOENT, errno.ENOTEMPTY} or time.monotonic() > deadline:
                raise
    return True


def _mounts_below(path: Path) -> list[Path]:
    """Mount points at or below ``path`` that this process sees (octal escapes of mountinfo undone)."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    points = [re.sub(rb"\\(\d{3})", lambda found: bytes([int(found[1], 8)]), line.split()[4]) for line in lines]
    return [point for point in map(Path, map(os.fsdecode, points)) if point.is_relative_to(path)]


def _read(path: Path) -> list[Entry]:
    return _decode(path.read_bytes())


def _decode(data: bytes) -> list[Entry]:
    """The entries of a ledger file that are not struck out; a half-written line counts as not written."""
    entries: dict[int, Entry] = {}
    for text in data.split(b"\n"):
        try:
            line = msgspec.json.decode(text, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if line.kind is None:
            entries.pop(line.entry, None)
        else:
            entries[line.entry] = Entry(line.entry, line.kind, line.target)
    return list(entries.values())


_LEDGER_NAME = re.compile(r"(?P<boot>[0-9a-f-]{36})-(?P<pid>\d{1,10})-(?P<started>\d{1,20})", re.ASCII)


def _is_alive(path: Path) -> bool:
    """Whether the owner named by a ledger file still runs (same boot, same pid, same start time).

    A file that is not named like a ledger belongs to somebody else: it is left alone like a live owner's.
    """
    name = _LEDGER_NAME.fullmatch(path.stem)
    if name is None:
        return True
    if name["boot"] != _boot_id():
        return False
    try:
        return _start_time(int(name["pid"])) == int(name["started"])
    except (FileNotFoundError, ProcessLookupError):
        return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_time(pid: int) -> int:
    """Clock ticks after boot at which a process started: field 22 of /proc/PID/stat. A zombie counts as gone."""
    # As bytes: a program may put anything into its name.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if fields[0] in b"ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def raise_if_failed(cleaned: Cleaned) -> None:
    """Raise CleanUpError that names what could not be removed."""
    if cleaned.failed:
        lines = "\n".join(f"  {entry.kind} {entry.target}: {reason}" for entry, reason in cleaned.failed)
        raise CleanUpError(f"could not remove everything a killed run left:\n{lines}", remedy="run `tare clean` again")
