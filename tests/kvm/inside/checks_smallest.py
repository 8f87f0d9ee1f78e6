"""Guests under KVM, as the host sees them: run by ``tests/kvm`` where there is a KVM that works."""

import os
from pathlib import Path

import msgspec
import pytest

from tare.backends.cgroups.layout import find_layout
from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.options import VmOptions
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger
from tare.bench.linux.processes import find_status
from tare.bench.locations import cache_directory
from tare.bench.model import SCRATCH, Command, Envelope, InstanceSpec, IsolationKind

CPUS = tuple(sorted(os.sched_getaffinity(0)))
MIB = 2**20
ENVELOPE = Envelope(CPUS[-1:], 192 * MIB, 64 * MIB, 64)
CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"


@pytest.fixture
def start(image, tmp_path, monkeypatch):
    """Starts a guest under KVM, and sees to it that nothing is left of it.

    An emulated host on a busy machine is slower than any that guests were given their deadlines for.
    """
    monkeypatch.setattr("tare.backends.vm.boot.BOOT_DEADLINE_S", 300.0)
    monkeypatch.setattr("tare.backends.vm.boot.AGENT_DEADLINE_S", 120)
    with Ledger(tmp_path / "ledger") as ledger:
        backends = []

        def started(**options):
            chosen = msgspec.convert({"accel": "kvm", "proof_timeout_s": 400, **options}, VmOptions)
            context = BackendContext(ledger, tmp_path / "work", cache_directory(), chosen, CPUS[:-1])
            backends.append(VirtualMachine(context))
            description = backends[-1].prepare(image, ENVELOPE)
            return description, backends[-1].start(InstanceSpec(f"kvm-{os.getpid()}", image, ENVELOPE))

        yield started
        for backend in backends:
            backend.close()
        assert ledger.entries() == ()
    assert not list((tmp_path / "work").glob("*"))
    assert not [pid for pid, name in process_names() if name.startswith("qemu-system")]
    layout = find_layout()
    roots = {folder for folder in (layout.unified, *layout.controllers.values()) if folder is not None}
    assert [folder for root in roots for folder in root.glob(f"tare-kvm-{os.getpid()}*")] == []


def process_names():
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (status := find_status(int(folder.name))) is not None:
            yield int(folder.name), status.name


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
