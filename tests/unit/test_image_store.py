"""The store with a build that makes a tiny tree: what mmdebstrap does is tested in tests/integration."""

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tare.bench.errors import ImageError, MissingToolError, PrivilegeError
from tare.bench.image import ImageStore, Recipe, store, stored
from tare.bench.image.build import Workspace
from tare.bench.image.stored import digest_of, hash_file, list_tree
from tare.bench.ledger import Ledger, clean

RECIPE = Recipe.of(["nginx"])


def tiny_parts(recipe: Recipe, workspace: Workspace) -> stored.Description:
    """Stands for ``build_parts``: one file that names the recipe, a kernel, an initramfs."""
    tree = workspace.image / stored.ROOTFS
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/tool").write_text(recipe.hash)
    for name in (stored.KERNEL, stored.INITRAMFS, stored.DISK):
        (workspace.image / name).write_text(name)
    lines = list_tree(tree)
    (workspace.image / stored.MANIFEST).write_text("".join(f"{line}\n" for line in lines))
    hashes = {path.name: hash_file(path) for path in workspace.image.iterdir() if path.is_file()}
    return stored.Description(
        format=stored.FORMAT,
        digest=digest_of(lines, hashes),
        built_utc="2026-01-01T00:00:00+00:00",
        recipe=recipe,
        origin="",
        kernel_version="6.1",
        guest_problem="",
        packages={"fio": "3.33-3"},
        tools={"mmdebstrap": "1.3.5"},
        size_bytes=100,
        files={
            name: stored.StoredFile((workspace.image / name).stat().st_size, value) for name, value in hashes.items()
        },
        probes=stored.measure(lines)[0],
    )


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageStore]:
    monkeypatch.setattr(store, "build_parts", tiny_parts)
    monkeypatch.setattr(store, "BUILD_TOOLS", ())
    monkeypatch.setattr(store, "_NEEDED_BYTES", 0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with Ledger(tmp_path / "ledger") as ledger:
        yield ImageStore(tmp_path / "cache", ledger)
        assert ledger.entries() == ()


def test_a_built_image_is_found_again_whole(images: ImageStore) -> None:
    assert images.find(RECIPE) is None
    steps: list[str] = []
    built = images.build(RECIPE, steps.append)
    assert steps
    assert images.find(RECIPE) == built
    assert built.name == f"bookworm-{RECIPE.hash[:8]}"
    assert built.packages == {"fio": "3.33-3"}
    assert (built.rootfs / "usr/bin/tool").read_text() == RECIPE.hash
    assert images.verify(built.digest) == msgspec.structs.replace(built, name="")
    steps.clear()
    assert images.build(RECIPE, steps.append) == built
    assert steps == []


def test_finding_takes_no_time(images: ImageStore) -> None:
    images.build(RECIPE)
    begin = time.perf_counter()
    images.find(RECIPE)
    assert time.perf_counter() - begin < 0.05


@pytest.mark.parametrize("broken", ["disk.erofs", "vmlinuz", "initramfs", "manifest.txt", "rootfs/usr/bin/tool"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_broken_image_is_refused_before_use(images: ImageStore, broken: str, how: str) -> None:
    built = images.build(RECIPE)
    path = built.directory / broken
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, 1)
    for use in (lambda: images.find(RECIPE), lambda: images.build(RECIPE), lambda: images.get(built.digest[:8])):
        with pytest.raises(ImageError, match=broken) as caught:
            use()
        assert f"tare image remove {built.digest[:12]}" in str(caught.value.remedy)
    (listed,) = images.list()
    assert broken in listed.problem
    images.remove(built.digest[:12])
    assert images.build(RECIPE).digest == built.digest


def test_verify_finds_what_sizes_do_not_show(images: ImageStore) -> None:
    built = images.build(RECIPE)
    tool = built.rootfs / "usr/bin/tool"
    tool.write_text(tool.read_text()[::-1])
    images.get(built.digest)
    with pytest.raises(ImageError, match="not as it was built: rootfs/usr/bin/tool"):
        images.verify(built.digest)


def test_verify_finds_a_changed_kernel_and_a_further_file(images: ImageStore) -> None:
    built = images.build(RECIPE)
    (built.directory / "vmlinuz").write_text("zunilmv")
    (built.rootfs / "further").touch()
    with pytest.raises(ImageError, match=r"vmlinuz, rootfs/further"):
        images.verify(built.digest)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"format": 1}'])
def test_a_half_written_description_is_refused(images: ImageStore, content: bytes) -> None:
    built = images.build(RECIPE)
    (built.directory / "image.json").write_bytes(content)
    with pytest.raises(ImageError, match=r"image\.json cannot be read"):
        images.find(RECIPE)
    (built.directory / "image.json").unlink()
    with pytest.raises(ImageError, match="it was not finished"):
        images.find(RECIPE)


def test_a_failed_build_leaves_nothing(images: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(recipe: Recipe, workspace: Workspace) -> stored.Description:
        tiny_parts(recipe, workspace)
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr(store, "build_parts", fail)
    with pytest.raises(ImageError, match="No space left") as caught:
        images.build(RECIPE)
    assert "free some space" in str(caught.value.remedy)
    assert images.list() == ()
    assert list((tmp_path / "cache/building").iterdir()) == []


def test_an_interrupted_build_leaves_nothing(
    images: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(recipe: Recipe, workspace: Workspace) -> stored.Description:
        tiny_parts(recipe, workspace)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "build_parts", interrupt)
    with pytest.raises(KeyboardInterrupt):
        images.build(RECIPE)
    assert images.find(RECIPE) is None
    assert list((tmp_path / "cache/building").iterdir()) == []


def _build_and_hang(tmp_path: Path, begun: int) -> None:
    def hang(recipe: Recipe, workspace: Workspace) -> stored.Description:
        tiny_parts(recipe, workspace)
        os.write(begun, b"x")
        signal.pause()
        raise AssertionError

    store.build_parts = hang  # type: ignore[assignment]  # in a process of its own, which is killed
    with Ledger(tmp_path / "ledger") as ledger:
        ImageStore(tmp_path / "cache", ledger).build(RECIPE)


def test_a_killed_build_leaves_nothing_after_clean(images: ImageStore, tmp_path: Path) -> None:
    read, write = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=_build_and_hang, args=(tmp_path, write))
    child.start()
    os.close(write)
    assert os.read(read, 1) == b"x"
    assert [listed.problem for listed in images.list()] == ["not finished: it is being built, or was interrupted"]
    child.kill()
    child.join()
    os.close(read)
    assert images.find(RECIPE) is None
    assert not clean(tmp_path / "ledger").failed
    assert images.list() == ()
    # The lock went with the process, and the name is free.
    assert images.build(RECIPE).name


def test_of_two_builds_at_once_the_second_gets_the_first_ones(
    images: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, waiting = threading.Event(), threading.Event(), threading.Event()
    builds = []

    def slow(recipe: Recipe, workspace: Workspace) -> stored.Description:
        builds.append(recipe)
        begun.set()
        assert go_on.wait(10)
        return tiny_parts(recipe, workspace)

    monkeypatch.setattr(store, "build_parts", slow)
    results = []
    first = threading.Thread(target=lambda: results.append(images.build(RECIPE)))
    first.start()
    assert begun.wait(10)
    with Ledger(tmp_path / "other") as ledger:
        other = ImageStore(tmp_path / "cache", ledger)
        second = threading.Thread(target=lambda: results.append(other.build(RECIPE, lambda _step: waiting.set())))
        second.start()
        assert waiting.wait(10)
        go_on.set()
        first.join(10)
        second.join(10)
    assert len(builds) == 1
    assert len(results) == 2
    assert results[0] == results[1]


def test_two_recipes_with_the_same_content_share_one_image(images: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = images.build(RECIPE)
    monkeypatch.setattr(store, "build_parts", lambda _recipe, workspace: tiny_parts(RECIPE, workspace))
    other = Recipe.of(["mariadb-server"])
    second = images.build(other)
    assert second.digest == first.digest
    (listed,) = images.list()
    assert set(listed.names) == {first.name, second.name}
    images.remove(second.name)
    assert images.find(RECIPE) is None
    assert images.find(other) is None


def test_an_ambiguous_prefix_is_refused_with_the_candidates(images: ImageStore, tmp_path: Path) -> None:
    built = images.build(RECIPE)
    twin = built.directory.with_name(built.digest[:8] + "0" * 56)
    twin.mkdir()
    for use in (images.get, images.remove, images.verify):
        with pytest.raises(ImageError, match="several images") as caught:
            use(built.digest[:6])
        assert built.digest[:16] in caught.value.message
        assert twin.name[:16] in caught.value.message
    assert images.remove(twin.name[:12]) == twin.name
    assert images.get(built.digest[:6]).digest == built.digest


@pytest.mark.parametrize("reference", ["nothing", "", "abc", "../images", "/", "*", "."])
def test_an_unknown_reference_is_answered_with_the_known(images: ImageStore, reference: str) -> None:
    built = images.build(RECIPE)
    for use in (images.get, images.remove):
        with pytest.raises(ImageError, match=built.name):
            use(reference)
    assert images.find(RECIPE) == built


def test_remove_takes_names_and_leaves_nothing(images: ImageStore, tmp_path: Path) -> None:
    built = images.build(RECIPE)
    assert images.remove(built.name) == built.digest
    assert images.find(RECIPE) is None
    assert images.list() == ()
    for folder in ("images", "recipes", "names", "building"):
        assert list((tmp_path / "cache" / folder).iterdir()) == []


def test_an_image_in_use_is_not_removed(images: ImageStore) -> None:
    built = images.build(RECIPE)
    with images.hold(built), images.hold(built):
        with pytest.raises(ImageError, match="in use"):
            images.remove(built.digest)
        assert images.find(RECIPE) == built
    images.remove(built.digest)


def test_without_root_only_a_finished_image_is_given(images: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    built = images.build(RECIPE)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert images.build(RECIPE) == built
    with pytest.raises(PrivilegeError, match="needs root") as caught:
        images.build(Recipe.of(["mariadb-server"]))
    assert "sudo" in str(caught.value.remedy)


def test_a_missing_tool_is_named_with_its_package(images: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUILD_TOOLS", ("mmdebstrap",))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("tare.bench.process.find_tool", lambda _name: None)
    with pytest.raises(MissingToolError, match="mmdebstrap is not installed"):
        images.build(RECIPE)


@pytest.mark.parametrize("name", ["deadbeef", "-x", "a/b", "..", "Ümlaut"])
def test_an_impossible_name_is_refused_before_anything_is_read(images: ImageStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="cannot be the name"):
        images.import_archive(tmp_path / "file.tar", name=name)


def test_a_file_that_is_not_there_is_told(images: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        images.import_archive(tmp_path / "file.tar")
