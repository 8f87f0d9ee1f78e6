"""Real cgroups: limits, accounting, killing, with the v2 tree beside v1 and without it."""

import os
import signal
import sys
import time

import msgspec
import pytest

from tare.backends.cgroups.layout import Version, find_layout
from tare.backends.cgroups.lifecycle import start_cgroup
from tare.backends.native import runtime
from tare.bench.errors import BackendError, UnavailableError
from tare.bench.ledger import Ledger, ResourceKind
from tare.bench.linux import cgroups
from tare.bench.linux.mounts import find_block_device
from tare.bench.model import SCRATCH, Command
from tare.bench.process import DEVNULL, PIPE, Popen
from tests.privileged.host_kernel import BACKENDS, ENVELOPE, spec, start_backend

pytestmark = pytest.mark.root

LIMITS = {"cpus": ENVELOPE.cpus, "memory_bytes": 64 * 2**20, "pids_max": 20}
JOIN = 'for file in "$@"; do echo 0 > "$file"; done; '


@pytest.fixture(params=["as mounted", "v1 only"])
def layout(request):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    found = find_layout()
    if found.version is Version.NONE:
        pytest.skip("no cgroup hierarchy is mounted")
    if request.param == "v1 only":
        if found.version is not Version.HYBRID:
            pytest.skip(f"v1 without a v2 tree can be tried on a hybrid host only; this one has {found.version.value}")
        return msgspec.structs.replace(found, version=Version.V1, unified=None, unified_root=None)
    return found


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger") as opened:
        yield opened


def start_inside(cgroup, script):
    argv = ["bash", "-c", JOIN + script, "bash", *map(str, cgroup.join_files)]
    return Popen(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_members_are_limited_accounted_killed_and_removed(layout, ledger):
    with start_cgroup(ledger, f"life-{os.getpid()}", LIMITS, layout) as cgroup:
        assert [entry.target for entry in ledger.entries()] == [str(folder) for folder in cgroup.folders]
        process = start_inside(cgroup, "while :; do :; done & wait")
        wait_for(lambda: len(cgroup.members()) == 2)
        wait_for(lambda: cgroup.meter.usage().cpu_s > 0.2)
        assert {cpu for pid in cgroup.members() for cpu in os.sched_getaffinity(pid)} == set(ENVELOPE.cpus)
        assert 0 < cgroup.meter.read("memory_current_bytes") <= cgroup.meter.usage().memory_peak_bytes <= 64 * 2**20
        cgroup.kill(keep=(process.pid,))
        assert cgroup.members() in ([process.pid], [])
    assert process.wait(10) in {-signal.SIGKILL, 0, 128 + signal.SIGKILL}
    assert not any(folder.exists() for folder in cgroup.folders)
    assert ledger.entries() == ()


def test_time_and_io_are_limited_and_accounted(layout, ledger, tmp_path):
    device = find_block_device(tmp_path)
    if device is None:
        pytest.skip(f"{tmp_path} lies on no block device")
    limits = dict(
        LIMITS, cpu_quota=0.2, cpu_weight=50, io_device=device, io_write_bytes_per_s=2**20, io_read_ops_per_s=500
    )
    writes = f"dd if=/dev/zero of={tmp_path}/io bs=64k count=12 oflag=direct 2>/dev/null; "
    with start_cgroup(ledger, f"rates-{os.getpid()}", limits, layout) as cgroup:
        began = time.monotonic()
        process = start_inside(cgroup, f"{writes} while :; do :; done")
        wait_for(lambda: cgroup.meter.usage().io_write_operations >= 12)
        assert time.monotonic() - began > 0.5, "768 KiB at 1 MiB a second"
        wait_for(lambda: cgroup.meter.usage().cpu_throttled_periods >= 2)
        usage = cgroup.meter.usage()
        assert usage.io_write_bytes >= 12 * 2**16
        assert usage.cpu_periods >= usage.cpu_throttled_periods
        assert usage.cpu_throttled_s > 0
        assert usage.memory_file_bytes is not None
        if layout.version is not Version.V1:
            assert usage.missing == {}
            assert usage.io_pressure_s > 0.2
            assert usage.cpu_pressure_s > 0
        else:
            assert set(usage.missing) == {"cpu_pressure_s", "memory_pressure_s", "io_pressure_s"}
        weights = [folder / name for folder in cgroup.folders for name in ("cpu.shares", "cpu.weight")]
        assert [file.read_text().strip() for file in weights if file.exists()] in (["512"], ["50"])
    process.wait(10)


V1_ONLY = """
import os, sys
from pathlib import Path
from tare.backends.cgroups.layout import find_layout
from tare.backends.native import syscalls
from tare.bench.ledger import Ledger
from tare.bench.model import Command, Image
from tests.privileged.host_kernel import spec, start_backend
rootfs, folder = sys.argv[1:]
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
syscalls.umount2(str(find_layout().unified_root), 0)
image = Image("", "", Path(rootfs), Path(rootfs), None, None, None, "", {}, 0)
folder = Path(folder)
with Ledger(folder / "ledger") as ledger, start_backend("native", image, folder / "work", ledger) as backend:
    with backend.start(spec("v1-only", image)) as instance:
        done = instance.execute(Command(("sh", "-c", "setsid sleep 100 & sleep 100"), timeout_s=0.5))
        assert done.timed_out and instance.cgroup.members() == [instance.pid]
        print(find_layout().version, instance.cgroup.clone_into, instance.usage().cpu_user_s is not None)
"""


@pytest.mark.image
def test_a_host_that_mounts_no_v2_tree(image, tmp_path):
    found = find_layout()
    if found.version is not Version.HYBRID:
        pytest.skip(f"v1 alone can be had by unmounting on a hybrid host only; this one has {found.version.value}")
    argv = [sys.executable, "-c", V1_ONLY, str(image.rootfs), str(tmp_path)]
    with Popen(argv, stdout=PIPE, stderr=PIPE, text=True) as process:
        told, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert told.split() == ["v1", "None", "True"]


@pytest.mark.image
def test_an_envelope_that_this_host_cannot_enforce_is_told(image, layout, tmp_path, monkeypatch):
    without = {name: folder for name, folder in layout.controllers.items() if name not in {"cpu", "blkio"}}
    if not without:
        pytest.skip("a v1 controller can be left out where there are v1 controllers")
    fewer = msgspec.structs.replace(layout, controllers=without)
    monkeypatch.setattr(runtime, "find_layout", lambda *_: fewer)
    asked = msgspec.structs.replace(ENVELOPE, cpu_quota=0.5, cpu_weight=50, io_write_bytes_per_s=2**20)
    with Ledger(tmp_path / "ledger") as ledger, start_backend("native", image, tmp_path / "work", ledger) as backend:
        confounds = {confound.code: confound.detail for confound in backend.prepare(image, asked).confounds}
        assert set(confounds) >= {"no-cpu-controller", "no-blkio-controller", "io-limit-direct-only"}
        for key in ("cpu_quota", "cpu_weight", "io_write_bytes_per_s"):
            assert f"the limit {key} is not enforced: no " in confounds[f"no-limit-{key}"]
        with backend.start(spec("fewer", image, asked)) as instance:
            assert instance.execute(Command(("true",))).returncode == 0
    assert not [path for path in (tmp_path / "work").iterdir() if path.is_dir()]


def test_a_fork_bomb_does_not_escape(layout, ledger):
    with start_cgroup(ledger, f"bomb-{os.getpid()}", LIMITS, layout) as cgroup:
        process = start_inside(cgroup, "f() { while :; do f & done; }; f 2>/dev/null")
        wait_for(lambda: len(cgroup.members()) >= 15)
        assert len(cgroup.members()) <= 20
        wait_for(lambda: cgroup.meter.read("pids_refused") > 0)
    process.wait(10)
    assert not any(folder.exists() for folder in cgroup.folders)


def test_a_refused_limit_is_told_and_undone(layout, ledger):
    absurd = {**LIMITS, "cpus": (4095,)}
    with (
        pytest.raises(BackendError, match=r"refused a cgroup: .*cpuset\.cpus"),
        start_cgroup(ledger, f"refused-{os.getpid()}", absurd, layout) as cgroup,
    ):
        raise AssertionError(cgroup)
    assert ledger.entries() == ()
    folders = [layout.unified, *layout.controllers.values()]
    assert not any(list(folder.glob(f"tare-refused-{os.getpid()}")) for folder in folders if folder is not None)


def test_cgroups_that_an_instance_made_are_removed_with_it(layout, ledger):
    with start_cgroup(ledger, f"nested-{os.getpid()}", LIMITS, layout) as cgroup:
        (cgroup.folders[0] / "inner").mkdir()
    assert not cgroup.folders[0].exists()


def test_what_is_made_in_a_cgroup_while_it_is_removed_goes_too(layout, ledger, monkeypatch):
    """As by the monitor of LXC, which goes on between the listing and the kill."""
    with start_cgroup(ledger, f"late-{os.getpid()}", LIMITS, layout) as cgroup:
        (folder, *_) = cgroup.folders
        kill, made = cgroups.kill_members, []

        def kill_late(group, **options):
            if not made:
                made.append(group / "late")
                (made[0] / "later").mkdir(parents=True)
            kill(group, **options)

        monkeypatch.setattr(cgroups, "kill_members", kill_late)
        assert cgroups.remove_cgroup(folder)
        assert made == [folder / "late"]
        assert not folder.exists()


def test_no_cgroups(ledger, layout):
    with (
        pytest.raises(UnavailableError, match="no cgroup hierarchy"),
        start_cgroup(ledger, "x", LIMITS, msgspec.structs.replace(layout, version=Version.NONE)),
    ):
        pass


@pytest.mark.image
@pytest.mark.parametrize("name", ["native", "bare-metal"])
def test_instances_on_a_host_with_v1_only(name, image, layout, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "find_layout", lambda *_: layout)
    with Ledger(tmp_path / "ledger") as ledger:
        with (
            start_backend(name, image, tmp_path / "work", ledger) as backend,
            backend.start(spec("v1", image)) as instance,
        ):
            entries = [entry for entry in ledger.entries() if entry.kind is ResourceKind.CGROUP]
            assert len(entries) == len(instance.cgroup.folders)
            done = instance.execute(Command(("sh", "-c", "setsid sleep 100 & sleep 100"), timeout_s=0.5))
            assert done.timed_out
            assert instance.cgroup.members() == [instance.pid]
            assert instance.execute(Command(("echo", "alive"))).stdout == b"alive\n"
        assert ledger.entries() == ()


@pytest.mark.parametrize("name", BACKENDS)
def test_what_goes_through_the_page_cache_is_accounted_too(name, image, ledger, tmp_path):
    with (
        start_backend(name, image, tmp_path / "work", ledger) as backend,
        backend.start(spec("written", image)) as instance,
    ):
        before = instance.usage()
        if before.io_write_bytes is None:
            pytest.skip(before.missing["io_write_bytes"])
        # Four processes that end, a fifth in the background, and who makes it durable wrote none of it.
        script = (
            f"cd {SCRATCH}; for i in 1 2 3 4; do dd if=/dev/zero of=f$i bs=64k count=64; done; "
            "(dd if=/dev/zero of=f5 bs=64k count=64 &); sleep 1; sync f1 f2 f3 f4 f5"
        )
        assert instance.execute(Command(("sh", "-c", script))).returncode == 0
        written = instance.usage().io_write_bytes - before.io_write_bytes
        assert 20 * 2**20 <= written < 21 * 2**20
