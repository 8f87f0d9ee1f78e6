"""What the root of a container can do, as JSON: run inside any container, ``python3 audit_container.py``.

After amicontained and capsh: capabilities, seccomp (by calling), masked and read-only paths, namespaces, devices. Every
call is made so that it changes nothing where it is allowed.
"""

import ctypes
import errno
import json
import os
import stat
import sys
from pathlib import Path

DENIED = {
    "acct": 163, "add_key": 248, "bpf": 321, "clock_settime": 227, "create_module": 174, "delete_module": 176,
    "fanotify_init": 300, "finit_module": 313, "fsmount": 432, "fsopen": 430, "get_kernel_syms": 177,
    "get_mempolicy": 239, "init_module": 175, "io_uring_enter": 426, "io_uring_register": 427, "io_uring_setup": 425,
    "ioperm": 173, "iopl": 172, "kcmp": 312, "kexec_file_load": 320, "kexec_load": 246, "keyctl": 250,
    "lookup_dcookie": 212, "mbind": 237, "migrate_pages": 256, "mount": 165, "mount_setattr": 442, "move_mount": 429,
    "move_pages": 279, "nfsservctl": 180, "open_by_handle_at": 304, "open_tree": 428, "perf_event_open": 298,
    "pidfd_getfd": 438, "pivot_root": 155, "process_madvise": 440, "query_module": 178, "quotactl": 179,
    "quotactl_fd": 443, "reboot": 169, "request_key": 249, "set_mempolicy": 238, "setdomainname": 171,
    "sethostname": 170, "setns": 308, "settimeofday": 164, "swapoff": 168, "swapon": 167, "_sysctl": 156, "sysfs": 139,
    "syslog": 103, "umount2": 166, "unshare": 272, "uselib": 134, "userfaultfd": 323, "ustat": 136, "vhangup": 153,
}  # fmt: skip
"""Calls of x86_64 that Docker's default denies to its default capabilities, by number."""
MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
    *("/sys/devices/virtual/powercap", "/sys/firmware"),
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_NO_POINTER = 1
_CLONE_NEWUSER, _CLONE_NEWNS, _SIGCHLD = 0x10000000, 0x00020000, 17
_AF_VSOCK = 40
_libc = ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: int) -> str:
    """The name of the error that a call of the kernel ends with, or ``allowed``."""
    ctypes.set_errno(0)
    result = _libc.syscall(number, *[ctypes.c_long(one) for one in arguments])
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "allowed"


def calls() -> dict[str, str]:
    """How calls end whose first arguments are bad, so that one that is allowed does nothing."""
    return {name: call(number, -1, _NO_POINTER, -1, -1, -1, -1) for name, number in DENIED.items()}


def new_namespaces() -> dict[str, str]:
    """How making namespaces ends, by unshare in a child."""
    found = {}
    for name, flag in (("user", _CLONE_NEWUSER), ("mnt", _CLONE_NEWNS)):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, call(272, flag).encode())
            os._exit(0)
        os.wait()
        found[name] = os.read(reader, 64).decode()
    found["clone3"] = call(435, _NO_POINTER, 0)
    return found


def visible(path: str) -> str:
    """``absent``, ``hidden`` (empty), or ``visible``."""
    place = Path(path)
    try:
        if place.is_dir():
            return "visible" if any(place.iterdir()) else "hidden"
        return "visible" if place.open("rb").read(1) else "hidden"
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        return f"refused ({errno.errorcode[error.errno or 0]})"


def writable(path: str) -> list[str]:
    """The files at or below a path that can be opened for writing."""
    found = []
    for file in files_of(path):
        try:
            os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
            found.append(file)
        except OSError:
            pass
    return found


def files_of(path: str) -> list[str]:
    """A file itself, or all files below a folder."""
    if not Path(path).is_dir():
        return [path]
    return [f"{folder}/{name}" for folder, _, names in os.walk(path) for name in names]


def proc_writers() -> list[str]:
    """Files right in /proc, of no process, that the kernel lets be written to: a write of nothing tells."""
    found = []
    for path in (str(path) for path in Path("/proc").iterdir() if not path.name.isdigit()):
        try:
            if stat.S_ISREG(os.lstat(path).st_mode):
                descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                os.write(descriptor, b"")
                found.append(path)
        except OSError:
            continue
    return found


def devices() -> list[str]:
    """Device nodes in /dev."""
    nodes = []
    for folder, _, names in os.walk("/dev"):
        nodes += [
            f"{folder}/{name}"
            for name in names
            if stat.S_ISCHR(mode := os.lstat(f"{folder}/{name}").st_mode) or stat.S_ISBLK(mode)
        ]
    return sorted(node for node in nodes if not node.startswith("/dev/pts/"))


def made_device(major: int, minor: int, kind: int) -> str:
    """How opening a device that was made inside ends, on a file system that can be written to."""
    path = f"/audit-{major}-{minor}"
    try:
        os.mknod(path, kind | 0o600, os.makedev(major, minor))
    except OSError as error:
        return f"mknod {errno.errorcode[error.errno or 0]}"
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    else:
        return "opened"
    finally:
        Path(path).unlink()


def audit() -> dict[str, object]:
    """Everything."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "capabilities": {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        "no_new_privs": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
        "calls": calls(),
        "new_namespaces": new_namespaces(),
        "sockets": {"vsock": call(41, _AF_VSOCK, 1, 0)},
        "masked": {path: visible(path) for path in MASKED},
        "read_only": {path: writable(path) for path in READ_ONLY},
        "sys_writable": writable("/sys"),
        "proc_writers": proc_writers(),
        "namespaces": {path.name: str(path.readlink()) for path in Path("/proc/self/ns").iterdir()},
        "devices": devices(),
        "made_devices": {
            "memory": made_device(1, 1, stat.S_IFCHR),
            "kmsg": made_device(1, 11, stat.S_IFCHR),
            "disk": made_device(254, 0, stat.S_IFBLK),
            "loop": made_device(7, 0, stat.S_IFBLK),
            "fuse": made_device(10, 229, stat.S_IFCHR),
        },
        "processes": len([path for path in Path("/proc").iterdir() if path.name.isdigit()]),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(audit()) + "\n")
