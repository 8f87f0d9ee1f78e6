"""What a container sees and may do, against what the common runtimes give."""

import contextlib
import errno
import os
import re
import sys
import time
from pathlib import Path

import pytest

from tare.backends.native.identities import REMAPPED
from tare.backends.native.options import Capabilities, NativeOptions, Seccomp, Upper
from tare.bench.ledger import Ledger
from tare.bench.model import KEPT_BYTES, Command
from tare.bench.process import run
from tests.privileged.host_kernel import spec, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "user-namespace"])
def container(request, image, tmp_path_factory):
    options = NativeOptions(user_namespace=request.param)
    folder = tmp_path_factory.mktemp("isolation")
    with (
        Ledger(folder / "ledger") as ledger,
        start_backend("native", image, folder / "work", ledger, options) as backend,
        backend.start(spec("isolation", image)) as instance,
    ):
        yield instance


def remapped(container):
    return output(container, "cat /proc/self/uid_map").split()[1] != "0"


def output(container, script):
    done = container.execute(Command(("sh", "-c", script)))
    return done.stdout.decode().strip()


@pytest.mark.parametrize("name", ["mnt", "pid", "net", "uts", "ipc", "cgroup"])
def test_namespaces_are_its_own(container, name):
    assert output(container, f"readlink /proc/self/ns/{name}") != str(Path(f"/proc/self/ns/{name}").readlink())


def test_capabilities_are_dockers(container):
    status = output(container, "grep -E '^(Cap|NoNewPrivs)' /proc/self/status")
    values = dict(re.findall(r"(\w+):\s+(\w+)", status))
    assert {values[name] for name in ("CapPrm", "CapEff", "CapBnd")} == {"00000000a80425fb"}
    assert values["CapInh"] == values["CapAmb"] == "0" * 16
    assert values["NoNewPrivs"] == "1"


def test_seccomp_holds_for_init_and_commands(container):
    for process in ("1", "self"):
        status = output(container, f"grep Seccomp: /proc/{process}/status")
        assert status.split() == ["Seccomp:", "2"]


@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        ("libc.unshare(0x10000000)", errno.EPERM),  # CLONE_NEWUSER, which anybody may without a filter
        ("libc.syscall(425, 1, ctypes.byref(ctypes.create_string_buffer(120)))", errno.EPERM),  # io_uring_setup
        ("libc.syscall(435, ctypes.byref(ctypes.create_string_buffer(88)), 88)", errno.ENOSYS),  # clone3
        ("libc.syscall(1000)", errno.ENOSYS),
        ("libc.personality(0x0040000)", errno.EPERM),
        ("libc.socket(40, 1, 0)", errno.EPERM),  # AF_VSOCK
        ("libc.socket(1, 1, 0)", 0),
    ],
)
def test_seccomp_answers_as_dockers(container, attempt, answer):
    script = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint({attempt} < 0 and ctypes.get_errno())"
    assert int(container.execute(Command(("python3", "-c", script))).stdout.replace(b"False", b"0")) == answer


def test_identities_are_the_hosts_only_without_a_user_namespace(container):
    status = Path(f"/proc/{container.pid}/status").read_text()
    owner = int(re.search(r"Uid:\s+(\d+)", status)[1])
    assert owner == (REMAPPED[0][1] if remapped(container) else 0)
    script = "touch /made /scratch/made && stat -c %U:%G /made /scratch/made /etc/passwd / /scratch"
    assert output(container, script).split() == ["root:root"] * 5
    assert output(container, "rm -r /usr/share/bug && mkdir /usr/share/bug && ls -A /usr/share/bug") == ""


def test_sees_only_its_own_processes(container):
    assert output(container, "cat /proc/1/comm") != Path("/proc/1/comm").read_text().strip()
    pids = [int(name) for name in output(container, "ls /proc").split() if name.isdigit()]
    assert len(pids) < 6


def test_sees_no_mount_of_the_host(container):
    mounts = [line.split()[4] for line in output(container, "cat /proc/self/mountinfo").splitlines()]
    known = (
        r"/|/scratch|/proc(/.*)?|/sys(/firmware|/devices/virtual/powercap|/devices/system/cpu/cpu\d+/thermal_throttle)?"
    )
    known += r"|/dev(/(pts|shm|mqueue|null|zero|full|random|urandom|tty))?"
    assert [mount for mount in mounts if not re.fullmatch(known, mount)] == []


def test_dev_is_minimal_and_works(container):
    names = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert output(container, "ls /dev | tr '\\n' ' '").strip() == names
    assert (
        output(container, "echo x > /dev/null; head -c 8 /dev/urandom | wc -c; head -c 3 /dev/zero | wc -c") == "8\n3"
    )
    assert output(container, "echo x > /dev/shm/x && cat /dev/shm/x; test -c /dev/pts/ptmx && echo pty") == "x\npty"


def test_a_device_made_inside_cannot_be_opened(container):
    device = Path("/").stat().st_dev
    major, minor = (os.major(device), os.minor(device)) if os.major(device) else (1, 1)
    for folder in ("/", "/dev/", "/scratch/", "/dev/shm/"):
        script = f"mknod {folder}disk b {major} {minor} && head -c 1 {folder}disk; echo status $?; rm -f {folder}disk"
        done = container.execute(Command(("sh", "-c", script)))
        assert done.stdout == b"status 1\n"
        assert (b"Operation not permitted" if remapped(container) else b"Permission denied") in done.stderr


@pytest.mark.parametrize(
    "path",
    ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/sys/kernel/mm/ksm/run"],
)
def test_kernel_settings_are_read_only(container, path):
    if not Path(path).exists():
        pytest.skip(f"this kernel has no {path}")
    done = container.execute(Command(("dd", "if=/dev/null", f"of={path}", "conv=notrunc")))
    # In a user namespace the owner, who is nobody there, is asked first.
    assert b"Read-only file system" in done.stderr or (remapped(container) and b"Permission denied" in done.stderr)


@pytest.mark.parametrize(
    "path", ["/proc/keys", "/proc/interrupts", "/proc/timer_list", "/proc/kcore", "/proc/acpi", "/sys/firmware"]
)
def test_masked_paths_are_empty(container, path):
    if not Path(path).exists():
        pytest.skip(f"this kernel has no {path}")
    assert output(container, f"if test -d {path}; then ls -A {path}; else head -c 1 {path}; fi") == ""


def test_may_not_mount(container):
    assert "status 32" in output(container, "mount -t tmpfs x /mnt 2>&1; echo status $?")


def test_network_is_loopback_alone_and_up(container):
    assert output(container, "ls /sys/class/net") == "lo"
    flags = int(output(container, "cat /sys/class/net/lo/flags"), 16)
    assert flags & 1
    script = "import socket\ns = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    assert container.execute(Command(("python3", "-c", script))).returncode == 0


def test_hostname(container):
    assert output(container, "cat /proc/sys/kernel/hostname") == f"isolation-{os.getpid()}"


def test_cgroup_root_is_its_own(container):
    paths = {line.split(":", 2)[2] for line in output(container, "cat /proc/self/cgroup").splitlines()}
    assert not any("tare-" in path for path in paths)


def test_no_descriptor_leaks_into_commands(container):
    assert output(container, "ls /proc/self/fd | tr '\\n' ' '") == "0 1 2 3"  # 3 is ls's own


def test_no_environment_leaks_into_commands(container):
    names = {line.split("=")[0] for line in output(container, "env").splitlines()}
    assert names <= {"PATH", "HOME", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}


def test_pipes_break_as_usual(container):
    # Python ignores SIGPIPE, and what is ignored is inherited: init has to undo that.
    ignored = int(output(container, "grep SigIgn /proc/self/status").split()[1], 16)
    glibc_own = 0b11 << 31  # signals 32 and 33, which every posix_spawn of glibc leaves ignored
    assert ignored & ~glibc_own == 0


def test_a_hundred_megabytes_each_way(container):
    content = os.urandom(2**20) * 100
    done = container.execute(Command(("cat",), stdin=content, timeout_s=60))
    assert done.stdout == content[-KEPT_BYTES:]
    assert done.whole["stdout"].read() == content


@pytest.fixture
def start_with(image, tmp_path):
    with contextlib.ExitStack() as stack:

        def start(**chosen):
            ledger = stack.enter_context(Ledger(tmp_path / "ledger"))
            options = NativeOptions(**chosen)
            backend = stack.enter_context(start_backend("native", image, tmp_path / "work", ledger, options))
            return stack.enter_context(backend.start(spec("chosen", image)))

        yield start


def test_the_harness_leaks_neither_its_umask_nor_its_groups_nor_its_keys(start_with):
    umask, groups = os.umask(0o077), os.getgroups()
    try:
        os.setgroups([4, 27])
        container = start_with(seccomp=Seccomp.NONE)
    finally:
        os.umask(umask)
        os.setgroups(groups)
    assert output(container, "umask; id -G; stat -c %a / /scratch") == "0022\n0\n755\n755"
    # KEYCTL_GET_KEYRING_ID of the session keyring
    script = "import ctypes; print(ctypes.CDLL(None).syscall(250, 0, -3, 0))"
    inside = container.execute(Command(("python3", "-c", script))).stdout
    outside = run([sys.executable, "-c", script], timeout_s=30)
    assert int(inside) != int(outside)


def test_no_capabilities(start_with):
    container = start_with(capabilities=Capabilities.NONE)
    status = output(container, "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status /proc/1/status")
    assert set(re.findall(r"Cap\w+:\s+(\w+)", status)) == {"0" * 16}
    assert container.execute(Command(("chroot", "/", "true"))).returncode == 125


def test_no_seccomp(start_with):
    container = start_with(seccomp=Seccomp.NONE)
    assert output(container, "grep Seccomp: /proc/self/status").split() == ["Seccomp:", "0"]
    assert container.execute(Command(("unshare", "--user", "true"))).returncode == 0


def test_the_boot_clock_can_be_chosen_and_the_monotonic_one_stays(start_with):
    container = start_with(time_namespace=True, boot_offset_s=1_000_000)
    assert output(container, "readlink /proc/self/ns/time") != str(Path("/proc/self/ns/time").readlink())
    script = "import time; print(time.clock_gettime(7), time.monotonic())"
    before, host = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
    done = container.execute(Command(("python3", "-c", script)))
    boot, monotonic = map(float, done.stdout.split())
    assert 0 <= boot - host - 1_000_000 < 60
    assert before <= done.started_s <= monotonic <= done.ended_s <= time.monotonic()


@pytest.mark.parametrize("remap", [False, True])
def test_an_upper_layer_in_memory(start_with, remap):
    container = start_with(upper=Upper.TMPFS, user_namespace=remap)
    disk, charged = container.footprint().disk_owned_bytes, container.footprint().cgroup_bytes
    assert output(container, "head -c 20000000 /dev/zero > /made; stat -c %U:%s /made") == "root:20000000"
    assert container.footprint().disk_owned_bytes == disk
    assert container.footprint().cgroup_bytes - charged > 19_000_000
    done = container.execute(Command(("sh", "-c", "head -c 400000000 /dev/zero > /made")))
    assert b"No space left" in done.stderr, "before its memory limit kills it"
    assert container.execute(Command(("true",))).returncode == 0
