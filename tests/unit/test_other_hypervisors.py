"""The configurations in docs/other-hypervisors.md have the fields, and only those, of the programs' API definitions.

Firecracker's is ``src/firecracker/swagger/firecracker.yaml`` (FullVmConfiguration), Cloud Hypervisor's
``vmm/src/api/openapi/cloud-hypervisor.yaml`` (VmConfig); here are the parts of them that the page uses.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from tare.backends.vm.boot import KERNEL_ARGUMENTS
from tare.backends.vm.domain_xml import IMAGE_SERIAL, SCRATCH_SERIAL

PAGE = (Path(__file__).parents[2] / "docs/other-hypervisors.md").read_text("utf-8")
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
GuestCid = Annotated[int, msgspec.Meta(ge=3)]


class Strict(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    """An object of an API: an unknown field is an error there."""


class Snake(msgspec.Struct, forbid_unknown_fields=True):
    """The same, with names as they are here."""


class BootSource(Snake):
    kernel_image_path: str
    initrd_path: str
    boot_args: str


class MachineConfiguration(Snake):
    vcpu_count: Annotated[int, msgspec.Meta(ge=1, le=32)]
    mem_size_mib: int
    huge_pages: Literal["None", "Transparent", "2M"]


class Drive(Snake):
    drive_id: str
    path_on_host: str
    is_root_device: bool
    is_read_only: bool
    io_engine: Literal["Sync", "Async"] = "Sync"


class NetworkInterface(Snake):
    iface_id: str
    host_dev_name: str


class FirecrackerVsock(Snake):
    guest_cid: GuestCid
    uds_path: str


class FullVmConfiguration(Strict):
    boot_source: BootSource
    machine_config: MachineConfiguration
    drives: list[Drive]
    network_interfaces: list[NetworkInterface]
    vsock: FirecrackerVsock


class Payload(Snake):
    kernel: str
    initramfs: str
    cmdline: str


class CpuAffinity(Snake):
    vcpu: int
    host_cpus: list[int]


class Cpus(Snake):
    boot_vcpus: AtLeastOne
    max_vcpus: AtLeastOne
    affinity: list[CpuAffinity]


class MemoryConfig(Snake):
    size: int
    hugepages: bool


class Disk(Snake):
    path: str
    serial: str
    readonly: bool = False
    direct: bool = False


class Net(Snake):
    tap: str


class Console(Snake):
    mode: Literal["Off", "Pty", "Tty", "File", "Socket", "Null"]
    file: str = ""


class Vsock(Snake):
    cid: GuestCid
    socket: str


class VmConfig(Snake):
    payload: Payload
    cpus: Cpus
    memory: MemoryConfig
    disks: list[Disk]
    net: list[Net]
    serial: Console
    console: Console
    vsock: Vsock


@pytest.fixture(scope="module")
def configurations():
    firecracker, cloud = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    return msgspec.json.decode(firecracker, type=FullVmConfiguration), msgspec.json.decode(cloud, type=VmConfig)


def test_both_boot_what_a_guest_here_boots(configurations):
    firecracker, cloud = configurations
    for arguments in (firecracker.boot_source.boot_args, cloud.payload.cmdline):
        words = arguments.split()
        assert set(KERNEL_ARGUMENTS) - {"no_timer_check"} <= set(words), "no emulated timer is checked"
        assert {"tare.pids=512", "tare.scratch=disk"} <= set(words)
    assert [disk.is_read_only for disk in firecracker.drives] == [True, False]
    assert [(disk.serial, disk.readonly) for disk in cloud.disks] == [(IMAGE_SERIAL, True), (SCRATCH_SERIAL, False)]
    assert firecracker.machine_config.mem_size_mib * 2**20 == cloud.memory.size
    assert not any(drive.is_root_device for drive in firecracker.drives), "its root is what init mounts"


def test_a_field_that_is_none_of_theirs_is_refused():
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"tap": "tap0", "bridge": "br0"}, Net)
