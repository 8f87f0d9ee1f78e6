"""What of a run directory is collected, and its digest; and that it comes back whole, in pieces, or not at all."""

import asyncio
import hashlib
import tracemalloc

import pytest

from tare.bench.errors import RunDirectoryError, TareError
from tare.bench.fleet import fetching, listing, on_host
from tare.bench.fleet.fetching import collect
from tare.bench.fleet.listing import digest_of, list_run, require_below
from tare.bench.fleet.on_host import Order, Place, read_pieces

ORDER = Order("f", "h", "run", {})


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TARE_STATE_DIR", str(tmp_path / "state"))
    place = Place(ORDER)
    (place.run / "raw/b00~2").mkdir(parents=True)
    (place.run / "manifest.json").write_text("{}")
    (place.run / "samples.jsonl").write_bytes(b"x" * 100_000)
    (place.run / "events.jsonl").touch()
    (place.run / "report.html").write_text("written again from the rest")
    for number in range(20):
        (place.run / f"raw/b00~2/{number:03d}-run.stdout.gz").write_bytes(bytes([number]) * number)
    (place.run / "raw/link").symlink_to("/etc/passwd")
    return place


def asking(place, calls=None, spoil=lambda call, answer: answer):
    async def ask(call, content):
        if calls is not None:
            calls.append(call)
        if call == "listing":
            answer = [{"name": one.name, "size": one.size, "sha256": one.sha256} for one in place.listing()]
        else:
            answer = read_pieces(ORDER, content["pieces"])
        return spoil(call, answer)

    return ask


def test_a_listing_has_the_records_and_raw_outputs(place):
    names = [one.name for one in list_run(place.run)]
    assert names == [
        "events.jsonl",
        "manifest.json",
        *(f"raw/b00~2/{n:03d}-run.stdout.gz" for n in range(20)),
        "samples.jsonl",
    ]
    assert list_run(place.run)[1].sha256 == hashlib.sha256(b"{}").hexdigest()


def test_a_run_comes_back_in_pieces(place, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PIECE_BYTES", 30_000)
    digest, target, calls = digest_of(place.listing()), tmp_path / "here/run", []
    asyncio.run(collect(asking(place, calls), ORDER, digest, target))
    assert calls == ["listing", *["pieces"] * 5]  # 100,000 B at 30,000 a call, and one for all small files
    assert list_run(target) == list_run(place.run)
    assert not list(target.parent.glob(".*"))
    asyncio.run(collect(asking(place, calls), ORDER, digest, target))
    assert len(calls) == 6  # what is here is not fetched again


def test_an_interrupted_collection_goes_on(place, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PIECE_BYTES", 30_000)
    digest, target, calls = digest_of(place.listing()), tmp_path / "here/run", []

    def broken(call, answer):
        if calls.count("pieces") == 3:
            raise TareError("cut")
        return answer

    with pytest.raises(TareError, match="cut"):
        asyncio.run(collect(asking(place, calls, broken), ORDER, digest, target))
    assert not target.exists()
    calls.clear()
    asyncio.run(collect(asking(place, calls), ORDER, digest, target))
    assert calls.count("pieces") == 4  # the small files were here
    assert digest_of(list_run(target)) == digest


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda call, answer: answer[:-1] if call == "listing" else answer, "listing that came is not that"),
        (lambda call, answer: answer if call == "listing" else [b"y" * len(one) for one in answer], "files that came"),
        (lambda call, answer: answer if call == "listing" else [one[:-1] for one in answer], "another length"),
        (lambda call, answer: answer if call == "listing" else ["text" for one in answer], "another length"),
    ],
)
def test_what_is_not_what_the_host_states_is_refused(place, tmp_path, spoil, message):
    target = tmp_path / "here/run"
    with pytest.raises(TareError, match=message):
        asyncio.run(collect(asking(place, spoil=spoil), ORDER, digest_of(place.listing()), target))
    assert not target.exists()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "raw", "raw/../../x", "raw//x", "", "x\n", "report.html", "raw/./x"]
)
def test_names_stay_below(name):
    with pytest.raises(RunDirectoryError):
        require_below(name)


def test_only_files_of_the_run_are_read(place):
    with pytest.raises(RunDirectoryError, match="is not a file of the run"):
        read_pieces(ORDER, [("raw/link", 0, 10)])


def test_a_host_never_reads_more_at_once_than_one_piece(place, monkeypatch):
    monkeypatch.setattr(on_host, "PIECE_BYTES", 1000)
    assert [len(one) for one in read_pieces(ORDER, [("samples.jsonl", 0, 700), ("samples.jsonl", 0, 10**9)])] == [
        700,
        300,
    ]


def test_a_run_is_not_held_in_memory(place, tmp_path, monkeypatch):
    """32 MiB in pieces of 256 KiB: both sides together have a few pieces at once."""
    size, piece = 32 * 2**20, 256 * 2**10
    for module in (fetching, on_host, listing):
        monkeypatch.setattr(module, "PIECE_BYTES", piece)
    with (place.run / "samples.jsonl").open("wb") as file:
        file.truncate(size)
    digest = digest_of(place.listing())
    tracemalloc.start()
    try:
        asyncio.run(collect(asking(place), ORDER, digest, tmp_path / "here/run"))
        assert tracemalloc.get_traced_memory()[1] < 8 * piece
    finally:
        tracemalloc.stop()
