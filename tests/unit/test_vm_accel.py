"""Which accelerator a run gets, and why: never KVM without a guest that was seen to boot under it."""

from pathlib import Path

import pytest

from tare.backends.vm import emulator as accel
from tare.backends.vm.domain_xml import Accelerator
from tare.backends.vm.emulator import Emulator
from tare.bench.errors import UnavailableError

DATA = Path(__file__).parents[1] / "data"
EMULATOR = Emulator(Path("/usr/bin/qemu-system-x86_64"), Path("/cache/qemu"), "7.2.22")


@pytest.fixture
def kernel(tmp_path):
    file = tmp_path / "vmlinuz"
    file.write_bytes(b"kernel")
    return file


class Boots:
    """Stands for booting a probe guest: gives an outcome, and counts."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.count = 0

    def __call__(self, *_):
        self.count += 1
        return self.outcome


@pytest.fixture
def decide(tmp_path, kernel, monkeypatch):
    monkeypatch.setattr(accel, "find_obstacle", lambda: None)

    def run(wanted, boots, emulator=EMULATOR):
        monkeypatch.setattr(accel, "_boot", boots)
        return accel.decide(wanted, emulator, kernel, kernel, cache=tmp_path / "cache", ledger=None)

    return run


def test_tcg_when_asked_for_boots_nothing(decide):
    boots = Boots(None)
    assert decide("tcg", boots) == accel.Acceleration(Accelerator.TCG, "asked for")
    assert boots.count == 0


def test_kvm_only_after_a_guest_booted(decide):
    found = decide("auto", Boots(None))
    assert found.accelerator is Accelerator.KVM
    assert "first instruction under KVM" in found.reason


def test_auto_falls_back_with_the_reason(decide):
    found = decide("auto", Boots("QEMU stopped: failed to set MSR 0x10a"))
    assert found == accel.Acceleration(Accelerator.TCG, "QEMU stopped: failed to set MSR 0x10a")


def test_kvm_asked_for_is_an_error_and_no_fallback(decide):
    with pytest.raises(UnavailableError, match="no guest boots under KVM here: QEMU stopped: broken") as caught:
        decide("kvm", Boots("QEMU stopped: broken"))
    assert caught.value.remedy


def test_the_outcome_is_kept_by_what_it_depends_on(decide, kernel, monkeypatch):
    boots = Boots("no")
    for _ in range(3):
        assert decide("auto", boots).reason == "no"
    assert boots.count == 1
    decide("auto", boots, Emulator(EMULATOR.program, EMULATOR.wrapper, "8.0"))
    assert boots.count == 2
    kernel.write_bytes(b"another kernel")
    decide("auto", boots)
    assert boots.count == 3
    monkeypatch.setattr(accel, "find_field", lambda *_: "another CPU")
    decide("auto", boots)
    assert boots.count == 4


def test_a_damaged_outcome_is_found_out_again(decide, tmp_path):
    decide("auto", Boots("first"))
    (tmp_path / "cache" / "kvm-proof.json").write_text('{"key": {')
    assert decide("auto", Boots("second")).reason == "second"


def test_no_device_needs_no_boot(tmp_path):
    assert accel.find_obstacle(tmp_path / "kvm") == f"there is no {tmp_path}/kvm"


def test_known_outcome_says_what_was_proved(decide, tmp_path):
    cache = tmp_path / "cache"
    assert "not proved yet" in accel.known_outcome(cache)
    decide("auto", Boots("QEMU stopped: x"))
    assert accel.known_outcome(cache) == "accel tcg (QEMU stopped: x)"
    decide("auto", Boots(None), Emulator(EMULATOR.program, EMULATOR.wrapper, "9"))
    assert accel.known_outcome(cache).startswith("accel kvm (a guest booted in")


def test_qemu_that_stopped_is_quoted():
    stderr = (DATA / "qemu-7.2.22/kvm-refused.stderr").read_text()
    reason = accel.judge(seen=False, status=-6, stderr=stderr, user_s=0, system_s=0)
    assert reason == "QEMU stopped: failed to set MSR 0x10a to 0x69"
    assert accel.judge(seen=False, status=1, stderr="\n", user_s=0, system_s=0) == "QEMU stopped: exit status 1"


def test_a_guest_that_spins_is_told_from_one_that_idles():
    spinning = accel.judge(seen=False, status=None, stderr="", user_s=0.1, system_s=4.8)
    assert spinning == "no first instruction within 5 s while QEMU burnt 4.8 s of CPU time in the kernel"
    outside = accel.judge(seen=False, status=None, stderr="", user_s=4.9, system_s=0.0)
    assert "4.9 s of CPU time outside the kernel" in outside
    idle = accel.judge(seen=False, status=None, stderr="", user_s=0.1, system_s=0.1)
    assert idle == "no first instruction within 5 s, with 0.2 s of CPU time used"


def test_a_guest_that_was_seen_has_no_reason():
    assert accel.judge(seen=True, status=None, stderr="noise", user_s=9, system_s=9) is None
