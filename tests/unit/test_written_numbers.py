"""Each written form of a report against what other code computes from the run's files (``tests.recompute_report``)."""

import datetime as dt
import html
import json
import math
import re
import statistics
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from lxml import etree

from tests.recompute_report import OfFamily, Recomputed, family_q_values, subject_of
from tests.synthetic import QUICK, SUBJECTS, write_run
from tests.unit.test_stored_runs import has_difference, report_to, unpacked
from tests.written import Page, markdown_rows, says_change, text_rows

RECIPE = replace(QUICK, blocks=6, instances=2, iterations=4, noise=0.012, seed=3, ratios={"native": 1.025, "vm": 1.9})
"""Of native's speed measures one differs only before the correction for many comparisons."""
ENVELOPE = {
    "cpus": [1, 3, 6], "memory_bytes": 7 * 2**27, "scratch_bytes": 5 * 2**26, "pids_max": 1234, "swap_bytes": 3 * 2**25,
    "cpu_quota": 1.75, "cpu_weight": 321, "io_read_bytes_per_s": 11 * 2**20, "io_write_bytes_per_s": 13 * 2**20,
    "io_read_ops_per_s": 4567, "io_write_ops_per_s": 8910,
}  # fmt: skip
"""No two lines of the report's table are alike."""
BINARY = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SCALES = {**BINARY, "s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "min": 60, "h": 3600, "%": 0.01, "×": 1, "": 1}
SHOWN = re.compile(r"(-?[\d,]+(?:\.\d+)?)\s?((?:[KMGT]iB|B|ms|µs|ns|s|min|h|%|×)?)(/s)?")


def shown(text):
    """A printed quantity in base units with the half of its last digit that counts; zeros at the end may not count."""
    number, unit, _ = SHOWN.match(text).groups()
    digits = number.replace(",", "")
    last = 10.0 ** -len(digits.partition(".")[2]) if "." in digits else 10.0 ** (len(digits) - len(digits.rstrip("0")))
    return float(digits) * SCALES[unit], max(last, 1e-9) * SCALES[unit] / 2


def prints(text, value):
    """Whether ``text`` is ``value`` rounded."""
    number, half = shown(text.strip())
    return abs(number - value) <= half * 1.1 or (value == 0 and number == 0)  # a tenth: what is rounded twice


@pytest.fixture(scope="module", params=["synthetic", "interrupted", "quickstart"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    if request.param == "quickstart":
        return unpacked("quickstart", folder)
    recipe = RECIPE if request.param == "synthetic" else replace(RECIPE, blocks=4, failing=("vm",), half_written=True)
    path = write_run(folder / "run", recipe)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["envelope"] = ENVELOPE
    manifest |= {"planned_instances": 432, "seed": 98765, "started_utc": "2026-03-07T04:05:06+00:00"}
    manifest["ended_utc"] = "2026-03-07T04:08:29+00:00"
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="module")
def computed(run):
    return Recomputed(run)


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")

    def write(form):
        path = folder / form
        if not path.exists():
            report_to(path, run, form)
        return path.read_text("utf-8")

    return write


@pytest.fixture(scope="module")
def report(written):
    return json.loads(written("json"))


@pytest.fixture(scope="module")
def page(written):
    return Page(written("html"))


def compared(report):
    return [one for one in report["results"] if one["comparison"] is not None and one["comparison"]["low"] is not None]


# --- JSON: every number from the samples ------------------------------------------------------------


def test_every_cell_that_was_measured_is_in_the_json_report(report, computed):
    there = {(subject_of(one), one["backend"]) for one in report["results"] if one["value"] is not None}
    assert there == {(subject, backend) for subject, backends in computed.cells.items() for backend in backends}


def test_values_and_counts(report, computed):
    checked = 0
    for one in report["results"]:
        if one["value"] is None or one["quantile"] is not None:
            continue
        subject, backend = subject_of(one), one["backend"]
        assert (one["blocks"], one["instances"], one["iterations"]) == computed.counts[subject, backend]
        if min(computed.cells[subject][backend].values()) <= 0:
            continue
        expected = computed.value(subject, backend)
        assert one["value"] == pytest.approx(expected.value, rel=1e-9)
        if expected.low is not None:
            assert (one["value_low"], one["value_high"]) == pytest.approx((expected.low, expected.high), rel=1e-9)
            checked += 1
    assert checked > 20


def test_comparisons(report, computed):
    rows = compared(report)
    assert len(rows) > 15
    for one in rows:
        found, expected = one["comparison"], computed.comparison(subject_of(one), one["backend"])
        assert found["ratio"] == pytest.approx(expected.value, rel=1e-9)
        if expected.low is None:
            continue
        assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), rel=1e-9)
        assert found["p_value"] == pytest.approx(expected.p_value, rel=1e-6)
        assert found["p_skewed"] == pytest.approx(expected.p_skewed, rel=1e-6)
        kept = found["verdict_adjusted"] in ("faster", "slower")
        corrected = found["q_value"] * expected.p_skewed / max(expected.p_value, 1e-300)
        assert found["is_tentative"] is (kept and corrected > 0.05)
        assert found["verdict"] == expected.verdict(one["direction"], found["margin"])
        assert found["level"] == 0.95


def test_false_discoveries_are_controlled_in_each_pair_of_backends(report, computed):
    families = defaultdict(list)
    for one in report["results"]:
        if one["comparison"] and one["comparison"]["p_value"] is not None:
            families[one["backend"]].append(one)
    assert families
    for backend, results in families.items():
        family = []
        for one in results:
            cells = computed.cells[subject_of(one)]
            base = cells[report["baseline"]]
            pairs = [
                [(cells[name][block], base[block]) for block in sorted(cells[name].keys() & base.keys())]
                for name in report["backends"] if name in cells and name != report["baseline"]
            ]  # fmt: skip
            logs = [[math.log(a / b) for a, b in pair] if all(a * b > 0 for a, b in pair) else [] for pair in pairs]
            subject = "/".join(subject_of(one)[:3])
            family.append(OfFamily(one["comparison"]["p_value"], logs, subject, one["is_leading"]))
        for one, q_value in zip(results, family_q_values(family), strict=True):
            found = one["comparison"]
            assert found["q_value"] == pytest.approx(q_value, rel=1e-9)
            differs = found["verdict"] in ("faster", "slower")
            assert found["verdict_adjusted"] == ("inconclusive" if differs and q_value > 0.05 else found["verdict"])
            assert found["family"] == f"{backend} over {report['baseline']}"


def test_the_noise_floor_of_each_metric_and_the_worst(report, computed):
    floors = {}
    for one in report["results"]:
        if one["noise_floor"] is None or one["noise_floor"]["detectable"] is None:
            continue
        subject = subject_of(one)
        values = computed.cells[subject][report["baseline"]].values()
        if max(values) > min(values):
            floors[subject] = one["noise_floor"]["detectable"]
            expected = computed.detectable(subject, one["noise_floor"]["comparison"]["margin"])
            assert math.log(floors[subject]) == pytest.approx(math.log(expected), rel=0.02)
    noise = report["noise"]
    worst = {subject for subject, floor in floors.items() if floor == noise["detectable_worst"]}
    assert noise["worst"][1] in {subject[3] for subject in worst}
    assert noise["detectable"] <= noise["detectable_worst"]
    assert noise["tested"] <= len({subject_of(one) for one in report["results"] if one["noise_floor"] is not None})


def test_the_noise_is_that_of_the_leading_metrics(report):
    """Of each subject the one that it is known by: the typical one and the worst."""
    floors = {}
    for one in report["results"]:
        leads = one["metric"] == "boot.total" or (one["experiment"] == "steady" and subject_of(one)[:3] not in floors)
        if one["noise_floor"] and leads:
            floors.setdefault(subject_of(one)[:3], one["noise_floor"]["detectable"])
    values = sorted(floor for floor in floors.values() if floor is not None)
    assert report["noise"]["leading"] == len(values) > 2
    assert report["noise"]["detectable_worst"] == values[-1]
    assert report["noise"]["detectable"] == pytest.approx(statistics.median(values), rel=1e-12)


# --- the page ---------------------------------------------------------------------------------------


def fact(page, term):
    return next(text for name, text in page.facts if name == term)


def test_the_run_line_says_when_and_the_design(page, computed):
    manifest, samples = computed.manifest, computed.samples
    started = dt.datetime.fromisoformat(manifest["started_utc"])
    counted = {name: len({one[name] for one in samples}) for name in ("block", "instance")}
    assert f"{started:%Y-%m-%d %H:%M} UTC: {counted['block']} blocks, {counted['instance']:,} instances" in page.text
    assert f"(seed {manifest['seed']})" in page.text


def test_the_envelope_is_said_line_by_line(page, computed):
    envelope = computed.manifest["envelope"]
    assert fact(page, "CPUs") == ", ".join(map(str, envelope["cpus"]))
    for term, name in (("Memory", "memory_bytes"), ("Scratch folder", "scratch_bytes"), ("Swap", "swap_bytes")):
        if envelope[name]:
            assert prints(fact(page, term), envelope[name]), term
    assert fact(page, "Most processes") == f"{envelope['pids_max']:,}"
    if envelope["cpu_quota"] is None:
        assert {"Swap", "CPU quota", "CPU weight", "Read at most", "Written at most"}.isdisjoint(dict(page.facts))
        return
    assert shown(fact(page, "CPU quota"))[0] == envelope["cpu_quota"]
    assert fact(page, "CPU weight") == str(envelope["cpu_weight"])
    for term, side in (("Read at most", "read"), ("Written at most", "write")):
        rate, operations = fact(page, term).split(", ")
        assert prints(rate, envelope[f"io_{side}_bytes_per_s"])
        assert operations.startswith(f"{envelope[f'io_{side}_ops_per_s']:,} operations")


def test_every_number_on_the_page_is_the_one_in_the_json_form(page, report):
    """Each that the page names by its key: exact in the attribute, rounded in the text."""
    results = {one["key"]: one for one in report["results"]}
    assert len(page.data) > 60
    for key, value, text in page.data:
        cell, _, kind = key.rpartition("#")
        one = results[cell]
        exact = one["value"] if kind == "value" else one["comparison"]["ratio"]
        assert float(value) == exact
        if kind == "value":
            assert prints_loosely(text, exact, one), (key, text)
        elif "×" in text[-1:]:
            assert prints(text, exact)
        else:
            assert says_change(text, exact) or says_in_words(text, exact, one), (key, text)


def prints_loosely(text, exact, one):
    """As many digits as the interval supports: the text is nearer to the value than a tenth of it or its last digit."""
    millions = 1e6 if "million" in text else 1
    number, half = shown(text.replace(" million", ""))
    number, half = number * millions, half * millions
    minutes = re.match(r"(\d+) min (\d+) s", text)
    if minutes:
        number, half = 60 * int(minutes[1]) + int(minutes[2]), 0.5
    return abs(number - exact) <= max(half * 1.1, 0.05 * abs(exact)) and one["unit"] in UNITS


UNITS = ("s", "B", "B/s", "1/s", "1", "ratio", "share", "CPUs")


def says_in_words(text, ratio, one):
    """``21 % slower``, ``3.2 times as much``; what is the same, and what could not be told, has no number."""
    verdict = one["comparison"]["verdict_adjusted"]
    if text in ("same", "could not tell"):
        return verdict == {"same": "equivalent", "could not tell": "inconclusive"}[text]
    number = float(re.match(r"[\d,.]+", text)[0].replace(",", ""))
    words = {"faster": ("faster", "less", "better"), "slower": ("slower", "more", "as much", "times less", "worse")}
    assert any(word in text for word in words[verdict]), (text, verdict)
    if "times" in text:
        return max(ratio, 1 / ratio) == pytest.approx(number, rel=0.06)
    return abs(100 * abs(ratio - 1) - number) <= 0.51


def test_the_page_has_every_comparison_of_what_was_really_measured(page, report):
    named = {key for key, *_ in page.data}
    told = compared(report)
    assert told
    for one in told:
        assert f"{one['key']}#ratio" in named


def test_tables_to_save_hold_exact_intervals(page, report):
    known = {(str(one["comparison"]["low"]), str(one["comparison"]["high"])) for one in compared(report)}
    saved = {
        tuple(value.split("\t"))
        for exact in page.exact
        for value in exact
        if re.fullmatch(r"[\d.e+-]+\t[\d.e+-]+", value)
    }
    apart = {name for name, about in report["backends"].items() if about["emulated_apart"]}
    real = {
        (str(one["comparison"]["low"]), str(one["comparison"]["high"]))
        for one in compared(report)
        if one["backend"] not in apart
    }
    assert real <= saved
    assert saved - known <= {value for value in saved if value not in known}


def test_the_method_counts_samples_and_comparisons(page, report, computed):
    warmups = sum(one["warmup"] for one in computed.samples)
    assert f"({warmups:,} of {len(computed.samples):,} samples" in page.text
    tested = [
        one["comparison"] for one in report["results"] if one["comparison"] and one["comparison"]["p_value"] is not None
    ]
    said = re.search(r"Over the ([\d,]+) comparisons", page.text)
    assert int(said[1].replace(",", "")) == len(tested)


def test_what_did_not_survive_the_correction_is_counted(report):
    lost = [
        one
        for one in report["results"]
        if one["comparison"] and one["comparison"]["verdict"] != one["comparison"]["verdict_adjusted"]
    ]
    said = [one["text"] for one in report["doubts"] if one["code"] == "corrections"]
    assert bool(said) is bool(lost)
    if lost:
        assert re.search(r", (\d+) differences? do", said[0])[1] == str(len(lost))


# --- sentences, wherever they stand -----------------------------------------------------------------


def excess(ratio):
    return f"{ratio:.2f}×" if ratio >= 2 else f"{float(f'{(ratio - 1) * 100:.2g}'):g} %"


@pytest.mark.parametrize("form", ["html", "text", "markdown"])
def test_the_noise_sentence(written, report, form):
    noise = report["noise"]
    text = Page(written(form)).text if form == "html" else " ".join(written(form).split())
    if noise["detectable"] is None:
        assert "Too few blocks to say how small a difference" in text
        return
    sentence = re.search(r"a run this long detects differences of about .*?\w\)?\.(?= |$)(?:[^.]* metrics?\.)?", text)[
        0
    ]
    assert excess(noise["detectable"]) in sentence.split("nine times")[0]
    assert excess(noise["detectable_worst"]) in sentence
    alarms = len(noise["false_alarms"])
    if noise["tested"]:
        assert f"{alarms or 'none'} of {noise['tested']} metric" in sentence


@pytest.mark.parametrize("form", ["html", "text", "markdown", "junit", "answer", "json"])
def test_every_form_says_the_same_grade_and_headline(written, report, form):
    text = Page(written(form)).text if form == "html" else written(form)
    text = " ".join(html.unescape(text).split())
    assert report["grade"]["level"].capitalize() in text or form == "json"
    assert report["grade"]["reason"] in text
    for sentence in re.findall(r"[^.]+\.(?= |$)", report["headline"])[:2]:
        assert " ".join(sentence.split()) in text, form


def test_the_headline_says_what_the_verdicts_say(report):
    """Of what is really compared, by area: nothing measurable only where every leading verdict is equivalent."""
    said = report["headline"]
    apart = {name for name, about in report["backends"].items() if about["emulated_apart"]}
    leading = {}
    for one in report["results"]:
        own = one["experiment"] == "steady" or one["metric"] == "boot.total"
        if own and one["backend"] not in apart and one["comparison"] is not None:
            leading.setdefault((subject_of(one)[:3], one["backend"]), one)
    verdicts = {one["comparison"]["verdict_adjusted"] for one in leading.values()}
    if report["grade"]["level"] == "not usable":
        assert said == f"This run cannot be used: {report['grade']['reason'].partition(': ')[0]}."
        return
    assert ("nothing measurable" in said) is ("equivalent" in verdicts)
    assert ("could not tell" in said) is ("inconclusive" in verdicts)
    assert ("slower in" in said or "later" in said) is ("slower" in verdicts)


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_the_tables_have_every_comparison_as_it_rounds(written, report, form):
    lines = list((text_rows if form == "text" else markdown_rows)(written(form)))
    apart = {name for name, about in report["backends"].items() if about["emulated_apart"]}
    told = [one for one in compared(report) if one["backend"] not in apart]
    assert told
    for one in told:
        found = one["comparison"]
        wanted = [found["ratio"], found["low"], found["high"]]
        matching = [cells for cells in lines if one["label"] in cells]
        assert any(has_difference(cells, wanted) for cells in matching), one


# --- what other programs read -----------------------------------------------------------------------


def test_openmetrics_holds_the_same_values(written, report):
    values = {}
    for line in written("openmetrics").splitlines():
        if found := re.match(r"(tare_\w+)\{(.*)\} (\S+)$", line):
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2]))
            key = tuple(labels.get(name) for name in ("experiment", "workload", "metric", "backend", "params", "bound"))
            kind = found[1] if found[1].startswith("tare_comparison") else "value"
            if labels.get("bound"):
                values[(kind, *key)] = float(found[3])
    for one in report["results"]:
        params = json.dumps(one["params"], sort_keys=True).replace('"', '\\"') if one["params"] else ""
        key = (one["experiment"], one["workload"], one["metric"], one["backend"], params)
        if one["value"] is not None and one["quantile"] is None:
            assert values["value", *key, "centre"] == one["value"]
            if one["value_low"] is not None:
                assert (values["value", *key, "low"], values["value", *key, "high"]) == (
                    one["value_low"],
                    one["value_high"],
                )
        if one["comparison"] and one["comparison"]["low"] is not None:
            for bound, name in (("centre", "ratio"), ("low", "low"), ("high", "high")):
                assert values["tare_comparison_ratio", *key, bound] == one["comparison"][name]


def test_openmetrics_says_which_verdict_and_how_many_failed(written, report, computed):
    text = written("openmetrics")
    failed = sum(event["kind"] == "instance_failed" for event in computed.events)
    assert re.search(rf"^tare_failed_instances\{{[^}}]*\}} {failed}(\.0)?$", text, re.MULTILINE)
    chosen = re.findall(r'^tare_verdict\{.*tare_verdict="(\w+)"\} 1', text, re.MULTILINE)
    expected = [one["comparison"]["verdict_adjusted"] for one in compared(report)]
    assert Counter(expected) <= Counter(chosen)


def test_junit_counts_and_times(written, computed, report):
    """A case is a cell: its time is that of its instances from start to end, its failure if all of them failed."""
    began, took, failed = {}, Counter(), Counter()
    cells = {}
    for event in computed.events:
        if event["kind"] == "instance_started":
            began[event["instance"]] = event["at_s"]
            cells[event["cell"]] = None
        elif event["kind"] in ("instance_done", "instance_failed"):
            took[event["cell"]] += event["at_s"] - began[event["instance"]]
            failed[event["cell"]] += event["kind"] == "instance_failed"
    root = etree.fromstring(written("junit").encode())
    labels = {about["label"]: name for name, about in report["backends"].items()}
    cases = {
        f"{suite.get('name')}/{labels.get(case.get('name'), case.get('name'))}": case
        for suite in root.iter("testsuite")
        for case in suite.iter("testcase")
    }
    assert cases.keys() >= cells.keys()
    for cell in cells:
        case = cases[cell]
        assert float(case.get("time")) == pytest.approx(took[cell], abs=2e-3)
        assert bool(failed[cell]) == any(child.tag in ("failure", "error") for child in case)
    for suite in root.iter("testsuite"):
        own = list(suite.iter("testcase"))
        assert int(suite.get("tests")) == len(own)
        broken = [
            sum(any(child.tag == tag for child in case) for case in own) for tag in ("failure", "error", "skipped")
        ]
        assert [int(suite.get(name)) for name in ("failures", "errors", "skipped")] == broken
        assert float(suite.get("time")) == pytest.approx(sum(float(case.get("time")) for case in own), abs=1e-2)


def test_pyperf_holds_every_duration(written, computed):
    benches = {bench["metadata"]["name"]: bench for bench in json.loads(written("pyperf"))["benchmarks"]}
    values = [value for bench in benches.values() for one in bench["runs"] for value in one.get("values", ())]
    held = [one["value"] for one in computed.samples if one["unit"] in ("s", "B", "1") and not one["warmup"]]
    assert values
    assert Counter(f"{value:.9g}" for value in values) <= Counter(f"{value:.9g}" for value in held if value > 0)
    durations = Counter(
        f"{one['value']:.9g}" for one in computed.samples if one["metric"] == "command.duration" and not one["warmup"]
    )
    assert durations <= Counter(f"{value:.9g}" for value in values)


def test_the_report_is_of_this_run(report, computed):
    manifest = computed.manifest
    for name in ("run", "status", "seed", "started_utc", "ended_utc", "baseline"):
        assert report[name] == manifest[name]
    assert not math.isnan(report["margin"])
    failed = sum(event["kind"] == "instance_failed" for event in computed.events)
    assert len(report["failures"]) == failed


def test_what_is_found_to_be_warm_up_is_left_out_of_every_metric_of_its_cell(tmp_path):
    """The leading metric decides, for all backends of the subject: here the first eight iterations of the guest's."""
    late, found = 8, 0
    run = write_run(tmp_path / "run", replace(RECIPE, iterations=30, subjects=SUBJECTS[:1], noise=0.004))
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for one in lines:
        if one["backend"] == "vm" and one["metric"] == "events" and one["iteration"] < late:
            one["value"] *= 0.6
        if one["metric"] == "command.duration":
            one["value"] *= 1 + 0.001 * one["iteration"]  # so that it matters which are left out
    (run / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    report_to(tmp_path / "json", run, "json")
    for one in lines:
        one["warmup"] |= one["workload"] != "" and one["iteration"] < late and is_of_iteration(one)
    (run / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    computed = Recomputed(run)
    for one in json.loads((tmp_path / "json").read_text("utf-8"))["results"]:
        subject = subject_of(one)
        if one["experiment"] == "steady" and one["metric"] in ("events", "command.duration", "host.cpu"):
            found += 1
            assert one["warm_up"]["first_settled"] == late
            assert one["iterations"] == computed.counts[subject, one["backend"]][2]
            assert one["value"] == pytest.approx(computed.value(subject, one["backend"]).value, rel=1e-9)
    assert found == 9


def is_of_iteration(one):
    return not one["metric"].startswith("instance.") and one["metric"] != "host.memory_peak"


def test_the_precision_that_was_asked_for_is_that_of_the_leading_metric(tmp_path):
    run = write_run(tmp_path / "run", replace(RECIPE, subjects=SUBJECTS[:2]))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["precision"] = {"steady/sysbench-cpu/max_prime=10000,threads=1": 0.02}
    (run / "manifest.json").write_text(json.dumps(manifest))
    report_to(tmp_path / "json", run, "json")
    results = json.loads((tmp_path / "json").read_text("utf-8"))["results"]
    with_one = {(one["workload"], one["metric"], one["backend"]) for one in results if one["precision"] is not None}
    assert with_one == {("sysbench-cpu", "events", backend) for backend in ("native", "vm")}
