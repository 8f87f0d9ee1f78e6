"""Makes room in a folder of runs: raw outputs go first, then samples; block medians stay for good.

A run whose samples go keeps ``medians.json``, from which the index can be made again.
"""

import datetime as dt
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from tare.bench.errors import StoreError, SuiteError
from tare.bench.history.entries import MEDIANS, RunEntry, read_entry
from tare.bench.history.index import History, save_entries
from tare.bench.store import HISTOGRAMS, RAW, SAMPLES
from tare.bench.trees import remove_tree, replace_file

STAGES: Mapping[str, tuple[str, ...]] = {
    "raw": (RAW,),
    "samples": (RAW, SAMPLES, "samples.parquet", HISTOGRAMS),
}
"""What goes with each stage, from the first to the last."""
_DAYS = {"d": 1, "w": 7, "y": 365}


class Pruned(msgspec.Struct, frozen=True):
    """What was removed of a run, and its size in bytes."""

    run: str
    stage: str
    size: int


def read_keep(given: Mapping[str, str]) -> dict[str, dt.timedelta]:
    """How long each stage is kept: ``{"raw": "30d"}``. Raises SuiteError."""
    kept = {}
    for stage, text in given.items():
        if stage not in STAGES:
            raise SuiteError("--keep", f"{stage!r} is nothing that can go", remedy=f"stages are: {', '.join(STAGES)}")
        if not text[:-1].isdecimal() or text[-1:] not in _DAYS:
            raise SuiteError("--keep", f"{text!r} is not a number of days, weeks or years such as 30d, 8w, 2y")
        kept[stage] = dt.timedelta(days=int(text[:-1]) * _DAYS[text[-1]])
    return kept


def prune(
    history: History, keep: Mapping[str, dt.timedelta], *, now: dt.datetime | None = None, only_say: bool = False
) -> list[Pruned]:
    """Remove of each run in the index what is older than ``keep``. Raises StoreError for what cannot be removed."""
    now = now or dt.datetime.now(dt.UTC)
    pruned: list[Pruned] = []
    gone: dict[int, tuple[str, ...]] = {}
    for entry in history.entries:
        age = now - dt.datetime.fromisoformat(entry.started_utc).astimezone(dt.UTC)
        counted: set[Path] = set()
        for stage, longest in sorted(keep.items(), key=lambda one: list(STAGES).index(one[0])):
            folder = history.runs_folder / entry.folder
            paths = [folder / name for name in STAGES[stage] if (folder / name).exists()]
            paths = [path for path in paths if path not in counted]
            if age <= longest or not paths:
                continue
            counted.update(paths)
            pruned.append(Pruned(entry.run, stage, sum(map(_size, paths))))
            if not only_say:
                _remove(folder, entry, stage, paths)
                gone[entry.number] = (*gone.get(entry.number, entry.pruned), stage)
    if gone:
        save_entries(
            history.runs_folder, lambda one: msgspec.structs.replace(one, pruned=gone.get(one.number, one.pruned))
        )
    return pruned


def _remove(folder: Path, entry: RunEntry, stage: str, paths: list[Path]) -> None:
    try:
        if stage == "samples" and not (folder / MEDIANS).exists():
            replace_file(folder / MEDIANS, msgspec.json.encode(read_entry(folder, entry.number)))
        for path in paths:
            remove_tree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise StoreError(f"cannot prune {folder}: {error.strerror}", remedy="what was removed stays removed") from error


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in _files(path))


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (one for one in path.rglob("*") if one.is_file() and not one.is_symlink())
