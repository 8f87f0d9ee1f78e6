"""Reading and writing the kernel's files. Nothing here knows what is in them."""

import os
import re
from pathlib import Path

import msgspec


class HostRoots(msgspec.Struct, frozen=True):
    """Where the kernel's file systems are read; tests inject other trees."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    etc: Path = Path("/etc")


HERE = HostRoots()


def read_bytes(path: Path | str) -> bytes:
    """The content of a file whose size the kernel does not say. Raises OSError."""
    # Path.read_bytes costs three times as much, and much is read next to what is measured.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def read_text(path: Path | str) -> str:
    """The same as text; what is not UTF-8 becomes a replacement character. Raises OSError."""
    return read_bytes(path).decode(errors="replace")


def find_text(path: Path) -> str | None:
    """The text of a file without white space around it; None if it is not there or may not be read."""
    try:
        return read_text(path).strip()
    except OSError:
        return None


def find_field(text: str | None, name: str) -> str | None:
    """The value of the first line ``name: value`` (``cpuinfo``); None if there is none."""
    found = re.search(rf"^{re.escape(name)}\s*:[ \t]*(.*)$", text or "", re.MULTILINE)
    return None if found is None else found[1].strip()


def write_text(path: Path, text: str) -> None:
    """Write a control file in one write. Raises OSError with its path."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise


def read_boot_id(roots: HostRoots = HERE) -> str:
    """The identity of the running kernel since it booted. Raises OSError."""
    return read_text(roots.proc / "sys/kernel/random/boot_id").strip()
