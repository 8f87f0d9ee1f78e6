"""What a fleet's report says: typical cost, spread, prediction, odd and missing hosts, capacity; in every form."""

import json
import math
import re
import shutil
import tomllib

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from tare.bench.analysis import GradeLevel
from tare.bench.capacity.by_host import fleet_file
from tare.bench.cli.fleet import app
from tare.bench.errors import SuiteError
from tare.bench.fleet.collection import load_collection
from tare.bench.fleet.report import make_report
from tare.bench.stats.dependence import widening
from tare.bench.stats.hosts import ENOUGH_HOSTS, HostValue, combine_hosts
from tare.bench.store import load_run
from tare.reports.fleet import fleet_document, fleet_markdown, fleet_text
from tare.reports.fleet_page import MOST_STRIPS, fleet_context, render_fleet
from tests.fleets import RUN, Fleet, write_fleet
from tests.synthetic import HOSTILE
from tests.unit.test_capacity_plan import MIB, said, write_density
from tests.unit.test_capacity_plan import tare as plan
from tests.written import Page, markdown_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    fleet = Fleet(hosts=8, odd={"h3": 1.6}, dead={"h9": "no answer for 30 s"}, reports=True)
    return write_fleet(tmp_path_factory.mktemp("fleet"), fleet)


@pytest.fixture(scope="module")
def report(folder):
    return make_report(load_collection(folder))


def tare(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def row_of(report, workload):
    return next(row for row in report.analysis.leading if row.workload == workload)


def test_the_typical_ratio_is_that_of_the_hosts_own_runs(report, folder):
    row = row_of(report, "perf-sched-pipe")
    own = []
    for host, found in zip(sorted(folder.glob("hosts/*")), row.hosts, strict=True):
        samples = [one for one in load_run(host / RUN).samples if one.metric == "operation.time" and not one.warmup]
        blocks = sorted({one.block for one in samples})

        def median(backend, block, samples=samples):
            return np.median([one.value for one in samples if (one.backend, one.block) == (backend, block)])

        logs = [math.log(median("native", block) / median("bare-metal", block)) for block in blocks]
        wider, freedom = widening(len(logs), found.found.dependence.lag1)
        own.append(HostValue(np.mean(logs), wider * np.std(logs, ddof=1) / math.sqrt(len(logs)), freedom))
    expected = combine_hosts(own)
    assert row.of_all.typical.ratio == pytest.approx(math.exp(expected.typical.centre))
    assert [one.error for one in row.hosts] == pytest.approx([one.error for one in own])
    assert row.of_all.new_host.high == pytest.approx(math.exp(expected.new_host.high))
    assert row.of_all.spread.centre == pytest.approx(expected.spread.centre)


def test_the_odd_host_is_named_with_what_only_it_has(report):
    (odd,) = report.analysis.odd
    assert odd.host == "h3"
    assert odd.facts == {"kernel": ("6.1.0-slow", "6.12.0")}
    text = " ".join(fleet_text(report).split())
    assert "h3 differs from the others" in text
    assert "Only it has kernel 6.1.0-slow (most others: 6.12.0)" in text


def test_hosts_of_one_kind_have_no_odd_one(tmp_path):
    found = [
        make_report(load_collection(write_fleet(tmp_path / str(seed), Fleet(hosts=6, blocks=4, subjects=1, seed=seed))))
        for seed in range(4)
    ]
    assert [one.analysis.odd for one in found] == [()] * 4


def test_a_dead_host_is_a_row_with_its_reason(report):
    dead = report.analysis.hosts[-1]
    assert dead.name == "h9"
    assert dead.left_out == "it does not answer any more: no answer for 30 s"
    assert "h9" in render_fleet(report)
    assert len(report.analysis.counted) == 8


def test_a_run_that_cannot_be_read_leaves_its_host_in_the_report(tmp_path):
    path = write_fleet(tmp_path / "fleet", Fleet(hosts=5, blocks=3, subjects=1))
    (path / "hosts/h2" / RUN / "manifest.json").write_text("{")
    shutil.rmtree(path / "hosts/h4" / RUN)
    found = make_report(load_collection(path))
    left_out = {host.name: host.left_out for host in found.analysis.hosts if host.left_out}
    assert sorted(left_out) == ["h2", "h4"]
    assert left_out["h2"].startswith("its run cannot be read: ")
    assert any("tare fleet collect" in one for one in found.warnings)


def test_an_emulated_host_stands_apart(tmp_path):
    path = write_fleet(tmp_path / "fleet", Fleet(hosts=6, blocks=3, subjects=1, emulated=("h6",), odd={"h6": 9.0}))
    found = make_report(load_collection(path))
    assert "emulated" in found.analysis.hosts[-1].left_out
    assert all(one.host != "h6" for row in found.analysis.rows for one in row.hosts)
    assert found.analysis.odd == ()
    assert "h6" in " ".join(fleet_context(found)["fences"])


def test_few_hosts_predict_nothing_and_say_so(tmp_path):
    found = make_report(load_collection(write_fleet(tmp_path / "fleet", Fleet(hosts=ENOUGH_HOSTS - 1, blocks=3))))
    assert all(row.of_all.new_host is None for row in found.analysis.leading)
    assert found.analysis.grade.level is GradeLevel.FIRST_LOOK
    text = " ".join(fleet_text(found).split())
    assert "Nothing is said of hosts that nobody measured: that takes 5 hosts, and 4 hosts count." in text


def test_one_machine_under_many_names_is_no_fleet(tmp_path):
    path = write_fleet(tmp_path / "fleet", Fleet(hosts=6, blocks=3, subjects=1))
    for number, host in enumerate(sorted(path.glob("hosts/*"))):
        file = host / RUN / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["fingerprint"] = {"digest": f"machine-{number // 3}", "made_from": {}}
        file.write_text(json.dumps(manifest))
    grade = make_report(load_collection(path)).analysis.grade
    assert grade.level is GradeLevel.FIRST_LOOK
    assert grade.reason == "6 hosts are 2 machines by their fingerprints: they do not show how far machines differ"


def test_no_usable_host_is_said_first(tmp_path):
    found = make_report(load_collection(write_fleet(tmp_path / "fleet", Fleet(hosts=0, dead={"a": "refused"}))))
    assert found.analysis.grade.level is GradeLevel.NOT_USABLE
    assert "This fleet cannot be used: no host has a run that can be used." in render_fleet(found)


def test_each_type_of_host_is_combined_by_itself(tmp_path):
    path = write_fleet(tmp_path / "fleet", Fleet(hosts=10, blocks=3, subjects=1, types=("large", "small")))
    row = row_of(make_report(load_collection(path)), "sysbench-cpu")
    assert [(one.type, one.n_hosts) for one in row.together] == [("", 10), ("large", 5), ("small", 5)]


def test_every_form_has_the_same_numbers(report):
    document = json.loads(json.dumps(fleet_document(report)))
    row = next(one for one in document["rows"] if one["workload"] == "fio" and one["is_leading"])
    page, markdown = Page(render_fleet(report)).text, fleet_markdown(report)
    said_there = next(cells for cells in markdown_rows(markdown) if "4k reads" in cells[0])
    typical = f"−{100 * (1 - row['together'][0]['typical']['ratio']):.0f} %"
    assert said_there[3] == typical
    assert typical in page
    assert document["answer"][0] in " ".join(page.split())
    assert [one["name"] for one in document["hosts"]] == [f"h{n}" for n in range(1, 10)]


def test_each_run_is_linked(report):
    page = Page(render_fleet(report))
    links = re.findall(r'href="(hosts/[^"]+)"', render_fleet(report))
    assert links == [f"hosts/h{n}/{RUN}/report.html" for n in range(1, 9)]
    assert "h9" in page.text


def test_many_hosts_are_points_of_one_row_and_odd_ones_have_their_own(tmp_path):
    path = write_fleet(tmp_path / "fleet", Fleet(hosts=MOST_STRIPS + 1, blocks=3, subjects=1, odd={"h2": 1.8}))
    context = fleet_context(make_report(load_collection(path)))
    panel = next(one for one in context["panels"] if one.title.startswith("CPU"))
    ((_, strips),) = panel.groups
    assert [strip.name for strip in strips] == ["Typical host", "A host nobody measured", "All hosts", "h2"]
    assert strips[2].svg.count("class='point'") == MOST_STRIPS + 1


def test_hostile_names_do_nothing(report):
    hosts = tuple(
        msgspec.structs.replace(host, summary=HOSTILE[0], left_out=HOSTILE[1] if host.name == "h9" else "")
        for host in report.analysis.hosts
    )
    bad = msgspec.structs.replace(
        report, suite=HOSTILE[2], analysis=msgspec.structs.replace(report.analysis, hosts=hosts)
    )
    page = render_fleet(bad)
    assert "<script>alert" not in page
    assert "\u202e" not in page.replace("\u2068", "")
    assert "<script>" not in fleet_markdown(bad)


def test_the_command_writes_every_form_and_refuses_others(folder, tmp_path):
    for form in ("text", "markdown", "json", "html"):
        target = tmp_path / form
        done = tare("report", folder, "--format", form, "--output", target)
        assert done.exit_code == 0, said(done)
        assert "h3" in target.read_text("utf-8")
    done = tare("report", folder, "--format", "html")
    assert done.stdout.strip() == str(folder / "fleet.html")
    done = tare("report", folder, "--format", "junit")
    assert done.exit_code == 3
    assert "has no form 'junit'; there are: html, json, markdown, text, fleet-file" in " ".join(said(done).split())
    done = tare("report", tmp_path)
    assert done.exit_code == 3
    assert "is not the folder of a fleet" in " ".join(said(done).split())


@pytest.fixture
def density(tmp_path, monkeypatch):
    """Six hosts with a ramp each."""
    monkeypatch.setenv("TARE_STATE_DIR", str(tmp_path / "state"))
    path = write_fleet(tmp_path / "fleet", Fleet(hosts=6, blocks=3, subjects=1, types=("large",)))
    for number, host in enumerate(sorted(path.glob("hosts/*"))):
        shutil.rmtree(host / RUN)
        write_density(host / RUN, seed=number, each=300 * MIB)
    return path


def test_capacity_by_type_feeds_a_plan(density, tmp_path):
    found = make_report(load_collection(density))
    (capacity,) = found.capacities
    assert len(capacity.hosts) == 6
    assert capacity.typical is not None
    assert capacity.new_host.low < capacity.typical.low <= capacity.typical.high < capacity.new_host.high
    with pytest.raises(SuiteError, match="--instances"):
        fleet_file(found, None)
    file = tmp_path / "plan.toml"
    done = tare("report", density, "--format", "fleet-file", "--instances", 300, "-o", file)
    assert done.exit_code == 0, said(done)
    content = tomllib.loads(file.read_text("utf-8"))
    assert content["host"][0]["name"] == "large"
    assert content["host"][0]["count"] == 6
    done = plan("--fleet", file)
    assert done.exit_code == 0, said(done)


def test_a_fleet_without_ramps_makes_no_file(report):
    with pytest.raises(SuiteError, match="no host measured a density ramp"):
        fleet_file(report, 10)


def test_a_plan_is_audited_by_other_hosts_and_the_coverage_is_kept(density, tmp_path):
    file = tmp_path / "plan.json"
    made_from = density / "hosts/h1" / RUN
    assert plan(made_from, "--format", "json", "--output", file).exit_code == 0
    done = tare("audit", file, density, "--format", "json")
    assert done.exit_code == 0, said(done)
    document = json.loads(done.stdout)
    assert sorted(document["audits"]) == ["h2", "h3", "h4", "h5", "h6"]
    assert document["left_out"] == {"h1": "the plan was made from this run"}
    assert any(line.startswith("memory of an instance: ") for line in document["coverage"])
    done = tare("audit", file, density, "--host", "h2")
    assert done.exit_code == 0, said(done)
    assert "of 5 within the interval" in " ".join(done.stdout.split())  # h2 counts once
    done = tare("audit", file, density, "--host", "h1")
    assert done.exit_code == 3
    assert "h1: the plan was made from this run" in " ".join(said(done).split())
    done = tare("audit", file, density, "--host", "nobody")
    assert done.exit_code == 3
    assert "no host 'nobody'" in said(done)
