"""The ``bare-metal`` backend: the host itself, with the image as its root."""

from pathlib import Path
from typing import ClassVar

from backends.cgroups.layout import Layout
from backends.native.plan import Settings
from backends.native.runtime import HostKernelBackend
from bench.model import BackendDescription, Envelope, Image


class BareMetal(HostKernelBackend):
    """The image as root in a private mount namespace; everything else is the host's.

    The envelope holds here too: its CPUs, and its limits on memory and processes, by a cgroup. So the
    cost of being accounted and limited is in the baseline, and only isolation is in the difference.
    """

    name = "bare-metal"
    summary = "the host itself, with the image as its root"
    style = "bare-metal"
    namespaces: ClassVar[tuple[str, ...]] = ("mnt",)

    def _settings(self, folder: Path, image: Image, envelope: Envelope, missing: tuple[str, ...]) -> Settings:  # noqa: ARG002
        return Settings(style="bare-metal", root=str(folder / "root"), empty=str(folder / "empty"))

    def _describe(self, layout: Layout) -> BackendDescription:  # noqa: ARG002 - nothing here depends on it
        return BackendDescription(
            label="bare-metal",
            facts={
                "namespaces": "mnt",
                "root": "overlay",
                "network": "the host's",
                "limits": "the envelope's CPUs, memory and processes, by a cgroup",
            },
        )
