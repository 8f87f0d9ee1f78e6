"""The steps that take privileges away: capabilities, new privileges, identities, clocks, system calls.

Standard library only and few imports, because the zygote imports it.
"""

import errno
import os

from tare.backends.native import syscalls
from tare.backends.native.operations import Operation

CAPABILITIES = {
    name: number
    for number, name in enumerate(
        (
            *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
            *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
            *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
            *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL"),
            *("SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"),
            *("PERFMON", "BPF", "CHECKPOINT_RESTORE"),
        )
    )
}
"""Their numbers by their names without CAP_, as of Linux 5.9."""
_DOCKER_GRANTS = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"),
    *("NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"),
)
DEFAULT_CAPABILITIES = tuple((name, CAPABILITIES[name]) for name in _DOCKER_GRANTS)
"""What Docker grants by default."""
_NAMES = {number: name for name, number in CAPABILITIES.items()}
_CAPABILITIES = 64
"""More than any kernel knows: the sets are 64 bits wide."""


class BoundCapabilities(Operation):
    """Keep programs from ever getting a capability that is not listed. The process itself keeps what it has."""

    def __init__(self, keep: tuple[int, ...]) -> None:
        self.keep = keep

    def describe(self) -> str:
        """The step in words."""
        return f"bound the capabilities of programs to {_name(self.keep)}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        for number in range(_CAPABILITIES):
            if number not in self.keep:
                try:
                    syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
                except OSError as error:
                    if error.errno != errno.EINVAL:  # which says that this kernel knows no such capability
                        raise


class KeepCapabilities(Operation):
    """Give up every capability that is not listed, for good."""

    def __init__(self, keep: tuple[int, ...]) -> None:
        self.keep = keep
        bits = 0
        for number in keep:
            bits |= 1 << number
        self._sets = syscalls.CapabilitySets(bits)

    def describe(self) -> str:
        """The step in words."""
        return f"keep only the capabilities {_name(self.keep)}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        self._sets.set()


class SetProcessFlag(Operation):
    """prctl(2) with a name that says what for."""

    def __init__(self, meaning: str, option: int, argument: int) -> None:
        self.meaning = meaning
        self.option = option
        self.argument = argument

    def describe(self) -> str:
        """The step in words."""
        return self.meaning

    def execute(self) -> None:
        """Do it. Raises OSError."""
        syscalls.prctl(self.option, self.argument)


class SetFileMask(Operation):
    """umask(2): what the harness was started with is its own affair."""

    def __init__(self, mask: int) -> None:
        self.mask = mask

    def describe(self) -> str:
        """The step in words."""
        return f"set the umask to {self.mask:03o}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        os.umask(self.mask)


class DropGroups(Operation):
    """Leave the supplementary groups of whoever started the harness."""

    def describe(self) -> str:
        """The step in words."""
        return "leave all supplementary groups"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        os.setgroups([])


class NewKeyring(Operation):
    """Join a new session keyring, so that the harness's keys are not the container's."""

    def describe(self) -> str:
        """The step in words."""
        return "join a new session keyring"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        try:
            syscalls.join_session_keyring()
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise


class FilterSystemCalls(Operation):
    """Install a seccomp program, which cannot be taken off again. ``meaning`` says which part of the profile it is."""

    def __init__(self, meaning: str, program: bytes) -> None:
        self.meaning = meaning
        self.program = program
        self._filter = syscalls.SystemCallFilter(program)

    def describe(self) -> str:
        """The step in words."""
        return f"filter system calls: {self.meaning} ({len(self.program) // 8} instructions)"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        self._filter.install()


def _name(capabilities: tuple[int, ...]) -> str:
    return ", ".join(_NAMES.get(number, str(number)) for number in capabilities) or "(none)"
