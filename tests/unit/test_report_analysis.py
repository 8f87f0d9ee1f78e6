"""What a report says of a run: verdicts with the known truth, and words for everything that can be missing."""

import re
from dataclasses import replace

import msgspec
import pytest

from tare.bench.analysis import analyse
from tare.bench.model import Direction, Metric
from tare.bench.readable import isolated, one_line, readable
from tare.bench.records import RunStatus
from tare.bench.stats.comparisons import Verdict
from tare.bench.store import load_run
from tare.bench.units import Unit
from tare.reports.findings import caveats, findings, host_virtualization, question
from tare.reports.instances import phase_view
from tare.reports.wording import figure_sentence, format_range, format_ratio, verdict_mark, verdict_word
from tests.synthetic import QUICK, SUBJECTS, TRUE_RATIOS, write_run


@pytest.fixture
def analysed(tmp_path):
    def make(recipe=QUICK):
        return analyse(load_run(write_run(tmp_path / "run", recipe)))

    return make


def found_in(analysis, workload, metric, backend):
    for subject, row, cell, comparison in analysis.comparisons:
        if (subject.workload, row.metric.name, cell.backend.name) == (workload, metric, backend):
            return comparison
    raise AssertionError(f"{workload}/{metric}/{backend} was not compared")


def codes(analysis):
    return [caveat.code for caveat in caveats(analysis)]


def test_the_known_truth_lies_in_the_interval(analysed):
    analysis = analysed(replace(QUICK, blocks=8))
    truth = TRUE_RATIOS["vm"]
    for workload, metric, power in (("sysbench-cpu", "events", -1.0), ("fio", "read.latency.p99", 1.0)):
        found = found_in(analysis, workload, metric, "vm")
        assert found.low <= truth**power <= found.high
        assert found.verdict is Verdict.SLOWER


def test_warm_up_is_left_out(analysed):
    # Warm-ups are a third longer in the synthetic run: with them, the medians of two iterations would be between.
    analysis = analysed(replace(QUICK, iterations=2, warmups=1))
    assert analysis.warmup_samples > 0
    row = next(row for one in analysis.subjects if one.workload == "fio" for row in one.rows)
    assert [cell.n_iterations for cell in row.cells] == [5, 5, 5]


@pytest.mark.parametrize("backend", ["bare-metal", "vm"])
def test_a_value_that_could_not_be_had_once_takes_one_block_from_the_ratio_and_no_more(tmp_path, backend):
    path = write_run(tmp_path / "run", replace(QUICK, blocks=6))
    whole = found_in(analyse(load_run(path)), "", "boot.init", "vm")
    lines = (path / "samples.jsonl").read_text().splitlines()
    own = [
        line for line in lines if '"boot.init"' in line and f'"backend":"{backend}"' in line and '"block":3,' in line
    ]
    assert len(own) == 1
    (path / "samples.jsonl").write_text("\n".join(line for line in lines if line not in own) + "\n")
    found = found_in(analyse(load_run(path)), "", "boot.init", "vm")
    assert (whole.n_blocks, found.n_blocks) == (6, 5)
    assert found.low < whole.ratio < found.high


def test_a_start_is_drawn_in_the_parts_that_each_backend_tells(analysed):
    view = phase_view(analysed())
    assert {bar.backend.name: [name for name, *_ in bar.parts] for bar in view.bars} == {
        "bare-metal": ["create", "init", "ready"],
        "native": ["create", "init", "ready"],
        "vm": ["create", "processor", "firmware", "kernel", "ready"],
    }
    assert [name for name, _, _ in view.legend] == ["create", "init", "processor", "firmware", "kernel", "ready"]


def test_order_boot_first_own_metrics_before_the_harness(analysed):
    analysis = analysed()
    assert analysis.subjects[0].experiment == "boot"
    names = [row.metric.name for row in analysis.subjects[2].rows]
    assert names[0] == "read.iops"
    assert names[-2:] == ["instance.start", "instance.stop"]
    assert [backend.name for backend in analysis.backends] == ["bare-metal", "native", "vm"]


def test_software_emulation_is_never_hidden(analysed):
    analysis = analysed()
    labels = {cell.backend.label for _, _, cell, _ in analysis.comparisons}
    assert labels == {"native", "vm (tcg)"}
    assert all("vm (tcg)" in text for text in findings(analysis) if "vm" in text)
    assert "accel-tcg" in codes(analysis)


def test_a_virtual_host_is_named(analysed, tmp_path):
    assert host_virtualization(analysed()) == "firecracker"
    plain = analyse(load_run(write_run(tmp_path / "plain", replace(QUICK, virtual_host=False))))
    assert host_virtualization(plain) is None
    assert "host-virtual" not in codes(plain)


def test_findings_are_three_sentences_from_verdicts(analysed):
    found = findings(analysed())
    assert len(found) == 3
    assert "vm (tcg) is slower than bare-metal in all 4 speed measures" in found[1]
    assert found[2].startswith("Ready to execute after")


def test_a_workload_with_several_parameters_is_one_item_of_a_finding(analysed):
    many = tuple(replace(SUBJECTS[0], params={"threads": 1, "max_prime": prime}) for prime in (100, 1000, 10000))
    analysis = analysed(replace(QUICK, subjects=(*many, SUBJECTS[2])))
    (told,) = (text for text in findings(analysis) if text.startswith("vm (tcg)"))
    ratios = [
        found.ratio
        for _, row, cell, found in analysis.comparisons
        if row.metric.name == "events" and cell.backend.name == "vm"
    ]
    assert len(ratios) == 3
    within = r"\(3 sets of parameters, intervals within [\d.]+–[\d.]+×\); perf"
    words = re.search(rf"sysbench-cpu events ([\d.]+)× to ([\d.]+)× the rate {within}", told)
    assert float(words[1]) == pytest.approx(min(ratios), rel=0.05)
    assert float(words[2]) == pytest.approx(max(ratios), rel=0.05)


def test_a_failed_backend_is_a_result(analysed):
    analysis = analysed(replace(QUICK, failing=("vm",)))
    assert {"failures", "no-samples"} <= set(codes(analysis))
    assert len(analysis.failures) == 20
    assert {cell.backend.name for _, _, cell, _ in analysis.comparisons} == {"native"}
    assert question(analysis).startswith("native against bare-metal")


def test_an_unavailable_backend_is_named_with_its_reason(analysed):
    analysis = analysed(replace(QUICK, backends=("bare-metal", "native"), missing=("vm",)))
    texts = [caveat.text for caveat in caveats(analysis)]
    assert "vm was asked for and is not available here: libvirt-python is not installed." in texts


def test_a_confound_that_is_recorded_twice_is_said_once(analysed):
    analysis = analysed()
    confounds = (*analysis.manifest.confounds, *analysis.manifest.backends["vm"].confounds)
    run = msgspec.structs.replace(
        analysis.run, manifest=msgspec.structs.replace(analysis.manifest, confounds=confounds)
    )
    assert codes(msgspec.structs.replace(analysis, run=run)).count("accel-tcg") == 1


def test_an_interrupted_run_with_half_a_line(analysed):
    analysis = analysed(replace(QUICK, blocks=3, status=RunStatus.INTERRUPTED, half_written=True))
    texts = " ".join(caveat.text for caveat in caveats(analysis))
    assert "The run was interrupted: " in texts
    assert "only half written" in texts
    assert "few-blocks" in codes(analysis)


@pytest.mark.parametrize("recipe", [replace(QUICK, backends=("native", "vm")), replace(QUICK, failing=("bare-metal",))])
def test_without_a_baseline_there_are_values_and_no_verdicts(analysed, recipe):
    analysis = analysed(recipe)
    assert analysis.baseline is None
    assert analysis.comparisons == []
    assert "no-baseline" in codes(analysis)
    assert "no ratio can be given" in findings(analysis)[0]
    row = analysis.subjects[1].rows[0]
    assert figure_sentence(row, None).endswith("Not compared: the baseline was not measured.")
    # A backend keeps its colour whether the baseline is there or not.
    assert {one.name: one.place for one in analysis.backends}["vm"] == 2


def test_one_block_says_so(analysed):
    analysis = analysed(replace(QUICK, blocks=1))
    assert "one-block" in codes(analysis)
    assert all(found.verdict is Verdict.INCONCLUSIVE for *_, found in analysis.comparisons)
    assert findings(analysis)[0] == "native: no verdict on speed, because every ratio comes from one block."


def test_nothing_measured(analysed):
    analysis = analysed(replace(QUICK, failing=QUICK.backends))
    assert findings(analysis) == ["Nothing was measured in this run."]


@pytest.mark.parametrize(
    ("metric", "verdict", "word", "mark"),
    [
        (Metric("boot.total", Unit.SECOND, Direction.LOWER, ""), Verdict.SLOWER, "slower", "↓"),
        (Metric("events", Unit.OPERATIONS_PER_SECOND, Direction.HIGHER, ""), Verdict.FASTER, "faster", "↑"),
        (Metric("host.memory_peak", Unit.BYTE, Direction.LOWER, ""), Verdict.SLOWER, "more", "↑"),
        (Metric("host.cpu", Unit.SECOND, Direction.LOWER, ""), Verdict.FASTER, "less", "↓"),
        (Metric("hits", Unit.RATIO, Direction.HIGHER, ""), Verdict.SLOWER, "worse", "↓"),
        (Metric("host.cpu", Unit.SECOND, Direction.LOWER, ""), Verdict.EQUIVALENT, "equivalent", "="),
        (Metric("host.cpu", Unit.SECOND, Direction.LOWER, ""), Verdict.INCONCLUSIVE, "inconclusive", ""),
    ],
)
def test_verdicts_in_the_words_of_the_metric(metric, verdict, word, mark):
    assert verdict_word(metric, verdict) == word
    assert verdict_mark(word) == mark


@pytest.mark.parametrize(
    ("ratio", "text"), [(1.0, "1.00×"), (0.1149, "0.115×"), (1227.4, "1,227×"), (13.46, "13.5×"), (None, "–")]
)
def test_ratios_have_three_digits(ratio, text):
    assert format_ratio(ratio) == text


def test_no_interval_is_a_dash():
    assert format_range(None, None) == "–"
    assert format_range(0.9841, 1.006) == "0.984–1.01×"


def test_directions_stay_with_the_text_that_has_them():
    assert isolated("plain") == "plain"
    assert isolated("a\u202eb") == "\u2068a\u202eb\u202c\u2069"
    assert isolated(isolated("a\u202eb")) == isolated("a\u202eb")
    assert readable("a\x1b[31mb\x00") == "a\ufffd[31mb\ufffd"
    assert readable("one\r\ntwo\tthree") == "one\ntwo\tthree"
    assert one_line("one\ntwo " + "x" * 50, 12) == "one two xxx…"
