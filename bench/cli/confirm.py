"""``tare gate --confirm``: measures suspicious cells and their baselines again, in runs of their own."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tare.bench.errors import SuiteError, TareError
from tare.bench.history.acks import AckFile
from tare.bench.history.gate import Judgement, judge, load_judged
from tare.bench.history.index import History, open_history, update_history
from tare.bench.history.nights import Series
from tare.bench.history.reruns import MOST_RERUNS
from tare.bench.progress import RunDisplay
from tare.bench.records import Manifest, Origin
from tare.bench.session import RunRequest, start_run
from tare.bench.store import load_manifest
from tare.bench.units import parse_duration

LEAST_BLOCKS = 3


def measure_again(history: History, judgement: Judgement, acks: AckFile, limit: str) -> tuple[History, Judgement]:
    """Measure what is suspicious until it is decided, six times, or until the time is spent; judge again.

    Each rerun is a run in the folder of runs. Raises SuiteError for a ``limit`` that is no duration.
    """
    try:
        deadline = time.monotonic() + parse_duration(limit)
    except ValueError as error:
        raise SuiteError("--time", str(error)) from None
    console = Console(stderr=True)
    folder, run = history.runs_folder, judgement.run
    manifest = load_manifest(folder / run.folder)
    longest = 0.0
    for _ in range(MOST_RERUNS):
        undecided = _undecided(history, judgement, acks)
        if not undecided or time.monotonic() + longest > deadline:
            break
        began = time.monotonic()
        console.print(f"measuring again: {len(undecided)} suspicious series and their baselines")
        for backend, series in _by_backend(undecided):
            _rerun(manifest, folder, backend, series, console)
        longest = max(longest, time.monotonic() - began)
        for left_out in update_history(folder).left_out:
            console.print(f"left out: {left_out.message}", markup=False)
        history = open_history(folder)
        judgement = judge(history, run, acks)
    return history, judgement


def _undecided(history: History, judgement: Judgement, acks: AckFile) -> list[Series]:
    """The suspicious series that no rerun has decided yet."""
    nights = load_judged(history, judgement.run, acks)
    done = {one.column for one in judgement.confirmations if one.is_decided}
    columns = {one.identifier: column for column, one in enumerate(nights.series)}
    return [nights.series[columns[name]] for name in judgement.suspicious if columns[name] not in done]


def _by_backend(series: Sequence[Series]) -> Iterator[tuple[str, list[Series]]]:
    """A run measures all its backends in all its experiments: one for each backend measures nothing in excess."""
    for backend in dict.fromkeys(one.backend for one in series):
        yield backend, [one for one in series if one.backend == backend]


def _rerun(manifest: Manifest, folder: Path, backend: str, series: Sequence[Series], console: Console) -> None:
    source = reduced_suite(manifest, backend, series)
    origin = Origin(
        labels=manifest.origin.labels,
        suite_file=manifest.origin.suite_file,
        revision=manifest.origin.revision,
        confirms=manifest.run,
    )
    taken = sum(1 for path in folder.glob(f"{manifest.run}-again-*"))
    path = folder / f"{manifest.run}-again-{taken + 1}"
    place = folder / manifest.run / "manifest.json"
    try:
        with RunDisplay(console) as display:
            start_run(RunRequest(place, path, source=source, origin=origin), display)
    except TareError as error:
        console.print(f"could not measure {backend} again: {error}", markup=False)


def reduced_suite(manifest: Manifest, backend: str, series: Sequence[Series]) -> dict[str, Any]:
    """The suite of a run with nothing but these series' cells and their baselines, in as many blocks as they had."""
    suite = dict(manifest.suite)
    names = {backend, manifest.baseline}
    suite["backend"] = [one for one in suite["backend"] if (one.get("name") or one.get("type")) in names]
    sampling = {**(suite.get("sampling") or {}), "precision": 0, "max_blocks": None}
    sampling.pop("seed", None)
    suite["sampling"] = sampling | {"blocks": max(LEAST_BLOCKS, int(sampling.get("blocks", 0)))}
    wanted = {(one.experiment, one.workload, one.params) for one in series}
    sections = []
    for section in suite["experiment"]:
        for experiment, workload, params in sorted(wanted):
            found = _narrowed(section, experiment, workload, json.loads(params))
            if found is not None:
                sections.append(found)
                wanted.discard((experiment, workload, params))
    suite["experiment"] = sections
    return suite


def _narrowed(
    section: Mapping[str, Any], experiment: str, workload: str, params: Mapping[str, Any]
) -> dict[str, Any] | None:
    """An experiment with one of its combinations of parameters; None if that is not among them."""
    if (section.get("kind"), section.get("workload") or "") != (experiment, workload):
        return None
    given = {**(section.get("params") or {}), **(section.get("options") or {})}
    if given.keys() != params.keys():
        return None
    if any(params[name] not in (value if isinstance(value, list) else [value]) for name, value in given.items()):
        return None
    return {
        **section,
        "precision": None,
        "max_blocks": None,
        "blocks": None,
        **{part: {name: params[name] for name in section.get(part) or {}} for part in ("params", "options")},
    }
