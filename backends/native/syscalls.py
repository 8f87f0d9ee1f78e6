"""The system calls that Python has no name for, under the kernel's names. No policy: that is in operations.py.

Standard library only, because the zygote imports it. Everything goes through ``PyDLL``: the interpreter lock
stays held, so that a raw ``clone3`` returns in the child with a thread state that is still valid.
"""

import ctypes
import os

CLONE_INTO_CGROUP = 0x200000000
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MS_STRICTATIME = 0x1000000
MNT_DETACH = 0x2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2

MOUNT_ATTR_IDMAP = 0x00100000
OPEN_TREE_CLONE = 0x1
AT_RECURSIVE = 0x8000
_AT_EMPTY_PATH = 0x1000
_AT_FDCWD = -100
_MOVE_MOUNT_F_EMPTY_PATH = 0x4

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}.get(os.uname().machine, -1)
_SYS_CLONE3 = 435
"""The same number on every architecture, as for all system calls since 5.1."""
_SIGCHLD = 17
_CAPABILITY_VERSION_3 = 0x20080522


class _CloneArgs(ctypes.Structure):
    """``struct clone_args`` as of Linux 5.7 (CLONE_ARGS_SIZE_VER2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("pidfd", ctypes.c_uint64),
        ("child_tid", ctypes.c_uint64),
        ("parent_tid", ctypes.c_uint64),
        ("exit_signal", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("stack_size", ctypes.c_uint64),
        ("tls", ctypes.c_uint64),
        ("set_tid", ctypes.c_uint64),
        ("set_tid_size", ctypes.c_uint64),
        ("cgroup", ctypes.c_uint64),
    )


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_CapSets = _CapData * 2


class _MountAttributes(ctypes.Structure):
    """``struct mount_attr`` (Linux 5.12)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _FilterProgram(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


_INSTRUCTION_BYTES = 8
"""``struct sock_filter``."""

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.argtypes = (ctypes.c_long, ctypes.POINTER(_CloneArgs), ctypes.c_size_t)
_libc.syscall.restype = ctypes.c_long
_syscall = ctypes.PyDLL(None, use_errno=True).syscall  # of its own, for arguments of other types
_syscall.restype = ctypes.c_long
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.pivot_root.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.capset.argtypes = (ctypes.POINTER(_CapHeader), ctypes.POINTER(_CapData))
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _function in (_before_fork, _after_fork_parent, _after_fork_child):
    _function.argtypes = ()
    _function.restype = None


def _check(result: int, path: str | None = None) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def clone3(flags: int, cgroup: int | None = None) -> int:
    """Fork into new namespaces, and into the v2 cgroup open as ``cgroup``: 0 in the child, its pid in the caller.

    For a process with a single thread. Raises OSError.
    """
    arguments = _CloneArgs(flags=flags, exit_signal=_SIGCHLD)
    if cgroup is not None:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    _before_fork()
    pid: int = _libc.syscall(_SYS_CLONE3, arguments, ctypes.sizeof(arguments))
    if pid == 0:
        _after_fork_child()
        return 0
    _after_fork_parent()
    _check(pid)
    return pid


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Attach a file system, or change what is attached. Raises OSError with ``target``."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, os.fsencode(data)), target)


def try_mount(source: bytes, target: bytes, flags: int) -> int:
    """``mount`` without a kind, for what may fail as usual: 0 or the errno. An exception costs more than the call."""
    return 0 if _libc.mount(source, target, b"", flags, b"") == 0 else ctypes.get_errno()


def umount2(target: str, flags: int) -> None:
    """Detach a file system. Raises OSError with ``target``."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def open_tree(path: str, flags: int) -> int:
    """A descriptor of the mount at ``path``, with OPEN_TREE_CLONE of a copy that is not attached (Linux 5.2).

    Raises OSError with ``path``.
    """
    number = ctypes.c_long(_SYS_OPEN_TREE)
    found: int = _syscall(number, _AT_FDCWD, ctypes.c_char_p(os.fsencode(path)), ctypes.c_uint(flags | os.O_CLOEXEC))
    _check(found, path)
    return found


def mount_setattr(tree: int, flags: int, attributes: int, user_namespace: int) -> None:
    """Set attributes of the mount ``tree``, which MOUNT_ATTR_IDMAP needs ``user_namespace`` for. Raises OSError."""
    wanted = _MountAttributes(attr_set=attributes, userns_fd=user_namespace)
    number, size = ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_size_t(ctypes.sizeof(_MountAttributes))
    _check(
        _syscall(number, tree, ctypes.c_char_p(b""), ctypes.c_uint(flags | _AT_EMPTY_PATH), ctypes.byref(wanted), size)
    )


def move_mount(tree: int, target: str) -> None:
    """Attach the mount ``tree`` at ``target``. Raises OSError with ``target``."""
    number, to = ctypes.c_long(_SYS_MOVE_MOUNT), ctypes.c_char_p(os.fsencode(target))
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    _check(_syscall(number, tree, ctypes.c_char_p(b""), _AT_FDCWD, to, flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Exchange the root file system. Raises OSError with ``new_root``."""
    _check(_libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), new_root)


def unshare(flags: int) -> None:
    """Leave the namespaces of ``flags`` for new ones. Raises OSError."""
    _check(_libc.unshare(flags))


def setns(namespace: int, kind: int) -> None:
    """Move the calling thread into the namespace open as ``namespace``, of the CLONE_NEW* ``kind``. Raises OSError."""
    _check(_libc.setns(namespace, kind))


def prctl(option: int, argument: int, second: int = 0) -> None:
    """Change an attribute of this process. Raises OSError."""
    _check(_libc.prctl(option, argument, second, 0, 0))


class CapabilitySets:
    """What ``capset`` takes, made beforehand: making it costs a new process more than the call does.

    ``capabilities`` is the bit set that becomes effective and permitted; inheritable are cleared.
    """

    def __init__(self, capabilities: int) -> None:
        low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
        self._header = ctypes.pointer(_CapHeader(_CAPABILITY_VERSION_3, 0))
        self._data = ctypes.cast(_CapSets(_CapData(low, low, 0), _CapData(high, high, 0)), ctypes.POINTER(_CapData))

    def set(self) -> None:
        """Make them the calling thread's. Raises OSError."""
        _check(_libc.capset(self._header, self._data))


def join_session_keyring() -> None:
    """Leave the session keyring for a new, nameless one. Raises OSError: ENOSYS where the kernel has no keyrings."""
    keyctl_join_session_keyring = 1
    _check(_syscall(ctypes.c_long(_SYS_KEYCTL), keyctl_join_session_keyring, ctypes.c_char_p(None)))


class SystemCallFilter:
    """A seccomp program (whole ``struct sock_filter`` values), made ready beforehand likewise."""

    def __init__(self, program: bytes) -> None:
        self._described = _FilterProgram(len(program) // _INSTRUCTION_BYTES, program)
        self._address = ctypes.addressof(self._described)

    def install(self) -> None:
        """Add it to this thread, for good. Raises OSError. Needs no_new_privs or CAP_SYS_ADMIN."""
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self._address)
