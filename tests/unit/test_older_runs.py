import pytest

from tare.bench.model import IsolationKind
from tare.bench.records import SCHEMA_VERSION
from tare.bench.stored import upgraded


@pytest.mark.parametrize(
    ("section", "facts", "kind"),
    [
        ({"type": "vm", "name": "b"}, {"accel": "tcg"}, IsolationKind.EMULATED),
        ({"type": "vm", "name": "b"}, {"accel": "kvm"}, IsolationKind.VIRTUAL_MACHINE),
        ({"type": "native", "name": "b"}, {}, IsolationKind.CONTAINER),
        ({"type": "bare-metal", "name": "b"}, {"namespaces": "mnt"}, IsolationKind.BARE_METAL),
        ({"type": "b"}, {"namespaces": "mnt, pid, ipc, uts"}, IsolationKind.CONTAINER),
        ({"type": "b"}, {}, IsolationKind.SANDBOX),
    ],
)
def test_the_kind_of_a_backend_of_schema_1_is_told_by_its_facts_and_its_type(section, facts, kind):
    raw = {
        "schema_version": 1,
        "host": [],
        "suite": {"backend": [section]},
        "backends": {"b": {"label": "B", "facts": facts}},
    }
    (found,) = upgraded(raw)["backends"].values()
    assert found["kind"] == kind
    assert found.get("accelerator", "") == facts.get("accel", "")
    assert upgraded(raw)["schema_version"] == SCHEMA_VERSION


def test_a_run_from_before_there_were_traits_has_those_of_the_built_ins():
    raw = {"schema_version": 1, "host": [], "suite": {}, "backends": {}}
    known = upgraded(raw)
    assert known["experiments"]["density"]["grows_with"] == "instances alive"
    assert known["workloads"]["fio"] == {"category": "storage", "fixed_time": True}
    stated = {"category": "network", "fixed_time": False}
    assert upgraded(raw | {"workloads": {"fio": stated}})["workloads"]["fio"] == stated
