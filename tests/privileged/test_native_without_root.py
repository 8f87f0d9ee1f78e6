"""``native`` started by an ordinary user, from the import of an image to a whole run; the test itself needs root to
become one. The user has no entry in /etc/passwd and nothing of the host is changed for it.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tare.backends.cgroups.layout import Version, find_layout
from tare.bench.process import find_tool
from tests.shipping import ship

pytestmark = [pytest.mark.root, pytest.mark.image]

USER = 54321
GAMES = (5, 60)
"""A user and group that Debian always has: newuidmap refuses users without an entry."""
NEEDED = ("msgspec", "numpy", "pandas", "platformdirs", "pyarrow", "pyseccomp", "rich", "scipy", "typer")
"""What the commands below import; the rest of what tare requires is for reports."""
PROGRAMS = ("dash", "sh", "cat", "id", "true", "sleep", "touch", "chown", "stat", "ls", "head", "tail", "mkdir", "rm")
LIBRARIES = ("libc.so.6", "ld-linux-x86-64.so.2", "libselinux.so.1", "libpcre2-8.so.0", "libacl.so.1", "libattr.so.1")
SUITE = """
[suite]
name = "unprivileged"
[image]
use = "small"
[envelope]
memory = "64MiB"
[sampling]
blocks = 1
[[backend]]
type = "native"
[[backend]]
type = "bare-metal"
[[experiment]]
kind = "boot"
"""
SCRIPT = """
import json, os, sys
from pathlib import Path
from tare.backends.native.backend import Native
from tare.bench.image import ImageStore
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger
from tare.bench.locations import cache_directory, work_directory
from tare.bench.model import Command, Envelope, InstanceSpec
commands = json.loads(sys.argv[1])
work = work_directory() / "script"
envelope = Envelope((max(os.sched_getaffinity(0)),), 32 * 2**20, 2**20, 24)
told = {"ran": []}
with Ledger(Path(sys.argv[2])) as ledger:
    image = ImageStore(cache_directory(), ledger).get("small")
    backend = Native(BackendContext(ledger, work, cache_directory(), Native.Options(), ()))
    told["probe"] = backend.probe()
    try:
        description = backend.prepare(image, envelope)
        told["facts"] = description.texts
        told["confounds"] = {confound.code: confound.detail for confound in description.confounds}
        with backend.start(InstanceSpec("user", image, envelope)) as instance:
            for argv, timeout_s in commands:
                done = instance.execute(Command(tuple(argv), timeout_s=timeout_s))
                told["ran"].append([done.returncode, done.signal, done.stdout.decode(), done.oom_kills, done.timed_out])
            told["members"] = len(instance.cgroup.members())
            told["pss"] = instance.footprint().pss_bytes
            told["usage"] = instance.usage()
        folders = instance.cgroup.folders
    finally:
        backend.close()
    told["entries"] = len(ledger.entries())
    told["left"] = [str(path) for path in (*work.rglob("*"), *filter(Path.exists, folders))]
import msgspec
sys.stdout.buffer.write(msgspec.json.encode(told))
"""


def find_interpreter():
    """One of this version that every user may execute: this one may lie in root's home."""
    for path in ("/usr/bin/python3", sys.executable):
        asked = [*become(USER, USER), path, "-c", "import sys; print(*sys.version_info[:2])"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False, cwd="/")
        if found.stdout.split() == [str(number) for number in sys.version_info[:2]]:
            return path
    return pytest.skip("no Python of this version that an ordinary user may execute")


def become(uid, gid):
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]


@contextlib.contextmanager
def home_of(uid, gid):
    """A folder of the user's own, with the archive in it. Not below pytest's, which is root's alone."""
    with tempfile.TemporaryDirectory(prefix="tare-test-home-", dir="/var/tmp") as name:
        os.chown(name, uid, gid)
        Path(name).chmod(0o755)
        yield Path(name)


class Person:
    def __init__(self, uid, gid, home, site):
        self.home = home
        self.become = become(uid, gid)
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "TARE_WORK_DIR": str(home / "work"),
            "PYTHONPATH": str(site),
        }
        self.python = find_interpreter()

    def run(self, *argv, before=(), code=0):
        command = [*before, *self.become, self.python, *argv]
        done = subprocess.run(
            command, env=self.environment, cwd=self.home, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def tare(self, *argv, **more):
        return self.run("-m", "tare", *argv, **more)

    def script(self, *commands, before=()):
        told = self.run("-c", SCRIPT, json.dumps(commands), str(self.home / "ledger"), before=before)
        return json.loads(told.stdout)


@pytest.fixture(scope="module")
def archive(image, tmp_path_factory):
    """A few programs of the image: what an ordinary user imports is unpacked and hashed again."""
    file = tmp_path_factory.mktemp("archive") / "small.tar"
    library = Path("usr/lib/x86_64-linux-gnu")
    if not (image.rootfs / library).is_dir():
        pytest.skip("made for amd64")
    names = [f"usr/bin/{name}" for name in PROGRAMS]
    for path in (image.rootfs / library / name for name in LIBRARIES):
        files = [path, *([path.with_name(path.readlink().name)] if path.is_symlink() else [])]
        names += [str(file.relative_to(image.rootfs)) for file in files]
    tar = ["tar", "-cf", file, "-C", image.rootfs, "bin", "lib", "lib64", "usr/lib64", "tmp", "etc/passwd", *names]
    subprocess.run(tar, check=True)
    return file


@pytest.fixture(scope="module")
def site():
    """tare where every user may read it: this checkout and its environment may lie in root's home."""
    with home_of(0, 0) as folder:
        yield ship(folder / "site", *NEEDED)


@pytest.fixture(scope="module")
def user(archive, site):
    with home_of(USER, USER) as home:
        person = Person(USER, USER, home, site)
        shutil.copy(archive, home / "small.tar")
        assert "small" in person.tare("image", "import", "small.tar", "--name", "small").stdout
        yield person
        assert list((home / "work").rglob("*/*")) == []


def test_a_container(user):
    told = user.script(
        (["sh", "-c", "id -u; cat /proc/self/uid_map; echo x > /usr/mine && cat /usr/mine; ls /proc | head -1"], 10),
        (["sh", "-c", "(sleep 100 &); sleep 100"], 0.5),
        (["sh", "-c", "head -c 1000000 /dev/zero | tail -c 1"], 10),
    )
    assert told["ran"][0] == [0, None, f"0\n         0      {USER}          1\nx\n1\n", 0, False]
    assert told["ran"][1][4], "timed out"
    assert told["ran"][2][0] == 0
    assert told["members"] == 1, "the time-out has killed the whole tree"
    assert told["entries"] == 0
    assert told["left"] == []
    assert told["pss"] > 0
    assert told["facts"]["user namespace"].endswith("root alone")
    assert {"unprivileged", "single-identity"} <= set(told["confounds"])


def test_without_a_cgroup_each_limit_is_a_confound(user):
    if find_layout().version is Version.V2:
        pytest.skip("on v2 this depends on the group that the test is in")
    told = user.script((["true"], 10))
    assert {f"no-{name}-controller" for name in ("cpu", "cpuset", "memory", "pids", "blkio")} <= set(told["confounds"])
    assert told["probe"]["available"]
    assert "no cgroups" in told["probe"]["reason"]
    assert "Delegate=yes" in told["probe"]["remedy"]
    assert "usermod --add-subuids" in told["probe"]["remedy"]
    usage = told["usage"]
    assert usage["cpu_user_s"] + usage["cpu_system_s"] >= 0
    of_guests = {"cpu_vcpu_s"}
    assert {name for name, value in usage.items() if value is None} == set(usage["missing"]) | of_guests


@pytest.fixture
def delegated():
    """Groups of the user's own below ours, and the command that enters them; as systemd or an administrator makes."""
    layout = find_layout()
    if layout.version not in {Version.V1, Version.HYBRID}:
        pytest.skip("delegation on v2 is tried in a guest")
    parents = [*layout.controllers.items(), *([("", layout.unified)] if layout.unified else [])]
    groups = [folder / f"delegated-{os.getpid()}" for _, folder in parents]
    try:
        for (name, parent), group in zip(parents, groups, strict=True):
            group.mkdir()
            if name == "cpuset":
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (group / file).write_text((parent / file).read_text())
            for path in (group, *(group / file for file in ("tasks", "cgroup.procs") if (group / file).exists())):
                os.chown(path, USER, USER)
        enter = 'for group in {}; do echo 0 > $group/cgroup.procs; done; exec "$@"'.format(" ".join(map(str, groups)))
        yield ["sh", "-c", enter, "sh"]
    finally:
        for group in groups:
            if group.is_dir():
                group.rmdir()


def test_in_a_delegated_cgroup_the_limits_hold(user, delegated):
    told = user.script(
        (["sh", "-c", "head -c 200000000 /dev/zero | tail -c 199999999"], 30),
        (["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 a b c d e f g h i j k l m n o p q; do sleep 100 & done; wait"], 1),
        before=delegated,
    )
    assert told["ran"][0][0] != 0
    assert told["ran"][0][3] >= 1, "an OOM kill"
    assert told["usage"]["pids_refused"] > 0
    assert told["usage"]["memory_peak_bytes"] <= 32 * 2**20
    assert not [code for code in told["confounds"] if code.startswith("no-")]
    assert told["left"] == []
    assert told["entries"] == 0


def test_a_range_of_identities(archive, site, tmp_path):
    """The lines of /etc/subuid and /etc/subgid stand in a mount namespace of the test's own."""
    if find_tool("newuidmap") is None:
        pytest.skip("the package uidmap is not installed")
    (tmp_path / "ids").write_text("games:700000:65536\n")
    bind = f'mount --bind {tmp_path}/ids /etc/subuid && mount --bind {tmp_path}/ids /etc/subgid && exec "$@"'
    give_away = "touch /mine && chown 1000:1000 /mine && stat -c %u:%g /mine && mkdir -m 700 /d && chown 7 /d"
    with home_of(*GAMES) as home:
        person = Person(*GAMES, home, site)
        shutil.copy(archive, home / "small.tar")
        person.tare("image", "import", "small.tar", "--name", "small")
        told = person.script((["sh", "-c", give_away], 10), before=["unshare", "--mount", "sh", "-c", bind, "sh"])
    assert told["ran"][0][:3] == [0, None, "1000:1000\n"]
    assert told["facts"]["user namespace"].endswith("0-65535")
    assert "single-identity" not in told["confounds"]
    assert told["left"] == [], "files of the range's users too"


def test_a_whole_run_and_what_is_left_out_of_it(user):
    (user.home / "suite.toml").write_text(SUITE)
    done = user.tare("run", "suite.toml", "--output", "out", "--no-report", code=5)
    told = done.stdout + done.stderr
    assert "bare-metal" in told
    manifest = json.loads((user.home / "out/manifest.json").read_text())
    assert list(manifest["backends"]) == ["native"]
    assert "it needs root" in manifest["unavailable"]["bare-metal"]["reason"]
    assert "unprivileged" in {confound["code"] for confound in manifest["confounds"]}
    assert "boot.total" in (user.home / "out/samples.jsonl").read_text()


def test_doctor_says_how_to_get_more(user):
    told = " ".join(user.tare("doctor", code=1).stdout.split())
    assert "without root: overlay in a user namespace" in told
    assert "for more:" in told
