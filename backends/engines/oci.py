"""Runtimes of the OCI specification, by bundle: runc, crun."""

import os
from collections.abc import Collection, Sequence
from typing import ClassVar

import msgspec

from tare.backends.engines.box import Box, Network, Seccomp
from tare.backends.engines.command_engine import CommandEngine
from tare.backends.engines.oci_config import Bind, Plan, make_config
from tare.backends.engines.start import INSIDE, LIVE
from tare.backends.native.backend import find_thermal
from tare.backends.native.seccomp import DEFAULT_CAPABILITIES
from tare.bench.model import SCRATCH


class OciRuntime(CommandEngine):
    """A runtime with runc's command line."""

    engine_limits: ClassVar[Collection[str]] = (
        *("cpus", "cpu_quota", "cpu_weight", "pids_max"),
        *("io_read_bytes_per_s", "io_write_bytes_per_s", "io_read_ops_per_s", "io_write_ops_per_s"),
    )
    groups_at_top = True  # crun knows no other path, and next to v1 runc takes its own for that in the v2 tree
    flags: ClassVar[tuple[str, ...]] = ()
    """Global flags of the runtime, before its command."""

    def start_command(self, box: Box) -> Sequence[str]:
        (box.folder / "config.json").write_bytes(msgspec.json.encode(make_config(self.plan(box))))
        return self._call("run", "--detach", "--bundle", str(box.folder), self.container_name(box))

    def exec_command(self, box: Box, argv: Sequence[str]) -> Sequence[str]:
        return self._call("exec", self.container_name(box), *argv)

    def remove_command(self, box: Box) -> Sequence[str]:
        return self._call("delete", "--force", self.container_name(box))

    def container_name(self, box: Box) -> str:
        """What the runtime calls the container."""
        return box.identifier

    def _call(self, *arguments: str) -> list[str]:
        return [self.program, *self.flags, "--root", str(self.folder / "state"), *arguments]

    def plan(self, box: Box) -> Plan:
        """The container of ``box``."""
        return Plan(
            root=str(box.root),
            argv=LIVE,
            hostname=box.identifier[:64],
            cgroup=f"/{box.groups.name}/{self.container_group(box.identifier)}",
            limits=box.limits,
            binds=(Bind(str(box.given), INSIDE, read_only=True), Bind(str(box.scratch), SCRATCH)),
            capabilities=tuple(dict(DEFAULT_CAPABILITIES).values()),
            seccomp=self.options.seccomp is Seccomp.DEFAULT,
            machine=os.uname().machine,
            network=None if self.options.network is Network.HOST else "",
            masked=find_thermal(),
        )

    def facts(self) -> dict[str, str]:
        return {
            "namespaces": "mnt,pid,ipc,uts,cgroup" + ("" if self.options.network is Network.HOST else ",net"),
            "capabilities": ",".join(dict(DEFAULT_CAPABILITIES)),
            "no_new_privs": "yes",
            "seccomp": "default (that of tare's own containers)" if self.options.seccomp is Seccomp.DEFAULT else "none",
        }


class Runc(OciRuntime):
    """runc, the runtime below Docker and containerd."""

    name = "runc"
    summary = "containers by runc, the runtime below Docker and containerd"
    program = "runc"
    package = "runc"


class Crun(OciRuntime):
    """crun, the runtime in C that Podman prefers."""

    name = "crun"
    summary = "containers by crun, the runtime in C below Podman"
    program = "crun"
    package = "crun"

    def hides_empty_unified(self) -> bool:
        return True
