"""Host tools: how they are found, run, bounded and reported."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tare.bench.errors import ExitCode, MissingToolError, TareError
from tare.bench.process import ToolFailedError, find_tool, require_tool, run


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of scripts that is in PATH before everything else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def script(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_tool_is_found_in_path_and_in_sbin(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(tools, "tare-test-tool", "true")
    assert find_tool("tare-test-tool") == path
    assert require_tool("tare-test-tool") == path
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_tool("tare-test-tool") is None
    assert require_tool(str(path)) == path
    monkeypatch.delenv("PATH")
    assert find_tool("sh") is not None


def test_a_file_that_cannot_be_executed_is_no_tool(tools: Path) -> None:
    (tools / "tare-test-tool").write_text("#!/bin/sh\n")
    assert find_tool("tare-test-tool") is None


def test_a_missing_tool_names_its_package_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tare.bench.process.find_tool", lambda _: None)
    with pytest.raises(MissingToolError) as caught:
        require_tool("mkfs.erofs")
    assert caught.value.message == "mkfs.erofs is not installed (Debian package erofs-utils)"
    assert "erofs-utils" in str(caught.value.remedy)
    assert caught.value.exit_code is ExitCode.MISSING
    with pytest.raises(MissingToolError, match="tare-no-such-tool is not installed") as unknown:
        run(["tare-no-such-tool"], timeout_s=1)
    assert unknown.value.remedy is None


def test_output_is_text_in_a_plain_locale(tools: Path) -> None:
    script(tools, "tare-test-tool", 'echo "$LC_ALL $LANG $TZ $EXTRA"; echo to-stderr >&2; cat')
    assert run(["tare-test-tool"], timeout_s=10, env={"EXTRA": "more"}) == "C.UTF-8 C.UTF-8 UTC more\n"


def test_the_callers_environment_can_be_overridden_but_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "yes")
    assert run(["sh", "-c", "echo $GIVEN $LC_ALL"], timeout_s=10, env={"LC_ALL": "C"}) == "yes C\n"


def test_bytes_that_are_no_text_do_not_raise() -> None:
    assert run(["printf", r"a\377b"], timeout_s=10) == "a\ufffdb"


def test_output_of_any_size_does_not_block() -> None:
    assert len(run(["sh", "-c", "yes | head -c 3000000 | tee /dev/stderr"], timeout_s=30)) == 3_000_000


def test_a_failure_shows_the_end_of_what_the_tool_said() -> None:
    with pytest.raises(ToolFailedError) as caught:
        run(["sh", "-c", "for i in $(seq 100); do echo line $i >&2; done; exit 3"], timeout_s=10)
    assert caught.value.returncode == 3
    assert caught.value.message.startswith("sh failed with exit status 3: ")
    assert caught.value.message.endswith("line 100")
    assert len(caught.value.message.splitlines()) == 12
    assert "line 1\n" in caught.value.stderr
    with pytest.raises(ToolFailedError, match=r"false failed with exit status 1: \(no output\)"):
        run(["false"], timeout_s=10)


def test_an_end_by_a_signal_is_said_to_be_one() -> None:
    with pytest.raises(ToolFailedError, match=r"sh was ended by signal 9 \(SIGKILL\): dying") as caught:
        run(["sh", "-c", "echo dying >&2; kill -9 $$"], timeout_s=10)
    assert caught.value.returncode == -signal.SIGKILL


def test_a_program_that_cannot_be_started_is_told_in_one_message(tools: Path) -> None:
    (tools / "tare-test-tool").write_bytes(b"\x7fELFnonsense")
    (tools / "tare-test-tool").chmod(0o755)
    with pytest.raises(TareError, match="tare-test-tool cannot be started: "):
        run(["tare-test-tool"], timeout_s=10)


def test_a_timeout_kills_the_tool_and_its_children_and_says_so(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    started = time.monotonic()
    with pytest.raises(TareError, match=r"sh did not finish within 0\.3 s and was killed"):
        run(["sh", "-c", f"sleep 300 & echo $! $$ > {pids}; wait"], timeout_s=0.3)
    assert time.monotonic() - started < 100
    for pid in pids.read_text().split():
        assert _gone(int(pid)), pid


def test_a_tool_that_left_a_child_with_its_output_does_not_hang_for_ever(tmp_path: Path) -> None:
    """The child is in a session of its own, so it is not killed; but nobody waits for it longer than allowed."""
    pid = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(TareError, match="did not finish within"):
        run(["sh", "-c", f"setsid sh -c 'echo $$ > {pid}; exec sleep 300' & exit 0"], timeout_s=0.5)
    assert time.monotonic() - started < 100
    os.kill(int(pid.read_text()), signal.SIGKILL)


def test_ctrl_c_while_a_tool_runs_kills_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = f"""
from tare.bench.process import run
try:
    # More than a pipe holds: the tool gets past it only once `run` reads, and waits for its end.
    script = "head -c 300000 /dev/zero; sleep 300 & echo $! $$ > {pids}; echo > {pids}.ready; wait"
    run(["sh", "-c", script], timeout_s=60)
except KeyboardInterrupt:
    print("interrupted")
"""
    os.mkfifo(f"{pids}.ready")
    ready = os.open(f"{pids}.ready", os.O_RDONLY | os.O_NONBLOCK)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert select.select([ready], [], [], 60)[0], "the tool was not started"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == b"interrupted\n"
    os.close(ready)
    for pid in pids.read_text().split():
        assert _gone(int(pid)), pid


def _gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet counts as ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in b"ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False
