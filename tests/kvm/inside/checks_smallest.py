"""Guests under KVM, as the host sees them: run by ``tests/kvm`` where there is a KVM that works."""

import os
from pathlib import Path

from tare.bench.model import SCRATCH, Command, IsolationKind
from tests.kvm.inside.conftest import CPUS, ENVELOPE, MIB

CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"


def threads(instance):
    """Name and affinity of QEMU's threads."""
    return {
        (task / "comm").read_text().strip(): os.sched_getaffinity(int(task.name))
        for task in Path(f"/proc/{instance.pid}/task").iterdir()
    }


def said(instance, *argv):
    return instance.execute(Command(argv)).stdout.decode().strip()


def test_a_guest_under_kvm(start):
    description, guest = start(pinning="apart")
    assert (description.label, description.kind) == ("vm (kvm)", IsolationKind.VIRTUAL_MACHINE)
    codes = {confound.code for confound in description.confounds}
    assert "accel-tcg" not in codes
    with guest as instance:
        assert "<domain type='kvm'" in instance._running.domain.handle.XMLDesc(0)
        assert "-accel\0kvm\0" in Path(f"/proc/{instance.pid}/cmdline").read_text()
        assert said(instance, "cat", CLOCK) == "kvm-clock"
        where = threads(instance)
        assert where.pop("CPU 0/KVM") == {CPUS[-1]}
        assert all(on == set(CPUS[:-1]) for on in where.values()), where
        assert instance._running.cgroup.members() == [instance.pid]
        assert instance.footprint().processes == 1
        before, steal = instance.usage(), instance.guest_steal_s()
        write = ("dd", "if=/dev/zero", f"of={SCRATCH}/a", "bs=1M", "count=16", "oflag=direct", "conv=fsync")
        assert instance.execute(Command(write)).returncode == 0
        spin = "import time\nwhile time.process_time() < 0.5: pass"
        assert instance.execute(Command(("python3", "-c", spin))).returncode == 0
        after = instance.usage()
        assert 0.3 < after.cpu_vcpu_s - before.cpu_vcpu_s < after.cpu_s - before.cpu_s
        assert 0 <= steal <= instance.guest_steal_s()
        assert after.io_write_bytes - before.io_write_bytes >= 16 * MIB
        assert 0 < instance.footprint().guest_ram_bytes <= ENVELOPE.memory_bytes
        assert instance.footprint().tcg_cache_bytes is None


def test_a_guest_that_goes_on_from_a_saved_one(start):
    description, guest = start(start="restore", stop="shutdown")
    assert description.label == "vm (kvm)"
    with guest as instance:
        assert said(instance, "cat", CLOCK) == "kvm-clock"
        assert said(instance, "echo", "hello") == "hello"
