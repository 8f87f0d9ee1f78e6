"""The steps of setting an instance up, as data: each says in words what it does, and what is called for it.

``zygote.c`` carries them out; the numbers of the calls are compiled into it from here. In which order they go is in
``setup.py``. Strings of a call begin with the path that an error names.
"""

import errno
import os
import resource
import stat
import struct
from collections.abc import Sequence
from enum import IntEnum, auto
from pathlib import Path

import msgspec

from tare.backends.native import syscalls
from tare.backends.native.identities import IdMap, describe_map, map_lines
from tare.backends.native.seccomp import CAPABILITIES

NOTHING = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
"""For file systems that hold neither programs nor devices."""
_ANY_ERROR = 0xFFFFFFFF
_FIXED = struct.Struct("=II3Q")
_LENGTH = struct.Struct("=I")
_MAX_STRINGS = 4
_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
)
_NAMES = {number: name for name, number in CAPABILITIES.items()}


class Kind(IntEnum):
    """What ``zygote.c`` can do."""

    MOUNT = auto()
    BIND = auto()
    MASK = auto()
    READ_ONLY = auto()
    REQUIRE_FOLDER = auto()
    MOUNT_WITH_OWNERS = auto()
    PIVOT = auto()
    MKDIR = auto()
    MKNOD = auto()
    DEVICE = auto()
    SYMLINK = auto()
    WRITE = auto()
    CHDIR = auto()
    UMASK = auto()
    STREAMS = auto()
    UNSHARE = auto()
    HOSTNAME = auto()
    LOOPBACK = auto()
    KEYRING = auto()
    AFFINITY = auto()
    LIMIT = auto()
    PRCTL = auto()
    GROUPS = auto()
    IDENTITY = auto()
    BOUND_CAPABILITIES = auto()
    KEEP_CAPABILITIES = auto()
    FILTER = auto()
    SYSTEM = auto()
    UNMOUNT = auto()
    ENTER = auto()


class Call(msgspec.Struct, frozen=True):
    """One thing to do. ``forgiven`` is an errno that is no failure."""

    kind: Kind
    strings: tuple[str | bytes, ...] = ()
    numbers: tuple[int, ...] = ()
    forgiven: int = 0


class Step(msgspec.Struct, frozen=True):
    """Calls with a name for all of them, as it stands in an error and in the printed list."""

    text: str
    calls: tuple[Call, ...]


GO_FIRST = Step(
    "be the first that the host's OOM killer takes",
    (Call(Kind.WRITE, ("/proc/self/oom_score_adj", "1000"), forgiven=_ANY_ERROR),),
)
"""When the host runs out of memory, it is to take an instance, never tare or anybody else's process."""
LEAVE_MOUNTS = Step(
    "unshare the mount namespace, its mounts following the host's",
    (
        Call(Kind.UNSHARE, (), (syscalls.CLONE_NEWNS,)),
        Call(Kind.MOUNT, ("/", "none"), (syscalls.MS_REC | syscalls.MS_SLAVE,)),
    ),
)
REPLACE_STREAMS = Step("open /dev/null as standard streams", (Call(Kind.STREAMS, ("/dev/null",)),))
"""The zygote's own are files of the host's."""
RAISE_LOOPBACK = Step("bring lo up", (Call(Kind.LOOPBACK),))
"""In the new network namespace; it has its addresses from the kernel."""
BECOME_ROOT = Step("become root of the user namespace", (Call(Kind.IDENTITY),))
"""After having been what root is outside."""
DROP_GROUPS = Step("leave all supplementary groups", (Call(Kind.GROUPS),))
"""Those of whoever started the harness."""
NEW_KEYRING = Step("join a new session keyring", (Call(Kind.KEYRING, forgiven=errno.ENOSYS),))
"""So that the harness's keys are not the container's."""
CLOSE_TO_INSPECTION = Step(
    "be neither traced nor inspected from inside", (Call(Kind.PRCTL, (), (syscalls.PR_SET_DUMPABLE, 0)),)
)
"""Nobody inside traces this process or opens /proc/PID/exe, fd, mem, root: that would take CAP_SYS_PTRACE."""


def encode(steps: Sequence[Step]) -> bytes:
    """The list as ``zygote.c`` reads it."""
    parts = [_LENGTH.pack(len(steps))]
    for step in steps:
        text = os.fsencode(step.text)
        parts += [_LENGTH.pack(len(text)), text, _LENGTH.pack(len(step.calls))]
        for call in step.calls:
            numbers = (*call.numbers, 0, 0, 0)[:3]
            parts.append(_FIXED.pack(call.kind, call.forgiven, *numbers))
            for string in (*call.strings, "", "", "", "")[:_MAX_STRINGS]:
                content = string if isinstance(string, bytes) else os.fsencode(string)
                parts += [_LENGTH.pack(len(content)), content, b"\0"]
    return b"".join(parts)


def join_cgroup(file: str) -> Step:
    """Move this process into a cgroup, by writing 0 into the file that does it."""
    return Step(f"join the cgroup by {file}", (Call(Kind.WRITE, (file, "0")),))


def unshare(name: str, flag: int) -> Step:
    """Leave a namespace for a new one."""
    return Step(f"unshare the {name} namespace", (Call(Kind.UNSHARE, (), (flag,)),))


def pin(cpus: Sequence[int]) -> Step:
    """Set the affinity, next to the cpuset: the zygote's own is inherited and outweighs it."""
    mask = sum(1 << cpu for cpu in cpus)
    whole = mask.to_bytes((max(cpus) // 64 + 1) * 8, "little")
    return Step(f"pin to CPUs {','.join(map(str, cpus))}", (Call(Kind.AFFINITY, ("", whole)),))


def become_identity(number: int) -> Step:
    """Be the user and group ``number`` and no other, without any capability."""
    return Step(f"become user and group {number}", (Call(Kind.IDENTITY, (), (number,)),))


def limit_files(most: int) -> Step:
    """RLIMIT_NOFILE's soft limit."""
    return Step(f"allow {most} open files", (Call(Kind.LIMIT, (), (resource.RLIMIT_NOFILE, most)),))


def mount(kind: str, target: str, flags: int = 0, data: str = "", source: str = "") -> Step:
    """Attach a file system."""
    text = f"mount {kind} on {target}" + (f" ({data})" if data else "")
    return Step(text, (Call(Kind.MOUNT, (target, source or kind, kind, data), (flags,)),))


def unmount(path: str) -> Step:
    """Detach what is mounted last at a path. Nothing mounted there: nothing to do."""
    return Step(f"unmount {path}", (Call(Kind.UNMOUNT, (path,), (syscalls.MNT_DETACH,), errno.EINVAL),))


def enter_mounts(namespace: str) -> Step:
    """setns(2) into the mount namespace that ``namespace`` (``/proc/PID/ns/mnt``) is."""
    return Step(f"enter the mount namespace {namespace}", (Call(Kind.ENTER, (namespace,), (syscalls.CLONE_NEWNS,)),))


def require_folder(path: str) -> Step:
    """Refuse a symbolic link where something is to be mounted: it would be mounted where the link leads."""
    return Step(f"find {path} to be a folder and no link", (Call(Kind.REQUIRE_FOLDER, (path,)),))


def bind(source: str, target: str, *, recursive: bool = False, flags: int = 0, keep: bool = False) -> Step:
    """Make a tree of the host appear at a place of the new root, with what is mounted below it if ``recursive``.

    ``flags`` replace the mount's own; with ``keep`` they are added, as a user namespace may take none away.
    """
    below = syscalls.MS_REC if recursive else 0
    text = f"bind {source}{' and below' if recursive else ''} to {target}"
    return Step(text, (Call(Kind.BIND, (target, source), (below, flags, keep)),))


def mask(path: str, null: str, empty: str) -> Step:
    """Hide a file behind the device ``null``, a folder behind the read-only ``empty``. Absent: nothing to hide."""
    return Step(f"mask {path}", (Call(Kind.MASK, (path, null, empty)),))


def make_read_only(path: str) -> Step:
    """Bind a path over itself, read-only. Absent: nothing to protect."""
    return Step(f"make {path} read-only", (Call(Kind.READ_ONLY, (path,)),))


def mount_with_owners(source: str, target: str, uid_map: IdMap, gid_map: IdMap) -> Step:
    """Attach a copy of a tree whose owners are mapped, so that the host's root's files are the container's root's.

    An idmapped mount (Linux 5.12, as a layer of an overlay 5.19): nothing on disk is changed.
    """
    call = Call(Kind.MOUNT_WITH_OWNERS, (target, source, map_lines(uid_map), map_lines(gid_map)))
    return Step(f"mount {source} on {target} with owners {describe_map(uid_map)}", (call,))


def make_devices(dev: str) -> Step:
    """Device nodes of the instance's own, each on a mount of its own that lets devices be opened.

    ``dev`` itself is nodev from the next step on, as is all else that the container can write to: CAP_MKNOD, which
    Docker grants, opens no other device, without a devices controller.
    """
    made = [
        Call(Kind.DEVICE, (f"{dev}/{name}",), (stat.S_IFCHR | 0o666, os.makedev(major, minor)))
        for name, major, minor in _DEVICES
    ]
    return Step(f"make {', '.join(name for name, *_ in _DEVICES)} in {dev}", tuple(made))


def limit_file_size(most: int) -> Step:
    """RLIMIT_FSIZE for good, and no core files."""
    limits = ((resource.RLIMIT_FSIZE, most), (resource.RLIMIT_CORE, 0))
    return Step(f"write no file beyond {most} bytes", tuple(Call(Kind.LIMIT, (), (*limit, True)) for limit in limits))


def show_file(path: str, source: str, flags: int = 0) -> Step:
    """Make a file of the host's appear at a path that is not there yet."""
    made = Call(Kind.MKNOD, (path,), (stat.S_IFREG | 0o600,))
    return Step(f"show {source} at {path}", (made, Call(Kind.BIND, (path, source), (0, flags))))


def bind_devices(dev: str) -> Step:
    """The host's devices, for a user namespace, which may make none: their owner has no identity there."""
    calls: list[Call] = []
    for name, *_ in _DEVICES:
        calls.append(Call(Kind.MKNOD, (f"{dev}/{name}",), (stat.S_IFREG | 0o600,)))
        calls.append(Call(Kind.BIND, (f"{dev}/{name}", f"/dev/{name}")))
    return Step(f"bind {', '.join(name for name, *_ in _DEVICES)} in {dev}", tuple(calls))


def forbid_devices(dev: str) -> Step:
    """No device can be opened on the mount at ``dev`` any more; those that are mounts of their own stay as they are."""
    flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_STRICTATIME
    return Step(f"let no other device of {dev} be opened", (Call(Kind.MOUNT, (dev,), (flags,)),))


def fill_dev(dev: str) -> Step:
    """The links and mount points of a container's /dev."""
    links = [Call(Kind.SYMLINK, (f"{dev}/{name}", target)) for name, target in _LINKS]
    folders = [Call(Kind.MKDIR, (f"{dev}/{name}",), (0o755,)) for name in ("pts", "shm", "mqueue")]
    return Step(f"make the links in {dev}", (*links, *folders))


def enter(path: str) -> Step:
    """chdir(2), so that what follows is found from there, whoever may search the folders above."""
    return Step(f"enter {path}", (Call(Kind.CHDIR, (path,)),))


def make_folders(*paths: str) -> Step:
    """mkdir(2) for each, parents first."""
    return Step(f"make {', '.join(paths)}", tuple(Call(Kind.MKDIR, (path,), (0o755,)) for path in paths))


def pivot_root(new_root: str) -> Step:
    """Make the new root the root, and let go of the old one."""
    return Step(f"pivot_root to {new_root}", (Call(Kind.PIVOT, (new_root,)),))


def set_hostname(name: str) -> Step:
    """The name in the new uts namespace."""
    return Step(f"set the hostname to {name}", (Call(Kind.HOSTNAME, ("", name)),))


def offset_boot_clock(offset_s: int) -> Step:
    """Make the time namespace whose offsets those of the instances start from, and set them.

    The kernel lets only a process's children enter it, so the zygote's own clock stays.
    """
    made = Call(Kind.UNSHARE, (), (syscalls.CLONE_NEWTIME,))
    set_to = Call(Kind.WRITE, ("/proc/self/timens_offsets", f"boottime {offset_s} 0"))
    return Step(f"prepare a time namespace with the boot clock {offset_s:+d} s", (made, set_to))


def bound_capabilities(keep: Sequence[int]) -> Step:
    """Keep programs from ever getting a capability that is not listed. The process itself keeps what it has."""
    text = f"bound the capabilities of programs to {_name(keep)}"
    return Step(text, (Call(Kind.BOUND_CAPABILITIES, (), (_bits(keep),)),))


def keep_capabilities(keep: Sequence[int]) -> Step:
    """Give up every capability that is not listed, for good."""
    return Step(f"keep only the capabilities {_name(keep)}", (Call(Kind.KEEP_CAPABILITIES, (), (_bits(keep),)),))


def set_flag(meaning: str, option: int, argument: int) -> Step:
    """prctl(2) with a name that says what for."""
    return Step(meaning, (Call(Kind.PRCTL, (), (option, argument)),))


def set_file_mask(bits: int) -> Step:
    """umask(2): what the harness was started with is its own affair."""
    return Step(f"set the umask to {bits:03o}", (Call(Kind.UMASK, (), (bits,)),))


def filter_calls(meaning: str, program: bytes) -> Step:
    """Install a seccomp program, which cannot be taken off again. ``meaning`` says which part of the profile it is."""
    text = f"filter system calls: {meaning} ({len(program) // 8} instructions)"
    return Step(text, (Call(Kind.FILTER, ("", program)),))


def make_units(folder: str, files: dict[str, str], links: dict[str, str]) -> Step:
    """Folders, files and links, each relative to ``folder``, parents made where they are missing."""
    parents = sorted({str(parent) for name in (*files, *links) for parent in Path(name).parents} - {"."})
    made = [Call(Kind.MKDIR, (f"{folder}/{name}",), (0o755,), errno.EEXIST) for name in parents]
    written = [Call(Kind.WRITE, (f"{folder}/{name}", text), (os.O_CREAT,)) for name, text in files.items()]
    linked = [Call(Kind.SYMLINK, (f"{folder}/{name}", target)) for name, target in links.items()]
    return Step(f"make systemd's units in {folder}", (*made, *written, *linked))


def become_system(program: str, fifo: str, argv: Sequence[str], env: Sequence[str]) -> Step:
    """Become the distribution's init; another process, the harness's, goes on once ``fifo`` is written to."""
    made = Call(Kind.MKNOD, (fifo,), (stat.S_IFIFO | 0o600,))
    return Step(
        f"become the distribution's init, {program}, and wait for it",
        (made, Call(Kind.SYSTEM, (program, fifo, "\0".join(argv), "\0".join(env)))),
    )


def escape_option(path: str) -> str:
    """A path as an overlay mount option, in which colon and comma separate."""
    for character in ("\\", ":", ","):
        path = path.replace(character, "\\" + character)
    return path


def _bits(capabilities: Sequence[int]) -> int:
    return sum(1 << number for number in capabilities)


def _name(capabilities: Sequence[int]) -> str:
    return ", ".join(_NAMES.get(number, str(number)) for number in capabilities) or "(none)"
