"""What stands where in a report, what is compared there, and what is said beside it."""

from dataclasses import replace

import msgspec
import pytest

from tare.bench.analysis import analyse
from tare.bench.experiments.density import metrics as density_metrics
from tare.bench.model import Category, WorkloadTraits
from tare.bench.records import Sample
from tare.bench.store import load_run
from tare.bench.units import Unit
from tare.reports import sections
from tare.reports.charts import Chart
from tare.reports.sections import operations_beyond, section_of, section_views
from tare.reports.wording import format_estimate, format_range, format_value_range
from tests.synthetic import QUICK, SUBJECTS, write_run

SMALL = replace(QUICK, subjects=SUBJECTS[:2], iterations=3, blocks=3)


@pytest.fixture(autouse=True)
def _pictures_are_not_drawn(monkeypatch):
    """What is asked here is in words; drawing takes most of the time."""
    drawn = Chart({}, "<svg/>")
    monkeypatch.setattr(sections, "distribution_charts", lambda _row, new_name: [("", new_name(), drawn)])
    monkeypatch.setattr(sections, "block_chart", lambda *_: ("each block", "the ratios", drawn))
    monkeypatch.setattr(sections, "growth_chart", lambda *_: drawn)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    return analyse(load_run(write_run(tmp_path_factory.mktemp("runs") / "run", SMALL)))


def with_traits(analysis, **traits):
    manifest = msgspec.structs.replace(analysis.manifest, workloads={**analysis.manifest.workloads, **traits})
    return msgspec.structs.replace(analysis, run=msgspec.structs.replace(analysis.run, manifest=manifest))


def test_a_subject_stands_where_the_manifest_says(analysis):
    fio = next(subject for subject in analysis.subjects if subject.workload == "fio")
    assert section_of(fio, analysis.manifest) == "storage"
    told = with_traits(analysis, fio=WorkloadTraits(Category.NETWORK, fixed_time=False))
    assert section_of(fio, told.manifest) == "network"
    titles = [section.title for section in section_views(told)]
    assert titles == ["Start and stop", "CPU", "Network"]


@pytest.mark.parametrize("fixed_time", [True, False])
def test_the_duration_of_a_command_and_its_cost_are_results_only_if_nobody_set_it(analysis, fixed_time):
    told = with_traits(analysis, fio=WorkloadTraits(Category.STORAGE, fixed_time=fixed_time))
    storage = section_views(told)[-1].subjects[0]
    details = [row.name for row in storage.details]
    for name in ("command.duration", "host.cpu"):
        assert (name in details) is fixed_time
        assert (name in [row.name for row in storage.rows]) is not fixed_time
    assert "instance.start" in details
    assert all(row.panels == [] for row in storage.details)


def test_a_percentile_of_few_operations_is_marked(analysis):
    fio = next(subject for subject in analysis.subjects if subject.workload == "fio")
    row = next(row for row in fio.rows if row.metric.name == "read.latency.p99")
    vm = next(cell.backend for cell in row.cells if cell.backend.name == "vm")
    # 8,400 reads a second, 2.3 s an iteration, one in a hundred beyond.
    assert operations_beyond(fio, row, vm) == pytest.approx(195, rel=0.1)
    rows = [
        msgspec.structs.replace(one, cells=[scaled(cell, 0.01) for cell in one.cells])
        if one.metric.name == "read.iops"
        else one
        for one in fio.rows
    ]
    few = msgspec.structs.replace(analysis, subjects=[msgspec.structs.replace(fio, rows=rows)])
    shown = {row.name: row for row in section_views(few)[0].subjects[0].rows}
    assert "operations an iteration" in shown["read.latency.p99"].compared[-1].note
    assert "an iteration" not in shown["read.latency.p50"].compared[-1].note


def scaled(cell, factor):
    estimate = msgspec.structs.replace(cell.estimate, centre=cell.estimate.centre * factor)
    return msgspec.structs.replace(cell, estimate=estimate)


@pytest.mark.parametrize("metric", [density_metrics.PSS, density_metrics.START], ids=lambda metric: metric.name)
def test_what_was_taken_at_other_sizes_is_compared_at_one_or_not_at_all(tmp_path, metric):
    run = write_run(tmp_path / "run", SMALL)
    factors = {"bare-metal": 1, "native": 3, "vm": 200}
    with (run / "samples.jsonl").open("ab") as file:
        for backend, sizes in (("bare-metal", (1, 2, 4, 8)), ("native", (1, 2, 4, 8)), ("vm", (1, 2, 3))):
            for block in range(3):
                for size in sizes:
                    sample = Sample(
                        f"d{block}-{backend}", block, "density", "", {}, backend, metric.name, metric.unit,
                        1e6 * size * factors[backend], size, warmup=False,
                    )  # fmt: skip
                    file.write(msgspec.json.encode(sample) + b"\n")
    density = next(section for section in section_views(analyse(load_run(run))) if section.title == "Density")
    row = density.subjects[0].rows[0]
    assert "With 2 instances alive (the most that all reached): bare-metal " in row.sentence
    assert [size for size, _ in row.growth.lines] == [1, 2, 3, 4, 8]
    if metric is density_metrics.START:
        assert not row.is_compared, "the typical start of a ramp to 8 and of one to 3"
        assert (row.name, density.leading) == ("density.start", [])
        return
    assert [value for value, _ in row.growth.lines[-1][1]] == ["7.63 MiB", "22.9 MiB", "–"]
    assert row.is_compared
    assert row.name == "density.pss at 2"
    assert [cell.found[0] for cell in row.compared] == pytest.approx([3, 200])
    assert [cell.estimate for cell in row.cells] == pytest.approx([2e6, 6e6, 4e8])


def test_identifiers_are_unique_and_the_same_again(analysis):
    def identifiers():
        views = section_views(analysis)
        subjects = [subject for section in views for subject in section.subjects]
        rows = [row for subject in subjects for row in (*subject.rows, *subject.details)]
        return [one.identifier for one in (*views, *subjects, *rows)]

    found = identifiers()
    assert found == identifiers()
    assert len(set(found)) == len(found)
    assert "s-steady-fio-block-size-4k-mode-randread-read-iops" in found


@pytest.mark.parametrize(
    ("value", "low", "high", "unit", "text"),
    [
        (0.012345, 0.0123, 0.0124, Unit.SECOND, "12.3 ms"),
        (0.012345, 0.0110, 0.0140, Unit.SECOND, "12 ms"),
        (1742.0, 1500.0, 2000.0, Unit.OPERATIONS_PER_SECOND, "1,700/s"),
        (134217728.0, 1.0e8, 1.7e8, Unit.BYTE, "130 MiB"),
        (250.0, 200.0, 300.0, Unit.SECOND, "4 min 10 s"),
        (0.0, 0.0, 0.0, Unit.COUNT, "0"),
        (5.0, None, None, Unit.COUNT, "5"),
    ],
)
def test_digits_that_the_interval_does_not_support_are_not_shown(value, low, high, unit, text):
    assert format_estimate(value, low, high, unit) == text


def test_an_interval_that_says_nothing_is_not_spelled_out():
    assert format_range(1e-7, 2e8) == "too wide to state"
    assert format_value_range(1e-3, 1e5, Unit.SECOND) == "too wide to state"
    assert format_range(0.5, 2.0) == "0.500–2.00×"
    assert format_value_range(0.0, 5.0, Unit.SECOND) == "0 s – 5.00 s"
