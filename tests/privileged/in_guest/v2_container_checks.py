"""tare in a container's only cgroup, which has processes and so hands nothing on. In a guest."""

import os
from pathlib import Path

import pytest

from tare.backends.cgroups.layout import find_layout
from tare.backends.native import syscalls
from tare.bench.ledger import Ledger
from tare.bench.linux.files import write_text
from tare.bench.model import Command
from tests.privileged.host_kernel import ENVELOPE, spec, start_backend

TOP = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module", autouse=True)
def container():
    """Shows this process no more of the tree than a container sees. No way back: it has a pytest of its own."""
    (TOP / "container").mkdir()
    write_text(TOP / "container/cgroup.procs", "0")
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWCGROUP)
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
    syscalls.umount2(str(TOP), 0)
    syscalls.mount("cgroup2", str(TOP), "cgroup2", 0)


@pytest.mark.parametrize("name", ["native", "bare-metal"])
def test_instances_work_and_what_is_not_enforced_is_told(name, image, tmp_path):
    assert find_layout().unified == TOP
    assert str(os.getpid()) in (TOP / "cgroup.procs").read_text().split()
    with (
        Ledger(tmp_path / "ledger") as ledger,
        start_backend(name, image, tmp_path / "work", ledger) as backend,
    ):
        confounds = {confound.code for confound in backend.prepare(image, ENVELOPE).confounds}
        assert confounds >= {f"no-{name}-controller" for name in ("cpu", "cpuset", "io", "memory", "pids")}
        with backend.start(spec("v2", image)) as instance:
            assert instance.pid in instance.cgroup.members()
            done = instance.execute(Command(("sh", "-c", "setsid sleep 100 & sleep 100"), timeout_s=0.5))
            assert done.timed_out
            assert instance.cgroup.members() == [instance.pid]
            usage = instance.usage()
            assert usage.cpu_s > 0
            assert set(usage.missing) >= {"memory_peak_bytes", "io_read_bytes", "io_write_bytes", "cpu_throttled_s"}
    assert (TOP / "cgroup.subtree_control").read_text().strip() == ""
