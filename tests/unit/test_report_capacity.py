"""The capacity in a report: the figures of the plan, curves with fit and band, and nothing where there is no ramp."""

import re
from collections import Counter

import msgspec
import pytest

from tare.bench.analysis import RunResults, analyse, density
from tare.bench.capacity.hosts import find_measured_host
from tare.bench.capacity.plan import plan_host
from tare.bench.store import load_run
from tare.reports import capacity
from tare.reports.capacity import Curve, capacity_view, curve_chart
from tare.reports.html import HtmlReporter
from tare.reports.junit import JUnitReporter
from tare.reports.markdown import MarkdownReporter
from tare.reports.requirements import requirement_views
from tare.reports.summary_json import JsonReporter
from tare.reports.text import TextReporter
from tests.synthetic import write_run
from tests.unit.test_capacity_plan import COUNT, GIB, only, write_density


@pytest.fixture
def drawn(monkeypatch) -> list[Curve]:
    curves: list[Curve] = []

    def draw(curve, backend, identifier):
        curves.append(curve)
        return curve_chart(curve, backend, identifier)

    monkeypatch.setattr(capacity, "curve_chart", draw)
    return curves


def test_the_table_says_what_the_plan_says(tmp_path, drawn):
    path = write_density(tmp_path / "run")
    run = load_run(path)
    host = find_measured_host(run.manifest)
    assert (host.cpus, host.memory) == (2.0, 24 * GIB)
    view = capacity_view(analyse(run))
    (line,) = view.lines
    plan = plan_host(only(path), host)
    assert line.found[1:] == [plan.fewest, plan.most]
    assert (line.what, line.binds) == ("idle", plan.binds)
    assert any("measured while idle" in note for note in view.notes)
    memory, start = drawn
    assert memory.line[-1] == (COUNT, pytest.approx(COUNT * 100 * 2**20, rel=0.05))
    assert memory.band[-1][1] < memory.line[-1][1] < memory.band[-1][2]
    assert start.line[0][1] == pytest.approx(0.02, rel=0.05)
    ((_, _, curves),) = view.curves
    assert [curve.title for curve in curves] == ["Memory that the host no longer had", "Start of an instance"]
    assert all({"points", "fit", "band"} <= set(curve.chart.spec["datasets"]) for curve in curves)
    assert all("<svg" in curve.chart.svg for curve in curves)


def test_a_loaded_ramp_has_its_throughput_with_the_law_through_it(tmp_path, drawn):
    view = capacity_view(analyse(load_run(write_density(tmp_path / "run", workload="sysbench-cpu"))))
    throughput = drawn[-1]
    assert len(throughput.points) == COUNT
    assert throughput.line[0][1] == pytest.approx(100, rel=0.01)
    ((_, what, curves),) = view.curves
    assert what == "sysbench-cpu"
    assert "Universal Scalability Law" in curves[-1].sentence
    assert "largest throughput with 30.8" in curves[-1].sentence


def test_the_first_screen_says_what_one_more_took_and_what_was_not_measured(tmp_path):
    run = load_run(write_density(tmp_path / "run"))
    nothing_to_compare = analyse(run)
    assert nothing_to_compare.baseline is None
    (answer,) = requirement_views(nothing_to_compare)[0].answers
    assert (answer.standing, answer.likely, answer.more) == ("cannot tell", "", "The run is not usable.")
    manifest = msgspec.structs.replace(run.manifest, baseline="native")
    view = requirement_views(analyse(msgspec.structs.replace(run, manifest=manifest)))
    assert [one.name for one in view] == ["One more instance takes at most 64 MiB of memory", "Has a kernel of its own"]
    (answer,) = view[0].answers
    assert answer.standing == "fails"
    assert re.search(r"Measured (9\d|10\d)", answer.more)


def test_what_a_few_dear_instances_do_to_the_interval_is_said_in_every_form(tmp_path):
    results = RunResults(load_run(write_density(tmp_path / "run")))
    for reporter in (HtmlReporter(), TextReporter(), MarkdownReporter(), JsonReporter()):
        reporter.write(results, tmp_path / reporter.name)
        text = " ".join((tmp_path / reporter.name).read_text("utf-8").split())
        assert "it covers 52 to 91 %" in text, reporter.name


def test_far_beyond_the_ramp_is_no_answer(tmp_path):
    view = capacity_view(analyse(load_run(write_density(tmp_path / "run"))))
    (line,) = view.lines
    plan = plan_host(only(tmp_path / "run"), find_measured_host(load_run(tmp_path / "run").manifest))
    beyond = plan.instances > 10 * COUNT
    assert line.is_beyond is beyond
    assert ("not answered" in line.instances) is beyond
    assert bool(view.beyond) is plan.is_extrapolated


def test_a_run_without_a_ramp_has_no_capacity(tmp_path):
    assert capacity_view(analyse(load_run(write_run(tmp_path / "run")))) is None


@pytest.mark.parametrize(
    ("reporter", "fits"),
    [(HtmlReporter, 1), (TextReporter, 1), (MarkdownReporter, 1), (JsonReporter, 1), (JUnitReporter, 0)],
)
def test_a_report_fits_each_ramp_at_most_once(tmp_path, monkeypatch, reporter, fits):
    path = write_density(tmp_path / "run", workload="sysbench-cpu")
    counted = Counter()

    def count(name):
        real = getattr(density, name)

        def counting(*arguments, **options):
            counted[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(density, name, counting)

    for name in ("find_density", "fit_cell", "fit_scaling", "fit_cost"):
        count(name)
    reporter().write(RunResults(load_run(path)), tmp_path / "report")
    assert [counted[name] for name in ("find_density", "fit_cell", "fit_scaling")] == [fits] * 3
    # Of MemAvailable, charge and disk, and of MemAvailable in the last half.
    assert counted["fit_cost"] == 4 * fits
