"""Everything that is tested with emulated guests, with guests under KVM: ``nox -s kvm``, an hour on two cores.

Tests that say why they do not apply under KVM are listed with their reason.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.kvm.conftest import CHECKOUT, EVERYTHING, REAL, start_kvm_host

pytestmark = [
    *(pytest.mark.kvm, pytest.mark.root, pytest.mark.tools, pytest.mark.image, pytest.mark.guest),
    pytest.mark.skipif(not EVERYTHING, reason="an hour of guests under KVM: nox -s kvm"),
]

SUITES = Path(__file__).parent / "suites"
CONTRACT = "tests/contract --tare-backend vm --tare-option accel=kvm"
GROUPS = {
    "contract": (CONTRACT, 1200),
    "options": ("tests/privileged/test_vm_options.py", 1800),
    "guests": ("tests/privileged/test_vm_guests.py", 3600),
    "network": ("tests/privileged/test_vm_network.py", 1800),
    "profiles": ("tests/privileged/test_vm_profiles.py", 3600),
    "microvm": ("tests/kvm/inside/checks_microvm.py", 1800),
}
# The ready suite, as short as it goes: nothing of how its instances are made is changed.
SHORTER = (("blocks = 10", "blocks = 1"), ("iterations = 3", "iterations = 1"), ("warmup = 1", "warmup = 0"))
HUGE_PAGES = 300


@pytest.mark.parametrize("group", GROUPS)
def test_what_passes_emulated_passes_under_kvm(kvm_host, group):
    arguments, timeout_s = GROUPS[group]
    kvm_host.pytest(arguments, timeout_s=timeout_s)


def measured(kvm_host, suite, file=None):
    """The summary of a run of a suite, made there."""
    run = kvm_host.folder / f"run-{suite}"
    file = file or SUITES / f"{suite}.toml"
    kvm_host.tare(f"run {file} -o {run} --no-report", timeout_s=3600)
    return json.loads(kvm_host.tare(f"report -f json -o - {run}", timeout_s=300))


@pytest.mark.parametrize("suite", ["density", "limits", "interference"])
def test_experiments_under_kvm(kvm_host, suite):
    summary = measured(kvm_host, suite)
    assert (summary["status"], summary["failures"]) == ("complete", [])
    assert summary["backends"]["vm"]["label"] == "vm (kvm)"
    assert {result["backend"] for result in summary["results"]} >= {"native", "vm"}


def test_a_start_takes_what_qemu_takes(kvm_host):
    """Against the same QEMU by hand, alternating; the bar is 1.15."""
    ran = kvm_host.run(f"{sys.executable} benchmarks/vm_start.py --rounds 5 --without-naive --json", timeout_s=2400)
    assert ran.code == 0, ran.err
    measured = json.loads(ran.out)
    sys.stdout.write(ran.out)
    assert measured["accel"] == "kvm"
    assert measured["ratios"]["qemu-by-hand"] <= 1.15, measured["times_s"]


def test_a_quickstart_names_kvm_nested_and_decides_nothing(kvm_host):
    summary = measured(kvm_host, "quickstart", CHECKOUT / "suites/quickstart.toml")
    assert summary["backends"]["vm"]["label"] == "vm (kvm)"
    assert {"host-emulated", "nested-virtualization"} <= {caveat["code"] for caveat in summary["caveats"]} or REAL
    assert REAL or {claim["verdict"] for claim in summary["claims"]} == {"not measured here"}


@pytest.fixture
def huge_pages(kvm_host):
    """As many as a guest of the suite ``server`` needs, reserved for the time of one test."""
    setting = "/proc/sys/vm/nr_hugepages"
    before = int(kvm_host.run(f"cat {setting}", timeout_s=60).out)
    kvm_host.run(f"echo {before + HUGE_PAGES} >{setting}", timeout_s=120)
    yield
    kvm_host.run(f"echo {before} >{setting}", timeout_s=120)


def test_the_suite_of_a_server_runs_as_it_is(kvm_host, huge_pages):
    """Host-passthrough, huge pages, io_uring, a tap with vhost, q35: what a good server has."""
    text = (CHECKOUT / "suites/server.toml").read_text()
    for long, short in SHORTER:
        assert text.count(long) == 1
        text = text.replace(long, short)
    file = kvm_host.folder / "server.toml"
    kvm_host.run(f"cat >{file} <<'END'\n{text}END", timeout_s=60)
    summary = measured(kvm_host, "server", file)
    assert (summary["status"], summary["failures"]) == ("complete", [])
    guest = summary["backends"]["vm"]
    assert guest["label"] == "vm (kvm)"
    facts = guest["facts"]
    wanted = {"machine": "q35", "cpu_model": "host-passthrough", "memory_backing": "hugepages"}
    assert {name: facts[name] for name in wanted} == wanted
    assert "io_uring" in facts["scratch_disk"]
    assert facts["packets_moved_by"] == "vhost"
    assert {result["backend"] for result in summary["results"]} == {"bare-metal", "native", "vm"}


def test_a_host_is_told_from_afar(kvm_host):
    text = kvm_host.tare("doctor --report -", timeout_s=600)
    for wanted in ("outcome: a guest booted under KVM in", "Linux version", "tare: init ", "kvm_amd.npt: "):
        assert wanted in text or (REAL and "kvm_amd" in wanted), wanted


def test_writes_are_counted_on_cgroups_v1(image, tmp_path_factory):
    """On Linux 6.1, whose blkio counts a direction by a rule for it."""
    if REAL:
        pytest.skip("this host's cgroups are what they are")
    with start_kvm_host(cgroups="v1") as host:
        kvm = host.pytest("tests/kvm/inside/checks_smallest.py", timeout_s=900)
    assert "2 passed" in kvm
