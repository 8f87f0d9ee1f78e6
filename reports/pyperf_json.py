"""Durations as pyperf's JSON, for ``pyperf show``, ``compare_to``, ``hist`` and ``check``."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tare.bench.analysis import RunResults
from tare.bench.catalogue import INSTANCE_PREFIX, SteadyMetric
from tare.bench.errors import TareError
from tare.bench.readable import one_line
from tare.bench.records import Manifest, Sample
from tare.bench.reporter import Reporter
from tare.bench.samples import params_text
from tare.bench.store import LoadedRun
from tare.bench.units import Unit

if TYPE_CHECKING:
    import pyperf

_OF_WORKLOADS = (SteadyMetric.DURATION, INSTANCE_PREFIX, "guest.")
"""Of the durations that are measured of a workload, those that its own time limits do not set."""


class PyperfReporter(Reporter):
    """One benchmark for each duration of each cell; an instance is what pyperf calls a run, an iteration a value.

    Only durations above 0 can be told in pyperf's format: other metrics are left out.
    """

    name = "pyperf"
    summary = "durations for pyperf compare_to, hist and check (JSON)"
    suffix = ".pyperf.json"

    def write(self, results: RunResults, output: Path) -> None:
        """Write the suite. Raises TareError if there is no duration."""
        import pyperf

        benchmarks = list(_benchmarks(results.run))
        if not benchmarks:
            raise TareError(f"{results.run.path}: there is no duration in this run, so there is nothing for pyperf")
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
    experiments = run.manifest.experiments.items()
    repeating = {name for name, traits in experiments if not (traits.of_workload or traits.grows_with)}
    for sample in run.samples:
        if sample.unit is not Unit.SECOND:
            continue
        if sample.experiment in repeating or sample.metric.startswith(_OF_WORKLOADS):
            key = (sample.experiment, sample.workload, params_text(sample.params), sample.metric, sample.backend)
            grouped.setdefault(key, {}).setdefault(sample.instance, []).append(sample)
    for cell, instances in grouped.items():
        runs = [one for samples in instances.values() if (one := _run(run.manifest, cell, samples)) is not None]
        if runs:
            yield pyperf.Benchmark(runs)


def _run(manifest: Manifest, key: tuple[str, ...], samples: list[Sample]) -> "pyperf.Run | None":
    import pyperf

    ordered = sorted(samples, key=lambda sample: sample.iteration)
    values = [sample.value for sample in ordered if not sample.warmup and sample.value > 0]
    warmups = [(1, sample.value) for sample in ordered if sample.warmup and sample.value > 0]
    if not values:
        return None
    return pyperf.Run(values, warmups=warmups, metadata=_metadata(manifest, key, samples[0]), collect_metadata=False)


def _metadata(manifest: Manifest, key: tuple[str, ...], sample: Sample) -> dict[str, Any]:
    experiment, workload, _, metric, backend = key
    given = ",".join(f"{name}={value}" for name, value in sorted(sample.params.items()))
    label = manifest.backends[backend].label if backend in manifest.backends else backend
    parts = (label, experiment, workload, given, metric)
    return {
        "name": "/".join(one_line(part) for part in parts if part),
        "unit": "second",
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
