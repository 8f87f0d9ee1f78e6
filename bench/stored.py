"""Reads what a run stored, past what is damaged or unknown.

Files of JSON lines are read in pieces, so that a file of any size takes little memory.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

from tare.bench.errors import RunDirectoryError

_CHUNK_BYTES = 8 * 2**20

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])

_Record = TypeVar("_Record", bound=msgspec.Struct)


def read_lines(path: Path, kind: type[_Record], take: Callable[[Sequence[_Record]], None], warnings: list[str]) -> None:
    """Read the records of a file piece by piece and hand them to ``take``, which may refuse some by ``DecodeError``.

    A last line without its end, and lines that cannot be read or are refused, are left out with a warning, and so are
    fields that ``kind`` does not have. Raises RunDirectoryError if the file cannot be read.
    """
    lines = _Lines(path.name, kind, take, warnings)
    rest = b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                if newline:
                    lines.take_whole(whole)
    except FileNotFoundError:
        warnings.append(f"{path.name} is missing")
    except OSError as error:
        raise RunDirectoryError(f"{path}: {error.strerror}") from None
    if lines.unknown:
        warnings.append(unknown_fields_warning(path.name, lines.unknown))
    if rest:
        warnings.append(f"{path.name}: the last line was only half written ({len(rest)} bytes) and is left out")


class _Lines(Generic[_Record]):
    """Hands on the records of whole lines; ``unknown`` are the fields that were left out."""

    def __init__(
        self, name: str, kind: type[_Record], take: Callable[[Sequence[_Record]], None], warnings: list[str]
    ) -> None:
        self.unknown: set[str] = set()
        self._name = name
        self._kind = kind
        self._take = take
        self._warnings = warnings
        self._decoder = msgspec.json.Decoder(kind)
        self._number = 0

    def take_whole(self, content: bytes) -> None:
        try:
            self._take(self._decoder.decode_lines(content))
        except msgspec.DecodeError:
            if not self._took_without_unknown(content):
                self._take_each(content)
        self._number += content.count(b"\n") + 1

    def _took_without_unknown(self, content: bytes) -> bool:
        """Take all lines if unknown fields, which every line of a newer version has, are all that is wrong."""
        known = self._kind.__struct_encode_fields__
        try:
            rows = _FIELDS.decode_lines(content)
            lines = ({name: row[name] for name in known if name in row} for row in rows)
            self._take(self._decoder.decode_lines(b"\n".join(map(msgspec.json.encode, lines))))
        except msgspec.DecodeError:
            return False
        self.unknown |= set().union(*rows).difference(known)
        return True

    def _take_each(self, content: bytes) -> None:
        for number, line in enumerate(content.split(b"\n"), start=self._number + 1):
            try:
                self._take([self._read(line)])
            except msgspec.DecodeError as error:
                self._warnings.append(f"{self._name} line {number} cannot be read and is left out: {error}")

    def _read(self, line: bytes) -> _Record:
        try:
            return self._decoder.decode(line)
        except msgspec.ValidationError:
            known = without_unknown(msgspec.json.decode(line), self._kind, self.unknown)
            return self._decoder.decode(msgspec.json.encode(known))


def without_unknown(value: Any, kind: Any, unknown: set[str]) -> Any:
    """Decoded JSON without the fields that ``kind`` (a type) does not have; their names are added to ``unknown``."""
    return _pruned(value, inspect.type_info(kind), "", unknown)


def unknown_fields_warning(name: str, unknown: AbstractSet[str]) -> str:
    """What a run says once of a file with fields that this version does not know."""
    return f"{name} has fields that this version of tare does not know; they are ignored: {', '.join(sorted(unknown))}"


def _pruned(value: Any, kind: inspect.Type, place: str, unknown: set[str]) -> Any:
    match kind, value:
        case inspect.StructType(fields=fields), dict():
            known = {field.encode_name: field.type for field in fields}
            unknown |= {place + name for name in value if name not in known}
            return {
                name: _pruned(one, known[name], f"{place}{name}.", unknown)
                for name, one in value.items()
                if name in known
            }
        case inspect.DictType(value_type=value_type), dict():
            return {name: _pruned(one, value_type, place, unknown) for name, one in value.items()}
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item), list():
            return [_pruned(one, item, place, unknown) for one in value]
        case inspect.UnionType(types=types), dict():
            structs = [one for one in types if isinstance(one, inspect.StructType)]
            return _pruned(value, structs[0], place, unknown) if structs else value
    return value
