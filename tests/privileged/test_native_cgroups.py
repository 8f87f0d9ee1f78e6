"""Real cgroups: limits, accounting, killing, with the v2 tree beside v1 and without it."""

import os
import signal
import time

import msgspec
import pytest

from backends.cgroups.interface import Limits
from backends.cgroups.layout import Version, find_layout
from backends.cgroups.lifecycle import start_cgroup
from backends.native import runtime
from bench.errors import BackendError, UnavailableError
from bench.ledger import Ledger, ResourceKind
from bench.model import Command
from bench.process import DEVNULL, Popen
from tests.privileged.host_kernel import ENVELOPE, spec, start_backend

pytestmark = pytest.mark.root

LIMITS = Limits(cpus=ENVELOPE.cpus, memory_bytes=64 * 2**20, pids_max=20)
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
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_members_are_limited_accounted_killed_and_removed(layout, ledger):
    with start_cgroup(ledger, f"life-{os.getpid()}", LIMITS, layout) as cgroup:
        assert [entry.target for entry in ledger.entries()] == [str(folder) for folder in cgroup.folders]
        process = start_inside(cgroup, "while :; do :; done & wait")
        wait_for(lambda: len(cgroup.members()) == 2)
        wait_for(lambda: cgroup.usage().cpu_user_s + cgroup.usage().cpu_system_s > 0.2)
        assert {cpu for thread in cgroup.threads() for cpu in os.sched_getaffinity(thread)} == set(ENVELOPE.cpus)
        assert 0 < cgroup.charge_bytes() <= cgroup.usage().memory_peak_bytes <= 64 * 2**20
        cgroup.kill(keep=(process.pid,))
        assert cgroup.members() in ([process.pid], [])
    assert process.wait(10) in {-signal.SIGKILL, 0, 128 + signal.SIGKILL}
    assert not any(folder.exists() for folder in cgroup.folders)
    assert ledger.entries() == ()


def test_a_fork_bomb_does_not_escape(layout, ledger):
    with start_cgroup(ledger, f"bomb-{os.getpid()}", LIMITS, layout) as cgroup:
        process = start_inside(cgroup, "f() { while :; do f & done; }; f 2>/dev/null")
        wait_for(lambda: len(cgroup.members()) >= 15)
        assert len(cgroup.members()) <= 20
    process.wait(10)
    assert not any(folder.exists() for folder in cgroup.folders)


def test_a_refused_limit_is_told_and_undone(layout, ledger):
    absurd = msgspec.structs.replace(LIMITS, cpus=(4095,))
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
