"""The index of a folder of runs: what enters, what is left out and said, and what survives damage."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tare.bench.analysis import analyse
from tare.bench.errors import RunDirectoryError, StoreError, UnknownNameError
from tare.bench.history import index
from tare.bench.history.entries import read_entry
from tare.bench.history.index import FOLDER, INDEX, open_history, update_history
from tare.bench.history.views import export, find_series, list_series, nights_of
from tare.bench.records import RunStatus
from tare.bench.store import load_run
from tests.nights import Night, Plan, write_night, write_nights

SMALL = Plan(subjects=("work-0", "work-1"), backends=("bare-metal", "native"), blocks=3)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_nights(tmp_path / "runs", [Night()] * 3, plan=SMALL)
    return tmp_path / "runs"


def rows(runs: Path, query: str = "SELECT count(*) FROM cells") -> list:
    with open_history(runs).start_query() as connection:
        return connection.execute(query).fetchall()


def test_every_run_enters_once_and_only_what_is_new_is_read_again(runs: Path) -> None:
    assert len(update_history(runs).added) == 3
    assert update_history(runs).added == ()
    write_night(runs, 3, Night(), plan=SMALL)
    assert update_history(runs).added == ("20260104-nightly",)
    assert rows(runs) == [(4 * 2 * 2,)]
    assert [one.run for one in open_history(runs).entries] == [f"2026010{n}-nightly" for n in (1, 2, 3, 4)]


def test_block_medians_and_ratios_are_those_of_the_runs_own_report(runs: Path) -> None:
    update_history(runs)
    found = analyse(load_run(runs / "20260102-nightly"))
    for subject, row, cell in found.cells:
        ((medians, level, ratio),) = rows(
            runs,
            "SELECT medians, level, ratio FROM cells WHERE run = '20260102-nightly' "
            f"AND workload = '{subject.workload}' AND backend = '{cell.backend.name}' AND metric = '{row.metric.name}'",
        )
        assert medians == cell.blocks.values.tolist()
        assert np.isclose(np.exp(level), cell.estimate.centre)
        if cell.comparison is not None:
            assert np.isclose(np.exp(ratio), cell.comparison.ratio)


def test_a_changed_run_replaces_its_rows(runs: Path) -> None:
    update_history(runs)
    shutil.rmtree(runs / "20260102-nightly")
    write_night(runs, 1, Night(levels={"work-0": 1.0}), plan=SMALL)
    assert update_history(runs).added == ("20260102-nightly",)
    assert rows(runs) == [(12,)]
    assert rows(runs, "SELECT max(level) FROM cells WHERE workload = 'work-0'")[0][0] > np.log(1000) + 0.8


def test_a_run_whose_folder_is_gone_stays(runs: Path) -> None:
    update_history(runs)
    shutil.rmtree(runs / "20260102-nightly")
    update_history(runs)
    assert rows(runs) == [(12,)]


def test_running_and_half_copied_runs_are_left_out_with_the_reason_and_enter_later(runs: Path) -> None:
    running = write_night(runs, 5, Night(status=RunStatus.RUNNING), plan=SMALL)
    short = write_night(runs, 6, Night(), plan=SMALL)
    samples = (short / "samples.jsonl").read_bytes()
    (short / "samples.jsonl").write_bytes(samples[: samples.index(b"\n") + 1])
    no_events = write_night(runs, 7, Night(), plan=SMALL)
    (no_events / "events.jsonl").write_bytes(b"")
    no_samples = write_night(runs, 8, Night(), plan=SMALL)
    (no_samples / "samples.jsonl").unlink()
    done = update_history(runs)
    said = " ".join(error.message for error in done.left_out)
    assert len(done.added) == 3
    assert len(done.left_out) == 4
    for word in (
        "still being written",
        "instances have no samples",
        "do not reach the end",
        "samples.jsonl is missing",
    ):
        assert word in said
    (short / "samples.jsonl").write_bytes(samples)
    shutil.rmtree(running)
    assert update_history(runs).added == (short.name,)


def test_a_copy_of_a_run_counts_once(runs: Path) -> None:
    shutil.copytree(runs / "20260101-nightly", runs / "copy")
    done = update_history(runs)
    assert len(done.added) == 3
    assert "copy" in done.left_out[0].message
    again = update_history(runs)
    assert again.added == ()
    assert rows(runs) == [(12,)]


def test_failed_cells_are_marked_and_the_good_ones_enter(runs: Path) -> None:
    write_night(runs, 4, Night(failing=("native",)), plan=SMALL)
    update_history(runs)
    assert rows(runs, "SELECT DISTINCT backend FROM cells WHERE run = '20260105-nightly'") == [("bare-metal",)]
    assert open_history(runs).entries[-1].failed == {f"steady/work-{n}/threads=1/native": 3 for n in (0, 1)}


@pytest.mark.parametrize("damage", ["garbage", "format", "no rows", "half rows"])
def test_a_damaged_index_is_made_again_and_loses_no_run(runs: Path, damage: str) -> None:
    update_history(runs)
    write_night(runs, 3, Night(), plan=SMALL)
    update_history(runs)
    shutil.rmtree(runs / "20260101-nightly")  # only the index has it
    file, first = runs / FOLDER / INDEX, runs / FOLDER / "cells-000003.parquet"
    lost = 0
    match damage:
        case "garbage":
            file.write_bytes(b"{")
            lost = 1  # nothing says any more which run the rows are of
        case "format":
            file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
            lost = 1
        case "no rows":
            (runs / FOLDER / "cells-000004.parquet").unlink()
        case "half rows":
            first.write_bytes(first.read_bytes()[:1000])
            lost = 1
    with pytest.raises(RunDirectoryError, match="no usable history"):
        open_history(runs)
    done = update_history(runs)
    assert done.rebuilt
    assert rows(runs) == [((4 - lost) * 4,)]
    assert update_history(runs).added == ()


def test_files_are_merged_and_strangers_removed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MOST_FILES", 2)
    for number in range(3, 8):
        write_night(runs, number, Night(), plan=SMALL)
        update_history(runs)
    (runs / FOLDER / "cells-999999.parquet").write_bytes(b"of a killed update")
    update_history(runs)
    assert rows(runs) == [(8 * 4,)]
    files = sorted(path.name for path in (runs / FOLDER).glob("cells-*"))
    assert files == sorted(open_history(runs).catalogue.files)
    assert len(files) <= 3


def test_two_updates_at_once_enter_every_run_once(runs: Path) -> None:
    threads = [threading.Thread(target=update_history, args=(runs,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(runs) == [(12,)]


def test_an_update_that_another_holds_up_says_so(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PATIENCE_S", 0.0)
    with index._written_alone(runs / FOLDER), pytest.raises(StoreError, match="another tare process"):
        update_history(runs)


def test_an_update_that_is_killed_leaves_the_last_whole_state(runs: Path) -> None:
    """At each of the points at which something is on disk: the bar with many moments is benchmarks/history_scale.py."""
    update_history(runs)
    write_night(runs, 3, Night(), plan=SMALL)
    for place in ("_write_rows", "replace_file"):
        child = os.fork()
        if child == 0:
            original = getattr(index, place)

            def killed(*given: object, place: str = place, original: object = original) -> None:
                if place == "_write_rows":
                    original(*given)  # type: ignore[operator]
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(index, place, killed)
            try:
                update_history(runs)
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert rows(runs) == [(12,)]
    assert update_history(runs).added == ("20260104-nightly",)
    assert rows(runs) == [(16,)]


def test_a_full_disk_is_one_message(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index, "replace_file", full)
    with pytest.raises(StoreError, match="No space left") as refused:
        update_history(runs)
    assert "runs themselves are untouched" in str(refused.value)
    monkeypatch.undo()
    assert len(update_history(runs).added) == 3


def test_an_export_that_cannot_be_written_does_not_call_the_index_damaged(runs: Path, tmp_path: Path) -> None:
    update_history(runs)
    with pytest.raises(StoreError, match="cannot write") as refused:
        export(open_history(runs), "parquet", tmp_path / "missing" / "all.parquet")
    assert "damaged" not in str(refused.value)


def test_what_is_no_folder_and_what_was_never_indexed(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="is not a folder"):
        update_history(tmp_path / "nothing")
    with pytest.raises(RunDirectoryError, match="never indexed"):
        open_history(tmp_path)
    assert update_history(tmp_path).runs == 0
    assert rows(tmp_path) == [(0,)]


def test_the_order_is_that_of_starts(runs: Path) -> None:
    early = Night(started=None, labels={"commit": "abc"})
    write_night(runs, 0, replace(early), plan=SMALL, name="written-last")
    update_history(runs)
    assert [one.run for one in open_history(runs).entries][:2] == ["20260101-nightly", "written-last"]


def test_conditions_of_an_epoch_are_those_of_the_backend_and_its_baseline(runs: Path) -> None:
    other = write_night(runs, 3, Night(kernel="6.13"), plan=SMALL)
    same = read_entry(runs / "20260101-nightly", 1)
    again = read_entry(runs / "20260102-nightly", 2)
    changed = read_entry(other, 3)
    assert same.entry.conditions == again.entry.conditions  # the load average differs
    assert same.entry.conditions != changed.entry.conditions
    update_history(runs)
    history = open_history(runs)
    before, after = same.entry.conditions["native"], changed.entry.conditions["native"]
    assert history.changed_fields(before, after) == {"host.kernel": ("6.12", "6.13")}


def test_series_are_found_by_identifier_and_by_words(runs: Path) -> None:
    update_history(runs)
    history = open_history(runs)
    assert len(list_series(history)) == 4
    found = find_series(history, "work-1 native")
    assert found == find_series(history, found.series[:6])
    assert len(nights_of(history, found.series)) == 3
    with pytest.raises(UnknownNameError, match="2 series match 'work-1'"):
        find_series(history, "work-1")
    with pytest.raises(UnknownNameError, match="no series is called"):
        find_series(history, "nothing")


def test_exports_hold_every_row(runs: Path, tmp_path: Path) -> None:
    write_night(runs, 3, Night(labels={"commit": "abc"}), plan=SMALL)
    update_history(runs)
    history = open_history(runs)
    for form in ("csv", "json", "openmetrics", "parquet"):
        export(history, form, tmp_path / f"all.{form}")
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + 16
    values = json.loads((tmp_path / "all.json").read_text())
    assert {one["run"] for one in values} == {one.run for one in history.entries}
    assert len(values[0]["medians"]) == 3
    scraped = (tmp_path / "all.openmetrics").read_text()
    assert scraped.count("tare_history_level{") == 4
    assert scraped.count("tare_history_ratio{") == 2
    assert scraped.endswith("# EOF\n")
    export(history, "csv", tmp_path / "one.csv", {"commit": "abc"})
    assert len((tmp_path / "one.csv").read_text().splitlines()) == 1 + 4
    with pytest.raises(UnknownNameError, match="there is no form 'xml'"):
        export(history, "xml", tmp_path / "x")


def test_an_index_reads_back_as_it_was_written(runs: Path) -> None:
    update_history(runs)
    history = open_history(runs)
    assert msgspec.json.decode(msgspec.json.encode(history.catalogue), type=index.Catalogue) == history.catalogue
