"""A host's settings are changed with their originals on disk, and come back exactly, on a tree that looks like one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tare.bench.errors import TuningError
from tare.bench.linux.cpus import format_cpus, format_mask, parse_cpus, parse_mask
from tare.bench.linux.files import HostRoots
from tare.bench.tune.journal import JournalFile, tuned_facts
from tare.bench.tune.settings import SETTINGS, describe_now, obstacle, read_value
from tare.bench.tune.tuning import Tuning, Wish, write_value

CPU = "sys/devices/system/cpu"
TREE = {
    "proc/sys/kernel/random/boot_id": "boot-1",
    f"{CPU}/online": "0-3",
    f"{CPU}/cpufreq/policy0/scaling_governor": "powersave",
    f"{CPU}/cpufreq/policy0/energy_performance_preference": "balance_power",
    f"{CPU}/cpufreq/policy0/scaling_max_freq": "3800000",
    f"{CPU}/cpufreq/policy2/scaling_governor": "schedutil",
    f"{CPU}/cpufreq/policy2/energy_performance_preference": "power",
    f"{CPU}/cpufreq/policy2/scaling_max_freq": "3800000",
    f"{CPU}/intel_pstate/no_turbo": "0",
    f"{CPU}/smt/control": "on",
    "sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never",
    "sys/kernel/mm/ksm/run": "1",
    "proc/sys/kernel/randomize_va_space": "0",
    "proc/sys/kernel/numa_balancing": "1",
    "proc/sys/kernel/nmi_watchdog": "0",
    "proc/sys/kernel/soft_watchdog": "1",
    "proc/irq/default_smp_affinity": "f",
    "proc/irq/9/smp_affinity_list": "0-3",
    "proc/irq/9/effective_affinity_list": "3",
    "proc/irq/10/smp_affinity_list": "3",
}
CPUS = frozenset({3})
ALL = [Wish(setting, setting.recommended) for setting in SETTINGS if not setting.only_on_request]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path) -> Path:
    for name, content in TREE.items():
        path = tmp_path / "host" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return tmp_path / "host"


def tuning(root: Path, write=write_value) -> Tuning:
    return Tuning(JournalFile(root.parent / "state/tune.json"), HostRoots(root / "proc", root / "sys"), write)


def contents(root: Path) -> dict[str, str]:
    """What every file says; a file of choices says the chosen one."""
    return {name: read_value(root / name) for name in TREE}


def wish(text: str) -> Wish:
    name, _, value = text.partition("=")
    setting = next(setting for setting in SETTINGS if setting.name == name)
    return Wish(setting, value or setting.recommended)


ORIGINAL = {name: content.replace("[always] madvise never", "always") for name, content in TREE.items()}


def test_everything_is_set_and_comes_back_exactly(root):
    applied = tuning(root).apply(ALL, CPUS)
    now = contents(root)
    assert now[f"{CPU}/cpufreq/policy2/scaling_governor"] == "performance"
    assert now[f"{CPU}/intel_pstate/no_turbo"] == "1"
    assert now["proc/sys/kernel/randomize_va_space"] == "2"
    assert now["sys/kernel/mm/transparent_hugepage/enabled"] == "madvise"
    assert now["proc/sys/kernel/soft_watchdog"] == "0"
    assert now["proc/irq/9/smp_affinity_list"] == "0-2"
    assert now["proc/irq/10/smp_affinity_list"] == "0-2"
    assert now["proc/irq/default_smp_affinity"] == "00000007"
    assert now[f"{CPU}/smt/control"] == "on"
    assert not applied.refused
    restored = tuning(root).restore()
    assert contents(root) == ORIGINAL
    assert len(restored.restored) == len(applied.changed)
    assert not (root.parent / "state/tune.json").exists()
    assert tuning(root).restore().restored == ()


def test_a_second_apply_keeps_the_first_originals(root):
    tuning(root).apply([wish("aslr=1"), wish("governor")], CPUS)
    tuning(root).apply([wish("aslr=2"), wish("thp")], CPUS)
    assert contents(root)["proc/sys/kernel/randomize_va_space"] == "2"
    tuning(root).restore()
    assert contents(root) == ORIGINAL


def test_what_stands_already_is_not_written(root):
    def refuse(path, value):
        raise AssertionError(path)

    applied = tuning(root, refuse).apply([wish("aslr=0")], CPUS)
    assert applied.already == ("aslr",)
    assert not (root.parent / "state/tune.json").exists()


def test_a_file_that_the_kernel_changes_along_comes_back_too(root):
    def like_intel(path, value):
        write_value(path, value)
        if path.name == "scaling_governor":
            write_value(path.with_name("energy_performance_preference"), value)

    tuning(root, like_intel).apply([wish("governor")], CPUS)
    assert contents(root)[f"{CPU}/cpufreq/policy0/energy_performance_preference"] == "performance"
    tuning(root, like_intel).restore()
    assert contents(root) == ORIGINAL


def test_originals_are_on_disk_before_the_first_change(root):
    seen = []

    def look(path, value):
        seen.append(JournalFile(root.parent / "state/tune.json").load())
        write_value(path, value)

    tuning(root, look).apply(ALL, CPUS)
    recorded = {Path(original.path): original.value for original in seen[0].originals}
    assert {str(path.relative_to(root)): value for path, value in recorded.items()}.items() <= ORIGINAL.items()
    assert len(recorded) > 10


def refusing(*names: str, code: int = 5):
    def write(path, value):
        if path.name in names or path.parent.name in names:
            raise OSError(code, os.strerror(code), str(path))
        write_value(path, value)

    return write


def test_a_setting_that_the_kernel_refuses_undoes_all_and_says_which(root):
    with pytest.raises(TuningError, match=r"thp: .*enabled cannot be set to 'madvise': the kernel refuses it \(Input"):
        tuning(root, refusing("enabled")).apply(ALL, CPUS)
    assert contents(root) == ORIGINAL
    assert not (root.parent / "state/tune.json").exists()


def test_a_kernel_that_takes_a_value_and_does_not_keep_it_is_found_out(root):
    def forget(path, value):
        write_value(path, "0" if path.name == "no_turbo" else value)

    with pytest.raises(TuningError, match="took it, and has '0' instead"):
        tuning(root, forget).apply([wish("governor"), wish("turbo")], CPUS)
    assert contents(root) == ORIGINAL


def test_what_cannot_be_set_back_stays_recorded(root):
    def breaks(path, value):
        if path.name in ("no_turbo", "enabled") and value in ("0", "madvise"):
            raise OSError(16, "Device or resource busy", str(path))
        write_value(path, value)

    with pytest.raises(TuningError, match="could not be set back"):
        tuning(root, breaks).apply([wish("turbo"), wish("thp")], CPUS)
    tuning(root).restore()
    assert contents(root) == ORIGINAL


def test_an_interrupt_that_cannot_be_moved_stays_and_is_said(root):
    applied = tuning(root, refusing("10")).apply(ALL, CPUS)
    assert [one.path.parent.name for one in applied.refused] == ["10"]
    assert contents(root)["proc/irq/9/smp_affinity_list"] == "0-2"
    tuning(root).restore()
    assert contents(root) == ORIGINAL


def test_what_could_not_be_restored_is_kept_until_it_can(root):
    tuning(root).apply([wish("aslr"), wish("thp")], CPUS)
    restored = tuning(root, refusing("enabled")).restore()
    assert [one.setting for one in restored.kept] == ["thp"]
    assert contents(root)["proc/sys/kernel/randomize_va_space"] == "0"
    assert tuning(root).restore().kept == ()
    assert contents(root) == ORIGINAL


def test_a_device_that_is_gone_needs_no_restoring(root):
    tuning(root).apply(ALL, CPUS)
    (root / "proc/irq/9/smp_affinity_list").unlink()
    restored = tuning(root).restore()
    assert [Path(path).parent.name for path in restored.gone] == ["9"]
    assert restored.kept == ()


def test_cpus_that_are_offline_come_back_before_their_settings(root):
    policy = root / f"{CPU}/cpufreq/policy2"

    def like_smt(path, value):
        if path.name == "control":
            if value == "off":
                policy.rename(policy.with_name("offline"))
            else:
                policy.with_name("offline").rename(policy)
        write_value(path, value)

    tuning(root, like_smt).apply([wish("governor"), wish("smt")], CPUS)
    assert not policy.exists()
    kept = tuning(root, refusing("control")).restore().kept
    assert {one.setting for one in kept} == {"smt", "governor"}
    tuning(root, like_smt).restore()
    assert contents(root) == ORIGINAL


def test_after_a_reboot_the_settings_are_the_boot_s_own(root):
    tuning(root).apply([wish("aslr")], CPUS)
    (root / "proc/sys/kernel/random/boot_id").write_text("boot-2\n")
    (root / "proc/sys/kernel/randomize_va_space").write_text("1\n")
    assert tuned_facts(root.parent / "state/tune.json", HostRoots(root / "proc", root / "sys")) == ()
    assert tuning(root).restore().rebooted
    assert contents(root)["proc/sys/kernel/randomize_va_space"] == "1"
    tuning(root).apply([wish("aslr")], CPUS)
    tuning(root).restore()
    assert contents(root)["proc/sys/kernel/randomize_va_space"] == "1"


def test_a_damaged_journal_is_said_and_nothing_is_written(root):
    path = root.parent / "state/tune.json"
    path.parent.mkdir()
    path.write_text('{"version": 1, "boot')
    for action in (lambda: tuning(root).restore(), lambda: tuning(root).apply(ALL, CPUS)):
        with pytest.raises(TuningError, match=r"tune\.json holds the host's original settings and is damaged"):
            action()
    assert contents(root) == ORIGINAL


def test_a_journal_cannot_make_it_write_elsewhere(root):
    tuning(root).apply([wish("aslr")], CPUS)
    victim = root.parent / "victim"
    victim.write_text("precious")
    path = root.parent / "state/tune.json"
    path.write_text(path.read_text().replace(str(root / "proc/sys/kernel/randomize_va_space"), str(victim)))
    assert [one.path for one in tuning(root).restore().kept] == [victim]
    assert victim.read_text() == "precious"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from tests.unit import test_tune as t
from tare.bench.tune.tuning import write_value
left = int(sys.argv[1])
def write(path, value):
    global left
    left -= 1
    if left == 0 and sys.argv[3] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    write_value(path, value)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
tuning = t.tuning(Path(sys.argv[2]), write)
tuning.restore() if sys.argv[4] == "restore" else tuning.apply(t.ALL, t.CPUS)
"""


def killed(root: Path, at: int, moment: str, action: str) -> None:
    script = KILLED.format(repository=str(REPOSITORY))
    argv = [sys.executable, "-c", script, str(at), str(root), moment, action]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize(("at", "moment"), [(1, "before"), (1, "after"), (4, "after"), (9, "before")])
def test_killed_in_the_middle_of_apply(root, at, moment):
    killed(root, at, moment, "apply")
    assert (contents(root) == ORIGINAL) == (at == 1 and moment == "before")
    tuning(root).apply([wish("governor")], CPUS)  # a second apply over the rubble keeps the originals
    tuning(root).restore()
    assert contents(root) == ORIGINAL


def test_killed_in_the_middle_of_restore(root):
    tuning(root).apply(ALL, CPUS)
    killed(root, 5, "after", "restore")
    assert contents(root) != ORIGINAL
    tuning(root).restore()
    assert contents(root) == ORIGINAL


def test_interrupted_by_ctrl_c_it_sets_back(root):
    def interrupt(path, value):
        write_value(path, value)
        if path.name == "enabled" and value == "madvise":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuning(root, interrupt).apply(ALL, CPUS)
    assert contents(root) == ORIGINAL
    assert not (root.parent / "state/tune.json").exists()


def test_two_at_once_do_not_mix(root):
    def again(path, value):
        tuning(root).restore()

    with pytest.raises(TuningError, match="another `tare tune` is at work"):
        tuning(root, again).apply([wish("aslr")], CPUS)
    assert contents(root) == ORIGINAL


def test_runs_record_what_was_tuned(root):
    tuning(root).apply([wish("aslr"), wish("thp")], CPUS)
    (fact,) = tuned_facts(root.parent / "state/tune.json", HostRoots(root / "proc", root / "sys"))
    assert fact.text == "aslr 2, thp madvise"


def test_what_is_shown(root):
    roots = HostRoots(root / "proc", root / "sys")
    shown = {setting.name: describe_now(setting, roots, CPUS) for setting in SETTINGS}
    assert shown["governor"] == "powersave (1×), schedutil (1×)"
    assert shown["turbo"] == "on"
    assert shown["irq"] == "2 of 2 on CPU 3"
    assert shown["thp"] == "always"
    assert all(obstacle(setting, roots, CPUS) == "" for setting in SETTINGS)
    irq = next(setting for setting in SETTINGS if setting.name == "irq")
    assert "none to move interrupts to" in obstacle(irq, roots, frozenset(range(4)))


def test_a_host_that_has_none_of_it(tmp_path):
    for name in ("proc/sys/kernel/random/boot_id", f"{CPU}/online"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("0-1\n")
    applied = Tuning(JournalFile(tmp_path / "tune.json"), HostRoots(tmp_path / "proc", tmp_path / "sys")).apply(
        ALL, CPUS
    )
    assert {reason for name, reason in applied.skipped if name != "irq"} == {"this host has no such setting"}


def test_a_governor_that_the_kernel_does_not_offer_is_left_out(root):
    (root / f"{CPU}/cpufreq/policy2/scaling_available_governors").write_text("schedutil powersave\n")
    applied = tuning(root).apply(ALL, CPUS)
    assert ("governor", "the kernel offers: schedutil, powersave") in applied.skipped
    assert contents(root)[f"{CPU}/intel_pstate/no_turbo"] == "1"


def test_lists_and_masks_of_cpus():
    assert format_cpus(parse_cpus("0-2,5,7-8\n")) == "0-2,5,7-8"
    assert parse_mask("ffffffff,00000003") == {0, 1, *range(32, 64)}
    assert format_mask(range(40)) == "000000ff,ffffffff"
    assert parse_cpus("") == frozenset()
    with pytest.raises(ValueError, match="no range"):
        parse_cpus("5-2")
