"""What must hold of a run after a power cut, before and after it is resumed."""

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tare.bench.errors import RunDirectoryError
from tare.bench.store import LoadedRun, attempt_of, find_progress, load_histograms, load_run

Shape = Counter[tuple[Any, ...]]


class Whole(msgspec.Struct, frozen=True):
    """What the run that was not cut had measured, by planned instance, and its outputs by file."""

    samples: dict[str, list[Any]]
    histograms: dict[str, list[Any]]
    outputs: dict[str, bytes]
    shape: Shape

    @classmethod
    def of(cls, path: Path) -> "Whole":
        run = load_run(path)
        raw = {str(file.relative_to(path)): gzip.decompress(file.read_bytes()) for file in path.glob("raw/*/*.gz")}
        return cls(_by_planned(run.samples), _by_planned(load_histograms(run)), raw, shape_of(run))


def shape_of(run: LoadedRun) -> Shape:
    """What was measured how often, by planned instance."""
    samples = ((one.instance, one.metric, one.iteration, one.warmup) for one in run.samples)
    histograms = ((one.instance, one.histogram.name, one.iteration, one.warmup) for one in load_histograms(run))
    return Counter((attempt_of(instance)[0], *rest) for instance, *rest in [*samples, *histograms])


def check(path: Path, told: set[str], whole: Whole, resume: Callable[[Path], object]) -> bool:
    """Check the run at ``path``, resume it and check it again; whether there was a run. Raises AssertionError.

    ``told`` are the planned instances that the user had been told were done.
    """
    if not (path / "manifest.json").exists():
        assert not told, f"{sorted(told)} had been reported as done, and there is no run"
        return False
    check_told(path, told, whole)
    try:
        resume(path)
    except RunDirectoryError as error:
        assert "nothing to resume" in error.message  # noqa: PT017 - or nothing was raised
    check_told(path, told, whole)
    run = load_run(path)
    doubled = [key for key, count in (shape_of(run) - whole.shape).items() if count]
    missing = [key for key, count in (whole.shape - shape_of(run)).items() if count]
    assert not doubled, f"measured twice: {doubled}"
    assert not missing, f"never measured: {missing}"
    assert run.manifest.status == "complete"
    return True


def check_told(path: Path, told: set[str], whole: Whole) -> None:
    """What was reported as done is there, as it was measured, with its outputs. Raises AssertionError, KeyError."""
    run = load_run(path)
    lost = told - find_progress(run).done
    assert not lost, f"{sorted(lost)} had been reported as done"
    samples, histograms = _by_planned(run.samples), _by_planned(load_histograms(run))
    for planned in told:
        assert samples[planned] == whole.samples[planned], planned
        assert histograms.get(planned) == whole.histograms.get(planned), planned
        for sample in samples[planned]:
            if sample.raw:
                assert gzip.decompress((path / sample.raw).read_bytes()) == whole.outputs[sample.raw], sample.raw


def _by_planned(records: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for record in records:
        found.setdefault(attempt_of(record.instance)[0], []).append(record)
    return found
