"""Options of guests, as QEMU, the host and the guest itself show them: several in one boot."""

import os
from pathlib import Path

import msgspec
import pytest

from backends.native import syscalls
from backends.vm.backend import VirtualMachine
from backends.vm.options import VmOptions
from bench.interfaces import BackendContext
from bench.ledger import Ledger
from bench.model import SCRATCH, Command, Envelope, InstanceSpec

pytestmark = [pytest.mark.root, pytest.mark.tools, pytest.mark.image, pytest.mark.guest]

CPUS = tuple(sorted(os.sched_getaffinity(0)))
MIB = 2**20
ENVELOPE = Envelope(CPUS[-1:], 192 * MIB, 64 * MIB, 64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(cache, image, tmp_path):
    """Starts a guest with options, and sees to it that nothing is left in the ledger."""
    with Ledger(tmp_path / "ledger") as ledger:
        context = BackendContext(ledger, tmp_path / "work", cache, None, CPUS[:-1] or CPUS)
        backends = []

        def started(**options):
            chosen = msgspec.convert({"accel": "tcg", **options}, VmOptions)
            backend = VirtualMachine(BackendContext(**{**as_fields(context), "options": chosen}))
            found = backend.probe()
            if not found.available:
                pytest.skip(f"vm is not available here: {found.reason}")
            backends.append(backend)
            description = backend.prepare(image, ENVELOPE)
            return description, backend.start(InstanceSpec(f"vmoption-{os.getpid()}", image, ENVELOPE))

        yield started
        for backend in backends:
            backend.close()
        assert ledger.entries() == ()


def as_fields(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def qemu_command_line(instance):
    return Path(f"/proc/{instance.pid}/cmdline").read_text().replace("\0", "\n")


def threads(instance):
    """Name and affinity of QEMU's threads."""
    return {
        (task / "comm").read_text().strip(): os.sched_getaffinity(int(task.name))
        for task in Path(f"/proc/{instance.pid}/task").iterdir()
    }


def uses_scratch(instance):
    done = instance.execute(Command(("sh", "-c", f"echo kept > {SCRATCH}/a && sync && cat {SCRATCH}/a")))
    return done.stdout == b"kept\n"


@pytest.mark.skipif(len(CPUS) < 2, reason="needs a CPU beside the guest's")
def test_a_model_apart_on_memfd_and_qcow2(start):
    description, guest = start(
        cpu_model="Westmere",
        pinning="apart",
        memory_backing="memfd",
        disk_format="qcow2",
        io="io_uring",
        iothread=False,
    )
    with guest as instance:
        line = qemu_command_line(instance)
        assert "Westmere" in instance.execute(Command(("grep", "-m1", "model name", "/proc/cpuinfo"))).stdout.decode()
        assert '"qom-type":"memory-backend-memfd"' in line
        assert '"driver":"io_uring"' not in line
        assert line.count('"driver":"qcow2"') == 2
        assert '"aio":"io_uring"' in line
        assert '"qom-type":"iothread"' not in line
        found = threads(instance)
        assert all(
            where == ({CPUS[-1]} if name.startswith("CPU ") else set(CPUS[:-1])) for name, where in found.items()
        )
        assert uses_scratch(instance)
        footprint = instance.footprint()
        assert 0 < footprint.guest_ram_bytes <= ENVELOPE.memory_bytes
        assert 0 < footprint.disk_owned_bytes < footprint.disk_shared_bytes
    assert "more-cpus-than-others" in [confound.code for confound in description.confounds]
    assert description.facts["cpu_model"] == "Westmere"
    assert description.facts["scratch_disk"].startswith("virtio-blk,qcow2,")


@pytest.fixture
def huge_pages(tmp_path):
    """As many huge pages as the guest needs, and the file system that libvirt asks for, for the time of one test."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    folder = tmp_path / "hugepages"
    folder.mkdir()
    syscalls.mount("hugetlbfs", str(folder), "hugetlbfs", 0)
    try:
        setting.write_text(str(int(before) + ENVELOPE.memory_bytes // (2 * MIB) + 8))
        yield
    finally:
        setting.write_text(before)
        syscalls.umount2(str(folder), syscalls.MNT_DETACH)


def test_huge_pages_unpinned_and_without_a_cache(start, huge_pages):
    description, guest = start(memory_backing="hugepages", pinning="none", cache="directsync", io="threads")
    with guest as instance:
        line = qemu_command_line(instance)
        assert '"hugetlb":true' in line
        assert '"cache":{"direct":true,"no-flush":false}' in line
        assert '"qom-type":"iothread"' in line
        assert set(map(frozenset, threads(instance).values())) == {frozenset(ENVELOPE.cpus)}
        assert uses_scratch(instance)
        assert instance.footprint().guest_ram_bytes == pytest.approx(ENVELOPE.memory_bytes, rel=0.1)
    assert description.facts["memory_backing"] == "hugepages"
