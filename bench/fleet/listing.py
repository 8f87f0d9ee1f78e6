"""What of a run directory is collected: its files with their digests, on the host and on the user's side alike.

What ``tare report`` writes (reports, the table of samples) is left out: it can be written again from the rest.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

from tare.bench.errors import RunDirectoryError
from tare.bench.store import EVENTS, HISTOGRAMS, MANIFEST, RAW, SAMPLES

PIECE_BYTES = 4 * 2**20
_RECORDS = (MANIFEST, SAMPLES, EVENTS, HISTOGRAMS)
_LONGEST = 4096


class ListedFile(msgspec.Struct, frozen=True):
    """One file of a run: its name below the run directory, its size in bytes, the SHA-256 of its content."""

    name: str
    size: int
    sha256: str


def list_run(run: Path) -> tuple[ListedFile, ...]:
    """The files of a run directory by name, links left out. Raises OSError."""
    names = [name for name in _RECORDS if _is_plain(run / name)]
    for folder, folders, files in os.walk(run / RAW):
        folders.sort()
        below = Path(folder)
        names += [str((below / file).relative_to(run)) for file in files if _is_plain(below / file)]
    return tuple(_listed(run, name) for name in sorted(names))


def digest_of(files: Iterable[ListedFile]) -> str:
    """The SHA-256 of a listing: of one line a file, in the order of names."""
    lines = sorted(f"{one.name}\0{one.size}\0{one.sha256}\n" for one in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def require_below(name: str) -> PurePosixPath:
    """``name`` as a relative path that stays below its folder. Raises RunDirectoryError for any other."""
    path = PurePosixPath(name)
    plain = name.isprintable() and len(name) <= _LONGEST and str(path) == name
    if not plain or path.is_absolute() or ".." in path.parts or name in {"", "."}:
        raise RunDirectoryError(f"{name!r} is not the name of a file of a run")
    if not (name in _RECORDS or (path.parts[0] == RAW and len(path.parts) > 1)):
        raise RunDirectoryError(f"{name!r} is no file that a run consists of")
    return path


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _listed(run: Path, name: str) -> ListedFile:
    digest, size = hashlib.sha256(), 0
    with (run / name).open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return ListedFile(name, size, digest.hexdigest())
