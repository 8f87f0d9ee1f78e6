"""The samples of a run, column by column: a million of them in some 60 MB, where as many ``Sample`` take a gigabyte.

Texts repeat from sample to sample, so a column of them is numbers into the few that differ. Whoever wants samples one
by one gets them: the table is a sequence of ``Sample``, each made when it is asked for.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Self, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from tare.bench.model import Struct
from tare.bench.records import Sample
from tare.bench.stored import read_lines
from tare.bench.units import Unit

TEXTS = ("instance", "experiment", "workload", "params", "backend", "metric", "unit", "raw")
"""Those of a line; a table has ``host`` too."""
NUMBERS: Mapping[str, type] = {"block": np.int64, "value": np.float64, "iteration": np.int64, "warmup": np.bool_}


class Texts(msgspec.Struct, frozen=True):
    """A column of few different things: ``codes`` has a number a sample, ``kinds`` what each number stands for."""

    codes: NDArray[np.int32]
    kinds: tuple[Any, ...]

    def written(self) -> tuple[list[str], NDArray[np.int32]]:
        """The distinct things as text, and the codes into them. Parameters that differ in their order only are one."""
        texts = [params_text(kind) if isinstance(kind, Mapping) else str(kind) for kind in self.kinds]
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        if len(places) == len(texts):
            return texts, self.codes
        return list(places), np.array([places[text] for text in texts], dtype=np.int32)[self.codes]


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters as JSON with sorted keys."""
    return json.dumps(params, sort_keys=True, ensure_ascii=False)


class SampleTable(Sequence[Sample]):
    """Samples in the order in which they were measured.

    ``texts`` holds the columns ``TEXTS`` (``params`` as mappings, ``unit`` as ``Unit``) and ``host``, ``numbers`` the
    ``NUMBERS``.
    """

    def __init__(self, texts: Mapping[str, Texts], numbers: Mapping[str, NDArray[Any]]) -> None:
        self.texts = texts
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers["value"])

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> "SampleTable": ...

    def __getitem__(self, place: int | slice) -> "Sample | SampleTable":
        if isinstance(place, slice):
            return self.taken(place)
        texts = {name: column.kinds[column.codes[place]] for name, column in self.texts.items()}
        numbers = {name: column[place].item() for name, column in self.numbers.items()}
        return Sample(**texts, **numbers)

    def __iter__(self) -> Iterator[Sample]:
        for place in range(len(self)):
            yield self[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Sample.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # compared by what is in it, as a list is

    def __repr__(self) -> str:
        return f"SampleTable({len(self)} samples)"

    def distinct(self, name: str) -> tuple[Any, ...]:
        """What stands in a column, each once: of ``TEXTS`` in the order of first appearance, of ``NUMBERS`` rising."""
        if name in self.texts:
            column = self.texts[name]
            present, first = np.unique(column.codes, return_index=True)
            return tuple(column.kinds[code] for code in present[np.argsort(first)])
        return tuple(np.unique(self.numbers[name]).tolist())

    def taken(self, which: "slice | NDArray[Any]") -> "SampleTable":
        """Some of the samples: a slice, a mask, or places."""
        texts = {name: Texts(column.codes[which], column.kinds) for name, column in self.texts.items()}
        return SampleTable(texts, {name: column[which] for name, column in self.numbers.items()})

    def where(self, name: str, value: Any) -> "SampleTable":
        """The samples with ``value`` in the column ``name`` of ``TEXTS``."""
        column = self.texts[name]
        wanted = np.array([kind == value for kind in column.kinds], dtype=np.bool_)
        return self.taken(wanted[column.codes])

    def without(self, instances: Collection[str]) -> "SampleTable":
        """The samples that are not of these instances."""
        if not instances:
            return self
        column = self.texts["instance"]
        kept = np.array([value not in instances for value in column.kinds], dtype=np.bool_)
        return self.taken(kept[column.codes])

    def count_by(self, name: str) -> dict[Any, int]:
        """How many samples there are of each thing in a column of ``TEXTS``."""
        column = self.texts[name]
        counts = np.bincount(column.codes, minlength=len(column.kinds)).tolist()
        return {kind: count for kind, count in zip(column.kinds, counts, strict=True) if count}

    @classmethod
    def read(cls, path: Path, warnings: list[str], host: str = "") -> Self:
        """Read ``samples.jsonl`` of ``host``. What cannot be read, or is there twice, is left out, with a warning.

        Raises RunDirectoryError.
        """
        columns = _Columns()
        read_lines(path, _Line, columns.add, warnings)
        texts, numbers = columns.finished()
        texts["host"] = Texts(np.broadcast_to(np.int32(0), len(numbers["value"])), (host,))
        once = _first_of_each(texts["instance"].codes, numbers.pop("number"))
        if repeated := int(np.count_nonzero(~once)):
            warnings.append(f"{path.name}: {repeated} lines are there twice; the first of each counts")
            texts = {name: Texts(column.codes[once], column.kinds) for name, column in texts.items()}
            numbers = {name: column[once] for name, column in numbers.items()}
        return cls(texts, numbers)


def _first_of_each(instances: NDArray[np.int32], numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which lines are the first of their instance and number. Those without a number, 0, are all kept."""
    once = np.ones(len(numbers), dtype=np.bool_)
    numbered = np.flatnonzero(numbers)
    order = numbered[np.lexsort((numbers[numbered], instances[numbered]))]
    before, after = order[:-1], order[1:]
    once[after[(instances[before] == instances[after]) & (numbers[before] == numbers[after])]] = False
    return once


class _Line(Struct, frozen=True):
    """A ``Sample`` as a line has it, its parameters not yet taken apart: they repeat from line to line."""

    instance: str
    block: int
    experiment: str
    workload: str
    params: msgspec.Raw
    backend: str
    metric: str
    unit: Unit
    value: float
    iteration: int
    warmup: bool
    raw: str = ""
    number: int = 0


_DECODE_PARAMS = msgspec.json.Decoder(dict[str, Any]).decode


_NUMBERS_OF_LINES: Mapping[str, type] = {**NUMBERS, "number": np.int64}


class _Codes(dict[Any, int]):
    """Numbers things in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        code = self[key] = len(self)
        return code


class _Params(_Codes):
    """Numbers parameters by their JSON; what is no object is refused by ValidationError."""

    def __init__(self) -> None:
        self.decoded: list[dict[str, Any]] = []

    def __missing__(self, key: bytes) -> int:
        self.decoded.append(_DECODE_PARAMS(key))
        return super().__missing__(key)


class _Columns:
    """Takes lines and grows columns."""

    def __init__(self) -> None:
        self._params = _Params()
        self._codes = {name: self._params if name == "params" else _Codes() for name in TEXTS}
        self._texts: dict[str, list[NDArray[np.int32]]] = {name: [] for name in TEXTS}
        self._numbers: dict[str, list[NDArray[Any]]] = {name: [] for name in _NUMBERS_OF_LINES}

    def add(self, lines: Sequence[_Line]) -> None:
        params = [self._params[bytes(line.params)] for line in lines]  # first, because it may refuse
        self._texts["params"].append(np.array(params, dtype=np.int32))
        for name in TEXTS:
            if name != "params":
                codes = map(self._codes[name].__getitem__, map(attrgetter(name), lines))
                self._texts[name].append(np.fromiter(codes, dtype=np.int32, count=len(lines)))
        for name, kind in _NUMBERS_OF_LINES.items():
            self._numbers[name].append(np.fromiter(map(attrgetter(name), lines), dtype=kind, count=len(lines)))

    def finished(self) -> tuple[dict[str, Texts], dict[str, NDArray[Any]]]:
        texts = {}
        for name in TEXTS:
            values = tuple(self._params.decoded) if name == "params" else tuple(self._codes[name])
            texts[name] = Texts(_joined(self._texts.pop(name), np.int32), values)
        return texts, {name: _joined(self._numbers.pop(name), kind) for name, kind in _NUMBERS_OF_LINES.items()}


def _joined(parts: list[NDArray[Any]], kind: type) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=kind)
