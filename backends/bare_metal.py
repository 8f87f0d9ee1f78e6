"""The ``bare-metal`` backend: the same programs and files as everywhere, on the host itself.

An instance is a process in a mount namespace whose root is an overlay of the image, like a chroot: it has
the host's own processes, network, users and /proc, but the image's file system as its root.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import msgspec

from tare.backends.native.runtime import HostKernelBackend
from tare.backends.native.setup import Setup
from tare.bench.interfaces import BackendContext, Instance, NoOptions
from tare.bench.model import BackendDescription, Envelope, Image, InstanceSpec, IsolationKind, named_facts
from tare.bench.network_path import LOOPBACK, PATHS_OF_HOST, OtherSide


class BareMetal(HostKernelBackend):
    """The image as root in a private mount namespace; everything else is the host's.

    The envelope holds here too: its CPUs, and its limits on memory and processes, by a cgroup. So the
    cost of being accounted and limited is in the baseline, and only isolation is in the difference.
    """

    name = "bare-metal"
    summary = "the host itself, with the image as its root"
    style = "bare-metal"
    namespaces: ClassVar[tuple[str, ...]] = ("mnt",)

    @property
    def _shared_address(self) -> str:
        return LOOPBACK

    def host_side(self, spec: InstanceSpec) -> AbstractContextManager[Instance]:
        """It is one more instance, on other CPUs where there are any."""
        given = spec.envelope
        cpus = self.context.housekeeping_cpus or given.cpus
        own = Envelope(cpus, given.memory_bytes, given.scratch_bytes, given.pids_max, given.swap_bytes)
        return self.start(msgspec.structs.replace(spec, envelope=own))

    def _make_setup(self, folder: Path, image: Image, envelope: Envelope, missing: tuple[str, ...]) -> Setup:  # noqa: ARG002
        return Setup(style="bare-metal", root=str(folder / "root"), empty=str(folder / "empty"), mount_points=missing)

    def _describe(self) -> BackendDescription:
        return BackendDescription(
            label="bare-metal",
            kind=IsolationKind.BARE_METAL,
            facts=named_facts(
                {
                    "namespaces": "mnt",
                    "root": "overlay",
                    "network": "the host's",
                    **PATHS_OF_HOST,
                    "limits": "the envelope's CPUs, memory and processes, by a cgroup",
                },
            ),
        )


class HostSide(BareMetal):
    """Bare metal at the other end of what is measured: where ``network`` is, or in the host's own.

    Use its ``host_side``; made by ``start_host_side``.
    """

    name = "host-side"

    def __init__(self, context: BackendContext, network: OtherSide | None) -> None:
        super().__init__(msgspec.structs.replace(context, options=NoOptions()))
        self._beside = network

    @property
    def _shared_address(self) -> str:
        return LOOPBACK if self._beside is None else self._beside.address

    def _zygote_place(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self._beside is None else self._beside.inside()


@contextlib.contextmanager
def start_host_side(
    context: BackendContext, network: OtherSide | None, image: Image, envelope: Envelope
) -> Iterator[HostSide]:
    """The host's side of ``network``, ready to start environments. Raises TareError."""
    side = HostSide(context, network)
    try:
        side.prepare(image, envelope)
        yield side
    finally:
        side.close()
