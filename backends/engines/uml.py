"""User-mode Linux: a second kernel without KVM, which is an ordinary program of the host's (Debian: linux.uml).

Root inside can reach what that program can reach, so it runs in a jail: namespaces of its own, a root that holds the
program, its libraries and the instance's disks, a user that nobody else is, and no capability. The guest is that of the
virtual machines: the image's disk below a tmpfs, the image's own init, a scratch disk with an ext4. A serial line takes
the place of their virtio ports.
"""

import contextlib
import os
import re
import stat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from tare.backends.engines.box import Box, EngineOptions, Network, Seccomp
from tare.backends.engines.command_engine import CommandEngine
from tare.backends.engines.line import Console, LineInstance, LineReport
from tare.backends.engines.start import Begun, Report, Started
from tare.backends.native import steps, syscalls
from tare.backends.vm.disks import allocated_bytes, copy_sparse, make_scratch_template
from tare.backends.vm.emulator import choose_identity
from tare.bench.catalogue import ConfoundCode
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.initramfs import Member, order_modules, pack
from tare.bench.model import (
    Availability,
    BackendDescription,
    Confound,
    Envelope,
    Image,
    InstanceSpec,
    IsolationKind,
    StartTimeline,
)
from tare.bench.packages import remedy_for
from tare.bench.process import find_tool, require_tool, run

MODULES = Path("/usr/lib/uml/modules")
WANTED_MODULES = ("erofs", "overlay", "ext4")
"""Modules that its kernel needs, as far as they are not built in."""
SHUTDOWN_DEADLINE_S = 60.0
_INITRAMFS, _TEMPLATE, _SCRATCH = "initramfs", "template", "disk"
_TEMPORARY = "/tmp"  # noqa: S108 - of the jail
_SPARE_BYTES = 16 << 20
_HOLE_BYTES = 2 << 30
"""The file of its memory begins with a hole, as long as the kernel has placed its heap: up to 1 GiB."""
_SPARE_PROCESSES = 64
_REASONS = (
    (
        "fp regs failed",
        "its kernel cannot run a program on this processor, which has more registers than it saves",
        "leave the backend out, or use a processor without AMX",
    ),
    (
        "no parameter tare.line",
        "the image's init comes from an older tare, which did not drive user-mode Linux",
        "build the image again (tare image build)",
    ),
)
"""What a boot that cannot work says on its console, why that is, and what to do."""
_LIBRARY = re.compile(r"(/\S+) \(0x")
_READ_ONLY = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
_PLAIN = syscalls.MS_NOSUID | syscalls.MS_NODEV
_NAMESPACES = (
    ("ipc", syscalls.CLONE_NEWIPC),
    ("uts", syscalls.CLONE_NEWUTS),
    ("net", syscalls.CLONE_NEWNET),
    ("cgroup", syscalls.CLONE_NEWCGROUP),
)
_ONE_CPU = "its kernel has one CPU, whatever the envelope's number"
_MEMORY = (
    "the envelope's memory is the guest's RAM: its kernel takes a part, what is changed in its root another, and what "
    "the kernel's process needs in addition is charged but not limited"
)
_OTHER_ROOT = "the guest's root is a tmpfs over erofs; elsewhere it is an overlay on the host's disk"
_STORAGE = "/scratch is a file system of the guest's own (ext4 on ubd); elsewhere it is a folder of the host's"
_TWO_CACHES = "the scratch disk goes through two page caches, the guest's and the host's"
_LINE = "commands' input and output go over a serial line (1 MB/s in, 30 MB/s out): much of either measures it"
_NO_FILTER = (
    "no system calls are filtered inside, and root has every capability of the guest's kernel; its process on the "
    "host is confined by namespaces, a user of its own and no capability"
)


class UmlOptions(EngineOptions, frozen=True, forbid_unknown_fields=True):
    """``[backend.options]`` of ``uml``. ``stop``: it is killed, or asked to power off."""

    stop: Literal["kill", "shutdown"] = "kill"


def kernel_arguments(envelope: Envelope, stream: int = 0, console: int = 1) -> tuple[str, ...]:
    """The kernel's command line: its memory, disks and devices by the names in the jail, and what init is asked for."""
    return (
        f"mem={envelope.memory_bytes >> 10}K",
        "initrd=/initramfs",
        "ubd0rc=/image,,tare-image",
        "ubd1c=/scratch,,tare-scratch",
        *("con=null", f"con0=fd:{console},fd:{console}", "ssl=null", f"ssl0=fd:{stream},fd:{stream}"),
        *("loglevel=4", "panic=-1", f"tare.pids={envelope.pids_max}", "tare.scratch=disk", "tare.line=ttyS0"),
    )


def module_members(folder: Path) -> list[Member]:
    """What takes the place of the image's modules in the initramfs. Raises ImageError, OSError."""
    listed = [(folder / name).read_text() for name in ("modules.dep", "modules.builtin")]
    found = [folder / path for path in order_modules(listed[0], listed[1], WANTED_MODULES)]
    order = "".join(f"{path.name}\n" for path in found).encode()
    contents = {"order": order, "optional": b"", **{path.name: path.read_bytes() for path in found}}
    return [Member(f"modules/{name}", stat.S_IFREG | 0o644, content) for name, content in contents.items()]


class UserModeLinux(CommandEngine):
    """``linux.uml`` in its instance's cgroup; it ends with the guest."""

    name = "uml"
    summary = "guests on user-mode Linux, a second kernel without KVM"
    program = "linux.uml"
    package = "user-mode-linux"
    kind = IsolationKind.USER_MODE_KERNEL
    Options = UmlOptions
    engine_limits: ClassVar[Collection[str]] = ("memory_bytes", "pids_max")
    interactive = False
    concurrent_starts: ClassVar[int] = 4
    minimum_memory_bytes: ClassVar[int] = 96 << 20
    start_deadline_s = 120.0
    returns = False
    places = False
    overlay = False
    waits_for_all = True
    networks: ClassVar[Collection[Network]] = (Network.NONE,)
    _libraries: Sequence[str] = ()
    _shared_bytes = 0

    @property
    def options(self) -> UmlOptions:
        assert isinstance(self.context.options, UmlOptions)
        return self.context.options

    @classmethod
    def check(cls, options: EngineOptions, envelope: Envelope) -> None:
        super().check(options, envelope)
        if options.seccomp is not Seccomp.DEFAULT:
            raise ValueError("seccomp: no filter is applied inside user-mode Linux, so there is none to leave out")

    def probe_engine(self) -> Availability:
        missing = [package for tool, package in (("mkfs.ext4", "e2fsprogs"),) if find_tool(tool) is None]
        if missing:
            return Availability.no(f"not installed: {', '.join(missing)}", remedy_for(missing))
        if not (MODULES / self.version()).is_dir():
            return Availability.no(f"{self.program} has no modules in {MODULES / self.version()}")
        if choose_identity() is None:
            return Availability.no("this user namespace maps no identity that could be given to an instance alone")
        return super().probe_engine()

    def prepare_engine(self, image: Image, envelope: Envelope) -> None:
        """The initramfs, which is the image's with this kernel's modules in place of its own, and a scratch disk."""
        if image.disk is None or image.initramfs is None:
            raise UnavailableError(
                f"{self.name} needs an image with the disk and initramfs of a guest", remedy="tare image build"
            )
        if not image.disk.stat().st_mode & stat.S_IROTH:
            raise UnavailableError(
                f"{self.name} runs as a user of its own, which may not read {image.disk}",
                remedy=f"chmod o+r {image.disk}",
            )
        initramfs = self.folder / _INITRAMFS
        initramfs.write_bytes(image.initramfs.read_bytes() + pack(module_members(MODULES / self.version())))
        initramfs.chmod(0o644)
        make_scratch_template(self.context.ledger, self.folder / _TEMPLATE, envelope.scratch_bytes)
        printed = run(["ldd", str(require_tool(self.program))], timeout_s=60)
        self._libraries = _LIBRARY.findall(printed)
        self._shared_bytes = allocated_bytes(image.disk) + allocated_bytes(initramfs)

    def prepare(self, image: Image, envelope: Envelope) -> BackendDescription:
        """One boot proves it: on some processors its kernel ends at its first program."""
        try:
            return super().prepare(image, envelope)
        except BackendError as error:
            for sign, reason, remedy in _REASONS:
                if sign in f"{error.message} {error.evidence}":
                    raise UnavailableError(f"{self.name}: {reason}", remedy=remedy, evidence=error.evidence) from error
            raise

    @property
    def shared_bytes(self) -> int:
        """The image's disk and the initramfs."""
        return self._shared_bytes

    def environment(self) -> dict[str, str]:
        return {"HOME": _TEMPORARY, "TMPDIR": _TEMPORARY}

    def explain(self, spec: InstanceSpec) -> list[str]:
        return [
            "make the instance's cgroups",
            "copy the empty scratch disk, and give it to a user that nobody else is",
            "in the container's cgroup, make a jail: namespaces, a root with the program, its libraries and the disks",
            f"start {self.program} in it as that user without capabilities, pinned to the envelope's CPUs",
            "wait until the guest's init reports over its serial line that it is ready",
            f"the kernel's command line: {' '.join(kernel_arguments(spec.envelope))}",
        ]

    def make_report(self, box: Box, starting: contextlib.ExitStack, living: contextlib.ExitStack) -> tuple[Report, Box]:
        report = LineReport(starting, Console(living))
        return report, msgspec.structs.replace(box, streams=report.streams, said=report.console.said)

    def begin(self, box: Box, stack: contextlib.ExitStack) -> Begun:
        """A scratch disk that is its user's, and a bound on what a guest that lifts its own could start."""
        identity = choose_identity()
        assert identity is not None  # as probe has seen
        disk = box.folder / _SCRATCH
        try:
            copy_sparse(self.folder / _TEMPLATE, disk)
            os.chown(disk, identity, identity)
            box.groups.container.set_limits({"pids_max": 2 * box.spec.envelope.pids_max + _SPARE_PROCESSES})
        except OSError as error:
            raise BackendError(
                f"could not make the scratch disk: {error.strerror}: {error.filename or disk}",
                remedy="see that the work directory has space left",
            ) from error
        return super().begin(box, stack)

    def mounts_for(self, box: Box) -> list[steps.Step]:
        """The jail, and in it the user who owns the scratch disk."""
        root, disk = str(box.root), box.folder / _SCRATCH
        assert box.spec.image.disk is not None
        program = require_tool(self.program)
        shown = {
            **{path: Path(path) for path in (str(program), *self._libraries)},
            "/initramfs": self.folder / _INITRAMFS,
            "/image": box.spec.image.disk,
        }
        folders = dict.fromkeys(str(above) for path in shown for above in reversed(Path(path).parents))
        memory = box.spec.envelope.memory_bytes + _SPARE_BYTES
        return [
            steps.GO_FIRST,
            steps.LEAVE_MOUNTS,
            *(steps.unshare(name, flag) for name, flag in _NAMESPACES),
            steps.set_file_mask(0o022),
            steps.mount("tmpfs", root, _PLAIN, "mode=755,size=1m"),
            steps.make_folders(*(f"{root}{path}" for path in folders if path != "/"), root + _TEMPORARY),
            steps.mount("tmpfs", root + _TEMPORARY, _PLAIN, f"mode=1777,size={memory},nr_inodes=64"),
            *(steps.show_file(root + path, str(source), _READ_ONLY) for path, source in shown.items()),
            steps.show_file(f"{root}/scratch", str(disk), _PLAIN),
            steps.pivot_root(root),
            steps.NEW_KEYRING,
            steps.limit_file_size(max(memory + _HOLE_BYTES, disk.stat().st_size)),
            steps.bound_capabilities(()),
            steps.become_identity(disk.stat().st_uid),
            steps.set_flag("forbid new privileges", syscalls.PR_SET_NO_NEW_PRIVS, 1),
        ]

    def start_command(self, box: Box) -> Sequence[str]:
        return [self.program, *kernel_arguments(box.spec.envelope)]

    def make_instance(self, box: Box, started: Started, timeline: StartTimeline) -> LineInstance:
        return LineInstance(self, box, started, timeline)

    def _stop(self, box: Box, launched: Started, timeline: StartTimeline) -> None:
        assert launched.line is not None
        asked = self.options.stop == "shutdown" and not launched.line.is_gone()
        down = launched.line.power_off(SHUTDOWN_DEADLINE_S) if asked else True
        printed = launched.line.console.said()
        super()._stop(box, launched, timeline)
        if not down:
            raise BackendError(
                f"the guest did not power off when it was asked to (within {SHUTDOWN_DEADLINE_S:g} s)", evidence=printed
            )

    def facts(self) -> dict[str, str]:
        return {
            "guest_kernel": self.version(),
            "init": "tare's, as in a virtual machine",
            "root": "overlay of a tmpfs on erofs",
            "image_disk": "ubd,read-only",
            "scratch_disk": "ubd,through the host's page cache",
            "commands": "over a serial line",
            "cpus": "1",
            "jail": f"namespaces mnt,{','.join(name for name, _ in _NAMESPACES)}; no capabilities; no new privileges",
            "user": "one of its own for each instance",
            "stop": self.options.stop,
        }

    def confounds(self) -> Sequence[Confound]:
        release = os.uname().release
        kernel = (
            f"the guest runs Linux {self.version()}, the host {release}: a part of any difference may be the kernel's"
        )
        found: dict[str, str] = {
            ConfoundCode.OTHER_KERNEL: kernel,
            ConfoundCode.OTHER_SECCOMP: _NO_FILTER,
            "one-cpu": _ONE_CPU,
            ConfoundCode.GUEST_MEMORY: _MEMORY,
            ConfoundCode.OTHER_ROOT: _OTHER_ROOT,
            ConfoundCode.STORAGE_PATH: _STORAGE,
            ConfoundCode.SCRATCH_CACHED: _TWO_CACHES,
            "serial-line": _LINE,
        }
        return [Confound(code, text, self.name) for code, text in found.items()]
