"""The ``native`` backend: containers by tare's own runtime."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from backends.cgroups.layout import Layout
from backends.native.options import Capabilities, NativeOptions, Network
from backends.native.plan import Settings
from backends.native.privileges import DEFAULT_CAPABILITIES
from backends.native.runtime import HostKernelBackend
from bench.model import BackendDescription, Confound, Envelope

if TYPE_CHECKING:
    from backends.native.network import VethNetwork

_NETWORKS = {
    Network.NONE: "lo only",
    Network.HOST: "the host's",
    Network.VETH: "lo, and a veth pair into a bridge in a network namespace of tare's",
}
_OWN_NETWORK = {
    Network.NONE: "its network namespace holds lo only; bare metal has the host's",
    Network.VETH: "its network is a veth pair and a bridge that tare made; bare metal has the host's",
}


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

    @contextlib.contextmanager
    def _start_network(self) -> Iterator["VethNetwork | None"]:
        if self.options.network is not Network.VETH:
            yield None
            return
        from backends.native.network import start_network

        with start_network() as network:
            yield network

    def _describe(self, layout: Layout) -> BackendDescription:  # noqa: ARG002 - nothing here depends on it
        own_network = self.options.network is not Network.HOST
        return BackendDescription(
            label="native (container)",
            facts={
                "namespaces": ",".join(name for name in self.namespaces if name != "net" or own_network),
                "root": "overlay",
                "network": _NETWORKS[self.options.network],
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
                *([Confound("own-network", _OWN_NETWORK[self.options.network], self.name)] if own_network else []),
            ),
        )
