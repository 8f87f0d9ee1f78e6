"""The meter on real cgroups that something else than tare made, as an engine would."""

import os
import time

import pytest

from tare.bench.linux.cgroups import find_folders, kill_members, remove_cgroup
from tare.bench.linux.metering import CgroupMeter, total
from tare.bench.process import DEVNULL, Popen

pytestmark = pytest.mark.root
JOIN = 'for file in "$@"; do echo 0 > "$file"; done; '
BUSY = "head -c 20000000 /dev/zero | tail -c 1 > /dev/null; while :; do :; done"


@pytest.fixture
def make_engine_cgroup():
    """Makes a group in each hierarchy and runs a script in it, as an engine would."""
    made, processes = [], []

    def make(name, script):
        found = find_folders()[0].items()
        parents = [folder for name, folder in found if os.access(folder, os.W_OK) and not name.startswith("name=")]
        folders = list(dict.fromkeys(parent / f"engine-{os.getpid()}-{name}" for parent in parents))
        for folder in folders:
            folder.mkdir()
            made.append(folder)
            for file in ("cpuset.mems", "cpuset.cpus"):  # a v1 cpuset takes no process without
                if (folder / "tasks").exists() and (folder / file).exists():
                    (folder / file).write_text((folder.parent / file).read_text())
        argv = ["bash", "-c", JOIN + script, "bash", *(str(folder / "cgroup.procs") for folder in folders)]
        processes.append(Popen(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL))
        return processes[-1], folders

    if os.geteuid() != 0 or not find_folders()[0]:
        pytest.skip("needs root, and a cgroup hierarchy")
    yield make
    for folder in made:
        remove_cgroup(folder)
    for process in processes:
        process.wait(10)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_meter(process, folders):
    """Once the process has joined all of its groups."""

    def joined():
        try:
            return set(CgroupMeter.of_process(process.pid).folders) == set(folders)
        except LookupError:
            return False

    wait_for(joined)
    return CgroupMeter.of_process(process.pid)


def test_a_meter_finds_the_groups_of_a_process_and_counts_what_it_costs(make_engine_cgroup):
    process, folders = make_engine_cgroup("one", BUSY)
    meter = wait_for_meter(process, folders)
    assert process.pid in meter.members()
    wait_for(lambda: meter.usage().cpu_s > 0.2)
    usage, held = meter.usage(), meter.footprint()
    assert usage.cpu_user_s > 0
    if "memory" in find_folders()[0]:
        assert usage.memory_peak_bytes >= usage.memory_current_bytes > 0
        assert usage.oom_kills == 0
        assert held.cgroup_bytes > 0
    assert held.processes == len(meter.members())
    assert 0 < held.private_bytes <= held.pss_bytes <= held.rss_bytes
    absent = {name for name in usage.__struct_fields__ if getattr(usage, name) is None} - {"cpu_vcpu_s"}
    assert absent == set(usage.missing)
    assert all(usage.missing.values())
    kill_members(folders[0])
    assert meter.members() == []
    assert meter.usage().cpu_s >= usage.cpu_s, "what ended still counts"


def test_a_container_and_its_shim_are_metered_apart_and_added_up(make_engine_cgroup):
    meters = {}
    for name, script in (("container", BUSY), ("shim", "sleep 100")):
        meters[name] = wait_for_meter(*make_engine_cgroup(name, script))
    wait_for(lambda: meters["container"].usage().cpu_s > 0.2)
    parts = {name: meter.usage() for name, meter in meters.items()}
    assert parts["shim"].cpu_s < 0.1
    assert total(parts).cpu_s == pytest.approx(parts["container"].cpu_s + parts["shim"].cpu_s)
    held = total({name: meter.footprint() for name, meter in meters.items()})
    assert held.processes == sum(len(meter.members()) for meter in meters.values())
