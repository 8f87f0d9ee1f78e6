"""What stands out is flagged with a sentence; what does not is not; a flag changes no estimate."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tare.bench.analysis import analyse
from tare.bench.disturbance import Disturbance
from tare.bench.records import Event, EventKind
from tare.bench.samples import SampleTable
from tare.bench.store import LoadedRun, load_run
from tare.reports.flags import Flag, FlagKind, flags_of
from tests.synthetic import QUICK, SUBJECTS, write_run

QUIET = Disturbance(
    span_s=2.0,
    cpus=1,
    busy_s=1.0,
    steal_s=0.0,
    other_s=0.02,
    cpu_stall_s=0.02,
    memory_stall_s=0.0,
    io_stall_s=0.5,
    frequency_hz=3e9,
    throttles=0,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> LoadedRun:
    recipe = replace(QUICK, blocks=8, iterations=8, backends=("bare-metal", "native"), subjects=SUBJECTS[:1])
    return load_run(write_run(tmp_path_factory.mktemp("flags") / "run", recipe))


def disturbed(run: LoadedRun, change: dict[int, dict], cell: str = "steady/sysbench-cpu/native") -> LoadedRun:
    """Every instance as quiet as can be, but of one cell those with the given places."""
    events: list[Event] = []
    place = 0
    for number, event in enumerate(run.events):
        details = event.details
        if event.kind is EventKind.INSTANCE_DONE:
            told = msgspec.structs.replace(QUIET, io_stall_s=0.5 + 0.01 * (number % 3))
            if event.cell == cell:
                told = msgspec.structs.replace(told, **change.get(place, {}))
                place += 1
            details = {"disturbance": msgspec.to_builtins(told)}
        events.append(msgspec.structs.replace(event, details=details))
    return msgspec.structs.replace(run, events=events)


def flags(run: LoadedRun) -> list[Flag]:
    return [flag for flag in flags_of(analyse(run)) if flag.kind not in (FlagKind.AUTOCORRELATION, FlagKind.DRIFT)]


def test_a_quiet_run_has_no_flag(run):
    assert flags_of(analyse(disturbed(run, {}))) == []
    assert flags_of(analyse(run)) == []  # nothing was recorded at all


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"steal_s": 0.3}, FlagKind.STEAL, "took up to 15.0 % of the envelope's CPU time; 0.0 % is usual"),
        ({"other_s": 0.3}, FlagKind.OTHER_LOAD, "other work than the instance's took up to 15.0 %"),
        ({"cpu_stall_s": 0.8}, FlagKind.CPU_PRESSURE, "waited for a CPU during up to 40 %"),
        ({"memory_stall_s": 0.2}, FlagKind.MEMORY_PRESSURE, "waited for memory during up to 10.0 %"),
        ({"io_stall_s": 1.4}, FlagKind.IO_PRESSURE, "waited for storage during up to 70 %"),
        ({"frequency_hz": 2.1e9}, FlagKind.FREQUENCY, "ran as slowly as 2.10 GHz; 3.00 GHz is usual"),
        ({"throttles": 4}, FlagKind.THROTTLING, "slowed down for heat, up to 4 times"),
        ({"clock_step_s": -1.5}, FlagKind.CLOCK_STEP, "set by up to 1.500 s"),
        ({"clock_source": "tsc to hpet"}, FlagKind.CLOCK_SOURCE, "changed its clock source"),
    ],
)
def test_what_stands_out_is_said_with_where(run, change, kind, words):
    (flag,) = flags(disturbed(run, {2: change}))
    assert (flag.kind, flag.workload, flag.backend) == (kind, "sysbench-cpu", "native")
    assert len(flag.instances) == 1
    assert flag.sentence.startswith("In 1 of 8 instances ")
    assert words in flag.sentence


def test_clocks_that_disagree_flag_their_instances(run):
    told = [event for event in run.events if event.kind is EventKind.INSTANCE_DONE]
    cell = [event.instance for event in told if event.cell == "steady/sysbench-cpu/native"]
    notes = [
        Event(
            EventKind.NOTE, 1.0, "", name, "", "", {"code": "clock", "host_s": 2.0, "guest_s": guest, "allowed_s": 0.1}
        )
        for name, guest in ((cell[0], 1.8), (cell[0], 1.5), (cell[3], 2.2), ("of no sample", 9.0))
    ]
    (flag,) = flags(msgspec.structs.replace(run, events=[*run.events, *notes]))
    assert (flag.kind, flag.backend, flag.instances) == (FlagKind.GUEST_CLOCK, "native", (cell[0], cell[3]))
    assert flag.value == pytest.approx(0.25)
    assert flag.sentence.startswith(
        "In 2 of 8 instances the guest's clock and the host's disagree about the durations of 3"
    )
    assert "at worst 1.500 s and 2.000 s (0.100 s may lie between them)" in flag.sentence


@pytest.mark.parametrize(
    "change",
    [
        {"steal_s": 0.015},  # below the floor of 1 %
        {"other_s": 0.09},
        {"cpu_stall_s": 0.1},
        {"frequency_hz": 2.95e9},
        {"frequency_hz": 4e9},  # faster than usual is seen in what was usual
        {"clock_step_s": 0.0004},
        {"span_s": 0.02, "steal_s": 0.01, "io_stall_s": 0.0, "other_s": 0.0},  # one tick
    ],
)
def test_trifles_do_not_stand_out(run, change):
    assert flags(disturbed(run, {2: change})) == []


def test_what_a_workload_does_to_itself_every_time_is_not_flagged(run):
    always = {place: {"io_stall_s": 1.5, "cpu_stall_s": 1.5} for place in range(8)}
    assert flags(disturbed(run, always)) == []


def test_what_only_others_can_do_is_flagged_even_if_it_is_there_every_time(run):
    (flag,) = flags(disturbed(run, {place: {"steal_s": 0.4} for place in range(8)}))
    assert flag.sentence == "In all 8 instances the hypervisor above took up to 20.0 % of the envelope's CPU time."


def test_what_the_whole_run_suffers_from_is_said_once(run):
    events = [
        msgspec.structs.replace(
            event,
            details={"disturbance": msgspec.to_builtins(msgspec.structs.replace(QUIET, other_s=0.9))},
        )
        if event.kind is EventKind.INSTANCE_DONE
        else event
        for event in run.events
    ]
    (flag,) = flags(msgspec.structs.replace(run, events=events))
    assert (flag.experiment, flag.backend, flag.n_instances) == ("every cell", "every backend", 32)
    assert flag.sentence.startswith("In all 32 instances other work")


def test_estimates_are_the_same_with_flags_and_without(run):
    pytest.importorskip("pandas")

    loud = disturbed(run, {2: {"steal_s": 1.0}})
    assert flags(loud)
    assert [row.cells[0].estimate for row in analyse(loud).subjects[0].rows] == [
        row.cells[0].estimate for row in analyse(run).subjects[0].rows
    ]


def changed(run: LoadedRun, metric: str, backend: str, factor) -> LoadedRun:
    """The same run with the values of one metric on one backend multiplied by ``factor(table)``."""
    table = run.samples
    texts = table.texts
    names = [np.array(texts[name].kinds)[texts[name].codes] for name in ("metric", "backend")]
    which = (names[0] == metric) & (names[1] == backend)
    values = np.where(which, table.numbers["value"] * factor(table), table.numbers["value"])
    return msgspec.structs.replace(run, samples=SampleTable(texts, {**table.numbers, "value": values}))


def test_a_drift_over_the_blocks_is_flagged_in_its_own_cell_only(run):
    (flag,) = flags_of(analyse(changed(run, "events", "native", lambda table: 1 + 0.2 * table.numbers["block"])))
    assert (flag.kind, flag.metrics, flag.backend) == (FlagKind.DRIFT, ("events",), "native")
    assert flag.q_value < 0.05
    assert "events drifted up by" in flag.sentence


def test_iterations_that_follow_one_another_are_flagged(run):
    (flag,) = flags_of(analyse(changed(run, "events", "native", lambda table: 1 + 0.3 * table.numbers["iteration"])))
    assert (flag.kind, flag.metrics) == (FlagKind.AUTOCORRELATION, ("events",))
    assert "are like the one before it" in flag.sentence
    assert flag.instances == ()


def test_false_alarms_over_runs(tmp_path):
    """Twenty runs without any order in them: a false alarm in at most one in twenty is aimed at; four is 1 in 60."""
    recipe = replace(QUICK, blocks=8, iterations=6, backends=("bare-metal", "native"), subjects=SUBJECTS[:2])
    runs = [load_run(write_run(tmp_path / str(seed), replace(recipe, seed=seed))) for seed in range(20)]
    assert sum(bool(flags_of(analyse(one))) for one in runs) <= 3


def test_an_empty_run(run):
    empty = msgspec.structs.replace(run, samples=run.samples[:0], events=[])
    assert flags_of(analyse(empty)) == []


def test_the_text_and_the_json_show_them(run, tmp_path):
    import io
    import json

    from rich.console import Console

    from tare.reports.summary_json import summary_of
    from tare.reports.text import render_text

    loud = disturbed(run, {2: {"steal_s": 1.0}})
    file = io.StringIO()
    Console(file=file, width=400).print(render_text(analyse(loud)))
    assert "- CPU (sysbench), native: In 1 of 8 instances the hypervisor above took up to 50.0 %" in file.getvalue()
    (flag,) = json.loads(json.dumps(summary_of(analyse(loud))))["flags"]
    assert (flag["kind"], flag["backend"]) == ("steal", "native")
    assert "disturbed" not in file.getvalue().replace("What may have disturbed cells", "")
