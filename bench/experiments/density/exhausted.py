"""Why a ramp ended, and which resource of the host ran out according to the error, with what to raise.

A refused system call has an error number and no name of what was short: the same EAGAIN stands for four limits. Where
several may be meant, the one closest to its limit now is named, with both numbers.
"""

import errno
import os
import re
import resource
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tare.bench.catalogue import StopReason
from tare.bench.errors import TareError
from tare.bench.linux.cgroups import find_folders
from tare.bench.linux.files import find_text

_ERRNO = re.compile(r"errno (\d+)")
_NUMBERS = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE)
_BY_TEXT = {os.strerror(one): one for one in (*_NUMBERS, errno.ENFILE, errno.EDQUOT, errno.ENOBUFS, errno.EUSERS)}
_OF_NAMESPACES = ("clone3", "unshare", "namespaces")


class Stop(msgspec.Struct, frozen=True):
    """The end of a ramp. ``resource`` is what ran out, and is empty where nothing did or nobody can know."""

    reason: StopReason
    message: str
    resource: str = ""
    remedy: str = ""
    evidence: str = ""


class Exhausted(NamedTuple):
    """What ran out, and what to raise."""

    resource: str
    remedy: str


class _Limit(NamedTuple):
    """A limit with how much of it is used, where that can be read."""

    name: str
    most: int
    used: int | None
    raise_by: str


def failed(error: TareError | OSError, population: int) -> Stop:
    """A ramp that ended because something failed, with what ran out where that can be known."""
    message = error.message if isinstance(error, TareError) else f"{type(error).__name__}: {error}"
    ran_out, remedy = find_exhausted(error) or ("", getattr(error, "remedy", None) or "")
    message, evidence = f"after {population} instances: {message}", getattr(error, "evidence", "")
    return Stop(StopReason.FAILURE, message, ran_out, remedy, evidence)


def find_exhausted(error: BaseException, root: Path = Path("/")) -> Exhausted | None:  # noqa: C901, PLR0912 - a case each
    """The resource whose end this error is about, or None if it is of another kind."""
    number, text = _number_and_text(error)
    match number:
        case errno.EAGAIN if "AIO" in text:
            used = _numbers(root / "proc/sys/fs/aio-nr")
            return _tightest("asynchronous I/O", _sysctls(root, "fs/aio-max-nr", used=used))
        case errno.EAGAIN:
            return _tightest("processes", _limits_on_processes(root))
        case errno.EMFILE if "inotify" in text:
            return _lowest("inotify instances", _sysctls(root, "fs/inotify/max_user_instances"))
        case errno.EMFILE:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            open_now = sum(1 for _ in Path("/proc/self/fd").iterdir())
            limit = _Limit("open files of tare", soft, open_now, f"ulimit -n (the hard limit is {hard})")
            return _tightest("file descriptors", [limit])
        case errno.ENFILE:
            used = _numbers(root / "proc/sys/fs/file-nr")
            return _tightest("open files of the host", _sysctls(root, "fs/file-max", used=used))
        case errno.ENOSPC if "inotify" in text:
            return _lowest("inotify watches", _sysctls(root, "fs/inotify/max_user_watches"))
        case errno.ENOSPC if any(word in text for word in _OF_NAMESPACES):
            names = sorted((root / "proc/sys/user").glob("max_*_namespaces"))
            return _lowest("namespaces", _sysctls(root, *(f"user/{path.name}" for path in names)))
        case errno.ENOSPC if "cgroup" in text:
            remedy = "remove cgroups that nobody uses: v1 has room for 65,535 memory groups at a time"
            return Exhausted("cgroups", remedy)
        case errno.ENOSPC:
            return Exhausted("disk", "free space or inodes on the file system of the work directory (df, df -i)")
        case errno.ENOMEM:
            remedy = "free memory, or raise vm.max_map_count or vm.overcommit_ratio if there is enough of it"
            return Exhausted("memory", remedy)
        case errno.ENOBUFS:
            names_of_network = ("net/ipv4/neigh/default/gc_thresh3", "net/core/wmem_max")
            return _lowest("network buffers or neighbours", _sysctls(root, *names_of_network))
        case errno.EDQUOT:
            return Exhausted("disk quota", "raise the quota of the work directory's owner")
        case errno.EUSERS:
            return _lowest("user namespaces", _sysctls(root, "user/max_user_namespaces"))
    return None


def _number_and_text(error: BaseException) -> tuple[int, str]:
    """The error number in the chain of causes, or in what an error says, and all that they say."""
    said: list[str] = []
    number = 0
    one: BaseException | None = error
    while one is not None:
        said.append(f"{one}\n{getattr(one, 'evidence', '')}")
        if not number and isinstance(one, OSError) and one.errno:
            number = one.errno
        one = one.__cause__
    whole = "\n".join(said)
    if not number and (match := _ERRNO.search(whole)):
        number = int(match[1])
    return number or next((known for phrase, known in _BY_TEXT.items() if phrase in whole), 0), whole


def _limits_on_processes(root: Path) -> Iterator[_Limit]:
    """Of the kernel, of this user, and of the cgroups that this process is in and of those above them."""
    threads: int | None = None
    match (find_text(root / "proc/loadavg") or "").split():
        case [_, _, _, running, *_]:
            threads = int(running.partition("/")[2])
    yield from _sysctls(root, "kernel/pid_max", "kernel/threads-max", used=() if threads is None else (threads,))
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() != 0 and soft != resource.RLIM_INFINITY:
        yield _Limit("processes of this user", soft, threads, "ulimit -u")
    folders, _ = find_folders(root=root)
    for name in ("pids", ""):
        folder = folders.get(name)
        while folder is not None and (folder / "pids.max").exists():
            used = _numbers(folder / "pids.current")
            for most in _numbers(folder / "pids.max"):
                yield _Limit(f"{folder}/pids.max", most, used[0] if used else None, f"{folder}/pids.max")
            folder = folder.parent


def _tightest(what: str, limits: Iterable[_Limit]) -> Exhausted:
    """The limit of which least is left, named with its number."""
    tight = max(limits, key=lambda limit: (limit.used or 0) / max(limit.most, 1), default=None)
    if tight is None:
        return Exhausted(what, "no limit that this process can read explains it")
    used = "" if tight.used is None else f", of which {tight.used} are used"
    return Exhausted(what, f"raise {tight.raise_by}: {tight.name} is {tight.most}{used}")


def _lowest(what: str, limits: Iterable[_Limit]) -> Exhausted:
    """Limits whose use the kernel does not say: up to three are named, the lowest first."""
    lowest = sorted(limits, key=lambda limit: limit.most)[:3]
    if not lowest:
        return Exhausted(what, "no limit that this process can read explains it")
    return Exhausted(what, "raise " + " or ".join(f"{limit.name} (now {limit.most})" for limit in lowest))


def _sysctls(root: Path, *names: str, used: Sequence[int] = ()) -> Iterator[_Limit]:
    for name in names:
        dotted = name.replace("/", ".")
        for most in _numbers(root / "proc/sys" / name)[:1]:
            yield _Limit(dotted, most, used[0] if used else None, f"sysctl {dotted}")


def _numbers(path: Path) -> list[int]:
    """The numbers in a file; none if it cannot be read or holds a word."""
    try:
        return [int(word) for word in (find_text(path) or "").split()]
    except ValueError:
        return []
