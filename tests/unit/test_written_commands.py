"""``tare compare`` and ``tare plan`` from outside, against what other code computes from the runs' files."""

import json
import math
import statistics
from collections import defaultdict
from dataclasses import replace

import pytest
from scipy import stats
from typer.testing import CliRunner

from tare.bench.cli.main import app
from tests.recompute_report import Centre, OfFamily, Recomputed, family_q_values, subject_of
from tests.synthetic import QUICK, SUBJECTS, write_run
from tests.unit.test_stored_runs import unpacked
from tests.unit.test_written_numbers import prints
from tests.written import markdown_rows, says_change, text_rows

RECIPE = replace(QUICK, blocks=6, instances=2, iterations=3, noise=0.01, seed=11)
SUFFIX = {"json": "json", "markdown": "md", "text": "txt", "table": "txt"}


def invoke(folder, *arguments, form):
    output = folder / f"out-{form}.{SUFFIX[form]}"
    result = CliRunner().invoke(app, [*arguments, "--format", form, "-o", str(output)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return output.read_text("utf-8")


# --- two runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    first = write_run(folder / "first", RECIPE)
    other = replace(RECIPE, blocks=5, seed=12, ratios={"native": 1.07, "vm": 8.8})
    second = write_run(folder / "second", other)
    return first, second


@pytest.fixture(scope="module")
def compared(two, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return lambda form: invoke(folder, "compare", *map(str, two), form=form)


def logs(run, subject, backend):
    return [math.log(value) for value in run.cells[subject][backend].values()]


def sides_of(line, runs):
    """The logarithms that the line compares, of either run: levels, or ratios to the baseline block by block."""
    subject = subject_of(line | {"metric": line["metric"]["name"]})
    backend = next(name for name in runs[0].manifest["backends"] if label_of(runs[0], name) == line["backend"])
    if line["kind"] == "level":
        return [logs(run, subject, backend) for run in runs]
    cells = [run.cells[subject] for run in runs]
    return [[math.log(one[backend][block] / one["bare-metal"][block]) for block in one[backend]] for one in cells]


def test_two_runs_are_compared_by_welch_over_their_blocks(two, compared):
    runs = [Recomputed(run) for run in two]
    lines = [line for line in json.loads(compared("json"))["lines"] if line["found"]["low"] is not None]
    assert len(lines) > 30
    families = defaultdict(list)
    for line in lines:
        before, after = sides_of(line, runs)
        found = line["found"]
        ratio = statistics.fmean(after) - statistics.fmean(before)
        assert found["ratio"] == pytest.approx(math.exp(ratio), rel=1e-9)
        test = stats.ttest_ind(after, before, equal_var=False)
        interval = test.confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx(
            (math.exp(interval.low), math.exp(interval.high)), rel=1e-8
        )
        assert found["n_blocks"] == min(len(before), len(after))
        assert line["first"]["centre"] == pytest.approx(math.exp(statistics.fmean(before)), rel=1e-9)
        assert line["second"]["centre"] == pytest.approx(math.exp(statistics.fmean(after)), rel=1e-9)
        if line["kind"] == "level":
            assert found["p_value"] is None
            assert found["verdict"] == found["verdict_adjusted"] == "inconclusive"
        else:
            assert found["p_value"] == pytest.approx(test.pvalue, rel=1e-6)
            reading = "/".join(subject_of(line | {"metric": ""}))
            tested = OfFamily(found["p_value"], [[*before, *after]], reading, line["is_leading"])
            families[line["backend"]].append((found, tested))
    assert len(families) == 2
    for family in families.values():
        expected = family_q_values([tested for _, tested in family])
        assert [found["q_value"] for found, _ in family] == pytest.approx(expected, rel=1e-9)


def label_of(run, name):
    """As reports have it: the synthetic host is itself a virtual machine."""
    return "host (a VM)" if name == "bare-metal" else run.manifest["backends"][name]["label"]


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_every_comparison_is_printed_as_it_rounds(compared, form):
    rows = list((text_rows if form == "text" else markdown_rows)(compared(form)))
    lines = [line for line in json.loads(compared("json"))["lines"] if line["found"]["low"] is not None]
    for line in lines:
        found = line["found"]
        expected = [line["first"]["centre"], line["second"]["centre"], found["ratio"], found["low"], found["high"]]
        assert any(stands_in(cells, expected) for cells in rows), line


def stands_in(cells, expected):
    """Both sides, the difference and its interval, in neighbouring cells."""
    for start in range(len(cells) - 3):
        first, second, difference, interval = (cell.strip() for cell in cells[start : start + 4])
        if not (all(side[:1] in "0123456789+−×÷" for side in (first, second)) and " to " in interval):
            continue
        changes = [difference, *interval.split(" to ")]
        told = all(map(says_change, changes, expected[2:]))
        return told and all(map(says_side, (first, second), expected[:2]))
    return False


def says_side(text, value):
    """A value of a level, or what isolation costs in per cent."""
    return says_change(text, value) if text[:1] in "+−×÷" or text == "0 %" else prints(text, value)


def test_two_backends_of_a_run_are_compared_block_by_block(two, tmp_path):
    run = Recomputed(two[0])
    text = invoke(tmp_path, "compare", str(two[0]), "--backends", "native", "vm", form="json")
    for line in json.loads(text)["lines"]:
        if line["found"]["low"] is None:
            continue
        cells = run.cells[subject_of(line | {"metric": line["metric"]["name"]})]
        differences = [math.log(cells["vm"][block] / cells["native"][block]) for block in cells["vm"]]
        assert line["found"]["ratio"] == pytest.approx(math.exp(statistics.fmean(differences)), rel=1e-9)
        assert line["found"]["p_value"] == pytest.approx(Centre.of(differences).p_value, rel=1e-5)


# --- plans ------------------------------------------------------------------------------------------

GIB = 2**30
ASKED = ("--cpus", "10", "--memory", "32GiB", "--disk", "1TiB", "--overcommit", "cpu=3", "--overcommit", "memory=1.5",
         "--overcommit", "disk=2", "--reserve", "memory=3GiB", "--reserve", "cpu=1.5", "--reserve", "disk=20GiB",
         "--instances", "777")  # fmt: skip
USABLE = {
    ("cpu", False): 8.5, ("cpu", True): 25.5, ("memory", False): 29 * GIB, ("memory", True): 29 * GIB * 1.5,
    ("disk", False): 1004 * GIB, ("disk", True): 2008 * GIB, ("memory cgroups", False): 65535,
}  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    run = unpacked("density", folder)
    return lambda form, *more: invoke(folder, "plan", str(run), *ASKED, *more, form=form)


@pytest.mark.parametrize("basis", ["measured", "limits"])
def test_a_plan_is_what_its_capacities_hold(planned, basis):
    plans = json.loads(planned("json", "--basis", basis))["plans"]
    assert len(plans) > 3
    for plan in plans:
        for room in plan["rooms"]:
            assert room["usable"] == pytest.approx(USABLE[room["resource"], room["promised"]], rel=1e-12)
            if room["instances"] is not None:
                assert holds(room["instances"], room["each"], room["usable"])
            if room["fewest"] is not None and room["most"] is not None:
                assert room["fewest"] <= room["instances"] <= room["most"]
            if room["resource"] == "memory":
                assert room["binds"] == (room["promised"] == (basis == "limits"))
        binding = [room for room in plan["rooms"] if room["binds"] and room["instances"] is not None]
        assert plan["instances"] == min(room["instances"] for room in binding)
        first = min(binding, key=lambda room: room["instances"])
        assert plan["binds"].startswith(first["resource"])
        if plan["instances_interval"]:
            ends = [
                min(room[end] if room[end] is not None else room["instances"] for room in binding)
                for end in ("fewest", "most")
            ]
            assert plan["instances_interval"] == ends
        assert plan["extrapolated"] == (plan["instances"] > 10 * plan["measured_population"])


def holds(count, each, usable):
    """That many fit, and one more does not; what is needed once is at most what a hundredth of them take."""
    return count * each <= usable * 1.0001 and (count + 1.01) * each * 1.01 + 2**26 * (each > 1e3) > usable


def test_a_plan_says_how_many_hosts_are_needed_and_what_is_used(planned):
    for plan in json.loads(planned("json"))["plans"]:
        assert plan["hosts_needed" if "hosts_needed" in plan else "hosts"] == math.ceil(777 / plan["instances"])
        rooms = {(room["resource"], room["promised"]): room for room in plan["rooms"]}
        for use in plan["headroom"]:
            room = rooms[use["resource"], use["promised"]]
            assert use["usable"] == room["usable"]
            assert use["share"] == pytest.approx(use["used"] / use["usable"], rel=1e-12)
            assert use["left"] == pytest.approx(use["usable"] - use["used"], rel=1e-9)
            assert use["used"] >= plan["instances"] * room["each"] * 0.999


def test_the_limits_of_an_instance_are_its_envelope(planned, tmp_path):
    envelope = Recomputed(unpacked("density", tmp_path)).manifest["envelope"]
    for plan in json.loads(planned("json"))["plans"]:
        promised = {room["resource"]: room["each"] for room in plan["rooms"] if room["promised"]}
        assert promised["cpu"] == len(envelope["cpus"])
        assert promised["memory"] >= envelope["memory_bytes"]
        assert promised["memory"] == pytest.approx(envelope["memory_bytes"], rel=0.05)
        assert promised["disk"] >= envelope["scratch_bytes"]
        assert promised["disk"] == pytest.approx(envelope["scratch_bytes"], rel=0.05)


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_a_plan_is_printed_as_it_is(planned, form):
    rows = list((text_rows if form == "table" else markdown_rows)(planned(form)))
    cells = {cell for row in rows for cell in row}
    for plan in json.loads(planned("json"))["plans"]:
        assert any(cell.rstrip(" *\\") == f"{plan['instances']:,}" for cell in cells)
        for room in plan["rooms"]:
            if room["resource"] == "memory cgroups":
                continue
            chosen = [
                row for row in rows if row[0].startswith(room["resource"]) and len(row) >= 6 and row[4] == text_of(room)
            ]
            assert any(prints(row[2], room["each"]) and prints(row[3], room["usable"]) for row in chosen), room
            if room["fewest"] not in (None, room["instances"]) and room["most"] is not None:
                said = f"{room['fewest']:,} to {room['most']:,}"
                assert any(said in row[5] for row in chosen), room


def text_of(room):
    return "no end" if room["instances"] is None else f"{room['instances']:,}"


def test_a_subject_with_one_of_two_values_is_left_out_of_their_comparison(tmp_path):
    cpu, _, pipe = SUBJECTS
    subjects = (
        replace(cpu, params={"size": "a"}),
        replace(cpu, params={"size": "b"}),
        replace(pipe, params={"size": "a"}),
    )
    run = write_run(tmp_path / "run", replace(RECIPE, subjects=subjects))
    lines = json.loads(invoke(tmp_path, "compare", str(run), "--by", "size", "a", "b", form="json"))["lines"]
    assert {line["workload"] for line in lines} == {cpu.workload}
    computed = Recomputed(run)
    for line in lines:
        name, backend = (
            line["metric"]["name"],
            next(name for name in computed.manifest["backends"] if label_of(computed, name) == line["backend"]),
        )
        if line["found"]["low"] is None:
            continue
        first, second = (
            computed.cells["steady", cpu.workload, json.dumps({"size": size}), name][backend] for size in "ab"
        )
        differences = [math.log(second[block] / first[block]) for block in first]
        assert line["found"]["ratio"] == pytest.approx(math.exp(statistics.fmean(differences)), rel=1e-9)
