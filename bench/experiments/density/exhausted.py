"""Why a ramp ended, and which resource of the host ran out, from the error that told it, with what to raise.

A refused system call has an error number and no name of what was short: the same EAGAIN stands for four limits. Where
several may be meant, the one closest to its limit now is named, with both numbers.
"""

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from tare.bench.catalogue import StopReason
from tare.bench.errors import TareError


class Stop(msgspec.Struct, frozen=True):
    """The end of a ramp. ``resource`` is what ran out, and is empty where nothing did or nobody can tell."""

    reason: StopReason
    message: str
    resource: str = ""
    remedy: str = ""
    evidence: str = ""


def failed(error: TareError | OSError, population: int) -> Stop:
    """A ramp that ended because something failed, with what ran out where that can be told."""
    message = error.message if isinstance(error, TareError) else f"{type(error).__name__}: {error}"
    exhausted = find_exhausted(error)
    remedy = getattr(error, "remedy", None) or ""
    return Stop(
        StopReason.FAILURE,
        f"after {population} instances: {message}",
        resource="" if exhausted is None else exhausted.resource,
        remedy=remedy if exhausted is None else exhausted.remedy,
        evidence=getattr(error, "evidence", ""),
    )


_ERRNO = re.compile(r"errno (\d+)")
_BY_TEXT = {os.strerror(number): number for number in (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE)} | {
    os.strerror(number): number for number in (errno.ENFILE, errno.EDQUOT, errno.ENOBUFS, errno.EUSERS)
}


class Exhausted(msgspec.Struct, frozen=True):
    """What ran out, and what to raise."""

    resource: str
    remedy: str


class _Limit(msgspec.Struct, frozen=True):
    """A limit with how much of it is used, where that can be told."""

    name: str
    most: int
    used: int | None
    raise_by: str


def find_exhausted(error: BaseException, root: Path = Path("/")) -> Exhausted | None:
    """The resource whose end this error tells of, or None if it is of another kind."""
    number, text = _number_and_text(error)
    candidates = _CANDIDATES.get(number)
    return None if candidates is None else candidates(text, root)


def _number_and_text(error: BaseException) -> tuple[int, str]:
    """The error number in the chain of causes, or in what an error says, and all that they say."""
    said: list[str] = []
    number = 0
    one: BaseException | None = error
    while one is not None:
        text = f"{one}\n{getattr(one, 'evidence', '')}"
        said.append(text)
        if not number and isinstance(one, OSError) and one.errno:
            number = one.errno
        one = one.__cause__
    whole = "\n".join(said)
    if not number and (match := _ERRNO.search(whole)):
        number = int(match[1])
    if not number:
        number = next((known for phrase, known in _BY_TEXT.items() if phrase in whole), 0)
    return number, whole


def _processes(text: str, root: Path) -> Exhausted:
    """EAGAIN: the kernel makes no more processes, or none of the contexts through which QEMU does direct I/O."""
    if "AIO" in text:
        used = _numbers(root / "proc/sys/fs/aio-nr")
        limit = _sysctl(root, "fs/aio-max-nr", used[0] if used else None)
        return _tightest("asynchronous I/O", [limit] if limit else [])
    threads = _threads(root)
    limits = [
        _sysctl(root, "kernel/pid_max", threads),
        _sysctl(root, "kernel/threads-max", threads),
        *_pids_cgroups(root),
    ]
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() != 0 and soft != resource.RLIM_INFINITY:
        limits.append(_Limit("processes of this user", soft, threads, "ulimit -u"))
    return _tightest("processes", [limit for limit in limits if limit is not None])


def _files(text: str, root: Path) -> Exhausted:
    if "inotify" in text:
        return _sysctls("inotify instances", root, "fs/inotify/max_user_instances")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    limit = _Limit("open files of tare", soft, used, f"ulimit -n (the hard limit is {hard})")
    return _tightest("file descriptors", [limit])


def _all_files(_text: str, root: Path) -> Exhausted:
    used = _numbers(root / "proc/sys/fs/file-nr")
    limit = _sysctl(root, "fs/file-max", used[0] if used else None)
    return _tightest("open files of the host", [limit] if limit else [])


def _space(text: str, root: Path) -> Exhausted:
    """ENOSPC: of a disk, or of a kernel table that has an upper bound."""
    if "inotify" in text:
        return _sysctls("inotify watches", root, "fs/inotify/max_user_watches")
    if "clone3" in text or "unshare" in text or "namespaces" in text:
        names = [path.name for path in sorted((root / "proc/sys/user").glob("max_*_namespaces"))]
        return _sysctls("namespaces", root, *(f"user/{name}" for name in names))
    if "cgroup" in text:
        return Exhausted("cgroups", "remove cgroups that nobody uses: v1 has room for 65,535 memory groups at a time")
    return Exhausted("disk", "free space or inodes on the file system of the work directory (df, df -i)")


def _memory(_text: str, _root: Path) -> Exhausted:
    return Exhausted("memory", "free memory, or raise vm.max_map_count or vm.overcommit_ratio if there is enough of it")


def _network(_text: str, root: Path) -> Exhausted:
    return _sysctls("network buffers or neighbours", root, "net/ipv4/neigh/default/gc_thresh3", "net/core/wmem_max")


def _quota(_text: str, _root: Path) -> Exhausted:
    return Exhausted("disk quota", "raise the quota of the work directory's owner")


def _users(_text: str, root: Path) -> Exhausted:
    return _sysctls("user namespaces", root, "user/max_user_namespaces")


_CANDIDATES: dict[int, Callable[[str, Path], Exhausted]] = {
    errno.EAGAIN: _processes,
    errno.EMFILE: _files,
    errno.ENFILE: _all_files,
    errno.ENOSPC: _space,
    errno.ENOMEM: _memory,
    errno.ENOBUFS: _network,
    errno.EDQUOT: _quota,
    errno.EUSERS: _users,
}


def _tightest(what: str, limits: list[_Limit]) -> Exhausted:
    """The limit of which least is left, named with its number."""
    if not limits:
        return Exhausted(what, "no limit that this process can read explains it")
    tight = max(limits, key=lambda limit: (limit.used or 0) / max(limit.most, 1))
    used = "" if tight.used is None else f", of which {tight.used} are used"
    return Exhausted(what, f"raise {tight.raise_by}: {tight.name} is {tight.most}{used}")


def _sysctls(what: str, root: Path, *names: str) -> Exhausted:
    """Limits whose use the kernel does not tell: all of them are named, the lowest first."""
    found = [limit for name in names if (limit := _sysctl(root, name, None)) is not None]
    if not found:
        return Exhausted(what, "no limit that this process can read explains it")
    lowest = sorted(found, key=lambda limit: limit.most)
    return Exhausted(what, "raise " + " or ".join(f"{limit.name} (now {limit.most})" for limit in lowest[:3]))


def _sysctl(root: Path, name: str, used: int | None) -> _Limit | None:
    numbers = _numbers(root / "proc/sys" / name)
    dotted = name.replace("/", ".")
    return _Limit(dotted, numbers[0], used, f"sysctl {dotted}") if numbers else None


def _threads(root: Path) -> int | None:
    """All threads of the host, by the fourth field of ``loadavg``."""
    try:
        return int((root / "proc/loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, IndexError, ValueError):
        return None


def _pids_cgroups(root: Path) -> Iterator[_Limit]:
    """The ``pids.max`` of the cgroups that this process is in, and of those above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, own = line.split(":", 2)
        mounts = {"": ("sys/fs/cgroup", "sys/fs/cgroup/unified")}.get(names, (f"sys/fs/cgroup/{names}",))
        if names and "pids" not in names.split(","):
            continue
        for mount in mounts:
            folder = root / mount / own.lstrip("/")
            while folder != root / mount and (root / mount) in folder.parents:
                most, used = _numbers(folder / "pids.max"), _numbers(folder / "pids.current")
                if most:
                    yield _Limit(f"{folder}/pids.max", most[0], used[0] if used else None, f"{folder}/pids.max")
                folder = folder.parent


def _numbers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
