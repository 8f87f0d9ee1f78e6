"""A real image: what is in it, that a killed build leaves nothing, that what goes in comes out."""

import gzip
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tare.bench.errors import ImageError
from tare.bench.image import ImageStore, stored
from tare.bench.image.stored import list_tree
from tare.bench.ledger import Ledger, clean
from tare.bench.model import Image
from tare.bench.trees import remove_tree

pytestmark = [pytest.mark.image, pytest.mark.tools, pytest.mark.root]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="building and importing images needs root")


def chroot(image: Image, *argv: str) -> str:
    done = subprocess.run(["chroot", str(image.rootfs), *argv], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr


def test_every_byte_is_as_recorded(image: Image) -> None:
    stored.verify(image.directory)


@needs_root
@pytest.mark.parametrize(
    ("package", "argv"),
    [
        ("fio", ("fio", "--version")),
        ("sysbench", ("sysbench", "--version")),
        ("stress-ng", ("stress-ng", "--version")),
        ("qemu-guest-agent", ("qemu-ga", "--version")),
        ("python3", ("python3", "--version")),
        ("tini", ("tini", "--version")),
    ],
)
def test_the_tools_run_and_are_of_the_recorded_version(image: Image, package: str, argv: tuple[str, ...]) -> None:
    upstream = image.packages[package].rpartition(":")[2].partition("-")[0].partition("+")[0]
    assert upstream in chroot(image, *argv)


def test_nothing_of_this_host_and_no_litter_is_in_the_tree(image: Image) -> None:
    etc = image.rootfs / "etc"
    assert (etc / "machine-id").read_bytes() == b""
    assert (etc / "hostname").read_text() == "tare\n"
    assert (etc / "resolv.conf").read_bytes() == b""
    assert not (etc / "apt/sources.list").exists()
    assert list((etc / "apt/sources.list.d").iterdir()) == []
    for folder in ("var/lib/apt/lists", "var/cache/apt", "tmp", "usr/share/man", "usr/share/locale"):
        found = image.rootfs / folder
        assert not found.exists() or list(found.iterdir()) == [], folder
    assert all(log.stat().st_size == 0 for log in (image.rootfs / "var/log").rglob("*") if log.is_file())
    for special in ("proc", "sys", "dev/shm", "dev/pts"):
        assert list((image.rootfs / special).iterdir()) == [], f"{special} was mounted when the image was closed"


@needs_root
def test_compiled_python_is_valid_with_the_times_of_the_tree(image: Image) -> None:
    # Otherwise every start of Python in an instance would compile anew, and more so where it is slow.
    report = chroot(image, "python3", "-v", "-c", "import json.decoder")
    assert "json/__pycache__/decoder.cpython" in report
    assert "matches" in report
    assert "bytecode is stale" not in report


def test_the_disk_holds_the_tree_with_its_times(image: Image) -> None:
    assert image.disk is not None
    dump = subprocess.run(
        ["dump.erofs", "--path=/usr/bin/sysbench", str(image.disk)], capture_output=True, text=True, check=False
    )
    if "Timestamp" not in dump.stdout:
        pytest.skip(f"this dump.erofs shows no files: {dump.stderr.strip().splitlines()[:1]}")
    status = (image.rootfs / "usr/bin/sysbench").stat()
    assert f"Size: {status.st_size} " in dump.stdout
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(status.st_mtime)) in dump.stdout


def test_the_initramfs_has_an_init_and_the_kernel_is_one(image: Image) -> None:
    assert image.initramfs is not None
    assert image.kernel is not None
    with image.initramfs.open("rb") as file:
        listed = subprocess.run(["cpio", "-t"], stdin=file, capture_output=True, text=True, check=True).stdout.split()
    assert "init" in listed
    assert any(name.endswith("virtio_blk.ko") for name in listed)
    kernel = image.kernel.read_bytes()
    assert kernel[0x202:0x206] == b"HdrS"
    assert image.kernel_version.encode() in kernel[:0x8000]


KILLED = """
import sys
from pathlib import Path
from tare.bench.image import ImageStore, Recipe
from tare.bench.ledger import Ledger
with Ledger(Path(sys.argv[2])) as ledger:
    ImageStore(Path(sys.argv[1]), ledger).build(Recipe.of([]), lambda step: print(step, flush=True))
"""


@needs_root
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_build_ended_in_the_middle_leaves_nothing(tmp_path: Path, how: signal.Signals, image: Image) -> None:
    # ``image`` is asked for because it skips where nothing can be built.
    cache, ledger = tmp_path / "cache", tmp_path / "ledger"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(cache), str(ledger)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as build:
        assert build.stdout is not None
        for line in build.stdout:
            if line == "extracting the essential packages\n":
                break
        else:
            pytest.fail(f"the build ended early: {build.stderr and build.stderr.read()}")
        build.send_signal(how)
    if how == signal.SIGINT:
        assert list((cache / "building").iterdir()) == []
    else:
        assert len(list((cache / "building").iterdir())) == 1
    assert not clean(ledger).failed
    assert list((cache / "building").iterdir()) == []
    assert not (cache / "images").exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert marked_with(str(cache)) == []


def marked_with(text: str) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if f"TARE_RESOURCE={text}".encode() in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
    return found


@needs_root
def test_what_is_imported_is_what_was_exported_and_gets_a_kernel(
    tmp_path: Path, image: Image, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: remove_tree(tmp_path / "cache"))  # it has programs that are setgid
    archive = tmp_path / "exported.tar"
    parts = ["./etc", "./usr/sbin", "./var/log"]
    argv = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", str(image.rootfs), "-cf", str(archive)]
    subprocess.run([*argv, *parts], check=True)
    with Ledger(tmp_path / "ledger") as ledger:
        imported = ImageStore(tmp_path / "cache", ledger).import_archive(archive)
    recorded = (image.directory / stored.MANIFEST).read_text().splitlines()
    expected = [line for line in recorded if line.startswith(("etc", "usr/sbin", "var/log"))]
    assert [line for line in list_tree(imported.rootfs) if line.startswith(("etc", "usr/sbin", "var/log"))] == expected
    assert imported.name == "exported"
    assert imported.guest_problem == ""
    assert imported.kernel is not None
    assert imported.initramfs is not None
    assert imported.disk is not None
    stored.verify(imported.directory)


@needs_root
def test_a_tree_without_the_agent_is_no_guest_and_a_name_stays_with_its_image(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        folder, device = tarfile.TarInfo("bin"), tarfile.TarInfo("bin/null")
        folder.type, folder.mode, folder.uid = tarfile.DIRTYPE, 0o755, 1234
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 3
        tar.addfile(folder)
        tar.addfile(device)
    archive = tmp_path / "small.tar.gz"
    (tmp_path / "manifest.json").write_text(json.dumps([{"Layers": ["layer.tar"]}]))
    with gzip.open(archive, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(layer, "layer.tar")
        tar.add(tmp_path / "manifest.json", "manifest.json")
    with Ledger(tmp_path / "ledger") as ledger:
        images = ImageStore(tmp_path / "cache", ledger)
        imported = images.import_archive(archive)
        assert images.get("small") == imported
        with tarfile.open(archive, "w") as tar:
            tar.addfile(folder)
        with pytest.raises(ImageError, match="another image called small"):
            images.import_archive(archive)
        assert images.get("small") == imported
    assert imported.kernel is None
    assert "qemu-ga" in imported.guest_problem
    assert (imported.rootfs / "bin").stat().st_uid == 1234
    assert (imported.rootfs / "bin/null").stat().st_rdev == os.makedev(1, 3)
