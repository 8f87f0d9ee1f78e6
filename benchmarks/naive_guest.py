"""The guest that a tutorial would have one build, for comparison: a shell script in an initramfs, the agent as PID 1.

The same kernel, modules and disk of the image. The initramfs is compressed with zstd and holds busybox, which loads
the modules, lays a tmpfs over the erofs and switches into `qemu-ga`. The kernel's command line is the plain one,
TCG's cache is as large as QEMU makes it, and whether the agent answers is found out by asking it every 100 ms.
"""

import contextlib
import json
import os
import select
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from tare.backends.vm.emulator import PROGRAM
from tare.bench.errors import TareError
from tare.bench.image.boot import Member, pack
from tare.bench.ledger import MARKER_VARIABLE, Ledger, ResourceKind
from tare.bench.model import Image
from tare.bench.process import DEVNULL, Popen, require_tool, run

POLL_S = 0.1
DEADLINE_S = 60.0
AGENT_PORT = "org.qemu.guest_agent.0"
INIT = """\
#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in {modules}; do insmod /modules/$module; done
mkdir -p /lower /rw /root
mount -t erofs -o ro /dev/vda /lower
mount -t tmpfs tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root
until port=$(ls /dev/vport*p1); do sleep 0.1; done
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /usr/sbin/qemu-ga -m virtio-serial -p $port -t /run
"""
APPLETS = ("sh", "mount", "insmod", "mkdir", "ls", "sleep", "switch_root")
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "libcrc32c",
    "erofs",
    "overlay",
)


class NaiveGuest:
    """Made once; each ``start`` boots it anew. ``busybox`` is a static one."""

    def __init__(
        self, ledger: Ledger, folder: Path, image: Image, *, cpus: tuple[int, ...], memory_bytes: int, busybox: Path
    ) -> None:
        self._ledger = ledger
        self._folder = folder / "naive"
        self._folder.mkdir()
        self._image = image
        self._cpus = cpus
        self._memory_bytes = memory_bytes
        self._initramfs = self._folder / "initramfs"
        assert image.initramfs is not None
        plain = self._folder / "initramfs.cpio"
        plain.write_bytes(pack_naive(read_modules(image.initramfs.read_bytes()), busybox.read_bytes()))
        run([str(require_tool("zstd")), "-q", "-19", "-o", str(self._initramfs), str(plain)], timeout_s=120)

    def start(self, accel: str) -> float:
        """Seconds from QEMU's start until its agent has answered. Raises TareError."""
        marker = f"vm-naive-{os.getpid()}"
        agent = self._folder / "agent"
        argv = ["taskset", "-c", ",".join(map(str, self._cpus)), str(require_tool(PROGRAM)), "-nodefaults"]
        argv += ["-display", "none", "-no-reboot", "-machine", f"q35,accel={accel}"]
        argv += ["-cpu", "host" if accel == "kvm" else "max", "-m", str(self._memory_bytes >> 20)]
        argv += ["-smp", str(len(self._cpus)), "-kernel", str(self._image.kernel), "-initrd", str(self._initramfs)]
        argv += ["-append", "console=ttyS0 quiet", "-serial", f"file:{self._folder / 'console'}"]
        argv += ["-drive", f"if=none,id=image,format=raw,readonly=on,file={self._image.disk}"]
        argv += ["-device", "virtio-blk-pci,drive=image", "-device", "virtio-serial-pci"]
        argv += ["-chardev", f"socket,id=agent,path={agent},server=on,wait=off"]
        argv += ["-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"]
        environment = {**os.environ, MARKER_VARIABLE: marker}
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._ledger.holding(ResourceKind.PROCESS, marker))
            stack.callback(agent.unlink, missing_ok=True)
            began = time.monotonic()
            process = stack.enter_context(Popen(argv, env=environment, stdin=DEVNULL, stdout=DEVNULL))
            stack.callback(process.kill)
            self._await_answer(agent, began + DEADLINE_S)
            return time.monotonic() - began

    def _await_answer(self, agent: Path, deadline: float) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            _connect(connection, agent, deadline)
            while time.monotonic() < deadline:
                connection.sendall(json.dumps({"execute": "guest-ping"}).encode() + b"\n")
                if select.select([connection], [], [], POLL_S)[0] and b'"return"' in connection.recv(4096):
                    return
        console = (self._folder / "console").read_text(errors="replace")
        raise TareError(f"the naive guest did not answer within {DEADLINE_S:g} s: {console[-2000:]}")


def _connect(connection: socket.socket, path: Path, deadline: float) -> None:
    """As a naive program does: again and again until somebody listens. Raises TareError."""
    while time.monotonic() < deadline:
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)
        else:
            return
    raise TareError("the naive guest's QEMU does not listen")


def pack_naive(modules: dict[str, bytes], busybox: bytes) -> bytes:
    """Its initramfs, not compressed: the modules in the order in which they are given."""
    init = INIT.format(modules=" ".join(modules)).encode()
    folders = [Member(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "sys", "modules")]
    links = [Member(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in APPLETS]
    files = [Member(f"modules/{name}", stat.S_IFREG | 0o644, content) for name, content in modules.items()]
    program = Member("bin/busybox", stat.S_IFREG | 0o755, busybox)
    return pack([*folders, program, *links, *files, Member("init", stat.S_IFREG | 0o755, init)])


def read_modules(initramfs: bytes) -> dict[str, bytes]:
    """The kernel modules that an image's own initramfs holds, those that the naive guest needs, in order."""
    files = dict(_members(initramfs))
    order = files["modules/order"].decode().split()
    return {name: files[f"modules/{name}"] for name in order if name.removesuffix(".ko") in MODULES}


def _members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a newc cpio."""
    at = 0
    while True:
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        if name == "TRAILER!!!":
            return
        start = (at + 110 + name_size + 3) // 4 * 4
        yield name, archive[start : start + size]
        at = (start + size + 3) // 4 * 4
