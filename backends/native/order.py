"""Which steps make an instance, in which order, and the namespaces it is born into.

Standard library only and few imports, because the zygote imports it. What never differs between instances is done
once, by the zygote, and inherited (``zygote_operations``); the rest is each instance's (``instance_operations``).
"""

from backends.native import syscalls
from backends.native.operations import (
    Bind,
    FillDev,
    JoinCgroup,
    LeaveMounts,
    MakeReadOnly,
    Mask,
    Mount,
    NewCgroupNamespace,
    Operation,
    PivotRoot,
    RaiseLoopback,
    SetAffinity,
    SetHostname,
    escape_option,
)
from backends.native.plan import Plan, Settings
from backends.native.privileges import BoundCapabilities, FilterSystemCalls, KeepCapabilities, SetProcessFlag

_NOTHING = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""What the OCI runtimes' default profile hides; those that this kernel does not have are passed over."""
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What the same profile makes read-only."""
_NATIVE_FLAGS = (
    syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC
)
STYLES = ("native", "bare-metal")


def clone_flags(settings: Settings) -> int:
    """The namespaces that ``clone3`` makes with the process. The cgroup namespace is made later, in the cgroups."""
    if settings.style != "native":
        return syscalls.CLONE_NEWNS
    return _NATIVE_FLAGS & ~syscalls.CLONE_NEWNET if settings.network == "host" else _NATIVE_FLAGS


def zygote_operations(settings: Settings) -> list[Operation]:
    """What the zygote does once, because every instance inherits it and it is not undone."""
    once: list[Operation] = [LeaveMounts()]
    if settings.style == "native":
        once += [
            Mount("tmpfs", settings.empty, syscalls.MS_RDONLY | _NOTHING, "size=4k,nr_inodes=2"),
            BoundCapabilities(settings.capabilities),
            SetProcessFlag("forbid new privileges", syscalls.PR_SET_NO_NEW_PRIVS, 1),
        ]
        if settings.inherited_filter:
            once.append(FilterSystemCalls("all that an instance and its set-up may call", settings.inherited_filter))
    return once


def instance_operations(settings: Settings, plan: Plan) -> list[Operation]:
    """The steps of one instance. Raises KeyError for a style that is none of ``STYLES``."""
    return {"native": native_operations, "bare-metal": bare_metal_operations}[settings.style](settings, plan)


def native_operations(settings: Settings, plan: Plan) -> list[Operation]:
    """A container: namespaces, its own /proc, /sys and /dev, few capabilities."""
    root, dev = settings.root, f"{settings.root}/dev"
    return [
        *_start(plan),
        NewCgroupNamespace(),
        *_root(settings, plan, syscalls.MS_NODEV),
        Mount("proc", f"{root}/proc", _NOTHING),
        *(Mask(root + path, settings.empty) for path in MASKED if path.startswith("/proc/")),
        *(MakeReadOnly(root + path) for path in READ_ONLY),
        Mount("sysfs", f"{root}/sys", _NOTHING | syscalls.MS_RDONLY),
        *(Mask(root + path, settings.empty) for path in MASKED if path.startswith("/sys/")),
        Mount("tmpfs", dev, syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_STRICTATIME, "mode=755,size=64k"),
        FillDev(dev),
        Mount(
            "devpts",
            f"{dev}/pts",
            syscalls.MS_NOSUID | syscalls.MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        Mount("tmpfs", f"{dev}/shm", _NOTHING, "mode=1777,size=64m", source="shm"),
        Mount("mqueue", f"{dev}/mqueue", _NOTHING),
        PivotRoot(root),
        SetHostname(plan.hostname),
        *(() if settings.network == "host" else (RaiseLoopback(),)),
        KeepCapabilities(settings.capabilities),
        *_last_filter(settings),
    ]


def bare_metal_operations(settings: Settings, plan: Plan) -> list[Operation]:
    """The host itself with the image as its root: only mounts are private, /proc, /sys and /dev are the host's."""
    return [
        *_start(plan),
        *_root(settings, plan, 0),
        *(Bind(path, settings.root + path, recursive=True) for path in ("/proc", "/sys", "/dev")),
        PivotRoot(settings.root),
        SetProcessFlag("adopt orphans", syscalls.PR_SET_CHILD_SUBREAPER, 1),
    ]


def _last_filter(settings: Settings) -> list[Operation]:
    if not settings.own_filter:
        return []
    return [FilterSystemCalls("no longer what the set-up alone may call", settings.own_filter)]


def _start(plan: Plan) -> list[Operation]:
    return [
        SetProcessFlag("end with the zygote", syscalls.PR_SET_PDEATHSIG, 9),
        *(JoinCgroup(file) for file in plan.join_files),
        SetAffinity(plan.cpus),
    ]


def _root(settings: Settings, plan: Plan, flags: int) -> list[Operation]:
    layers = "lowerdir={},upperdir={},workdir={}".format(
        *(escape_option(path) for path in (plan.lower, plan.upper, plan.work))
    )
    return [
        Mount("overlay", settings.root, flags, layers),
        Bind(plan.scratch, f"{settings.root}/scratch", flags=flags),
    ]
