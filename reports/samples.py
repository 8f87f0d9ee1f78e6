"""The samples of a run as one flat table, for the reader's own tools: a pandas frame, CSV and Parquet.

CSV is RFC 4180's but for plain line ends, UTF-8.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tare.bench.analysis import RunResults
from tare.bench.reporter import Reporter
from tare.bench.store import LoadedRun

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


_COLUMNS = (
    *("block", "instance", "experiment", "workload", "params", "backend", "acceleration", "metric", "unit", "value"),
    *("iteration", "warmup", "raw"),
)


def sample_rows(run: LoadedRun, shown: Callable[[str], str] = str) -> Iterator[Sequence[object]]:
    """The names of the columns and then every sample, as ``sample_frame``; ``shown`` changes texts."""
    table = run.samples
    columns: dict[str, Iterable[object]] = {name: column.tolist() for name, column in table.numbers.items()}
    for name, column in table.texts.items():
        values, codes = column.written()
        columns[name] = map([shown(value) for value in values].__getitem__, codes.tolist())
        if name == "backend":
            told = [shown(_acceleration(run, value)) for value in values]
            columns["acceleration"] = map(told.__getitem__, codes.tolist())
    yield _COLUMNS
    yield from zip(*(columns[name] for name in _COLUMNS), strict=True)


def sample_frame(run: LoadedRun) -> "pd.DataFrame":
    """Every sample, warm-ups included, in the order in which it was measured.

    Text columns are categories; ``params`` is JSON with sorted keys. ``value`` is in ``unit``.
    """
    import pandas as pd

    table = run.samples
    columns: dict[str, Any] = {}
    for name, column in table.texts.items():
        values, codes = column.written()
        columns[name] = pd.Categorical.from_codes(codes, categories=pd.Index(values, dtype="str"))
        if name == "backend":
            told = [_acceleration(run, value) for value in values]
            columns["acceleration"] = pd.Categorical([told[code] for code in codes], categories=sorted({*told, ""}))
    columns |= table.numbers
    return pd.DataFrame({name: columns[name] for name in _COLUMNS})


def _acceleration(run: LoadedRun, backend: str) -> str:
    """What executed a guest's instructions (``kvm``, ``tcg``); empty where there is no guest."""
    described = run.manifest.backends.get(backend)
    return described.accelerator if described is not None else ""


class CsvReporter(Reporter):
    """Every sample, warm-ups included; ``value`` in base units (``unit``), ``params`` as JSON.

    A name that a spreadsheet would execute as a formula gets an apostrophe before it.
    """

    name = "csv"
    summary = "every sample, a row each, in base units (CSV)"
    suffix = ".csv"

    def write(self, results: RunResults, output: Path) -> None:
        with output.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(sample_rows(results.run, _inert))


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


class ParquetReporter(Reporter):
    """Every sample, warm-ups included, a row each; ``params`` is JSON. The metadata says which run it is."""

    name = "parquet"
    summary = "every sample as one flat table (Parquet)"
    suffix = ".parquet"

    def write(self, results: RunResults, output: Path) -> None:
        import msgspec
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(sample_frame(results.run), preserve_index=False)
        manifest = results.run.manifest
        labels = {name: backend.label for name, backend in manifest.backends.items()}
        about = {
            "tare.run": manifest.run,
            "tare.schema_version": str(manifest.schema_version),
            "tare.baseline": manifest.baseline,
            "tare.status": str(manifest.status),
            "tare.labels": msgspec.json.encode(labels).decode(),
        }
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **about})
        pq.write_table(table, output, compression="zstd")
