import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tare.bench.image.stored import INITRAMFS, KERNEL, PROCESS, digest_of, list_tree, measure


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """Removed afterwards, whatever became of it: setuid files and device nodes of root's are not left in /tmp."""
    root = tmp_path / "tree"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"tool")
    (root / "usr/bin/tool").chmod(0o755)
    (root / "bin").symlink_to("usr/bin")
    (root / "odd name\n%").write_bytes(b"")
    yield root
    shutil.rmtree(root)


def digest(tree: Path) -> str:
    return digest_of(list_tree(tree), {KERNEL: "k", INITRAMFS: "i"})


def add_xattr(tree: Path) -> None:
    try:
        os.setxattr(tree / "usr/bin/tool", "user.tare", b"1")
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            pytest.skip("the file system of the temporary folder has no extended attributes")
        raise


def relink(tree: Path) -> None:
    (tree / "bin").unlink()
    (tree / "bin").symlink_to("usr/sbin")


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda tree: (tree / "usr/bin/tool").write_bytes(b"took"),
    "mode": lambda tree: (tree / "usr/bin/tool").chmod(0o4755),
    "folder mode": lambda tree: (tree / "usr").chmod(0o700),
    "root's mode": lambda tree: tree.chmod(0o700),
    "name": lambda tree: (tree / "usr/bin/tool").rename(tree / "usr/bin/loot"),
    "new folder": lambda tree: (tree / "var").mkdir(),
    "removed file": lambda tree: (tree / "odd name\n%").unlink(),
    "link target": relink,
    "extended attribute": add_xattr,
    "fifo": lambda tree: os.mkfifo(tree / "fifo"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_follows(tree: Path, change: str) -> None:
    before = digest(tree)
    CHANGES[change](tree)
    assert digest(tree) != before


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and make devices")
def test_the_digest_follows_owner_and_device_numbers(tree: Path) -> None:
    digests = {digest(tree)}
    os.chown(tree / "usr/bin/tool", 1, 0)
    digests.add(digest(tree))
    os.chown(tree / "usr/bin/tool", 0, 1)
    digests.add(digest(tree))
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    digests.add(digest(tree))
    (tree / "null").unlink()
    os.mknod(tree / "null", 0o20666, os.makedev(1, 5))
    digests.add(digest(tree))
    assert len(digests) == 5


def test_the_digest_does_not_follow_times_or_order(tree: Path) -> None:
    before = digest(tree)
    for path in (tree / "usr/bin/tool", tree / "usr", tree):
        os.utime(path, (1, 1))
    tool = (tree / "usr/bin/tool").read_bytes()
    (tree / "usr/bin/tool").unlink()
    (tree / "usr/bin/tool").write_bytes(tool)
    (tree / "usr/bin/tool").chmod(0o755)
    assert digest(tree) == before


def test_the_digest_names_kernel_and_initramfs_too(tree: Path) -> None:
    lines = list_tree(tree)
    pairs = ({KERNEL: "a", INITRAMFS: "b"}, {KERNEL: "b", INITRAMFS: "a"}, {INITRAMFS: "a"}, {KERNEL: "a"}, {})
    assert len({digest_of(lines, pair) for pair in pairs}) == 5


def test_the_digest_names_the_program_that_the_image_is_made_for(tree: Path) -> None:
    lines = list_tree(tree)
    assert len({digest_of(lines, one) for one in ({}, {PROCESS: "a"}, {PROCESS: "b"})}) == 3
    assert digest_of(lines, {}) == digest_of(lines, {"disk.erofs": "c"})


def test_every_file_is_one_line_whatever_its_name(tree: Path) -> None:
    lines = list_tree(tree)
    assert [line.split(" ")[0] for line in lines] == [".", "bin", "odd%20name%0A%25", "usr", "usr/bin", "usr/bin/tool"]
    assert all("\n" not in line for line in lines)


def test_the_largest_files_are_the_probes(tree: Path) -> None:
    for number in range(100):
        (tree / f"file{number}").write_bytes(b"x" * (number + 10))
    probes, total = measure(list_tree(tree))
    assert len(probes) == 64
    assert probes["file99"] == 109
    assert "file0" not in probes
    assert total == 4 + sum(range(10, 110))
