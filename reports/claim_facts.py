"""What a run's manifest and events say of a claim's subject: what a backend is, how large image and host are."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from tare.bench.analysis import Analysis
from tare.bench.catalogue import NoteCode, StopReason
from tare.bench.model import IsolationKind, Manifest

Reference = Literal["envelope_memory", "host_memory_to_envelope", "host_cpus_to_envelope", "image_tree", "image_disk"]
"""What a limit may be a multiple of: bytes, or what the host has over what the envelope gives."""


class Kind(StrEnum):
    """What a rule can be about. A guest is hardware or emulated by the acceleration it was seen to run under."""

    BARE_METAL = "bare-metal"
    CONTAINER = "container"
    VM = "vm"
    HARDWARE_VM = "hardware-vm"
    EMULATED_VM = "emulated-vm"


KIND_WORDS = {
    Kind.BARE_METAL: "bare metal",
    Kind.CONTAINER: "a container",
    Kind.VM: "a virtual machine",
    Kind.HARDWARE_VM: "a guest under hardware virtualization",
    Kind.EMULATED_VM: "an emulated guest",
}


_KINDS = {
    IsolationKind.BARE_METAL: frozenset({Kind.BARE_METAL}),
    IsolationKind.CONTAINER: frozenset({Kind.CONTAINER}),
    IsolationKind.VIRTUAL_MACHINE: frozenset({Kind.VM, Kind.HARDWARE_VM}),
    IsolationKind.EMULATED: frozenset({Kind.VM, Kind.EMULATED_VM}),
}


def kinds_of(manifest: Manifest, backend: str) -> frozenset[Kind]:
    """What rules can be about a backend of a run; empty for kinds of isolation that no rule is about."""
    described = manifest.backends.get(backend)
    return _KINDS.get(described.kind, frozenset()) if described is not None else frozenset()


def references(manifest: Manifest) -> dict[str, float]:
    """What limits may be multiples of, as far as the manifest holds it."""
    envelope, sizes = manifest.envelope, image_sizes(manifest)
    known: dict[str, float] = {"envelope_memory": envelope.memory_bytes}
    known |= {f"image_{new}": sizes[old] for new, old in (("tree", "rootfs"), ("disk", "disk")) if old in sizes}
    host = {fact.name: fact.number for fact in manifest.host}
    if (memory := host.get("memory")) is not None:
        known["host_memory_to_envelope"] = memory / envelope.memory_bytes
    if (cpus := host.get("cpus")) is not None:
        known["host_cpus_to_envelope"] = cpus / len(envelope.cpus)
    return known


def image_sizes(manifest: Manifest) -> dict[str, float]:
    """Bytes of the image's tree and of each file beside it; empty for runs of versions that did not keep them."""
    sizes = manifest.image.get("sizes")
    return {str(name): float(size) for name, size in sizes.items()} if isinstance(sizes, Mapping) else {}


def ran_out(analysis: Analysis, backend: str) -> bool:
    """Whether a density ramp of this backend ended because something of the host ran out, not because it was told."""
    return any(
        event.note_code == NoteCode.DENSITY_STOP
        and event.cell.endswith(f"/{backend}")
        and bool(event.details.get("resource"))
        and event.details.get("reason") in (StopReason.MEMORY_FLOOR, StopReason.FAILURE)
        for event in analysis.run.events
    )


def kernels_seen(analysis: Analysis, backend: str) -> list[str]:
    """The kernel releases that programs inside a backend's instances saw, as ``limits`` noted them."""
    return [
        str(event.details.get("kernel", ""))
        for event in analysis.run.events
        if event.note_code == NoteCode.LIMITS_SEEN and event.cell.endswith(f"/{backend}")
    ]
