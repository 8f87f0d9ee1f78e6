"""What can go wrong while an image is built, told in one message with what to do about it."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tare.bench.errors import ExitCode, ImageError
from tare.bench.locations import CACHE_VARIABLE

_FULL_REMEDY = f"free some space, or set {CACHE_VARIABLE} to a folder on a larger disk; then run the same command again"


class ImageBuildError(ImageError):
    """The machine, the network or the archive refused something in the middle of a build."""

    exit_code = ExitCode.ENVIRONMENT


_NOISE = re.compile(r"received signal|mmdebstrap failed to run|^Reading package lists")
"""Lines that say nothing beyond that mmdebstrap has failed."""


def explain_build_failure(output: str, suite: str) -> ImageError:
    """The error for a failed mmdebstrap, from what it and apt printed (their English messages)."""
    told = [line for line in output.splitlines() if line.strip() and not _NOISE.search(line)]
    tail = "\n".join(f"    {line}" for line in told[-8:]) or "    (no output)"
    if "No space left on device" in output:
        return ImageBuildError(f"the disk became full while the image was built:\n{tail}", remedy=_FULL_REMEDY)
    unknown = sorted(set(re.findall(r"Unable to locate package (\S+)", output)))
    unknown += sorted(set(re.findall(r"Package '?([^\s']+)'? has no installation candidate", output)))
    if unknown:
        return ImageError(
            f"Debian {suite} has no package {', '.join(unknown)}",
            remedy="correct the packages of the suite, or of the workload that asks for them",
        )
    if re.search(
        r"Temporary failure resolving|Could not resolve|Could not connect|Network is unreachable|Connection refused"
        r"|Connection timed out|Unable to connect|Failed to fetch|does not have a Release file",
        output,
    ):
        return ImageBuildError(
            f"the Debian archive cannot be reached, or does not have what was asked for:\n{tail}",
            remedy="see that `apt-get update` works on this host; the image is built from the same sources",
        )
    if "NO_PUBKEY" in output or "is not signed" in output:
        return ImageBuildError(
            f"the Debian archive's signature cannot be checked:\n{tail}",
            remedy="apt-get install debian-archive-keyring",
        )
    return ImageBuildError(f"mmdebstrap could not build the root file system:\n{tail}")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn an OSError of the block, a full disk above all, into an ImageBuildError that says what was being done."""
    try:
        yield
    except OSError as error:
        remedy = _FULL_REMEDY if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        place = f" ({error.filename})" if error.filename else ""
        raise ImageBuildError(f"{doing}: {error.strerror or error}{place}", remedy=remedy) from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise ImageBuildError if a build would run into a full disk."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        needed, free = f"{needed_bytes / 1e9:.1f} GB", f"{free_bytes / 1e9:.1f} GB"
        raise ImageBuildError(f"an image takes {needed} while it is made, and {folder} has {free}", remedy=_FULL_REMEDY)
