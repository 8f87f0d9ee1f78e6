"""A run killed at any moment leaves what it measured, nothing else after `tare clean`, and can go on."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tare.bench.store import load_run

SUITE = """
[suite]
name = "killed"
description = "Killed in the middle."
[envelope]
memory = "384MiB"
scratch = "64MiB"
[sampling]
blocks = 2
iterations = 1
warmup = 0
{backends}
[[experiment]]
kind = "boot"
[[experiment]]
kind = "steady"
workload = "sysbench-cpu"
params = {{ runtime_s = 1 }}
"""
CONTAINERS = '[[backend]]\ntype = "bare-metal"\n[[backend]]\ntype = "native"\n'
GUESTS = '[[backend]]\ntype = "vm"\n'

pytestmark = [pytest.mark.root, pytest.mark.image]


class Run:
    """`tare run` in a process of its own, with a ledger and a work folder of its own and the shared image cache."""

    def __init__(self, folder: Path, cache: Path, backends: str) -> None:
        self.folder = folder
        self.output = folder / "run"
        self.suite = folder / "suite.toml"
        self.suite.write_text(SUITE.format(backends=backends))
        self.env = {
            **os.environ,
            "TARE_CACHE_DIR": str(cache),
            "TARE_STATE_DIR": str(folder / "state"),
            "TARE_WORK_DIR": str(folder / "work"),
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tare", *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.env, capture_output=True, text=True, timeout=240, check=False
        )

    def kill_after_line(self, number: int, delay_s: float, how: signal.Signals) -> int:
        """Start the run, wait for its ``number``-th line of progress and then ``delay_s`` longer, and send a signal."""
        process = self.start("run", str(self.suite), "--output", str(self.output), "--no-report")
        assert process.stdout is not None
        for _ in range(number):
            assert process.stdout.readline(), process.wait()
        time.sleep(delay_s)  # a random moment is what is tested
        process.send_signal(how)
        process.communicate(timeout=60)
        return process.returncode

    def cgroups(self) -> list[str]:
        """The cgroups of the run's instances, by the identities that its events say their names have."""
        events = self.output / "events.jsonl"
        lines = events.read_text().splitlines() if events.exists() else []
        started = [line for line in lines if '"kind":"run_' in line]
        names = {json.loads(line)["details"].get("identity") for line in started} - {None}
        # Other runs' groups go away meanwhile, which a walk ignores and a glob does not.
        folders = (folder for folder, _, _ in os.walk("/sys/fs/cgroup"))
        return sorted(folder for folder in folders if any(f"/tare-{name}-" in folder for name in names))

    def left_behind(self) -> list[str]:
        """What is there of this run, and of no other tare on this host: cgroups, processes, mounts, folders, ledger."""
        left = self.cgroups()
        left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]
        left += [str(path) for path in (self.folder / "work").glob("*")]
        left += [str(path) for path in (self.folder / "state" / "ledger").glob("*.jsonl")]
        return left + our_processes(self.folder)


def our_processes(folder: Path) -> list[str]:
    """The processes that name ``folder`` in environment, command line or mounts: its zygotes, guests, instances."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = [(process / name).read_bytes() for name in ("cmdline", "environ", "mountinfo")]
            if int(process.name) != os.getpid() and any(str(folder).encode() in text for text in told):
                found.append(f"{process.name}: {told[0]!r}")
    return found


@pytest.fixture
def cache(image) -> Path:
    return image.directory.parent.parent


def check_after_kill(run: Run) -> None:
    cleaned = run.finish("clean")
    assert cleaned.returncode == 0, cleaned.stderr
    assert run.left_behind() == []
    if (run.output / "manifest.json").exists():
        before = len(load_run(run.output).samples)
        report = run.finish("report", str(run.output), "--format", "text")
        assert report.returncode == 0, report.stderr
        resumed = run.finish("run", "--resume", str(run.output), "--no-report")
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        loaded = load_run(run.output)
        planned = {sample.instance.partition("~")[0] for sample in loaded.samples}
        assert len(planned) == loaded.manifest.planned_instances
        assert len(loaded.samples) >= before
        assert run.left_behind() == []


@pytest.mark.parametrize("moment", range(5))
def test_killed_at_a_random_moment(tmp_path, cache, moment):
    chance = random.Random(moment)
    run = Run(tmp_path, cache, CONTAINERS)
    run.kill_after_line(chance.randrange(1, 9), chance.random() * 0.4, signal.SIGKILL)
    check_after_kill(run)


@pytest.mark.guest
@pytest.mark.parametrize("delay_s", [0.3, 3.0])
def test_killed_while_a_guest_lives(tmp_path, cache, delay_s):
    run = Run(tmp_path, cache, GUESTS)
    run.kill_after_line(2, delay_s, signal.SIGKILL)
    check_after_kill(run)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_cleanly_with_what_it_has(tmp_path, cache, how):
    run = Run(tmp_path, cache, CONTAINERS)
    assert run.kill_after_line(5, 0.2, how) == 130
    assert run.left_behind() == []
    manifest = json.loads((run.output / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    assert (run.output / "samples.parquet").exists()
    check_after_kill(run)


def test_a_live_run_is_not_touched_by_clean(tmp_path, cache):
    run = Run(tmp_path, cache, CONTAINERS)
    process = run.start("run", str(run.suite), "--output", str(run.output))
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    assert "nothing was left behind" in run.finish("clean").stdout
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
