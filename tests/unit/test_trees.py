"""The folder of a run: flagged where the file system knows the flag, a plain folder elsewhere."""

import struct
import subprocess
from pathlib import Path

import pytest

from tare.bench import trees
from tare.bench.process import find_tool
from tare.bench.trees import make_work_folder


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
