"""Bare metal is the host itself: only the root and the mounts differ."""

from pathlib import Path

import pytest

from tare.bench.ledger import Ledger
from tare.bench.model import Command
from tests.privileged.host_kernel import ENVELOPE, spec, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]


@pytest.fixture(scope="module")
def instance(image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare-metal")
    with (
        Ledger(folder / "ledger") as ledger,
        start_backend("bare-metal", image, folder / "work", ledger) as backend,
        backend.start(spec("bare", image)) as started,
    ):
        yield started


def output(instance, script):
    return instance.execute(Command(("sh", "-c", script))).stdout.decode().strip()


@pytest.mark.parametrize("name", ["pid", "net", "uts", "ipc", "cgroup", "user"])
def test_namespaces_are_the_hosts(instance, name):
    assert output(instance, f"readlink /proc/self/ns/{name}") == str(Path(f"/proc/self/ns/{name}").readlink())


def test_the_mount_namespace_is_its_own(instance):
    assert output(instance, "readlink /proc/self/ns/mnt") != str(Path("/proc/self/ns/mnt").readlink())


def test_capabilities_are_the_hosts(instance):
    ours = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(("Cap", "NoNew"))]
    assert output(instance, "grep -E '^(Cap|NoNew)' /proc/self/status").splitlines() == ours


def test_the_image_is_the_root(instance, image):
    release = (image.rootfs / "etc/os-release").read_text().strip()
    assert output(instance, "cat /etc/os-release") == release


def test_proc_sys_and_dev_are_the_hosts(instance):
    assert output(instance, "cat /proc/1/comm") == Path("/proc/1/comm").read_text().strip()
    assert set(output(instance, "ls -A /dev").split()) == {path.name for path in Path("/dev").iterdir()}
    assert set(output(instance, "ls /sys/class/net").split()) == {
        path.name for path in Path("/sys/class/net").iterdir()
    }


def test_the_envelope_is_enforced_by_its_cgroup(instance):
    assert output(instance, "python3 -c 'import os; print(*os.sched_getaffinity(0))'") == str(ENVELOPE.cpus[0])
    limits = [folder / "memory.limit_in_bytes" for folder in instance.cgroup.folders]
    limits += [folder / "memory.max" for folder in instance.cgroup.folders]
    assert [limit.read_text().strip() for limit in limits if limit.exists()] == [str(ENVELOPE.memory_bytes)]


def test_mounts_do_not_reach_the_host(instance):
    before = Path("/proc/self/mountinfo").read_text()
    assert output(instance, "mount -t tmpfs inside /mnt && grep -c inside /proc/self/mountinfo") == "1"
    assert Path("/proc/self/mountinfo").read_text() == before
