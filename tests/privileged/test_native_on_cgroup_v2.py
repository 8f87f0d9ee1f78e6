"""``native`` and ``bare-metal`` on a host with cgroups v2 only: a guest with Debian's kernel, which runs our own tests.

The host that runs this may have v1 hierarchies. What is shipped into the guest is this checkout, its contract and
privileged tests, and what they import from the running environment.
"""

import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from tare.backends.native.zygote import find_program
from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.options import VmOptions
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger
from tare.bench.locations import cache_directory
from tare.bench.model import Command, Envelope, InstanceSpec
from tests.shipping import ship

pytestmark = [pytest.mark.root, pytest.mark.tools, pytest.mark.image, pytest.mark.guest]

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
ENVELOPE = Envelope(tuple(sorted(os.sched_getaffinity(0)))[-2:], 896 * 2**20, 512 * 2**20, 8192)
NEEDED = ("msgspec", "platformdirs", "pyseccomp", "pytest")
SUITE_DEADLINE_S = 600
"""Emulated, the run takes a minute on a quiet machine; others may be at work on this one."""

SHIPPED_TESTS = (
    "tests/contract/conftest.py",
    "tests/contract/test_backend_contract.py",
    "tests/privileged/host_kernel.py",
    "tests/privileged/test_native_cgroups.py",
)
PREPARE = """\
set -e
# The guest bounds its commands by a pids hierarchy of version 1, which keeps that controller from version 2.
echo 0 >/run/tare/pids/cgroup.procs
find /run/tare/pids -mindepth 1 -depth -type d -exec rmdir {} +
umount /run/tare/pids
# While its last groups are still being released, an umount leaves the hierarchy as it is.
until grep -qw pids /sys/fs/cgroup/cgroup.controllers; do
    sleep 0.1
    mount -t cgroup -o pids pids /run/tare/pids && umount /run/tare/pids
done
mkdir -p /scratch/tare
tar -x -C /scratch/tare
mount -t erofs -o ro "/dev/$(grep -l '^tare-image$' /sys/block/*/serial | cut -d/ -f4)" /mnt
stat -f -c %T /sys/fs/cgroup
python3 -c 'import platform; print(platform.release())'
"""
RUN = """\
mkdir /sys/fs/cgroup/leaf
echo 0 >/sys/fs/cgroup/leaf/cgroup.procs
cd /scratch/tare
export PYTHONPATH=/scratch/tare/site TARE_CACHE_DIR=/scratch/tare/cache TARE_WORK_DIR=/scratch/work
run() { python3 -m pytest -p no:cacheprovider -q -rsfE --basetemp=/scratch/tmp "$@"; }
run -k "not fake and not vm" tests/contract tests/privileged && run tests/container
"""


def pack(site: Path) -> bytes:
    """tare, the tests and their dependencies as a tar; ``site`` is a folder to collect them in."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(CHECKOUT / "pyproject.toml", "pyproject.toml")
        for name in SHIPPED_TESTS:
            tar.add(CHECKOUT / name, name)
        tar.add(HERE / "in_guest/image_fixture.py", "tests/conftest.py")
        tar.add(HERE / "in_guest/v2_checks.py", "tests/privileged/test_on_v2.py")
        tar.add(HERE / "in_guest/v2_container_checks.py", "tests/container/test_in_container.py")
        cache = cache_directory()  # the guest has no compiler
        find_program(cache, site)
        for kept in cache.glob("native-zygote-*"):
            tar.add(kept, f"cache/{kept.name}")
        tar.add(ship(site, *NEEDED), "site")
    return packed.getvalue()


@pytest.fixture(scope="module")
def guest(image, tmp_path_factory):
    if sys.version_info[:2] != (3, 11):
        have = ".".join(map(str, sys.version_info[:2]))
        pytest.skip(f"the guest has Python 3.11 and this is {have}: msgspec's compiled module would not load there")
    folder = tmp_path_factory.mktemp("v2")
    with Ledger(folder / "ledger") as ledger:
        backend = VirtualMachine(BackendContext(ledger, folder / "work", cache_directory(), VmOptions(), ()))
        found = backend.probe()
        if not found.available:
            pytest.skip(f"vm is not available here: {found.reason}")
        try:
            backend.prepare(image, ENVELOPE)
            with backend.start(InstanceSpec(f"cgroup2-{os.getpid()}", image, ENVELOPE)) as instance:
                done = instance.execute(Command(("sh", "-c", PREPARE), stdin=pack(folder / "site"), timeout_s=300))
                assert done.returncode == 0, done.stderr.decode()
                assert done.stdout.decode().splitlines()[0] == "cgroup2fs"
                yield instance
        finally:
            backend.close()


def test_suite_passes_on_v2(guest):
    done = guest.execute(Command(("sh", "-c", RUN), timeout_s=SUITE_DEADLINE_S))
    told = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    assert not done.timed_out
    assert done.returncode == 0, told
    skipped = [line for line in told.splitlines() if line.startswith("SKIPPED")]
    skipped = [line for line in skipped if "/bench/testing/" not in line]  # what a backend does not declare
    assert all("v1" in line for line in skipped), skipped
    left = guest.execute(Command(("sh", "-c", "find /sys/fs/cgroup -name 'tare-*'")))
    assert left.stdout == b""
