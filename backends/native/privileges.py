"""The steps that take privileges away: capabilities, new privileges, identities, clocks, system calls.

Standard library only and few imports, because the zygote imports it.
"""

import errno

from backends.native import syscalls
from backends.native.operations import Operation

DEFAULT_CAPABILITIES = (
    ("CHOWN", 0),
    ("DAC_OVERRIDE", 1),
    ("FOWNER", 3),
    ("FSETID", 4),
    ("KILL", 5),
    ("SETGID", 6),
    ("SETUID", 7),
    ("SETPCAP", 8),
    ("NET_BIND_SERVICE", 10),
    ("NET_RAW", 13),
    ("SYS_CHROOT", 18),
    ("MKNOD", 27),
    ("AUDIT_WRITE", 29),
    ("SETFCAP", 31),
)
"""What Docker grants by default."""
_NAMES = {number: name for name, number in DEFAULT_CAPABILITIES}
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

    def describe(self) -> str:
        """The step in words."""
        return f"keep only the capabilities {_name(self.keep)}"

    def execute(self) -> None:
        """Do it. Raises OSError."""
        bits = 0
        for number in self.keep:
            bits |= 1 << number
        syscalls.capset(bits)


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


def _name(capabilities: tuple[int, ...]) -> str:
    return ", ".join(_NAMES.get(number, str(number)) for number in capabilities) or "(none)"
