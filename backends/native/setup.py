"""Which steps set an instance up, in which order, and the namespaces it is born into.

What never differs between instances is done once, by the zygote, and inherited (``zygote_steps``); the rest is each
instance's: first what differs (``first_steps``), then what is the same for all and sent to the zygote once
(``last_steps``).
"""

import os
from pathlib import Path

import msgspec

from tare.backends.cgroups.layout import Layout, Version
from tare.backends.cgroups.lifecycle import PREFIX, Cgroup, ProcessTree
from tare.backends.cgroups.limits import Limits
from tare.backends.distribution import MASKED_UNITS, TARGET
from tare.backends.layers import make_layers
from tare.backends.native import steps, syscalls
from tare.backends.native.identities import IdMap, outside_id
from tare.backends.native.steps import NOTHING, Step
from tare.bench.errors import BackendError
from tare.bench.model import SCRATCH, InstanceSpec

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
MOUNT_POINTS = ("proc", "sys", "dev")
"""What an image must have as folders, or not at all; the folder for scratch hides whatever the image has."""
_NAMESPACES = (
    ("mnt", syscalls.CLONE_NEWNS),
    ("pid", syscalls.CLONE_NEWPID),
    ("net", syscalls.CLONE_NEWNET),
    ("uts", syscalls.CLONE_NEWUTS),
    ("ipc", syscalls.CLONE_NEWIPC),
    ("user", syscalls.CLONE_NEWUSER),
    ("time", syscalls.CLONE_NEWTIME),
)
_HOSTNAME_MAX = 64
_MODE = 0o755
_LAST_FILTER = "no longer what the set-up alone may call"
_SIGKILL = 9
_READY_UNIT = f"""\
[Unit]
Description=Tell tare that {TARGET} is reached
DefaultDependencies=no
After={TARGET}
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo >/run/tare/reached'
"""
_SYSTEM = "/sbin/init"
_SYSTEM_ENVIRONMENT = ("container=tare", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What all instances of a backend have in common; paths are absolute without a user namespace.

    ``style`` is one of ``STYLES``. ``root`` is the folder that the overlay is mounted on; mount namespaces are
    private, so all instances share it. ``empty`` is a folder that stays empty, ``memory`` one to mount the tmpfs on
    that holds the upper layer, of ``memory_bytes`` (empty: the upper layer is on disk, in the instance's folder).
    ``capabilities`` are the numbers of those that are kept. ``inherited_filter`` and ``own_filter`` are seccomp
    programs, empty for none: see ``seccomp.Filters``. ``uid_map`` and ``gid_map`` are empty for no user namespace.
    With one, the zygote enters ``folder``, and all paths but ``image`` are relative to it, so that nothing above it
    needs to be open to the identities outside. ``image`` is mounted at ``lower`` with its owners mapped.
    ``boot_offset_s`` is added to the boot clock, None for no time namespace; the monotonic clock, by which commands
    are timed, stays the host's.
    ``mount_points`` are those that the image lacks. ``identities`` are those of the user namespace that the zygote
    itself is in (``identities.Identities``). ``also_masked`` are paths to hide as well as ``MASKED``. ``system`` has
    systemd boot the image's distribution before an instance is ready. ``above`` are empty layers above the image.
    """

    style: str
    root: str
    empty: str
    memory: str = ""
    memory_bytes: int = 0
    mount_points: tuple[str, ...] = ()
    network: str = "none"
    capabilities: tuple[int, ...] = ()
    inherited_filter: bytes = b""
    own_filter: bytes = b""
    uid_map: IdMap = ()
    gid_map: IdMap = ()
    folder: str = ""
    image: str = ""
    lower: str = ""
    boot_offset_s: int | None = None
    identities: str = "host"
    also_masked: tuple[str, ...] = ()
    system: bool = False
    above: tuple[str, ...] = ()

    @property
    def in_user_namespace(self) -> bool:
        """Whether what sets instances up is not the host's root."""
        return bool(self.uid_map) or self.identities != "host"


class InstanceSetup(msgspec.Struct, frozen=True):
    """What is one instance's own. Its root is an overlay of ``lower``, ``upper`` and ``work``; paths as in the Setup.

    ``join_files`` are written by the instance itself. ``kill_file`` is its ``cgroup.kill`` or empty.
    """

    hostname: str
    lower: str
    upper: str
    work: str
    scratch: str
    cpus: tuple[int, ...]
    join_files: tuple[str, ...]
    kill_file: str


def describe_instance(setup: Setup, spec: InstanceSpec, folder: Path, cgroup: Cgroup) -> InstanceSetup:
    """Where the parts of the instance of ``spec`` are, whose folder is ``folder``."""
    # Without a pid namespace of its own, an instance that lost its harness is killed by its cgroup.
    kill = cgroup.clone_into is not None and setup.style != "native"
    own = folder.name if setup.folder else str(folder)
    layers = setup.memory or own
    return InstanceSetup(
        hostname=spec.identifier[:_HOSTNAME_MAX],
        lower=setup.lower or str(spec.image.rootfs),
        upper=f"{layers}/upper",
        work=f"{layers}/work",
        scratch=f"{own}/scratch",
        cpus=spec.envelope.cpus,
        join_files=tuple(map(str, cgroup.join_files_after_clone)),
        kill_file=f"{cgroup.clone_into}/cgroup.kill" if kill else "",
    )


def make_shared_folders(folder: Path, setup: Setup) -> None:
    """The folders that all instances mount on. Raises OSError."""
    for name in ("root", "empty", *(("memory",) if setup.memory else ()), *(("lower",) if setup.lower else ())):
        (folder / name).mkdir()
    make_layers(folder, len(setup.above) + 1)
    if setup.uid_map:  # root of the user namespace is somebody else here, and has to find its way from this folder
        folder.chmod(0o711)


def make_folders(folder: Path, setup: Setup) -> None:
    """One instance's folders. Raises BackendError.

    Plain os.mkdir: this is on the measured path. No ledger entry: the backend's own folder has one.
    """
    upper = ("/upper", "/work", f"/upper{SCRATCH}", *(f"/upper/{name}" for name in setup.mount_points))
    names = ("", "/scratch", *(() if setup.memory else upper))
    try:
        for name in names:
            os.mkdir(f"{folder}{name}")  # noqa: PTH102 - see above
            os.chmod(f"{folder}{name}", _MODE)  # noqa: PTH101 - whatever the umask: the container's root is among them
        if setup.uid_map:
            owner, group = outside_id(0, setup.uid_map), outside_id(0, setup.gid_map)
            for name in names:
                os.chown(f"{folder}{name}", owner, group)
    except OSError as error:
        raise BackendError(
            f"could not make the instance's folders: {error.strerror}: {error.filename}",
            remedy=f"see that {folder.parent} is writable and has space left",
        ) from error


def namespaces(setup: Setup) -> tuple[str, ...]:
    """The namespaces that ``clone3`` makes with the process, by their names in /proc/self/ns.

    The cgroup namespace is made later, in the cgroups.
    """
    if setup.style != "native":
        return ("mnt",)
    absent = {"net": setup.network == "host", "user": not setup.uid_map, "time": setup.boot_offset_s is None}
    return tuple(name for name, _ in _NAMESPACES if not absent.get(name))


def clone_flags(setup: Setup) -> int:
    """The flags of ``namespaces``."""
    wanted = namespaces(setup)
    return sum(flag for name, flag in _NAMESPACES if name in wanted)


def zygote_steps(setup: Setup, cpus: tuple[int, ...] = (), open_files: int | None = None) -> list[Step]:
    """What the zygote does once, because every instance inherits it and it is not undone.

    ``cpus`` are those that it stays on, empty for wherever; ``open_files`` is how many an instance may open.
    """
    once = [
        *([steps.pin(cpus)] if cpus else []),
        *([] if open_files is None else [steps.limit_files(open_files)]),
        steps.LEAVE_MOUNTS,
        steps.set_file_mask(0o022),
    ]
    if setup.folder:
        once.append(steps.enter(setup.folder))
    if setup.style == "native":
        if setup.identities == "host":
            once.append(steps.DROP_GROUPS)
        once.append(steps.mount("tmpfs", setup.empty, syscalls.MS_RDONLY | NOTHING, "size=4k,nr_inodes=2"))
        if setup.image:
            once.append(steps.mount_with_owners(setup.image, setup.lower, setup.uid_map, setup.gid_map))
        if setup.boot_offset_s is not None:
            once.append(steps.offset_boot_clock(setup.boot_offset_s))
        if not setup.uid_map:  # a new user namespace has all of them again
            once.append(steps.bound_capabilities(setup.capabilities))
        once.append(steps.set_flag("forbid new privileges", syscalls.PR_SET_NO_NEW_PRIVS, 1))
        if setup.inherited_filter:
            once.append(steps.filter_calls("all that an instance and its set-up may call", setup.inherited_filter))
    return once


def first_steps(setup: Setup, own: InstanceSetup) -> list[Step]:
    """The steps of one instance that differ from those of others."""
    join, root = _join(setup, own), _root(setup, own)
    # Mounting an overlay makes a folder on the disk. A page of the disk's metadata that is first touched in a cgroup
    # is charged to it, and keeps it in the kernel, with 100 kB, for as long as the page is cached (decision 0069).
    on_disk = not setup.memory and not setup.uid_map
    return [steps.GO_FIRST, *(root if on_disk else join), *(join if on_disk else root)]


def last_steps(setup: Setup) -> list[Step]:
    """The last steps, the same for all instances: /dev, /proc and /sys, the new root, and what is given up."""
    found = [steps.require_folder(f"{setup.root}/{name}") for name in MOUNT_POINTS]
    return [*found, *(_container(setup) if setup.style == "native" else _bare_metal(setup))]


def _container(setup: Setup) -> list[Step]:
    root, dev = setup.root, f"{setup.root}/dev"
    null = f"{dev}/null"
    return [
        *dev_steps(setup, dev),
        steps.mount("proc", f"{root}/proc", NOTHING),
        *(steps.mask(root + path, null, setup.empty) for path in MASKED if path.startswith("/proc/")),
        *(steps.make_read_only(root + path) for path in READ_ONLY),
        steps.mount("sysfs", f"{root}/sys", NOTHING | syscalls.MS_RDONLY),
        *(
            steps.mask(root + path, null, setup.empty)
            for path in (*MASKED, *setup.also_masked)
            if path.startswith("/sys/")
        ),
        *(_for_system(root) if setup.system else ()),
        steps.pivot_root(root),
        steps.REPLACE_STREAMS,
        *(() if setup.network == "host" else (steps.RAISE_LOOPBACK,)),
        steps.NEW_KEYRING,
        steps.CLOSE_TO_INSPECTION,
        *((steps.bound_capabilities(setup.capabilities),) if setup.uid_map else ()),
        steps.keep_capabilities(setup.capabilities),
        *((steps.filter_calls(_LAST_FILTER, setup.own_filter),) if setup.own_filter else ()),
        *(_begin_system() if setup.system else ()),
    ]


def dev_steps(setup: Setup, dev: str) -> list[Step]:
    """A container's /dev at ``dev``, with device nodes of its own where the set-up may make some."""
    own = not setup.in_user_namespace
    no_devices = 0 if own else syscalls.MS_NODEV
    # Without an identity for the group tty, terminals are their owner's alone.
    terminals = f"newinstance,ptmxmode=0666,mode=0620{'' if setup.identities == 'one' else ',gid=5'}"
    return [
        steps.mount("tmpfs", dev, syscalls.MS_NOSUID | no_devices | syscalls.MS_STRICTATIME, "mode=755,size=64m"),
        *((steps.make_devices(dev), steps.forbid_devices(dev)) if own else (steps.bind_devices(dev),)),
        steps.fill_dev(dev),
        steps.mount("devpts", f"{dev}/pts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, terminals),
        steps.mount("tmpfs", f"{dev}/shm", NOTHING, "mode=1777,size=64m", source="shm"),
        steps.mount("mqueue", f"{dev}/mqueue", NOTHING),
    ]


def _for_system(root: str) -> list[Step]:
    """What systemd, which may mount nothing in a container, has to find mounted; its own cgroup is among it."""
    run = f"{root}/run"
    return [
        steps.require_folder(run),
        steps.mount("cgroup2", f"{root}/sys/fs/cgroup", NOTHING),
        steps.mount("tmpfs", run, syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755,size=64m"),
        steps.make_folders(f"{run}/lock"),
        steps.mount("tmpfs", f"{run}/lock", NOTHING, "mode=1777,size=5m"),
    ]


def _begin_system() -> list[Step]:
    unit = "tare-ready.service"
    links = {f"systemd/system/{TARGET}.wants/{unit}": f"../{unit}"}
    links |= {f"systemd/system.control/{masked}": "/dev/null" for masked in MASKED_UNITS}
    return [
        steps.make_folders("/run/tare"),
        steps.make_units("/run", {f"systemd/system/{unit}": _READY_UNIT}, links),
        steps.become_system(_SYSTEM, "/run/tare/reached", (_SYSTEM, f"--unit={TARGET}"), _SYSTEM_ENVIRONMENT),
    ]


def _bare_metal(setup: Setup) -> list[Step]:
    """The host itself with the image as its root: only mounts are private, /proc, /sys and /dev are the host's."""
    return [
        *(steps.bind(path, setup.root + path, recursive=True) for path in ("/proc", "/sys", "/dev")),
        steps.pivot_root(setup.root),
        steps.REPLACE_STREAMS,
        steps.CLOSE_TO_INSPECTION,
        steps.set_flag("adopt orphans", syscalls.PR_SET_CHILD_SUBREAPER, 1),
    ]


def _join(setup: Setup, own: InstanceSetup) -> list[Step]:
    end_with_zygote = steps.set_flag("end with the zygote", syscalls.PR_SET_PDEATHSIG, _SIGKILL)
    joined = [
        *([] if setup.uid_map else [end_with_zygote]),
        *(steps.join_cgroup(file) for file in own.join_files),
        steps.pin(own.cpus),
    ]
    if setup.uid_map:  # no sooner: the files of the cgroups are the host's root's
        joined += [steps.BECOME_ROOT, end_with_zygote]
    if setup.style == "native":
        # Not a flag of clone3: the new namespace's root would be the zygote's cgroup.
        joined += [steps.unshare("cgroup", syscalls.CLONE_NEWCGROUP), steps.set_hostname(own.hostname)]
    return joined


def _root(setup: Setup, own: InstanceSetup) -> list[Step]:
    made: list[Step] = []
    if setup.memory:
        names = ("upper", "work", "upper/scratch", *(f"upper/{name}" for name in setup.mount_points))
        size = f"mode=755,size={setup.memory_bytes}"
        made = [
            steps.mount("tmpfs", setup.memory, syscalls.MS_NOSUID | syscalls.MS_NODEV, size, source="upper"),
            steps.make_folders(*(f"{setup.memory}/{name}" for name in names)),
        ]
    lower = ":".join(map(steps.escape_option, (*setup.above, own.lower)))
    layers = f"lowerdir={lower},upperdir={steps.escape_option(own.upper)},workdir={steps.escape_option(own.work)}"
    # A container's programs get no new privileges whatever their mode, so nothing inside depends on setuid.
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV if setup.style == "native" else 0
    mapped = setup.in_user_namespace
    marks = ",userxattr" if mapped else ""  # a user namespace may not write trusted.* attributes
    return [
        *made,
        steps.mount("overlay", setup.root, flags, layers + marks),
        steps.bind(own.scratch, f"{setup.root}{SCRATCH}", flags=flags, keep=mapped),
    ]


def explain_start(setup: Setup, spec: InstanceSpec, folder: Path, layout: Layout, limits: Limits) -> list[str]:
    """Every step in words with its number, as an error would name it; ``folder`` is the instance's, need not exist."""
    cgroup, cgroup_folders = _find_cgroup(layout, PREFIX + spec.identifier)
    own = describe_instance(setup, spec, folder, cgroup)
    born_in = cgroup_folders[0] if layout.version is Version.V2 else cgroup.clone_into
    into = "" if born_in is None else f" into {born_in} (CLONE_INTO_CGROUP)"
    in_harness = [
        *(f"make the cgroup {path}" for path in cgroup_folders),
        f"limit it: {_describe_limits(limits)}",
        f"make the folders in {folder}",
    ]
    maps = " and has written its identity maps" if setup.uid_map else ""
    veth = setup.network == "veth"
    return [
        "once, in the zygote:",
        *_number([step.text for step in zygote_steps(setup)]),
        "for each instance, in the harness, while the kernel makes the process:",
        *_number(in_harness),
        "for each instance, in the zygote:",
        *_number([f"clone3 a process with new namespaces {', '.join(namespaces(setup))}{into}"]),
        f"for each instance, in that process, once the harness says that the cgroups are there{maps}:",
        *_number([step.text for step in (*first_steps(setup, own), *last_steps(setup))]),
        *(["meanwhile, in the harness:", *_number(["connect it by a veth pair"])] if veth else []),
        "ready: it runs commands, forwards signals and reaps orphans",
    ]


def _find_cgroup(layout: Layout, name: str) -> tuple[Cgroup, tuple[Path, ...]]:
    """What an instance would join, and the folders that would be made."""
    if layout.version is Version.V2:
        # A cgroup of v2 prepares its parent, which moves processes; an instance is born in it and joins nothing.
        return ProcessTree(), () if layout.unified is None else (layout.unified / name,)
    if layout.version is Version.NONE:
        return ProcessTree(), ()
    cgroup = Cgroup(layout, name)
    return cgroup, cgroup.folders


def _describe_limits(limits: Limits) -> str:
    return ", ".join(
        f"{name} {','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in limits.items()
    )


def _number(lines: list[str]) -> list[str]:
    return [f"{number:4d}. {line}" for number, line in enumerate(lines, 1)]
