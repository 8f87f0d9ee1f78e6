"""The project's tasks. `nox -s quickstart` is all a newcomer needs; `nox -s tests` is what CI runs.

Host packages come from bench/system-packages.toml, the one list that `tare doctor` uses too.
"""

import os
import shutil
import tomllib
from pathlib import Path

import nox
import nox.command

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "boundaries", "quick"]

ROOT = Path(__file__).parent
PACKAGES = ROOT / "bench" / "system-packages.toml"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
GROUPS = PYPROJECT["dependency-groups"]
SBIN = ":/usr/local/sbin:/usr/sbin:/sbin"


def missing_packages(uses: set[str]) -> list[str]:
    """The host packages of the list that these uses need and this machine lacks."""
    listed = tomllib.loads(PACKAGES.read_text("utf-8"))["package"]
    path = os.environ.get("PATH", os.defpath) + SBIN
    return [
        package["name"]
        for package in listed
        if uses & set(package["needed_by"])
        and not (shutil.which(package["tool"], path=path) if "tool" in package else Path(package["file"]).exists())
    ]


def install_host_packages(session: nox.Session, uses: set[str]) -> None:
    """Install what is missing, or print the exact command and stop where that is not possible."""
    missing = missing_packages(uses)
    if not missing:
        return
    command = f"apt-get install -y --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        reason = "this is not root" if os.geteuid() != 0 else "this system has no apt-get"
        session.error(f"host packages are missing and {reason}. Install them, then run this again:\n  {command}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    session.run("apt-get", "update", "-q", external=True, env=env, silent=True)
    session.run(*command.split(), "-q", external=True, env=env, silent=True)


def install_tare(session: nox.Session, *groups: str, extra: str = "vm") -> None:
    """Install tare, editable, with the named dependency groups. The extra ``vm`` compiles against libvirt's headers."""
    needed = [requirement for group in groups for requirement in GROUPS[group]]
    session.install("-e", f".[{extra}]" if extra else ".", *needed, silent=True)
    # Where PYTHONDONTWRITEBYTECODE is set, as in many containers, nobody else would compile the checkout.
    session.run("python", "-m", "compileall", "-q", "tare", silent=True)


@nox.session
def quickstart(session: nox.Session) -> None:
    """From a checkout to a report: packages, environment, image, run, report.html."""
    install_host_packages(session, {"image", "vm", "native", "small", "build"})
    if os.geteuid() != 0:
        session.error("tare needs root to make namespaces, cgroups and an image: run the same command as root")
    install_tare(session)
    session.run("tare", "run", "suites/quickstart.toml", *session.posargs, success_codes=[0, 5])


@nox.session
def tests(session: nox.Session) -> None:
    """Everything: style, types, boundaries, and the whole test suite. As root, guests and browser included."""
    install_host_packages(session, {"image", "vm", "native", "small", "build", "benchmarks", "tests", "engines"})
    install_tare(session, "lint", "types", "boundaries", "test", extra="vm,docker,fleet")
    check_style(session)
    session.run("mypy")
    session.run("lint-imports")
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    # Unit tests share nothing, so they share the CPUs; instances want theirs to themselves.
    unit = ("tests/unit", "--numprocesses=logical", "--quiet")
    others = ("tests", "--ignore=tests/unit", "--durations=15")
    failed = [part[0] for part in (unit, others) if not passes(session, *part)]
    if failed:
        session.error(f"tests failed, of: {', '.join(failed)}")


def passes(session: nox.Session, *arguments: str) -> bool:
    """Whether these tests pass: a part that fails does not hide what the next one says."""
    try:
        session.run("pytest", *arguments)
    except nox.command.CommandFailed:
        return False
    return True


@nox.session
def dev(session: nox.Session) -> None:
    """An environment to work in, `.nox/dev`, with host packages and pre-commit hooks."""
    install_host_packages(session, {"image", "vm", "native", "small", "build", "benchmarks", "tests"})
    install_tare(session, "lint", "types", "boundaries", "test", "dev")
    session.run("pre-commit", "install")
    session.log("now: . %s/bin/activate", Path(session.virtualenv.location).relative_to(ROOT))


@nox.session
def floors(session: nox.Session) -> None:
    """The unit tests with the lowest versions of the direct dependencies that pyproject.toml allows."""
    session.install("uv", silent=True)
    lowest = ("uv", "pip", "install", "--python", "python", "--resolution", "lowest-direct")
    session.run(*lowest, "-e", ".", *GROUPS["test"], silent=True)
    session.run("pytest", "tests/unit", "--numprocesses=logical", *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """The unit tests on each Python that tare runs on; one that is not installed is skipped."""
    install_tare(session, "test", extra="")
    session.run("pytest", "tests/unit", "--numprocesses=logical", *session.posargs)


@nox.session
def engines(session: nox.Session) -> None:
    """Every engine: the contract, a hundred starts and thirty kills of each, and what tare adds to them. As root."""
    install_host_packages(session, {"image", "native", "build", "engines"})
    install_tare(session, "test", extra="vm,docker")
    backends = ("bubblewrap", "crun", "runc", "lxc", "nspawn", "gvisor", "docker", "podman", "containerd", "uml")
    chosen = [word for name in backends for word in ("--tare-backend", name)]
    session.run("pytest", "--pyargs", "tare.bench.testing.contract", *chosen, "-p", "no:cacheprovider")
    tests = ("tests/engines", "tests/privileged/test_service.py")
    session.run("pytest", *tests, "--durations=15", *session.posargs, env={"TARE_TEST_ENGINES": "all"})
    session.run("python", "benchmarks/engine_overhead.py")


@nox.session
def fleet(session: nox.Session) -> None:
    """Hosts made of namespaces: 15 wrong ones, fifty combinations of faults, and what a fleet adds. As root."""
    install_host_packages(session, {"image", "vm", "native", "small", "build", "tests"})
    install_tare(session, "test", extra="fleet")
    session.run("pytest", "tests/fleet", "--durations=15")
    session.run("python", "benchmarks/fleet_refusals.py")
    session.run("python", "benchmarks/fleet_guest.py")
    session.run("python", "benchmarks/fleet_local.py", "--combinations", "50", *session.posargs)
    session.run("python", "benchmarks/fleet_cost.py")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site and the man pages, in site/: searchable from file:// too."""
    install_tare(session, "docs", extra="")
    session.run("mkdocs", "build", "--strict", "--quiet", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("python", "docs/man_pages.py", "site/man")
    session.log("open site/index.html, or: man -l site/man/tare.1")


@nox.session
def package(session: nox.Session) -> None:
    """The sdist and the wheel in dist/: metadata checked by twine, contents by the tests of the wheel."""
    install_tare(session, "package", "test", extra="")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    built = sorted(map(str, dist.iterdir()))
    session.run("twine", "check", "--strict", *built)
    session.run("pytest", "tests/integration/test_wheel.py", *session.posargs, env={"TARE_TEST_DIST": str(dist)})
    session.log("built and checked: %s", " ".join(built))


@nox.session
def kvm(session: nox.Session) -> None:
    """Every test of guests under KVM, in an emulated host or (TARE_TEST_REAL_KVM=1) on this one: an hour or two."""
    install_host_packages(session, {"image", "vm", "firmware", "native", "small", "build", "tests"})
    install_tare(session, "test")
    session.run("pytest", "tests/kvm", "-rP", *session.posargs, env={"TARE_TEST_KVM": "all"})


@nox.session
def lint(session: nox.Session) -> None:
    """Style."""
    session.install(*GROUPS["lint"], silent=True)
    check_style(session)


@nox.session
def types(session: nox.Session) -> None:
    """Types."""
    install_tare(session, "types", extra="")
    session.run("mypy")


@nox.session
def boundaries(session: nox.Session) -> None:
    """Which module may import which."""
    install_tare(session, "boundaries", extra="")
    session.run("lint-imports")


@nox.session
def quick(session: nox.Session) -> None:
    """Unit tests only: no root, no host packages, no image."""
    install_tare(session, "test", extra="")
    session.run("pytest", "tests/unit", "--numprocesses=logical", *session.posargs)


@nox.session
def campaign(session: nox.Session) -> None:
    """Kills, signals, power cuts, fuzzing, hostile images and workloads: `-- KIND... --minutes N --seed N`. As root."""
    install_host_packages(session, {"image", "native", "small", "build"})
    install_tare(session, "test")
    session.run("python", "-m", "tests.campaign", *session.posargs)


def check_style(session: nox.Session) -> None:
    """ruff, as linter and as formatter."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
