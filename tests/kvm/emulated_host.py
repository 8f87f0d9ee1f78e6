"""A host with a KVM that works, wherever QEMU runs: TCG emulates an AMD processor with SVM and nested paging.

Its kernel is Debian's, unpacked into the cache and installed nowhere. Its root is this machine's own, read-only through
virtiofs and below a disk of the host's own, so that Python, QEMU, libvirt, this checkout and the image cache are there;
``/data``, on that disk, is no overlay. What is measured in it is worth nothing; as a test of the code it is the real
thing.
"""

import contextlib
import os
import select
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tare.backends.vm.disks import find_virtiofsd
from tare.bench.errors import TareError
from tare.bench.initramfs import Member, order_modules, pack
from tare.bench.process import require_tool, run

MIB = 2**20
MEMORY_BYTES = 2048 * MIB
SMALL_MEMORY_BYTES = 1024 * MIB
"""Enough for one guest; with QEMU, its translated code and the tests that is 1.4 GiB of this machine's."""
DISK_BYTES = 8192 * MIB
START_DEADLINE_S = 240.0
"""A start takes some 30 s on a quiet machine; others may be at work on it."""
_MODULES = ("virtio_pci", "virtio_blk", "virtiofs", "overlay", "crc32c_generic", "ext4")
_LOADED = ("kvm_amd", "tun", "vhost_net", "bridge", "veth", "erofs", "loop")
_PACKAGES = ("linux-image-amd64", "busybox-static")
_ARGUMENTS = (
    *("console=ttyS0", "quiet", "panic=-1", "tsc=reliable", "no_timer_check", "mitigations=off", "cryptomgr.notests"),
    "swapaccount=1",
)

_INIT = """\
#!/bin/sh
set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done
mount -t virtiofs -o ro host /lower
mount -t ext4 /dev/vda /disk
mkdir /disk/upper /disk/work /disk/data /disk/tmp /disk/var-tmp
mount -t overlay -o lowerdir=/lower,upperdir=/disk/upper,workdir=/disk/work overlay /root
mkdir -p /root/data /root/exchange /root/usr/lib/modules
chmod 1777 /disk/tmp /disk/var-tmp
mount --bind /disk/data /root/data
mount --bind /disk/tmp /root/tmp
mount --bind /disk/var-tmp /root/var/tmp
{shown}
mount -t virtiofs exchange /root/exchange
mount -t tmpfs tmpfs /root/run
for folder in proc sys dev; do mount --move "/$folder" "/root/$folder"; done
cp /bin/busybox /root/run/busybox
cp /inittab /root/etc/inittab
exec switch_root /root /run/busybox init
"""
_INITTAB = """\
::sysinit:/bin/sh /exchange/set-up
ttyS1::respawn:/bin/sh /exchange/serve
"""
_SET_UP = """\
PATH=/usr/sbin:/usr/bin:/sbin:/bin
ln -s {modules} /usr/lib/modules/$(uname -r)
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
{cgroups}
ip link set lo up
hostname emulated-host
for module in {loaded}; do modprobe $module; done
echo "set up" >/dev/ttyS0
"""
_CGROUPS = {
    "v2": "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    "v1": """\
mount -t tmpfs tmpfs /sys/fs/cgroup
for controller in cpu,cpuacct cpuset memory pids blkio; do
    mkdir /sys/fs/cgroup/$controller
    mount -t cgroup -o $controller cgroup /sys/fs/cgroup/$controller
done
mkdir /sys/fs/cgroup/unified
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified""",
}
# One line with the name of a script in, one line with its exit code out.
_SERVE = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
stty -F /dev/ttyS1 raw -echo
echo serving
while read -r name; do
    /bin/sh "/exchange/$name.sh" </dev/null >"/exchange/$name.out" 2>"/exchange/$name.err"
    echo "$name $?"
done
"""


class HostKernel(msgspec.Struct, frozen=True):
    """Debian's kernel, unpacked; ``modules`` is the folder of its version."""

    version: str
    image: Path
    modules: Path
    busybox: Path


def find_or_fetch_kernel(cache: Path) -> HostKernel:
    """The kernel below ``cache``, downloaded once. Raises TareError where apt or the archive is not there."""
    folder = cache / "emulated-host"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = cache / f".emulated-host-{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        _fetch(unfinished)
        with contextlib.suppress(OSError):  # another test run was faster
            unfinished.rename(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
    (image,) = (folder / "boot").glob("vmlinuz-*")
    version = image.name.removeprefix("vmlinuz-")
    return HostKernel(version, image, folder / "lib/modules" / version, folder / "bin/busybox")


def _fetch(folder: Path) -> None:
    described = run(["apt-cache", "depends", "--important", _PACKAGES[0]], timeout_s=60)
    found = [line.split()[1] for line in described.splitlines() if "Depends: linux-image-" in line]
    if not found:
        raise TareError(f"apt knows no {_PACKAGES[0]}, Debian's kernel: apt-get update, on Debian")
    kernel = found[0]
    script = 'cd "$1" && shift && exec apt-get -q -o APT::Sandbox::User=root download "$@"'
    run(["sh", "-c", script, "sh", str(folder), kernel, *_PACKAGES[1:]], timeout_s=600)
    for package in sorted(folder.glob("*.deb")):
        run(["dpkg-deb", "--extract", str(package), str(folder)], timeout_s=300)
        package.unlink()
    run(["depmod", "-b", str(folder), kernel.removeprefix("linux-image-")], timeout_s=120)


def make_initramfs(target: Path, kernel: HostKernel) -> None:
    """BusyBox, the modules up to the root, and the script that mounts it."""
    listed = [(kernel.modules / name).read_text() for name in ("modules.dep", "modules.builtin")]
    modules = order_modules(*listed, _MODULES)
    applets = "sh mount mkdir chmod insmod cat cp switch_root"
    folders = ("bin", "modules", "proc", "sys", "dev", "lower", "disk", "root")
    members = [Member(name, stat.S_IFDIR | 0o755) for name in folders]
    members += [Member("bin/busybox", stat.S_IFREG | 0o755, kernel.busybox.read_bytes())]
    members += [Member(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in applets.split()]
    members += [
        Member(f"modules/{Path(path).name}", stat.S_IFREG | 0o644, (kernel.modules / path).read_bytes())
        for path in modules
    ]
    order = "".join(f"{Path(path).name}\n" for path in modules)
    members += [Member("modules/order", stat.S_IFREG | 0o644, order.encode())]
    members += [Member("inittab", stat.S_IFREG | 0o644, _INITTAB.encode())]
    members += [Member("init", stat.S_IFREG | 0o755, _INIT.format(shown="\n".join(_shown_again())).encode())]
    target.write_bytes(pack(members))


def _shown_again() -> Iterator[str]:
    """This checkout and environment, where they lie in a folder that the host has anew."""
    for path in dict.fromkeys((Path(__file__).parents[2].resolve(), Path(sys.prefix).resolve())):
        if path.is_relative_to("/tmp") or path.is_relative_to("/var/tmp"):
            yield f'mkdir -p "/root{path}"'
            yield f'mount --bind "/lower{path}" "/root{path}"'


class Ran(msgspec.Struct, frozen=True):
    """What a command in the host printed, and its exit code."""

    code: int
    out: str
    err: str


class EmulatedHost:
    """A live emulated host. ``folder`` holds the console and the files that it and this machine exchange."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: socket.socket) -> None:
        self.folder = folder
        self.exchange = folder / "exchange"
        self.process = process
        self._port = port
        self._said = b""
        self._count = 0

    def run(self, command: str, *, timeout_s: float = 120) -> Ran:
        """Run a shell command. Raises TimeoutError, after which the host is of no use; RuntimeError if it ended."""
        self._count += 1
        name = f"command-{self._count}"
        (self.exchange / f"{name}.sh").write_text(command + "\n")
        self._port.sendall(f"{name}\n".encode())
        answer = self.expect(name, time.monotonic() + timeout_s)
        out, err = ((self.exchange / f"{name}.{kind}").read_text(errors="replace") for kind in ("out", "err"))
        return Ran(int(answer.split()[1]), out, err)

    def check(self, *argv: str | Path, timeout_s: float = 120) -> str:
        """What a program printed that has to end well. Raises AssertionError with what it said."""
        ran = self.run(shlex.join(map(str, argv)), timeout_s=timeout_s)
        assert ran.code == 0, f"{argv}: {ran.code}\n{ran.out}\n{ran.err}"
        return ran.out

    def expect(self, word: str, deadline: float) -> str:
        """The next line that begins with ``word``. Raises TimeoutError, RuntimeError."""
        while True:
            while b"\n" in self._said:
                line, _, self._said = self._said.partition(b"\n")
                text = line.decode(errors="replace").strip()
                if text.startswith(word):
                    return text
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._port], [], [], left)[0]:
                raise TimeoutError(f"the emulated host did not say {word!r} in time; its console:\n{self.console()}")
            data = self._port.recv(4096)
            if not data:
                raise RuntimeError(f"the emulated host ended; its console:\n{self.console()}")
            self._said += data

    def console(self) -> str:
        """The last lines of its console."""
        return "\n".join((self.folder / "console").read_text(errors="replace").splitlines()[-40:])


@contextlib.contextmanager
def start_emulated_host(
    folder: Path,
    cache: Path,
    *,
    memory_bytes: int = MEMORY_BYTES,
    cpus: int = 2,
    cgroups: str = "v2",
    networked: bool = False,
) -> Iterator[EmulatedHost]:
    """A host that serves commands; on exit it is gone. ``folder`` is empty, with a short path.

    ``networked``: it has a card (module virtio_net), through which it reaches what this process's network reaches.
    """
    kernel = find_or_fetch_kernel(cache)
    (folder / "exchange").mkdir()
    make_initramfs(folder / "initramfs", kernel)
    set_up = _SET_UP.format(modules=kernel.modules, cgroups=_CGROUPS[cgroups], loaded=" ".join(_LOADED))
    (folder / "exchange/set-up").write_text(set_up)
    (folder / "exchange/serve").write_text(_SERVE)
    disk = folder / "disk"
    with disk.open("xb") as file:
        file.truncate(DISK_BYTES)
    run(["mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=1", "-O", "^has_journal", str(disk)], timeout_s=120)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_start_share(folder / "host.sock", Path("/"), ("cache=always",), folder))
        stack.enter_context(_start_share(folder / "exchange.sock", folder / "exchange", ("cache=none",), folder))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(folder / "port"))
        listener.listen(1)
        argv = _qemu_argv(folder, kernel, memory_bytes, cpus)
        if networked:
            argv += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]
        process = stack.enter_context(_start(argv, folder / "qemu.log"))
        if not select.select([listener], [], [], 30)[0]:
            raise RuntimeError(f"QEMU did not start:\n{(folder / 'qemu.log').read_text()}")
        port = stack.enter_context(listener.accept()[0])
        host = EmulatedHost(folder, process, port)
        host.expect("serving", time.monotonic() + START_DEADLINE_S)
        yield host


def _qemu_argv(folder: Path, kernel: HostKernel, memory_bytes: int, cpus: int) -> list[str]:
    size = f"{memory_bytes // MIB}M"
    argv = [str(require_tool("qemu-system-x86_64")), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-accel", "tcg,thread=multi,tb-size=256", "-machine", "q35,memory-backend=ram"]
    # Without AVX2: QEMU 7.2 emulates some of it wrongly, and numpy's sorting of 32-bit numbers dies of that.
    argv += ["-cpu", "max,-la57,-avx2", "-smp", str(cpus), "-m", size]
    argv += ["-object", f"memory-backend-memfd,id=ram,size={size},share=on"]
    argv += ["-kernel", str(kernel.image), "-initrd", str(folder / "initramfs"), "-append", " ".join(_ARGUMENTS)]
    argv += ["-serial", f"file:{folder / 'console'}", "-serial", f"unix:{folder / 'port'}"]
    argv += ["-drive", f"file={folder / 'disk'},if=none,id=disk,format=raw,cache=unsafe"]
    argv += ["-device", "virtio-blk-pci,drive=disk"]
    for tag in ("host", "exchange"):
        argv += ["-chardev", f"socket,id={tag},path={folder / f'{tag}.sock'}"]
        argv += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024"]
    return argv


@contextlib.contextmanager
def _start_share(listening: Path, shared: Path, options: tuple[str, ...], folder: Path) -> Iterator[None]:
    """virtiofsd for a folder; for ``/``, in a mount namespace where all of it is read-only."""
    program = find_virtiofsd()
    assert program is not None
    read_only = "mount -o remount,bind,ro / && " if shared == Path("/") else ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(listening))
        listener.listen(1)
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{read_only}exec "$@"', "sh"]
        argv += [str(program), f"--fd={listener.fileno()}", "-o", f"source={shared}", "-o", "sandbox=chroot"]
        argv += ["-o", "xattr", "--rlimit-nofile=0"]
        argv += [word for option in options for word in ("-o", option)]
        starting = _start(argv, folder / f"{listening.name}.log", (listener.fileno(),))
        with starting:
            listener.close()
            yield


@contextlib.contextmanager
def _start(argv: list[str], said: Path, passed: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    # Whatever ends the tests ends it.
    bound = ["setpriv", "--pdeathsig=KILL", *argv]
    with (
        said.open("wb") as output,
        subprocess.Popen(
            bound, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=passed, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()
