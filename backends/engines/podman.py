"""Podman, by its command line: no daemon, a conmon for each container and for each exec."""

import os
import resource
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

import msgspec

from tare.backends.cgroups.layout import Version
from tare.backends.cgroups.limits import RULES
from tare.backends.engines.box import Box, EngineOptions, Network, Seccomp
from tare.backends.engines.command_engine import CommandEngine
from tare.backends.engines.oci_config import make_seccomp
from tare.backends.engines.start import INSIDE, LIVE
from tare.backends.native import steps
from tare.backends.native.backend import find_thermal
from tare.backends.native.seccomp import DEFAULT_CAPABILITIES
from tare.backends.native.setup import MASKED
from tare.bench.errors import BackendError
from tare.bench.linux.files import read_text
from tare.bench.model import BASE_ENVIRONMENT, SCRATCH, Availability, Envelope, Image
from tare.bench.packages import remedy_for
from tare.bench.process import find_tool

_CAPABILITIES = dict(DEFAULT_CAPABILITIES)
_PERIOD_US = 100_000
_SHARES_PER_WEIGHT = 10.24
_RATES = {
    "io_read_bytes_per_s": "--device-read-bps",
    "io_write_bytes_per_s": "--device-write-bps",
    "io_read_ops_per_s": "--device-read-iops",
    "io_write_ops_per_s": "--device-write-iops",
}
_NEVER_REACHED = 2**62
"""As a rate, which Podman takes as a signed number."""
_MOST, _MOST_FILES = 2**15, 2**20
"""Podman lowers its own limits to these."""
_STATE = "/run/podman"
"""Where Podman's commands see its state: it refuses long paths, and its runtimes keep theirs in /run."""

_SETTINGS = """[engine]
lock_type = "file"
"""
"""Otherwise its locks lie in /dev/shm, under one name for all of a host."""


class Runtime(StrEnum):
    """The OCI runtime below Podman, which is a Debian package of that name."""

    CRUN = "crun"
    RUNC = "runc"


class PodmanOptions(EngineOptions, frozen=True, forbid_unknown_fields=True):
    """``[backend.options]`` of ``podman``."""

    runtime: Runtime = Runtime.CRUN


class _Event(msgspec.Struct, frozen=True):
    """A line of Podman's event file, in its names."""

    Time: datetime
    Name: str = ""
    Status: str = ""


def device_node(device: str, sys: Path = Path("/sys")) -> str:
    """The name in /dev of the block device ``major:minor``. Raises BackendError if it has none."""
    try:
        said = dict(line.split("=", 1) for line in read_text(sys / f"dev/block/{device}/uevent").splitlines())
        return f"/dev/{said['DEVNAME']}"
    except (OSError, KeyError) as error:
        raise BackendError(
            f"the kernel has no name for the block device {device}, whose rates Podman limits"
        ) from error


def own_limits() -> Iterator[str]:
    """Limits of tare's own process: those that Podman sets unasked take CAP_SYS_RESOURCE."""
    for name, which, most in (("nofile", resource.RLIMIT_NOFILE, _MOST_FILES), ("nproc", resource.RLIMIT_NPROC, _MOST)):
        soft, hard = (most if limit < 0 else min(limit, most) for limit in resource.getrlimit(which))
        yield f"--ulimit={name}={soft}:{hard}"


class Podman(CommandEngine):
    """``podman run --rootfs``, with a state of its own: no container, image or lock of the user's is seen.

    Podman names the container's cgroup by a number of its own, so it makes that group and sets all limits.
    """

    name = "podman"
    summary = "containers by Podman, without a daemon"
    program = "podman"
    package = "podman"
    Options = PodmanOptions
    premade = False
    groups_at_top = True
    engine_limits: ClassVar[Collection[str]] = tuple(RULES)

    @property
    def options(self) -> PodmanOptions:
        assert isinstance(self.context.options, PodmanOptions)
        return self.context.options

    def probe_engine(self) -> Availability:
        runtime = self.options.runtime
        if find_tool("conmon") is None or find_tool(runtime) is None:
            return Availability.no(f"podman needs conmon and {runtime}", remedy_for(["conmon", runtime.value]))
        return super().probe_engine()

    def hides_empty_unified(self) -> bool:
        return self.options.runtime is Runtime.CRUN

    def prepare_engine(self, image: Image, envelope: Envelope) -> None:
        del image, envelope
        for name in ("run", "run/podman", "run/lock"):
            (self.folder / name).mkdir()
        (self.folder / "containers.conf").write_text(_SETTINGS)
        profile = make_seccomp(tuple(_CAPABILITIES.values()), os.uname().machine)
        (self.folder / "seccomp.json").write_bytes(msgspec.json.encode(profile))

    def environment(self) -> Mapping[str, str]:
        """Settings of Podman's own instead of the machine's and the user's."""
        return {"CONTAINERS_CONF": str(self.folder / "containers.conf"), "HOME": f"{_STATE}/home"}

    def mounts(self, box: Box) -> Sequence[steps.Step]:
        """A /run of the backend's, where Podman and its runtime keep their state."""
        del box
        return (steps.bind(str(self.folder / "run"), "/run"),)

    def start_command(self, box: Box) -> Sequence[str]:
        capabilities = (word for name in _CAPABILITIES for word in ("--cap-add", name))
        environment = (word for name, value in BASE_ENVIRONMENT.items() for word in ("--env", f"{name}={value}"))
        seccomp = "unconfined" if self.options.seccomp is Seccomp.NONE else str(self.folder / "seccomp.json")
        hidden = ":".join((*MASKED, *find_thermal()))
        return self._call(
            *("run", "--detach", "--name", box.identifier, "--hostname", box.identifier[:64]),
            *("--network", self.options.network.value, "--no-hosts", "--pull", "never", "--systemd", "false"),
            *("--cgroups", "enabled", "--cgroupns", "private", "--cgroup-parent", f"/{box.groups.name}"),
            *(*own_limits(), "--oom-score-adj", "1000", "--unsetenv-all", *environment),
            *("--cap-drop", "all", *capabilities, "--security-opt", "no-new-privileges"),
            *("--security-opt", f"seccomp={seccomp}", "--security-opt", f"mask={hidden}"),
            *("--volume", f"{box.given}:{INSIDE}:ro,nosuid,nodev", "--volume", f"{box.scratch}:{SCRATCH}:nosuid,nodev"),
            *self._limits(box),
            *("--rootfs", str(box.root), *LIVE),
        )

    def exec_command(self, box: Box, argv: Sequence[str]) -> Sequence[str]:
        return self._call("exec", box.identifier, *argv)

    def remove_command(self, box: Box) -> Sequence[str]:
        return self._call("rm", "--force", "--time", "0", box.identifier)

    def find_running_s(self, box: Box) -> float | None:
        """By Podman's own event ``start``, in the file that ``podman events`` reads."""
        at_s = None
        for line in (self.folder / "run/podman/own/events/events.log").read_bytes().splitlines():
            event = msgspec.json.decode(line, type=_Event)
            if event.Name == box.identifier and event.Status == "start":
                at_s = event.Time.timestamp()
        return at_s

    def _call(self, *arguments: str) -> list[str]:
        return [
            *("podman", "--root", f"{_STATE}/root", "--runroot", f"{_STATE}/runroot", "--tmpdir", f"{_STATE}/own"),
            *("--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file"),
            *("--runtime", self.options.runtime.value, *arguments),
        ]

    def _limits(self, box: Box) -> Iterator[str]:
        limits = box.limits
        if "cpus" in limits:
            yield f"--cpuset-cpus={','.join(map(str, limits['cpus']))}"
        if "cpu_quota" in limits:
            yield f"--cpu-period={_PERIOD_US}"
            yield f"--cpu-quota={round(limits['cpu_quota'] * _PERIOD_US)}"
        if "cpu_weight" in limits:
            yield f"--cpu-shares={round(limits['cpu_weight'] * _SHARES_PER_WEIGHT)}"
        if "memory_bytes" in limits:
            yield f"--memory={limits['memory_bytes']}b"
            yield f"--memory-swap={limits['memory_bytes'] + limits.get('swap_bytes', 0)}b"
        if "pids_max" in limits:
            yield f"--pids-limit={limits['pids_max']}"
        if "io_device" in limits:
            asked = {name: limits[name] for name in _RATES if name in limits}
            if self.layout.version is not Version.V2:  # blkio counts by rules, so there is one for each direction
                counted = dict.fromkeys(("io_read_bytes_per_s", "io_write_bytes_per_s"), _NEVER_REACHED)
                asked = counted | asked
            for name, rate in asked.items():
                yield f"{_RATES[name]}={device_node(limits['io_device'])}:{rate}"

    def facts(self) -> dict[str, str]:
        net = "" if self.options.network is Network.HOST else ",net"
        return {
            "runtime": self.options.runtime.value,
            "namespaces": f"mnt,pid,ipc,uts,cgroup{net}",
            "capabilities": ",".join(_CAPABILITIES),
            "no_new_privs": "yes",
            "seccomp": "default (that of tare's own containers)" if self.options.seccomp is Seccomp.DEFAULT else "none",
        }

    def container_group(self, box_identifier: str) -> str:
        """Podman's name for it ends with a number of its own."""
        del box_identifier
        return "libpod-*"
