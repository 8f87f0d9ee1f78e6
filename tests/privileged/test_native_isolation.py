"""What a container sees and may do, against what the common runtimes give."""

import errno
import os
import re
from pathlib import Path

import pytest

from bench.ledger import Ledger
from bench.model import Command
from tests.privileged.host_kernel import spec, start_backend

pytestmark = [pytest.mark.root, pytest.mark.image]


@pytest.fixture(scope="module")
def container(image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("isolation")
    with (
        Ledger(folder / "ledger") as ledger,
        start_backend("native", image, folder / "work", ledger) as backend,
        backend.start(spec("isolation", image)) as instance,
    ):
        yield instance


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


def test_sees_only_its_own_processes(container):
    assert output(container, "cat /proc/1/comm") != Path("/proc/1/comm").read_text().strip()
    pids = [int(name) for name in output(container, "ls /proc").split() if name.isdigit()]
    assert len(pids) < 6


def test_sees_no_mount_of_the_host(container):
    mounts = [line.split()[4] for line in output(container, "cat /proc/self/mountinfo").splitlines()]
    known = r"/|/scratch|/proc(/.*)?|/sys(/firmware|/devices/virtual/powercap)?"
    known += r"|/dev(/(pts|shm|mqueue|null|zero|full|random|urandom|tty))?"
    assert [mount for mount in mounts if not re.fullmatch(known, mount)] == []


def test_dev_is_minimal_and_works(container):
    names = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
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
        assert b"Permission denied" in done.stderr


@pytest.mark.parametrize(
    "path",
    ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/sys/kernel/mm/ksm/run"],
)
def test_kernel_settings_are_read_only(container, path):
    if not Path(path).exists():
        pytest.skip(f"this kernel has no {path}")
    done = container.execute(Command(("dd", "if=/dev/null", f"of={path}", "conv=notrunc")))
    assert b"Read-only file system" in done.stderr


@pytest.mark.parametrize("path", ["/proc/keys", "/proc/timer_list", "/proc/kcore", "/proc/acpi", "/sys/firmware"])
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
    assert done.stdout == content
