"""``config.json``: against what the runtimes' own ``spec`` commands make (captured), and against the envelope."""

import json
from pathlib import Path

import pytest

from tare.backends.engines.oci_config import Bind, Plan, make_config, make_seccomp
from tare.backends.native.seccomp import DEFAULT_CAPABILITIES, allowed_calls

DATA = Path(__file__).parents[1] / "data"
SPECS = {name: json.loads((DATA / name / "spec.json").read_text()) for name in ("runc-1.1.5", "crun-1.8.1")}
CAPABILITIES = tuple(dict(DEFAULT_CAPABILITIES).values())
LIMITS = {
    "cpus": (1, 3),
    "cpu_quota": 0.5,
    "cpu_weight": 50,
    "memory_bytes": 2**28,
    "pids_max": 77,
    "io_device": "254:16",
    "io_write_bytes_per_s": 1_000_000,
    "io_read_ops_per_s": 30,
}


def plan(**more):
    given = {
        "root": "/work/root",
        "argv": ("/.tare/program", "live"),
        "hostname": "tare-1",
        "cgroup": "/tare-1/container",
        "limits": LIMITS,
        "binds": (Bind("/work/given", "/.tare", read_only=True), Bind("/work/scratch", "/scratch")),
        "capabilities": CAPABILITIES,
    }
    return Plan(**{**given, **more})


@pytest.mark.parametrize("name", SPECS)
def test_it_has_every_part_of_what_the_runtimes_make_themselves(name):
    theirs, ours = SPECS[name], make_config(plan())
    assert set(theirs) <= set(ours)
    assert set(theirs["process"]) - {"rlimits"} <= set(ours["process"]), "limits on files are inherited"
    assert set(theirs["linux"]) <= set(ours["linux"])
    mounts = {mount["destination"]: mount for mount in ours["mounts"]}
    for mount in theirs["mounts"]:
        assert mounts[mount["destination"]]["type"] == mount["type"]
        assert set(mounts[mount["destination"]]["options"]) == set(mount.get("options", mounts["/proc"]["options"])), (
            mount
        )
    have = {namespace["type"] for namespace in ours["linux"]["namespaces"]}
    assert {namespace["type"] for namespace in theirs["linux"]["namespaces"]} <= have
    assert set(theirs["linux"]["maskedPaths"]) <= set(ours["linux"]["maskedPaths"])
    assert set(theirs["linux"]["readonlyPaths"]) == set(ours["linux"]["readonlyPaths"])
    assert theirs["linux"]["resources"]["devices"] == ours["linux"]["resources"]["devices"]
    assert ours["ociVersion"].split(".")[:2] == theirs["ociVersion"].split(".")[:2]


def test_what_differs_on_purpose():
    ours, theirs = make_config(plan()), SPECS["runc-1.1.5"]
    assert ours["process"]["terminal"] is not theirs["process"]["terminal"]
    assert ours["root"] == {"path": "/work/root", "readonly": False}
    assert set(theirs["process"]["capabilities"]["bounding"]) < set(ours["process"]["capabilities"]["bounding"])
    assert ours["process"]["capabilities"]["ambient"] == []
    assert "seccomp" in ours["linux"]
    assert "seccomp" not in theirs["linux"]


def test_the_envelope_in_the_units_of_the_specification():
    resources = make_config(plan())["linux"]["resources"]
    assert resources["cpu"] == {"cpus": "1,3", "quota": 50_000, "period": 100_000, "shares": 512}
    assert resources["memory"] == {"limit": 268_435_456}
    assert resources["pids"] == {"limit": 77}
    assert resources["blockIO"] == {
        "throttleWriteBpsDevice": [{"major": 254, "minor": 16, "rate": 1_000_000}],
        "throttleReadIOPSDevice": [{"major": 254, "minor": 16, "rate": 30}],
    }


def test_what_is_not_limited_is_left_out():
    assert make_config(plan(limits={"cpus": (0,)}))["linux"]["resources"] == {
        "devices": [{"allow": False, "access": "rwm"}],
        "cpu": {"cpus": "0"},
    }


@pytest.mark.parametrize(
    ("network", "expected"), [("", [{"type": "network"}]), (None, []), ("/n", [{"type": "network", "path": "/n"}])]
)
def test_networks(network, expected):
    namespaces = make_config(plan(network=network))["linux"]["namespaces"]
    assert [namespace for namespace in namespaces if namespace["type"] == "network"] == expected


def test_the_folders_of_tare_inside():
    binds = [mount for mount in make_config(plan())["mounts"] if mount["type"] == "bind"]
    assert [(mount["source"], mount["destination"], "ro" in mount["options"]) for mount in binds] == [
        ("/work/given", "/.tare", True),
        ("/work/scratch", "/scratch", False),
    ]


def test_the_filter_is_that_of_tares_own_containers():
    found = make_seccomp(CAPABILITIES, "x86_64")
    assert found["defaultAction"] == "SCMP_ACT_ERRNO"
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    plain = next(rule for rule in found["syscalls"] if "args" not in rule and rule["action"] == "SCMP_ACT_ALLOW")
    assert set(plain["names"]) == set(allowed_calls(CAPABILITIES))
    clone = next(rule for rule in found["syscalls"] if rule["names"] == ["clone"])
    assert clone["args"] == [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    clone3 = next(rule for rule in found["syscalls"] if rule["names"] == ["clone3"])
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    assert not any("io_uring_setup" in rule["names"] for rule in found["syscalls"])


def test_without_a_filter():
    assert "seccomp" not in make_config(plan(seccomp=False))["linux"]
