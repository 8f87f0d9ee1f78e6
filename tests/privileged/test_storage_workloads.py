"""The storage workloads and cyclictest in real instances: what is measured, what is refused, and nothing is spoilt."""

import time
from pathlib import Path

import msgspec
import pytest

from tare.bench.errors import WorkloadError
from tare.bench.ledger import Ledger
from tare.bench.limits_met import have_failed, raise_if_failed
from tare.bench.units import decode_quantity
from tests.privileged.host_kernel import BACKENDS, ENVELOPE, spec, start_backend
from tests.unit.workload_captures import WORKLOADS

pytestmark = [pytest.mark.root, pytest.mark.image]


@pytest.fixture(params=list(BACKENDS))
def backend(request, catalogue_image, tmp_path):
    with (
        Ledger(tmp_path / "ledger") as ledger,
        start_backend(request.param, catalogue_image, tmp_path / "work", ledger) as prepared,
    ):
        yield prepared


@pytest.fixture
def measure(backend, catalogue_image):
    """Set a workload up and run it once in a fresh instance, as the runner does."""

    def measure(name, **params):
        workload = WORKLOADS[name]
        commands = workload.commands(msgspec.convert(params, workload.Params, dec_hook=decode_quantity), ENVELOPE)
        with backend.start(spec(name, catalogue_image)) as instance:
            for command in (*commands.setup, commands.measured):
                done = instance.execute(command)
                known = workload.diagnose(done) if have_failed(done) else None
                raise_if_failed(command, done, ENVELOPE, known)
            assert workload.histograms(done)
            return {measurement.metric: measurement.value for measurement in workload.parse(done)}

    return measure


def test_the_first_write_copies_and_the_image_stays_as_it_is(measure, catalogue_image):
    started = time.time()
    found = measure("first-write")
    assert found["first_write.ratio"] > 2
    assert found["first_write.latency.p50"] > found["volume_write.latency.p50"]
    files = (catalogue_image.rootfs / "usr").rglob("*")
    changed = [path for path in files if path.lstat().st_mtime >= started - 1]
    assert changed == []


def test_io_uring_is_measured_or_refused_with_the_remedy(measure, backend):
    params = {"engine": "io_uring", "io_depth": 4, "size": "4MiB", "runtime_s": 0.2}
    if backend.name == "bare-metal":
        switch = Path("/proc/sys/kernel/io_uring_disabled")
        if switch.exists() and switch.read_text().strip() != "0":
            pytest.skip("this host has io_uring switched off (kernel.io_uring_disabled)")
        assert measure("fio", **params)["read.iops"] > 0
        return
    with pytest.raises(WorkloadError, match="io_uring is refused in this instance") as caught:
        measure("fio", **params)
    assert "seccomp = 'none'" in str(caught.value.remedy)


def test_many_files_are_made_looked_at_and_removed(measure):
    found = measure("fio-metadata", files=200)
    assert found["create.latency.p50"] > found["stat.latency.p50"]


def test_threads_wake_up_late_without_priority(measure):
    found = measure("cyclictest")
    assert 0 < found["wakeup.latency.p50"] <= found["wakeup.latency.p99"] <= found["wakeup.latency.max"]


def test_a_container_has_no_priority_to_give(measure, backend):
    if backend.name != "native":
        pytest.skip("whether bare metal may have it depends on the host's cgroups")
    with pytest.raises(WorkloadError, match="real-time priority is refused in this instance"):
        measure("cyclictest", policy="fifo", priority=80)
