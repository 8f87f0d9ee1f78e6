"""What a container may do: the capabilities that Docker grants, and the system calls that it lets containers make.

``compile_filters`` gives the kernel's BPF programs (by libseccomp). The intent followed is Docker Engine's default
since version 25: what is not listed fails with EPERM, io_uring is not listed, AF_VSOCK sockets are refused, ``clone3``
answers ENOSYS so that libraries fall back to ``clone``, whose flags can be looked at, and a call that is newer than any
in the profile answers ENOSYS too, as if the kernel did not have it (runc does that for Docker).

https://docs.docker.com/engine/security/seccomp/ tells what is denied and why.
"""

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tare.bench.errors import UnavailableError
from tare.bench.model import Availability
from tare.bench.packages import remedy_for

CAPABILITIES = {
    name: number
    for number, name in enumerate(
        (
            *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
            *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
            *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
            *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL"),
            *("SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"),
            *("PERFMON", "BPF", "CHECKPOINT_RESTORE"),
        )
    )
}
"""Their numbers by their names without CAP_, as of Linux 5.9."""
_DOCKER_GRANTS = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"),
    *("NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"),
)
DEFAULT_CAPABILITIES = tuple((name, CAPABILITIES[name]) for name in _DOCKER_GRANTS)
"""What Docker grants by default."""

INTENT = "Docker Engine 25 and later"
"""Whose default profile is followed."""

_FILES = """
    access faccessat faccessat2 open openat openat2 creat close close_range read readv pread64 preadv preadv2
    write writev pwrite64 pwritev pwritev2 lseek _llseek sendfile sendfile64 copy_file_range splice tee vmsplice
    dup dup2 dup3 fcntl fcntl64 flock ioctl pipe pipe2 readahead fadvise64 fadvise64_64 arm_fadvise64_64 cachestat
    fallocate truncate truncate64 ftruncate ftruncate64 sync syncfs fsync fdatasync
    sync_file_range sync_file_range2 arm_sync_file_range
    stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64
    chmod fchmod fchmodat fchmodat2 chown chown32 lchown lchown32 fchown fchown32 fchownat umask
    utime utimes utimensat utimensat_time64 futimesat getcwd chdir fchdir getdents getdents64
    mkdir mkdirat rmdir mknod mknodat link linkat symlink symlinkat readlink readlinkat unlink unlinkat
    rename renameat renameat2 name_to_handle_at fanotify_mark
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
    getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat
    listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat
    io_setup io_submit io_getevents io_pgetevents io_pgetevents_time64 io_cancel io_destroy
"""
_WAITING = """
    select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2
    eventfd eventfd2 signalfd signalfd4
    timerfd_create timerfd_settime timerfd_settime64 timerfd_gettime timerfd_gettime64
    futex futex_time64 futex_waitv futex_wait futex_wake futex_requeue get_robust_list set_robust_list
"""
_MEMORY = """
    brk mmap mmap2 munmap mremap remap_file_pages mprotect madvise mincore msync mseal
    mlock mlock2 munlock mlockall munlockall membarrier memfd_create memfd_secret
    pkey_alloc pkey_free pkey_mprotect map_shadow_stack process_mrelease
"""
_PROCESSES = """
    fork vfork execve execveat exit exit_group wait4 waitid waitpid restart_syscall
    kill tkill tgkill pause pidfd_open pidfd_send_signal prctl uname sysinfo ptrace process_vm_readv process_vm_writev
    getpid getppid gettid getpgid getpgrp setpgid getsid setsid set_tid_address set_thread_area get_thread_area
    arch_prctl modify_ldt rseq getcpu getrandom times getrusage
    getrlimit ugetrlimit setrlimit prlimit64 getpriority setpriority ioprio_get ioprio_set
    sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getattr sched_setattr
    sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min
    sched_rr_get_interval sched_rr_get_interval_time64
    sigaltstack signal sigaction sigpending sigprocmask sigreturn sigsuspend
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64
"""
_IDENTITY = """
    getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getgroups getgroups32
    getresuid getresuid32 getresgid getresgid32 setuid setuid32 setgid setgid32 setreuid setreuid32
    setregid setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32
    setgroups setgroups32 capget capset seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
"""
_CLOCKS = """
    time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 adjtimex clock_adjtime
    clock_adjtime64 nanosleep clock_nanosleep clock_nanosleep_time64 alarm getitimer setitimer
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
"""
_COMMUNICATION = """
    socketcall socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt
    send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64
    ipc msgget msgsnd msgrcv msgctl semget semop semtimedop semtimedop_time64 semctl shmget shmat shmdt shmctl
    mq_open mq_unlink mq_notify mq_getsetattr
    mq_timedsend mq_timedsend_time64 mq_timedreceive mq_timedreceive_time64
"""
ALLOWED = tuple(f"{_FILES} {_WAITING} {_MEMORY} {_PROCESSES} {_IDENTITY} {_CLOCKS} {_COMMUNICATION}".split())
"""The calls that every container may make, whatever their arguments."""

BY_CAPABILITY: dict[str, tuple[str, ...]] = {
    "DAC_READ_SEARCH": ("open_by_handle_at",),
    "SYS_ADMIN": (
        *("mount", "umount", "umount2", "mount_setattr", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount"),
        *("fspick", "unshare", "setns", "clone", "clone3", "sethostname", "setdomainname", "quotactl", "quotactl_fd"),
        *("bpf", "perf_event_open", "fanotify_init", "lookup_dcookie", "syslog"),
    ),
    "SYS_BOOT": ("reboot",),
    "SYS_CHROOT": ("chroot",),
    "SYS_MODULE": ("init_module", "finit_module", "delete_module"),
    "SYS_PACCT": ("acct",),
    "SYS_PTRACE": ("kcmp", "pidfd_getfd", "process_madvise"),
    "SYS_RAWIO": ("iopl", "ioperm"),
    "SYS_TIME": ("settimeofday", "stime", "clock_settime", "clock_settime64"),
    "SYS_TTY_CONFIG": ("vhangup",),
    "SYS_NICE": ("get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"),
    "SYSLOG": ("syslog",),
    "BPF": ("bpf",),
    "PERFMON": ("perf_event_open",),
}
"""The calls that come with a capability."""


class Condition(NamedTuple):
    """A call that is allowed if its ``argument`` (from 0), masked with ``mask``, is ``value``, or is not."""

    call: str
    argument: int
    value: int
    mask: int = 0xFFFFFFFFFFFFFFFF
    equal: bool = True


_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_AF_VSOCK = 40
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, a 32-bit machine, a 2.6 version number, both, and the question which it is."""


def allowed_calls(capabilities: tuple[int, ...]) -> tuple[str, ...]:
    """The calls that are allowed with any arguments to holders of ``capabilities`` (numbers)."""
    names = [name for name, number in CAPABILITIES.items() if number in capabilities]
    return tuple(dict.fromkeys((*ALLOWED, *(call for name in names for call in BY_CAPABILITY.get(name, ())))))


def conditions(capabilities: tuple[int, ...]) -> tuple[Condition, ...]:
    """The calls that are allowed with some arguments."""
    found = [Condition("personality", 0, value) for value in _PERSONALITIES]
    found.append(Condition("socket", 0, _AF_VSOCK, equal=False))
    if CAPABILITIES["SYS_ADMIN"] not in capabilities:
        found.append(Condition("clone", 0, 0, mask=_NAMESPACE_FLAGS))
    return tuple(found)


SET_UP = (
    *("clone3", "mount", "umount2", "pivot_root", "open_tree", "move_mount", "unshare", "setns", "sethostname"),
    "keyctl",
)
"""What the zygote and the steps of an instance need beyond what a container may do."""


class Filters(NamedTuple):
    """Two BPF programs that together are the profile, and how many calls it allows on this architecture.

    The large one, which allows ``SET_UP`` too, is installed once, in the zygote, and inherited at no cost; the small
    one, which takes those away again, is each instance's last step but one. The kernel takes the stricter answer.
    Installing the whole profile in each instance takes 0.4 to 0.9 ms.
    """

    inherited: bytes
    own: bytes
    allowed: int


def probe_seccomp(actions: Path = Path("/proc/sys/kernel/seccomp/actions_avail")) -> Availability:
    """Whether filters can be made and installed here."""
    try:
        known = actions.read_text("ascii").split()
    except OSError:
        known = []
    if "errno" not in known:
        reason = "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)"
        return Availability.no(reason, 'set seccomp = "none" in the backend\'s options')
    try:
        _load_library()
    except UnavailableError as error:
        return Availability.no(error.message, error.remedy)
    return Availability(available=True, reason=f"seccomp as {INTENT}")


def compile_filters(capabilities: tuple[int, ...]) -> Filters:
    """The profile for holders of ``capabilities`` (numbers), for this machine. Raises UnavailableError."""
    library = _load_library()
    calls = allowed_calls(capabilities)
    inherited = _new_filter(library, library.ERRNO(errno.EPERM))
    numbers = _allow(library, inherited, dict.fromkeys((*calls, *SET_UP)), capabilities)
    foreign = ARCHITECTURES.get(os.uname().machine, ())[1:]
    if foreign:  # nothing of ours is a program of those, so they need no call to set up with
        strangers = _new_filter(library, library.ERRNO(errno.EPERM), foreign)
        _allow(library, strangers, calls, capabilities)
        inherited.merge(strangers)
    own = _new_filter(library, library.ALLOW)
    own.set_attr(library.Attr.ACT_BADARCH, library.ALLOW)  # those have been judged
    for call in SET_UP:
        if call not in calls:
            _add(library, own, library.ERRNO(errno.ENOSYS if call == "clone3" else errno.EPERM), call)
    granted = {*calls, *(condition.call for condition in conditions(capabilities))}
    return Filters(
        inherited=_refuse_newer(max(numbers), library.system_arch()) + _export(inherited),
        own=_export(own),
        allowed=sum(library.resolve_syscall(library.Arch.NATIVE, call) >= 0 for call in granted),
    )


ARCHITECTURES = {"x86_64": ("X86_64", "X86", "X32"), "aarch64": ("AARCH64", "ARM")}
"""Which programs a machine runs, by libseccomp's names."""


def _load_library() -> ModuleType:
    try:
        import pyseccomp
    except (RuntimeError, OSError, AttributeError) as error:  # what it raises without the library, or with an old one
        message = "the seccomp filter needs libseccomp 2.5 or later, which cannot be loaded here"
        raise UnavailableError(message, remedy=remedy_for(["libseccomp2"])) from error
    module: ModuleType = pyseccomp
    return module


def _new_filter(library: ModuleType, otherwise: int, architectures: tuple[str, ...] = ()) -> Any:
    """An empty filter for ``architectures``, for this machine's own if there are none."""
    made = library.SyscallFilter(otherwise)
    for name in architectures:
        made.add_arch(getattr(library.Arch, name))
    if architectures:
        made.remove_arch(library.Arch.NATIVE)
    by_binary_search = 2
    made.set_attr(library.Attr.CTL_OPTIMIZE, by_binary_search)
    return made


def _allow(library: ModuleType, to: Any, calls: Iterable[str], capabilities: tuple[int, ...]) -> list[int]:
    """Add what is allowed; the numbers of the calls here."""
    numbers = [_add(library, to, library.ALLOW, call) for call in calls]
    if "clone3" not in calls:
        numbers.append(_add(library, to, library.ERRNO(errno.ENOSYS), "clone3"))
    for condition in conditions(capabilities):
        argument = library.Arg(condition.argument, library.MASKED_EQ, condition.mask, condition.value)
        if not condition.equal:
            argument = library.Arg(condition.argument, library.NE, condition.value)
        numbers.append(_add(library, to, library.ALLOW, condition.call, argument))
    return numbers


def _add(library: ModuleType, to: Any, action: int, call: str, *arguments: Any) -> int:
    """Add a rule; the call's number here, negative if this machine does not have it or the library not know it."""
    unknown = -1
    number: int = library.resolve_syscall(library.Arch.NATIVE, call)
    if number != unknown:  # what only the other architectures have has a number below that
        to.add_rule(action, number, *arguments)
    return number


def _export(filled: Any) -> bytes:
    with os.fdopen(os.memfd_create("filter", os.MFD_CLOEXEC), "w+b") as file:
        filled.export_bpf(file)
        file.seek(0)
        return file.read()


def _refuse_newer(newest: int, architecture: int) -> bytes:
    """Instructions to go first: ENOSYS for a call of this ``architecture`` with a number above ``newest``.

    libseccomp compares arguments and not numbers, so these are by hand (linux/bpf_common.h, linux/seccomp.h). On
    x86_64 the numbers of x32 have bit 30 set; those are left to the rules that follow.
    """
    load, jump_if_equal, jump_if_greater, jump_if_set, end = 0x20, 0x15, 0x25, 0x45, 0x06
    number_at, architecture_at, x32_bit = 0, 4, 0x40000000
    instructions = (
        (load, 0, 0, architecture_at),
        (jump_if_equal, 0, 4, architecture),
        (load, 0, 0, number_at),
        (jump_if_set, 2, 0, x32_bit),
        (jump_if_greater, 0, 1, newest),
        (end, 0, 0, 0x00050000 | errno.ENOSYS),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
