"""gVisor: a kernel in user space, by its OCI runtime runsc."""

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import ClassVar

import msgspec

from tare.backends.cgroups.layout import Layout, Version
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


GVISORS_OWN = {"seccomp": "gVisor's own", "no_new_privs": "gVisor's own"}
"""Facts of every instance on gVisor."""


class Platform(StrEnum):
    """What intercepts the system calls: ``ptrace``, seccomp traps (``systrap``, runsc of 2023 and later), or KVM."""

    PTRACE = "ptrace"
    SYSTRAP = "systrap"
    KVM = "kvm"


class GvisorOptions(EngineOptions, frozen=True, forbid_unknown_fields=True):
    """``[backend.options]`` of ``gvisor``."""

    platform: Platform = Platform.PTRACE


def gvisors_network(network: Network) -> str:
    """The value of runsc's ``--network``."""
    return "host" if network is Network.HOST else "none"


def without_writes(found: Usage, layout: Layout) -> Usage:
    """What gVisor writes goes through the page cache, whose write-back cgroups v1 count for nobody."""
    if layout.version is Version.V2:
        return found
    missing = dict.fromkeys(("io_write_bytes", "io_write_operations"), _UNCOUNTED)
    return msgspec.structs.replace(
        found, io_write_bytes=None, io_write_operations=None, missing={**found.missing, **missing}
    )


def find_confounds(backend: str, seccomp: Seccomp, layout: Layout) -> tuple[Confound, ...]:
    """What gVisor does not have of the profile and the envelope, whoever calls it."""
    found = [
        Confound("no-limit-memory", _WHOLE, backend),
        Confound("no-limit-pids", _THREADS, backend),
        Confound(ConfoundCode.IMAGE_READ_ONLY, _FEW_FILES, backend),
    ]
    if seccomp is not Seccomp.NONE:
        found.append(Confound(ConfoundCode.OTHER_SECCOMP, _OWN_SECCOMP, backend))
    if layout.version is not Version.V2:
        found.append(Confound(ConfoundCode.IO_UNACCOUNTED, _UNCOUNTED, backend))
    return tuple(found)


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
    concurrent_starts: ClassVar[int] = 4
    start_deadline_s = 30.0

    def tells_by_stream(self) -> bool:
        return True

    @property
    def options(self) -> GvisorOptions:
        assert isinstance(self.context.options, GvisorOptions)
        return self.context.options

    def _call(self, *arguments: str) -> list[str]:
        flags = [f"--platform={self.options.platform}", f"--network={gvisors_network(self.options.network)}"]
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
        return without_writes(super().usage_of(box), self.layout)

    def confounds(self) -> Sequence[Confound]:
        return find_confounds(self.name, self.options.seccomp, self.layout)

    def facts(self) -> dict[str, str]:
        given = {**super().facts(), "platform": self.options.platform.value}
        return {**given, **GVISORS_OWN}
