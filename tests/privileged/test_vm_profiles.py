"""Guests that boot the whole distribution: systemd is what it says, and the boot is told in its parts."""

import os

import pytest

from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.disks import probe_boot_disk
from tare.backends.vm.options import Profile, VmOptions
from tare.bench.errors import BackendError
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger
from tare.bench.model import SCRATCH, Command, Envelope, InstanceSpec, Phase
from tests.accelerator import ACCEL

pytestmark = [pytest.mark.root, pytest.mark.tools, pytest.mark.image, pytest.mark.guest]

CPUS = tuple(sorted(os.sched_getaffinity(0)))
MIB = 2**20
ENVELOPE = Envelope(CPUS[-1:], 256 * MIB, 64 * MIB, 77)
LOOK = f"""
cat /proc/1/comm
grep -o BOOT_IMAGE=/vmlinuz /proc/cmdline
systemctl is-active multi-user.target tare-agent.service
cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/../pids.max
echo kept > {SCRATCH}/a && cat {SCRATCH}/a
systemctl show --value --property UserspaceTimestampMonotonic
systemctl show --value --property ActiveEnterTimestampMonotonic multi-user.target
systemctl list-units --plain --no-legend 'nginx*' 'redis*' 'postgres*' 'mariadb*'
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(cache, tmp_path):
    """Starts a guest of a profile, and sees to it that nothing is left in the ledger."""
    with Ledger(tmp_path / "ledger") as ledger:
        backends = []

        def started(profile, image):
            options = VmOptions(accel=ACCEL, profile=profile, stop="shutdown")
            backend = VirtualMachine(BackendContext(ledger, tmp_path / "work", cache, options, CPUS))
            found = backend.probe()
            if not found.available:
                pytest.skip(f"vm is not available here: {found.reason}")
            backends.append(backend)
            assert backend.prepare(image, ENVELOPE).texts["profile"].startswith(f"{profile}: ")
            return backend.start(InstanceSpec(f"vmprofile-{os.getpid()}", image, ENVELOPE))

        yield started
        for backend in backends:
            backend.close()
        assert ledger.entries() == ()


def said(instance, script):
    return instance.execute(Command(("sh", "-c", script))).stdout.decode().split()


def test_a_whole_distribution_boots_and_powers_off(start, catalogue_image):
    """Through the firmware where this host has what that needs: from the kernel on it is the same as ``full``."""
    profile = Profile.FIRMWARE if probe_boot_disk().available else Profile.FULL
    with start(profile, catalogue_image) as instance:
        *seen, began, reached = said(instance, LOOK)
    # No service of a workload's package is there beside what is measured: nothing comes after the two times.
    assert seen == [
        "systemd",
        *(["BOOT_IMAGE=/vmlinuz"] * (profile is Profile.FIRMWARE)),
        "active",
        "active",
        "77",
        "kept",
    ]
    marks, splits = instance.timeline.marks, instance.timeline.splits
    assert (Phase.LOADER in marks) == (profile is Profile.FIRMWARE)
    order = [phase for phase in Phase if phase in marks or phase is not Phase.LOADER]
    assert sorted(marks, key=marks.__getitem__) == order
    # systemd's own figure begins with its first instruction, ours when it is executed; both end at the target.
    userspace = (int(reached) - int(began)) / 1e6
    assert splits["guest.system"] == pytest.approx(userspace, rel=0.15, abs=1.0)
    assert splits["guest.init"] == pytest.approx(splits["guest.initramfs"] + splits["guest.system"])


def test_an_image_without_systemd_says_so(start, image):
    with pytest.raises(BackendError, match="starting the distribution's init") as caught, start(Profile.FULL, image):
        pass
    assert "systemd-sysv" in caught.value.remedy
