"""QEMU on this host, the small program around it through which libvirt starts it, and what executes its instructions.

That is KVM if a guest was seen to boot under it, else TCG with the reason. That ``/dev/kvm`` exists, opens and answers
proves nothing: inside some virtual machines every guest then dies at once or spins for ever. So the image's own kernel
and initramfs are booted under it, until their first user-space instruction or a deadline. The outcome is kept by
everything it depends on.
"""

import os
import platform
import re
import secrets
import select
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import msgspec

from tare.backends.vm.domain_xml import MACHINE, Accelerator
from tare.bench.errors import UnavailableError
from tare.bench.ledger import MARKER_VARIABLE, Ledger, ResourceKind
from tare.bench.linux.files import HERE, find_field, find_text, read_boot_id
from tare.bench.linux.processes import find_status
from tare.bench.process import DEVNULL, PIPE, PLAIN_ENVIRONMENT, Popen, require_tool, run

PROGRAM = "qemu-system-x86_64"
JOIN_VARIABLE = "TARE_JOIN"
"""Files, one a line, into which QEMU writes 0 before it is QEMU: the cgroups it is born in."""
BORN_VARIABLE = "TARE_BORN"
"""A fifo to which it then writes its pid: the host's mark of its existence."""

# libvirt finds out what QEMU can do by running it without these variables, so that all that is left in the environment
# to recognise such a process by is the path of libvirt's own folder among its arguments.
_WRAPPER = """\
#!/bin/sh
# Made by tare. Joins cgroups, reports its pid and becomes QEMU, so that all that QEMU costs is charged to its guest.
# When the host runs out of memory, its OOM killer is to take a guest, never tare or anybody else's process.
set -e
IFS='
'
if [ -z "${marker}" ]; then
    for argument; do
        case $argument in
        */lib/qemu/qmp-*/qmp.pid) export {marker}="${{argument%/lib/qemu/qmp-*}}" ;;
        esac
    done
fi
for file in ${join}; do echo 0 >"$file"; done
echo 1000 2>/dev/null >/proc/self/oom_score_adj || :
[ -z "${born}" ] || echo $$ >"${born}"
exec {qemu} "$@"
"""


class Emulator(msgspec.Struct, frozen=True):
    """``program`` is QEMU itself, ``wrapper`` what libvirt takes for it. ``version`` is QEMU's, with Debian's."""

    program: Path
    wrapper: Path
    version: str


def find_emulator(cache: Path) -> Emulator:
    """QEMU and its wrapper below ``cache``. Raises MissingToolError, ToolFailedError.

    libvirt keeps what a QEMU can do by the path and time of its program, which is the wrapper here; so each
    QEMU (path, size, time) has a wrapper of its own, which is never written again.
    """
    program = require_tool(PROGRAM).resolve()
    status = program.stat()
    text = _WRAPPER.format(marker=MARKER_VARIABLE, join=JOIN_VARIABLE, born=BORN_VARIABLE, qemu=_quoted(program))
    identity = f"{status.st_size} {status.st_mtime_ns}\n{text}"
    folder = cache / f"qemu-{sha256(identity.encode()).hexdigest()[:12]}"
    wrapper = folder / PROGRAM
    if not wrapper.exists():
        _publish(wrapper, text)
    printed = run([str(program), "--version"], timeout_s=30)
    return Emulator(program, wrapper, parse_version(printed))


def parse_version(printed: str) -> str:
    """``7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`` of what ``qemu-system-x86_64 --version`` prints."""
    match = re.search(r"version (\S+(?: \([^)]*\))?)", printed)
    return match[1] if match else printed.strip().partition("\n")[0]


def _publish(path: Path, text: str) -> None:
    """Write a program whole, at once, and only if nobody else did meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{secrets.token_hex(4)}")
    unfinished.write_text(text)
    unfinished.chmod(0o755)
    try:
        os.link(unfinished, path)
    except FileExistsError:
        pass
    finally:
        unfinished.unlink()


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


DEADLINE_S = 5.0
_DEVICE = Path("/dev/kvm")
_FIRST_INSTRUCTION = re.compile(rb"tare: init \d")
_PROOF_FILE = "kvm-proof.json"


class Acceleration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found out: the accelerator, and why it is that one."""

    accelerator: Accelerator
    reason: str


class _Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``reason`` why KVM does not work here, or None if a guest booted, in ``seconds``."""

    key: Mapping[str, str]
    reason: str | None
    seconds: float


def decide(
    wanted: str, emulator: Emulator, kernel: Path, initramfs: Path, *, cache: Path, ledger: Ledger
) -> Acceleration:
    """The accelerator for a run. ``wanted`` is ``auto``, ``kvm`` or ``tcg``. Raises UnavailableError for ``kvm``."""
    if wanted == "tcg":
        return Acceleration(Accelerator.TCG, "asked for")
    reason = find_obstacle()
    if reason is None:
        proof = _load(cache, _key(emulator, kernel)) or _prove(emulator, kernel, initramfs, cache, ledger)
        reason = proof.reason
        if reason is None:
            return Acceleration(
                Accelerator.KVM, f"a guest ran its first instruction under KVM after {proof.seconds:.2f} s"
            )
    if wanted == "kvm":
        raise UnavailableError(
            f"accel = kvm was asked for, and no guest boots under KVM here: {reason}",
            remedy="run on a host with working hardware virtualization, or set accel = auto or tcg",
        )
    return Acceleration(Accelerator.TCG, reason)


def known_outcome(cache: Path) -> str:
    """For a look at a host before any image: what was proved since it booted, or what stands against it."""
    obstacle = find_obstacle()
    if obstacle is not None:
        return f"accel tcg ({obstacle})"
    proof = _read(cache)
    if proof is None or proof.key.get("boot") != read_boot_id():
        return "accel not proved yet: the first run boots a guest under KVM to see"
    if proof.reason is None:
        return f"accel kvm (a guest booted in {proof.seconds:.2f} s)"
    return f"accel tcg ({proof.reason})"


def find_obstacle(device: Path = _DEVICE) -> str | None:
    """What stands against KVM before anything is booted, or None."""
    if not device.exists():
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be opened"
    return None


def judge(*, seen: bool, status: int | None, stderr: str, user_s: float, system_s: float) -> str | None:
    """Why a guest did not boot, or None if it did.

    ``status`` is QEMU's exit status, None if it ran until the deadline; the times are the CPU time it used.
    """
    if seen:
        return None
    if status is not None:
        lines = [line for line in stderr.splitlines() if line.strip()]
        said = re.sub(r"^\S*qemu-system-\S+: ", "", lines[0]) if lines else f"exit status {status}"
        return f"QEMU stopped: {said.removeprefix('error: ')}"
    waited = f"no first instruction within {DEADLINE_S:g} s"
    if system_s > 0.5 * DEADLINE_S and system_s > user_s:
        return f"{waited} while QEMU burnt {system_s:.1f} s of CPU time in the kernel"
    if user_s > 0.5 * DEADLINE_S:
        return f"{waited} while QEMU burnt {user_s:.1f} s of CPU time outside the kernel"
    return f"{waited}, with {user_s + system_s:.1f} s of CPU time used"


def _prove(emulator: Emulator, kernel: Path, initramfs: Path, cache: Path, ledger: Ledger) -> _Proof:
    began = time.monotonic()
    reason = _boot(emulator, kernel, initramfs, ledger)
    proof = _Proof(_key(emulator, kernel), reason, time.monotonic() - began)
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = cache / f".{_PROOF_FILE}.{os.getpid()}"
    unfinished.write_bytes(msgspec.json.encode(proof))
    unfinished.rename(cache / _PROOF_FILE)
    return proof


def _boot(emulator: Emulator, kernel: Path, initramfs: Path, ledger: Ledger) -> str | None:
    """Boot a guest under KVM up to its first user-space instruction; why not, or None."""
    argv = [str(emulator.program), "-machine", f"{MACHINE},accel=kvm", "-cpu", "host", "-m", "256", "-nodefaults"]
    argv += ["-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    argv += ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", "console=ttyS0 quiet panic=-1"]
    marker = f"vm-proof-{os.getpid()}"
    environment = {**os.environ, **PLAIN_ENVIRONMENT, MARKER_VARIABLE: marker}
    with (
        ledger.holding(ResourceKind.PROCESS, marker),
        Popen(argv, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            seen, running = _await_first_instruction(process.stdout.fileno())
            used = find_status(process.pid) if running else None
            status = None if running or seen else process.wait(timeout=DEADLINE_S)
        finally:
            process.kill()
        stderr = process.stderr.read().decode(errors="replace")
    user_s, system_s = (used.user_s, used.system_s) if used is not None else (0.0, 0.0)
    return judge(seen=seen, status=status, stderr=stderr, user_s=user_s, system_s=system_s)


def _await_first_instruction(console: int) -> tuple[bool, bool]:
    """(whether it was seen, whether QEMU still runs) by the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    said = b""
    poll = select.poll()
    poll.register(console, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if not poll.poll(left * 1000):
            continue
        data = os.read(console, 65536)
        if not data:
            return False, False
        said += data
        if _FIRST_INSTRUCTION.search(said):
            return True, True
    return False, True


def _key(emulator: Emulator, kernel: Path) -> dict[str, str]:
    """Everything the outcome depends on."""
    return {
        "boot": read_boot_id(),
        "host_kernel": platform.release(),
        "guest_kernel": sha256(kernel.read_bytes()).hexdigest(),
        "qemu": emulator.version,
        "cpu": find_field(find_text(HERE.proc / "cpuinfo"), "model name") or platform.machine(),
    }


def _load(cache: Path, key: Mapping[str, str]) -> _Proof | None:
    proof = _read(cache)
    return proof if proof is not None and proof.key == key else None


def _read(cache: Path) -> _Proof | None:
    """The last proof, if there is one that can be read."""
    try:
        return msgspec.json.decode((cache / _PROOF_FILE).read_bytes(), type=_Proof)
    except (OSError, msgspec.DecodeError):
        return None
