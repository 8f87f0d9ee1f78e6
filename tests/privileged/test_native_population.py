"""Many containers at once: the benchmark that starts a thousand, in small, and what a low limit of open files does."""

import contextlib
import json
import resource
import sys
from pathlib import Path

import pytest

from tare.backends.cgroups.layout import Version, find_layout
from tare.bench.ledger import Ledger
from tare.bench.model import InstanceSpec
from tare.bench.process import PIPE, Popen
from tests.privileged.host_kernel import ENVELOPE, our_cgroups, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks/population.py"
LIMITED = """
import contextlib, resource, sys
from pathlib import Path
soft, hard = (int(text) for text in sys.argv[3:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
import msgspec
from tare.bench.errors import BackendError
from tare.bench.ledger import Ledger
from tare.bench.model import Command, Image, InstanceSpec
from tests.privileged.host_kernel import ENVELOPE, start_backend
rootfs, folder = sys.argv[1:3]
image = Image("", "", Path(rootfs), Path(rootfs), None, None, None, "", {}, 0)
with Ledger(Path(folder) / "ledger") as ledger, start_backend("native", image, Path(folder) / "w", ledger) as backend:
    with contextlib.ExitStack() as stack:
        alive = []
        try:
            for number in range(hard):
                spec = InstanceSpec(f"limited-{number}", image, ENVELOPE)
                alive.append(stack.enter_context(backend.start(spec)))
        except BackendError as error:
            print(error)
        told = [one.execute(Command(("sh", "-c", "ulimit -n"))).stdout.decode().strip() for one in alive]
        print(len(alive), *set(told))
"""


@pytest.fixture
def native(image, tmp_path):
    with Ledger(tmp_path / "ledger") as ledger, start_backend("native", image, tmp_path / "work", ledger) as backend:
        yield backend


def test_a_small_population_leaves_nothing(image):
    arguments = ["--instances", "60", "--rounds", "1", "--settle", "1", "--rootfs", str(image.rootfs), "--json"]
    with Popen([sys.executable, str(BENCHMARK), *arguments], stdout=PIPE, stderr=PIPE, text=True) as process:
        out, err = process.communicate(timeout=170)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["left"] == []
    assert result["left_behind"] == 0
    assert {"rate_per_s", "memory_ratio_to_floor", "growth_last_over_first"} <= set(result)


def test_no_page_of_the_disk_keeps_an_idle_instance_s_cgroup_in_the_kernel(native, image):
    if find_layout().version is Version.V2:
        pytest.skip("with cgroups v2 an instance is born in its cgroup, before its root is mounted")
    with contextlib.ExitStack() as stack:
        alive = [stack.enter_context(native.start(InstanceSpec(f"kept-{n}", image, ENVELOPE))) for n in range(40)]
        alive[-1].await_idle()
        folders = [folder for one in alive for folder in one.cgroup.folders if "/memory/" in str(folder)]
        charged = [int((folder / "memory.stat").read_text().split()[1]) for folder in folders]
    assert len(charged) == len(alive)
    assert sum(charged) == 0, "bytes of page cache, which outlive it"


def test_a_low_limit_of_open_files_is_named_and_what_lives_goes_on(image, tmp_path):
    argv = [sys.executable, "-c", LIMITED, str(image.rootfs), str(tmp_path), "32", "48"]
    with Popen(argv, stdout=PIPE, stderr=PIPE, text=True) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    message, remedy, counts = out.splitlines()
    assert "the limit of 48 open files (RLIMIT_NOFILE, hard limit 48)" in message
    assert "ulimit -n" in remedy
    count, inside = counts.split()
    assert int(count) > 5
    assert inside == "32", "instances have the limit that tare was started with"
    assert our_cgroups() == []
    assert list((tmp_path / "w").iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 48
