"""What differs between hypervisors in a domain's XML; everything else of ``domain_xml`` is the same for all.

Guests have been run under QEMU only. Xen and Cloud Hypervisor are written by libvirt's documentation and checked
against its schema; no suite can ask for them, because tare has no place to run them (docs/vm.md).
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class Accelerator(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class Hypervisor(StrEnum):
    """What the guest's devices are made of."""

    QEMU = "qemu"
    XEN = "xen"
    CLOUD_HYPERVISOR = "cloud-hypervisor"


class Traits(msgspec.Struct, frozen=True):
    """``types`` are the values of ``<domain type>``; ``machine`` None leaves it to the driver.

    ``disk_bus`` and ``disk_prefix`` replace those of the guest's disks. ``console`` is its character device, unix where
    tare can listen to it. ``channel`` is the type of the targets of channels, None where it has none. ``full`` says
    that it has all the rest that libvirt has elements for: threads to pin, memory backings, balloon, virtiofs, labels.
    """

    types: Mapping[Accelerator, str]
    machine: str | None
    disk_bus: str | None
    disk_prefix: str | None
    console: str
    channel: str | None
    full: bool


TRAITS = {
    Hypervisor.QEMU: Traits(
        types={Accelerator.KVM: "kvm", Accelerator.TCG: "qemu"},
        machine="q35",
        disk_bus=None,
        disk_prefix=None,
        console="unix",
        channel="virtio",
        full=True,
    ),
    Hypervisor.XEN: Traits(
        types={Accelerator.KVM: "xen"},
        machine="xenfv",
        disk_bus="xen",
        disk_prefix="xvd",
        console="unix",
        channel="xen",
        full=False,
    ),
    Hypervisor.CLOUD_HYPERVISOR: Traits(
        types={Accelerator.KVM: "kvm"},
        machine=None,
        disk_bus="virtio",
        disk_prefix="vd",
        console="pty",
        channel=None,
        full=False,
    ),
}
