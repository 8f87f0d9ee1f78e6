"""Files of JSON lines: read in pieces, so that a file of any size takes little memory, and past what is damaged."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from tare.bench.errors import RunDirectoryError

_CHUNK_BYTES = 8 * 2**20

_Record = TypeVar("_Record", bound=msgspec.Struct)


def read_lines(path: Path, kind: type[_Record], take: Callable[[Sequence[_Record]], None], warnings: list[str]) -> None:
    """Read the records of a file piece by piece and hand them to ``take``, which may refuse some by ``DecodeError``.

    A last line without its end, and lines that cannot be read or are refused, are left out with a warning. Raises
    RunDirectoryError if the file cannot be read.
    """
    decoder = msgspec.json.Decoder(kind)
    rest, number = b"", 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                if newline:
                    _take_whole(path.name, whole, number, decoder, take, warnings)
                    number += whole.count(b"\n") + 1
    except FileNotFoundError:
        warnings.append(f"{path.name} is missing")
    except OSError as error:
        raise RunDirectoryError(f"{path}: {error.strerror}") from None
    if rest:
        warnings.append(f"{path.name}: the last line was only half written ({len(rest)} bytes) and is left out")


def _take_whole(
    name: str,
    content: bytes,
    before: int,
    decoder: msgspec.json.Decoder[_Record],
    take: Callable[[Sequence[_Record]], None],
    warnings: list[str],
) -> None:
    try:
        take(decoder.decode_lines(content))
    except msgspec.DecodeError:
        for number, line in enumerate(content.split(b"\n"), start=before + 1):
            try:
                take([decoder.decode(line)])
            except msgspec.DecodeError as error:
                warnings.append(f"{name} line {number} cannot be read and is left out: {error}")
