"""Plug-ins come through entry points; one that fails is listed with its reason and hides none of the others."""

from importlib.metadata import EntryPoint

import pytest

from tare.bench import registry
from tare.bench.errors import UnavailableError, UnknownNameError
from tare.bench.interfaces import Workload


def with_points(monkeypatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "tare.workloads")


def test_a_failed_load_is_listed_and_the_others_work(monkeypatch):
    with_points(
        monkeypatch,
        point("good", "tests.unit.fakes:FakeWorkload"),
        point("absent", "not_a_module:Thing"),
        point("wrong", "tests.unit.fakes:FakeBackend"),
        point("half", "tare.bench.interfaces:Workload"),
    )
    plugins = registry.find_workloads()
    assert list(plugins.loaded) == ["good"]
    assert "not_a_module" in plugins.failures["absent"].reason
    assert "not a subclass of tare.bench.interfaces.Workload" in plugins.failures["wrong"].reason
    assert "does not implement commands, parse" in plugins.failures["half"].reason
    with pytest.raises(UnavailableError, match="not_a_module"):
        plugins.get("absent")


def test_an_unknown_name_is_answered_with_the_known_ones(monkeypatch):
    with_points(monkeypatch, point("good", "tests.unit.fakes:FakeWorkload"))
    with pytest.raises(UnknownNameError, match="there is no workload 'goood'; there are: good"):
        registry.find_workloads().get("goood")


def test_the_built_ins_are_registered_like_any_plug_in():
    for find, expected in (
        (
            registry.find_backends,
            {"bare-metal", "native", "vm", "runc", "crun", "docker", "bubblewrap", "gvisor", "lxc", "nspawn"},
        ),
        (
            registry.find_workloads,
            {"fio", "sysbench-cpu", "sysbench-memory", "perf-syscall", "perf-sched-pipe", "stress-ng"},
        ),
        (registry.find_reporters, {"html", "text", "json", "parquet", "pyperf"}),
    ):
        plugins = find()
        assert not plugins.failures
        assert expected <= set(plugins.loaded)


def test_every_workload_declares_what_its_metrics_are():
    for name, workload in registry.find_workloads().loaded.items():
        assert issubclass(workload, Workload)
        assert workload.name == name
        assert workload.licence
        assert workload.packages
        names = [metric.name for metric in workload.metrics]
        assert len(set(names)) == len(names) > 0
        assert all(metric.description.endswith(".") for metric in workload.metrics)


class Dist:
    """What ``EntryPoint.dist`` has of a distribution."""

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version


def brought(by: Dist, name: str, value: str) -> EntryPoint:
    found = point(name, value)
    vars(found)["dist"] = by
    return found


def test_two_plug_ins_of_one_name_are_refused_with_both_distributions(monkeypatch):
    value = "tests.unit.fakes:FakeWorkload"
    with_points(
        monkeypatch,
        brought(Dist("first", "1.0"), "same", value),
        brought(Dist("only", "3"), "good", value),
        brought(Dist("second", "2.0"), "same", value),
    )
    plugins = registry.find_workloads()
    assert list(plugins.loaded) == ["good"]
    with pytest.raises(UnavailableError, match=r"first 1\.0 and second 2\.0 both register this name"):
        plugins.get("same")


def test_a_run_names_the_distributions_of_its_plug_ins_but_not_tare_itself(monkeypatch):
    value = "tests.unit.fakes:FakeWorkload"
    with_points(
        monkeypatch,
        brought(Dist("mine", "1.2"), "good", value),
        brought(Dist("tarebench", "9"), "own", value),
        brought(Dist("other", "1"), "unused", "tests.unit.fakes:OtherWorkload"),
    )
    used = registry.find_workloads().loaded["good"]
    assert registry.origins_of({used}) == {"workload good": "mine 1.2"}
