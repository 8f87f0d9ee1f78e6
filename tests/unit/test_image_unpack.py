import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tare.bench.errors import ImageError
from tare.bench.image.archive import guest_problem, make_imported_tree
from tare.bench.image.stored import list_tree
from tare.bench.image.tar import ArchiveLimits
from tare.bench.image.unpack import Unpacking, resolve
from tare.bench.service import HealthCheck, ImageProcess


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644, **pax: str
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    member.uid, member.gid, member.mtime = os.getuid(), os.getgid(), 1_000_000
    member.pax_headers = pax
    return member


def folder(name: str, mode: int = 0o755) -> tarfile.TarInfo:
    return entry(name, tarfile.DIRTYPE, mode=mode)


def tar(path: Path, members: Sequence[tarfile.TarInfo | tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]  # any mode
        for member in members:
            if isinstance(member, tuple):
                info = entry(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
            else:
                archive.addfile(member)
    return path


def apply_layer(root: Path, *layers: Path) -> None:
    unpacking = Unpacking(root, ArchiveLimits())
    for number, layer in enumerate(layers):
        unpacking.add(layer, is_lowest=number == 0)
    unpacking.settle()
    unpacking.require_listed(list_tree(root))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_files_folders_links_modes_and_times_arrive(tmp_path: Path, root: Path, mode: str) -> None:
    layer = tar(
        tmp_path / "layer",
        [
            folder("usr", 0o750),
            ("usr/tool", b"tool"),
            entry("usr/hard", tarfile.LNKTYPE, link="usr/tool"),
            entry("soft", tarfile.SYMTYPE, link="/usr/tool"),
            entry("queue", tarfile.FIFOTYPE, mode=0o600),
        ],
        mode,
    )
    apply_layer(root, layer)
    assert (root / "usr/tool").read_bytes() == b"tool"
    assert (root / "usr").stat().st_mode & 0o7777 == 0o750
    assert (root / "usr").stat().st_mtime == 1_000_000
    assert (root / "usr/tool").stat().st_mtime == 1_000_000
    assert (root / "usr/hard").stat().st_ino == (root / "usr/tool").stat().st_ino
    assert (root / "soft").readlink() == Path("/usr/tool")
    assert (root / "queue").is_fifo()


@pytest.mark.parametrize("name", ["../evil", "usr/../../evil", "/../evil"])
def test_paths_that_climb_are_refused(tmp_path: Path, root: Path, name: str) -> None:
    with pytest.raises(ImageError, match="outside the tree"):
        apply_layer(root, tar(tmp_path / "layer", [(name, b"x")]))
    assert not (tmp_path / "evil").exists()


def test_absolute_names_land_inside(tmp_path: Path, root: Path) -> None:
    apply_layer(root, tar(tmp_path / "layer", [("/etc/tare-test-absolute", b"x")]))
    assert (root / "etc/tare-test-absolute").read_bytes() == b"x"
    assert not Path("/etc/tare-test-absolute").exists()


@pytest.mark.parametrize("target", ["OUTSIDE", "../outside", "../../../../../../../../OUTSIDE"])
def test_links_do_not_lead_out_of_the_tree(tmp_path: Path, root: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = target.replace("OUTSIDE", str(outside))
    apply_layer(root, tar(tmp_path / "layer", [entry("way", tarfile.SYMTYPE, link=link), ("way/evil", b"x")]))
    assert list(outside.iterdir()) == []
    assert [path.read_bytes() for path in root.rglob("evil")] == [b"x"]


def test_a_file_is_not_written_through_a_link_of_its_own_name(tmp_path: Path, root: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")
    apply_layer(root, tar(tmp_path / "layer", [entry("x", tarfile.SYMTYPE, link=str(victim)), ("x", b"evil")]))
    assert victim.read_text() == "safe"
    assert (root / "x").read_bytes() == b"evil"


def test_a_hard_link_cannot_take_a_file_from_outside(tmp_path: Path, root: Path) -> None:
    (tmp_path / "victim").write_text("safe")
    for link in ("../victim", str(tmp_path / "victim")):
        with pytest.raises(ImageError, match="does not have"):
            apply_layer(root, tar(tmp_path / "layer", [entry("x", tarfile.LNKTYPE, link=link)]))
    assert names(root) <= {"tmp"}


def test_modes_and_owners_do_not_go_through_links(tmp_path: Path, root: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")
    victim.chmod(0o600)
    members = [
        entry("x", tarfile.SYMTYPE, link=str(victim), mode=0o777),
        entry("y", tarfile.LNKTYPE, link="x", mode=0o777),
    ]
    apply_layer(root, tar(tmp_path / "layer", members))
    assert victim.stat().st_mode & 0o777 == 0o600


def test_a_circle_of_links_is_refused(tmp_path: Path, root: Path) -> None:
    members = [entry("a", tarfile.SYMTYPE, link="b"), entry("b", tarfile.SYMTYPE, link="a"), ("a/x", b"")]
    with pytest.raises(ImageError, match="circle"):
        apply_layer(root, tar(tmp_path / "layer", members))


def test_a_file_below_a_file_is_refused(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ImageError, match="not a folder"):
        apply_layer(root, tar(tmp_path / "layer", [("a", b""), ("a/x", b"")]))


def test_what_is_no_archive_is_refused(tmp_path: Path, root: Path) -> None:
    (tmp_path / "layer").write_bytes(b"no archive at all" * 100)
    with pytest.raises(ImageError, match="cannot be read as a tar archive"):
        apply_layer(root, tmp_path / "layer")


def test_a_truncated_archive_is_refused(tmp_path: Path, root: Path) -> None:
    whole = tar(tmp_path / "layer", [("a", os.urandom(100_000))], "w:gz").read_bytes()
    (tmp_path / "layer").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="cannot be read as a tar archive"):
        apply_layer(root, tmp_path / "layer")


def test_whiteouts_remove_what_is_below_and_not_what_is_beside(tmp_path: Path, root: Path) -> None:
    lower = tar(tmp_path / "1", [folder("etc"), ("etc/a", b"1"), ("etc/b", b"1"), folder("d"), ("d/x", b"1")])
    upper = tar(tmp_path / "2", [("etc/.wh.a", b""), (".wh.d", b""), ("etc/c", b"2"), ("etc/.wh.c", b"")])
    apply_layer(root, lower, upper)
    assert names(root) == {"etc", "etc/b", "etc/c"}


@pytest.mark.parametrize("opaque_last", [True, False])
def test_an_opaque_folder_hides_the_layers_below_wherever_it_stands(
    tmp_path: Path, root: Path, opaque_last: bool
) -> None:
    lower = tar(tmp_path / "1", [folder("d"), ("d/old", b"1"), folder("d/sub"), ("d/sub/old", b"1")])
    new: list[tarfile.TarInfo | tuple[str, bytes]] = [("d/new", b"2"), ("d/sub/new", b"2")]
    new.insert(len(new) if opaque_last else 0, ("d/.wh..wh..opq", b""))
    apply_layer(root, lower, tar(tmp_path / "2", [folder("d"), *new]))
    assert names(root) == {"d", "d/new", "d/sub", "d/sub/new"}


def test_a_whiteout_does_not_follow_links_out(tmp_path: Path, root: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/file").write_text("safe")
    lower = tar(tmp_path / "1", [entry("way", tarfile.SYMTYPE, link=str(tmp_path / "victim"))])
    apply_layer(root, lower, tar(tmp_path / "2", [("way/.wh.file", b""), ("way/.wh..wh..opq", b"")]))
    assert (tmp_path / "victim/file").read_text() == "safe"
    with pytest.raises(ImageError, match="whiteout"):
        apply_layer(root, tar(tmp_path / "layer", [(".wh...", b"")]))


def test_kinds_replace_one_another_between_layers(tmp_path: Path, root: Path) -> None:
    lower = tar(tmp_path / "1", [folder("a"), ("a/x", b""), ("b", b""), entry("c", tarfile.SYMTYPE, link="b")])
    apply_layer(root, lower, tar(tmp_path / "2", [("a", b"now a file"), folder("b"), ("c", b"now a file")]))
    assert (root / "a").is_file()
    assert (root / "b").is_dir()
    assert not (root / "c").is_symlink()


def test_a_folder_that_is_named_again_keeps_what_it_holds(tmp_path: Path, root: Path) -> None:
    apply_layer(root, tar(tmp_path / "1", [folder("a"), ("a/x", b"")]), tar(tmp_path / "2", [folder("a", 0o700)]))
    assert (root / "a/x").exists()
    assert (root / "a").stat().st_mode & 0o777 == 0o700


def test_layers_of_a_merged_usr_go_through_its_links(tmp_path: Path, root: Path) -> None:
    lower = tar(tmp_path / "1", [folder("usr"), folder("usr/lib"), entry("lib", tarfile.SYMTYPE, link="usr/lib")])
    apply_layer(root, lower, tar(tmp_path / "2", [("lib/x", b"x")]))
    assert (root / "usr/lib/x").read_bytes() == b"x"
    assert (root / "lib").is_symlink()


def test_extended_attributes_arrive(tmp_path: Path, root: Path) -> None:
    try:
        os.setxattr(root, "user.probe", b"1")
    except OSError:
        pytest.skip("the file system of the temporary folder has no extended attributes")
    apply_layer(root, tar(tmp_path / "layer", [entry("x", **{"SCHILY.xattr.user.tare": "value"})]))
    assert os.getxattr(root / "x", "user.tare") == b"value"


def test_folders_that_the_archive_does_not_name_are_open_whatever_the_umask(tmp_path: Path, root: Path) -> None:
    before = os.umask(0o077)
    try:
        apply_layer(root, tar(tmp_path / "layer", [("a/b/c", b"")]))
    finally:
        os.umask(before)
    assert {(root / path).stat().st_mode & 0o777 for path in ("a", "a/b")} == {0o755}


def test_resolve_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "abs").symlink_to("/etc")
    (tmp_path / "up").symlink_to("../../..")
    assert resolve(tmp_path, "abs/passwd") == tmp_path / "etc/passwd"
    assert resolve(tmp_path, "up/x") == tmp_path / "x"
    assert resolve(tmp_path, "../../x") == tmp_path / "x"
    assert resolve(tmp_path, "abs") == tmp_path / "abs"
    assert resolve(tmp_path, "abs", follow_last=True) == tmp_path / "etc"


# --- the archives of container tools ---------------------------------------------------------------------------------


def layers(tmp_path: Path) -> list[bytes]:
    first = tar(tmp_path / "1", [folder("bin"), ("bin/sh", b"old"), ("bin/gone", b"")]).read_bytes()
    second = gzip.compress(tar(tmp_path / "2", [("bin/sh", b"new"), ("bin/.wh.gone", b"")]).read_bytes())
    return [first, second]


def blob(content: bytes) -> tuple[str, str]:
    value = hashlib.sha256(content).hexdigest()
    return f"sha256:{value}", f"blobs/sha256/{value}"


CONFIG = {
    "architecture": "amd64",
    "config": {
        "Entrypoint": ["/bin/sh"],
        "Cmd": ["-c", "true"],
        "Env": ["PATH=/bin", "MODE=a=b"],
        "User": "web:www",
        "WorkingDir": "/srv",
        "ExposedPorts": {"8080/tcp": {}},
        "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Timeout": 2_000_000_000},
    },
}
PROCESS = ImageProcess(
    ("/bin/sh",),
    ("-c", "true"),
    {"PATH": "/bin", "MODE": "a=b"},
    "/srv",
    "web:www",
    ("8080/tcp",),
    HealthCheck(("/bin/sh", "-c", "true"), 2.0),
)


def oci(tmp_path: Path, *, spoil: bool = False, nested: bool = False) -> Path:
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def add(content: bytes) -> dict[str, str]:
        digest, path = blob(content)
        files[path] = content
        return {"digest": digest}

    described = [add(content) for content in layers(tmp_path)]
    manifest = add(json.dumps({"layers": described, "config": add(json.dumps(CONFIG).encode())}).encode())
    if nested:
        other = {**add(b'{"layers": []}'), "platform": {"os": "linux", "architecture": "s390x"}}
        native = {
            **manifest,
            "platform": {"os": "linux", "architecture": {"aarch64": "arm64"}.get(os.uname().machine, "amd64")},
        }
        manifest = add(json.dumps({"manifests": [other, native]}).encode())
    files["index.json"] = json.dumps({"manifests": [manifest]}).encode()
    if spoil:
        files[blob(layers(tmp_path)[0])[1]] += b"\0" * 512
    return tar(tmp_path / "image.oci", list(files.items()))


def docker(tmp_path: Path) -> Path:
    first, second = layers(tmp_path)
    manifest = json.dumps([{"Config": "c.json", "Layers": ["a/layer.tar", "b/layer.tar"]}]).encode()
    link = entry("b/layer.tar", tarfile.SYMTYPE, link="../c/layer.tar")
    config = ("c.json", json.dumps(CONFIG).encode())
    described = [("a/layer.tar", first), link, ("c/layer.tar", second), ("manifest.json", manifest), config]
    return tar(tmp_path / "image.tar", described)


@pytest.mark.parametrize("kind", ["oci", "nested oci", "docker"])
def test_layers_are_applied_in_order(tmp_path: Path, kind: str) -> None:
    file = docker(tmp_path) if kind == "docker" else oci(tmp_path, nested=kind.startswith("nested"))
    (tmp_path / "scratch").mkdir()
    _, process = make_imported_tree(file, tmp_path / "tree", tmp_path / "scratch", ArchiveLimits())
    assert process == PROCESS
    assert names(tmp_path / "tree") == {"bin", "bin/sh"}
    assert (tmp_path / "tree/bin/sh").read_bytes() == b"new"


def test_a_damaged_blob_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    with pytest.raises(ImageError, match="damaged"):
        make_imported_tree(oci(tmp_path, spoil=True), tmp_path / "tree", tmp_path / "scratch", ArchiveLimits())


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"readme": b""}, "no root file system"),
        ({"manifest.json": b"["}, "not JSON"),
        ({"manifest.json": b"[]"}, "several images, or none"),
        ({"manifest.json": b'[{"Layers": "x"}]'}, "no 'Layers'"),
        ({"manifest.json": b'[{"Layers": ["../../../etc/passwd"]}]'}, "lacks"),
        ({"oci-layout": b"{}", "index.json": b'{"manifests": [{"digest": "md5:00"}]}'}, "only sha256"),
        ({"oci-layout": b"{}", "index.json": b'{"manifests": []}'}, "0 images"),
        ({"manifest.json": b'[{"Layers": [], "Config": "c.json"}]'}, "lacks"),
        ({"manifest.json": b'[{"Layers": [], "Config": "c"}]', "c": b'{"config": {"Env": 1}}'}, "Env is no list"),
    ],
)
def test_archives_that_make_no_sense_are_refused(tmp_path: Path, files: dict[str, bytes], problem: str) -> None:
    (tmp_path / "scratch").mkdir()
    file = tar(tmp_path / "file", list(files.items()))
    with pytest.raises(ImageError, match=problem):
        make_imported_tree(file, tmp_path / "tree", tmp_path / "scratch", ArchiveLimits())


def test_a_guest_needs_the_agent_or_a_program_of_its_own(tmp_path: Path) -> None:
    assert "qemu-guest-agent" in guest_problem(tmp_path)
    assert guest_problem(tmp_path, ImageProcess(env={"A": "b"})) != ""
    assert guest_problem(tmp_path, ImageProcess(cmd=("/server",))) == ""
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "usr/sbin/qemu-ga").write_text("")
    assert guest_problem(tmp_path) == ""
