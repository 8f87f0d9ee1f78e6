"""How long the vm backend takes until a guest can execute, beside the same guest started by hand, and a naive one.

The three take turns in one process, in random order. Ours is the timeline's requested to ready. By hand is
`qemu-system-x86_64` with the same kernel, initramfs, disks, devices and CPUs, from its start until its guest agent has
answered and its init has finished; its scratch disk is copied before the clock starts. The naive guest is that of
naive_guest.py, until it answers.

    python benchmarks/vm_start.py [--image NAME] [--rounds N] [--busybox PATH] [--without-naive] [--json]

Needs root, QEMU, libvirt, a static busybox and an image (`tare image build`). Leaves nothing behind; what a killed run
left is removed at the next. With --json, `ratios` maps `qemu-by-hand` and `naive` to our median over theirs;
`libvirt_s` is by how much our guest's first instruction comes later than by hand, which is what libvirt costs, with
the cgroup, folders and scratch disk that we make; `teardown_s` is our median from asked to process gone, `release_s`
from there until libvirt knew and nothing was left, `resident_bytes` what our QEMU holds when the guest is ready, with a
guest of 256 MiB.
"""

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from naive_guest import NaiveGuest

from tare.backends.vm.backend import VirtualMachine
from tare.backends.vm.boot import KERNEL_ARGUMENTS
from tare.backends.vm.disks import DiskMode, choose_scratch_mode, copy_sparse, make_scratch_template
from tare.backends.vm.domain_xml import AGENT_PORT, COMMAND_PORT, IMAGE_SERIAL, SCRATCH_SERIAL, TB_CACHE_MIB
from tare.backends.vm.emulator import PROGRAM
from tare.backends.vm.instance import VmInstance
from tare.backends.vm.options import VmOptions
from tare.bench.errors import ExitCode, TareError
from tare.bench.image import ImageStore
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import MARKER_VARIABLE, Ledger, ResourceKind, clean
from tare.bench.linux.memory import parse_fields
from tare.bench.locations import cache_directory
from tare.bench.model import Envelope, Image, InstanceSpec, Phase
from tare.bench.process import DEVNULL, Popen, require_tool

BASE = Path("/var/tmp/tare-vm-start")
MEMORY_BYTES = 256 * 2**20
SCRATCH_BYTES = 256 * 2**20
PIDS_MAX = 512
DEADLINE_S = 240.0
"""Where KVM itself is emulated, a guest takes half a minute on a quiet machine."""


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="", help="name or digest of the image (default: the newest)")
    parser.add_argument("--rounds", type=int, default=20, help="starts of each kind (default 20)")
    parser.add_argument("--busybox", type=Path, help="a static busybox (default: the one in PATH)")
    parser.add_argument("--without-naive", action="store_true", help="leave the naive guest out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        busybox = None if arguments.without_naive else arguments.busybox or require_tool("busybox")
        result = measure(arguments.image, max(2, arguments.rounds), busybox)
    except TareError as error:
        print(f"vm_start: {error}", file=sys.stderr)
        return int(error.exit_code)
    if arguments.json:
        print(json.dumps(result))
        return ExitCode.OK
    for name, median in result["medians_s"].items():
        print(f"{name:13} {median:7.3f} s")
    for name, ratio in result["ratios"].items():
        print(f"vm / {name}: {ratio:.3f}")
    print(f"{result['accel']}: {result['accel_reason']}")
    print(f"libvirt {result['libvirt_s'] * 1e3:.0f} ms, teardown {result['teardown_s'] * 1e3:.0f} ms", end=", ")
    print(f"release {result['release_s'] * 1e3:.0f} ms, resident {result['resident_bytes'] / 2**20:.0f} MiB")
    return ExitCode.OK


def measure(reference: str, rounds: int, busybox: Path | None) -> dict[str, Any]:
    """Alternate the three, or without ``busybox`` the first two, and compare. Raises TareError."""
    clean(BASE / "ledger")
    folder = BASE / str(os.getpid())
    envelope = Envelope((max(os.sched_getaffinity(0)),), MEMORY_BYTES, SCRATCH_BYTES, PIDS_MAX)
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(BASE / "ledger"))
        stack.enter_context(ledger.holding(ResourceKind.DIRECTORY, folder))
        stack.enter_context(start_folder(folder))
        image = find_image(reference, ledger)
        backend = VirtualMachine(BackendContext(ledger, folder, cache_directory(), VmOptions(), ()))
        stack.callback(backend.close)
        described = backend.prepare(image, envelope)
        by_hand = ByHand(ledger, folder, image, envelope, described.accelerator)
        times: dict[str, list[float]] = {"vm": [], "qemu-by-hand": []}
        if busybox is not None:
            size = envelope.memory_bytes
            naive = NaiveGuest(ledger, folder, image, cpus=envelope.cpus, memory_bytes=size, busybox=busybox)
            times["naive"] = []
        ours: list[Ours] = []
        first_by_hand: list[float] = []
        for number in range(rounds):
            kinds = list(times)
            random.shuffle(kinds)
            for kind in kinds:
                if kind == "vm":
                    ours.append(start_ours(backend, InstanceSpec(f"start-{os.getpid()}-{number}", image, envelope)))
                    took = ours[-1].ready_s
                elif kind == "qemu-by-hand":
                    first, took = by_hand.start()
                    first_by_hand.append(first)
                else:
                    took = naive.start(described.accelerator)
                times[kind].append(took)
    with contextlib.suppress(OSError):  # somebody else's benchmark may be using them
        (BASE / "ledger").rmdir()
        BASE.rmdir()
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first warms caches
    return {
        "ratios": {name: medians["vm"] / medians[name] for name in times if name != "vm"},
        "libvirt_s": statistics.median(one.init_s for one in ours[1:]) - statistics.median(first_by_hand[1:]),
        "teardown_s": statistics.median(one.gone_s for one in ours),
        "release_s": statistics.median(one.release_s for one in ours),
        "resident_bytes": round(statistics.median(one.resident_bytes for one in ours)),
        "accel": described.accelerator,
        "accel_reason": described.texts["accel_reason"],
        "medians_s": medians,
        "times_s": times,
    }


class Ours(NamedTuple):
    """One start by the backend, in seconds, and what its QEMU held.

    To its init and to ready; from asked to stop until its process was gone, and from there until all was released.
    """

    init_s: float
    ready_s: float
    gone_s: float
    release_s: float
    resident_bytes: int


def start_ours(backend: VirtualMachine, spec: InstanceSpec) -> Ours:
    """Start and stop one guest."""
    with backend.start(spec) as instance:
        assert isinstance(instance, VmInstance)
        held = parse_fields(Path(f"/proc/{instance.pid}/smaps_rollup").read_text())["Rss"]
    marks = instance.timeline.marks
    return Ours(
        marks[Phase.FIRST_INSTRUCTION] - marks[Phase.REQUESTED],
        marks[Phase.READY] - marks[Phase.REQUESTED],
        marks[Phase.PROCESS_GONE] - marks[Phase.STOP_REQUESTED],
        marks[Phase.STOPPED] - marks[Phase.PROCESS_GONE],
        held,
    )


class ByHand:
    """The same guest with a QEMU command line."""

    def __init__(self, ledger: Ledger, folder: Path, image: Image, envelope: Envelope, accel: str) -> None:
        self._ledger = ledger
        self._folder = folder / "by-hand"
        self._folder.mkdir()
        self._image = image
        self._cpus = envelope.cpus
        self._accel = accel
        self._mode = choose_scratch_mode(self._folder)
        self._template = self._folder / "template.raw"
        make_scratch_template(ledger, self._template, envelope.scratch_bytes)

    def start(self) -> tuple[float, float]:
        """Seconds from QEMU's start until init began, and until it had finished and the agent has answered.

        Raises TareError.
        """
        scratch = self._folder / "scratch.raw"
        scratch.unlink(missing_ok=True)
        copy_sparse(self._template, scratch)
        marker = f"vm-start-{os.getpid()}"
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._ledger.holding(ResourceKind.PROCESS, marker))
            listeners = {
                name: stack.enter_context(listen(self._folder / name)) for name in ("console", "agent", "command")
            }
            argv = [
                "taskset",
                "-c",
                ",".join(map(str, self._cpus)),
                str(require_tool(PROGRAM)),
                *self._options(scratch),
            ]
            began = time.monotonic()
            environment = {**os.environ, MARKER_VARIABLE: marker}
            process = stack.enter_context(Popen(argv, env=environment, stdin=DEVNULL, stdout=DEVNULL))
            stack.callback(process.kill)
            first, ready = await_ready(stack, listeners, began + DEADLINE_S)
            return first - began, ready - began

    def _options(self, scratch: Path) -> list[str]:
        cpu = "host,migratable=off" if self._accel == "kvm" else "max"
        accel = "kvm" if self._accel == "kvm" else f"tcg,tb-size={TB_CACHE_MIB}"
        arguments = [*KERNEL_ARGUMENTS, f"tare.pids={PIDS_MAX}", "tare.scratch=disk"]
        options = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-cpu", cpu]
        options += ["-accel", accel, "-m", f"{MEMORY_BYTES // 2**20}", "-smp", str(len(self._cpus))]
        options += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        options += ["-kernel", str(self._image.kernel), "-initrd", str(self._image.initramfs)]
        options += ["-append", " ".join(arguments)]
        for name in ("console", "agent", "command"):
            options += ["-chardev", f"socket,id={name},path={self._folder / name}"]
        options += ["-serial", "chardev:console", "-device", "virtio-serial-pci"]
        options += ["-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"]
        options += ["-device", f"virtserialport,chardev=command,name={COMMAND_PORT}"]
        options += ["-drive", f"if=none,id=image,format=raw,readonly=on,file={self._image.disk}"]
        options += ["-device", f"virtio-blk-pci,drive=image,serial={IMAGE_SERIAL}"]
        options += [
            "-object",
            "iothread,id=io",
            "-drive",
            f"if=none,id=scratch,format=raw,file={scratch},{cached(self._mode)}",
        ]
        return [*options, "-device", f"virtio-blk-pci,drive=scratch,serial={SCRATCH_SERIAL},iothread=io"]


def cached(mode: DiskMode) -> str:
    """A disk mode as QEMU writes it."""
    return f"cache={mode.cache},aio={mode.io},werror=report,rerror=report"


def await_ready(
    stack: contextlib.ExitStack, listeners: dict[str, socket.socket], deadline: float
) -> tuple[float, float]:
    """When (monotonic) init began, and when the agent had answered and init had finished. Raises TareError."""
    first = None
    console, agent, _ = [accept(stack, listener, deadline) for listener in listeners.values()]
    agent.sendall(b'{"execute":"guest-ping"}\n')
    said = {console: b"", agent: b""}
    while b"tare: ready" not in said[console] or b'"return"' not in said[agent]:
        readable = select.select(list(said), [], [], max(0.0, deadline - time.monotonic()))[0]
        chunks = {connection: connection.recv(65536) for connection in readable}
        if not chunks or b"" in chunks.values() or b"tare: failed" in said[console]:
            raise TareError(f"the guest by hand did not start: {said[console].decode(errors='replace')[-2000:]}")
        for connection, chunk in chunks.items():
            said[connection] += chunk
        if first is None and b"tare: init" in said[console]:
            first = time.monotonic()
    assert first is not None
    return first, time.monotonic()


def accept(stack: contextlib.ExitStack, listener: socket.socket, deadline: float) -> socket.socket:
    """The connection that QEMU makes. Raises TareError if it makes none."""
    listener.settimeout(max(0.1, deadline - time.monotonic()))
    try:
        return stack.enter_context(listener.accept()[0])
    except TimeoutError:
        raise TareError("QEMU by hand did not start") from None


@contextlib.contextmanager
def listen(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket that is removed at the end."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        try:
            yield listener
        finally:
            path.unlink()


@contextlib.contextmanager
def start_folder(folder: Path) -> Iterator[None]:
    """A folder that is removed at the end."""
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder)


def find_image(reference: str, ledger: Ledger) -> Image:
    """The image asked for, or the newest that has a kernel. Raises TareError."""
    store = ImageStore(cache_directory(), ledger)
    if reference:
        return store.get(reference)
    for listed in store.list():
        if not listed.problem and (image := store.get(listed.digest)).kernel is not None:
            return image
    raise TareError("there is no image with a kernel", remedy="tare image build")


if __name__ == "__main__":
    sys.exit(main())
