"""The ``native`` backend: containers by tare's own runtime."""

from pathlib import Path
from typing import ClassVar

from backends.cgroups.layout import Layout
from backends.native.options import Capabilities, NativeOptions
from backends.native.plan import Settings
from backends.native.privileges import DEFAULT_CAPABILITIES
from backends.native.runtime import HostKernelBackend
from bench.model import BackendDescription, Confound, Envelope


class Native(HostKernelBackend):
    """A container: own mount, pid, net, uts, ipc and cgroup namespaces, overlay root, Docker's capabilities."""

    name = "native"
    summary = "containers by tare's own runtime (namespaces, cgroups, overlay)"
    Options = NativeOptions
    style = "native"
    namespaces: ClassVar[tuple[str, ...]] = ("mnt", "pid", "net", "uts", "ipc", "cgroup")

    @property
    def options(self) -> NativeOptions:
        """What the suite chose."""
        assert isinstance(self.context.options, NativeOptions)
        return self.context.options

    def _settings(self, folder: Path, envelope: Envelope, missing: tuple[str, ...]) -> Settings:  # noqa: ARG002 - soon
        granted = DEFAULT_CAPABILITIES if self.options.capabilities is Capabilities.DEFAULT else ()
        return Settings(
            style=self.style,
            root=str(folder / "root"),
            empty=str(folder / "empty"),
            network=self.options.network,
            capabilities=tuple(number for _, number in granted),
        )

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
