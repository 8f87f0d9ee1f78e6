"""QEMU on this host, and the small program around it through which libvirt starts it."""

import os
import re
import secrets
from hashlib import sha256
from pathlib import Path

import msgspec

from tare.bench.ledger import MARKER_VARIABLE
from tare.bench.linux.files import HERE, HostRoots, find_text
from tare.bench.process import require_tool, run

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
    printed = run([str(program), "--version"], timeout_s=120)
    return Emulator(program, wrapper, parse_version(printed))


def parse_version(printed: str) -> str:
    """``7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`` of what ``qemu-system-x86_64 --version`` prints."""
    match = re.search(r"version (\S+(?: \([^)]*\))?)", printed)
    return match[1] if match else printed.strip().partition("\n")[0]


_IDENTITIES = ((2_000_000_000, 1 << 16), (61184, 4336))
"""First and number. systemd's table of ids leaves the first to nobody; the second, of its dynamic users, is mapped in
most containers too."""


def choose_identity(roots: HostRoots = HERE) -> int | None:
    """A user and group for one QEMU alone, with no entry in any table; None where no such id is mapped here."""
    text = find_text(roots.proc / "self/uid_map") or ""
    mapped = [tuple(map(int, line.split())) for line in text.splitlines()]
    for first, number in _IDENTITIES:
        if any(begin <= first and first + number <= begin + count for begin, _, count in mapped):
            return first + secrets.randbelow(number)
    return None


def confinement(identity: int | None, version: str) -> tuple[str, ...]:
    """Arguments that make QEMU give up what it does not need: calls of the kernel, and root with its capabilities.

    The latter once all it needs is open and before the guest runs. Its sandbox may not forbid that step; afterwards
    there is nothing left to elevate, and no program can be executed. Without an ``identity`` it stays root.
    """
    elevate = "deny" if identity is None else "allow"
    sandbox = ("-sandbox", f"on,obsolete=deny,elevateprivileges={elevate},spawn=deny,resourcecontrol=deny")
    if identity is None:
        return sandbox
    found = re.match(r"\d+", version)
    has_run_with = found is not None and int(found[0]) >= _RUN_WITH_SINCE
    ids = f"{identity}:{identity}"
    return (*sandbox, *(("-run-with", f"user={ids}") if has_run_with else ("-runas", ids)))


_RUN_WITH_SINCE = 9
"""The version of QEMU that has the new name of the option."""


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
