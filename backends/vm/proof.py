"""What executes a guest's instructions: KVM if a guest was seen to boot under it, else TCG with the reason.

That ``/dev/kvm`` exists, opens and answers proves nothing: inside some virtual machines every guest then dies at once
or spins for ever. So the image's own kernel and initramfs are booted under it until their first user-space instruction.
The attempt goes on for as long as the guest gets somewhere: a busy host is no host without KVM. A success is kept by
everything it depends on, and so is a refusal of QEMU's; an attempt that was given up is made again by the next run.
"""

import os
import platform
import re
import select
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import msgspec

from tare.backends.vm.boot import KERNEL_ARGUMENTS
from tare.backends.vm.domain_xml import Accelerator, Machine
from tare.backends.vm.emulator import Emulator
from tare.bench.errors import UnavailableError
from tare.bench.interrupts import check
from tare.bench.ledger import MARKER_VARIABLE, Ledger, ResourceKind
from tare.bench.linux.files import HERE, find_field, find_text, read_boot_id
from tare.bench.linux.hypervisor import read_kvm_settings
from tare.bench.linux.processes import Status, find_status
from tare.bench.model import Availability
from tare.bench.process import DEVNULL, PIPE, PLAIN_ENVIRONMENT, Popen, run

PATIENCE_S = 8.0
"""CPU time that QEMU may use, and four times as much time, without a sign that the guest gets anywhere."""
_IDLE_TIMES = 4
_LOOK_S = 0.5
_GREW_BYTES = 1 << 20
_CONSOLE_BYTES = 1 << 17
"""Of the console, the last part is kept."""
_DEVICE = Path("/dev/kvm")
_FIRST_INSTRUCTION = re.compile(rb"tare: init \d")
_FILE = "kvm-proof.json"
REMEDY = (
    "run on a host with working hardware virtualization, or set accel = auto or tcg; `tare doctor --report FILE` "
    "writes down what was seen"
)
_TRANSIENT = ("Cannot allocate memory", "No space left", "Too many open files", "Resource temporarily unavailable")
"""What QEMU says where this host had no room for a guest just then."""
_VERBOSE = ("earlyprintk=serial", "ignore_loglevel")
_MEMORY_MIB = 256


class Acceleration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found out: the accelerator, and why it is that one."""

    accelerator: Accelerator
    reason: str


class Attempt(msgspec.Struct, frozen=True):
    """A guest's boot under KVM: why it got nowhere, or None, and all that was seen of it.

    ``refused``: QEMU ended by itself, as it would again. ``status`` is its exit status, None if it was stopped when the
    guest had begun or was given up. Times are seconds: wall clock, and CPU time of QEMU outside the kernel (of it in
    the guest) and in it.
    """

    reason: str | None
    refused: bool
    seconds: float
    argv: tuple[str, ...] = ()
    status: int | None = None
    user_s: float = 0.0
    guest_s: float = 0.0
    system_s: float = 0.0
    console: str = ""
    stderr: str = ""


class Proof(msgspec.Struct, frozen=True):
    """The last attempt, with everything that its outcome depends on."""

    key: Mapping[str, str]
    attempt: Attempt

    def holds(self, key: Mapping[str, str], *, wanted: str) -> bool:
        """Whether it need not be tried again. Who insists on KVM is refused by what happens now only."""
        if self.key != key:
            return False
        return self.attempt.reason is None or (self.attempt.refused and wanted != Accelerator.KVM)


def decide(
    wanted: str, emulator: Emulator, kernel: Path, initramfs: Path, *, cache: Path, ledger: Ledger, bound_s: float
) -> Acceleration:
    """The accelerator for a run. ``wanted`` is ``auto``, ``kvm`` or ``tcg``. Raises UnavailableError for ``kvm``.

    ``bound_s`` is how long a guest may take that gets somewhere.
    """
    if wanted == Accelerator.TCG:
        return Acceleration(Accelerator.TCG, "asked for")
    reason = find_obstacle()
    if reason is None:
        kept = read_proof(cache)
        if kept is None or not kept.holds(_key(emulator, kernel), wanted=wanted):
            kept = prove(emulator, kernel, initramfs, cache=cache, ledger=ledger, bound_s=bound_s)
        reason = kept.attempt.reason
        if reason is None:
            seconds = kept.attempt.seconds
            return Acceleration(Accelerator.KVM, f"a guest ran its first instruction under KVM after {seconds:.2f} s")
    if wanted == Accelerator.KVM:
        raise UnavailableError(
            f"accel = kvm was asked for, and no guest boots under KVM here: {reason}",
            remedy=REMEDY,
        )
    return Acceleration(Accelerator.TCG, reason)


def known_outcome(cache: Path) -> str:
    """For a look at a host before any image: what was proved since it booted, or what stands against it."""
    obstacle = find_obstacle()
    if obstacle is not None:
        return f"accel tcg ({obstacle})"
    proof = read_proof(cache)
    if proof is None or proof.key.get("boot") != read_boot_id():
        return "accel not proved yet: the first run boots a guest under KVM to see (or tare doctor --prove-kvm)"
    attempt = proof.attempt
    if attempt.reason is None:
        return f"accel kvm (a guest booted in {attempt.seconds:.2f} s)"
    if not attempt.refused:
        return f"accel not proved: {attempt.reason}; the next run tries again (or tare doctor --prove-kvm)"
    return f"accel tcg ({attempt.reason})"


def find_obstacle(device: Path = _DEVICE) -> str | None:
    """What stands against KVM before anything is booted, or None."""
    if not device.exists():
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be opened"
    return None


def prove(
    emulator: Emulator,
    kernel: Path,
    initramfs: Path,
    *,
    cache: Path,
    ledger: Ledger,
    bound_s: float,
    verbose: bool = False,
) -> Proof:
    """Boot a guest under KVM now, whatever is known, and keep the outcome. ``verbose``: its kernel says all it can."""
    key = _key(emulator, kernel)
    proof = Proof(key, boot(emulator, kernel, initramfs, ledger, bound_s, verbose=verbose))
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = cache / f".{_FILE}.{os.getpid()}"
    unfinished.write_bytes(msgspec.json.encode(proof))
    unfinished.rename(cache / _FILE)
    return proof


def forget(cache: Path) -> None:
    """Whatever was proved has to be proved again."""
    (cache / _FILE).unlink(missing_ok=True)


def read_proof(cache: Path) -> Proof | None:
    """The last proof, if there is one that can be read."""
    try:
        return msgspec.json.decode((cache / _FILE).read_bytes(), type=Proof)
    except (OSError, msgspec.DecodeError):
        return None


def judge(attempt: Attempt, *, seen: bool, given_up: str = "") -> Attempt:
    """The attempt with its outcome. ``seen``: the guest's first instruction came. ``given_up``: why it was given up."""
    if seen:
        return attempt
    if not given_up:
        lines = [line for line in attempt.stderr.splitlines() if line.strip()]
        said = re.sub(r"^\S*qemu-system-\S+: ", "", lines[0]) if lines else f"exit status {attempt.status}"
        killed = attempt.status == -9 and not lines
        refused = not killed and not any(words in attempt.stderr for words in _TRANSIENT)
        return msgspec.structs.replace(attempt, reason=f"QEMU stopped: {said.removeprefix('error: ')}", refused=refused)
    used = attempt.user_s + attempt.system_s
    waited = f"no first instruction within {attempt.seconds:.0f} s"
    if attempt.system_s > attempt.user_s and attempt.system_s > 0.5 * PATIENCE_S:
        reason = f"{waited}, while QEMU used {attempt.system_s:.1f} s of CPU time in the kernel ({given_up})"
    elif used > 0.5 * PATIENCE_S:
        reason = f"{waited}, while QEMU used {attempt.user_s:.1f} s of CPU time outside the kernel ({given_up})"
    else:
        reason = f"{waited}, with {used:.1f} s of CPU time used ({given_up})"
    return msgspec.structs.replace(attempt, reason=reason)


def boot(
    emulator: Emulator, kernel: Path, initramfs: Path, ledger: Ledger, bound_s: float, *, verbose: bool = False
) -> Attempt:
    """Boot a guest under KVM up to its first user-space instruction."""
    arguments: tuple[str, ...] = KERNEL_ARGUMENTS
    if verbose:
        arguments = (*(word for word in arguments if word != "quiet"), *_VERBOSE)
    argv = [str(emulator.program), "-machine", f"{Machine.Q35},accel=kvm", "-cpu", "host", "-m", str(_MEMORY_MIB)]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    argv += ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", " ".join(arguments)]
    marker = f"vm-proof-{os.getpid()}"
    environment = {**os.environ, **PLAIN_ENVIRONMENT, MARKER_VARIABLE: marker}
    with (
        ledger.holding(ResourceKind.PROCESS, marker),
        Popen(argv, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            seen = _Awaited(process.pid, process.stdout.fileno(), bound_s)
            given_up = seen.wait()
            used = find_status(process.pid)
            status = process.wait(timeout=PATIENCE_S) if seen.ended else None
        finally:
            process.kill()
        stderr = process.stderr.read().decode(errors="replace")
    user_s, guest_s, system_s = (0.0, 0.0, 0.0) if used is None else (used.user_s, used.guest_s, used.system_s)
    attempt = Attempt(
        reason=None,
        refused=False,
        seconds=seen.seconds,
        argv=tuple(argv),
        status=status,
        user_s=user_s,
        guest_s=guest_s,
        system_s=system_s,
        console=seen.said.decode(errors="replace"),
        stderr=stderr,
    )
    return judge(attempt, seen=seen.begun, given_up=given_up)


class _Awaited:
    """A guest's first instruction, waited for while it gets somewhere: it writes, or it executes instructions."""

    def __init__(self, pid: int, console: int, bound_s: float) -> None:
        self.said, self.written = b"", 0
        self.begun = self.ended = False
        self._pid, self._console = pid, console
        self._began = time.monotonic()
        self._bound = self._began + bound_s
        self.seconds = 0.0

    def wait(self) -> str:
        """Why it is waited for no more; empty if it came, or if QEMU ended."""
        poll = select.poll()
        poll.register(self._console, select.POLLIN)
        progress = Progress(self._began)
        given_up = ""
        while not self.begun and not self.ended and not given_up:
            check()
            if poll.poll(_LOOK_S * 1000):
                self._read()
            now = time.monotonic()
            given_up = progress.look(now, find_status(self._pid), self.written)
            if not given_up and now >= self._bound:
                given_up = "the bound on a proof, which the option proof_timeout_s raises"
        self.seconds = time.monotonic() - self._began
        return "" if self.begun or self.ended else given_up

    def _read(self) -> None:
        data = os.read(self._console, 65536)
        self.written += len(data)
        self.said = (self.said + data)[-_CONSOLE_BYTES:]
        self.ended = not data
        self.begun = _FIRST_INSTRUCTION.search(self.said) is not None


class Progress:
    """Whether a guest gets somewhere.

    It does while its console or its memory grows, and while some of the CPU time that QEMU uses is spent in the guest.
    On an emulated host, where each new page is an expensive fault, that was 4 % at the beginning of a boot and 20 % in
    all of it; a guest that spins at its first instruction spends all of it in the kernel.
    """

    def __init__(self, now: float) -> None:
        self._at, self._written, self._cpu_s, self._guest_s, self._resident = now, 0, 0.0, 0.0, 0

    def look(self, now: float, status: Status | None, written: int) -> str:
        """Why it is given up, or nothing. ``written`` is how many bytes its console has."""
        if status is None:
            return ""
        used, ran = status.cpu_s - self._cpu_s, status.guest_s - self._guest_s
        grew = written > self._written or status.resident_bytes >= self._resident + _GREW_BYTES
        if grew or (used >= _LOOK_S and ran > 0.03 * used):
            self._at, self._written, self._resident = now, written, status.resident_bytes
            self._cpu_s, self._guest_s = status.cpu_s, status.guest_s
            return ""
        if used >= PATIENCE_S:
            return f"{PATIENCE_S:g} s of CPU time without a sign of the guest"
        if now - self._at >= _IDLE_TIMES * PATIENCE_S:
            return f"{_IDLE_TIMES * PATIENCE_S:g} s without a sign of the guest"
        return ""


def _key(emulator: Emulator, kernel: Path) -> dict[str, str]:
    """Everything the outcome depends on."""
    return {
        "boot": read_boot_id(),
        "host_kernel": platform.release(),
        "guest_kernel": sha256(kernel.read_bytes()).hexdigest(),
        "qemu": emulator.version,
        "cpu": find_field(find_text(HERE.proc / "cpuinfo"), "model name") or platform.machine(),
        **read_kvm_settings(),
    }


def outcome(proof: Proof) -> Availability:
    """Whether guests boot under KVM, as the proof says."""
    attempt = proof.attempt
    if attempt.reason is not None:
        return Availability.no(f"no guest boots under KVM here: {attempt.reason}", REMEDY)
    return Availability(available=True, reason=f"a guest booted under KVM in {attempt.seconds:.2f} s")


def proof_texts(emulator: Emulator, proof: Proof) -> dict[str, str]:
    """All that was seen of a proof, for whoever has to understand it elsewhere."""
    attempt = proof.attempt
    return {
        "outcome": attempt.reason or "a guest ran its first instruction",
        "time": f"{attempt.seconds:.2f} s; CPU time of QEMU {attempt.user_s:.2f} s outside the kernel, of it "
        f"{attempt.guest_s:.2f} s in the guest, and {attempt.system_s:.2f} s in the kernel",
        "command line of QEMU": " ".join(attempt.argv),
        "exit status of QEMU": "it was stopped" if attempt.status is None else str(attempt.status),
        "standard error of QEMU": attempt.stderr,
        "console of the guest": attempt.console,
        "QEMU": run([str(emulator.program), "--version"], timeout_s=30),
    }
