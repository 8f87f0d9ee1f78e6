"""Archives that are damaged, cut short, in several parts, hostile or odd: whole or refused."""

import bz2
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import lzma
import multiprocessing
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tare.bench.errors import ImageError
from tare.bench.image.archive import make_imported_tree
from tare.bench.image.stored import list_tree
from tare.bench.image.tar import ArchiveLimits
from tare.bench.image.unpack import Unpacking
from tare.bench.trees import remove_tree


def _zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


def _plain(data: bytes) -> bytes:
    return data


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": _plain,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": _zstd,
}
needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
ALL = [pytest.param(name, marks=needs_zstd if name == "zstd" else ()) for name in PACKERS]
COMPRESSED = ALL[1:]


def archive(seed: int = 18) -> bytes:
    """A small tree with everything in it, its content hard to compress: 40 members."""
    chance = random.Random(seed)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("usr", "usr/bin", "etc"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for number in range(35):
            member = tarfile.TarInfo(f"usr/bin/{'long-' * 30 if number % 7 == 0 else 'tool'}{number}")
            content = chance.randbytes(chance.randrange(4000))
            member.size, member.mtime = len(content), 1_000_000 + number / 8
            member.uid, member.gid = os.getuid(), os.getgid()
            tar.addfile(member, io.BytesIO(content))
        for kind, link in ((tarfile.SYMTYPE, "bin/tool1"), (tarfile.LNKTYPE, "usr/bin/tool2")):
            member = tarfile.TarInfo(f"usr/link{kind.decode()}")
            member.type, member.linkname = kind, link
            tar.addfile(member)
    return file.getvalue()


class Importer:
    """Imports bytes into trees of their own below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    def __call__(self, *layers: bytes, limits: ArchiveLimits = ArchiveLimits()) -> list[str]:  # noqa: B008 - is immutable
        """The lines of the tree that the layers make. Raises ImageError."""
        files = []
        for number, data in enumerate(layers):
            files.append(self._folder / f"layer{number}")
            files[-1].write_bytes(data)
        return self.files(*files, limits=limits)

    def files(self, *layers: Path, limits: ArchiveLimits = ArchiveLimits()) -> list[str]:  # noqa: B008 - is immutable
        self._number += 1
        root = self._folder / f"tree{self._number}"
        root.mkdir()
        try:
            unpacking = Unpacking(root, limits)
            for number, layer in enumerate(layers):
                unpacking.add(layer, is_lowest=number == 0)
            unpacking.settle()
            lines = list_tree(root)
            unpacking.require_listed(lines)
            return lines
        finally:
            remove_tree(root)


@pytest.fixture
def load(tmp_path: Path) -> Importer:
    return Importer(tmp_path)


@pytest.mark.parametrize("packer", COMPRESSED)
def test_no_flipped_bit_changes_an_image(load: Importer, packer: str) -> None:
    whole = PACKERS[packer](archive())
    expected = load(whole)
    chance = random.Random(packer)
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole)
        place = chance.randrange(len(whole) * 8)
        damaged[place // 8] ^= 1 << place % 8
        try:
            assert load(bytes(damaged)) == expected, f"bit {place}"
        except ImageError:
            refused += 1
    assert refused > 90


def test_no_flipped_bit_in_a_plain_header_drops_or_changes_members(load: Importer) -> None:
    whole = archive()
    expected = load(whole)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        headers = [member.offset for member in tar] + [len(whole) - 1024]
    chance = random.Random(9)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.choice(headers) + chance.randrange(512)] ^= 1 << chance.randrange(8)
        try:
            assert load(bytes(damaged)) == expected
        except ImageError:
            refused += 1
    assert refused > 140


@pytest.mark.parametrize("packer", ALL)
def test_an_archive_cut_anywhere_is_refused(load: Importer, packer: str) -> None:
    whole = PACKERS[packer](archive().rstrip(b"\0") + bytes(2048))
    for twentieth in range(20):
        with pytest.raises(ImageError):
            load(whole[: len(whole) * twentieth // 20])


def test_a_plain_archive_cut_between_two_members_is_refused(load: Importer) -> None:
    whole = archive()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        places = [member.offset for member in tar]
    for place in places:
        with pytest.raises(ImageError, match="cannot be read as a tar archive"):
            load(whole[:place])


@pytest.mark.parametrize("packer", COMPRESSED)
@pytest.mark.parametrize("parts", [2, 7])
def test_several_streams_are_one_archive(load: Importer, packer: str, parts: int) -> None:
    plain = archive()
    pack, step = PACKERS[packer], len(plain) // parts + 1
    pieces = [pack(plain[at : at + step]) for at in range(0, len(plain), step)]
    assert load(b"".join(pieces)) == load(plain)
    pieces[1] = pieces[1][:-1] + bytes([pieces[1][-1] ^ 0x40])
    with pytest.raises(ImageError):
        load(b"".join(pieces))


def test_a_gzip_member_an_entry_is_one_archive(load: Importer) -> None:
    plain = archive()
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        places = [member.offset for member in tar] + [len(plain)]
    members = [gzip.compress(plain[at:end]) for at, end in itertools.pairwise(places)]
    assert load(b"".join(members)) == load(plain)


@needs_zstd
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_skippable_frames_are_skipped(load: Importer, where: str) -> None:
    plain = archive()
    frames = [_zstd(plain[:9000]), _zstd(plain[9000:])]
    frames.insert(
        {"first": 0, "middle": 1, "last": 2}[where], b"\x5a\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"skipped"
    )
    assert load(b"".join(frames)) == load(plain)


@pytest.mark.parametrize("packer", ALL)
@pytest.mark.parametrize("rest", [b"rest", archive()[:512], b"\0" * 600 + b"x"])
def test_what_follows_the_end_is_damage(load: Importer, packer: str, rest: bytes) -> None:
    with pytest.raises(ImageError):
        load(PACKERS[packer](archive()) + rest)
    with pytest.raises(ImageError, match="after its end"):
        load(PACKERS[packer](archive() + rest))


@pytest.mark.parametrize("packer", ["gzip", "bzip2", "xz"])
def test_zeros_that_a_tape_adds_are_no_damage(load: Importer, packer: str) -> None:
    assert load(PACKERS[packer](archive()) + bytes(10240)) == load(archive())


@pytest.mark.parametrize("packer", ALL)
def test_a_pipe_is_read_from_its_first_byte(load: Importer, tmp_path: Path, packer: str) -> None:
    data = PACKERS[packer](archive())
    read, write = os.pipe()

    def feed() -> None:
        with os.fdopen(write, "wb", buffering=0) as file:
            file.write(data[:3])  # less than what tells the formats apart
            file.write(data[3:])

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        assert load.files(Path(f"/dev/fd/{read}")) == load(data)
    finally:
        os.close(read)
        feeder.join()


# --- limits ----------------------------------------------------------------------------------------------------------


def one(name: str = "bin/x", content: bytes = b"", pax: dict[str, str] | None = None, **fields: object) -> bytes:
    """An archive of one member with odd fields."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.size, member.uid, member.gid = len(content), os.getuid(), os.getgid()
        member.pax_headers = pax or {}
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def sparse(size: int) -> bytes:
    content = b"1\n0\n4\n".ljust(512, b"\0") + b"data"
    pax = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "bin/x",
        "GNU.sparse.realsize": str(size),
    }
    return one("bin/GNUSparseFile.0/x", content, pax)


def test_a_sparse_file_keeps_its_holes(tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(sparse(50 << 20))
    (tmp_path / "root").mkdir()
    Unpacking(tmp_path / "root", ArchiveLimits()).add(tmp_path / "layer", is_lowest=True)
    status = (tmp_path / "root/bin/x").stat()
    assert status.st_size == 50 << 20
    assert status.st_blocks * 512 < 1 << 20
    assert (tmp_path / "root/bin/x").read_bytes() == b"data" + bytes((50 << 20) - 4)


@pytest.mark.parametrize(
    ("data", "option"),
    [
        (sparse(1 << 40), "--max-size"),
        (sparse(20 << 30), "--max-ratio"),
        (gzip.compress(one(content=bytes(100 << 20))), "--max-ratio"),
        (one("/".join("d" * 101)), "--max-depth"),
    ],
    ids=["sparse terabyte", "sparse ratio", "gzip ratio", "depth"],
)
def test_a_bomb_is_refused_with_the_option_that_allows_it(load: Importer, data: bytes, option: str) -> None:
    with pytest.raises(ImageError) as caught:
        load(data)
    assert option in str(caught.value.remedy)


@pytest.mark.parametrize(
    "limits",
    [ArchiveLimits(size_bytes=40_000), ArchiveLimits(members=39), ArchiveLimits(depth=2)],
    ids=["size", "members", "depth"],
)
def test_each_limit_holds_and_can_be_raised(load: Importer, limits: ArchiveLimits) -> None:
    with pytest.raises(ImageError):
        load(archive(), limits=limits)
    assert load(archive(), limits=ArchiveLimits(size_bytes=200_000, members=40, depth=3))


def test_limits_are_those_of_all_layers_together(load: Importer) -> None:
    assert load(archive(1), limits=ArchiveLimits(members=60))
    with pytest.raises(ImageError, match="members"):
        load(archive(1), archive(2), limits=ArchiveLimits(members=60))


# --- odd fields, modes, whiteouts ------------------------------------------------------------------------------------

ODD = {
    "mtime 1e300": one(pax={"mtime": "1e300"}),
    "mtime nan": one(pax={"mtime": "nan"}),
    "mtime inf": one(pax={"mtime": "-inf"}),
    "negative uid": one(pax={"uid": "-5"}),
    "huge gid": one(pax={"gid": str(1 << 40)}),
    "negative size": one(pax={"size": "-512"}),
    "huge size": one(pax={"size": str(1 << 70)}),
    "NUL in name": one(pax={"path": "bin/a\0b"}),
    "NUL in link": one(type=tarfile.SYMTYPE, pax={"linkpath": "a\0b"}),
    "empty link": one(type=tarfile.SYMTYPE, linkname=""),
    "long name": one("bin/" + "x" * 300),
    "long link": one(type=tarfile.SYMTYPE, linkname="x" * 5000),
    "whiteout of nothing": one("bin/.wh."),
    "whiteout of .": one("bin/.wh.."),
    "whiteout of ..": one("bin/.wh..."),
    "unknown kind": one(type=b"M"),
    "attribute of no kind": one(pax={"SCHILY.xattr.some": "x"}),
    "odd character set": one(pax={"hdrcharset": "BINARY", "path": "bin/ü"}, mtime=1e18),
    "sparse without numbers": one(pax={"GNU.sparse.map": "a,b"}),
    "sparse map backwards": one(pax={"GNU.sparse.map": "512,10,0,10", "GNU.sparse.size": "1000"}),
    "sparse map overlaps": one(content=bytes(20), pax={"GNU.sparse.map": "0,10,5,10", "GNU.sparse.size": "20"}),
    "sparse beyond its size": one(pax={"GNU.sparse.map": "0,99999", "GNU.sparse.size": "10"}),
    "pax headers without end": b"".join(tarfile.TarInfo.create_pax_global_header({"a": "b"}) for _ in range(9000))
    + one(),
    "a long description": one(pax={"comment": "x" * (5 << 20)}),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_field_is_one_message(load: Importer, odd: str) -> None:
    with pytest.raises(ImageError) as caught:
        load(ODD[odd])
    assert str(caught.value).isprintable() or str(caught.value).replace("\n", "").isprintable()


def test_names_in_messages_are_printable(load: Importer) -> None:
    with pytest.raises(ImageError) as caught:
        load(one("\x1b]0;owned\x07/../\u202e" + "x" * 500))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6))
def test_whatever_stands_in_an_archive_there_is_a_tree_or_one_message(
    load: Importer, edits: list[tuple[int, bytes]]
) -> None:
    """Headers are edited and their checksums put right, so that the fields themselves are read."""
    data = bytearray(one("x" * 120, b"content", {"mtime": "1.5", "SCHILY.xattr.user.a": "b"}))
    for place, new in edits:
        data[place : place + len(new)] = new
    for at in range(0, len(data) - 512, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    with contextlib.suppress(ImageError):
        load(bytes(data))


def test_modes_are_set_at_the_end_the_deepest_first(load: Importer) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, mode in (
            ("shut", tarfile.DIRTYPE, 0),
            ("shut/in", tarfile.DIRTYPE, 0o500),
            ("shut/in/x", tarfile.REGTYPE, 0),
            ("shut/in/y", tarfile.LNKTYPE, 0),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.linkname = kind, mode, "shut/in/x"
            member.uid, member.gid = os.getuid(), os.getgid()
            tar.addfile(member)
    lines = load(file.getvalue())
    assert [tuple(line.split(" ")[:3]) for line in lines[1:]] == [
        ("shut", "d", "0000"),
        ("shut/in", "d", "0500"),
        ("shut/in/x", "f", "0000"),
        ("shut/in/y", "f", "0000"),
    ]


NAMES = st.sampled_from(["manifests", "layers", "digest", "platform", "os", "architecture", "Layers", "mediaType"])
DIGEST = "sha256:" + hashlib.sha256(b"{}").hexdigest()
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([DIGEST, "blobs", "x\0"])
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


@settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(document=JSON, is_docker=st.booleans())
def test_whatever_describes_the_layers_there_is_a_tree_or_one_message(
    tmp_path: Path, document: object, is_docker: bool
) -> None:
    files = {"index.json": json.dumps(document), "oci-layout": "{}", f"blobs/sha256/{DIGEST[7:]}": "{}"}
    if is_docker:
        files["manifest.json"] = json.dumps([document])
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    (tmp_path / "odd").write_bytes(file.getvalue())
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder, contextlib.suppress(ImageError):
        make_imported_tree(tmp_path / "odd", Path(folder, "tree"), Path(folder), ArchiveLimits())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user")
def test_an_ordinary_user_imports_what_its_owner_may_not_read() -> None:
    """In a process of its own, as nobody: root is refused nothing."""
    folders = (("shut", tarfile.DIRTYPE, 0), ("shut/in", tarfile.DIRTYPE, 0o500))
    members = (*folders, ("shut/x", tarfile.REGTYPE, 0), ("shut/y", tarfile.LNKTYPE, 0))
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        with tarfile.open(Path(folder, "layer"), "w") as tar:
            for name, kind, mode in (*members, ("bin", tarfile.DIRTYPE, 0o500), ("bin/sh", tarfile.REGTYPE, 0o4000)):
                member = tarfile.TarInfo(name)
                member.type, member.mode, member.linkname = kind, mode, "shut/x"
                tar.addfile(member)
        child = multiprocessing.get_context("fork").Process(target=_import_as_nobody, args=(Path(folder),))
        child.start()
        child.join()
        assert child.exitcode == 0
        assert Path(folder, "tree/shut").stat().st_mode & 0o7777 == 0
        assert Path(folder, "tree/shut/x").stat().st_mode & 0o7777 == 0


def _import_as_nobody(folder: Path) -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    (folder / "scratch").mkdir()
    unpacked, _ = make_imported_tree(folder / "layer", folder / "tree", folder / "scratch", ArchiveLimits())
    lines = list_tree(folder / "tree")
    unpacked.require_listed(lines)
    assert lines == list_tree(folder / "tree")
    assert [tuple(line.split(" ")[:3]) for line in lines[1:]] == [
        ("bin", "d", "0500"),
        ("bin/sh", "f", "4000"),
        ("shut", "d", "0000"),
        ("shut/in", "d", "0500"),
        ("shut/x", "f", "0000"),
        ("shut/y", "f", "0000"),
    ]


def test_a_removed_folders_mode_is_not_given_to_what_a_link_leads_to(tmp_path: Path, load: Importer) -> None:
    victim = tmp_path / "victim"
    (victim / "sub").mkdir(parents=True)
    (victim / "sub").chmod(0o700)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (("a", tarfile.DIRTYPE), ("a/sub", tarfile.DIRTYPE), ("a", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.linkname = kind, 0o777, str(victim)
            member.uid, member.gid = os.getuid(), os.getgid()
            tar.addfile(member)
    load(file.getvalue())
    assert (victim / "sub").stat().st_mode & 0o777 == 0o700
    assert (victim / "sub").stat().st_mtime > 1


@pytest.mark.parametrize("order", range(6))
def test_whiteouts_concern_lower_layers_in_whatever_order_they_stand(load: Importer, order: int) -> None:
    names = ["d/.wh..wh..opq", ".wh.e", "d/new", "e/new", "d/.wh.new", "f/.wh.old"]
    random.Random(order).shuffle(names)
    upper, lower = io.BytesIO(), io.BytesIO()
    for file, entries in ((upper, names), (lower, ["d/old", "d/sub/old", "d/new", "e/old", "f/old", "f/kept"])):
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name in entries:
                member = tarfile.TarInfo(name)
                member.uid, member.gid = os.getuid(), os.getgid()
                tar.addfile(member)
    lines = load(lower.getvalue(), upper.getvalue())
    assert [line.split(" ")[0] for line in lines] == [".", "d", "d/new", "e", "e/new", "f", "f/kept"]


def test_a_tree_that_is_not_as_listed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(archive())
    for change in (
        lambda root: (root / "usr/bin/tool1").unlink(),
        lambda root: (root / "usr/bin/tool1").write_bytes(b""),
        lambda root: (root / "usr/bin/tool1").chmod(0o600),
        lambda root: (root / "more").touch(),
    ):
        root = tmp_path / "root"
        root.mkdir()
        unpacking = Unpacking(root, ArchiveLimits())
        unpacking.add(tmp_path / "layer", is_lowest=True)
        unpacking.settle()
        unpacking.require_listed(list_tree(root))
        change(root)
        with pytest.raises(ImageError):
            unpacking.require_listed(list_tree(root))
        shutil.rmtree(root)


def test_a_tree_deeper_than_python_recurses_is_listed(tmp_path: Path, load: Importer) -> None:
    depth = 1100
    lines = load(one("/".join("d" * depth)), limits=ArchiveLimits(depth=depth))
    assert len(lines) == depth + 1
