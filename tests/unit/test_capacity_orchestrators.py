"""A plan in the schedulers' files: Kubernetes' own schemas take it, and the numbers come back out of it."""

import math
import re

import kubernetes_validate
import msgspec
import pytest
import yaml

from tare.bench.capacity.hosts import HostType, Resource
from tare.bench.capacity.orchestrators import export, overhead_of
from tare.bench.capacity.plan import plan_host
from tare.bench.errors import UnknownNameError
from tests.unit.test_capacity_plan import GIB, MIB, only, write_density

HOST = HostType("node", 16, 16 * GIB, 200 * GIB, reserve={Resource.MEMORY: 2 * GIB, Resource.CPU: 1.5})


@pytest.fixture
def plans(tmp_path):
    native = plan_host(only(write_density(tmp_path / "native")), HOST)
    guests = plan_host(only(write_density(tmp_path / "vm", accel="kvm", each=300 * MIB, touched=200 * MIB)), HOST)
    return native, guests


def documents(text):
    return list(yaml.safe_load_all(text))


def quantity(text):
    """A Kubernetes quantity in bytes or CPUs."""
    number, unit = re.fullmatch(r"(\d+)(Mi|m)", text).groups()
    return int(number) * {"Mi": MIB, "m": 0.001}[unit]


def test_kubernetes_takes_what_is_written(plans):
    found = documents(export(plans, "kubernetes"))
    assert [one["kind"] for one in found] == ["RuntimeClass", "KubeletConfiguration"] * 2
    for one in found[::2]:
        kubernetes_validate.validate(one, "1.33", strict=True)


KUBELET = {
    "apiVersion": str,
    "kind": str,
    "maxPods": int,
    "systemReserved": dict,
    "kubeReserved": dict,
    "evictionHard": dict,
}
"""Fields of KubeletConfiguration that are written, with what they hold: ``map[string]string``, ``int32``. Read from
staging/src/k8s.io/kubelet/config/v1beta1/types.go of kubernetes/kubernetes at 001332b0: its schema is in no package."""
RESERVED = {"cpu", "memory", "ephemeral-storage", "pid"}
DEFAULT_EVICTIONS = {"nodefs.available": "10%", "nodefs.inodesFree": "5%", "imagefs.available": "15%"}
"""A kubelet's, if nothing is stated (same file, ``evictionHard``); once one signal is stated, the others are 0."""


def test_the_kubelet_s_fields_are_those_of_its_types(plans):
    for one in documents(export(plans, "kubernetes"))[1::2]:
        assert one["apiVersion"] == "kubelet.config.k8s.io/v1beta1"
        assert {name: type(value) for name, value in one.items()} == {name: KUBELET[name] for name in one}
        for name in ("systemReserved", "evictionHard"):
            assert all(isinstance(value, str) for value in one[name].values()), one[name]
        assert one["systemReserved"].keys() <= RESERVED
        assert 0 < one["maxPods"] < 2**31


def test_a_threshold_for_memory_leaves_those_for_disks(plans):
    for one in documents(export(plans, "kubernetes"))[1::2]:
        assert quantity(one["evictionHard"]["memory.available"]) >= 100 * MIB
        assert {name: one["evictionHard"].get(name) for name in DEFAULT_EVICTIONS} == DEFAULT_EVICTIONS


def test_the_numbers_come_back(plans):
    for plan, (runtime, kubelet) in zip(
        plans, zip(*[iter(documents(export(plans, "kubernetes")))] * 2, strict=True), strict=True
    ):
        overhead = overhead_of(plan.type)
        fixed = runtime["overhead"]["podFixed"]
        assert 0 <= quantity(fixed["memory"]) - overhead.memory < MIB
        assert 0 <= quantity(fixed["cpu"]) - overhead.cpu < 0.001
        assert kubelet["maxPods"] == plan.fewest
        reserved = kubelet["systemReserved"]
        assert quantity(reserved["memory"]) == 2 * GIB
        assert quantity(reserved["cpu"]) == 1.5
        assert quantity(reserved["ephemeral-storage"]) == 20 * GIB


def test_overhead_is_the_upper_end_of_what_is_beyond_the_limit(plans):
    guests = plans[1].type
    (need,) = (one for one in guests.needs if one.resource is Resource.MEMORY and one.by_limit)
    assert overhead_of(guests).memory == need.each.high - guests.limits.memory
    assert overhead_of(guests).memory > 90 * MIB, "300 MiB each, of which 200 are the guest's RAM"


def test_an_emulator_s_cpu_is_no_overhead_of_a_cluster(tmp_path):
    emulated = plan_host(only(write_density(tmp_path / "tcg", accel="tcg")), HOST)
    text = export([emulated], "kubernetes")
    assert "cpu" not in documents(text)[0]["overhead"]["podFixed"]
    assert "emulator's CPU figures carry over to no other host" in text


def test_an_extrapolation_is_no_limit_of_pods(tmp_path):
    kind = only(write_density(tmp_path / "native", each=MIB))
    plan = plan_host(kind, HOST)
    assert plan.is_extrapolated
    text = export([plan], "kubernetes")
    assert "maxPods" not in documents(text)[1]
    assert f"--count {math.ceil(plan.instances / 10)}" in text
    assert "max_allocations is left out" in export([plan], "nomad")


def test_nomad_and_systemd_reserve_the_same(plans):
    nomad, systemd = export(plans[:1], "nomad"), export(plans[:1], "systemd")
    assert f"memory = {2 * 1024}" in nomad
    assert f"max_allocations = {plans[0].fewest}" in nomad
    assert f"MemoryMax={14 * 1024}M" in systemd
    assert "CPUQuota=1450%" in systemd


def test_a_name_cannot_end_a_comment_or_break_the_form(plans):
    kind = msgspec.structs.replace(plans[0].type, name="x\nkind: Evil", run="a\n---\nb")
    found = documents(export([plan_host(kind, HOST)], "kubernetes"))
    assert [one["kind"] for one in found] == ["RuntimeClass", "KubeletConfiguration"]
    assert found[0]["metadata"]["name"] == "x-kind-evil"


def test_an_unknown_form_names_those_there_are(plans):
    with pytest.raises(UnknownNameError, match="kubernetes, nomad, systemd"):
        export(plans, "swarm")
