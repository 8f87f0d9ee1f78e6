"""The folder of a run: flagged where the file system knows the flag, a plain folder elsewhere."""

import os
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from tare.bench import trees
from tare.bench.process import find_tool
from tare.bench.trees import make_work_folder, remove_tree


def test_parents_are_made_and_what_exists_is_refused(tmp_path: Path) -> None:
    make_work_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(FileExistsError):
        make_work_folder(tmp_path / "a" / "b")


def test_an_ext4_is_asked_to_spread_what_is_in_it(tmp_path: Path) -> None:
    make_work_folder(tmp_path / "work")
    tool = find_tool("lsattr")
    if tool is None:
        pytest.skip("lsattr is not installed")
    shown = subprocess.run([tool, "-d", str(tmp_path / "work")], capture_output=True, text=True, check=False)
    if shown.returncode or "e" not in shown.stdout.split()[0]:
        pytest.skip(f"{tmp_path} lies on no ext4")
    assert "T" in shown.stdout.split()[0]


@pytest.mark.parametrize("answer", [OSError(25, "Inappropriate ioctl for device"), struct.pack("=q", 0x80000)])
def test_a_file_system_without_the_flag_is_left_as_it_is(
    answer: OSError | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def ioctl(_descriptor: int, request: int, argument: bytes) -> bytes:
        asked.append(struct.unpack("=q", argument)[0])
        if isinstance(answer, OSError) or request != 0x80086601:
            raise answer if isinstance(answer, OSError) else OSError(95, "Operation not supported")
        return answer

    monkeypatch.setattr(trees.fcntl, "ioctl", ioctl)
    before = len(list(Path("/proc/self/fd").iterdir()))
    make_work_folder(tmp_path / "work")
    assert (tmp_path / "work").is_dir()
    assert asked[1:] == ([] if isinstance(answer, OSError) else [0xA0000])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def deep_tree(top: Path, depth: int) -> None:
    """Folders in folders, each with a file and a link to /etc beside the next; far beyond the longest path."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.symlink("/etc", "link", dir_fd=here)
        os.mkdir("folder", dir_fd=here)
        inner = os.open("folder", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def test_a_tree_deeper_than_any_path_stack_or_descriptor_table_goes(tmp_path: Path) -> None:
    deep_tree(tmp_path / "deep", 1500)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    remove_tree(tmp_path / "deep")
    assert not list(tmp_path.iterdir())
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert Path("/etc/passwd").exists()


def test_what_cannot_be_removed_is_named_and_the_rest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an immutable file, which only root can make."""
    for name in ("a/b", "c"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    for name in ("a/b/stays", "a/goes", "c/goes"):
        (tmp_path / "tree" / name).touch()
    unlink = os.unlink

    def refusing(name: str, *, dir_fd: int) -> None:
        if name == "stays":
            raise PermissionError(1, "Operation not permitted", name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refusing)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(PermissionError) as raised:
        remove_tree(tmp_path / "tree")
    assert raised.value.filename == str(tmp_path / "tree/a/b/stays")
    left = [path for path in (tmp_path / "tree").rglob("*") if path.is_file()]
    assert left == [tmp_path / "tree/a/b/stays"]


def test_folders_that_their_owner_cannot_read_go() -> None:
    """Also for an ordinary user, whom modes bind."""
    user = os.geteuid() or 65534
    with tempfile.TemporaryDirectory() as made:
        tree = Path(made, "tree")
        (tree / "inner/most").mkdir(parents=True)
        (tree / "inner/file").touch()
        for path in (tree / "inner/file", tree / "inner/most", tree / "inner", tree, Path(made)):
            os.chown(path, user, -1)
        for path in (tree / "inner/most", tree / "inner", tree):
            path.chmod(0)
        child = os.fork()
        if child == 0:
            try:
                os.seteuid(user)
                remove_tree(tree)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert not list(Path(made).iterdir())
