"""``--output`` gives a file what it was asked for, and changes nothing else about what is there."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tare.bench.cli.main import app
from tare.bench.cli.output import chosen_output, whole_file
from tare.bench.errors import TareError
from tare.bench.ledger import clean
from tests.unit.test_stored_runs import unpacked

COMMANDS = {
    "report": ("quickstart", "--format", "json"),
    "compare": ("quickstart", "--format", "json", "--backends", "native", "vm"),
    "plan": ("density", "--format", "json"),
}


def write(output: Path, text: str = "new") -> None:
    with whole_file(output, ".txt") as part:
        part.write_text(text, "utf-8")


def reading(fifo: Path) -> tuple[threading.Thread, list[bytes]]:
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    thread.start()
    return thread, got


@pytest.mark.parametrize("command", COMMANDS)
def test_a_fifo_stays_one_and_is_written_to(command: str, tmp_path: Path) -> None:
    name, *options = COMMANDS[command]
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread, got = reading(fifo)
    arguments = [command, str(unpacked(name, tmp_path)), *options, "--output", str(fifo)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    thread.join(10)
    assert result.exit_code == 0, result.output
    assert stat.S_ISFIFO(fifo.lstat().st_mode)
    assert json.loads(got[0])
    assert not list(tmp_path.glob(".tare-*"))


def test_a_device_stays_one(tmp_path: Path) -> None:
    """A node of its own like /dev/null's: the machine's must not be at stake."""
    node = tmp_path / "null"
    try:
        os.mknod(node, 0o622 | stat.S_IFCHR, os.makedev(1, 3))
        node.open("wb").close()
    except PermissionError:
        pytest.skip("needs the right to make and open device nodes")
    (tmp_path / "link").symlink_to(node)
    before = node.lstat()
    for name in (node, tmp_path / "link"):
        write(name)
    assert os.path.samestat(before, node.lstat())
    assert stat.S_ISCHR(node.lstat().st_mode)
    assert (tmp_path / "link").is_symlink()


def test_a_file_keeps_its_mode_and_a_new_one_has_the_umask_s(tmp_path: Path) -> None:
    private, new = tmp_path / "private", tmp_path / "new"
    private.write_text("old")
    private.chmod(0o600)
    before = os.umask(0o027)
    try:
        write(private)
        write(new)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (private, new)] == [0o600, 0o640]
    assert private.read_text() == new.read_text() == "new"


def test_a_private_file_is_private_all_the_while(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.touch(0o600)
    with whole_file(private) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        assert part.parent == tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have another user's file")
def test_another_user_s_file_stays_theirs(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.touch()
    os.chown(theirs, 65534, 65534)
    write(theirs)
    assert (theirs.stat().st_uid, theirs.stat().st_gid) == (65534, 65534)


def test_a_link_stays_one_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    for name in ("old", "not-there-yet"):
        link = tmp_path / f"to-{name}"
        link.symlink_to(f"folder/{name}")
        write(link)
        assert link.is_symlink()
        assert (tmp_path / "folder" / name).read_text() == "new"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path / "file", "half \udcff")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("name", ["folder", "missing/file", "loop", "file/below"])
def test_what_cannot_be_written_is_one_message(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(TareError, match="cannot write") as raised:
        write(tmp_path / name)
    assert raised.value.exit_code == 6


def test_a_reader_of_a_fifo_may_go_away(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread = threading.Thread(target=lambda: fifo.open("rb").close(), daemon=True)
    thread.start()
    write(fifo, "x" * 2**20)
    thread.join(10)


def test_a_name_of_standard_output_is_standard_output(tmp_path: Path) -> None:
    """Also where that is a file: it is not replaced under the shell that goes on writing to it."""
    assert chosen_output(tmp_path / "file") == tmp_path / "file"
    run = unpacked("quickstart", tmp_path)
    script = f'echo first; "{sys.executable}" -m tare report "{run}" -f json -o /dev/stdout; echo last'
    out = tmp_path / "out"
    with out.open("wb") as file:
        subprocess.run(["sh", "-c", script], stdout=file, check=True, timeout=60)
    lines = out.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("first", "last")
    assert json.loads("\n".join(lines[1:-1]))["run"]


KILLED = """
import os, sys
from pathlib import Path
from tare.bench.cli.output import whole_file
with whole_file(Path(sys.argv[1]), ".html") as part:
    part.write_text("half")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("name", ["report.html", "-"])
def test_what_a_killed_command_was_writing_is_removed_by_clean(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TARE_STATE_DIR": str(tmp_path / "state"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / name) if name != "-" else name]
    killed = subprocess.run(command, env=environment, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert bool(list(tmp_path.glob(".tare-*"))) == (name != "-")
    clean(tmp_path / "state" / "ledger")
    assert list(tmp_path.glob(".tare-*")) == list((tmp_path / "state").rglob("*.jsonl")) == []


def test_a_report_needs_no_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TARE_STATE_DIR", str(tmp_path / "file"))
    write(tmp_path / "report")
    assert (tmp_path / "report").read_text() == "new"
