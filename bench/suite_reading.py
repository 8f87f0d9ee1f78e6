"""Reads TOML and turns it into a checked value; whatever is wrong, one message names the file and the key."""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tare.bench.errors import SuiteError

_T = TypeVar("_T")


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises SuiteError."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SuiteError(str(path), "there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(str(path), f"cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(str(path), f"is not TOML: {error}") from None


def convert(value: Any, kind: type[_T], path: Path, key: str) -> _T:
    """``value``, which stands at ``key`` in ``path``, as a ``kind``. Raises SuiteError with the key at fault."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        where = where.rstrip("`").lstrip(".")
        place = ".".join(part for part in (key, where) if part) or "top level"
        remedy = None
        if "unknown field" in problem:
            remedy = f"known keys there: {', '.join(_keys_at(kind, where)) or 'none'}"
        raise SuiteError(f"{path}: {place}", problem, remedy=remedy) from None


def _keys_at(kind: Any, where: str) -> list[str]:
    """The keys that the struct at ``where`` (``metric[0].take``, ``metric[...]``) within ``kind`` may have."""
    from msgspec.inspect import CollectionType, DictType, StructType, VarTupleType, type_info

    found = type_info(kind)
    for part in where.split("."):
        if isinstance(found, StructType) and (name := part.partition("[")[0]):
            found = next(field.type for field in found.fields if field.encode_name == name)
        while isinstance(found, (CollectionType, VarTupleType, DictType)):
            found = found.value_type if isinstance(found, DictType) else found.item_type
    return [field.encode_name for field in found.fields] if isinstance(found, StructType) else []
