"""What tests of guests under KVM start them with, on a host with a KVM that works."""

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
from tare.bench.model import Envelope, InstanceSpec

CPUS = tuple(sorted(os.sched_getaffinity(0)))
MIB = 2**20
ENVELOPE = Envelope(CPUS[-1:], 192 * MIB, 64 * MIB, 64)


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
