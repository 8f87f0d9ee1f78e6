"""What hostile workloads and images try: nothing of the host's is reached, changed or held up.

Every attack is tried only after it was seen, from the host, that what it would reach is nobody else's: a failure of
these tests must not change the machine that they run on.
"""

import contextlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from tare.backends.native import channel as channels
from tare.backends.native.options import NativeOptions, Profile
from tare.bench.errors import BackendError, TareError
from tare.bench.ledger import Ledger
from tare.bench.model import Command
from tare.bench.process import PIPE, Popen
from tests.privileged.host_kernel import BACKENDS, spec, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]

NOBODY = 65534
INTERPRETERS = {Path(path).resolve() for path in (sys.executable, "/usr/bin/python3") if Path(path).exists()}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "user-namespace"])
def container(request, image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    options = NativeOptions(user_namespace=request.param)
    with (
        Ledger(folder / "ledger") as ledger,
        start_backend("native", image, folder / "work", ledger, options) as backend,
        backend.start(spec("hostile", image)) as instance,
    ):
        instance.in_user_namespace = request.param
        yield instance


@pytest.fixture(params=list(BACKENDS))
def instance(request, image, tmp_path):
    with (
        Ledger(tmp_path / "ledger") as ledger,
        start_backend(request.param, image, tmp_path / "work", ledger) as backend,
        backend.start(spec("hostile", image)) as started,
    ):
        yield started


def python(instance, script, *arguments, **more):
    return instance.execute(Command(("python3", "-c", script, *arguments), **more))


def identity(path):
    status = os.stat(path)  # noqa: PTH116 - also of a descriptor
    return status.st_dev, status.st_ino


def census():
    """What must be as before: interpreters and device nodes, with all that can be changed about them."""
    found = {}
    for path in (
        *INTERPRETERS,
        *(Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom", "tty")),
    ):
        status = path.stat()
        found[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_size, os.listxattr(path))
    return found


def require_nobody_elses(instance):
    """That no process of the instance executes a file of the host's, and no descriptor of its init is one."""
    hosts = {identity(path) for path in (*INTERPRETERS, *(() if instance.in_user_namespace else ("/dev/null",)))}
    for path in (f"/proc/{instance.pid}/exe", *Path(f"/proc/{instance.pid}/fd").iterdir()):
        assert identity(path) not in hosts, os.readlink(path)  # noqa: PTH115
    assert os.readlink(f"/proc/{instance.pid}/exe").startswith("/memfd:tare-zygote")  # noqa: PTH115


def test_its_init_is_nobodys_interpreter_and_out_of_reach(container):
    require_nobody_elses(container)
    before = census()
    script = """
import json, os
told = {}
def attempt(name, act):
    try:
        act()
        told[name] = 0
    except OSError as error:
        told[name] = error.errno
attempt("chmod", lambda: os.chmod("/proc/1/exe", 0o4755))
attempt("chown", lambda: os.chown("/proc/1/exe", 0, 0))
capability = bytes.fromhex("0100000280000000" + "00" * 12)
attempt("capability", lambda: os.setxattr("/proc/1/exe", "security.capability", capability))
attempt("write", lambda: open("/proc/1/exe", "r+b"))
for number in range(8):
    attempt(f"descriptor {number}", lambda: os.chmod(f"/proc/1/fd/{number}", 0o600))
attempt("root", lambda: os.listdir("/proc/1/root/"))
attempt("memory", lambda: open("/proc/1/mem", "r+b"))
attempt("environment", lambda: open("/proc/1/environ", "rb").read())
print(json.dumps(told))
"""
    told = json.loads(python(container, script).stdout)
    absent = 2  # as of descriptors that it does not have
    assert {error for name, error in told.items() if error != absent or not name.startswith("descriptor")} == {13}, told
    assert census() == before


def test_a_script_whose_interpreter_is_proc_self_exe_gets_nothing_of_the_hosts(container):
    require_nobody_elses(container)
    before = census()
    script = """
import os, stat, time
open("/tool", "w").write("#!/proc/self/exe\\n")
os.chmod("/tool", 0o755)
"""
    assert python(container, script).returncode == 0
    assert container.execute(Command(("/tool",), timeout_s=10)).returncode == 2, "the zygote's program, misused"
    # One that waits for what never comes, as if it were an init of somebody's, is looked at by another.
    script = """
import os, subprocess, time
ours, theirs = __import__("socket").socketpair()
os.symlink("/tool", "/3")
tool = subprocess.Popen(["/tool"], pass_fds=(theirs.fileno(),))
tool.wait()
try:
    os.chmod(f"/proc/{tool.pid}/exe", 0o4755)
except OSError as error:
    print(error.errno)
"""
    python(container, script, timeout_s=10)
    assert census() == before
    assert container.execute(Command(("true",))).returncode == 0


def test_it_cannot_be_traced(container):
    script = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for request in (16, 0x4206):
    print(libc.ptrace(request, 1, 0, 0) and ctypes.get_errno())
"""
    assert python(container, script).stdout.split() == [b"1", b"1"], "EPERM to PTRACE_ATTACH and PTRACE_SEIZE"


def test_its_device_nodes_are_not_the_hosts(container):
    names = ("null", "zero", "full", "random", "urandom", "tty")
    script = "import json, os, sys; print(json.dumps({n: os.stat(n)[1:3] for n in sys.argv[1:]}))"
    paths = [f"/dev/{name}" for name in names]
    masked = [path for path in ("/proc/keys", "/proc/interrupts", "/proc/timer_list") if Path(path).exists()]
    found = {path: tuple(both) for path, both in json.loads(python(container, script, *paths, *masked).stdout).items()}
    hosts = {Path(path).stat()[1:3] for path in paths}
    if container.in_user_namespace:
        # To the mode that it has: where this is not refused, nothing changes.
        changed = container.execute(
            Command(("chmod", f"{stat.S_IMODE(Path('/dev/null').stat().st_mode):o}", "/dev/null"))
        )
        assert b"Operation not permitted" in changed.stderr
        return
    assert not hosts & set(found.values())
    before = census()
    assert container.execute(Command(("sh", "-c", "chmod 600 /dev/null && chown 1:1 /dev/null"))).returncode == 0
    assert census() == before
    assert container.execute(Command(("sh", "-c", "chown 0:0 /dev/null && chmod 666 /dev/null"))).returncode == 0


def test_its_commands_have_no_descriptor_of_the_hosts(container):
    script = "import json, os; print(json.dumps([[os.fstat(n).st_dev, os.fstat(n).st_ino] for n in range(3)]))"
    for content in (b"", b"content"):
        found = {tuple(both) for both in json.loads(python(container, script, stdin=content).stdout)}
        if container.in_user_namespace:  # its /dev/null is the host's, which it cannot change
            found.discard(identity("/dev/null"))
        assert not found & {identity("/dev/null")}
        for mode in json.loads(
            python(container, "import os, json; print(json.dumps([os.fstat(n).st_mode for n in range(3)]))").stdout
        ):
            assert not stat.S_ISREG(mode)


@pytest.fixture
def open_path():
    """A folder that every user may enter, as none of pytest's, so that what protects is tare's own."""
    with tempfile.TemporaryDirectory(prefix="tare-test-open-", dir="/var/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        made = path / "made"
        shutil.copy("/bin/true", made)
        assert not refused([str(made)]), "nothing but modes keeps others away"
        yield path


def test_another_user_of_the_host_gets_at_nothing_made_inside(image, open_path):
    with (
        Ledger(open_path / "ledger") as ledger,
        start_backend("native", image, open_path / "work", ledger) as backend,
        backend.start(spec("setuid", image)) as started,
    ):
        script = (
            "for to in / /scratch/; do cp /bin/true ${to}made; chmod 4755 ${to}made; mknod ${to}device c 1 3; done; :"
        )
        assert started.execute(Command(("sh", "-c", script))).returncode == 0
        folder = backend._prepared.folder / spec("setuid", image).identifier
        made = [folder / "upper/made", folder / "scratch/made"]
        assert {path.stat().st_mode & 0o7777 for path in made} == {0o4755}
        for path in made:
            for argv in (["cat", str(path)], [str(path)], ["stat", str(path)]):
                assert refused(argv), argv
        mounts = started.execute(Command(("cat", "/proc/self/mountinfo"))).stdout.decode().splitlines()
        flags = {line.split()[4]: line.split()[5].split(",") for line in mounts}
        for mount in ("/", "/scratch", "/dev"):
            assert {"nosuid", "nodev"} <= set(flags[mount]), mount


def refused(argv):
    script = f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); os.execv(argv[0], argv)"
    argv = [argv[0] if "/" in argv[0] else f"/bin/{argv[0]}", *argv[1:]]
    with Popen(["/usr/bin/python3", "-c", f"argv = {argv!r}; {script}"], stdout=PIPE, stderr=PIPE) as process:
        return process.wait() != 0 and b"denied" in process.stderr.read()


@pytest.mark.parametrize("name", list(BACKENDS))
@pytest.mark.parametrize(
    ("folder", "target"), [("proc", "/etc"), ("sys", "/tmp"), ("dev", "../outside"), ("dev", "gone")]
)
def test_an_image_with_a_link_where_tare_mounts_is_refused(name, folder, target, image, tmp_path):
    root = tmp_path / "image"
    (root / "bin").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / folder).symlink_to(target)
    linked = msgspec.structs.replace(image, rootfs=root)
    with (
        Ledger(tmp_path / "ledger") as ledger,
        pytest.raises(TareError, match=f"the image's /{folder} is a symbolic link to {target}"),
        start_backend(name, linked, tmp_path / "work", ledger),
    ):
        pass
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_link_that_comes_later_is_refused_by_the_step(name, image, tmp_path, monkeypatch):
    root = tmp_path / "image"
    (root / "bin").mkdir(parents=True)
    (root / "proc").symlink_to("/etc")
    linked = msgspec.structs.replace(image, rootfs=root)
    monkeypatch.setattr("tare.backends.native.runtime.find_missing", lambda _: ("sys", "dev"))
    with (
        Ledger(tmp_path / "ledger") as ledger,
        pytest.raises(BackendError, match="/proc to be a folder and no link: Not a directory"),
        start_backend(name, linked, tmp_path / "work", ledger),
    ):
        pass


FORGE = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
init = os.pidfd_open(os.getppid())
for number in range(3, 16):
    taken = libc.syscall(438, init, number, 0)  # pidfd_getfd
    if taken >= 0:
        try:
            os.write(taken, bytes.fromhex(sys.argv[1]))
        except OSError:
            pass
time.sleep(1000)
"""


@pytest.mark.parametrize(
    "forged", ["ffffffff", "00000010", "08000000", "0c00000004000000646f6e65", "0800000004000000646f6e65"]
)
def test_forged_answers_do_not_hold_it_up(image, tmp_path, forged, monkeypatch):
    # Root on bare metal may do this; in a container nobody may.
    monkeypatch.setattr(channels, "DEADLINE_S", 1.0)
    with (
        Ledger(tmp_path / "ledger") as ledger,
        start_backend("bare-metal", image, tmp_path / "work", ledger) as backend,
    ):
        began = time.monotonic()
        with contextlib.suppress(TareError), backend.start(spec("forge", image)) as started:
            python(started, FORGE, forged, timeout_s=3)
        assert time.monotonic() - began < 3 + 5
        with backend.start(spec("next", image)) as started:
            assert started.execute(Command(("true",))).returncode == 0


def test_a_stopped_init_does_not_hold_it_up(image, tmp_path, monkeypatch):
    monkeypatch.setattr("tare.backends.native.instance._KILLED_DEADLINE_S", 1.0)
    monkeypatch.setattr(channels, "DEADLINE_S", 1.0)
    with (
        Ledger(tmp_path / "ledger") as ledger,
        start_backend("bare-metal", image, tmp_path / "work", ledger) as backend,
    ):
        began = time.monotonic()
        with pytest.raises(TareError), backend.start(spec("stop", image)) as started:
            started.execute(Command(("sh", "-c", "kill -STOP $PPID; sleep 1000"), timeout_s=1))
        assert time.monotonic() - began < 1 + 5
        began = time.monotonic()
        with contextlib.suppress(TareError), backend.start(spec("stop", image)) as started:
            os.kill(started.pid, signal.SIGSTOP)
            started.execute(Command(("true", *["x" * 100_000] * 10), timeout_s=1))
        assert time.monotonic() - began < 1 + 5


def test_init_cannot_be_stopped_from_inside_a_container(container):
    assert container.execute(Command(("sh", "-c", "kill -STOP 1; kill -KILL 1; exit 3"))).returncode == 3


def test_what_serves_beside_systemd_is_out_of_reach_too(catalogue_image, tmp_path):
    options = NativeOptions(profile=Profile.FULL)
    with (
        Ledger(tmp_path / "ledger") as ledger,
        start_backend("native", catalogue_image, tmp_path / "work", ledger, options) as backend,
        backend.start(spec("system", catalogue_image)) as started,
    ):
        hosts = {identity(path) for path in (*INTERPRETERS, "/dev/null")}
        served = 0
        for pid in started.cgroup.members():
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile, or closed
                served += os.readlink(f"/proc/{pid}/exe").startswith("/memfd:tare-zygote")  # noqa: PTH115
                assert identity(f"/proc/{pid}/exe") not in hosts
                for path in Path(f"/proc/{pid}/fd").iterdir():
                    assert identity(path) not in hosts
        assert served == 1
        script = "for pid in /proc/[0-9]*; do grep -q tare-init $pid/comm && chmod 700 $pid/exe; done"
        assert b"Permission denied" in started.execute(Command(("sh", "-c", script))).stderr
