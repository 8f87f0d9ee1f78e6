"""Durations, sizes and counts as pyperf's JSON, for ``pyperf show``, ``compare_to``, ``hist`` and ``check``."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tare.bench.analysis import RunResults
from tare.bench.errors import TareError
from tare.bench.model import Direction
from tare.bench.readable import one_line
from tare.bench.records import Manifest, Sample
from tare.bench.reporter import Reporter
from tare.bench.samples import params_text
from tare.bench.store import LoadedRun
from tare.bench.units import Unit

if TYPE_CHECKING:
    import pyperf

_UNITS = {Unit.SECOND: "second", Unit.BYTE: "byte", Unit.COUNT: "integer"}
"""pyperf's units. It has none for a rate, and takes less for better, so that it holds only what is better lower."""


class PyperfReporter(Reporter):
    """One benchmark for each metric of each cell; an instance is what pyperf calls a run, an iteration a value.

    pyperf holds durations, sizes and counts above 0 of which less is better. Other metrics are left out, and so are
    those that grow with the number of instances, whose iterations do not repeat one another.
    """

    name = "pyperf"
    summary = "durations, sizes and counts for pyperf compare_to, hist and check (JSON)"
    suffix = ".pyperf.json"

    def write(self, results: RunResults, output: Path) -> None:
        """Write the suite. Raises TareError if there is nothing for it."""
        import pyperf

        benchmarks = list(_benchmarks(results.run))
        if not benchmarks:
            raise TareError(f"{results.run.path}: this run has no duration, size or count that pyperf can hold")
        _dump(pyperf.BenchmarkSuite(benchmarks), output)


def _dump(suite: "pyperf.BenchmarkSuite", output: Path) -> None:
    # pyperf decides by the name whether to compress; a file object spares it the guess.
    if output.suffix == ".gz":
        with gzip.open(output, "wt", encoding="utf-8") as file:
            suite.dump(file)
        return
    with output.open("w", encoding="utf-8") as file:
        suite.dump(file)


def _benchmarks(run: LoadedRun) -> "Iterator[pyperf.Benchmark]":
    import pyperf

    grouped: dict[tuple[str, ...], dict[str, list[Sample]]] = {}
    growing = {name for name, traits in run.manifest.experiments.items() if traits.grows_with}
    for sample in run.samples:
        if sample.unit in _UNITS and sample.experiment not in growing and _is_better_lower(run.manifest, sample):
            key = (sample.experiment, sample.workload, params_text(sample.params), sample.metric, sample.backend)
            grouped.setdefault(key, {}).setdefault(sample.instance, []).append(sample)
    for cell, instances in grouped.items():
        runs = [one for samples in instances.values() if (one := _run(run.manifest, cell, samples)) is not None]
        if runs:
            yield pyperf.Benchmark(runs)


def _is_better_lower(manifest: Manifest, sample: Sample) -> bool:
    keys = (f"{sample.workload or sample.experiment}/{sample.metric}", f"{sample.experiment}/{sample.metric}")
    known = next((manifest.metrics[key] for key in keys if key in manifest.metrics), None)
    return known is None or known.direction is Direction.LOWER


def _run(manifest: Manifest, key: tuple[str, ...], samples: list[Sample]) -> "pyperf.Run | None":
    import pyperf

    ordered = sorted(samples, key=lambda sample: sample.iteration)
    values = [_value(sample) for sample in ordered if not sample.warmup and sample.value > 0]
    warmups = [(1, _value(sample)) for sample in ordered if sample.warmup and sample.value > 0]
    if not values:
        return None
    return pyperf.Run(values, warmups=warmups, metadata=_metadata(manifest, key, samples[0]), collect_metadata=False)


def _value(sample: Sample) -> float:
    """A count is whole where it can be: pyperf shows it digit by digit."""
    return int(sample.value) if sample.unit is Unit.COUNT and sample.value.is_integer() else sample.value


def _metadata(manifest: Manifest, key: tuple[str, ...], sample: Sample) -> dict[str, Any]:
    experiment, workload, _, metric, backend = key
    given = ",".join(f"{name}={value}" for name, value in sorted(sample.params.items()))
    label = manifest.backends[backend].label if backend in manifest.backends else backend
    parts = (label, experiment, workload, given, metric)
    return {
        "name": "/".join(one_line(part) for part in parts if part),
        "unit": _UNITS[sample.unit],
        "loops": 1,
        "inner_loops": 1,
        "date": manifest.started_utc.removesuffix("Z").replace("T", " ") or "unknown",
        "tare_run": one_line(manifest.run),
        "tare_backend": one_line(label),
        "tare_image": one_line(str(manifest.image.get("digest", ""))) or "unknown",
        "tare_version": one_line(manifest.tare_version) or "unknown",
        "tare_block": sample.block,
        **_host(manifest),
    }


def _host(manifest: Manifest) -> dict[str, Any]:
    """The host, under the names that pyperf itself gives its own metadata."""
    facts = {fact.name: one_line(fact.text) for fact in manifest.host}
    system = "-".join(part for part in (facts.get("kernel", ""), facts.get("architecture", "")) if part)
    named = {
        "hostname": facts.get("host name", ""),
        "cpu_model_name": facts.get("cpu model", ""),
        "platform": f"Linux-{system}" if system else "",
        "cpu_affinity": ",".join(map(str, manifest.envelope.cpus)),
    }
    cpus = facts.get("cpus", "")
    counted: dict[str, Any] = {"cpu_count": int(cpus)} if cpus.isdecimal() and int(cpus) else {}
    return {name: value for name, value in named.items() if value} | counted
