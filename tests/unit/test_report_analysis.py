"""What a report says of a run: verdicts with the known truth, and words for everything that can be missing."""

import math
import re
from dataclasses import replace

import msgspec
import pytest

from tare.bench.analysis import GradeLevel, MeasuredBackend, analyse
from tare.bench.analysis.answer import Mark, Outcome, area_answers
from tare.bench.analysis.estimates import host_virtualization
from tare.bench.model import Availability, Direction, IsolationKind, Metric
from tare.bench.readable import isolated, one_line, readable
from tare.bench.records import RunStatus
from tare.bench.stats.comparisons import Comparison, Verdict
from tare.bench.store import load_run
from tare.bench.units import Unit
from tare.reports.blocks import operations_beyond, value_view
from tare.reports.caveats import caveats
from tare.reports.headline import answer, fences, headline, legend, question, where
from tare.reports.html import render_page
from tare.reports.names import AREAS
from tare.reports.picture import change_axis, panel_views, strip_svg, value_axis
from tare.reports.wording import (
    figure_sentence,
    format_change_range,
    format_estimate,
    format_range,
    format_ratio,
    format_value_range,
    metric_change_words,
    reservation,
    verdict_mark,
    verdict_word,
    why_open,
)
from tests.synthetic import QUICK, TRUE_RATIOS, write_run


@pytest.fixture
def analysed(tmp_path):
    def make(recipe=QUICK, name="run"):
        return analyse(load_run(write_run(tmp_path / name, recipe)))

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
    assert "vm" not in headline(analysis)
    (fence,) = fences(analysis)
    assert fence.startswith("Virtual machine: not measured here, because KVM did not boot a guest on this host")
    assert "To measure one, run this where tare doctor finds that KVM works." in fence
    assert fence.endswith("The emulator's figures are in the appendix.")
    assert "accel-tcg" in codes(analysis)


def test_a_virtual_host_is_named(analysed, tmp_path):
    assert host_virtualization(analysed().manifest) == "firecracker"
    plain = analyse(load_run(write_run(tmp_path / "plain", replace(QUICK, virtual_host=False))))
    assert host_virtualization(plain.manifest) is None
    assert "host-virtual" not in codes(plain)


def test_the_headline_is_made_of_verdicts(analysed):
    recipe = replace(QUICK, blocks=8, noise=0.001, ratios={"native": 1.3, "vm": 9.0})
    said = headline(analysed(recipe))
    assert said.startswith("Containers (native) ")
    assert "slower in CPU work" in said
    assert "later" in said
    assert question(analysed_again(analysed, recipe)) == "What does isolation cost on this host?"


def test_the_headline_says_which_of_its_differences_are_tentative(analysed):
    said = headline(analysed(replace(QUICK, blocks=4, noise=0.03, ratios={"native": 1.3, "vm": 9.0})))
    assert said.endswith("slower in system calls; they start 1.72 ms later (tentative).")
    assert said.count("tentative") == 1


def test_with_several_engines_the_headline_goes_area_by_area(tmp_path):
    ratios = {"native": 1.0, "runc": 1.0, "gvisor": 2.6, "vm": 1.3}
    recipe = replace(QUICK, blocks=12, backends=("bare-metal", *ratios), ratios=ratios, noise=0.001)
    run = load_run(write_run(tmp_path / "run", recipe))
    vm = msgspec.structs.replace(run.manifest.backends["vm"], kind=IsolationKind.VIRTUAL_MACHINE, label="vm (kvm)")
    manifest = msgspec.structs.replace(run.manifest, backends={**run.manifest.backends, "vm": vm})
    analysis = analyse(msgspec.structs.replace(run, manifest=manifest))
    said = {sentence.partition(":")[0]: sentence for sentence in answer(analysis)}
    assert set(said) >= {"Start", "CPU work", "Disk access", "System calls"}
    system_calls = said["System calls"]
    assert "no measurable cost on native and runc; " in system_calls
    assert "slower on vm (kvm) and " in system_calls
    assert system_calls.endswith("times slower on gvisor.")
    for backend in ratios:  # nobody is left out, whatever was told of them
        label = "vm (kvm)" if backend == "vm" else backend
        assert all(label in said[area] for area in ("CPU work", "Disk access", "System calls"))
    rows = {row.name for panel in panel_views(analysis) for _, group in panel.groups for row in group}
    assert rows >= {"CPU work", "Disk access", "System calls"}
    assert "vm (kvm)" in render_page(analysis)


def test_of_many_engines_the_headline_names_the_ends(tmp_path):
    names = ("native", "runc", "crun", "gvisor", "docker", "podman")
    ratios = {name: 1.0 + 0.1 * place for place, name in enumerate(names)}
    recipe = replace(QUICK, blocks=8, noise=0.001, ratios=ratios, backends=("bare-metal", *names))
    said = headline(analyse(load_run(write_run(tmp_path / "run", recipe))))
    assert said.startswith(
        "Start: from 2.00 ms later on native to 597 ms later on podman, compared with host (a VM). CPU work:"
    )
    (panel,) = (one for one in panel_views(analyse(load_run(tmp_path / "run"))) if one.kind == "start")
    ((_, rows),) = panel.groups
    assert {row.name for row in rows} == {"host (a VM)", *names}
    assert rows[0].name == "host (a VM)"
    others = [row.exact for row in rows[1:]]
    assert others == sorted(others) != [row.exact for row in sorted(rows[1:], key=lambda row: names.index(row.name))]
    assert "System calls: no measurable cost on native; from 12.18 % slower on runc to 62.7 % slower on podman." in said
    assert not any(f"on {name}" in said for name in names[2:5])
    noisy = analyse(load_run(write_run(tmp_path / "noisy", replace(recipe, blocks=3, noise=0.6))))
    assert "could not tell for 5 of 6" in headline(noisy) or "this run could not tell" in headline(noisy)


def test_who_could_not_be_told_is_in_the_headline(tmp_path):
    ratios = {"native": 1.0, "runc": 1.0, "gvisor": 3.0}
    recipe = replace(QUICK, blocks=12, backends=("bare-metal", *ratios), ratios=ratios, noise=0.05)
    analysis = analyse(load_run(write_run(tmp_path / "run", recipe)))
    areas = {
        one.area: {each.backend.label: each.outcome for each in area_answers(analysis) if each.area == one.area}
        for one in area_answers(analysis)
    }
    mixed = [area for area, told in areas.items() if {Outcome.UNKNOWN, Outcome.WORSE} <= set(told.values())]
    assert mixed
    for area in mixed:
        (sentence,) = (one for one in answer(analysis) if one.startswith(AREAS[area]))
        unknown = [label for label, outcome in areas[area].items() if outcome is Outcome.UNKNOWN]
        assert sentence.endswith(f"could not tell for {' and '.join(unknown)}.")


def test_the_legend_and_the_scale_of_grades(analysed):
    analysis = analysed(replace(QUICK, blocks=4))
    said = " ".join(legend(analysis))
    for part in ("95 % interval", "a small point: a block", "hollow: could not tell", "within 2 %", "A block measures"):
        assert part in said
    html = render_page(analysis)
    assert html.index('class="picture"') < html.index('class="key"') < html.index('class="caveats"')
    assert "(grade 3 of 4, where 1 is the best)" in html
    assert [level.place.split()[1] for level in GradeLevel] == ["1", "2", "3", "4"]


def test_where_tells_a_run_that_has_no_name_by_its_day(analysed):
    analysis = analysed()
    named = msgspec.structs.replace(analysis.manifest, run="monday")
    for manifest, said in ((named, ". Run monday, "), (msgspec.structs.replace(named, run="run"), ". Run of 20")):
        run = msgspec.structs.replace(analysis.run, manifest=manifest)
        assert said in where(analyse(run))


def test_one_of_two_of_a_type_has_its_own_name_behind(tmp_path):
    run = load_run(write_run(tmp_path / "run", QUICK))
    own = msgspec.structs.replace(run.manifest.backends["native"], label="native: native (container)")
    backends = {**run.manifest.backends, "native": own}
    labels = {
        one.name: one.label
        for one in analyse(
            msgspec.structs.replace(run, manifest=msgspec.structs.replace(run.manifest, backends=backends))
        ).backends
    }
    assert labels["native"] == "container (tare), native"


def analysed_again(analysed, recipe):
    return analysed(replace(recipe, seed=2), "again")


def test_a_percentile_of_few_operations_is_marked(analysed):
    fio = next(subject for subject in analysed().subjects if subject.workload == "fio")
    row = next(row for row in fio.rows if row.metric.name == "read.latency.p99")
    vm = next(cell for cell in row.cells if cell.backend.name == "vm")
    # 8,400 reads a second, 2.3 s an iteration, one in a hundred beyond.
    assert operations_beyond(fio, row, vm.backend) == pytest.approx(195, rel=0.1)
    assert "operations an iteration" not in value_view(fio, row, vm).note
    few = msgspec.structs.replace(
        fio, rows=[scaled(one, 0.01) if one.metric.name == "read.iops" else one for one in fio.rows]
    )
    assert "operations an iteration" in value_view(few, row, vm).note


def scaled(row, factor):
    cells = [
        msgspec.structs.replace(
            cell, estimate=msgspec.structs.replace(cell.estimate, centre=cell.estimate.centre * factor)
        )
        for cell in row.cells
    ]
    return msgspec.structs.replace(row, cells=cells)


@pytest.mark.parametrize(
    ("value", "low", "high", "unit", "text"),
    [
        (0.012345, 0.0123, 0.0124, Unit.SECOND, "12.3 ms"),
        (0.012345, 0.0110, 0.0140, Unit.SECOND, "12 ms"),
        (1742.0, 1500.0, 2000.0, Unit.OPERATIONS_PER_SECOND, "1,700/s"),
        (5925838.0, 5.92e6, 5.93e6, Unit.OPERATIONS_PER_SECOND, "5.93 million/s"),
        (134217728.0, 1.0e8, 1.7e8, Unit.BYTE, "130 MiB"),
        (250.0, 200.0, 300.0, Unit.SECOND, "4 min 10 s"),
        (0.0, 0.0, 0.0, Unit.COUNT, "0"),
        (5.0, None, None, Unit.COUNT, "5"),
    ],
)
def test_digits_that_the_interval_does_not_support_are_not_shown(value, low, high, unit, text):
    assert format_estimate(value, low, high, unit) == text


def test_an_interval_that_says_nothing_is_not_spelled_out():
    assert format_range(1e-7, 2e8) == "too wide to state"
    assert format_value_range(1e-3, 1e5, Unit.SECOND) == "too wide to state"


def test_a_failed_backend_is_a_result(analysed):
    analysis = analysed(replace(QUICK, failing=("vm",)))
    assert {"failures", "no-samples"} <= set(codes(analysis))
    assert len(analysis.failures) == 20
    assert {cell.backend.name for _, _, cell, _ in analysis.comparisons} == {"native"}


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
    assert answer(analysis)[0].startswith("This run cannot be used: ")
    assert "no-baseline" in {one.code for one in analysis.grade.concerns}
    row = analysis.subjects[1].rows[0]
    assert figure_sentence(row, None).endswith("Not compared: the baseline was not measured.")
    # A backend keeps its colour whether the baseline is there or not.
    assert {one.name: one.place for one in analysis.backends}["vm"] == 2


def test_one_block_says_so(analysed):
    analysis = analysed(replace(QUICK, blocks=1))
    assert "one-block" in codes(analysis)
    assert all(found.verdict is Verdict.INCONCLUSIVE for *_, found in analysis.comparisons)
    assert answer(analysis) == ["This run cannot be used: one block allows no interval and so no verdict."]


def test_nothing_measured(analysed):
    analysis = analysed(replace(QUICK, failing=QUICK.backends))
    assert answer(analysis) == ["This run cannot be used: nothing was measured."]


@pytest.mark.parametrize(
    ("metric", "verdict", "word", "mark"),
    [
        (Metric("boot.total", Unit.SECOND, Direction.LOWER, ""), Verdict.SLOWER, "slower", "↓"),
        (Metric("events", Unit.OPERATIONS_PER_SECOND, Direction.HIGHER, ""), Verdict.FASTER, "faster", "↑"),
        (Metric("host.memory_peak", Unit.BYTE, Direction.LOWER, ""), Verdict.SLOWER, "more", "↑"),
        (Metric("host.cpu", Unit.SECOND, Direction.LOWER, ""), Verdict.FASTER, "less", "↓"),
        (Metric("hits", Unit.RATIO, Direction.HIGHER, ""), Verdict.SLOWER, "worse", "↓"),
        (Metric("host.cpu", Unit.SECOND, Direction.LOWER, ""), Verdict.EQUIVALENT, "same", "="),
        (Metric("host.cpu", Unit.SECOND, Direction.LOWER, ""), Verdict.INCONCLUSIVE, "could not tell", ""),
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


def compared(low, ratio, high, verdict=Verdict.INCONCLUSIVE, adjusted=Verdict.INCONCLUSIVE):
    return Comparison(ratio, low, high, verdict, 4, 4, 4, "t", 0.02, 0.95, verdict_adjusted=adjusted)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (1.04, 2.5, "+4 to +150 %"),
        (0.3, 1.05, "−70 to +5 %"),
        (0.76, 0.81, "−24 to −19 %"),
        (2.1, 3.2, "×2.1 to ×3.2"),
        (0.4, 2.2, "÷2.5 to ×2.2"),
        (1.05, 25.0, "×1.1 to ×25"),
    ],
)
def test_an_interval_has_one_kind_of_unit(low, high, text):
    assert format_change_range(compared(low, math.sqrt(low * high), high)) == text


def test_a_log_axis_has_few_enough_labels_for_a_narrow_strip():
    for lowest, highest in ((0.02, 90.0), (0.002, 900.0), (0.5, 12.0), (1e-6, 1e6)):
        marks = [
            Mark(MeasuredBackend("a", "a", 1, is_baseline=False), value, None, None) for value in (lowest, highest)
        ]
        axis = value_axis(marks, Unit.SECOND)
        assert axis.is_log
        assert 2 <= len(axis.ticks) <= 4


def test_why_an_interval_on_one_side_has_no_verdict():
    assert why_open(compared(0.9, 1.1, 1.4)) == ""
    assert why_open(compared(1.04, 1.6, 2.5, Verdict.SLOWER, Verdict.SLOWER)) == ""
    assert why_open(compared(1.001, 1.01, 1.015, Verdict.EQUIVALENT, Verdict.EQUIVALENT)) == ""
    assert why_open(compared(1.04, 1.6, 2.5, Verdict.SLOWER)) == "may be chance among all that was compared"
    assert why_open(compared(1.001, 1.01, 1.03)) == "the difference may be below 2 %"
    close = msgspec.structs.replace(compared(1.04, 1.6, 2.5, Verdict.SLOWER, Verdict.SLOWER), is_tentative=True)
    assert reservation(close) == "tentative"
    assert reservation(compared(1.04, 1.6, 2.5, Verdict.SLOWER)) == "may be chance among all that was compared"
    words = [metric_change_words(Metric("x", unit, way, ""), 0.79) for unit, way in RATE_AND_TIME]
    assert words == ["21 % lower", "21 % faster"]


RATE_AND_TIME = [(Unit.OPERATIONS_PER_SECOND, Direction.HIGHER), (Unit.SECOND, Direction.LOWER)]


def test_more_is_drawn_to_the_right_with_its_sign_and_what_is_cut_off_ends_in_an_arrow():
    backend = MeasuredBackend("a", "a", 1, is_baseline=False)
    marks = [Mark(backend, centre, centre - 0.1, centre + 0.1) for centre in (-0.2, 0.2)]
    axis = change_axis(marks, 0.02)
    assert [words for _, words in axis.ticks] == ["−50 %", "0", "+50 %"]
    places = [float(re.search(r"class='dot \w+' cx='([\d.]+)%'", strip_svg(mark, axis))[1]) for mark in marks]
    assert places[0] < 50 < places[1]
    assert not any("class='cut" in strip_svg(mark, axis) for mark in marks)
    for low, high, tip in ((0.1, 0.9, "l8,-4z"), (-0.9, 0.2, "l-8,-4z")):
        assert strip_svg(Mark(backend, 0.15, low, high), axis).count("class='cut") == 1
        assert tip in strip_svg(Mark(backend, 0.15, low, high), axis)


def test_the_row_of_a_start_has_its_interval_and_why_it_could_not_be_told(analysed):
    analysis = analysed(replace(QUICK, noise=0.2))
    (panel,) = (one for one in panel_views(analysis) if one.kind == "start")
    baseline, other = panel.groups[0][1]
    assert " – " in baseline.more
    assert " – " in other.more
    assert other.is_open
    assert other.why.startswith("could not tell")


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


def test_what_is_missing_says_how_to_measure_it(analysed):
    run = analysed().run
    missing = {"podman": Availability(available=False, reason="podman is not installed", remedy="install podman")}
    manifest = msgspec.structs.replace(run.manifest, unavailable=missing)
    said = fences(analyse(msgspec.structs.replace(run, manifest=manifest)))[-1]
    assert said == "podman: not measured here (podman is not installed). To measure it: install podman."
