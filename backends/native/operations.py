"""The steps of setting an instance up, as data: each can be printed and carried out.

Standard library only and few imports, because the zygote imports it. ``order.py`` puts them in order, what takes
privileges away is in ``privileges.py``. ``execute`` runs in the instance's first process, in its
new namespaces. Every step raises OSError with the path it failed on.
"""

import _socket
import errno
import fcntl
import os
import struct
from abc import ABC, abstractmethod

from tare.backends.native import syscalls

_NOTHING = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_KEPT = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
"""Flags of mounts that statvfs(2) tells with the numbers that mount(2) takes."""
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
)


class Operation(ABC):
    """One step."""

    @abstractmethod
    def describe(self) -> str:
        """The step in words, as it stands in an error and in the printed list."""

    @abstractmethod
    def execute(self) -> None:
        """Do it. Raises OSError."""

    def __repr__(self) -> str:
        return f"<{self.describe()}>"


class JoinCgroup(Operation):
    """Move this process into a cgroup, by writing 0 into the file that does it."""

    def __init__(self, file: str) -> None:
        self.file = file

    def describe(self) -> str:
        """The step in words."""
        return f"join the cgroup by {self.file}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        write_file(self.file, b"0")


class NewCgroupNamespace(Operation):
    """Make the cgroups just joined the roots that this process sees.

    Not a flag of clone3: the new namespace's root would be the zygote's cgroup.
    """

    def describe(self) -> str:
        """The step in words."""
        return "unshare the cgroup namespace"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)


class SetAffinity(Operation):
    """Pin this process. Beside the cpuset, because the zygote's own pinning is inherited and outweighs it."""

    def __init__(self, cpus: tuple[int, ...]) -> None:
        self.cpus = cpus

    def describe(self) -> str:
        """The step in words."""
        return f"pin to CPUs {','.join(map(str, self.cpus))}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        os.sched_setaffinity(0, self.cpus)


class LeaveMounts(Operation):
    """Take a copy of the mounts that follows the host's and never reaches it."""

    def describe(self) -> str:
        """The step in words."""
        return "unshare the mount namespace, its mounts following the host's"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)


class Mount(Operation):
    """mount(2)."""

    def __init__(self, kind: str, target: str, flags: int = 0, data: str = "", source: str = "") -> None:
        self.kind = kind
        self.target = target
        self.flags = flags
        self.data = data
        self.source = source or kind

    def describe(self) -> str:
        """The step in words."""
        return f"mount {self.kind} on {self.target}" + (f" ({self.data})" if self.data else "")

    def execute(self) -> None:
        """Do it. Raises OSError."""
        syscalls.mount(self.source, self.target, self.kind, self.flags, self.data)


class Bind(Operation):
    """Make a tree of the host appear at a place of the new root, with what is mounted below it if ``recursive``.

    ``flags`` replace the mount's own; with ``keep`` they are added, as a user namespace may take none away.
    """

    def __init__(
        self, source: str, target: str, *, recursive: bool = False, flags: int = 0, keep: bool = False
    ) -> None:
        self.source = source
        self.target = target
        self.recursive = recursive
        self.flags = flags
        self.keep = keep

    def describe(self) -> str:
        """The step in words."""
        return f"bind {self.source}{' and below' if self.recursive else ''} to {self.target}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        flags = syscalls.MS_BIND | (syscalls.MS_REC if self.recursive else 0)
        syscalls.mount(self.source, self.target, "", flags)
        if self.flags:  # which the kernel takes only from a remount
            kept = os.statvfs(self.target).f_flag & _KEPT if self.keep else 0
            syscalls.mount("", self.target, "", syscalls.MS_BIND | syscalls.MS_REMOUNT | self.flags | kept)


class Mask(Operation):
    """Hide a file behind /dev/null, a folder behind the read-only one at ``empty``. Absent: nothing to hide."""

    def __init__(self, path: str, empty: str) -> None:
        self.path = path
        self._target = os.fsencode(path)
        self._empty = os.fsencode(empty)

    def describe(self) -> str:
        """The step in words."""
        return f"mask {self.path}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        problem = syscalls.try_mount(b"/dev/null", self._target, syscalls.MS_BIND)
        if problem == errno.ENOTDIR:
            problem = syscalls.try_mount(self._empty, self._target, syscalls.MS_BIND)
        if problem not in {0, errno.ENOENT}:
            raise OSError(problem, os.strerror(problem), self.path)


class MakeReadOnly(Operation):
    """Bind a path over itself, read-only. Absent: nothing to protect."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._target = os.fsencode(path)

    def describe(self) -> str:
        """The step in words."""
        return f"make {self.path} read-only"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        problem = syscalls.try_mount(self._target, self._target, syscalls.MS_BIND)
        if not problem:
            flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY | _NOTHING
            problem = syscalls.try_mount(b"", self._target, flags)
        if problem not in {0, errno.ENOENT}:
            raise OSError(problem, os.strerror(problem), self.path)


class FillDev(Operation):
    """The devices, links and mount points of a container's /dev.

    The devices are the host's own, bound there: every file system that the container can write to is mounted
    nodev, so that CAP_MKNOD, which Docker grants, opens no other device, without a devices controller.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._devices = tuple((f"/dev/{name}", f"{path}/{name}") for name in _DEVICES)
        self._links = tuple((target, f"{path}/{name}") for name, target in _LINKS)
        self._folders = tuple(f"{path}/{name}" for name in ("pts", "shm", "mqueue"))

    def describe(self) -> str:
        """The step in words."""
        return f"bind {', '.join(_DEVICES)} and make the links in {self.path}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        for device, path in self._devices:
            os.mknod(path)
            syscalls.mount(device, path, "", syscalls.MS_BIND)
        for target, path in self._links:
            os.symlink(target, path)  # noqa: PTH211 - pathlib is too much to load here
        for path in self._folders:
            os.mkdir(path, 0o755)  # noqa: PTH102 - likewise


class EnterFolder(Operation):
    """chdir(2), so that what follows is found from there, whoever may search the folders above."""

    def __init__(self, path: str) -> None:
        self.path = path

    def describe(self) -> str:
        """The step in words."""
        return f"enter {self.path}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        os.chdir(self.path)


class MakeFolders(Operation):
    """mkdir(2) for each, parents first."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths

    def describe(self) -> str:
        """The step in words."""
        return f"make {', '.join(self.paths)}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        for path in self.paths:
            os.mkdir(path, 0o755)  # noqa: PTH102 - pathlib is too much to load here


class PivotRoot(Operation):
    """Make the new root the root, and let go of the old one."""

    def __init__(self, new_root: str) -> None:
        self.new_root = new_root

    def describe(self) -> str:
        """The step in words."""
        return f"pivot_root to {self.new_root}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        os.chdir(self.new_root)
        # Both arguments the same: the old root ends up mounted over the new one, needs no folder of its own,
        # and is what "." then unmounts (pivot_root(2), "pivot_root(".", ".")").
        syscalls.pivot_root(".", ".")
        syscalls.umount2(".", syscalls.MNT_DETACH)
        os.chdir("/")


class SetHostname(Operation):
    """The name in the new uts namespace."""

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self) -> str:
        """The step in words."""
        return f"set the hostname to {self.name}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        _socket.sethostname(self.name)


class RaiseLoopback(Operation):
    """Bring lo up in the new network namespace; it has its addresses from the kernel."""

    def describe(self) -> str:
        """The step in words."""
        return "bring lo up"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        siocsifflags, iff_up = 0x8914, 0x1
        with_name = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            fcntl.ioctl(with_name.fileno(), siocsifflags, struct.pack("16sh22x", b"lo", iff_up))
        finally:
            with_name.close()


def escape_option(path: str) -> str:
    """A path as an overlay mount option, in which colon and comma separate."""
    for character in ("\\", ":", ","):
        path = path.replace(character, "\\" + character)
    return path


def write_file(path: str, content: bytes) -> None:
    """Write a control file in one write. Raises OSError with its path."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = path
        raise
