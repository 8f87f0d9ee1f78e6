"""The outside package of the two documents, installed as anybody would, and used through its entry points."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tare.bench.model import Image
from tare.bench.registry import find_workloads

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLUGIN = HERE / "plugin"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="instances of the unshare backend need root")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that holds the installed package. Built from a copy, without a network."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--quiet", "--no-input"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "site"), str(source)],
        check=True,
        timeout=120,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"},
    )
    return folder / "site"


def python(site: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "COLUMNS": "200", **environment}
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=240, env=env, cwd=site.parent, check=False
    )


REPORT = """
import json
from tare.bench.registry import find_backends, find_workloads
backends, workloads = find_backends(), find_workloads()
print(json.dumps({
    "workloads": {name: kind.__module__ for name, kind in workloads.loaded.items()},
    "backends": {name: kind.__module__ for name, kind in backends.loaded.items()},
    "failures": {f.name: f.reason for f in workloads.failures.values()},
}))
"""


def test_the_registry_finds_both_beside_the_built_ins(installed: Path) -> None:
    done = python(installed, "-c", REPORT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["workloads"]["redis-socket"] == "tare_redis"
    assert found["backends"]["unshare"] == "tare_unshare"
    assert set(find_workloads().loaded) < set(found["workloads"])


def test_a_plugin_that_does_not_load_is_listed_with_its_reason_and_harms_no_other(installed: Path) -> None:
    found = json.loads(python(installed, "-c", REPORT).stdout)
    assert found["failures"] == {
        "broken-example": "ModuleNotFoundError: No module named 'a_library_that_nobody_installed'"
    }
    assert "broken-example" not in found["workloads"]
    listed = python(installed, "-m", "tare", "list", "workloads")
    assert listed.returncode == 0, listed.stderr
    assert "redis-socket" in listed.stdout
    assert re.search(r"broken-example +cannot be loaded .*a_library_that_nobody_installed", listed.stdout)


def test_a_suite_that_names_the_broken_plugin_gets_its_reason(installed: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(
        '[suite]\nname = "broken"\n[[backend]]\ntype = "bare-metal"\n'
        '[[experiment]]\nkind = "steady"\nworkload = "broken-example"\n'
    )
    done = python(installed, "-m", "tare", "run", str(suite), "--output", str(tmp_path / "run"))
    assert done.returncode == 4, done.stdout + done.stderr
    assert "a_library_that_nobody_installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_package_neither_is_known() -> None:
    assert "redis-socket" not in find_workloads().loaded
    assert "broken-example" not in find_workloads().failures


PARSE = """
import sys
from tare.bench.errors import ParseError
from tare.bench.model import Completed, Envelope
from tare.bench.registry import find_workloads
workload = find_workloads().get("redis-socket")()
header = b'"test","rps","p99_latency_ms"\\n'
good = header + b'"SET","26109.66","0.119"\\n"GET","28409.09","0.055"\\n'
values = {m.metric: m.value for m in workload.parse(Completed((), 0, None, good, b"", 0.0, 1.0))}
assert values["set.operations_per_second"] == 26109.66 and abs(values["get.latency.p99"] - 55e-6) < 1e-12, values
assert set(values) == {metric.name for metric in workload.metrics}
for bad, status in ((b"", 0), (good, 1), (header, 0), (good.replace(b"28409.09", b"many"), 0), (good[:-10], 0)):
    try:
        raise SystemExit(f"accepted {bad!r}: {workload.parse(Completed((), status, None, bad, b'', 0.0, 1.0))}")
    except ParseError as error:
        assert error.message
"""


def test_the_workload_parses_and_refuses(installed: Path) -> None:
    done = python(installed, "-c", PARSE)
    assert done.returncode == 0, done.stderr


EXECUTE = """
import os, sys, time
from pathlib import Path
import msgspec
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger
from tare.bench.model import Command, Envelope, Image, InstanceSpec, Phase
from tare.bench.registry import find_backends, find_workloads

work, image = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Image, dec_hook=lambda kind, text: kind(text))
cpu = max(os.sched_getaffinity(0))
envelope = Envelope((cpu,), 256 * 2**20, 64 * 2**20, 256)
with Ledger(work / "ledger") as ledger:
    backend = find_backends().get("unshare")(BackendContext(ledger, work, work, None, ()))
    assert backend.probe().available
    backend.prepare(image, envelope)
    with backend.start(InstanceSpec("tare-example-1", image, envelope)) as instance:
        def run(*argv, **more):
            return instance.execute(Command(argv, **more))
        assert run("cat", stdin=b"\\x00\\xff" * 300_000).stdout == b"\\x00\\xff" * 300_000
        assert run("sh", "-c", "echo out; echo err >&2; exit 7").returncode == 7
        assert run("no-such-program").returncode == 127
        assert run("/etc/hostname").returncode == 126
        assert run("pwd", cwd="/scratch").stdout == b"/scratch\\n"
        assert run("sh", "-c", "echo $GIVEN", env={"GIVEN": "yes"}).stdout == b"yes\\n"
        assert run("nproc").stdout == b"1\\n"
        assert run("sh", "-c", "echo 1 > /scratch/kept; echo 2 > /etc/kept").returncode == 0
        assert run("cat", "/scratch/kept", "/etc/kept").stdout == b"1\\n2\\n"
        slow = run("sh", "-c", "setsid sleep 300 & sleep 300", timeout_s=0.5)
        assert slow.timed_out and slow.duration_s < 10
        assert run("true").returncode == 0
        assert instance.usage().cpu_user_s is None and instance.usage().missing["cpu_user_s"]
        assert instance.footprint().disk_owned_bytes >= 4096
        workload = find_workloads().get("redis-socket")()
        params = workload.Params(requests=2000)
        completed = instance.execute(workload.commands(params, envelope).measured)
        values = {m.metric: m.value for m in workload.parse(completed)}
        assert values["set.operations_per_second"] > 100, values
    phases = (Phase.REQUESTED, Phase.CREATED, Phase.FIRST_INSTRUCTION, Phase.READY, Phase.STOP_REQUESTED, Phase.STOPPED)
    marks = [instance.timeline.marks[phase] for phase in phases]
    assert marks == sorted(marks)
    assert ledger.entries() == ()
assert not (image.rootfs / "etc/kept").exists()
assert sorted(path.name for path in work.iterdir()) == ["ledger"], list(work.iterdir())
marker = b"TARE_RESOURCE=tare-example-1"
for process in Path("/proc").glob("[0-9]*/environ"):
    try:
        assert marker not in process.read_bytes(), process
    except OSError:
        pass
"""


@as_root
@pytest.mark.root
@pytest.mark.image
def test_the_backend_keeps_the_contract_and_runs_the_workload(installed: Path, image: Image, tmp_path: Path) -> None:
    done = python(installed, "-c", EXECUTE, str(tmp_path), msgspec.json.encode(image, enc_hook=str).decode())
    assert done.returncode == 0, done.stderr


@as_root
@pytest.mark.root
@pytest.mark.image
def test_tare_runs_a_suite_of_both(installed: Path, image: Image, tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(f"""
[suite]
name = "outside"
[image]
use = "{image.digest}"
[sampling]
blocks = 2
iterations = 1
warmup = 0
[[backend]]
type = "unshare"
[[experiment]]
kind = "steady"
workload = "redis-socket"
params = {{ requests = 2000 }}
[[experiment]]
kind = "boot"
[[experiment]]
kind = "files"
options = {{ most = 300, step = 100 }}
""")
    folders = {name: str(tmp_path / name.lower()) for name in ("TARE_STATE_DIR", "TARE_WORK_DIR")}
    run = tmp_path / "run"
    done = python(installed, "-m", "tare", "run", str(suite), "--output", str(run), **folders)
    assert done.returncode == 0, done.stdout + done.stderr
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    rates = [s for s in samples if s["metric"] == "get.operations_per_second"]
    assert len(rates) == 2
    assert all(s["backend"] == "unshare" and s["value"] > 100 for s in rates)
    assert {s["iteration"] for s in samples if s["metric"] == "files.listed"} == {100, 200, 300}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["backends"]["unshare"]["confounds"][0]["code"] == "no-limits"
    assert manifest["experiments"]["files"]["grows_with"] == "files"
    assert not list(Path(folders["TARE_WORK_DIR"]).glob("*"))
