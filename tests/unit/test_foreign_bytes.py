"""Whatever stands in what tare reads and did not write itself, there is a value or one of the documented errors.

Each reader gets bytes of any kind, valid documents with a part replaced, and documents nested without end. Archives and
the JSON within them have their own in test_image_damage.py. TARE_FUZZ_EXAMPLES asks for more than the usual few.
"""

import contextlib
import copy
import json
import os
import socket
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tare.backends.native import channel as channels
from tare.backends.native.channel import MAX_ANSWER_BYTES, Channel
from tare.backends.vm.commands import Conversation, Decoder, encode_frame
from tare.backends.vm.proof import read_proof
from tare.backends.vm.watch import parse_line
from tare.bench.capacity.fleet import load_fleet
from tare.bench.errors import TareError
from tare.bench.image.stored import load_description
from tare.bench.ledger import clean
from tare.bench.linux.mounts import parse_mountinfo
from tare.bench.linux.processes import Status
from tare.bench.model import Command
from tare.bench.readable import readable
from tare.bench.store import find_progress, load_histograms, load_manifest, load_run
from tare.bench.suite import resolve_suite
from tare.bench.suite_file import read_toml
from tare.bench.tune.journal import JournalFile
from tests.unit.fakes import BACKENDS, WORKLOADS
from tests.unit.test_store import MANIFEST

FEW = int(os.environ.get("TARE_FUZZ_EXAMPLES", "40"))
usual = settings(
    max_examples=FEW,
    deadline=None,
    derandomize="TARE_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DEEP = b"[" * 200_000
DEEP_OBJECT = b'{"a":' * 100_000
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -1, 2**63, 2**64, 0]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "\0", "..", "/", "~", "b00i00-a~99999999999999999999", "\ud7ff", "\x1b[2J"]),
)
VALUES = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner), max_leaves=6
)
BYTES = st.binary(max_size=200)


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> Any:
    """``document`` with some of its parts replaced, taken away or added."""
    found = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        _damage(draw, found)
    return found


def _damage(draw: st.DrawFn, found: Any) -> None:
    while True:
        places = [*found] if isinstance(found, dict) else [*range(len(found))]
        if not places:
            return
        place = draw(st.sampled_from(places))
        inner = found[place]
        if isinstance(inner, (dict, list)) and inner and draw(st.booleans()):
            found = inner
            continue
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                found[place] = draw(VALUES)
            case "remove":
                del found[place]
            case "add" if isinstance(found, dict):
                found[draw(st.text(max_size=5))] = draw(VALUES)
        return


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


# --- from inside an instance --------------------------------------------------------------------------


@usual
@given(st.lists(st.one_of(BYTES, BYTES.map(lambda data: len(data).to_bytes(4, "little") + data)), max_size=4))
def test_frames_of_an_init(parts: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    reader = Channel(theirs)
    with contextlib.closing(reader), ours, pytest.MonkeyPatch.context() as patch:
        patch.setattr(channels, "DEADLINE_S", 0.02)
        with contextlib.suppress(BrokenPipeError):
            ours.sendall(b"".join(parts))
        with contextlib.suppress(EOFError, TareError, TimeoutError):
            fields, descriptors = reader.receive(0.0)
            assert sum(map(len, fields)) <= MAX_ANSWER_BYTES
            assert descriptors == []


FRAMES = st.tuples(st.sampled_from([bytes([kind]) for kind in b"SOEWFXDZI\0"]), st.binary(max_size=24))


@usual
@given(st.lists(st.one_of(BYTES, FRAMES.map(lambda frame: encode_frame(*frame))), max_size=8), st.booleans())
def test_frames_of_a_guest(parts: list[bytes], timed_out: bool) -> None:
    conversation, decoder = Conversation(Command(("x",), stdin=b"abc"), lambda _: None), Decoder()
    with contextlib.suppress(TareError):
        for number, part in enumerate(parts):
            for kind, payload in decoder.feed(part):
                conversation.on_frame(kind, payload, float(number))
        conversation.completed(timed_out=timed_out)


@usual
@given(st.text(max_size=80))
@example("tare: init 1" + "0" * 5000 + ".5")
@example("tare: failed \x1b[2J")
def test_lines_of_a_guest_s_console(line: str) -> None:
    found = parse_line(line, 1.0)
    assert found is None or isinstance(found, str) or found.guest_s >= 0


# --- what a run stored --------------------------------------------------------------------------------

RUN = msgspec.to_builtins(MANIFEST)
SAMPLE = {
    "instance": "b00i00-a",
    "block": 0,
    "experiment": "steady",
    "workload": "w",
    "params": {"n": 1},
    "backend": "fake",
    "metric": "m",
    "unit": "s",
    "value": 1.5,
    "iteration": 0,
    "warmup": False,
    "number": 1,
}
DONE = {
    "kind": "instance_done",
    "at_s": 1.0,
    "utc": "",
    "instance": "b00i00-a",
    "cell": "c",
    "message": "",
    "details": {"records": {"samples.jsonl": 1, "histograms.jsonl": 1}},
}
HISTOGRAM = {
    **{name: value for name, value in SAMPLE.items() if name not in {"metric", "unit", "value"}},
    "histogram": {"name": "h", "unit": "s", "bounds": [1.0, 2.0], "counts": [3, 4]},
    "raw": "",
}


@usual
@given(st.one_of(damaged(RUN).map(as_json), VALUES.map(as_json), BYTES))
@example(DEEP)
@example(DEEP_OBJECT)
@example(as_json(RUN | {"suite": {}, "backends": {"x": None}, "schema_version": 1}))
def test_manifests(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with contextlib.suppress(TareError):
        load_manifest(tmp_path)


@usual
@pytest.mark.parametrize(("name", "record"), [("samples", SAMPLE), ("events", DONE), ("histograms", HISTOGRAM)])
@given(data=st.data())
def test_lines_of_a_run(tmp_path: Path, name: str, record: dict[str, Any], data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.one_of(damaged(record).map(as_json), VALUES.map(as_json), BYTES), max_size=4))
    read_with(tmp_path, name, b"\n".join([as_json(record), *lines, b""]))


@pytest.mark.parametrize("name", ["samples", "events", "histograms"])
@pytest.mark.parametrize("line", [DEEP, DEEP_OBJECT, b'{"number":' + b"9" * 6000 + b"}"])
def test_lines_without_end(tmp_path: Path, name: str, line: bytes) -> None:
    read_with(tmp_path, name, line + b"\n")


def read_with(folder: Path, name: str, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(as_json(RUN))
    for other, record in (("samples", SAMPLE), ("events", DONE), ("histograms", HISTOGRAM)):
        (folder / f"{other}.jsonl").write_bytes(content if other == name else as_json(record) + b"\n")
    with contextlib.suppress(TareError):
        run = load_run(folder)
        load_histograms(run)
        find_progress(run)


# --- what a user wrote, and what tare keeps -----------------------------------------------------------

SUITE = tomllib.loads("""
baseline = 1
[suite]
name = "x"
[envelope]
memory = "64MiB"
scratch = "1MiB"
[sampling]
blocks = 2
iterations = 2
warmup = 1
[[backend]]
type = "fake"
[[experiment]]
kind = "steady"
workload = "answer"
params = { size = [1, 2] }
[report]
baseline = "fake"
""")
del SUITE["baseline"]


@usual
@given(st.one_of(damaged(SUITE), VALUES.filter(lambda value: isinstance(value, dict))))
def test_suites(document: dict[str, Any]) -> None:
    with contextlib.suppress(TareError):
        resolve_suite(document, Path("suite.toml"), BACKENDS, WORKLOADS)


TOML = st.one_of(BYTES, st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
NESTED = st.integers(1, 2000).map(lambda depth: b"a = " + b"[" * depth)


@usual
@given(st.one_of(TOML, NESTED))
@example(b"a = " + b"[" * 100_000)
@example(b"a = " + b"1" * 6000)
def test_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some.toml").write_bytes(content)
    for read in (read_toml, load_fleet):
        with contextlib.suppress(TareError):
            read(tmp_path / "some.toml")


KEPT: dict[str, tuple[str, Callable[[Path], object], Any]] = {
    "image": ("image.json", load_description, {"format": 1, "digest": "x", "files": {"a": {"size": 1, "sha256": ""}}}),
    "journal": (
        "tune.json",
        lambda folder: JournalFile(folder / "tune.json").load(),
        {"version": 1, "boot_id": "x", "originals": [{"path": "/x", "value": "1"}], "wanted": {"a": "b"}},
    ),
    "proof": ("kvm-proof.json", read_proof, {"key": {"a": "b"}, "attempt": {"reason": "", "seconds": 1.0}}),
}


@usual
@pytest.mark.parametrize("kept", KEPT)
@given(data=st.data())
def test_what_tare_keeps(tmp_path: Path, kept: str, data: st.DataObject) -> None:
    name, read, document = KEPT[kept]
    content = data.draw(st.one_of(damaged(document).map(as_json), VALUES.map(as_json), BYTES, st.just(DEEP)))
    (tmp_path / name).write_bytes(content)
    with contextlib.suppress(TareError):
        read(tmp_path)


BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
LEDGER = f"{BOOT}-{'0' * 12}-{2**22 + 1}-{'0' * 16}.jsonl"


@usual
@given(
    st.lists(st.one_of(damaged({"entry": 1, "kind": "file", "target": "/nowhere/x"}).map(as_json), BYTES), max_size=4)
)
@example([DEEP, b'{"entry": 1, "x": ' + DEEP])
def test_ledgers(tmp_path: Path, lines: list[bytes]) -> None:
    """A folder of the ledger is this user's alone: what is in it may be damaged, and is not hostile."""
    folder = tmp_path / "ledger"
    folder.mkdir(exist_ok=True)
    made = tmp_path / "made"
    made.mkdir(exist_ok=True)
    entry = as_json({"entry": 10**6, "kind": "directory", "target": str(made)})
    (folder / LEDGER).write_bytes(b"\n".join([*lines, entry, b""]))
    clean(folder)
    assert not made.exists()
    for left in folder.iterdir():
        left.unlink()


# --- what the kernel says, with names in it that anybody may choose -----------------------------------


@usual
@given(BYTES)
def test_status_of_a_process(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        Status(b"7 (" + content + b") S 1 " + content)


@usual
@given(BYTES)
def test_mounts(name: bytes) -> None:
    """The kernel escapes white space and backslashes, and nothing else."""
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name if byte)
    (mount,) = parse_mountinfo(b"30 22 0:25 / /" + escaped + b" rw - ext4 /dev/x rw\n")
    assert os.fsencode(mount.point) == os.fsencode(Path(os.fsdecode(b"/" + name.replace(b"\0", b""))))


@usual
@given(st.text(max_size=60))
def test_what_is_shown_is_printable(text: str) -> None:
    assert "\x1b" not in readable(text)
    readable(text).encode("utf-8")
