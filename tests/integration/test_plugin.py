"""The outside package of the two documents, installed as anybody would, and used through its entry points."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tare.bench.model import Image
from tare.bench.registry import find_workloads
from tests.synthetic import QUICK, write_run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLUGIN = ROOT / "docs/plugin-template"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="instances of the unshare backend need root")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that holds the installed package. Built from a copy, without a network."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    # A plug-in that cannot be loaded, next to those of the documents.
    shutil.copy(HERE / "tare_broken.py", source)
    project = (source / "pyproject.toml").read_text()
    project = project.replace("redis-socket =", 'broken-example = "tare_broken:Broken"\nredis-socket =')
    (source / "pyproject.toml").write_text(project.replace("py-modules = [", 'py-modules = ["tare_broken", '))
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


def test_the_template_passes_lint_and_types_as_it_is(installed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    shutil.copytree(PLUGIN, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    files = sorted(str(path) for path in copy.glob("*.py"))
    for argv in (
        ("ruff", "check", "--no-cache", str(copy)),
        ("mypy", "--config-file", str(copy / "pyproject.toml"), *files),
    ):
        done = python(installed, "-m", *argv, MYPYPATH=str(ROOT))
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_reporter_writes_what_the_analysis_says(installed: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", QUICK)
    done = python(installed, "-m", "tare", "report", str(run), "--format", "lines", "--output", str(tmp_path / "lines"))
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in (tmp_path / "lines").read_text().splitlines()]
    found = json.loads(python(installed, "-m", "tare", "report", str(run), "--format", "json").stdout)["results"]
    compared = [one["comparison"] for one in found if one["comparison"] and one["comparison"]["ratio"] is not None]
    assert compared
    assert sorted((line[3], line[4]) for line in lines) == sorted(
        (one["verdict_adjusted"], f"{one['ratio']:.4g}") for one in compared
    )


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


@as_root
@pytest.mark.root
@pytest.mark.image
def test_the_backend_passes_the_contract_tests(installed: Path, image: Image, tmp_path: Path) -> None:
    argv = ("-p", "no:cacheprovider", "-p", "no:xdist", "--pyargs", "tare.bench.testing.contract")
    backend = ("--tare-backend", "unshare", "--tare-image", image.digest)
    folders = {name: str(tmp_path / name.lower()) for name in ("TARE_STATE_DIR", "TARE_WORK_DIR")}
    done = python(installed, "-m", "pytest", "-q", "-rs", *argv, *backend, **folders)
    assert done.returncode == 0, done.stdout + done.stderr
    for optional in ("memory", "io_write", "cpu_user", "named by the instance"):
        assert not re.search(f"SKIPPED.*{optional}", done.stdout), "it is metered and limited as the built-ins are"
    assert not list(Path(folders["TARE_WORK_DIR"]).glob("*"))


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
    assert manifest["backends"]["unshare"]["kind"] == "container"
    for metric in ("host.cpu", "host.memory_peak"):
        assert all(s["value"] > 0 for s in samples if s["metric"] == metric)
        assert any(s["metric"] == metric for s in samples)
    assert manifest["experiments"]["files"]["grows_with"] == "files"
    assert not list(Path(folders["TARE_WORK_DIR"]).glob("*"))
