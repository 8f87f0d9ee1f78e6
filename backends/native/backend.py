"""The ``native`` backend: containers by tare's own runtime."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from backends.cgroups.layout import Layout
from backends.native.options import Capabilities, NativeOptions, Network, Seccomp
from backends.native.plan import Settings
from backends.native.privileges import DEFAULT_CAPABILITIES
from backends.native.runtime import HostKernelBackend
from backends.native.seccomp import INTENT, Filters, compile_filters, probe_seccomp
from bench.interfaces import BackendContext
from bench.model import Availability, BackendDescription, Confound, Envelope

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
_NO_SECCOMP = "deployed containers usually have a seccomp filter, which makes system calls slower; this has none"
_NO_FILTERS = Filters(b"", b"", 0)


class Native(HostKernelBackend):
    """A container: own mount, pid, net, uts, ipc and cgroup namespaces, overlay root, Docker's capabilities."""

    name = "native"
    summary = "containers by tare's own runtime (namespaces, cgroups, overlay)"
    Options = NativeOptions
    style = "native"
    namespaces: ClassVar[tuple[str, ...]] = ("mnt", "pid", "net", "uts", "ipc", "cgroup")

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._filters = _NO_FILTERS

    @property
    def options(self) -> NativeOptions:
        """What the suite chose."""
        assert isinstance(self.context.options, NativeOptions)
        return self.context.options

    def probe(self) -> Availability:
        """See ``Backend.probe``: what every such backend needs, and what the options ask for."""
        found = super().probe()
        if found.available and self.options.seccomp is Seccomp.DEFAULT:
            filters = probe_seccomp()
            return found if filters.available else filters
        return found

    def _capabilities(self) -> dict[str, int]:
        return dict(DEFAULT_CAPABILITIES if self.options.capabilities is Capabilities.DEFAULT else ())

    def _settings(self, folder: Path, envelope: Envelope, missing: tuple[str, ...]) -> Settings:  # noqa: ARG002 - soon
        capabilities = tuple(self._capabilities().values())
        self._filters = compile_filters(capabilities) if self.options.seccomp is Seccomp.DEFAULT else _NO_FILTERS
        return Settings(
            style=self.style,
            root=str(folder / "root"),
            empty=str(folder / "empty"),
            network=self.options.network,
            capabilities=capabilities,
            inherited_filter=self._filters.inherited,
            own_filter=self._filters.own,
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
        filtered = self.options.seccomp is Seccomp.DEFAULT
        return BackendDescription(
            label="native (container)",
            facts={
                "namespaces": ",".join(name for name in self.namespaces if name != "net" or own_network),
                "root": "overlay",
                "network": _NETWORKS[self.options.network],
                "capabilities": ",".join(self._capabilities()) or "none",
                "no_new_privs": "yes",
                "seccomp": f"default (Docker's intent, {self._filters.allowed} calls allowed)" if filtered else "none",
                **({"seccomp follows": INTENT} if filtered else {}),
            },
            confounds=(
                *([] if filtered else [Confound("no-seccomp", _NO_SECCOMP, self.name)]),
                *([Confound("own-network", _OWN_NETWORK[self.options.network], self.name)] if own_network else []),
            ),
        )
