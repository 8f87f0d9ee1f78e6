"""Options of guests, as QEMU, the host and the guest itself show them: several in one boot."""

import os
import tempfile
from pathlib import Path

import msgspec
import pytest

from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.options import VmOptions
from tare.bench.errors import UnavailableError
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger
from tare.bench.model import SCRATCH, Command, Envelope, InstanceSpec, Phase
from tests.accelerator import ACCEL
from tests.privileged.libvirt_daemon import find_daemons, start_daemons

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
            chosen = msgspec.convert({"accel": ACCEL, **options}, VmOptions)
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
def test_a_model_apart_on_memfd_with_a_shared_folder(start):
    description, guest = start(
        cpu_model="qemu64",  # which every processor can give, an emulated host's too
        pinning="apart",
        memory_backing="memfd",
        balloon="free-page-reporting",
        scratch="virtiofs",
    )
    with guest as instance:
        line = qemu_command_line(instance)
        assert (
            "QEMU Virtual CPU"
            in instance.execute(Command(("grep", "-m1", "model name", "/proc/cpuinfo"))).stdout.decode()
        )
        assert '"qom-type":"memory-backend-memfd"' in line
        assert '"free-page-reporting":true' in line
        where = threads(instance)
        assert all(on == ({CPUS[-1]} if name.startswith("CPU ") else set(CPUS[:-1])) for name, on in where.items())
        assert 0 < instance.footprint().guest_ram_bytes <= ENVELOPE.memory_bytes
        shared = instance._running.scratch
        check_share(instance, shared)
        names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in instance._running.cgroup.members()]
        assert "virtiofsd" in names
    assert not shared.exists()
    assert "more-cpus-than-others" in [confound.code for confound in description.confounds]
    assert description.texts["cpu_model"] == "qemu64"
    assert description.texts["scratch_disk"].startswith("virtiofs,")


def check_share(instance, shared):
    """The guest's scratch is the host's folder, both ways, and its blocks are the instance's."""
    mounts = instance.execute(Command(("cat", "/proc/mounts"))).stdout.decode()
    assert f" {SCRATCH} virtiofs " in mounts
    assert uses_scratch(instance)
    assert (shared / "a").read_text() == "kept\n"
    (shared / "b").write_text("from the host\n")
    assert instance.execute(Command(("cat", f"{SCRATCH}/b"))).stdout == b"from the host\n"
    before = instance.footprint().disk_owned_bytes
    write = ("dd", "if=/dev/urandom", f"of={SCRATCH}/c", "bs=1M", "count=8", "oflag=direct")
    assert instance.execute(Command(write)).returncode == 0
    assert instance.footprint().disk_owned_bytes >= before + 8 * MIB


@pytest.fixture
def huge_pages():
    """As many huge pages as the guest needs, reserved for the time of one test."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    setting.write_text(str(int(before) + ENVELOPE.memory_bytes // (2 * MIB) + 8))
    yield
    setting.write_text(before)


def test_huge_pages_unpinned_with_qcow2_on_scsi(start, huge_pages):
    description, guest = start(
        memory_backing="hugepages",
        pinning="none",
        balloon="on",
        disk_bus="virtio-scsi",
        disk_format="qcow2",
        cache="directsync",
        io="io_uring",
        iothread=False,
    )
    with guest as instance:
        devices = instance.execute(Command(("sh", "-c", "ls /sys/block; ls /sys/bus/virtio/drivers/virtio_balloon")))
        assert {b"sda", b"sdb", b"module"} <= set(devices.stdout.split())
        assert not any(name.startswith(b"vd") for name in devices.stdout.split())
        line = qemu_command_line(instance)
        assert '"hugetlb":true' in line
        assert '"cache":{"direct":true,"no-flush":false}' in line
        assert '"aio":"io_uring"' in line
        assert line.count('"driver":"qcow2"') == 2
        assert '"qom-type":"iothread"' not in line
        assert set(map(frozenset, threads(instance).values())) == {frozenset(ENVELOPE.cpus)}
        assert uses_scratch(instance)
        footprint = instance.footprint()
        assert footprint.guest_ram_bytes == pytest.approx(ENVELOPE.memory_bytes, rel=0.1)
        assert 0 < footprint.disk_owned_bytes < footprint.disk_shared_bytes
    assert description.texts["memory_backing"] == "hugepages"
    assert description.texts["scratch_disk"].startswith("virtio-scsi,qcow2,cache=directsync,io=io_uring,main loop")


@pytest.fixture
def system_uri():
    """A system driver of this test's own. Its folder is short, because sockets lie in it."""
    if find_daemons() is None:
        pytest.skip("libvirtd or virtlogd (Debian packages libvirt-daemon and libvirt-daemon-system) is not installed")
    with tempfile.TemporaryDirectory(prefix="tare-d") as folder, start_daemons(Path(folder)) as uri:
        yield uri


def test_a_guest_of_a_daemon_lives_in_its_instance_s_cgroup(start, system_uri):
    description, guest = start(connection=system_uri)
    with guest as instance:
        assert instance._running.cgroup.members() == [instance.pid]
        assert all(where <= set(ENVELOPE.cpus) for where in threads(instance).values())
        joined = {folder.name for folder in instance._running.cgroup.folders}
        for task in Path(f"/proc/{instance.pid}/task").iterdir():
            assert joined <= {line.rpartition("/")[2] for line in (task / "cgroup").read_text().splitlines()}
        assert Path(f"/proc/{instance.pid}").stat().st_uid == 0
        before = instance.usage()
        spent = sum(map(int, Path(f"/proc/{instance.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        not_charged = spent / os.sysconf("SC_CLK_TCK") - before.cpu_s
        assert -0.1 < not_charged < 0.2 * before.cpu_s
        assert uses_scratch(instance)
        after = instance.usage()
        assert before.cpu_vcpu_s < after.cpu_vcpu_s < after.cpu_s
        marks = instance.timeline.marks
        assert marks[Phase.REQUESTED] < marks[Phase.CREATED] < marks[Phase.FIRST_INSTRUCTION] < marks[Phase.READY]
    assert not Path(f"/proc/{instance.pid}").exists()
    assert "start-not-charged" in [confound.code for confound in description.confounds]
    assert description.texts["connection"] == system_uri


def test_a_daemon_that_does_not_answer_is_told_as_such(start, tmp_path):
    with pytest.raises(UnavailableError, match=r"is not answered by a daemon: .*No such file") as caught:
        start(connection=f"qemu+unix:///system?socket={tmp_path}/none")
    assert "start libvirtd and virtlogd" in caught.value.remedy
