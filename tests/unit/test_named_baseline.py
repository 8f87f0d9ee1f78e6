"""A run without bare metal, with the baseline that its suite names: ratios, verdicts and noise floor, in every form."""

import json
from dataclasses import replace

import pytest

from tare.bench.analysis import RunResults, analyse
from tare.bench.records import Cell
from tare.bench.stats.comparisons import Verdict
from tare.bench.stats.noise import NoiseSource
from tare.bench.store import load_run
from tare.reports.caveats import caveats
from tare.reports.text import TextReporter
from tests.synthetic import QUICK, write_run


@pytest.fixture
def run_with(tmp_path):
    def make(baseline, **change):
        recipe = replace(QUICK, backends=("native", "vm"), ratios={"native": 1.0, "vm": 2.0}, **change)
        run = write_run(tmp_path / "run", recipe)
        content = json.loads((run / "manifest.json").read_text("utf-8"))
        (run / "manifest.json").write_text(json.dumps(content | {"baseline": baseline}), "utf-8")
        return load_run(run)

    return make


@pytest.mark.parametrize(("baseline", "other", "ratio"), [("native", "vm", 2.0), ("vm", "native", 0.5)])
def test_ratios_verdicts_and_noise_floor_are_over_the_named_backend(run_with, baseline, other, ratio):
    analysis = analyse(run_with(baseline, blocks=8))
    assert analysis.baseline.name == baseline
    assert {cell.backend.name for *_, cell, _ in analysis.comparisons} == {other}
    (row,) = [row for subject in analysis.subjects for row in subject.rows if row.metric.name == "operation.time"]
    (found,) = [cell.comparison for cell in row.cells if cell.comparison is not None]
    assert found.low < ratio**1.2 < found.high  # the exponent is the synthetic metric's
    assert found.verdict is (Verdict.SLOWER if ratio > 1 else Verdict.FASTER)
    assert row.noise_floor.source is NoiseSource.SPLIT
    assert row.noise_floor.detectable > 1
    assert analysis.noise.tested > 0
    assert "no-baseline" not in {caveat.code for caveat in caveats(analysis)}


def test_the_text_names_the_baseline(run_with, tmp_path):
    TextReporter().write(RunResults(run_with("native", blocks=6, virtual_host=False)), tmp_path / "report.txt")
    text = (tmp_path / "report.txt").read_text("utf-8")
    assert "differs in none" in text or "native differs in" in text
    assert "bare metal" not in text.split("Claims of the field")[0].split("The emulator")[0]


def test_a_baseline_that_no_backend_has_is_one_clear_caveat(run_with):
    analysis = analyse(run_with("docker"))
    assert analysis.baseline is None
    assert analysis.comparisons == []
    (caveat,) = [one for one in caveats(analysis) if one.code == "no-baseline"]
    assert caveat.text == (
        "The run names docker as its baseline, which is none of its backends (native, vm): there are values, but no "
        "ratios and no verdicts."
    )


def test_the_sampler_compares_with_the_named_baseline_as_the_analysis_does(run_with):
    """The same samples, given to the sampler one by one, are as precise as the report says."""
    from types import SimpleNamespace

    from tare.bench.adaptive import Sampler

    run = run_with("native", blocks=9, iterations=6)
    analysis = analyse(run)
    wanted = 0.02
    scenarios, expected = [], {}
    for subject in analysis.subjects:
        leading = next(row for row in subject.rows if row.is_leading)
        metrics = [row.metric for row in subject.rows if row.quantile is None]
        key = Cell(subject.experiment, subject.workload, subject.params, "").subject
        scenarios.append(
            SimpleNamespace(
                key=key,
                experiment=SimpleNamespace(traits=subject.traits),
                metrics=metrics,
                sampling=SimpleNamespace(precision=wanted, instances=1, max_blocks=0),
                cell=lambda backend, key=key: SimpleNamespace(key=f"{key}/{backend}"),
            )
        )
        (compared,) = [cell for cell in leading.cells if cell.comparison is not None]
        expected[f"{key}/vm"] = (leading.metric.name, compared.comparison)
    suite = SimpleNamespace(
        backends=[SimpleNamespace(name="native"), SimpleNamespace(name="vm")],
        scenarios=scenarios,
        seed=run.manifest.seed,
        sampling=SimpleNamespace(max_time=60.0),
    )
    sampler = Sampler(suite, "native")
    for sample in run.samples:
        sampler.add(sample)
    found = {one.cell: one for one in sampler.standings()}
    assert found.keys() == expected.keys()
    for cell, (metric, comparison) in expected.items():
        assert found[cell].metric == metric
        half = (comparison.high / comparison.low) ** 0.5 - 1
        assert found[cell].precision.half_width == pytest.approx(half, rel=1e-12)
