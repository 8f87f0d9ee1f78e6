"""The ``native`` backend: containers by tare's own runtime."""

from typing import ClassVar

from backends.cgroups.layout import Layout
from backends.native.operations import DEFAULT_CAPABILITIES
from backends.native.runtime import HostKernelBackend
from bench.model import BackendDescription, Confound


class Native(HostKernelBackend):
    """A container: own mount, pid, net, uts, ipc and cgroup namespaces, overlay root, Docker's capabilities."""

    name = "native"
    summary = "containers by tare's own runtime (namespaces, cgroups, overlay)"
    style = "native"
    namespaces: ClassVar[tuple[str, ...]] = ("mnt", "pid", "net", "uts", "ipc", "cgroup")

    def _describe(self, layout: Layout) -> BackendDescription:  # noqa: ARG002 - nothing here depends on it
        return BackendDescription(
            label="native (container)",
            facts={
                "namespaces": ",".join(self.namespaces),
                "root": "overlay",
                "network": "lo only",
                "capabilities": ",".join(name for name, _ in DEFAULT_CAPABILITIES),
                "no_new_privs": "yes",
                "seccomp": "none",
            },
            confounds=(
                Confound(
                    "no-seccomp",
                    "deployed containers usually have a seccomp filter, which makes system calls slower; this has none",
                    self.name,
                ),
                Confound("own-network", "its network namespace holds lo only; bare metal has the host's", self.name),
            ),
        )
