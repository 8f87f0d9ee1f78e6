"""Claims: each one can hold, fail, stay undecided and be not measured, and emulation never decides one about KVM."""

import json
from dataclasses import replace

import msgspec
import pytest

from tare.bench.analysis import analyse
from tare.bench.model import Confound
from tare.bench.records import Event, EventKind, Sample
from tare.bench.store import load_run
from tare.bench.units import Unit
from tare.reports.claim_entries import Kind, kinds_of
from tare.reports.claims import Answer, ClaimVerdict, Rule, evaluate, judge, load_claims
from tests.synthetic import QUICK, SUBJECTS, write_run

SMALL = replace(QUICK, subjects=SUBJECTS[:1], iterations=2)
MIB, GIB = 2**20, 2**30
TREE = 400 * MIB


@pytest.fixture
def make(tmp_path):
    """A run with further samples, and with changes to its manifest."""

    def make(recipe=SMALL, *, samples=(), events=(), accel="tcg", change=None):
        run = write_run(tmp_path / "run", recipe)
        content = json.loads((run / "manifest.json").read_text("utf-8"))
        if "vm" in content["backends"]:
            content["backends"]["vm"]["kind"] = {"tcg": "emulated", "kvm": "virtual-machine"}[accel]
            content["backends"]["vm"]["label"] = f"vm ({accel})"
        content["image"]["sizes"] = {"rootfs": TREE, "disk": 170 * MIB, "kernel": 14 * MIB, "initramfs": 2 * MIB}
        for name, text, number in (("memory", "16.0 GiB", 2**34), ("cpus", "2", 2)):
            content["host"].append({"name": name, "text": text, "number": number})
        if change:
            change(content)
        (run / "manifest.json").write_text(json.dumps(content), "utf-8")
        for name, records in (("samples", samples), ("events", events)):
            with (run / f"{name}.jsonl").open("ab") as file:
                file.writelines(msgspec.json.encode(record) + b"\n" for record in records)
        return analyse(load_run(run))

    return make


def measured(experiment, metric, unit, by_backend, *, iteration=0, blocks=5, spread=0.001):
    """One sample a block for each backend, near to a value."""
    return [
        Sample(
            instance=f"{experiment}-{backend}-{block}",
            block=block,
            experiment=experiment,
            workload="",
            params={},
            backend=backend,
            metric=metric,
            unit=unit,
            value=value * (1 + spread * (block - blocks // 2)),
            iteration=iteration,
            warmup=False,
        )
        for backend, value in by_backend.items()
        for block in range(blocks)
    ]


def claim(analysis, identifier):
    return next(one for one in judge(analysis) if one.id == identifier)


def stopped(backend, reason, resource=""):
    details = {"code": "density-stop", "reason": reason, "resource": resource, "population": 700}
    return Event(EventKind.NOTE, 1.0, "", f"density-{backend}-0", f"density/{backend}", "the ramp ended", details)


def test_all_twelve_are_there_with_a_source():
    claims = load_claims()
    assert len(claims) == len({one.id for one in claims}) == 12
    assert all(one.source and one.rule for one in claims)


@pytest.mark.parametrize("text", ["above = 1\nbelow = 2", "", 'above = 1\nquantity = "slowdown"', "above = 1\nx = 2"])
def test_a_rule_that_makes_no_sense_is_refused(tmp_path, text):
    path = tmp_path / "claims.toml"
    path.write_text(f'[[claim]]\nid = "a"\nstatement = "b"\nsource = "c"\n[[claim.rule]]\nsays = "d"\n{text}\n')
    with pytest.raises(ValueError, match="rule"):
        load_claims(path)


def test_what_a_backend_is(make):
    manifest = make().manifest
    assert kinds_of(manifest, "bare-metal") == {Kind.BARE_METAL}
    assert kinds_of(manifest, "native") == {Kind.CONTAINER}
    assert kinds_of(manifest, "vm") == {Kind.VM, Kind.EMULATED_VM}
    assert kinds_of(manifest, "nobody") == frozenset()


def test_emulation_decides_no_claim_about_a_guest_s_speed(make):
    analysis = make()
    for identifier in ("start-time", "emulation-cost"):
        found = claim(analysis, identifier)
        assert found.verdict is ClaimVerdict.NOT_MEASURED
        assert "under emulation (TCG)" in found.reason
    half = claim(analysis, "start-time").parts[0]
    assert half.answer is Answer.YES
    assert "native" in half.figures[0]


def test_kvm_on_an_emulated_host_decides_no_claim(make):
    here = make(accel="kvm")
    confound = Confound("host-emulated", "the host's own processor is emulated in software")
    manifest = msgspec.structs.replace(here.manifest, confounds=(*here.manifest.confounds, confound))
    assert kinds_of(manifest, "vm") == {Kind.VM, Kind.EMULATED_VM}
    there = analyse(msgspec.structs.replace(here.run, manifest=manifest))
    assert {one.verdict for one in judge(there)} == {ClaimVerdict.NOT_MEASURED}
    assert "emulated in software" in claim(there, "near-native").reason
    assert {one.verdict for one in judge(here)} > {ClaimVerdict.NOT_MEASURED}


def test_start_times_under_kvm(make):
    found = claim(make(accel="kvm"), "start-time")
    assert found.verdict is ClaimVerdict.HELD
    assert "Start and stop: Time to start on vm (kvm): 4." in found.reason


def test_a_fast_guest_refutes_that_guests_need_seconds(make):
    samples = measured("boot", "boot.total", Unit.SECOND, {"native": 0.01, "vm": 0.125})
    recipe = replace(SMALL, failing=SMALL.backends)
    assert claim(make(recipe, samples=samples, accel="kvm"), "start-time").verdict is ClaimVerdict.DID_NOT_HOLD


@pytest.mark.parametrize(
    ("ratio", "noise", "verdict"),
    [
        (1.0, 0.003, ClaimVerdict.HELD),
        (1.3, 0.003, ClaimVerdict.DID_NOT_HOLD),
        (1.05, 0.02, ClaimVerdict.UNDECIDED),
    ],
)
def test_near_native(make, ratio, noise, verdict):
    recipe = replace(SMALL, ratios={"native": ratio, "vm": 8.8}, noise=noise)
    assert claim(make(recipe), "near-native").verdict is verdict


def test_near_native_needs_bare_metal(make):
    found = claim(make(replace(SMALL, backends=("native", "vm"))), "near-native")
    assert found.verdict is ClaimVerdict.NOT_MEASURED
    assert "bare metal was not measured" in found.reason


def test_emulation_against_kvm_needs_both(make):
    def name_it(content):
        kvm = json.loads(json.dumps(content["backends"]["vm"]))
        kvm["kind"], kvm["label"] = "virtual-machine", "fast (kvm)"
        content["backends"]["fast"] = kvm

    recipe = replace(SMALL, backends=("bare-metal", "vm", "fast"), ratios={"vm": 8.8, "fast": 1.1}, noise=0.003)
    found = claim(make(recipe, change=name_it), "emulation-cost")
    assert found.verdict is ClaimVerdict.HELD
    assert "vm (tcg) against fast (kvm)" in found.reason


@pytest.mark.parametrize(
    ("population", "stop", "verdict"),
    [
        (2500, stopped("native", "count"), ClaimVerdict.HELD),
        (700, stopped("native", "count"), ClaimVerdict.NOT_MEASURED),
        (700, stopped("native", "memory-floor", "memory"), ClaimVerdict.DID_NOT_HOLD),
    ],
)
def test_thousands_fail_only_where_something_ran_out(make, population, stop, verdict):
    samples = measured("density", "density.population", Unit.COUNT, {"native": population}, blocks=1)
    assert claim(make(samples=samples, events=[stop]), "thousands").verdict is verdict


def test_disk_is_the_ramp_s_last_total_for_each(make):
    def ramp(container, guest):
        return [
            sample
            for number in (1, 50)
            for sample in measured(
                "density",
                "density.disk_owned",
                Unit.BYTE,
                {"native": container * number, "vm": guest * number},
                iteration=number,
            )
        ]

    samples = ramp(20 * 1024, 200 * MIB)
    assert claim(make(samples=samples), "disk-cost").verdict is ClaimVerdict.HELD


def test_disk_that_guests_share_fails_the_claim(make):
    samples = measured("density", "density.disk_owned", Unit.BYTE, {"native": 8e5, "vm": 5e6}, iteration=50)
    found = claim(make(samples=samples), "disk-cost")
    assert found.verdict is ClaimVerdict.DID_NOT_HOLD
    assert found.parts[0].answer is Answer.YES
    assert found.parts[1].answer is Answer.NO


@pytest.mark.parametrize(
    ("guest", "accel", "verdict"),
    [
        (500 * MIB, "kvm", ClaimVerdict.HELD),
        (260 * MIB, "kvm", ClaimVerdict.DID_NOT_HOLD),
        (260 * MIB, "tcg", ClaimVerdict.DID_NOT_HOLD),
        (500 * MIB, "tcg", ClaimVerdict.NOT_MEASURED),
    ],
)
def test_memory_in_advance(make, guest, accel, verdict):
    samples = measured("boot", "boot.pss", Unit.BYTE, {"native": 2 * MIB, "vm": guest})
    found = claim(make(samples=samples, accel=accel), "memory-in-advance")
    assert found.verdict is verdict
    if accel == "tcg" and verdict is ClaimVerdict.NOT_MEASURED:
        assert "emulation, which adds to it" in found.reason


def test_two_gigabytes(make):
    found = claim(make(), "two-gigabytes")
    assert found.verdict is ClaimVerdict.DID_NOT_HOLD
    assert "512 MiB" in found.reason


def roomy(content):
    content["envelope"]["memory_bytes"] = 4 * GIB


def test_two_gigabytes_that_nobody_undercut(make):
    found = claim(make(change=roomy), "two-gigabytes")
    assert found.verdict is ClaimVerdict.NOT_MEASURED
    assert "nothing below was tried" in found.reason


def test_two_gigabytes_by_bisection(make):
    samples = measured("limits", "limits.workload_memory", Unit.BYTE, {"vm": 3 * GIB})
    assert claim(make(samples=samples, change=roomy), "two-gigabytes").verdict is ClaimVerdict.HELD


def saw(backend, kernel):
    details = {"code": "limits-seen", "kernel": kernel}
    return Event(EventKind.NOTE, 1.0, "", f"limits-{backend}-0", f"limits/{backend}", "a program inside sees", details)


@pytest.mark.parametrize(
    ("memory", "guest_kernel", "verdict"),
    [
        (32.0, "6.1.0-cloud", ClaimVerdict.HELD),
        (1.0, "6.1.0-cloud", ClaimVerdict.DID_NOT_HOLD),
        (32.0, "6.18.0", ClaimVerdict.NOT_MEASURED),
    ],
)
def test_own_kernel_and_resources(make, memory, guest_kernel, verdict):
    samples = [
        *measured("limits", "limits.memory_seen", Unit.RATIO, {"native": memory, "vm": 0.94}),
        *measured("limits", "limits.cpus_seen", Unit.RATIO, {"native": 2.0, "vm": 1.0}, spread=0),
    ]
    events = [saw("native", "6.18.0"), saw("vm", guest_kernel)]
    found = claim(make(samples=samples, events=events), "own-kernel")
    assert found.verdict is verdict
    assert f"vm (tcg): Linux {guest_kernel}, the host's is 6.18.0" in found.reason


@pytest.mark.parametrize(
    ("memory", "verdict"), [(0.99, ClaimVerdict.HELD), (1.6, ClaimVerdict.DID_NOT_HOLD), (1.02, ClaimVerdict.UNDECIDED)]
)
def test_limits_hold(make, memory, verdict):
    samples = [
        *measured("limits", "limits.memory_reached", Unit.RATIO, {"native": memory}),
        *measured("limits", "limits.cpu_reached", Unit.RATIO, {"native": 1.0}),
        *measured("limits", "limits.pids_reached", Unit.RATIO, {"native": 1.0}),
    ]
    assert claim(make(samples=samples), "limits-hold").verdict is verdict


def test_image_size_is_of_the_same_files(make):
    found = claim(make(), "image-size")
    assert found.verdict is ClaimVerdict.DID_NOT_HOLD
    assert ": 4.0 % larger." in found.reason


def test_image_size_of_a_small_image_and_of_an_old_run(make):
    small = make(change=lambda content: content["image"]["sizes"].update(rootfs=8 * MIB))
    assert claim(small, "image-size").verdict is ClaimVerdict.HELD


def test_a_run_that_did_not_keep_sizes(make):
    found = claim(make(change=lambda content: content["image"].pop("sizes")), "image-size")
    assert found.verdict is ClaimVerdict.NOT_MEASURED


@pytest.mark.parametrize(
    ("accel", "container", "verdict"),
    [
        ("kvm", 2.0, ClaimVerdict.HELD),
        ("kvm", 1.1, ClaimVerdict.DID_NOT_HOLD),
        ("tcg", 2.0, ClaimVerdict.NOT_MEASURED),
    ],
)
def test_noisy_neighbour(make, accel, container, verdict):
    samples = [
        *measured("interference", "interference.ratio.duration", Unit.RATIO, {"native": 1.0, "vm": 1.0}),
        *measured("interference", "interference.ratio.events", Unit.RATIO, {"native": container, "vm": 1.3}),
    ]
    assert claim(make(samples=samples, accel=accel), "noisy-neighbour").verdict is verdict


@pytest.mark.parametrize(
    ("ratio", "spread", "verdict"),
    [
        (40.0, 0.1, ClaimVerdict.HELD),
        (1.0, 0.001, ClaimVerdict.DID_NOT_HOLD),
        (1.02, 0.01, ClaimVerdict.UNDECIDED),
    ],
)
def test_copy_on_write_is_asked_of_containers(make, ratio, spread, verdict):
    samples = measured("steady", "first_write.ratio", Unit.RATIO, {"native": ratio, "vm": 1.0}, spread=spread)
    found = claim(make(samples=samples), "copy-on-write")
    assert found.verdict is verdict
    assert "first_write.ratio on native" in found.reason


def test_copy_on_write_that_nobody_measured(make):
    assert claim(make(), "copy-on-write").verdict is ClaimVerdict.NOT_MEASURED


def test_an_empty_run_measures_nothing(make):
    found = judge(make(replace(SMALL, failing=SMALL.backends), change=lambda content: content["image"].pop("sizes")))
    assert {one.verdict for one in found} == {ClaimVerdict.NOT_MEASURED}


def test_one_block_decides_nothing(make):
    found = claim(make(replace(SMALL, blocks=1)), "near-native")
    assert found.verdict is ClaimVerdict.UNDECIDED
    assert "one block gives no interval" in found.reason


def test_one_of_many_settles_a_rule_only_beyond_luck(make):
    """Each of twenty looks lies beyond the limit at 95 %, but not at the level that their number asks for."""
    samples = [
        sample
        for number in range(20)
        for sample in measured(f"x{number}", "m", Unit.SECOND, {"native": 1.003}, spread=0.0009)
    ]
    analysis = make(samples=samples)
    rule = {"says": "s", "metric": "m", "below": 1.0005}
    assert evaluate(Rule(**rule, experiment="x3"), analysis).answer is Answer.NO
    assert evaluate(Rule(**rule), analysis).answer is Answer.OPEN
    assert evaluate(Rule(**rule, across="most"), analysis).answer is Answer.NO
