"""gVisor: a kernel in user space, by its OCI runtime runsc."""

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import ClassVar

import msgspec

from tare.backends.cgroups.layout import Version
from tare.backends.engines.box import Box, EngineOptions, Network, Seccomp
from tare.backends.engines.exec_instance import ExecInstance
from tare.backends.engines.oci import OciRuntime
from tare.backends.engines.oci_config import Plan
from tare.backends.engines.start import HOLD, Started
from tare.bench.catalogue import ConfoundCode
from tare.bench.model import Confound, IsolationKind, StartTimeline, Usage

_UNCOUNTED = "gVisor writes files through the host's page cache, whose write-back cgroups v1 count for nobody"
_WHOLE = "the memory limit is the whole sandbox's: a program that exceeds it ends the instance, not itself"
_THREADS = "the limit on processes is not set: it would count gVisor's threads, and end the instance when it is met"
_FEW_FILES = (
    "programs cannot make files in folders of the image's (as /root, /var): this runsc refuses it on an overlay of the "
    "host's; /scratch and /tmp work"
)
_OWN_SECCOMP = "the system-call filter is not applied inside: gVisor's kernel has the calls it has, and filters its own"


class Platform(StrEnum):
    """What intercepts the system calls: ``ptrace``, seccomp traps (``systrap``, runsc of 2023 and later), or KVM."""

    PTRACE = "ptrace"
    SYSTRAP = "systrap"
    KVM = "kvm"


class GvisorOptions(EngineOptions, frozen=True, forbid_unknown_fields=True):
    """``[backend.options]`` of ``gvisor``."""

    platform: Platform = Platform.PTRACE


class Gvisor(OciRuntime):
    """runsc, in one sandbox an instance."""

    name = "gvisor"
    summary = "containers on gVisor, a kernel in user space (runsc)"
    program = "runsc"
    package = "runsc"
    kind = IsolationKind.USER_MODE_KERNEL
    Options = GvisorOptions
    # runsc sets nothing of a group that is there before it: tare writes all limits itself, but that on processes.
    engine_limits: ClassVar[Collection[str]] = ("pids_max",)
    interactive = False
    tells_by_stream = True
    concurrent_starts: ClassVar[int] = 4
    start_deadline_s = 30.0

    @property
    def options(self) -> GvisorOptions:
        assert isinstance(self.context.options, GvisorOptions)
        return self.context.options

    def _call(self, *arguments: str) -> list[str]:
        network = "host" if self.options.network is Network.HOST else "none"
        flags = [f"--platform={self.options.platform}", f"--network={network}"]
        return [self.program, *flags, "--root", str(self.folder / "state"), *arguments]

    def container_name(self, box: Box) -> str:
        """A name of which no other is the beginning: runsc takes that for the name."""
        return f"{box.identifier}.c"

    def plan(self, box: Box) -> Plan:
        limits = {name: value for name, value in box.limits.items() if name != "pids_max"}
        return msgspec.structs.replace(super().plan(box), argv=HOLD, limits=limits)

    def make_instance(self, box: Box, started: Started, timeline: StartTimeline) -> ExecInstance:
        return ExecInstance(self, box, started, timeline)

    def usage_of(self, box: Box) -> Usage:
        """Without what it writes on v1: it does so through the page cache, whose write-back v1 counts for nobody."""
        found = super().usage_of(box)
        if self.layout.version is Version.V2:
            return found
        missing = dict.fromkeys(("io_write_bytes", "io_write_operations"), _UNCOUNTED)
        return msgspec.structs.replace(
            found, io_write_bytes=None, io_write_operations=None, missing={**found.missing, **missing}
        )

    def confounds(self) -> Sequence[Confound]:
        return (
            Confound("no-limit-memory", _WHOLE, self.name),
            Confound("no-limit-pids", _THREADS, self.name),
            Confound("image-folders-read-only", _FEW_FILES, self.name),
            *(
                ()
                if self.options.seccomp is Seccomp.NONE
                else (Confound(ConfoundCode.OTHER_SECCOMP, _OWN_SECCOMP, self.name),)
            ),
            *(
                []
                if self.layout.version is Version.V2
                else [Confound(ConfoundCode.IO_UNACCOUNTED, _UNCOUNTED, self.name)]
            ),
        )

    def facts(self) -> dict[str, str]:
        given = {**super().facts(), "platform": self.options.platform.value}
        return {**given, "seccomp": "gVisor's own", "no_new_privs": "gVisor's own"}
