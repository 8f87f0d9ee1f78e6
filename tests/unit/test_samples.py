"""A run's samples column by column say the same as one by one."""

import msgspec
import numpy as np

from tare.bench import stored
from tare.bench.records import Sample
from tare.bench.samples import NUMBERS, TEXTS, SampleTable
from tare.bench.units import Unit


def sample(place, **given):
    usual = Sample(
        f"b{place % 3}", place % 3, "steady", "w", {"n": place % 2}, "native", "m", Unit.SECOND, place / 7, place,
        warmup=place == 0, raw=f"raw/{place}",
    )  # fmt: skip
    return msgspec.structs.replace(usual, **given)


def written(path, samples):
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in samples))
    return path


def test_the_columns_are_the_fields_of_a_sample():
    assert {*TEXTS, *NUMBERS, "host"} == {field.name for field in msgspec.structs.fields(Sample)} - {"number"}


def test_read_in_pieces_of_any_size_it_is_what_was_written(tmp_path, monkeypatch):
    samples = [sample(place) for place in range(20)]
    path = written(tmp_path / "samples.jsonl", samples)
    for size in (1, 100, 1000, 10**6):
        monkeypatch.setattr(stored, "_CHUNK_BYTES", size)
        warnings = []
        assert SampleTable.read(path, warnings) == samples
        assert warnings == []


def test_parts_of_it(tmp_path):
    samples = [sample(place) for place in range(9)]
    table = SampleTable.read(written(tmp_path / "s", samples), [])
    assert table[2:4] == samples[2:4]
    assert table[-1] == samples[-1]
    assert table.without({"b0"}) == [one for one in samples if one.instance != "b0"]
    assert table.where("instance", "b1") == [one for one in samples if one.instance == "b1"]
    assert table.where("params", {"n": 1}) == samples[1::2]
    assert len(table.where("experiment", "density")) == 0
    assert table.taken(table.numbers["warmup"]) == samples[:1]
    assert table.distinct("instance") == ("b0", "b1", "b2")
    assert table[1:].distinct("instance") == ("b1", "b2", "b0")
    assert table.distinct("block") == (0, 1, 2)
    assert np.isclose(table.numbers["value"].sum(), sum(one.value for one in samples))


def test_a_line_that_is_no_sample_is_named_wherever_it_lies(tmp_path, monkeypatch):
    whole = msgspec.json.encode(sample(1))
    broken = (b"{", b"[]", whole.replace(b'{"n":1}', b"3"), whole.replace(b'"s"', b'"hour"'), b"\xff")
    for size in (50, 10**6):
        monkeypatch.setattr(stored, "_CHUNK_BYTES", size)
        for bad in broken:
            path = tmp_path / "samples.jsonl"
            path.write_bytes(b"\n".join((whole, whole, bad, whole, b"")))
            warnings = []
            table = SampleTable.read(path, warnings)
            assert table == [sample(1)] * 3
            assert len(warnings) == 1
            assert "samples.jsonl line 3 " in warnings[0]
