"""The guest's init under a plain QEMU: what the kernel's command line may ask of it."""

import contextlib
import json
import select
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tare.backends.vm.domain_xml import AGENT_PORT, COMMAND_PORT, IMAGE_SERIAL, SCRATCH_SERIAL
from tare.backends.vm.watch import Mark, parse_line
from tare.bench.process import find_tool, require_tool

pytestmark = [pytest.mark.root, pytest.mark.tools, pytest.mark.image, pytest.mark.guest]

DEADLINE_S = 90.0
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")


@contextlib.contextmanager
def start_qemu(image, folder, parameters, *devices):
    """A guest with its image on virtio-scsi, behind another disk."""
    if find_tool("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    decoy = folder / "decoy"
    decoy.write_bytes(bytes(1 << 20))
    append = " ".join(["console=ttyS0 quiet panic=-1 cryptomgr.notests", *parameters])
    argv = [str(require_tool("qemu-system-x86_64")), "-machine", "q35,accel=tcg,memory-backend=ram", "-cpu", "max"]
    argv += ["-object", "memory-backend-memfd,id=ram,size=256M,share=on", "-m", "256M", "-no-reboot"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", append]
    argv += ["-device", "virtio-serial", "-device", "virtio-scsi-pci"]
    for name, port in (("agent", AGENT_PORT), ("command", COMMAND_PORT)):
        argv += ["-chardev", f"socket,id={name},path={folder}/{name},server=on,wait=off"]
        argv += ["-device", f"virtserialport,chardev={name},name={port}"]
    for file, serial in ((decoy, "tare-decoy"), (image.disk, IMAGE_SERIAL)):
        argv += ["-drive", f"if=none,id={serial},file={file},format=raw,readonly=on"]
        argv += ["-device", f"scsi-hd,drive={serial},serial={serial}"]
    with subprocess.Popen([*argv, *devices], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as qemu:
        try:
            yield qemu
        finally:
            qemu.kill()


def await_outcome(qemu):
    """The mark ``ready``, or the reason why it never comes."""
    said, deadline = b"", time.monotonic() + DEADLINE_S
    while select.select([qemu.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data = qemu.stdout.read1()
        assert data, said.decode(errors="replace")
        *lines, said = (said + data).split(b"\n")
        for line in lines:
            found = parse_line(line.decode(errors="replace").rstrip("\r"), time.monotonic())
            if isinstance(found, str) or (isinstance(found, Mark) and found.name == "ready"):
                return found
    raise AssertionError(f"nothing within {DEADLINE_S:g} s")


def ask(agent, execute, **arguments):
    """What the guest agent answers."""
    agent.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        answer += agent.recv(65536)
    return json.loads(answer)["return"]


@pytest.fixture
def shared(tmp_path):
    """QEMU's arguments for a folder shared with the guest, and the folder."""
    if not VIRTIOFSD.exists():
        pytest.skip(f"{VIRTIOFSD} (qemu-system-common) is not installed")
    folder, path = tmp_path / "shared", tmp_path / "virtiofs"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        argv = [str(VIRTIOFSD), f"--fd={listener.fileno()}", "-o", f"source={folder},sandbox=chroot"]
        daemon = subprocess.Popen(argv, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)
    with daemon:
        try:
            device = f"vhost-user-fs-pci,chardev=share,tag={SCRATCH_SERIAL}"
            yield ["-chardev", f"socket,id=share,path={path}", "-device", device]
        finally:
            daemon.kill()


def test_further_modules_an_address_disks_by_serial_and_a_shared_scratch(image, tmp_path, shared):
    network = ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]
    asked = ["tare.modules=virtio_scsi,sd_mod", "tare.net=10.9.8.7/21", "tare.gateway=10.9.8.1"]
    with (
        start_qemu(image, tmp_path, [*asked, "tare.scratch=virtiofs"], *network, *shared) as qemu,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent,
    ):
        outcome = await_outcome(qemu)
        assert isinstance(outcome, Mark), outcome
        agent.settimeout(DEADLINE_S)
        agent.connect(str(tmp_path / "agent"))
        interfaces = {one["name"]: one for one in ask(agent, "guest-network-get-interfaces")}
        ask(agent, "guest-file-open", path="/scratch/of-the-guest", mode="w")
    addresses = {
        name: [(one["ip-address"], one["prefix"]) for one in interface.get("ip-addresses", ())]
        for name, interface in interfaces.items()
    }
    assert ("127.0.0.1", 8) in addresses["lo"]
    assert ("10.9.8.7", 21) in addresses["eth0"]
    assert (tmp_path / "shared/of-the-guest").exists()


def test_what_cannot_be_done_is_one_line(image, tmp_path):
    with start_qemu(image, tmp_path, ["tare.modules=virtio_scsi,zfs"]) as qemu:
        outcome = await_outcome(qemu)
        assert isinstance(outcome, str)
        assert "loading the kernel module zfs: the initramfs has only virtio_net virtio_scsi" in outcome
        assert qemu.wait(DEADLINE_S) == 0
