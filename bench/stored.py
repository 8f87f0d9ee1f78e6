"""Reads what a run stored, past what is damaged, unknown or older.

Files of JSON lines are read in pieces, so that a file of any size takes little memory. Manifests of older versions are
brought into the present shape.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

from tare.bench.catalogue import TRAITS
from tare.bench.errors import RunDirectoryError
from tare.bench.model import IsolationKind
from tare.bench.records import SCHEMA_VERSION
from tare.bench.traits import Category
from tare.bench.units import Unit, parse_size

_CHUNK_BYTES = 8 * 2**20

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])

_NO_RECORD = (msgspec.DecodeError, RecursionError)
"""What decoding a line raises: the second for one that is nested without end."""

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
        except _NO_RECORD:
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
        except _NO_RECORD:
            return False
        self.unknown |= set().union(*rows).difference(known)
        return True

    def _take_each(self, content: bytes) -> None:
        for number, line in enumerate(content.split(b"\n"), start=self._number + 1):
            try:
                self._take([self._read(line)])
            except _NO_RECORD as error:
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


def upgraded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The decoded JSON of a manifest of any known schema in the shape of ``SCHEMA_VERSION``."""
    manifest = dict(raw)
    for version in range(manifest["schema_version"], SCHEMA_VERSION):
        _STEPS[version](manifest)
    return manifest | {"schema_version": SCHEMA_VERSION}


def _from_1(manifest: dict[str, Any]) -> None:
    """To schema 2.

    A backend says its kind, which was in its facts, its namespaces or its type in the suite. The traits of the
    experiments and workloads, which were all built in, are in the manifest. A fact has a text, and a quantity a number
    and a unit; the host's had a ``value``, a backend's were texts by name.
    """
    types = {one.get("name") or one.get("type"): one.get("type") for one in manifest["suite"].get("backend", ())}
    manifest["experiments"] = msgspec.to_builtins(TRAITS)
    manifest["workloads"] = _WORKLOADS | manifest.get("workloads", {})
    manifest["host"] = [_numbered(fact) for fact in manifest["host"]]
    manifest["backends"] = {
        name: _kind_of(described.get("facts", {}), types.get(name, name))
        | described
        | {"facts": {fact: {"name": fact, "text": text} for fact, text in described.get("facts", {}).items()}}
        for name, described in manifest["backends"].items()
    }


_FIXED_TIME = ("fio", "stress-ng", "sysbench-cpu", "sysbench-memory")
_CATEGORIES = {
    "sysbench-cpu": Category.CPU,
    "stress-ng": Category.CPU,
    "sysbench-memory": Category.MEMORY,
    "perf-sched-pipe": Category.KERNEL,
    "perf-syscall": Category.KERNEL,
    "fio": Category.STORAGE,
}
_WORKLOADS = {name: {"category": one, "fixed_time": name in _FIXED_TIME} for name, one in _CATEGORIES.items()}
"""The traits of the workloads that there were before manifests had them."""


def _kind_of(facts: Mapping[str, str], backend_type: str) -> dict[str, str]:
    if accelerator := facts.get("accel"):
        kind = IsolationKind.VIRTUAL_MACHINE if accelerator == "kvm" else IsolationKind.EMULATED
        return {"kind": kind, "accelerator": accelerator}
    if "pid" in facts.get("namespaces", "").replace(" ", "").split(","):
        return {"kind": IsolationKind.CONTAINER}
    known = {"bare-metal": IsolationKind.BARE_METAL, "native": IsolationKind.CONTAINER}
    return {"kind": known.get(backend_type, IsolationKind.SANDBOX)}


def _numbered(fact: Mapping[str, str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        match fact["name"]:
            case "cpus":
                parsed = {"number": float(fact["value"]), "unit": Unit.COUNT}
            case "memory":
                parsed = {"number": parse_size(fact["value"]), "unit": Unit.BYTE}
    text = fact["value"].replace("hypervisor flag set, vendor not told", "vendor unknown")
    return {"name": fact["name"], "text": text, "source": fact["source"], **parsed}


_STEPS: Mapping[int, Callable[[dict[str, Any]], None]] = {1: _from_1}
"""By the schema that a step starts from; each changes the manifest in place to the next."""
