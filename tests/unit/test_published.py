"""Published figures: they stand beside the same work only, and never beside an emulated guest."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tare.bench.analysis import analyse
from tare.bench.model import Direction, Metric
from tare.bench.registry import find_workloads
from tare.bench.store import load_run
from tare.bench.units import Unit
from tare.reports.html import render_page
from tare.reports.published import PUBLISHED, load_published, published_views
from tests.synthetic import QUICK, Subject, write_run

READS = Metric("read.iops", Unit.OPERATIONS_PER_SECOND, Direction.HIGHER, "Blocks read in a second")
RANDOM = {"rw": "randread", "block_size": 4096, "io_depth": 16, "engine": "libaio", "size": "64MiB"}


def analysed(folder, params, *, accel="tcg"):
    subject = Subject("fio", params, ((READS, 48_200.0, -0.8),), 1.0)
    run = write_run(folder / "run", replace(QUICK, subjects=(subject,), iterations=2))
    content = json.loads((run / "manifest.json").read_text("utf-8"))
    content["backends"]["vm"]["kind"] = {"tcg": "emulated", "kvm": "virtual-machine"}[accel]
    (run / "manifest.json").write_text(json.dumps(content), "utf-8")
    return analyse(load_run(run))


def test_the_ratio_there_is_of_the_printed_values(tmp_path):
    ((_, lines),) = published_views(analysed(tmp_path, RANDOM, accel="kvm"))
    there = {line.backend.split()[0]: line.there for line in lines}
    assert there == {"native": f"−{100 * (1 - 58407 / 58729):.1f} %", "vm": f"÷{58729 / 24793:.1f}"}
    assert all(line.here[0] in "+−×÷0" and " to " in line.here_range for line in lines)


def test_an_emulated_guest_stands_beside_no_figure(tmp_path):
    ((_, lines),) = published_views(analysed(tmp_path, RANDOM))
    guest = next(line for line in lines if line.backend.startswith("vm"))
    assert (guest.there, guest.note) == ("", "Emulated here, under KVM there: not to be compared.")


@pytest.mark.parametrize(
    "change",
    [
        {"rw": "randwrite"},
        {"io_depth": 1},
        {"block_size": "8KiB"},
        {"block_size": 4},
        {"block_size": "some"},
        {"engine": "io_uring"},
        {"direct": False},
        {"fsync": 1},
    ],
)
def test_other_work_has_no_figure(tmp_path, change):
    assert published_views(analysed(tmp_path, RANDOM | change)) == []


def test_the_page_shows_them_with_their_source(tmp_path):
    page = render_page(analysed(tmp_path, RANDOM))
    assert 'id="published"' in page
    assert "RC25482" in page
    assert "58407 against 58729" in page


def test_every_figure_is_of_a_metric_that_its_workload_has():
    workloads = find_workloads().loaded
    content = load_published()
    for figure in content.figure:
        workload = workloads[figure.workload]
        assert figure.metric in {metric.name for metric in workload.metrics}, figure.what
        names = {field.encode_name for field in msgspec.structs.fields(workload.Params)} | {"server"}
        assert figure.params.keys() | figure.at_least.keys() <= names, figure.what
        assert figure.bare_metal > 0
    assert {figure.study for figure in content.figure} == {study.id for study in content.study}


def test_defaults_are_those_of_the_workloads_and_cover_what_figures_name():
    workloads, content = find_workloads().loaded, load_published()
    for name, defaults in content.defaults.items():
        fields = {field.encode_name: field.default for field in msgspec.structs.fields(workloads[name].Params)}
        assert {key: str(fields[key]) for key in defaults} == {key: str(value) for key, value in defaults.items()}
    for figure in content.figure:
        stated = figure.params.keys() | figure.at_least.keys()
        own = (
            stated
            - {"server", "rw", "block_size", "read_percent"}
            - ({"clients"} if figure.workload == "redis" else set())
        )
        assert own <= content.defaults.get(figure.workload, {}).keys(), figure.what


def test_figures_of_eight_jobs_stand_beside_eight_cpus_only(tmp_path):
    analysis = analysed(tmp_path, RANDOM, accel="kvm")
    manifest = analysis.run.manifest
    for cpus, there in ((1, f"÷{58729 / 24793:.1f}"), (8, f"−{100 * (1 - 42543 / 84044):.0f} %")):
        envelope = msgspec.structs.replace(manifest.envelope, cpus=tuple(range(cpus)))
        with_cpus = msgspec.structs.replace(analysis.manifest, envelope=envelope)
        ((_, lines),) = published_views(replaced_manifest(analysis, with_cpus))
        assert [line.there for line in lines if line.backend.startswith("vm")] == [there]
    envelope = msgspec.structs.replace(manifest.envelope, cpus=(0, 1))
    assert published_views(replaced_manifest(analysis, msgspec.structs.replace(manifest, envelope=envelope))) == []


def replaced_manifest(analysis, manifest):
    return msgspec.structs.replace(analysis, run=msgspec.structs.replace(analysis.run, manifest=manifest))


def test_a_file_of_another_size_is_told(tmp_path):
    ((_, lines),) = published_views(analysed(tmp_path, RANDOM, accel="kvm"))
    assert all("a file of 16GiB, here 64MiB" in line.note for line in lines)
    ((_, lines),) = published_views(analysed(tmp_path / "large", RANDOM | {"size": "16384MiB"}, accel="kvm"))
    assert all("a file of" not in line.note for line in lines)


def test_a_figure_of_no_study_is_refused(tmp_path):
    content = PUBLISHED.read_text("utf-8").replace('id = "felter2014"', 'id = "other"')
    (path := tmp_path / "published.toml").write_text(content, "utf-8")
    with pytest.raises(ValueError, match="there is no study 'felter2014'"):
        load_published(path)


def test_the_suite_asks_for_every_figure():
    suite = tomllib.loads((Path(__file__).parents[2] / "suites" / "felter2014.toml").read_text("utf-8"))
    steady = [one for one in suite["experiment"] if one["kind"] == "steady"]
    content = load_published()
    for figure in content.figure:
        assert any(
            one["workload"] == figure.workload
            and figure.params.items()
            <= (content.defaults.get(figure.workload, {}) | one.get("params", {}) | one.get("options", {})).items()
            and all(one.get("params", {}).get(name, 0) >= least for name, least in figure.at_least.items())
            for one in steady
        ), figure.what
