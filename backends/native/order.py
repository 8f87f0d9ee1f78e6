"""Which steps make an instance, in which order, and the namespaces it is born into.

Standard library only and few imports, because the zygote imports it. What never differs between instances is done
once, by the zygote, and inherited (``zygote_operations``); the rest is each instance's (``instance_operations``).
"""

from tare.backends.native import syscalls
from tare.backends.native.identities import BecomeRoot, MountWithOwners, OffsetBootClock
from tare.backends.native.operations import (
    Bind,
    EnterFolder,
    FillDev,
    JoinCgroup,
    LeaveMounts,
    MakeFolders,
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
from tare.backends.native.plan import Plan, Settings
from tare.backends.native.privileges import (
    BoundCapabilities,
    DropGroups,
    FilterSystemCalls,
    KeepCapabilities,
    NewKeyring,
    SetFileMask,
    SetProcessFlag,
)

_NOTHING = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
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
"""What Docker Engine 28 hides on every machine; those that this kernel does not have are passed over."""
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What the same profile makes read-only."""
STYLES = ("native", "bare-metal")
_NAMESPACES = (
    ("mnt", syscalls.CLONE_NEWNS),
    ("pid", syscalls.CLONE_NEWPID),
    ("net", syscalls.CLONE_NEWNET),
    ("uts", syscalls.CLONE_NEWUTS),
    ("ipc", syscalls.CLONE_NEWIPC),
    ("user", syscalls.CLONE_NEWUSER),
    ("time", syscalls.CLONE_NEWTIME),
)


def namespaces(settings: Settings) -> tuple[str, ...]:
    """The namespaces that ``clone3`` makes with the process, by their names in /proc/self/ns.

    The cgroup namespace is made later, in the cgroups.
    """
    if settings.style != "native":
        return ("mnt",)
    absent = {
        "net": settings.network == "host",
        "user": not settings.uid_map,
        "time": settings.boot_offset_s is None,
    }
    return tuple(name for name, _ in _NAMESPACES if not absent.get(name))


def clone_flags(settings: Settings) -> int:
    """The flags of ``namespaces``."""
    wanted = namespaces(settings)
    return sum(flag for name, flag in _NAMESPACES if name in wanted)


def zygote_operations(settings: Settings) -> list[Operation]:
    """What the zygote does once, because every instance inherits it and it is not undone."""
    once: list[Operation] = [LeaveMounts(), SetFileMask(0o022)]
    if settings.folder:
        once.append(EnterFolder(settings.folder))
    if settings.style == "native":
        if settings.identities == "host":
            once.append(DropGroups())
        once.append(Mount("tmpfs", settings.empty, syscalls.MS_RDONLY | _NOTHING, "size=4k,nr_inodes=2"))
        if settings.image:
            once.append(MountWithOwners(settings.image, settings.lower, settings.uid_map, settings.gid_map))
        if settings.boot_offset_s is not None:
            once.append(OffsetBootClock(settings.boot_offset_s))
        if not settings.uid_map:  # a new user namespace has all of them again
            once.append(BoundCapabilities(settings.capabilities))
        once.append(SetProcessFlag("forbid new privileges", syscalls.PR_SET_NO_NEW_PRIVS, 1))
        if settings.inherited_filter:
            once.append(FilterSystemCalls("all that an instance and its set-up may call", settings.inherited_filter))
    return once


def instance_operations(settings: Settings, plan: Plan, same: list[Operation] | None = None) -> list[Operation]:
    """The steps of one instance.

    ``same`` are those of ``same_operations``, for who has made them already: making them here would cost a new
    instance 0.5 ms, most of it copies of memory that it shares with the zygote.
    """
    begin, root = _begin(settings, plan), _root(settings, plan)
    # Mounting an overlay makes a folder on the disk. A page of the disk's metadata that is first touched in a cgroup
    # is charged to it, and keeps it in the kernel, with 100 kB, for as long as the page is cached (decision 0069).
    on_disk = not settings.memory and not settings.uid_map
    first = [*root, *begin] if on_disk else [*begin, *root]
    return [*first, *(same_operations(settings) if same is None else same)]


def same_operations(settings: Settings) -> list[Operation]:
    """The last steps, the same for all instances: /proc, /sys and /dev, the new root, and what is given up."""
    return _container(settings) if settings.style == "native" else _bare_metal(settings)


def rehearsal() -> list[Operation]:
    """Steps of each kind that stands in an instance's list more than once, on paths that never exist: all fail."""
    nowhere = "/proc/0/nowhere"
    return [
        JoinCgroup(nowhere),
        Mount("tmpfs", nowhere),
        Bind(nowhere, nowhere),
        Mask(nowhere, nowhere),
        MakeReadOnly(nowhere),
        FillDev(nowhere),
    ]


def _container(settings: Settings) -> list[Operation]:
    root, dev = settings.root, f"{settings.root}/dev"
    return [
        Mount("proc", f"{root}/proc", _NOTHING),
        *(Mask(root + path, settings.empty) for path in MASKED if path.startswith("/proc/")),
        *(MakeReadOnly(root + path) for path in READ_ONLY),
        Mount("sysfs", f"{root}/sys", _NOTHING | syscalls.MS_RDONLY),
        *(Mask(root + path, settings.empty) for path in (*MASKED, *settings.also_masked) if path.startswith("/sys/")),
        Mount("tmpfs", dev, syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_STRICTATIME, "mode=755,size=64m"),
        FillDev(dev),
        Mount(
            "devpts",
            f"{dev}/pts",
            syscalls.MS_NOSUID | syscalls.MS_NOEXEC,
            # Without an identity for the group tty, terminals are their owner's alone.
            f"newinstance,ptmxmode=0666,mode=0620{'' if settings.identities == 'one' else ',gid=5'}",
        ),
        Mount("tmpfs", f"{dev}/shm", _NOTHING, "mode=1777,size=64m", source="shm"),
        Mount("mqueue", f"{dev}/mqueue", _NOTHING),
        *(_for_system(root) if settings.system else ()),
        PivotRoot(root),
        *(() if settings.network == "host" else (RaiseLoopback(),)),
        NewKeyring(),
        *((BoundCapabilities(settings.capabilities),) if settings.uid_map else ()),
        KeepCapabilities(settings.capabilities),
        *_last_filter(settings),
    ]


def _for_system(root: str) -> list[Operation]:
    """What systemd, which may mount nothing in a container, has to find mounted; its own cgroup is among it."""
    run = f"{root}/run"
    return [
        Mount("cgroup2", f"{root}/sys/fs/cgroup", _NOTHING),
        Mount("tmpfs", run, syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755,size=64m"),
        MakeFolders((f"{run}/lock",)),
        Mount("tmpfs", f"{run}/lock", _NOTHING, "mode=1777,size=5m"),
    ]


def _bare_metal(settings: Settings) -> list[Operation]:
    """The host itself with the image as its root: only mounts are private, /proc, /sys and /dev are the host's."""
    return [
        *(Bind(path, settings.root + path, recursive=True) for path in ("/proc", "/sys", "/dev")),
        PivotRoot(settings.root),
        SetProcessFlag("adopt orphans", syscalls.PR_SET_CHILD_SUBREAPER, 1),
    ]


def _last_filter(settings: Settings) -> list[Operation]:
    if not settings.own_filter:
        return []
    return [FilterSystemCalls("no longer what the set-up alone may call", settings.own_filter)]


def _begin(settings: Settings, plan: Plan) -> list[Operation]:
    end_with_zygote = SetProcessFlag("end with the zygote", syscalls.PR_SET_PDEATHSIG, 9)
    steps: list[Operation] = [
        *([] if settings.uid_map else [end_with_zygote]),
        *(JoinCgroup(file) for file in plan.join_files),
        SetAffinity(plan.cpus),
    ]
    if settings.uid_map:  # no sooner: the files of the cgroups are the host's root's
        steps += [BecomeRoot(), end_with_zygote]
    if settings.style == "native":
        steps += [NewCgroupNamespace(), SetHostname(plan.hostname)]
    return steps


def _root(settings: Settings, plan: Plan) -> list[Operation]:
    steps: list[Operation] = []
    if settings.memory:
        made = ("upper", "work", "upper/scratch", *(f"upper/{name}" for name in settings.mount_points))
        size = f"mode=755,size={settings.memory_bytes}"
        steps = [
            Mount("tmpfs", settings.memory, syscalls.MS_NODEV, size, source="upper"),
            MakeFolders(tuple(f"{settings.memory}/{name}" for name in made)),
        ]
    layers = "lowerdir={},upperdir={},workdir={}".format(
        *(escape_option(path) for path in (plan.lower, plan.upper, plan.work))
    )
    flags = syscalls.MS_NODEV if settings.style == "native" else 0
    mapped = bool(settings.uid_map) or settings.identities != "host"
    own = ",userxattr" if mapped else ""  # a user namespace may not write trusted.* attributes
    return [
        *steps,
        Mount("overlay", settings.root, flags, layers + own),
        Bind(plan.scratch, f"{settings.root}/scratch", flags=flags, keep=mapped),
    ]
