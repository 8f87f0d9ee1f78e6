"""tare compare: unpaired intervals that cover, verdicts with the known truth, refusals that name what differs."""

import html
import json
import math
import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from lxml import etree
from typer.testing import CliRunner

from tare.bench.analysis import analyse
from tare.bench.analysis.comparison import ComparisonRequest, LineKind, compare_request
from tare.bench.cli.main import app
from tare.bench.comparability import conditions, find_differences
from tare.bench.errors import ExitCode, NotComparableError, RunDirectoryError, UnknownNameError
from tare.bench.model import Direction
from tare.bench.records import Sample
from tare.bench.stats.comparisons import CellBlocks, Verdict
from tare.bench.stats.runs import compare_runs, difference_interval
from tare.bench.store import load_manifest, load_run
from tare.bench.units import Unit
from tare.reports.compare import notes_of, tally
from tare.reports.markdown import MarkdownReporter
from tests.synthetic import HOSTILE, QUICK, SUBJECTS, hostile_recipe, write_run

ALIKE = "a side with one reading only: no interval"
SMALL = replace(QUICK, subjects=SUBJECTS[:1], iterations=3, noise=0.003, blocks=8)


def cell(values):
    values = np.asarray(values, dtype=float)
    ones = np.ones(len(values), dtype=np.int64)
    return CellBlocks(np.arange(len(values)), values, ones, ones)


def edit_manifest(run, change):
    file = run / "manifest.json"
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(json.dumps(content), "utf-8")
    return run


def named(run, name):
    return edit_manifest(run, lambda content: content.update(run=name))


def set_fact(name, value):
    def change(content):
        for fact in content["host"]:
            if fact["name"] == name:
                fact["text"] = value

    return change


@pytest.fixture
def monday(tmp_path):
    return named(write_run(tmp_path / "monday", SMALL), "monday")


@pytest.fixture
def tuesday(tmp_path):
    recipe = replace(SMALL, seed=2, blocks=6, ratios={"native": 1.1, "vm": 8.8})
    return named(write_run(tmp_path / "tuesday", recipe), "tuesday")


HOST = "host (a VM)"
"""What reports call bare metal on a host that is itself a virtual machine, as the synthetic one is."""


def found_in(comparison, metric, backend, kind=None):
    return next(
        line.found
        for line in comparison.lines
        if line.metric.name == metric and line.backend.startswith(backend) and kind in (None, line.kind)
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (
            {"plugins": {"workload mine": "my-plugins 1.3"}},
            "plugin.workload mine: my-plugins 1.2 against my-plugins 1.3",
        ),
        ({"plugins": {}}, "plugin.workload mine: my-plugins 1.2 against not recorded"),
        ({"tare_commit": "abc-dirty"}, "tare.commit: abc against abc-dirty"),
    ],
)
def test_another_plug_in_and_another_commit_are_other_conditions(monday, tuesday, change, field):
    edit_manifest(
        monday, lambda content: content.update(plugins={"workload mine": "my-plugins 1.2"}, tare_commit="abc")
    )
    edit_manifest(
        tuesday, lambda content: content.update(plugins={"workload mine": "my-plugins 1.2"}, tare_commit="abc")
    )
    edit_manifest(tuesday, lambda content: content.update(change))
    with pytest.raises(NotComparableError) as refused:
        compare_request(ComparisonRequest((monday,), (tuesday,)))
    assert field in str(refused.value)
    compare_request(ComparisonRequest((monday,), (tuesday,), allowed=(field.split(":")[0],)))


@pytest.mark.parametrize(
    ("sizes", "draw"),
    [
        ((4, 6), lambda random, n: random.normal(0, 0.03, n)),
        ((5, 5), lambda random, n: 0.02 * random.standard_t(3, n)),
        ((18, 24), lambda random, n: 0.02 * random.standard_t(3, n)),
    ],
)
def test_unpaired_intervals_cover_the_truth(sizes, draw):
    random = np.random.default_rng(11)
    hits = 0
    for _ in range(1200):
        found = difference_interval(0.05 + 2 * draw(random, sizes[0]), draw(random, sizes[1]))
        hits += found.low <= 0.05 <= found.high
    assert 0.93 <= hits / 1200 <= 0.975


def test_welch_is_scipy_s():
    from scipy import stats

    random = np.random.default_rng(3)
    first, second = random.normal(0, 1, 7), random.normal(0.4, 3, 5)
    theirs = stats.ttest_ind(second, first, equal_var=False)
    ours = difference_interval(second, first)
    assert ours.p_value == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


@pytest.mark.parametrize(
    ("second", "first", "note", "verdict"),
    [
        ([1.0], [2.0, 2.1], "1 and 2 blocks: no interval", Verdict.INCONCLUSIVE),
        ([0.0, 0.0], [0.0, 0.0], "0 on both sides", Verdict.INCONCLUSIVE),
        ([1.0, 1.0], [0.0, 2.0], "a value of 0 or below: no ratio", Verdict.INCONCLUSIVE),
        ([], [2.0, 2.1], "no block on one side: no ratio", Verdict.INCONCLUSIVE),
        ([2.0] * 3, [1.0] * 8, f"3 and 8 blocks, {ALIKE}", Verdict.INCONCLUSIVE),
        ([2.0, 2.1, 2.2], [1.0, 1.0], f"3 and 2 blocks, {ALIKE}", Verdict.INCONCLUSIVE),
        ([2.0] * 4, [1.0] * 4, f"4 and 4 blocks, {ALIKE}", Verdict.INCONCLUSIVE),
        ([1.0] * 4, [1.0] * 4, "", Verdict.EQUIVALENT),
    ],
)
def test_what_there_is_too_little_of_is_said(second, first, note, verdict):
    found = compare_runs([cell(second)], [cell(first)], direction=Direction.LOWER)
    assert (found.note, found.verdict) == (note, verdict)


def test_two_runs_have_the_known_difference_and_no_other(monday, tuesday):
    comparison = compare_request(ComparisonRequest((monday,), (tuesday,)))
    found = found_in(comparison, "events", "native")
    assert found.low <= 1 / 1.1 <= found.high
    assert found.verdict_adjusted is Verdict.SLOWER
    assert "Welch" in found.method
    differing = {
        (line.metric.name, line.backend)
        for line in comparison.lines
        if line.found.verdict_adjusted in (Verdict.FASTER, Verdict.SLOWER)
    }
    assert differing == {("events", "native")}
    assert not comparison.is_paired
    assert any("One run of each side does not show" in note for note in notes_of(comparison))
    assert any("emulated in software" in note for note in notes_of(comparison))


def test_swapping_the_runs_turns_every_ratio(monday, tuesday):
    there = compare_request(ComparisonRequest((monday,), (tuesday,)))
    back = compare_request(ComparisonRequest((tuesday,), (monday,)))
    for one, other in zip(there.lines, back.lines, strict=True):
        if one.found.ratio is not None and other.found.ratio is not None:
            assert one.found.ratio * other.found.ratio == pytest.approx(1)
            assert one.found.low * other.found.high == pytest.approx(1)


DIFFERENCES = {
    "host.kernel": set_fact("kernel", "6.19.1"),
    "host.virtualization": set_fact("virtualization", "none seen"),
    "image.digest": lambda content: content["image"].update(digest="sha256:cd34"),
    "envelope.memory_bytes": lambda content: content["envelope"].update(memory_bytes=2**30),
    "backend.vm.accel": lambda content: content["backends"]["vm"]["facts"].update(
        accel={"name": "accel", "text": "kvm"}
    ),
    "backend.vm.kind": lambda content: content["backends"]["vm"].update(kind="virtual-machine"),
    "tare": lambda content: content.update(tare_version="0.2.0"),
}


@pytest.mark.parametrize("field", DIFFERENCES)
def test_other_conditions_are_refused_and_can_be_allowed(monday, tuesday, field):
    before, after = (conditions(load_manifest(run)) for run in (monday, tuesday))
    assert before == after
    edit_manifest(tuesday, DIFFERENCES[field])
    with pytest.raises(NotComparableError) as refused:
        compare_request(ComparisonRequest((monday,), (tuesday,)))
    changed = conditions(load_manifest(tuesday))
    assert f"{field}: {before[field]} against {changed[field]}" in refused.value.message
    assert f"--allow {field}" in refused.value.remedy
    assert refused.value.exit_code == ExitCode.NOT_COMPARABLE
    for allowed in (field, field.partition(".")[0]):
        comparison = compare_request(ComparisonRequest((monday,), (tuesday,), allowed=(allowed,)))
        assert [one.field for one in comparison.confounds] == [field]


def test_every_difference_is_listed_and_each_needs_its_own_permission(monday, tuesday):
    for change in DIFFERENCES.values():
        edit_manifest(tuesday, change)
    found = [one.field for one in find_differences(load_manifest(monday), load_manifest(tuesday))]
    assert sorted(found) == sorted(DIFFERENCES)
    with pytest.raises(NotComparableError) as refused:
        compare_request(ComparisonRequest((monday,), (tuesday,), allowed=("host", "tare", "image")))
    assert "host." not in refused.value.message
    assert "envelope.memory_bytes" in refused.value.message


def test_what_only_one_run_has_is_left_out_and_said(tmp_path, monday):
    other = named(write_run(tmp_path / "other", replace(SMALL, seed=3, backends=("bare-metal", "native"))), "other")
    comparison = compare_request(ComparisonRequest((monday,), (other,)))
    assert {line.backend for line in comparison.lines} == {HOST, "native"}
    assert any("of monday are not in the other" in note for note in notes_of(comparison))


def test_an_experiment_that_only_one_suite_has_is_left_out_and_not_refused(tmp_path, monday):
    other = named(write_run(tmp_path / "other", replace(SMALL, seed=3, subjects=SUBJECTS[:2])), "other")
    for run in (monday, other):
        edit_manifest(run, lambda content: content["suite"].update(experiment=[{"kind": "steady", "workload": "a"}]))
    added = {
        "experiment": [
            {"kind": "steady", "workload": "a"},
            {"kind": "steady", "workload": "mine", "iterations": 9},
        ],
        "workload": [{"name": "mine", "command": ["/bin/mine"]}],
    }
    edit_manifest(other, lambda content: content["suite"].update(added))
    output = tmp_path / "comparison.json"
    command = ["compare", str(monday), str(other), "--format", "json", "-o", str(output)]
    assert CliRunner().invoke(app, command).exit_code == 0
    said = json.loads(output.read_text("utf-8"))
    assert {line["workload"] for line in said["lines"]} == {"", SMALL.subjects[0].workload}
    assert any("of other are not in the other" in note for note in said["notes"])
    edit_manifest(monday, lambda content: content["suite"].update(added))
    edit_manifest(other, lambda content: content["suite"]["experiment"][1].update(iterations=3))
    assert CliRunner().invoke(app, command).exit_code == ExitCode.NOT_COMPARABLE


def test_nonsense_is_refused(tmp_path, monday, tuesday):
    with pytest.raises(UnknownNameError, match="hots"):
        compare_request(ComparisonRequest((monday,), (tuesday,), allowed=("hots",)))
    with pytest.raises(RunDirectoryError, match="same run"):
        compare_request(ComparisonRequest((monday,), (monday,)))
    with pytest.raises(UnknownNameError, match="bare-metal, native, vm"):
        compare_request(ComparisonRequest((monday,), backends=("native", "xen")))
    with pytest.raises(UnknownNameError, match="max_prime, threads"):
        compare_request(ComparisonRequest((monday,), parameter=("block_size", "4k", "8k")))
    with pytest.raises(UnknownNameError, match="it was: 1"):
        compare_request(ComparisonRequest((monday,), parameter=("threads", "1", "2")))
    empty = write_run(tmp_path / "empty", replace(SMALL, failing=SMALL.backends))
    with pytest.raises(RunDirectoryError, match="nothing in common"):
        compare_request(ComparisonRequest((monday,), (named(empty, "empty"),)))


def test_two_backends_are_compared_block_by_block_as_the_report_does(monday):
    comparison = compare_request(ComparisonRequest((monday,), backends=("bare-metal", "vm")))
    analysis = analyse(load_run(monday))
    reported = {
        (subject.workload, row.metric.name): found.ratio
        for subject, row, one, found in analysis.comparisons
        if one.backend.name == "vm"
    }
    assert {(line.workload, line.metric.name): line.found.ratio for line in comparison.lines} == reported
    assert (comparison.first, comparison.second) == (HOST, "vm (tcg)")
    assert any("emulated in software" in note for note in notes_of(comparison))
    others = compare_request(ComparisonRequest((monday,), backends=("bare-metal", "native")))
    assert not any("emulated in software" in note for note in notes_of(others))


def test_two_values_of_a_parameter(tmp_path):
    fast, slow = (replace(SUBJECTS[0], params={"threads": n, "max_prime": 10000}) for n in (1, 2))
    slow = replace(slow, metrics=tuple((metric, base / 3, power) for metric, base, power in slow.metrics))
    run = write_run(tmp_path / "run", replace(SMALL, subjects=(fast, slow)))
    comparison = compare_request(ComparisonRequest((run,), parameter=("threads", "1", "2")))
    for backend in (HOST, "native", "vm"):
        found = found_in(comparison, "events", backend)
        assert found.low <= 1 / 3 <= found.high
        assert found.method.startswith("t over 8")
    assert {str(dict(line.params)) for line in comparison.lines} == {"{'max_prime': 10000}"}


def test_a_margin_asked_for_replaces_the_run_s(monday, tuesday):
    comparison = compare_request(ComparisonRequest((monday,), (tuesday,), margin=0.5))
    assert {line.found.margin for line in comparison.lines} == {0.5}
    assert found_in(comparison, "events", "native").verdict is Verdict.EQUIVALENT


def test_a_run_of_an_older_version_is_readable(monday, tuesday):
    def age(content):
        for field in [name for name in content["envelope"] if name not in ("cpus", "memory_bytes", "pids_max")]:
            if field != "scratch_bytes":
                del content["envelope"][field]
        content["schema_version"] = 1
        content["image"].pop("sizes", None)
        for fact in content["host"]:
            fact["value"] = fact.pop("text")
        for backend in content["backends"].values():
            backend["facts"] = {name: fact["text"] for name, fact in backend["facts"].items()}

    edit_manifest(tuesday, age)
    edit_manifest(monday, age)
    assert compare_request(ComparisonRequest((monday,), (tuesday,))).lines


def tare(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_command_and_its_exit_codes(monday, tuesday, tmp_path):
    text = tare("compare", monday, tuesday)
    assert text.exit_code == 0
    assert "tuesday against monday" in text.stdout
    assert "slower" in text.stdout
    assert tare("compare", monday).exit_code == ExitCode.USAGE
    assert tare("compare", monday, tuesday, "--backends", "native", "vm").exit_code == ExitCode.USAGE
    assert tare("compare", monday, tmp_path).exit_code == ExitCode.BAD_INPUT
    assert tare("compare", monday, tuesday, "--format", "parquet").exit_code == ExitCode.BAD_INPUT
    edit_manifest(tuesday, DIFFERENCES["host.kernel"])
    refused = tare("compare", monday, tuesday)
    assert refused.exit_code == ExitCode.NOT_COMPARABLE
    assert refused.stdout == ""
    assert "host.kernel: 6.18.0 against 6.19.1" in refused.stderr
    output = tmp_path / "compared.md"
    assert tare("compare", monday, tuesday, "--allow", "host", "-f", "markdown", "-o", output).exit_code == 0
    assert "these conditions differ" in output.read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compared.md", "monday", "tuesday"]


def test_json_and_junit_hold_the_same_verdicts(monday, tuesday):
    content = json.loads(tare("compare", monday, tuesday, "--format", "json").stdout)
    slower = [line for line in content["lines"] if line["found"]["verdict_adjusted"] == "slower"]
    tree = etree.fromstring(tare("compare", monday, tuesday, "--format", "junit").stdout.encode())
    failed = [case.get("name") for case in tree.iter("testcase") if case.find("failure") is not None]
    names = [f"{line['kind']} of {line['metric']['name']} on {line['backend']}" for line in slower]
    assert failed == names == ["isolation of events on native"]
    told = [line for line in content["lines"] if line["found"]["ratio"] is not None]
    assert len(list(tree.iter("testcase"))) == len(told) + 1, "and one for the grade"


@pytest.mark.parametrize("form", ["text", "json", "markdown", "junit"])
def test_a_comparison_leads_with_the_side_that_cannot_be_used(monday, tuesday, form):
    quiet = tare("compare", monday, tuesday, "--format", form).stdout
    assert "not usable" not in quiet.lower()
    lines = (tuesday / "events.jsonl").read_text("utf-8").splitlines()
    told = {"disturbance": {"span_s": 2.0, "cpus": 1, "busy_s": 2.0, "steal_s": 0.0, "other_s": 1.4}}
    busy = [json.loads(line) for line in lines]
    for one in busy:
        if one["kind"] == "instance_done":
            one["details"] = told
    (tuesday / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in busy), "utf-8")
    text = tare("compare", monday, tuesday, "--format", form).stdout
    assert "Not usable: the host was busy" in html.unescape(text)
    assert "tuesday" in text
    if form in ("text", "markdown"):
        assert text.index("Not usable") < text.index("slower")


def test_hostile_names_are_text_in_a_comparison(tmp_path):
    first = named(write_run(tmp_path / "first", replace(hostile_recipe(), failing=())), HOSTILE[0])
    second = named(write_run(tmp_path / "second", replace(hostile_recipe(), failing=(), seed=2)), HOSTILE[3])
    MarkdownReporter().write_comparison(compare_request(ComparisonRequest((first,), (second,))), tmp_path / "out.md")
    assert "<script" not in (tmp_path / "out.md").read_text("utf-8")
    assert msgspec.json.decode(tare("compare", first, second, "-f", "json").stdout)["first"] == HOSTILE[0]


def ramp(block, backend, count):
    return [
        Sample(
            f"d-{backend}-{block}", block, "density", "", {}, backend, "density.pss", Unit.BYTE,
            1e6 * number * (1 + 0.001 * block), number, warmup=False,
        )
        for number in range(1, count + 1)
    ]  # fmt: skip


def add_samples(run, samples):
    with (run / "samples.jsonl").open("ab") as file:
        file.writelines(msgspec.json.encode(sample) + b"\n" for sample in samples)


def test_ramps_of_different_lengths_compare_at_a_size_that_both_have(monday, tuesday):
    """A ramp to 20 does not take twice that of a ramp to 10 because an instance costs twice as much."""
    counts = {"bare-metal": 10, "native": 10, "vm": 20}
    add_samples(monday, [one for block in range(4) for name, n in counts.items() for one in ramp(block, name, n)])
    add_samples(tuesday, [one for block in range(4) for name in counts for one in ramp(block, name, 20)])
    reported = {
        cell.backend.name: found
        for _, row, cell, found in analyse(load_run(monday)).comparisons
        if row.metric.name == "density.pss"
    }
    assert {found.verdict for found in reported.values()} == {Verdict.EQUIVALENT}, "at 10"
    comparison = compare_request(ComparisonRequest((monday,), (tuesday,)))
    for name in (HOST, "native", "vm"):
        found = found_in(comparison, "density.pss", name)
        assert (found.ratio, found.note) == (None, "taken at other sizes: no ratio"), "at 10, and at 20"


# --- runs as units ----------------------------------------------------------------------------------


def test_a_host_that_changed_is_no_change_of_isolation_and_no_failure(tmp_path, monday):
    """All of tuesday is 1.5 times as fast; that of native over bare metal is what it was."""
    other = write_run(tmp_path / "other", replace(SMALL, seed=5))
    lines = [json.loads(line) for line in (other / "samples.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        line["value"] *= {"1/s": 1.5, "s": 1 / 1.5}.get(line["unit"], 1.0)
    (other / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    comparison = compare_request(ComparisonRequest((named(other, "other"),), (monday,)))
    kinds = {line.kind for line in comparison.lines}
    assert kinds == {LineKind.ISOLATION, LineKind.LEVEL}
    level = found_in(comparison, "events", HOST, LineKind.LEVEL)
    assert level.ratio == pytest.approx(1 / 1.5, rel=0.02)
    assert level.high < 1
    assert (level.verdict, level.verdict_adjusted, level.p_value) == (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE, None)
    assert found_in(comparison, "events", "native", LineKind.ISOLATION).low < 1
    assert not [one for one in comparison.lines if one.found.verdict_adjusted in (Verdict.FASTER, Verdict.SLOWER)]
    (said,) = [note for note in notes_of(comparison) if "change of the host" in note]
    assert said.startswith(f"{HOST} itself changed in ")
    tree = etree.fromstring(tare("compare", other, monday, "--format", "junit").stdout.encode())
    assert not list(tree.iter("failure"))


def three(tmp_path, name, level, seeds, ratios=None):
    runs = []
    for seed, own in zip(seeds, level, strict=True):
        run = write_run(tmp_path / f"{name}{seed}", replace(SMALL, seed=seed, ratios=ratios or SMALL.ratios))
        lines = [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]
        for line in lines:
            line["value"] *= own if line["unit"] == "1/s" else 1.0
        (run / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
        runs.append(named(run, f"{name}{seed}"))
    return runs


def test_three_runs_of_each_side_show_what_runs_differ_by(tmp_path):
    first = three(tmp_path, "a", (1.0, 1.3, 0.8), (1, 2, 3))
    second = three(tmp_path, "b", (1.2, 0.9, 1.1), (4, 5, 6), {"native": 1.1, "vm": 8.8})
    sides = [",".join(map(str, side)) for side in (first, second)]
    content = json.loads(tare("compare", *sides, "--format", "json").stdout)
    assert content["runs"] == [3, 3]
    lines = {(one["kind"], one["metric"]["name"], one["backend"]): one["found"] for one in content["lines"]}
    level = lines["level", "events", HOST]
    assert level["method"] == "Welch's t over 3 and 3 runs"
    assert level["low"] < 0.8
    assert level["high"] > 1.25
    assert level["p_value"] > 0.3
    isolation = lines["isolation", "events", "native"]
    assert isolation["low"] <= 1 / 1.1 <= isolation["high"]
    assert isolation["verdict"] == "slower"
    assert not any("do not show how much" in note or "does not show" in note for note in content["notes"])
    apart = [",".join(map(str, side)) for side in (first, three(tmp_path, "c", (9.0, 9.4, 8.6), (7, 8, 9)))]
    tree = etree.fromstring(tare("compare", apart[1], apart[0], "--format", "junit").stdout.encode())
    failed = {case.get("name") for case in tree.iter("testcase") if case.find("failure") is not None}
    assert f"level of events on {HOST}" in failed, "nine times slower, and three runs a side show it"
    assert not any(name.startswith("isolation") for name in failed)


def test_intervals_between_runs_hold_the_truth_where_runs_differ():
    random, hits, wide = np.random.default_rng(12), {True: 0, False: 0}, 400
    for _ in range(wide):
        for enough in hits:
            sides = []
            for truth in (0.05, 0.0):
                levels = truth + 0.05 * random.standard_normal(3 if enough else 1)
                sides.append([cell(np.exp(level + 0.01 * random.standard_normal(6))) for level in levels])
            found = compare_runs(*sides, direction=Direction.LOWER)
            hits[enough] += found.low <= math.exp(0.05) <= found.high
    assert hits[True] / wide >= 0.93
    assert hits[False] / wide < 0.5, "one run a side cannot know"


def test_one_night_against_many_uses_what_nights_differ_by():
    random, hits, nights = np.random.default_rng(13), 0, 500
    for _ in range(nights):
        before = [cell(np.exp(0.05 * random.standard_normal() + 0.01 * random.standard_normal(5))) for _ in range(8)]
        tonight = cell(np.exp(0.05 * random.standard_normal() + 0.01 * random.standard_normal(5)))
        found = compare_runs([tonight], before, direction=Direction.LOWER)
        hits += found.low <= 1 <= found.high
    assert found.method == "pooled t over 1 and 8 runs"
    assert 0.93 <= hits / nights <= 0.975


def test_runs_with_one_reading_give_no_verdict():
    found = compare_runs([cell([2.0])] * 3, [cell([1.0])] * 3, direction=Direction.LOWER)
    assert (found.low, found.note) == (None, "3 and 3 runs with one reading only: no interval")
    assert compare_runs([cell([2.0] * 2)] * 3, [cell([1.0] * 2)] * 3, direction=Direction.LOWER).low == 2.0


def test_a_reading_is_counted_once_in_the_tally(tmp_path):
    run = write_run(tmp_path / "run", QUICK)
    comparison = compare_request(ComparisonRequest((run,), backends=("bare-metal", "vm")))
    again = [line for line in comparison.lines if line.found.restates]
    assert again
    counted = len(comparison.lines) - len(again)
    leading = [line for line in comparison.lines if line.is_leading]
    told, every = tally(comparison).split(". ")
    assert told.startswith(f"Of {len(leading)} leading metrics: ")
    assert every.startswith(f"Of all {counted} comparisons: ")
    assert sum(map(int, re.findall(r"(\d+) (?!leading)", told))) == len(leading)
    assert f"; {len(again)} other" in tally(comparison)
    assert sum(int(part.split()[0]) for part in every.split(": ")[1].split("; ")[0].split(", ")) == counted
