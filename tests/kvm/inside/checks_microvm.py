"""The machine ``microvm`` under KVM: the same guest without PCI, its devices on virtio-mmio."""

from pathlib import Path

import pytest

from tare.bench.model import SCRATCH, Command, Phase
from tests.kvm.inside.conftest import MIB


def said(instance, script):
    return instance.execute(Command(("sh", "-c", script))).stdout.decode().strip()


@pytest.mark.parametrize(
    "options",
    [
        {"stop": "shutdown", "balloon": "on"},
        {"network": "tap", "memory_backing": "memfd"},
        {"disk_bus": "virtio-scsi", "disk_format": "qcow2", "iothread": False},
    ],
)
def test_a_microvm(start, options):
    description, guest = start(machine="microvm", **options)
    assert description.label == "vm (kvm)"
    assert description.texts["machine"] == "microvm"
    with guest as instance:
        line = Path(f"/proc/{instance.pid}/cmdline").read_text()
        assert "microvm," in line
        assert "-pci" not in line
        assert said(instance, "ls /sys/bus/pci/devices | wc -l") == "0"
        assert said(instance, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource") == "kvm-clock"
        before = instance.usage()
        write = f"dd if=/dev/zero of={SCRATCH}/a bs=1M count=16 oflag=direct conv=fsync && echo written"
        assert said(instance, write) == "written"
        after = instance.usage()
        assert after.cpu_s > before.cpu_s
        assert after.io_write_bytes - before.io_write_bytes >= 16 * MIB
        if options.get("network"):
            assert "eth0" in said(instance, "ls /sys/class/net")
        marks = instance.timeline.marks
        assert marks[Phase.REQUESTED] < marks[Phase.CREATED] < marks[Phase.FIRST_INSTRUCTION] < marks[Phase.READY]
