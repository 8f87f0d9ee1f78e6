"""Every metric and parameter has a human name, and runs of any age are shown with it."""

import re

import msgspec
import pytest

from tare.bench.analysis import analyse
from tare.bench.model import Direction, Metric
from tare.bench.registry import find_experiments, find_workloads
from tare.bench.store import load_run
from tare.bench.traits import Parameter, WorkloadTraits
from tare.bench.units import Unit
from tare.reports.names import Names, names_of
from tests.synthetic import write_run

WORKLOADS = find_workloads().loaded


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_a_workload_declares_has_human_names(name):
    workload = WORKLOADS[name]
    parameters = {one.name for one in workload.parameters}
    assert workload.title
    assert parameters == set(workload.Params.__struct_fields__)
    titles = [metric.title for metric in workload.metrics]
    assert all(titles)
    assert len(set(titles)) == len(titles)
    placed = {place for title in titles for place in re.findall(r"\{(\w+)\}", title)}
    assert placed <= parameters


def test_what_an_experiment_declares_has_human_names():
    for name, experiment in find_experiments().loaded.items():
        assert all(metric.title for metric in experiment.metrics), name


def test_a_title_takes_its_parameters_in_words(tmp_path):
    manifest = load_run(write_run(tmp_path / "run")).manifest
    traits = WorkloadTraits(
        manifest.workloads["fio"].category, True, "Disk (fio)", (Parameter("rw", "Access", {"randread": "random"}),)
    )
    names = Names(msgspec.structs.replace(manifest, workloads={"fio": traits}))
    metric = Metric("iops", Unit.OPERATIONS_PER_SECOND, Direction.HIGHER, "", "{rw} {block_size} reads per second")
    given = {"rw": "randread", "block_size": "4KiB"}
    assert names.metric_of("steady", "fio", given, metric) == "Random 4 KiB reads per second"
    assert names.metric_of("steady", "unheard-of", {}, metric) == "Reads per second"
    assert names.params_of("steady", "fio", given) == [("Access", "random"), ("block_size", "4 KiB")]
    assert names.subject_of("steady", "fio") == "Disk (fio)"


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_title_takes_the_default_of_what_a_suite_does_not_state(name, tmp_path):
    """No ``Bytes of per second``: of parameters that have no default a suite states the value."""
    names = Names(load_run(write_run(tmp_path / "run")).manifest)
    workload = WORKLOADS[name]
    defaults = {one.name: one.default for one in msgspec.structs.fields(workload.Params)}
    for metric in workload.metrics:
        for place in re.findall(r"\{(\w+)\}", metric.title):
            if defaults[place] is not msgspec.NODEFAULT:
                stated = names.metric_of("steady", name, {place: defaults[place]}, metric)
                assert names.metric_of("steady", name, {}, metric) == stated
                assert "of per" not in stated


def test_parameters_that_read_the_same_tell_nobody_apart(tmp_path):
    run = load_run(write_run(tmp_path / "run"))
    subject = next(one for one in analyse(run).subjects if one.workload == "fio")
    random = [msgspec.structs.replace(subject, params={**subject.params, "rw": rw}) for rw in ("randread", "randwrite")]
    in_order = msgspec.structs.replace(subject, params={**subject.params, "rw": "read"})
    names = Names(run.manifest)
    assert names.told_apart(random[0], random) == ""
    assert "random" in names.told_apart(random[0], [*random, in_order])


def test_a_run_from_before_there_were_names_has_them_of_todays_plug_ins(tmp_path):
    analysis = analyse(load_run(write_run(tmp_path / "run")))
    names = names_of(analysis)
    shown = {(subject.workload, row.metric.name): names.row(subject, row) for subject, row in analysis.rows}
    assert shown["", "boot.total"] == "Time to start"
    assert shown["fio", "read.latency.p99"] == "Read latency, 99th percentile"
    # The synthetic workload has a metric that sysbench does not: its id has to do.
    assert shown["sysbench-cpu", "events"] == "sysbench-cpu events"
