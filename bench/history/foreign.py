"""What other tools measured, as runs of a history: pyperf's, hyperfine's and Google Benchmark's JSON.

An imported file becomes a folder of its own among the runs, with the original next to what was read from it, so that
the index can be made again. No bare metal was measured next to it: its series are judged by their levels, and a change
cannot be told from one of the host.
"""

import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tare.bench.errors import RunDirectoryError, StoreError
from tare.bench.history.entries import FOREIGN, CellRow, Indexed, RunEntry, digest_of, night_estimate
from tare.bench.model import Direction
from tare.bench.records import RunStatus
from tare.bench.trees import replace_file
from tare.bench.units import Unit

FOREIGN_FILE = "foreign.json"
ORIGINAL = "original.json"


class ForeignSeries(msgspec.Struct, frozen=True):
    """One benchmark: a value a block (a process, a run, a repetition), in base SI units."""

    name: str
    metric: str
    unit: Unit
    direction: Direction
    values: tuple[float, ...]


class ForeignRun(msgspec.Struct, frozen=True):
    """``foreign.json``: what was read from a file of another tool."""

    tool: str
    suite: str
    host: str
    started_utc: str
    labels: Mapping[str, str]
    series: tuple[ForeignSeries, ...]


def import_file(file: Path, runs: Path, *, suite: str, host: str, started: str, labels: Mapping[str, str]) -> Path:
    """Put a file of another tool among the runs; returns its folder there, the same for the same file.

    ``started`` is the start in UTC, empty for the file's own or its time of change. Raises RunDirectoryError for a file
    that is none of the known forms.
    """
    try:
        content = file.read_bytes()
        changed = dt.datetime.fromtimestamp(file.stat().st_mtime, dt.UTC)
        value = json.loads(content)
    except OSError as error:
        raise RunDirectoryError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RunDirectoryError(f"{file} is not JSON", remedy=_KNOWN) from None
    tool, series, own_start = _read(file, value)
    begun = started or own_start or changed.isoformat(timespec="seconds")
    run = ForeignRun(tool, suite, host or FOREIGN, begun, labels, series)
    stem = re.sub(r"[^a-z0-9]+", "-", suite.lower()).strip("-")[:40] or "foreign"
    name = f"{re.sub(r'[^0-9]', '', begun)[:14]}-{stem}-{hashlib.sha256(content).hexdigest()[:6]}"
    folder = runs / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / ORIGINAL, content)
        replace_file(folder / FOREIGN_FILE, msgspec.json.format(msgspec.json.encode(run), indent=2))
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror}", remedy="free some space") from error
    return folder


_KNOWN = "known forms are the JSON of pyperf, of hyperfine --export-json, and of Google Benchmark"


def _read(file: Path, value: Any) -> tuple[str, tuple[ForeignSeries, ...], str]:
    for tool, fits, read in _TOOLS:
        if isinstance(value, dict) and fits(value):
            try:
                series = tuple(read(value))
                start = _start_of(value)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"{type(error).__name__} {error}"
                raise RunDirectoryError(f"{file} looks like {tool}'s JSON and cannot be read: {reason}") from None
            if not series:
                raise RunDirectoryError(f"{file} holds no value of any benchmark", remedy=_KNOWN)
            return tool, series, start
    raise RunDirectoryError(f"{file} is the JSON of no tool that is known here", remedy=_KNOWN)


def _start_of(value: Mapping[str, Any]) -> str:
    """The start that the file states, in UTC; empty if it states none with its zone."""
    stated = (value.get("context") or {}).get("date") or (value.get("metadata") or {}).get("date") or ""
    try:
        found = dt.datetime.fromisoformat(str(stated))
    except ValueError:
        return ""
    return found.astimezone(dt.UTC).isoformat(timespec="seconds") if found.tzinfo else ""


def _seconds(name: str, values: Any) -> ForeignSeries:
    times = tuple(float(value) for value in values)
    return ForeignSeries(name, "time", Unit.SECOND, Direction.LOWER, times)


def _pyperf(value: Mapping[str, Any]) -> Iterator[ForeignSeries]:
    """A block is a process: values within one share what it happened to get."""
    shared = value.get("metadata") or {}
    for place, benchmark in enumerate(value["benchmarks"]):
        metadata = {**shared, **(benchmark.get("metadata") or {})}
        unit = metadata.get("unit", "second")
        values = [float(np.median(run["values"])) for run in benchmark["runs"] if run.get("values")]
        name = str(metadata.get("name") or f"benchmark {place + 1}")
        if unit == "second" and values:
            yield _seconds(name, values)
        elif values:
            kind = Unit.BYTE if unit == "byte" else Unit.COUNT
            yield ForeignSeries(name, "value", kind, Direction.LOWER, tuple(values))


def _hyperfine(value: Mapping[str, Any]) -> Iterator[ForeignSeries]:
    for result in value["results"]:
        params = ", ".join(f"{name} {given}" for name, given in (result.get("parameters") or {}).items())
        yield _seconds(" ".join(part for part in (str(result["command"]), params) if part), result["times"])


_TIME_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def _google(value: Mapping[str, Any]) -> Iterator[ForeignSeries]:
    """A block is a repetition; means, medians and deviations that the tool adds are left out."""
    times: dict[str, list[float]] = {}
    for one in value["benchmarks"]:
        if one.get("run_type", "iteration") == "iteration" and not one.get("error_occurred"):
            scale = _TIME_UNITS[one.get("time_unit", "ns")]
            times.setdefault(str(one.get("run_name") or one["name"]), []).append(float(one["real_time"]) * scale)
    for name, values in times.items():
        yield _seconds(name, values)


_Fits = Callable[[Mapping[str, Any]], bool]
_Reads = Callable[[Mapping[str, Any]], Iterator[ForeignSeries]]
_TOOLS: tuple[tuple[str, _Fits, _Reads], ...] = (
    ("hyperfine", lambda value: isinstance(value.get("results"), list), _hyperfine),
    ("Google Benchmark", lambda value: isinstance(value.get("context"), dict) and "benchmarks" in value, _google),
    ("pyperf", lambda value: isinstance(value.get("benchmarks"), list) and "version" in value, _pyperf),
)


def read_foreign(folder: Path, number: int, stamp: str) -> Indexed:
    """An imported run with its rows. Raises RunDirectoryError."""
    try:
        run = msgspec.json.decode((folder / FOREIGN_FILE).read_bytes(), type=ForeignRun)
    except (OSError, msgspec.DecodeError) as error:
        raise RunDirectoryError(f"{folder / FOREIGN_FILE}: {error}", remedy="import the file again") from None
    texts = {"tool": run.tool, "host": run.host}
    entry = RunEntry(
        number=number,
        run=folder.name,
        folder=folder.name,
        stamp=stamp,
        suite=run.suite,
        host=run.host,
        host_summary=f"measured by {run.tool}",
        started_utc=run.started_utc,
        status=RunStatus.COMPLETE,
        baseline="",
        backends={run.tool: FOREIGN},
        failed={},
        planned=len(run.series),
        tare="",
        conditions={run.tool: digest_of(texts)},
        labels=run.labels,
    )
    return Indexed(entry, [_row(entry, run, one) for one in run.series], {digest_of(texts): texts})


def _row(entry: RunEntry, run: ForeignRun, one: ForeignSeries) -> CellRow:
    subject = [run.suite, FOREIGN, one.name, "{}", "", one.metric]
    level = spread = None
    if one.values and min(one.values) > 0:
        level, spread = night_estimate(np.log(np.array(one.values)))
    return CellRow(
        number=entry.number,
        run=entry.run,
        series=digest_of([*subject, run.tool]),
        subject=digest_of(subject),
        experiment=FOREIGN,
        workload=one.name,
        params="{}",
        backend=run.tool,
        envelope="",
        metric=one.metric,
        unit=str(one.unit),
        direction=one.direction,
        leads=True,
        own=True,
        margin=0.02,
        epoch=entry.conditions[run.tool],
        blocks=list(range(len(one.values))),
        medians=list(one.values),
        iterations=len(one.values),
        level=level,
        level_sd=spread,
    )
