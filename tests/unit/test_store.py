"""A run directory survives whatever happens to its last line, and says what it left out."""

import errno
import gzip
import json
import os
from pathlib import Path

import msgspec
import pytest

from tare.bench.catalogue import TRAITS
from tare.bench.errors import RunDirectoryError, StoreError
from tare.bench.model import Completed, Envelope, Fact, Histogram
from tare.bench.records import (
    SCHEMA_VERSION,
    Event,
    EventKind,
    Fingerprint,
    HistogramRecord,
    Manifest,
    RunStatus,
    Sample,
)
from tare.bench.store import RunStore, attempt_of, find_progress, load_histograms, load_manifest, load_run
from tare.bench.stored import upgraded
from tare.bench.units import Unit

MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    run="r",
    tare_version="0",
    status=RunStatus.RUNNING,
    seed=1,
    started_utc="",
    ended_utc="",
    suite={},
    envelope=Envelope((1,), 2**20, 2**20, 64),
    image={},
    host=(),
    host_summary="",
    backends={},
    unavailable={},
    confounds=(),
    metrics={},
    planned_instances=2,
    experiments=TRAITS,
)


def sample(instance: str = "b00i00-a", value: float = 1.5, iteration: int = 0) -> Sample:
    return Sample(instance, 0, "steady", "w", {"n": 1}, "fake", "m", Unit.SECOND, value, iteration, warmup=False)


def event(kind: EventKind, instance: str) -> Event:
    return Event(kind, 1.0, "", instance)


def test_what_was_written_is_read_back(tmp_path):
    with RunStore(tmp_path / "run", MANIFEST) as store:
        store.add_sample(sample())
        store.add_event(event(EventKind.INSTANCE_DONE, "b00i00-a"))
        store.sync()
        store.save_manifest(msgspec.structs.replace(MANIFEST, status=RunStatus.COMPLETE))
    run = load_run(tmp_path / "run")
    assert run.samples == [sample()]
    assert run.manifest.status is RunStatus.COMPLETE
    assert find_progress(run).done == {"b00i00-a"}
    assert run.warnings == []


def test_every_cut_of_the_last_line_keeps_what_was_before_it(tmp_path):
    with RunStore(tmp_path, MANIFEST) as store:
        store.add_sample(sample(value=1.0))
        store.add_sample(sample(value=2.0, iteration=1))
    whole = (tmp_path / "samples.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first + 1, len(whole)):
        (tmp_path / "samples.jsonl").write_bytes(whole[:cut])
        run = load_run(tmp_path)
        assert [one.value for one in run.samples] == [1.0]
        assert "half written" in run.warnings[0]


def test_writing_goes_on_after_a_half_written_line(tmp_path):
    with RunStore(tmp_path, MANIFEST) as store:
        store.add_sample(sample(value=1.0))
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write(b'{"instance":"b0')
    with RunStore(tmp_path, MANIFEST) as store:
        store.add_sample(sample("b00i00-a~2", value=3.0))
        store.add_sample(sample("b00i00-b", value=4.0))
    run = load_run(tmp_path)
    assert [one.value for one in run.samples] == [3.0, 4.0]
    assert not any("written" in warning for warning in run.warnings)


def test_a_damaged_line_in_the_middle_is_left_out_with_its_number(tmp_path):
    with RunStore(tmp_path, MANIFEST) as store:
        for value in (1.0, 2.0, 3.0):
            store.add_sample(sample(value=value))
    lines = (tmp_path / "samples.jsonl").read_bytes().split(b"\n")
    lines[1] = lines[1][:20] + b"\xff\xfe"
    (tmp_path / "samples.jsonl").write_bytes(b"\n".join(lines))
    run = load_run(tmp_path)
    assert [one.value for one in run.samples] == [1.0, 3.0]
    assert "line 2" in run.warnings[0]


def test_a_later_attempt_replaces_the_first(tmp_path):
    with RunStore(tmp_path, MANIFEST) as store:
        for name, value in (("b00i00-a", 1.0), ("b00i00-b", 2.0), ("b00i00-b~2", 3.0)):
            store.add_event(event(EventKind.INSTANCE_STARTED, name))
            store.add_sample(sample(name, value))
    run = load_run(tmp_path)
    assert [one.value for one in run.samples] == [1.0, 3.0]
    assert "measured again" in run.warnings[0]


def test_attempts_in_names():
    assert attempt_of("b00i00-a") == ("b00i00-a", 1)
    assert attempt_of("b00i00-a~3") == ("b00i00-a", 3)


def test_outputs_are_kept_whole(tmp_path):
    output = Completed(("x",), 0, None, b"\x00\xff" * 1000, b"warning", 0.0, 1.0)
    with RunStore(tmp_path, MANIFEST) as store:
        name = store.add_raw("b00i00-a", "001-measured", output)
    assert gzip.decompress((tmp_path / name).read_bytes()) == output.stdout
    assert gzip.decompress((tmp_path / name.replace("stdout", "stderr")).read_bytes()) == b"warning"


def test_two_writers_at_once_are_refused(tmp_path):
    with RunStore(tmp_path, MANIFEST), pytest.raises(RunDirectoryError, match="another tare process"):
        RunStore(tmp_path, MANIFEST)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is not a run directory"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"schema_version": 999}', "newer than this tare"),
        ('{"schema_version": "x"}', "damaged"),
        ('{"schema_version": 0}', "damaged"),
        ('{"schema_version": true}', "damaged"),
        ('{"schema_version": 1.0}', "damaged"),
        ('{"schema_version": "1"}', "damaged"),
        ('{"schema_version": 1}', "not what a run of schema 1 has"),
        ('{"schema_version": 2}', "missing required field"),
    ],
)
def test_what_is_not_a_run_is_refused_with_the_reason(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=reason):
        load_run(tmp_path)


def test_a_sample_knows_its_host_and_no_line_repeats_it(tmp_path):
    manifest = msgspec.structs.replace(MANIFEST, fingerprint=Fingerprint("ab12"))
    with RunStore(tmp_path, manifest) as store:
        store.add_sample(msgspec.structs.replace(sample(), host="ab12"))
    assert "ab12" not in (tmp_path / "samples.jsonl").read_text()
    assert [one.host for one in load_run(tmp_path).samples] == ["ab12"]


def test_unknown_fields_are_ignored_and_named_once(tmp_path):
    with RunStore(tmp_path, MANIFEST) as store:
        store.add_sample(sample(value=1.0))
        store.add_sample(sample(value=2.0))
        store.add_event(Event(EventKind.NOTE, 1.0, "now"))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["weather"] = {"wind": 3}
    manifest["envelope"]["gpus"] = 1
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for name in ("samples.jsonl", "events.jsonl"):
        lines = [json.loads(line) | {"moon": 1} for line in (tmp_path / name).read_text().splitlines()]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = load_run(tmp_path)
    assert run.manifest == MANIFEST
    assert [one.value for one in run.samples] == [1.0, 2.0]
    assert [one.kind for one in run.events] == [EventKind.NOTE]
    assert run.warnings == [
        "manifest.json has fields that this version of tare does not know; they are ignored: envelope.gpus, weather",
        "samples.jsonl has fields that this version of tare does not know; they are ignored: moon",
        "events.jsonl has fields that this version of tare does not know; they are ignored: moon",
    ]


def test_unknown_fields_beside_damage_and_within_fields_cost_no_line(tmp_path):
    counts = Histogram("latency", Unit.SECOND, (1.0, 2.0), (3, 4))
    record = HistogramRecord("b00i00-a", 0, "steady", "w", {}, "fake", 0, warmup=False, histogram=counts)
    with RunStore(tmp_path, MANIFEST) as store:
        for _ in range(3):
            store.add_histogram(record)
    file = tmp_path / "histograms.jsonl"
    first, second, third = (json.loads(line) for line in file.read_text().splitlines())
    second["histogram"]["colour"] = "red"
    third["moon"] = 1
    lines = [json.dumps(first), "{damaged", json.dumps(second), json.dumps(third)]
    file.write_text("\n".join(lines) + "\n")
    run = load_run(tmp_path)
    assert load_histograms(run) == [record, record, record]
    damaged, unknown = run.warnings
    assert damaged.startswith("histograms.jsonl line 2 cannot be read")
    assert unknown.endswith("they are ignored: histogram.colour, moon")


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path, monkeypatch):
    """os.write takes a part of the line and then nothing, as a full file system does."""
    with RunStore(tmp_path, MANIFEST) as store:
        store.add_sample(sample(value=1.0))
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
        with pytest.raises(StoreError, match="No space left") as caught:
            store.add_sample(sample(value=2.0))
        assert "--resume" in (caught.value.remedy or "")
        assert caught.value.__cause__.errno == errno.ENOSPC
        monkeypatch.undo()
        store.add_sample(sample(value=3.0))
    run = load_run(tmp_path)
    assert [one.value for one in run.samples] == [1.0, 3.0]
    assert run.warnings == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        RunStore(tmp_path / "file" / "run", MANIFEST)


def test_a_manifest_nested_too_deeply_is_damaged(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(RunDirectoryError, match="damaged"):
        load_manifest(tmp_path)


def test_the_manifest_is_replaced_whole(tmp_path):
    with RunStore(tmp_path, MANIFEST):
        assert not list(Path(tmp_path).glob("*.part"))


def test_facts_of_the_first_schema_get_their_numbers_once():
    host = [
        {"name": name, "value": value, "source": "x"}
        for name, value in (("memory", "23.5 GiB"), ("cpus", "?"), ("kernel", "6.18"))
    ]
    manifest = upgraded(
        {"schema_version": 1, "suite": {}, "host": host, "backends": {"vm": {"facts": {"accel": "tcg"}}}}
    )
    memory, cpus, kernel = (msgspec.convert(fact, Fact) for fact in manifest["host"])
    assert memory == Fact("memory", "23.5 GiB", "x", 25232932864, Unit.BYTE)
    assert cpus == Fact("cpus", "?", "x")
    assert kernel == Fact("kernel", "6.18", "x")
    assert manifest["backends"]["vm"]["facts"] == {"accel": {"name": "accel", "text": "tcg"}}


def test_the_files_of_a_run_can_be_read_by_all_and_written_by_their_owner(tmp_path):
    old = os.umask(0o022)
    try:
        with RunStore(tmp_path / "run", MANIFEST):
            modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "run").glob("*.jsonl")}
    finally:
        os.umask(old)
    assert modes == dict.fromkeys(("samples.jsonl", "events.jsonl", "histograms.jsonl"), 0o644)


def test_distributions_are_read_back_without_those_of_replaced_attempts(tmp_path):
    histogram = Histogram("read.latency", Unit.SECOND, (0.001, 0.002), (3, 1))
    with RunStore(tmp_path, MANIFEST) as store:
        for name in ("b00i00-a", "b00i00-b", "b00i00-b~2"):
            store.add_event(event(EventKind.INSTANCE_STARTED, name))
            store.add_histogram(
                HistogramRecord(name, 0, "steady", "fio", {}, "native", 1, warmup=False, histogram=histogram)
            )
    run = load_run(tmp_path)
    assert [one.instance for one in load_histograms(run)] == ["b00i00-a", "b00i00-b~2"]
    assert load_histograms(run)[0].histogram == histogram
    (tmp_path / "histograms.jsonl").unlink()  # as a run from before there were any
    assert load_histograms(load_run(tmp_path)) == []
    assert run.warnings == []
