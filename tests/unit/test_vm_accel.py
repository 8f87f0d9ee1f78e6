"""Which accelerator a run gets, and why: never KVM without a guest that was seen to boot under it."""

from pathlib import Path

import pytest

from tare.backends.vm import proof as accel
from tare.backends.vm.domain_xml import Accelerator
from tare.backends.vm.emulator import Emulator
from tare.backends.vm.proof import Attempt, Progress
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

    def __init__(self, reason, *, refused=True):
        self.attempt = Attempt(reason, refused=refused and reason is not None, seconds=1.25)
        self.count = 0

    def __call__(self, *_, **__):
        self.count += 1
        return self.attempt


@pytest.fixture
def decide(tmp_path, kernel, monkeypatch):
    monkeypatch.setattr(accel, "find_obstacle", lambda: None)

    def run(wanted, boots, emulator=EMULATOR):
        monkeypatch.setattr(accel, "boot", boots)
        return accel.decide(wanted, emulator, kernel, kernel, cache=tmp_path / "cache", ledger=None, bound_s=60)

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
    monkeypatch.setattr(accel, "read_kvm_settings", lambda: {"kvm_amd.npt": "0"})
    decide("auto", boots)
    assert boots.count == 5


def test_an_attempt_that_was_given_up_is_made_again(decide):
    late = Boots("no first instruction within 30 s", refused=False)
    assert decide("auto", late).accelerator is Accelerator.TCG
    assert decide("auto", late).accelerator is Accelerator.TCG
    assert late.count == 2
    assert decide("auto", Boots(None)).accelerator is Accelerator.KVM
    never = Boots("QEMU stopped: no")
    assert decide("auto", never).accelerator is Accelerator.KVM
    assert never.count == 0


def test_who_insists_on_kvm_is_not_refused_by_what_was_kept(decide):
    decide("auto", Boots("QEMU stopped: no"))
    assert decide("kvm", Boots(None)).accelerator is Accelerator.KVM


def test_what_was_proved_can_be_forgotten(decide, tmp_path):
    decide("auto", Boots("QEMU stopped: no"))
    accel.forget(tmp_path / "cache")
    accel.forget(tmp_path / "cache")
    assert decide("auto", Boots(None)).accelerator is Accelerator.KVM


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
    accel.forget(cache)
    decide("auto", Boots("no first instruction within 30 s", refused=False))
    assert accel.known_outcome(cache).startswith("accel not proved: no first instruction within 30 s; the next run")


def ended(status, stderr):
    return accel.judge(Attempt(None, refused=False, seconds=0.1, status=status, stderr=stderr), seen=False)


def test_qemu_that_stopped_is_quoted():
    found = ended(-6, (DATA / "qemu-7.2.22/kvm-refused.stderr").read_text())
    assert (found.reason, found.refused) == ("QEMU stopped: failed to set MSR 0x10a to 0x69", True)
    assert ended(1, "\n").reason == "QEMU stopped: exit status 1"


def test_a_host_without_room_just_now_is_no_refusal():
    short = ended(1, "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\n")
    assert (short.reason.endswith("Cannot allocate memory"), short.refused) == (True, False)
    assert not ended(-9, "").refused


def given_up(user_s, system_s):
    attempt = Attempt(None, refused=False, seconds=30.2, user_s=user_s, system_s=system_s)
    return accel.judge(attempt, seen=False, given_up="no sign")


def test_a_guest_that_spins_is_told_from_one_that_idles():
    said = "no first instruction within 30 s, "
    assert given_up(0.1, 4.8).reason == f"{said}while QEMU used 4.8 s of CPU time in the kernel (no sign)"
    assert given_up(4.9, 0.0).reason == f"{said}while QEMU used 4.9 s of CPU time outside the kernel (no sign)"
    assert given_up(0.1, 0.1).reason == f"{said}with 0.2 s of CPU time used (no sign)"
    assert not given_up(0.1, 4.8).refused


def test_a_guest_that_was_seen_has_no_reason():
    assert accel.judge(Attempt(None, refused=False, seconds=1, stderr="noise", user_s=9), seen=True).reason is None


class Used:
    def __init__(self, cpu_s, guest_s, resident_bytes):
        self.cpu_s, self.guest_s, self.resident_bytes = cpu_s, guest_s, resident_bytes


def seconds_until_given_up(*, cpu, guest=0.0, console=0.0, memory=0.0):
    """How long a guest is waited for.

    It uses these shares of a CPU, writes ``console`` bytes and touches ``memory`` MiB a second.
    """
    progress = Progress(0.0)
    for half in range(1, 1000):
        now = half / 2
        if progress.look(now, Used(cpu * now, guest * now, int(memory * now * 2**20)), int(console * now)):
            return now
    return None


def test_a_guest_that_gets_somewhere_is_waited_for():
    assert seconds_until_given_up(cpu=1.0) == 8.0, "it spins in the kernel"
    assert seconds_until_given_up(cpu=0.1) == 32.0, "it spins where others have the CPU"
    assert seconds_until_given_up(cpu=0.0) == 32.0, "it does nothing"
    assert seconds_until_given_up(cpu=1.0, guest=0.02) == 8.0
    assert seconds_until_given_up(cpu=1.0, guest=0.05) is None
    assert seconds_until_given_up(cpu=0.05, guest=0.04) is None, "others have the CPU, and it gets on"
    assert seconds_until_given_up(cpu=1.0, console=1) is None
    assert seconds_until_given_up(cpu=1.0, memory=0.5) is None


QEMU = """\
#!/bin/sh
trap '' TERM
{does}
"""


@pytest.fixture
def boot(tmp_path, kernel):
    """Boots a stand-in of QEMU that does what it is told."""
    from tare.bench.ledger import Ledger

    def run(does, bound_s=20.0):
        program = tmp_path / "qemu-system-x86_64"
        program.write_text(QEMU.format(does=does))
        program.chmod(0o755)
        emulator = Emulator(program, program, "1")
        with Ledger(tmp_path / "ledger") as ledger:
            return accel.boot(emulator, kernel, kernel, ledger, bound_s, verbose=True)

    return run


def test_an_attempt_keeps_what_was_seen(boot):
    found = boot("echo hello; echo oops >&2; echo 'tare: init 0.5'; exec sleep 60")
    assert found.reason is None
    assert "hello" in found.console
    assert (found.stderr, found.status) == ("oops\n", None)
    assert "-append" in found.argv
    assert "quiet" not in found.argv[-1].split()


def test_an_attempt_ends_at_its_bound_and_with_qemu(boot):
    late = boot("while :; do echo on; sleep 0.2; done", bound_s=1.0)
    assert "no first instruction within 1 s" in late.reason
    assert "proof_timeout_s" in late.reason
    assert not late.refused
    refused = boot("echo 'qemu-system-x86_64: error: no way' >&2; exit 1")
    assert (refused.reason, refused.refused, refused.status) == ("QEMU stopped: no way", True, 1)
