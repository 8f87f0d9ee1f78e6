"""Makes the root file system tree with mmdebstrap, and takes out of it what differs from build to build."""

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from email import message_from_string
from pathlib import Path

from tare.bench.errors import ImageError, MissingToolError
from tare.bench.image.recipe import Recipe
from tare.bench.image.tools import ImageBuildError, Progress, ToolRunner, explain_build_failure
from tare.bench.process import ToolFailedError

_BUILD_TIMEOUT_S = 1800.0

# dpkg syncs each file it unpacks; the finished image is synced once instead. The rest keeps out what no workload reads.
# Written when the essential packages are already extracted: mmdebstrap would pipe each through a filter program, which
# costs ten seconds, and what they brought is removed at the end.
_DPKG_OPTIONS = """\
force-unsafe-io
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
"""

# mmdebstrap mounts /proc, /sys and more into the tree. In namespaces of its own these go away with its processes, which
# all go away with tare, however that ends: a later removal of the tree can never reach into a mounted file system.
_CONFINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
)

_REMOVED = (
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/*",
    "etc/dpkg/dpkg.cfg.d/98tare",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/*-",
    "etc/.pwd.lock",
    "etc/ssh/ssh_host_*",
    "tmp/*",
    "usr/share/info/*",
    "usr/share/lintian/*",
    "usr/share/locale/*",
    "usr/share/man/*",
    "var/cache/apt/*",
    "var/cache/debconf/*-old",
    "var/cache/debconf/passwords.dat",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock*",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/systemd/random-seed",
    "var/tmp/*",
)

_STEPS = {
    "running apt-get update": "reading the archive's package lists",
    "downloading packages": "downloading the essential packages",
    "extracting archives": "extracting the essential packages",
    "installing essential packages": "installing the essential packages",
    "installing remaining packages": "installing the suite's packages",
    "cleaning package lists": "tidying the tree",
}

_WANTED = ("URIs", "Suites", "Components", "Signed-By", "Trusted", "Check-Valid-Until", "Check-Date")
_OPTIONS = {name.lower(): name for name in _WANTED}

_PYTHON_TIMEOUT_S = 300.0
_PASSED_ON = re.compile(r"Acquire::(https?::[Pp]roxy|Check-Valid-Until|Check-Date|Retries|ForceIPv[46])\b.*")


def make_tree(recipe: Recipe, tree: Path, scratch: Path, runner: ToolRunner, progress: Progress) -> None:
    """Build the tree of ``recipe`` at ``tree``, which does not exist yet. Raises ImageError, MissingToolError."""
    started_s = time.time()
    dpkg_options = scratch / "dpkg.cfg"
    dpkg_options.write_text(_DPKG_OPTIONS)
    arguments = [
        f"--variant={recipe.variant}",
        f"--include={','.join(recipe.packages)}",
        f'--extract-hook=cp "{dpkg_options}" "$1/etc/dpkg/dpkg.cfg.d/98tare"',
    ]
    run_mmdebstrap(recipe, tree, arguments, scratch=scratch, runner=runner, on_line=_follow(progress))
    if recipe.python_packages:
        progress("installing the suite's Python packages")
        install_python_packages(recipe.python_packages, tree, runner)
    tidy(tree, started_s)


_DPKG_STATUS = ("var", "lib", "dpkg", "status")
_MAX_STATUS_BYTES = 64 << 20


def run_mmdebstrap(
    recipe: Recipe,
    target: Path,
    arguments: Sequence[str],
    *,
    scratch: Path,
    runner: ToolRunner,
    on_line: Callable[[str], None] = lambda _line: None,
) -> None:
    """Run mmdebstrap for the recipe's suite with this host's archives. Raises ImageError, MissingToolError."""
    options = scratch / "apt.conf"
    options.write_text(
        'APT::Install-Recommends "false";\nAcquire::Languages "none";\n' + "".join(_host_apt_settings(runner))
    )
    argv = [*_CONFINED, "mmdebstrap", "--mode=root", "--format=directory", f"--architectures={recipe.architecture}"]
    argv += [f"--aptopt={options}", *arguments, recipe.suite, str(target)]
    sources = find_debian_sources(recipe.suite)
    if sources is not None:
        path = scratch / "debian.sources"
        path.write_text(sources)
        argv.append(str(path))
    try:
        # Not in /tmp: what a killed mmdebstrap leaves behind then goes away with the build's folder.
        runner.run(argv, timeout_s=_BUILD_TIMEOUT_S, on_line=on_line, env={"TMPDIR": str(scratch)})
    except ToolFailedError as error:
        raise explain_build_failure(error.stderr, recipe.suite) from error


def tidy(tree: Path, started_s: float) -> None:
    """Remove what differs from build to build or belongs to this host, and clamp the times of what was just made.

    ``started_s`` is the wall-clock time when the build began: files newer than that were made by it, and get the
    time of the newest packaged file. Packaged files keep theirs, because compiled Python files state them.
    """
    for pattern in _REMOVED:
        for path in tree.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    _remove_documents(tree / "usr/share/doc")
    for log in (tree / "var/log").rglob("*"):
        if log.is_file() and not log.is_symlink():
            os.truncate(log, 0)
    (tree / "etc/machine-id").write_text("")
    (tree / "etc/hostname").write_text("tare\n")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").write_text("")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost tare\n::1 localhost\n")
    for name in ("machine-id", "hostname", "resolv.conf", "hosts"):
        (tree / "etc" / name).chmod(0o644)
    _clamp_times(tree, started_s)


def installed_packages(tree: Path) -> dict[str, str]:
    """Every package installed in the tree with its version; empty if it is not a Debian tree.

    A link on the way to dpkg's list is not followed: it would be followed outside the tree.
    """
    found: dict[str, str] = {}
    for paragraph in _read_inside(tree, *_DPKG_STATUS).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").startswith("install ") and fields["Status"].endswith(" installed"):
            found[fields.get("Package", "")] = fields.get("Version", "")
    return found


def _read_inside(tree: Path, *parts: str) -> str:
    """The beginning of a file in the tree; empty if it is not there, or behind a link."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        at = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, at)
        for part in parts:
            at = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
            stack.callback(os.close, at)
        with os.fdopen(at, "rb", closefd=False) as file:
            return file.read(_MAX_STATUS_BYTES).decode("utf-8", "replace")
    return ""


def _remove_documents(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.name != "copyright" and (path.is_symlink() or path.is_file()):
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()


def _clamp_times(tree: Path, started_s: float) -> None:
    everything = [tree, *tree.rglob("*")]
    times = {path: path.lstat().st_mtime for path in everything}
    packaged = max((time_s for time_s in times.values() if time_s < started_s), default=0.0)
    # The day of the last password change is the build's day.
    shadow = tree / "etc/shadow"
    if shadow.is_file():
        day = str(int(packaged) // 86400)
        rows = [line.split(":") for line in shadow.read_text().splitlines()]
        shadow.write_text("".join(":".join([*row[:2], day, *row[3:]]) + "\n" for row in rows))
    for path, time_s in times.items():
        if time_s >= started_s:
            os.utime(path, (int(packaged), int(packaged)), follow_symlinks=False)


def _host_apt_settings(runner: ToolRunner) -> list[str]:
    """Proxies and tolerance for old archives from the host's apt: mmdebstrap itself reads none of its settings."""
    try:
        dumped = runner.run(["apt-config", "dump", "Acquire"], timeout_s=30)
    except (MissingToolError, ToolFailedError):
        return []
    return [line + "\n" for line in dumped.splitlines() if _PASSED_ON.match(line)]


def _follow(progress: Progress) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        for begin, words in _STEPS.items():
            if line.startswith(f"I: {begin}"):
                progress(words)

    return on_line


def install_python_packages(packages: Iterable[str], tree: Path, runner: ToolRunner) -> None:
    """Install ``packages`` with this Python's pip for the Python of ``tree``, and compile them. Raises ImageError.

    They go where Debian's Python looks for what was not packaged. Compiled files are valid by their place and not by
    their source's time, because times in an image are clamped.
    """
    wanted = sorted(packages)
    versions = [path.parent.name.removeprefix("python") for path in tree.glob("usr/lib/python3.*/os.py")]
    if len(versions) != 1:
        found = ", ".join(sorted(versions)) or "none"
        raise ImageError(f"an image with Python packages needs exactly one Python 3, and it has: {found}")
    (version,) = versions
    inside = f"/usr/local/lib/python{version}/dist-packages"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    argv += ["--root-user-action=ignore", "--no-deps", "--no-compile", "--only-binary=:all:", "--platform=any"]
    argv += ["--implementation=py", "--abi=none", f"--python-version={version}", f"--target={tree}{inside}"]
    try:
        runner.run([*argv, *wanted], timeout_s=_PYTHON_TIMEOUT_S)
        compile_all = ("python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", inside)
        # The seed: sets of constants are written in the order of their hashes.
        runner.run(["chroot", str(tree), *compile_all], timeout_s=_PYTHON_TIMEOUT_S, env={"PYTHONHASHSEED": "0"})
    except ToolFailedError as error:
        raise ImageBuildError(
            f"the Python packages {', '.join(wanted)} cannot be installed into the image: {error.message}",
            remedy="tare's own Python needs pip (python3 -m ensurepip) and a package index that pip reaches; only "
            "packages of pure Python can be installed",
        ) from error


def find_debian_sources(suite: str, apt_folder: Path = Path("/etc/apt")) -> str | None:
    """The host's entries for Debian's own ``suite``, as deb822 text; None if it has none.

    Third-party archives that merely use Debian's suite names are left out: an entry counts if "debian" is in its
    address, ``main`` among its components, and its key, where one is stated, Debian's.
    """
    kept = []
    for stanza in _stanzas(apt_folder):
        suites = [name for name in stanza["Suites"].split() if name in (suite, f"{suite}-updates", f"{suite}-security")]
        key = stanza.get("Signed-By", "")
        debian = re.search(r"\bdebian(-security)?\b", stanza["URIs"]) and "linux/debian" not in stanza["URIs"]
        foreign_key = bool(key) and "debian-archive" not in key
        if suites and "main" in stanza["Components"].split() and debian and not foreign_key:
            fields = {**stanza, "Types": "deb", "Suites": " ".join(suites), "Components": "main"}
            kept.append("".join(f"{name}: {fields[name]}\n" for name in ("Types", *_WANTED) if name in fields))
    return "\n".join(kept) or None


def _stanzas(apt_folder: Path) -> Iterator[Mapping[str, str]]:
    parts = apt_folder / "sources.list.d"
    for path in sorted([apt_folder / "sources.list", *parts.glob("*.list"), *parts.glob("*.sources")]):
        if not path.is_file():
            continue
        text = path.read_text("utf-8", errors="replace")
        stanzas = _parse_deb822(text) if path.suffix == ".sources" else _parse_one_line(text)
        yield from (stanza for stanza in stanzas if {"URIs", "Suites", "Components"} <= stanza.keys())


def _parse_deb822(text: str) -> Iterator[Mapping[str, str]]:
    for block in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        stanza = message_from_string(block.strip("\n"))  # the form of a mail's header
        enabled = stanza.get("Enabled", "yes").strip().lower() not in ("no", "false", "0")
        if enabled and "deb" in stanza.get("Types", "").split():
            yield {name: stanza[name].strip(" \t") for name in _WANTED if name in stanza}


def _parse_one_line(text: str) -> Iterator[Mapping[str, str]]:
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s+([^#]+)", line.strip())
        if match is None:
            continue
        options, address, suite, components = match.groups()
        fields = {"URIs": address, "Suites": suite, "Components": components.strip()}
        for option in (options or "").split():
            name, _, value = option.partition("=")
            if name.lower() in _OPTIONS:
                fields[_OPTIONS[name.lower()]] = value.replace(",", " ")
        yield fields
