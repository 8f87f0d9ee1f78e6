"""What an instance consists of, why ramps ended, which limits held, how much worse a victim got, as a page has it."""

from dataclasses import replace

import msgspec
import pytest

from tare.bench.analysis import Grade, GradeLevel, MeasuredBackend, analyse
from tare.bench.analysis.density import DensityCell
from tare.bench.records import Sample
from tare.bench.store import load_run
from tare.bench.units import Unit
from tare.reports import charts, density_costs
from tare.reports.charts import Chart, parts_bar
from tare.reports.density_costs import costs_view, words_of
from tare.reports.headline import headline
from tare.reports.instances import heat_view, held_lines
from tests.synthetic import QUICK, SUBJECTS, write_run
from tests.unit.test_capacity_plan import COUNT, MIB, write_density


def add(run, experiment, metric, values, unit=Unit.RATIO, **params):
    """``values`` by backend: for each block, values by size."""
    with (run / "samples.jsonl").open("ab") as file:
        for backend, blocks in values.items():
            for block, sizes in enumerate(blocks):
                for size, value in sizes.items():
                    sample = Sample(
                        f"e{block}-{backend}", block, experiment, "fio" if params else "", params, backend, metric,
                        unit, value, size, warmup=False,
                    )  # fmt: skip
                    file.write(msgspec.json.encode(sample) + b"\n")


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", replace(QUICK, subjects=SUBJECTS[:1], iterations=2, blocks=2))


@pytest.mark.parametrize(
    ("accel", "pss", "inner", "parts"),
    [
        ("", 60, {"private": 40}, {"process": 40, "shared": 20, "kernel": 40}),
        ("kvm", 90, {"guest_ram": 65}, {"guest RAM": 65, "hypervisor": 25, "kernel": 10}),
        (
            *("tcg", 90, {"guest_ram": 65, "tcg_cache": 15}),
            {"guest RAM": 65, "translated code": 15, "hypervisor": 10, "kernel": 10},
        ),
    ],
)
def test_an_instance_is_shown_in_its_parts(tmp_path, monkeypatch, accel, pss, inner, parts):
    monkeypatch.setattr(charts, "finished", lambda *_, **__: Chart({}, "<svg/>"))
    path = write_density(tmp_path / "run", accel=accel, ending="processes")
    with (path / "samples.jsonl").open("ab") as file:
        for name, each in {"pss": pss, **inner}.items():
            for number in range(2, COUNT + 1, 4):
                sample = Sample(
                    "i0", 0, "density", "", {"count": COUNT}, "vm" if accel else "native", f"density.{name}",
                    Unit.BYTE, number * each * MIB, number, warmup=False,
                )  # fmt: skip
                file.write(msgspec.json.encode(sample) + b"\n")
    view = costs_view(analyse(load_run(path)))
    (bar,) = view.bars
    found = {name: size / MIB for name, _, size in bar.parts}
    assert found == pytest.approx(parts, abs=4)
    assert [name for name, *_ in view.legend] == list(parts)
    ((_, what, ending, count),) = view.endings
    assert (what, ending.resource, ending.population, count) == ("idle", "processes", COUNT, 1)


def test_ramps_that_ended_alike_are_one_row(tmp_path, monkeypatch):
    analysis = analyse(load_run(write_density(tmp_path / "run", ending="processes")))
    (result,) = analysis.density
    (ending,) = result.cell.endings
    endings = (ending, *(msgspec.structs.replace(ending, instance=f"i{dead}", dead=dead) for dead in (0, 2)))
    cell = msgspec.structs.replace(result.cell, endings=endings)
    monkeypatch.setattr(density_costs, "in_order", lambda _: [msgspec.structs.replace(result, cell=cell)])
    view = costs_view(analysis)
    assert [(one.dead, count) for *_, one, count in view.endings] == [(0, 2), (2, 1)]


def test_what_instances_did_is_told_without_how_the_ramp_was_made():
    params = {"batch": 4, "count": 9, "settle_deadline": "5s", "settle_interval": "1s", "meters_every": 3, "size": "1K"}
    cell = DensityCell("native", "redis", params, (), ())
    assert words_of(cell) == "redis, 4 at once, size 1K"


def test_the_parts_are_drawn_end_to_end():
    parts = [("process", 40 * MIB), ("kernel", 10 * MIB)]
    bar = parts_bar(
        MeasuredBackend("vm", "vm", 1, is_baseline=False), parts, Unit.BYTE, {"process": 1.0, "kernel": 0.25}, "d0"
    )
    drawn, rows = bar.chart, bar.chart.spec["datasets"]["parts"]
    assert [(row["s"], row["e"]) for row in rows] == [(0, 40), (40, 50)]
    assert "<svg" in drawn.svg


def test_a_limit_held_only_if_its_whole_interval_says_so(run):
    add(run, "limits", "limits.memory_reached", {"bare-metal": [{0: 2.0}, {0: 2.0}], "native": [{0: 0.97}, {0: 0.97}]})
    add(run, "limits", "limits.cpu_reached", {"native": [{0: 0.8}, {0: 1.25}]})
    add(run, "limits", "limits.memory_seen", {"native": [{0: 188.0}, {0: 188.0}]})
    lines = {(line.limit, line.backend.name): line for line in held_lines(analyse(load_run(run)))}
    assert {key: line.verdict for key, line in lines.items()} == {
        ("CPUs", "native"): "uncertain",
        ("memory", "bare-metal"): "exceeded",
        ("memory", "native"): "held",
    }
    assert lines["memory", "native"].seen.startswith("188")
    assert lines["memory", "bare-metal"].seen == "–"


def test_the_heat_is_by_size_with_the_range_over_blocks(run):
    values = {"bare-metal": [{1: 1.0, 2: 0.9}, {1: 1.0, 2: 0.9}], "native": [{1: 1.5, 2: 4.0}, {1: 2.5, 2: 4.0}]}
    add(run, "interference", "interference.ratio.duration", values, aggressor="disk", aggressors=2)
    view = heat_view(analyse(load_run(run)))
    assert view.numbers == [1, 2]
    lines = {line.backend.name: line for line in view.lines}
    assert (lines["native"].aggressor, lines["native"].metric, lines["native"].victim) == ("disk", "duration", "fio")
    assert [cell.ratio for cell in lines["native"].cells] == [2.0, 4.0]
    assert [cell.strength for cell in lines["native"].cells] == [0.5, 1.0]
    assert lines["native"].cells[0].extent.startswith("1.5")
    assert [cell.strength for cell in lines["bare-metal"].cells] == [0.0, 0.0]


def test_what_came_out_is_a_sentence_each(run):
    values = {"bare-metal": [{1: 1.0, 2: 0.9}], "native": [{1: 1.5, 2: 4.0}]}
    add(run, "interference", "interference.ratio.duration", values, aggressor="disk", aggressors=2)
    add(run, "limits", "limits.memory_reached", {"bare-metal": [{0: 2.0}, {0: 2.0}], "native": [{0: 0.97}, {0: 0.97}]})
    add(run, "limits", "limits.cpu_reached", {"native": [{0: 0.8}, {0: 1.25}]})
    analysis = analyse(load_run(run))
    grade = Grade(GradeLevel.INDICATIVE, "", "")
    analysis.__dict__["grade"] = grade  # what is asked here is not how good the run is
    said = headline(analysis)
    assert "work takes at worst as long on host (a VM) and 4.0 times as long on native" in said


def test_a_run_without_them_has_none_of_them(run):
    analysis = analyse(load_run(run))
    assert (costs_view(analysis), heat_view(analysis), held_lines(analysis)) == (None, None, [])
