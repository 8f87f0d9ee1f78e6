"""The ``native`` backend: containers by tare's own runtime."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tare.backends import distribution
from tare.backends.cgroups.layout import Layout, find_layout
from tare.backends.layers import names_of_layers
from tare.backends.native.identities import (
    AS_ROOT,
    REMAPPED,
    Identities,
    Privileges,
    describe_map,
    find_privileges,
    is_privileged,
    probe_without_root,
)
from tare.backends.native.options import Capabilities, NativeOptions, Network, Profile, Seccomp, Upper
from tare.backends.native.runtime import HostKernelBackend, probe_host, probe_storage
from tare.backends.native.seccomp import DEFAULT_CAPABILITIES, INTENT, Filters, compile_filters, probe_seccomp
from tare.backends.native.setup import Setup
from tare.backends.native.zygote import probe_program
from tare.bench.catalogue import ConfoundCode
from tare.bench.errors import UnsupportedError
from tare.bench.interfaces import BackendContext, Instance
from tare.bench.model import (
    Availability,
    BackendDescription,
    Confound,
    Envelope,
    Image,
    InstanceSpec,
    IsolationKind,
    named_facts,
)
from tare.bench.network_path import LOOPBACK, PATHS_OF_BRIDGE, PATHS_OF_HOST, PATHS_OF_OWN_LO, ServerPlace

if TYPE_CHECKING:
    from tare.backends.bare_metal import HostSide
    from tare.backends.network.bridge import BridgeNetwork

_NETWORKS = {
    Network.NONE: "lo only",
    Network.HOST: "the host's",
    Network.VETH: "lo, and a veth pair into a bridge in a network namespace of tare's",
}
_PATHS = {
    Network.NONE: PATHS_OF_OWN_LO,
    Network.HOST: PATHS_OF_HOST,
    Network.VETH: PATHS_OF_BRIDGE,
}
_OWN_NETWORK = {
    Network.NONE: "its network namespace holds lo only; bare metal has the host's",
    Network.VETH: "its network is a veth pair and a bridge that tare made; bare metal has the host's",
}
_PROFILES = {
    Profile.MINIMAL: "minimal: what it is asked to run",
    Profile.FULL: "full: systemd to multi-user.target",
}
_NO_SECCOMP = "deployed containers usually have a seccomp filter, which makes system calls slower; this has none"
_UPPER_IN_MEMORY = "what is written to its root is memory of its limit; bare metal writes to disk"
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
        self._host: HostSide | None = None

    @property
    def options(self) -> NativeOptions:
        """What the suite chose."""
        assert isinstance(self.context.options, NativeOptions)
        return self.context.options

    @classmethod
    def check_server(cls, options: NativeOptions, place: ServerPlace) -> None:
        if options.network is Network.NONE and place is not ServerPlace.SAME_INSTANCE:
            raise ValueError(
                f'network: "{Network.NONE}" reaches nothing outside; "{Network.VETH}" and "{Network.HOST}" do'
            )

    def probe(self) -> Availability:
        """What every such backend needs, and what the options ask for."""
        found = probe_host(self._chosen_namespaces(), without_root=True)
        if found.available and not is_privileged():
            found = probe_without_root(found, self.options.network)
        if found.available and self.options.upper is Upper.DISK:
            found = probe_storage(self.context.work_directory) or found
        if found.available:
            found = probe_program(self.context.cache_directory) or found
        if found.available and self._system:
            found = probe_system(find_layout(), privileged=is_privileged()) or found
        if found.available and self.options.seccomp is Seccomp.DEFAULT:
            filters = probe_seccomp()
            return found if filters.available else filters
        return found

    @classmethod
    def packages(cls, options: NativeOptions) -> tuple[str, ...]:
        return distribution.PACKAGES if options.profile is Profile.FULL else ()

    def _chosen_namespaces(self) -> tuple[str, ...]:
        absent = {"net"} if self.options.network is Network.HOST else set()
        also = {"user": self.options.user_namespace, "time": self.options.time_namespace}
        kept = [name for name in self.namespaces if name not in absent]
        return (*kept, *(name for name, wanted in also.items() if wanted))

    def _find_privileges(self) -> Privileges:
        return AS_ROOT if is_privileged() else find_privileges()

    def _capabilities(self) -> dict[str, int]:
        return dict(DEFAULT_CAPABILITIES if self.options.capabilities is Capabilities.DEFAULT else ())

    def _make_setup(self, folder: Path, image: Image, envelope: Envelope, missing: tuple[str, ...]) -> Setup:
        capabilities = tuple(self._capabilities().values())
        self._filters = compile_filters(capabilities) if self.options.seccomp is Seccomp.DEFAULT else _NO_FILTERS
        options = self.options
        mapped = options.user_namespace and self._privileges == AS_ROOT  # without root there is one already
        in_memory = options.upper is Upper.TMPFS
        places = {name: name if mapped else f"{folder}/{name}" for name in ("root", "empty", "memory")}
        return Setup(
            style=self.style,
            root=places["root"],
            empty=places["empty"],
            memory=places["memory"] if in_memory else "",
            memory_bytes=envelope.memory_bytes // 2 if in_memory else 0,  # as tmpfs takes half the RAM
            mount_points=missing,
            uid_map=REMAPPED if mapped else (),
            gid_map=REMAPPED if mapped else (),
            folder=str(folder) if mapped else "",
            image=str(image.rootfs) if mapped else "",
            lower="lower" if mapped else "",
            also_masked=find_thermal(),
            boot_offset_s=options.boot_offset_s if options.time_namespace else None,
            network=self.options.network,
            capabilities=capabilities,
            inherited_filter=self._filters.inherited,
            own_filter=self._filters.own,
            identities=self._privileges.identities,
            system=self._system,
            above=tuple(name if mapped else f"{folder}/{name}" for name in names_of_layers(options.layers)),
        )

    @property
    def _system(self) -> bool:
        return self.options.profile is Profile.FULL

    def _user_namespace(self) -> dict[str, str]:
        if self._privileges != AS_ROOT:
            inside = "root alone" if self._privileges.identities is Identities.ONE else "0-65535"
            return {"user namespace": f"one for all, the user's own, identities {inside}"}
        return {"user namespace": f"identities {describe_map(REMAPPED)}"} if self.options.user_namespace else {}

    @contextlib.contextmanager
    def _start_network(self) -> Iterator["BridgeNetwork | None"]:
        if self.options.network is not Network.VETH:
            yield None
            return
        from tare.backends.network.bridge import start_network

        with start_network(Network.VETH) as network:
            yield network

    @property
    def _shared_address(self) -> str | None:
        return LOOPBACK if self.options.network is Network.HOST else None

    def host_side(self, spec: InstanceSpec) -> AbstractContextManager[Instance]:
        """Bare metal in the namespace of the bridge, or next to containers on the host."""
        if self.options.network is Network.NONE:
            raise UnsupportedError(
                "a container with the network none reaches nothing outside",
                remedy='options = { network = "veth" }, or "host", for the backend "native"',
            )
        if self._host is None:
            from tare.backends.bare_metal import start_host_side

            starting = start_host_side(self.context, self._network, spec.image, spec.envelope)
            self._host = self._stack.enter_context(starting)
        return self._host.host_side(spec)

    def close(self) -> None:
        self._host = None
        super().close()

    def _describe(self) -> BackendDescription:
        options = self.options
        own_network = options.network is not Network.HOST
        filtered = options.seccomp is Seccomp.DEFAULT
        in_memory = options.upper is Upper.TMPFS
        return BackendDescription(
            label="native (container)",
            kind=IsolationKind.CONTAINER,
            facts=named_facts(
                {
                    "namespaces": ",".join(self._chosen_namespaces()),
                    "root": f"overlay, upper layer {'in memory (tmpfs)' if in_memory else 'on disk'}",
                    **({"image layers": str(options.layers)} if options.layers > 1 else {}),
                    "network": _NETWORKS[self.options.network],
                    **_PATHS[self.options.network],
                    "capabilities": ",".join(self._capabilities()) or "none",
                    "no_new_privs": "yes",
                    "profile": _PROFILES[options.profile],
                    "seccomp": f"default (Docker's intent, {self._filters.allowed} calls allowed)"
                    if filtered
                    else "none",
                    **({"seccomp follows": INTENT} if filtered else {}),
                    **self._user_namespace(),
                    **({"boot clock": f"{options.boot_offset_s:+d} s"} if options.time_namespace else {}),
                },
            ),
            confounds=(
                *([] if filtered else [Confound("no-seccomp", _NO_SECCOMP, self.name)]),
                *([Confound("upper-in-memory", _UPPER_IN_MEMORY, self.name)] if in_memory else []),
                *(
                    [Confound(ConfoundCode.OWN_NETWORK, _OWN_NETWORK[self.options.network], self.name)]
                    if own_network
                    else []
                ),
            ),
        )


def probe_system(layout: Layout, *, privileged: bool) -> Availability | None:
    """Why no container can have systemd here, or None: it has to have a cgroup of version 2 for its own to write to."""
    remedy = 'leave out profile = "full"'
    if not privileged:
        return Availability.no('profile = "full" needs root, for a cgroup of systemd\'s', remedy)
    if layout.unified is None:
        return Availability.no(
            'profile = "full" needs a cgroup v2 hierarchy, in which systemd makes its groups',
            f"mount -t cgroup2 none /sys/fs/cgroup/unified, or {remedy}",
        )
    return None


def find_thermal(root: Path = Path("/")) -> tuple[str, ...]:
    """Each CPU's counts of thermal throttling, which Docker hides since Engine 28, where there are any."""
    found = root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")
    return tuple(sorted(f"/{path.relative_to(root)}" for path in found))
