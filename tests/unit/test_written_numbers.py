"""Each written form of a report against what other code computes from the run's files (``tests.recompute_report``)."""

import base64
import datetime as dt
import gzip
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
from tests.unit.test_stored_runs import report_to, unpacked
from tests.written import Page, markdown_rows, text_rows

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


def test_the_noise_is_that_of_the_leading_metrics(report, page):
    """Of each subject the first of the metrics that lead the page: the typical one and the worst."""
    floors = {}
    for one in report["results"]:
        subject = subject_of(one)
        if one["noise_floor"] and any(subject[3] in name.split() for name in leading_names(page)):
            floors.setdefault(subject[:3], one["noise_floor"]["detectable"])
    values = sorted(floor for floor in floors.values() if floor is not None)
    assert report["noise"]["leading"] == len(values) > 2
    assert report["noise"]["detectable_worst"] == values[-1]
    assert report["noise"]["detectable"] == pytest.approx(statistics.median(values), rel=1e-12)


def leading_names(page):
    """The names in the first table of ratios."""
    names = []
    for cells, exact in zip(page.rows, page.exact, strict=True):
        if cells[:3] == ["Metric", "Backend", "Ratio"]:
            if names:
                break
            names.append("")
        elif names and len(cells) != 8 and (len(cells) != 3 or exact[0] or cells[0] == "Phase"):
            break
        elif names and exact[0]:
            names.append(exact[0])
    return set(names) - {""}


# --- the page ---------------------------------------------------------------------------------------


def fact(page, term):
    return next(text for name, text in page.facts if name == term)


def test_the_run_line_says_when_how_long_and_the_design(page, computed):
    manifest, samples = computed.manifest, computed.samples
    started, ended = (dt.datetime.fromisoformat(manifest[name]) for name in ("started_utc", "ended_utc"))
    text = fact(page, "Run")
    assert f"{started.day} {started:%B %Y, %H:%M:%S} UTC" in text
    took = (ended - started).total_seconds()
    minutes = re.search(r"(\d+) min (\d+) s", text)
    said = 60 * int(minutes[1]) + int(minutes[2]) if minutes else shown(re.search(r"UTC, ([^,]*),", text)[1])[0]
    assert abs(said - took) <= 1
    assert manifest["status"] in text
    counted = {name: len({one[name] for one in samples}) for name in ("block", "instance")}
    assert f"{counted['block']} blocks" in text
    assert f"{counted['instance']:,} instances of {manifest['planned_instances']:,} planned" in text
    assert f"seed {manifest['seed']}" in text


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


def test_every_cell_of_a_table_shows_what_its_download_holds(page):
    checked = 0
    for cells, exact in zip(page.rows, page.exact, strict=True):
        for text, values in zip(cells, exact, strict=True):
            parts = [part for part in values.split("\t") if re.fullmatch(r"-?\d[\d.e+-]*", part)]
            if not parts or not text:
                continue
            texts = [one for one in re.split(r"–| – ", text) if one] if len(parts) > 1 else [text]
            for one, part in zip(texts, parts, strict=True):
                assert prints(one, float(part)), (cells, values)
                checked += 1
    assert checked > 100


def test_the_page_has_every_comparison_in_full_precision(page, report):
    """Each with its value, its ratio and what it comes from; those in the tables of ratios with their interval, too."""
    tables, ratios = Counter(), []
    for cells, exact in zip(page.rows, page.exact, strict=True):
        if len(exact) == 7 and "\t" in exact[2]:
            tables[cells[1], exact[2], exact[4], cells[6]] += 1
        elif len(exact) == 8 and exact[2] and "\t" in exact[3]:
            ratios.append((cells[1], exact[2], *exact[3].split("\t"), exact[6], exact[7]))
    base = {subject_of(one): one for one in report["results"] if one["backend"] == report["baseline"]}
    known = set()
    for one in compared(report):
        found, value = one["comparison"], f"{one['value']}\t{one['unit']}"
        counted = ", ".join(plural(one[name], name[:-1]) for name in ("blocks", "instances"))
        counted += f", {plural(one['iterations'], 'value')}"
        assert tables[one["label"], value, str(found["ratio"]), counted], (one["metric"], one["label"])
        numbers = [str(found[name]) for name in ("ratio", "low", "high")]
        known.add((one["label"], *numbers, value, str(base[subject_of(one)]["value"])))
    assert len(ratios) > 3
    assert set(ratios) <= known


def plural(count, noun):
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def test_the_method_counts_samples_comparisons_and_what_did_not_survive(page, report, computed):
    warmups = sum(one["warmup"] for one in computed.samples)
    assert f"({warmups:,} of {len(computed.samples):,} samples" in page.text
    tested = [
        one["comparison"] for one in report["results"] if one["comparison"] and one["comparison"]["p_value"] is not None
    ]
    downgraded = sum(one["verdict"] != one["verdict_adjusted"] for one in tested)
    said = re.search(r"Over the ([\d,]+) comparisons.*?: (\w+|[\d,]+) differences? do", page.text)
    if said:
        assert int(said[1].replace(",", "")) == len(tested)
        assert said[2] == f"{downgraded:,}" or (downgraded == 0 and not said[2].isdigit())
    else:
        assert downgraded == 0
    assert f"(seed {computed.manifest['seed']})" in page.text


def test_the_page_counts_its_flags_and_smaller_matters(page, report):
    smaller = sum(one["weight"] <= 1 for one in report["caveats"])
    if smaller > 1:
        assert f"{smaller} smaller matters" in page.text
    if len(report["flags"]) > 1:
        assert f"{len(report['flags'])} flags" in page.text


def test_the_charts_draw_the_medians_of_instances(page, computed):
    charts = json.loads(gzip.decompress(base64.b64decode(page.scripts["charts"])))["charts"]
    medians = defaultdict(dict)
    for one in computed.samples:
        if not one["warmup"]:
            medians[subject_of(one)].setdefault(one["instance"], []).append(one["value"])
    for instances in medians.values():
        instances.update({name: statistics.median(values) for name, values in instances.items()})
    drawn = [data for spec in charts.values() if (data := spec.get("datasets", {}).get("instances"))]
    assert len(drawn) > 3
    for data in drawn:
        points = {point["n"]: point["v"] for point in data}
        each = [{one["n"]: one["v"] for one in data if one["b"] == name} for name in {one["b"] for one in data}]
        assert any(
            same_but_for_unit(points, instances) or all(same_but_for_unit(one, instances) for one in each)
            for instances in medians.values()
        ), points  # the second kind of picture has each backend over its own typical value


def same_but_for_unit(points, instances):
    if not points.keys() <= instances.keys():
        return False
    scales = [point / instances[name] for name, point in points.items() if instances[name]]
    return not any(points.values()) or (bool(scales) and max(scales) <= 1.001 * min(scales))


# --- sentences, wherever they stand -----------------------------------------------------------------


def excess(ratio):
    return f"{ratio:.2f}×" if ratio >= 2 else f"{float(f'{(ratio - 1) * 100:.2g}'):g} %"


@pytest.mark.parametrize("form", ["html", "text", "markdown"])
def test_the_noise_sentence(written, report, form):
    noise = report["noise"]
    text = Page(written(form)).text if form == "html" else " ".join(written(form).split())
    sentence = re.search(r"smallest difference it could show is .*?(different from itself|\)\.)", text)[0]
    assert excess(noise["detectable"]) in sentence.split("typical")[0]
    rest = sentence.split("typical")[1]
    assert excess(noise["detectable_worst"]) in rest
    assert noise["worst"][1] in rest
    alarms = len(noise["false_alarms"])
    if noise["tested"]:
        assert f"{alarms or 'none'} of {noise['tested']} metric" in rest


@pytest.mark.parametrize("form", ["html", "text", "markdown", "json"])
def test_findings_count_verdicts_as_they_are(written, report, form):
    """Of each backend: how many speed measures of the workloads came out as what."""
    if form == "json":
        text = " ".join(report["findings"])
    else:
        text = Page(written(form)).text if form == "html" else " ".join(written(form).split())
    for name in {one["backend"] for one in compared(report)}:
        label = re.escape(report["backends"][name]["label"])
        verdicts = Counter(
            row["comparison"]["verdict_adjusted"]
            for row in report["results"]
            if row["backend"] == name and row["experiment"] == "steady" and row["comparison"]
            and row["comparison"]["low"] is not None and row["unit"] in ("s", "1/s", "B/s")
            and not row["metric"].startswith(("host.", "instance.", "command.", "guest."))
            and not row["comparison"]["restates"]
        )  # fmt: skip
        said = re.search(rf"{label} (is (\w+)|against [^,:]+: (\w+)) [^.:]*in all ([\d,]+) speed measures", text)
        if said:
            found = {said[2] or said[3]: int(said[4])}
        else:
            said = re.search(rf"{label} against [^,:]+, in ([\d,]+) speed measures[^:]*: ([^.:]*)\.", text)
            each = r"(slower|faster|equivalent|undecided)[^,]*? in (\d+)"
            found = {word: int(count) for word, count in re.findall(each, said[2])}
            assert int(said[1]) == verdicts.total()
        found["inconclusive"] = found.pop("undecided", 0)
        assert +Counter(found) == +verdicts


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_the_tables_have_every_comparison_as_it_rounds(written, report, form):
    base = {subject_of(one): one for one in report["results"] if one["backend"] == report["baseline"]}
    lines = list((text_rows if form == "text" else markdown_rows)(written(form)))
    for one in compared(report):
        found = one["comparison"]
        expected = [one["value"], found["ratio"], found["low"], found["high"]]
        matching = [cells for cells in lines if any(one["label"] == cell for cell in cells)]
        assert any(holds(cells, one["label"], expected) for cells in matching), one
        if form == "markdown":
            name = one["metric"]
            rows = [cells for cells in lines if name in cells[0].split() and one["label"] in cells]
            value = base[subject_of(one)]["value"]
            assert any(holds(cells, one["label"], expected) and prints(cells[2], value) for cells in rows), one


def holds(cells, label, expected):
    after = cells[cells.index(label) + 1 :]
    texts = [part for cell in after for part in cell.split("–")]
    start = 1 if len(texts) > 1 and texts[0] and len(after) >= 5 else 0
    for begin in range(start + 1):
        chosen = texts[begin : begin + 4]
        if len(chosen) < 4 or not all(SHOWN.match(text.strip()) for text in chosen):
            continue
        if all(prints(text, value) for text, value in zip(chosen, expected, strict=True)):
            return True
    return False


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


def test_junit_counts_and_times(written, computed):
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
    cases = {
        f"{suite.get('name')}/{case.get('name')}": case
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
    seconds = [
        one["value"] for one in computed.samples if one["unit"] == "s" and not one["warmup"] and one["value"] > 0
    ]
    assert values
    assert Counter(f"{value:.9g}" for value in values) <= Counter(f"{value:.9g}" for value in seconds)
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
