"""The kernel's names for what Python has none for: flags, and the system calls that tare itself makes.

What instances are set up with is called by ``zygote.c``.
"""

import ctypes
import os

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
IN_MODIFY = 0x2
IN_CREATE = 0x100

_KCMP = {"x86_64": 312, "aarch64": 272}
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _check(result: int, path: str | None = None) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Attach a file system, or change what is attached. Raises OSError with ``target``."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, os.fsencode(data)), target)


def umount2(target: str, flags: int) -> None:
    """Detach a file system. Raises OSError with ``target``."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def unshare(flags: int) -> None:
    """Leave the namespaces of ``flags`` for new ones. Raises OSError."""
    _check(_libc.unshare(flags))


def setns(namespace: int, kind: int) -> None:
    """Move the calling thread into the namespace open as ``namespace``, of the CLONE_NEW* ``kind``. Raises OSError."""
    _check(_libc.setns(namespace, kind))


def have_same_memory(one: int, other: int) -> bool:
    """Whether two processes have one address space: kcmp(2), KCMP_VM. False for one that is gone."""
    return bool(_libc.syscall(_KCMP[os.uname().machine], one, other, 1, 0, 0) == 0)


def prctl(option: int, argument: int) -> None:
    """Change an attribute of this process. Raises OSError."""
    _check(_libc.prctl(option, argument, 0, 0, 0))


def inotify_init1(flags: int) -> int:
    """A descriptor that is readable when something happens to what is watched. Raises OSError."""
    descriptor: int = _libc.inotify_init1(flags)
    _check(descriptor)
    return descriptor


def inotify_add_watch(descriptor: int, path: str, mask: int) -> None:
    """Have ``descriptor`` tell of the events of ``mask`` at a path. Raises OSError with it."""
    _check(_libc.inotify_add_watch(descriptor, os.fsencode(path), mask), path)
