"""What a history holds, for people and other tools: series by name, their nights, and the whole as a table."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.errors import UnknownNameError
from tare.bench.history.entries import RunEntry
from tare.bench.history.index import History, copy_to
from tare.bench.readable import one_line

FORMS = {"csv": "(FORMAT csv, HEADER)", "parquet": "(FORMAT parquet)", "json": "(FORMAT json, ARRAY true)"}


class SeriesLine(msgspec.Struct, frozen=True):
    """A series with how many runs have it."""

    series: str
    suite: str
    experiment: str
    workload: str
    params: str
    backend: str
    metric: str
    unit: str
    n_runs: int
    last_run: str

    @property
    def name(self) -> str:
        """What people call it."""
        given = ", ".join(f"{name} {value}" for name, value in msgspec.json.decode(self.params or "{}").items())
        parts = (self.workload or self.experiment, given, self.metric, self.backend)
        return one_line(" · ".join(part for part in parts if part))


class NightLine(msgspec.Struct, frozen=True):
    """A series in one run. ``level`` is in its unit, ``ratio`` to the baseline of the same blocks."""

    run: str
    started_utc: str
    level: float | None
    ratio: float | None
    blocks: int
    failed: int
    epoch: str
    labels: Mapping[str, str]
    is_night: bool


def list_series(history: History) -> list[SeriesLine]:
    """All series, by name."""
    suites = {one.number: one.suite for one in history.entries}
    with history.start_query() as connection:
        rows = connection.execute(
            "SELECT series, any_value(experiment), any_value(workload), any_value(params), any_value(backend), "
            "any_value(metric), any_value(unit), count(DISTINCT run), max_by(run, number), max(number) FROM cells "
            "GROUP BY series"
        ).fetchall()
    lines = [SeriesLine(series, suites.get(number, ""), *facts) for series, *facts, number in rows]
    return sorted(lines, key=lambda line: (line.suite, line.name))


def find_series(history: History, wanted: str) -> SeriesLine:
    """The series that ``wanted`` means: the beginning of its identifier, or words of its name.

    Raises UnknownNameError.
    """
    lines = list_series(history)
    words = wanted.lower().split()
    found = [line for line in lines if line.series.startswith(wanted)] or [
        line for line in lines if all(word in line.name.lower() for word in words)
    ]
    exact = [line for line in found if line.name.lower() == wanted.lower()]
    if len(found) == 1 or len(exact) == 1:
        return (exact or found)[0]
    if not found:
        raise UnknownNameError(f"no series is called {wanted!r}", remedy="`tare history list --series` shows them")
    shown = "\n".join(f"  {line.series}  {line.name}" for line in found[:12])
    raise UnknownNameError(f"{len(found)} series match {wanted!r}:\n{shown}", remedy="name one by its identifier")


def nights_of(history: History, series: str) -> list[NightLine]:
    """The runs that have a series, in their order."""
    with history.start_query() as connection:
        rows = connection.execute(
            "SELECT number, exp(level), exp(ratio), len(blocks), failed, epoch FROM cells WHERE series = ?", [series]
        ).fetchall()
    by_number = {number: facts for number, *facts in rows}
    return [_night(one, *by_number[one.number]) for one in history.entries if one.number in by_number]


def _night(
    entry: RunEntry, level: float | None, ratio: float | None, blocks: int, failed: int, epoch: str
) -> NightLine:
    return NightLine(entry.run, entry.started_utc, level, ratio, blocks, failed, epoch, entry.labels, entry.is_night)


def with_labels(entries: Sequence[RunEntry], wanted: Mapping[str, str]) -> list[RunEntry]:
    """The runs that have all of these labels."""
    return [one for one in entries if all(one.labels.get(name) == value for name, value in wanted.items())]


def export(history: History, form: str, output: Path, labels: Mapping[str, str] | None = None) -> None:
    """Write one row for each run, series and metric. Raises UnknownNameError for a form that there is not."""
    entries = with_labels(history.entries, labels or {})
    if form == "openmetrics":
        output.write_text("".join(_openmetrics(history, entries)), "utf-8")
        return
    if form not in FORMS:
        raise UnknownNameError(f"there is no form {form!r}", remedy=f"forms are: {', '.join((*FORMS, 'openmetrics'))}")
    facts = [
        (one.number, one.suite, one.host, one.started_utc, one.status, _json(one.labels), one.revision, one.confirms)
        for one in entries
    ]
    with history.start_query() as connection:
        connection.execute(
            "CREATE TABLE runs (number INTEGER, suite VARCHAR, host VARCHAR, started_utc VARCHAR, status VARCHAR, "
            "labels VARCHAR, revision VARCHAR, confirms VARCHAR)"
        )
        if facts:
            connection.executemany("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", facts)
        query = (
            "SELECT cells.* EXCLUDE (number), runs.* EXCLUDE (number) FROM cells JOIN runs USING (number) "
            "ORDER BY started_utc, run, series"
        )
        copy_to(connection, query, output, FORMS[form])


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _openmetrics(history: History, entries: Sequence[RunEntry]) -> Iterator[str]:
    """The newest value of each series, as a scraper or a push gateway takes it."""
    newest = {one.number: one for one in entries}
    with history.start_query() as connection:
        rows = connection.execute(
            "SELECT number, experiment, workload, params, backend, metric, unit, exp(level), exp(ratio) FROM cells "
            "ORDER BY number"
        ).fetchall()
    latest: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for number, *facts, level, ratio in rows:
        if number in newest:
            latest[(newest[number].suite, newest[number].host, *facts)] = (number, level, ratio)
    for name, place, meaning in (
        ("tare_history_level", 1, "Centre of a series in its newest run, in base SI units."),
        ("tare_history_ratio", 2, "Ratio to the baseline measured in the same blocks, in the newest run."),
    ):
        yield f"# TYPE {name} gauge\n# HELP {name} {meaning}\n"
        for (suite, host, *facts), value in latest.items():
            if value[place] is not None:
                keys = ("suite", "host", "experiment", "workload", "params", "backend", "metric", "unit", "run")
                given = (suite, host, *facts, newest[value[0]].run)
                labels = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in zip(keys, given, strict=True))
                yield f"{name}{{{labels}}} {value[place]!r}\n"
    yield "# EOF\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
