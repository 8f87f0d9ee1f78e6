"""What goes wrong in the middle of a run on bare metal or in a container: one clear message, nothing left behind."""

import resource
import time
from pathlib import Path

import msgspec
import pytest

from tare.backends.native.instance import ProcessInstance
from tare.bench.design import make_design
from tare.bench.errors import BackendError, WorkloadError, lack_of_descriptors
from tare.bench.interfaces import Workload
from tare.bench.ledger import Ledger
from tare.bench.limits_met import raise_if_failed
from tare.bench.linux.processes import signal_all, wait_ended
from tare.bench.model import Command, Commands
from tare.bench.records import EventKind
from tare.bench.registry import Plugins
from tare.bench.runner import Runner
from tare.bench.store import RunStore, load_run
from tare.bench.suite import bind_suite, resolve_suite
from tests.privileged.host_kernel import BACKENDS, ENVELOPE, our_cgroups, spec, start_backend
from tests.unit.test_runner import Silent
from tests.unit.test_store import MANIFEST

pytestmark = [pytest.mark.root, pytest.mark.image]

SMALL = msgspec.structs.replace(ENVELOPE, memory_bytes=64 * 2**20, pids_max=40)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger") as opened:
        yield opened
        assert opened.entries() == ()
    assert our_cgroups() == []
    assert not [path for path in (tmp_path / "work").iterdir() if path.is_dir()]


@pytest.fixture(params=list(BACKENDS))
def backend(request, image, tmp_path, ledger):
    with start_backend(request.param, image, tmp_path / "work", ledger) as prepared:
        yield prepared


def reason(instance, envelope, *argv):
    command = Command(argv, timeout_s=20)
    with pytest.raises(WorkloadError) as raised:
        raise_if_failed(command, instance.execute(command), envelope)
    return raised.value.message


def test_memory_and_processes_that_were_refused_are_named(backend, image):
    eater = "x = b'1' * (200 << 20)"
    forker = "import os, signal\nfor _ in range(100):\n if os.fork() == 0: signal.pause()"
    with backend.start(spec("limits", image, SMALL)) as instance:
        assert reason(instance, SMALL, "python3", "-c", eater) == "python3 was killed by the 64 MiB memory limit"
        told = reason(instance, SMALL, "sh", "-c", f'python3 -c "{eater}"; exit 3')
        assert told == "sh failed with exit status 3; one of its processes had been killed by the 64 MiB memory limit"
        told = reason(instance, SMALL, "python3", "-c", forker)
        assert told == "python3 failed with exit status 1; the limit of 40 processes was reached once"
        instance.cgroup.kill(keep=(instance.pid,))
        assert reason(instance, SMALL, "false") == "false failed with exit status 1", "what is over is not told again"


def test_an_image_without_a_shell(image, tmp_path, ledger):
    root = tmp_path / "empty-image"
    (root / "bin").mkdir(parents=True)
    script, text = root / "bin/script", root / "bin/text"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    text.write_text("exit 0\n")
    bare = msgspec.structs.replace(image, rootfs=root)
    with (
        start_backend("native", bare, tmp_path / "work", ledger) as backend,
        backend.start(spec("bare", bare)) as instance,
    ):
        for argv in (("sh", "-c", "true"), ("/bin/sh",), ("script",)):
            told = reason(instance, ENVELOPE, *argv)
            assert told == f"{argv[0]}, or the interpreter that it names, is not in the image"
        assert reason(instance, ENVELOPE, "text") == "text is in the image and cannot be executed"


def test_a_limit_that_the_kernel_refuses_ends_the_preparation(image, tmp_path, ledger):
    absurd = msgspec.structs.replace(ENVELOPE, cpus=(4095,))
    with start_backend("native", image, tmp_path / "work", ledger) as backend:
        with pytest.raises(BackendError, match=r"the kernel refused a cgroup: .*cpuset\.cpus"):
            backend.prepare(image, absurd)
        backend.prepare(image, ENVELOPE)


def test_without_file_descriptors(backend, image):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with backend.start(spec("few", image)) as instance:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 1, limits[1]))
            with pytest.raises((OSError, BackendError)) as in_command:
                instance.execute(Command(("true",)))
            with pytest.raises((OSError, BackendError)) as in_start, backend.start(spec("more", image)):
                pass
            for raised in (in_command, in_start):
                lack = lack_of_descriptors(raised.value)
                assert "no file descriptor left" in lack.message
                assert "ulimit -n" in lack.remedy
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert instance.execute(Command(("true",))).returncode == 0


class Nothing(Workload):
    name = "nothing"
    summary = "runs true"
    metrics = ()

    def commands(self, params, envelope):
        return Commands(Command(("true",)))

    def parse(self, completed):
        return []


def test_a_run_goes_on_when_the_zygote_is_killed_in_the_middle(backend, image, tmp_path, monkeypatch):
    source = {
        "suite": {"name": "zygote"},
        "envelope": {"cpus": list(ENVELOPE.cpus)},
        "sampling": {"blocks": 3, "iterations": 1, "warmup": 0},
        "backend": [{"type": "native"}],
        "experiment": [{"kind": "steady", "workload": "nothing"}],
    }
    kinds, works = Plugins("backend", {"native": type(backend)}, {}), Plugins("workload", {"nothing": Nothing}, {})
    suite = bind_suite(resolve_suite(source, Path("suite.toml"), kinds, works))
    killed = []
    execute = ProcessInstance.execute

    def kill_then_execute(instance, command):
        if not killed:
            killed.append(backend._zygotes.pids()[-1])
            wait_ended(signal_all(killed), time.monotonic() + 10)
        return execute(instance, command)

    monkeypatch.setattr(ProcessInstance, "execute", kill_then_execute)
    with RunStore(tmp_path / "run", MANIFEST) as store:
        runner = Runner(suite, image, {"native": backend}, store, Silent(), identity="t", unavailable={})
        outcome = runner.run(make_design(suite), {})
    assert (outcome.done, outcome.failed) == (2, 1)
    assert backend._zygotes.pids()[-1] not in killed
    failed = [event for event in load_run(tmp_path / "run").events if event.kind is EventKind.INSTANCE_FAILED]
    assert "because the zygote that made it ended (signal 9); the next start gets a new one" in failed[0].message
