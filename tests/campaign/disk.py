"""A disk that loses what was not synced: what a folder looks like after a power cut at any moment of a run.

POSIX promises little. After ``fsync`` of a file its content is there; after ``fsync`` of a folder its names are. All
else may be there, not at all, or in part: sectors new, old or zero, names new or old, each by itself. ``Disk`` looks at
the folder at each system call that writes, so that it sees whatever the program under test does, and by which function;
``Cut.rebuild`` makes a state that the kernel may have left.
"""

import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import msgspec

SECTOR_BYTES = 512
_WATCHED = (
    "write",
    "pwrite",
    "writev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "mkdir",
    "rename",
    "replace",
    "unlink",
    "rmdir",
)


class Left(StrEnum):
    """What a power cut leaves of what was not synced."""

    NOTHING = "nothing"
    NAMES = "names and sizes without content"
    ALL = "all that was written"
    PARTS = "some of the names and sectors"


class Tree(msgspec.Struct, frozen=True):
    """Names by the inode of their folder, and contents by the inode of their file."""

    names: dict[int, dict[str, int]]
    contents: dict[int, bytes]


class Cut(msgspec.Struct, frozen=True):
    """The power fails after one system call. ``told`` is what had been said to the user by then."""

    call: str
    top: int
    synced: Tree
    written: Tree
    told: tuple[str, ...]

    def rebuild(self, folder: Path, left: Left, chance: random.Random) -> None:
        """Make ``folder``, which is not there, what the power cut left."""
        self._make(folder, self.top, left, chance)

    def _make(self, path: Path, inode: int, left: Left, chance: random.Random) -> None:
        if inode not in self.written.names and inode not in self.synced.names:
            path.write_bytes(self._content(inode, left, chance))
            return
        path.mkdir()
        old, new = self.synced.names.get(inode, {}), self.written.names.get(inode, {})
        for name in sorted({*old, *new}):
            kept = _one_of(old.get(name), new.get(name), left, chance)
            if kept is not None:
                self._make(path / name, kept, left, chance)

    def _content(self, inode: int, left: Left, chance: random.Random) -> bytes:
        old, new = self.synced.contents.get(inode, b""), self.written.contents.get(inode, b"")
        match left:
            case Left.NOTHING:
                return old
            case Left.ALL:
                return new
            case Left.NAMES:
                return old[: len(new)] + bytes(max(0, len(new) - len(old)))
        size = chance.choice((len(old), len(new), chance.randint(min(len(old), len(new)), max(len(old), len(new)))))
        sectors = (range(at, min(at + SECTOR_BYTES, size)) for at in range(0, size, SECTOR_BYTES))
        return b"".join(_sector(old, new, one.start, one.stop, chance) for one in sectors)


def _one_of(old: int | None, new: int | None, left: Left, chance: random.Random) -> int | None:
    match left:
        case Left.NOTHING:
            return old
        case Left.PARTS:
            return chance.choice((old, new))
    return new


def _sector(old: bytes, new: bytes, start: int, stop: int, chance: random.Random) -> bytes:
    """What one sector has: what is on disk for certain if that was synced, otherwise the new, the old or zeros."""
    before, after = old[start:stop], new[start:stop]
    if before == after and len(after) == stop - start:
        return after
    found = chance.choice((before, after, b"" if before != after[: len(before)] else before))
    return found.ljust(stop - start, b"\0")


class Disk:
    """Watches a folder while it is used as a context manager, and keeps a ``Cut`` for each call that changed it."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is there, and is taken to be on disk as it is."""
        self.cuts: list[Cut] = []
        self._folder = folder.resolve()
        self._told: list[str] = []
        self._held: dict[int, int] = {}
        self._seen: dict[int, tuple[tuple[int, int], bytes]] = {}
        self._calls: dict[str, Callable[..., Any]] = {}
        self._looking = threading.Lock()
        self._top = folder.stat().st_ino
        self._synced = self._look()
        self._last = self._synced

    def tell(self, text: str) -> None:
        """Something is said to the user now."""
        self._told.append(text)

    def __enter__(self) -> Self:
        for name in _WATCHED:
            self._calls[name] = getattr(os, name)
            setattr(os, name, self._watching(name, self._calls[name]))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._calls.items():
            setattr(os, name, real)
        for descriptor in self._held.values():
            os.close(descriptor)

    def _watching(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            result = real(*args, **keywords)
            if self._is_ours(args[0]) and self._looking.acquire(blocking=False):
                try:
                    self._note(name, args[0] if name in {"fsync", "fdatasync"} else None)
                finally:
                    self._looking.release()
            return result

        return call

    def _is_ours(self, what: Any) -> bool:
        """Whether a descriptor or path may lie in the folder."""
        if isinstance(what, int):
            return Path(f"/proc/self/fd/{what}").readlink().is_relative_to(self._folder)
        return Path(os.fsdecode(what)).is_absolute() is False or Path(os.fsdecode(what)).is_relative_to(self._folder)

    def _note(self, call: str, synced: Any) -> None:
        written = self._look()
        before = self._synced
        if synced is not None:
            inode = os.fstat(synced).st_ino
            if inode in written.names:
                names = {**before.names, inode: written.names[inode]}
                self._synced = Tree(names, before.contents)
            elif inode in written.contents:
                self._synced = Tree(before.names, {**before.contents, inode: written.contents[inode]})
        if self._synced is not before or written != self._last:
            self.cuts.append(Cut(call, self._top, self._synced, written, tuple(self._told)))
        self._last = written

    def _look(self) -> Tree:
        names: dict[int, dict[str, int]] = {}
        contents: dict[int, bytes] = {}
        for path, status in _walk(self._folder):
            inode = status.st_ino
            if inode not in self._held:  # or a new file could have its number
                self._held[inode] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if stat.S_ISDIR(status.st_mode):
                names[inode] = {entry.name: entry.stat(follow_symlinks=False).st_ino for entry in os.scandir(path)}
            else:
                contents[inode] = self._read(path, status)
        return Tree(names, contents)

    def _read(self, path: Path, status: os.stat_result) -> bytes:
        state = status.st_size, status.st_mtime_ns
        known = self._seen.get(status.st_ino)
        if known is None or known[0] != state or status.st_size < _SMALL:
            known = self._seen[status.st_ino] = state, path.read_bytes()
        return known[1]


_SMALL = 64 * 1024
"""A smaller file is read each time: its time stamp may not have moved between two writes."""


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    yield folder, folder.stat()
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path), entry.stat(follow_symlinks=False)
