"""The gate over synthetic histories with known changes: what it tells, whose it is, and how it ends."""

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from typer.testing import CliRunner

from tare.bench.cli.gate import app as gate_app
from tare.bench.errors import ExitCode, SuiteError
from tare.bench.history.acks import AckFile, Acknowledgement, Renaming, add_acknowledgement, load_acks
from tare.bench.history.findings import Cause, Finding, Kind, State
from tare.bench.history.gate import Judgement, Told, Verdict, _same, find_run, judge, save_told
from tare.bench.history.index import open_history, update_history
from tare.bench.records import RunStatus
from tare.reports import gate_words
from tests.nights import Night, Plan, write_night, write_nights

PLAN = Plan()
NO_ACKS = AckFile()
SLOWER = {("work-2", "native"): -0.09}


def judged(
    folder: Path,
    nights: list[Night],
    *,
    plan: Plan = PLAN,
    run: str | None = None,
    acks: AckFile = NO_ACKS,
    day: Any = None,
) -> Judgement:
    write_nights(folder, nights, plan=plan)
    return again(folder, acks=acks, day=day)


def again(folder: Path, *, run: str | None = None, acks: AckFile = NO_ACKS, day: Any = None) -> Judgement:
    update_history(folder)
    history = open_history(folder)
    judgement = judge(history, find_run(history, run), acks, day=day)
    save_told(history, judgement)
    return judgement


def opened(judgement: Judgement) -> list[Finding]:
    return [one for one in judgement.findings if one.is_open]


def test_a_quiet_history_is_green_and_says_what_it_could_not_see(tmp_path: Path) -> None:
    judgement = judged(tmp_path / "runs", [Night()] * 20)
    assert judgement.verdict is Verdict.GREEN
    assert (judgement.n_series, judgement.n_judged, judgement.n_nights) == (12, 12, 20)
    assert judgement.middling is not None
    assert 0.01 < judgement.middling < 0.06


def test_a_slower_container_is_a_regression_of_its_isolation(tmp_path: Path) -> None:
    judgement = judged(tmp_path / "runs", [Night()] * 20 + [Night(ratios=SLOWER)] * 5)
    (finding,) = opened(judgement)
    assert judgement.verdict is Verdict.REGRESSION
    assert judgement.verdict.exit_code is ExitCode.REGRESSION == 10
    assert (finding.backend, finding.cause, finding.kind, finding.worse) == ("native", Cause.ISOLATION, Kind.STEP, True)
    assert finding.since in ("20260120-nightly", "20260121-nightly", "20260122-nightly")
    assert finding.shift.low < 0.914 < finding.shift.high
    assert set(finding.figures) == {"level of bare-metal", "level of native", "ratio of vm"}


def test_a_faster_container_is_told_and_fails_nothing(tmp_path: Path) -> None:
    judgement = judged(tmp_path / "runs", [Night()] * 20 + [Night(ratios={("work-2", "native"): 0.09})] * 5)
    (finding,) = opened(judgement)
    assert finding.worse is False
    assert judgement.verdict is Verdict.GREEN


def test_a_slower_host_is_the_hosts_and_fails_nothing(tmp_path: Path) -> None:
    slower = {f"work-{n}": -0.2 for n in range(6)}
    judgement = judged(tmp_path / "runs", [Night()] * 20 + [Night(levels=slower)] * 5)
    (finding,) = opened(judgement)
    assert finding.cause is Cause.HOST
    assert len(finding.subjects) == 6
    assert judgement.verdict is Verdict.GREEN


def test_bare_metal_alone_moving_is_not_called_isolation(tmp_path: Path) -> None:
    """Every ratio of the subject moves the same way while the isolated ones keep their level."""
    moved = Night(levels={"work-2": -0.2}, ratios={("work-2", "native"): 0.2, ("work-2", "vm"): 0.2})
    judgement = judged(tmp_path / "runs", [Night()] * 20 + [moved] * 5)
    ratios = [one for one in opened(judgement) if one.backend != "bare-metal"]
    assert {one.cause for one in ratios} == {Cause.UNKNOWN}
    assert judgement.verdict is Verdict.GREEN


def test_a_slow_drift_is_called_one(tmp_path: Path) -> None:
    nights = [Night(ratios={("work-2", "native"): -0.012 * max(0, n - 14)}) for n in range(32)]
    judgement = judged(tmp_path / "runs", nights)
    (finding,) = [one for one in opened(judgement) if one.cause is not Cause.HOST]
    assert (finding.kind, finding.backend) == (Kind.DRIFT, "native")


def test_a_wider_spread_is_its_own_finding(tmp_path: Path) -> None:
    plan = Plan(blocks=8)
    judgement = judged(tmp_path / "runs", [Night()] * 20 + [Night(spread={("work-2", "native"): 12.0})] * 8, plan=plan)
    spread = [one for one in opened(judgement) if one.kind is Kind.SPREAD]
    assert [(one.backend, one.worse) for one in spread] == [("native", None)]
    assert judgement.verdict is not Verdict.REGRESSION


def test_one_night_far_off_is_no_finding(tmp_path: Path) -> None:
    judgement = judged(tmp_path / "runs", [Night()] * 20 + [Night(ratios={("work-2", "native"): -0.3})])
    assert not opened(judgement)
    assert list(judgement.outliers) == ["work-2 · threads 1 · rate · native"]
    assert judgement.verdict is Verdict.GREEN


def test_a_finding_is_told_once_keeps_its_name_and_is_resolved_once(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    judged(folder, [Night()] * 20)
    states, names = [], set()
    for number in range(20, 34):
        write_night(folder, number, Night(ratios=SLOWER) if number < 26 else Night())
        judgement = again(folder)
        found = [one for one in judgement.findings if one.backend == "native"]
        states.append([str(one.state) for one in found])
        names |= {one.identifier for one in found}
        assert [str(one.state) for one in again(folder).findings if one.backend == "native"] == states[-1]
    flat = [state for night in states for state in night]
    assert flat.count("new") == 1
    assert flat.count("resolved") == 1
    assert flat.index("new") < flat.index("confirmed") < flat.index("resolved")
    assert len(names) == 1


def test_a_change_that_was_resolved_is_a_new_one_when_it_comes_back(tmp_path: Path) -> None:
    (finding,) = opened(judged(tmp_path / "runs", [Night()] * 20 + [Night(ratios=SLOWER)] * 5))
    told = Told(finding.identifier, finding.series, "step", up=False, since=finding.since, first_told=finding.since)
    rows = {finding.since: 20}
    assert _same(finding, [told], rows) is told
    assert _same(finding, [msgspec.structs.replace(told, resolved="20260123-nightly")], rows) is None


def test_an_acknowledgement_moves_the_baseline_until_it_expires(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    (finding,) = opened(judged(folder, [Night()] * 20 + [Night(ratios=SLOWER)] * 5))
    file = tmp_path / "nightly.acks.toml"
    day = dt.date(2026, 3, 1)
    add_acknowledgement(
        file,
        Acknowledgement(finding.identifier, finding.series, finding.since, 'seccomp "twice", on purpose', "me", day),
    )
    acks = load_acks(file)
    for number in range(25, 36):
        write_night(folder, number, Night(ratios=SLOWER))
    in_force = again(folder, acks=acks, day=day)
    assert [one.state for one in in_force.findings] == [State.ACKNOWLEDGED]
    assert "on purpose" in in_force.findings[0].note
    assert in_force.verdict is Verdict.GREEN
    assert in_force.n_judged == 12
    later = again(folder, acks=acks, day=day + dt.timedelta(days=1))
    assert later.verdict is Verdict.REGRESSION
    assert any("expired" in note for note in later.notes)
    undone = again(folder, acks=AckFile(), day=day)
    assert undone.verdict is Verdict.REGRESSION


def test_a_new_kernel_is_an_environment_and_no_regression(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    judgement = judged(folder, [Night()] * 20 + [Night(kernel="6.13", ratios=SLOWER)])
    assert judgement.verdict is Verdict.ENVIRONMENT
    assert judgement.verdict.exit_code == 12
    (mark,) = [one for one in judgement.marks if "host.kernel" in one.fields]
    assert mark.fields == {"host.kernel": ("6.12", "6.13")}
    assert any(shift.is_clear and shift.ratio == pytest.approx(0.914, abs=0.04) for shift in mark.steps.values())
    for number in range(21, 29):
        write_night(folder, number, Night(kernel="6.13", ratios=SLOWER))
    learning = again(folder)
    assert learning.verdict is Verdict.BLIND
    assert learning.unjudged[0].reason == "9 nights under these conditions; 10 are needed"
    write_night(folder, 29, Night(kernel="6.13", ratios=SLOWER))
    assert again(folder).verdict is Verdict.GREEN
    assert not opened(again(folder))


def test_an_incomplete_night_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    interrupted = judged(folder, [Night()] * 20 + [Night(status=RunStatus.INTERRUPTED)])
    assert interrupted.verdict is Verdict.INCOMPLETE
    write_night(folder, 21, Night(failing=("vm",)))
    failed = again(folder)
    assert failed.verdict is Verdict.INCOMPLETE
    assert failed.n_judged == 6
    assert failed.unjudged[0].reason == "not measured in this run, but in the one before"


def test_nights_with_failed_instances_are_in_no_baseline_and_make_no_finding(tmp_path: Path) -> None:
    """What is left of a cell whose instances failed may be a selection: the good cells of such a night count."""
    partly = Night(ratios=SLOWER, failing=("native",), failing_blocks=1)
    judgement = judged(tmp_path / "runs", [Night()] * 20 + [partly] * 5)
    assert not opened(judgement)
    assert (judgement.verdict, judgement.n_judged) == (Verdict.INCOMPLETE, 6)
    assert [one.reason for one in judgement.unjudged] == ["instances failed"]
    write_night(tmp_path / "runs", 25, Night())
    after = again(tmp_path / "runs")
    assert not opened(after)
    assert after.n_judged == 12


def test_too_few_nights_are_blind(tmp_path: Path) -> None:
    judgement = judged(tmp_path / "runs", [Night()] * 5)
    assert judgement.verdict is Verdict.BLIND
    assert judgement.verdict.exit_code == 11
    assert judgement.n_judged == 0


def test_the_first_nights_say_what_could_be_seen_after_ten(tmp_path: Path) -> None:
    """Nights that differ by no more than their blocks: what was expected is what is there after fifteen nights."""
    folder = tmp_path / "runs"
    plan = Plan(ratio_noise=0.0)
    first = judged(folder, [Night()], plan=plan)
    assert first.expected is not None
    assert any("After ten nights" in line for line in gate_words.coverage(first))
    for number in range(1, 15):
        write_night(folder, number, Night(), plan=plan)
    later = again(folder)
    assert later.expected is None
    assert later.middling == pytest.approx(first.expected, rel=0.5)


def test_runs_of_other_hosts_are_left_out_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    nights = [Night(host="host-b", levels={"work-1": 1.0}) if n % 2 else Night() for n in range(40)]
    judgement = judged(folder, [*nights, Night()])
    assert judgement.n_nights == 21
    assert any("1 other host" in note for note in judgement.notes)
    assert judgement.verdict is Verdict.GREEN


def test_a_clock_that_went_backwards_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    judged(folder, [Night()] * 15)
    back = dt.datetime(2026, 1, 3, 5, tzinfo=dt.UTC)
    write_night(folder, 15, Night(started=back), name="afterwards")
    judgement = again(folder, run="20260115-nightly")
    assert judgement.n_nights == 16
    assert any("clock may have gone backwards" in note for note in judgement.notes)


def test_runs_that_are_entered_together_are_no_clock_that_went_backwards(tmp_path: Path) -> None:
    """Folders whose names are in another order than their starts."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for number, name in enumerate(("c", "a", "b")):
        write_night(folder, number, Night(), name=name)
    assert not again(folder).notes


def test_reruns_confirm_and_refute(tmp_path: Path) -> None:
    plan = Plan(ratio_noise=0.02)
    folder = tmp_path / "runs"
    write_nights(folder, [Night()] * 24, plan=plan)
    write_night(folder, 24, Night(ratios={("work-2", "native"): -0.07, ("work-4", "vm"): -0.07}), plan=plan)
    first = again(folder)
    suspicious = set(first.suspicious)
    names = {one.series: one.name for one in first.findings}
    assert not [one for one in opened(first) if one.is_regression], names
    assert suspicious
    for number in range(6):
        night = Night(ratios={("work-2", "native"): -0.07}, confirms="20260125-nightly")
        write_night(folder, 24, night, plan=plan, seed=50 + number, name=f"20260125-nightly-again-{number + 1}")
    second = again(folder)
    (finding,) = [one for one in opened(second) if one.is_regression]
    assert (finding.name, finding.state, finding.reruns) == ("work-2 · threads 1 · rate · native", State.CONFIRMED, 6)
    assert second.n_nights == 25
    assert {one.is_confirmed for one in second.confirmations} == {True, False}


def test_what_reruns_do_not_show_is_not_told(tmp_path: Path) -> None:
    """Two nights that speak for a change by themselves, and six reruns that show nothing of it."""
    folder = tmp_path / "runs"
    slower = {("work-2", "native"): -0.09}
    write_nights(folder, [Night()] * 24 + [Night(ratios=slower)] * 2)
    assert again(folder).verdict is Verdict.REGRESSION
    (folder / ".tare-history" / "told.json").unlink()
    for number in range(6):
        night = Night(confirms="20260126-nightly")
        write_night(folder, 25, night, seed=70 + number, name=f"20260126-nightly-again-{number + 1}")
    judgement = again(folder)
    assert not [one for one in opened(judgement) if one.backend == "native"]
    assert judgement.verdict is Verdict.GREEN


def test_a_renamed_series_is_named_and_goes_on_with_an_entry(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    plan = Plan(subjects=("work-0", "work-1"), backends=("bare-metal", "native"))
    write_nights(folder, [Night()] * 15, plan=plan)
    write_night(folder, 15, Night(), plan=Plan(subjects=("work-0", "work-9"), backends=plan.backends))
    judgement = again(folder)
    (note,) = [note for note in judgement.notes if "[[renamed]]" in note and "native" in note]
    new, old = re.findall(r"\((\w{12})\)", note)
    base = [re.findall(r"\((\w{12})\)", one) for one in judgement.notes if "[[renamed]]" in one and one is not note]
    assert judgement.n_judged == 1
    renamings = tuple(Renaming(before, now) for now, before in [(new, old), *base])
    assert again(folder, acks=AckFile(renamed=renamings)).n_judged == 2


# --- the command line, and the forms -------------------------------------------------------------------


@pytest.fixture
def regressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    suite = tmp_path / "nightly.toml"
    suite.write_text("")
    nights = [Night(suite_file=str(suite))] * 20 + [Night(ratios=SLOWER, suite_file=str(suite))] * 5
    write_nights(tmp_path / "runs", nights)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gate(*words: str) -> Any:
    return CliRunner().invoke(gate_app, [*map(str, words)])


def test_the_command_updates_judges_and_ends_with_the_code(regressed: Path) -> None:
    done = gate("runs/20260125-nightly")
    assert done.exit_code == ExitCode.REGRESSION
    assert done.stdout.startswith("Regression: 1 regression\n")
    assert "isolation of native" in done.stdout
    assert "tare gate ack" in done.stdout
    assert "smaller ones would not be seen" in done.stdout
    assert gate().exit_code == ExitCode.REGRESSION
    assert gate("runs/20260119-nightly").exit_code == ExitCode.OK


def test_acknowledging_from_the_command_line(regressed: Path) -> None:
    told = json.loads(gate("--json").stdout)
    (finding,) = [one for one in told["findings"] if one["is_regression"]]
    assert told["exit_code"] == 10
    refused = gate("ack", "nonsense", "--reason", "x")
    assert refused.exit_code == ExitCode.BAD_INPUT
    assert finding["identifier"] in refused.stderr
    assert gate("ack", finding["identifier"], "--reason", "x", "--until", "tomorrow").exit_code == ExitCode.BAD_INPUT
    done = gate("ack", finding["identifier"], "--reason", "agreed in review", "--until", "2199-01-01", "--who", "me")
    assert done.exit_code == 0, done.stderr
    (entry,) = load_acks(regressed / "nightly.acks.toml").acknowledged
    assert (entry.reason, entry.who, entry.until) == ("agreed in review", "me", dt.date(2199, 1, 1))
    after = gate()
    assert "acknowledged by me: agreed in review" in after.stdout.lower()
    assert after.exit_code == ExitCode.OK
    (regressed / "nightly.acks.toml").unlink()
    assert gate().exit_code == ExitCode.REGRESSION


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[acknowledged]]\nfindign = "x"\n', "findign"),
        ('[[acknowledged]]\nfinding = "x"\nseries = "y"\nsince = "z"\n', "reason"),
        ('[[acknowledged]]\nfinding = "x"\nseries = "y"\nsince = "z"\nreason = "r"\nuntil = "soon"\n', "until"),
        ("[[acknowledged", "TOML"),
        ('[[known]]\nfinding = "x"\n', "known"),
    ],
)
def test_a_wrong_ack_file_is_one_message_with_the_key(regressed: Path, text: str, said: str) -> None:
    (regressed / "nightly.acks.toml").write_text(text)
    done = gate()
    assert done.exit_code == ExitCode.BAD_INPUT
    assert said in done.stderr
    assert "nightly.acks.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_entry_keeps_what_is_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.acks.toml"
    file.write_text("# ours\n[[renamed]]\nold = 'a'\nnew = 'b'\n")
    hostile = 'a "quote", a \\ and\nanother line \x7f'
    add_acknowledgement(file, Acknowledgement("f", "s", "r", hostile))
    assert file.read_text().startswith("# ours\n")
    read = load_acks(file)
    assert read.acknowledged[0].reason == hostile
    assert read.new_names == {"a": "b"}
    file.write_text("nonsense =")
    with pytest.raises(SuiteError):
        add_acknowledgement(file, Acknowledgement("f", "s", "r", "x"))
    assert file.read_text() == "nonsense ="


def test_markdown_holds_only_what_is_new(regressed: Path) -> None:
    first = gate("--format", "markdown", "--link", "https://example.org/site").stdout
    assert re.search(r"- \*\*work-2 .*\[history\]\(https://example.org/site/index.html#[0-9a-f]{8}\)", first)
    write_night(regressed / "runs", 25, Night(ratios=SLOWER, suite_file=str(regressed / "nightly.toml")))
    second = gate("--format", "markdown").stdout
    assert "work-2" not in second
    assert "1 reported before (1 of them unacknowledged regressions)" in second


def test_junit_fails_for_the_regression_alone(regressed: Path) -> None:
    root = ET.fromstring(gate("--format", "junit").stdout)
    cases = root.findall(".//testcase")
    failed = [case for case in cases if case.find("failure") is not None]
    assert len(cases) == 4
    assert ["work-2" in str(case.get("name")) for case in failed] == [True]
    assert root.find("testsuite").get("failures") == "1"  # type: ignore[union-attr]


def test_annotations_of_ci_servers(regressed: Path) -> None:
    lines = gate("--format", "github").stdout.splitlines()
    assert all(re.fullmatch(r"::(error|warning|notice) title=[^:,]*::.*", line) for line in lines)
    assert [line[:8] for line in lines] == ["::error ", "::notice"]
    (entry,) = json.loads(gate("--format", "gitlab").stdout)
    assert entry["severity"] == "critical"
    assert entry["location"]["path"] == "nightly.toml"
    assert set(entry) == {"description", "check_name", "fingerprint", "severity", "location"}


def test_a_run_that_the_history_does_not_have(regressed: Path) -> None:
    done = gate("runs/nothing")
    assert done.exit_code == ExitCode.BAD_INPUT
    assert "not in the history" in done.stderr
    assert gate("nowhere/nothing").exit_code == ExitCode.BAD_INPUT
    assert gate("--format", "nonsense").exit_code == ExitCode.BAD_INPUT
