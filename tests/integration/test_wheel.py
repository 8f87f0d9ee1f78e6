"""The wheel next to packages that have the names of the repository's folders: neither breaks the other.

``TARE_TEST_DIST`` names a folder with the sdist and the wheel that are tested (`nox -s package`). Without it both are
built here, without a network.
"""

import json
import os
import site
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("bench", "workloads", "backends", "reports", "benchmarks", "suites", "tests")
QUIET = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore", "PIP_NO_INPUT": "1"}
DIST = os.environ.get("TARE_TEST_DIST")
OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
LOOK = """
import importlib, json, sys
from tare.bench.registry import find_backends, find_reporters, find_workloads
every = (find_backends(), find_reporters(), find_workloads())
print(json.dumps({
    "failures": [failure.reason for plugins in every for failure in plugins.failures.values()],
    "loaded": [len(plugins.loaded) for plugins in every],
    "tare": importlib.import_module("tare.reports.html").__file__,
    "names": {name: importlib.import_module(name).WHOSE for name in sys.argv[1:]},
}))
"""


def run(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **QUIET},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="module")
def wheels(folder):
    """tare's wheel, and that of a package that owns every name of the repository's folders."""
    others = folder / "others"
    for name in NAMES:
        (others / name).mkdir(parents=True)
        (others / name / "__init__.py").write_text("WHOSE = 'others'\n")
    (others / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "others"\nversion = "1"\n[tool.setuptools]\npackages = {json.dumps(NAMES)}\n'
    )
    checkout = folder / "checkout"
    run("git", "clone", "--quiet", "--no-hardlinks", ROOT, checkout, cwd=folder)
    sources = {"others": others} if DIST else {"others": others, "tare": checkout}
    for name, source in sources.items():
        run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--wheel-dir", folder / f"{name}-built", source, cwd=folder)
    (of_others,), (of_tare,) = (folder / "others-built").glob("*"), Path(DIST or folder / "tare-built").glob("*.whl")
    return {"others": of_others, "tare": of_tare}


@pytest.fixture
def sdist(folder, wheels):
    if not DIST:
        build = "from setuptools.build_meta import build_sdist; build_sdist('../tare-built')"
        run(sys.executable, "-c", build, cwd=folder / "checkout")
    (archive,) = Path(DIST or folder / "tare-built").glob("*.tar.gz")
    return archive


@pytest.fixture
def python(tmp_path):
    """The interpreter of an environment that finds this one's dependencies, and no tare."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    interpreter = tmp_path / "env/bin/python"
    (packages,) = (tmp_path / "env/lib").glob("python*/site-packages")
    found = [*site.getsitepackages(), str(distribution("msgspec").locate_file(""))]
    (packages / "dependencies.pth").write_text("\n".join(dict.fromkeys(found)))
    return interpreter


def pip(python: Path, *argv: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--python", python, *argv, cwd=python.parent)


def look(python: Path, *names: str) -> dict[str, object]:
    return json.loads(run(python, "-I", "-c", LOOK, *names, cwd=python.parent))


def test_the_wheel_owns_one_name(wheels, folder):
    listed = run(sys.executable, "-m", "zipfile", "-l", wheels["tare"], cwd=folder).splitlines()[1:]
    names = {line.split("/")[0].split()[0] for line in listed}
    assert {name for name in names if not name.endswith(".dist-info")} == {"tare"}
    for data in (
        "bench/system-packages.toml",
        "reports/templates/report.css",
        "backends/native/zygote.c",
        "suites/quickstart.toml",
        "py.typed",
    ):
        assert any(line.startswith(f"tare/{data}") for line in listed), data


@pytest.mark.parametrize("order", [("tare", "others"), ("others", "tare")])
def test_packages_of_the_folders_names_and_tare_do_not_touch_each_other(wheels, python, order):
    for name in order:
        pip(python, "install", "--no-index", "--no-deps", "--quiet", wheels[name])
    both = look(python, *NAMES)
    assert both["failures"] == []
    assert all(both["loaded"])
    assert str(python.parents[1]) in both["tare"]
    assert both["names"] == dict.fromkeys(NAMES, "others")
    pip(python, "uninstall", "--yes", "--quiet", "others")
    assert look(python) == {**both, "names": {}}
    assert "tare " in run(python.with_name("tare"), "--version", cwd=python.parent)


def test_the_sdist_has_what_it_takes_to_build_and_to_test_itself(folder, sdist, python):
    run("tar", "-xf", sdist, "-C", python.parents[2], cwd=folder)
    (source,) = python.parents[2].glob("tarebench-*/")
    for file in ("README.md", "CHANGELOG.md", "noxfile.py", "suites/quickstart.toml", "docs/method.md", ".ci/run"):
        assert (source / file).is_file(), file
    pip(python, "install", *OFFLINE, source)
    assert str(python.parents[1]) in look(python)["tare"]
    pytest_run = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "passed" in run(*pytest_run, "tests/unit/test_units.py", "tests/unit/test_ready_suites.py", cwd=source)
    run(python.with_name("tare"), "suite", "show", "quickstart", cwd=python.parent)


def test_two_commits_are_two_versions(folder, wheels):
    checkout = folder / "checkout"
    commit = run("git", "rev-parse", "--short=7", "HEAD", cwd=checkout).strip()
    tags = run("git", "tag", "--points-at", "HEAD", cwd=checkout).split()
    name = wheels["tare"].name
    assert f"g{commit}" in name or name.split("-")[1] in {tag.removeprefix("v") for tag in tags}


def test_a_tag_is_the_version(folder, wheels, tmp_path):
    run(
        "git", "clone", "--quiet", "--no-hardlinks", "--no-tags", folder / "checkout", tmp_path / "tagged", cwd=tmp_path
    )
    run("git", "tag", "v99.2.0", cwd=tmp_path / "tagged")
    assert run(sys.executable, "-m", "setuptools_scm", cwd=tmp_path / "tagged").strip() == "99.2.0"
