"""Whatever a user gets wrong: one clear message, a documented exit code, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
[suite]
name = "wrong"
[envelope]
memory = "256MiB"
[[backend]]
type = "native"
[[experiment]]
kind = "boot"
"""


@pytest.fixture
def tare(tmp_path):
    """Runs the command line in a process of its own, in folders of its own."""

    def run(*arguments: str, become: list[str] | None = None):
        own = {f"TARE_{name}_DIR": str(tmp_path / name.lower()) for name in ("CACHE", "STATE", "WORK")}
        return subprocess.run(
            [*(become or []), sys.executable, "-m", "tare", *arguments],
            env={**os.environ, **own, "COLUMNS": "100"},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def refused(result, code: int, *parts: str) -> None:
    assert "Traceback" not in result.stderr
    assert result.returncode == code, result.stderr
    for part in parts:
        assert part in result.stderr


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "suite.toml").write_text(text)
    return str(tmp_path / "suite.toml")


def test_no_command_shows_help(tare):
    result = tare()
    assert "run" in result.stdout + result.stderr


def test_version_and_help(tare):
    assert tare("--version").stdout.startswith("tare 0.")
    assert "--resume" in tare("run", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("run",), 2, ("name a suite",)),
        (("run", "none.toml"), 3, ("none.toml", "no such file")),
        (("run", "--resume", "none"), 3, ("none is not a run directory",)),
        (("report", "none"), 3, ("none is not a run directory",)),
        (("list", "things"), 3, ("there is nothing called 'things'", "workloads")),
        (("exec", "qubes", "--", "true"), 3, ("there is no backend 'qubes'", "native")),
        (("exec", "native", "--memory", "12MB", "--", "true"), 3, ("--memory", "12MB")),
        (("exec", "native", "--cpus", "999", "--", "true"), 3, ("--cpus", "999")),
        (("exec", "vm", "--memory", "16MiB", "--", "true"), 3, ("--memory", "too little for the backend 'vm'")),
        (("frobnicate",), 2, ("No such command",)),
    ],
)
def test_wrong_words(tare, arguments, code, parts):
    refused(tare(*arguments), code, *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("[suite]", "[suite"), ("suite.toml", "line 2")),
        (('type = "native"', 'type = "qubes"'), ("suite.toml: backend[0].type", "there are: ")),
        (('memory = "256MiB"', 'memoy = "256MiB"'), ("suite.toml: envelope", "memoy", "known keys")),
        (('kind = "boot"', 'kind = "steady"\nworkload = "linpack"'), ("suite.toml: experiment[0].workload", "fio")),
        (
            ('type = "native"', 'type = "vm"', 'memory = "256MiB"', 'memory = "16MiB"'),
            ("suite.toml: envelope.memory", "too little for the backend 'vm'"),
        ),
    ],
)
def test_wrong_suites(tare, tmp_path, change, parts):
    text = SUITE
    for old, new in zip(change[::2], change[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    refused(tare("run", write(tmp_path, text)), 3, *parts)


def test_a_path_that_is_not_empty_is_not_written_to(tare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    refused(tare("run", write(tmp_path, SUITE), "--output", "out"), 3, "out is not empty", "--resume")


@pytest.mark.root
@pytest.mark.parametrize("arguments", [("run", "suite.toml"), ("exec", "native", "--", "true"), ("image", "build")])
def test_without_root(tare, tmp_path, arguments):
    """As user 65534 who may read every file, so that root's own interpreter and packages can be used."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    write(tmp_path, SUITE)
    for folder in list(tmp_path.parents)[:2]:
        folder.chmod(0o755)
    os.chown(tmp_path, 65534, 65534)
    capability = "+dac_read_search"
    become = ["setpriv", "--reuid=65534", f"--inh-caps={capability}", f"--ambient-caps={capability}"]
    refused(tare(*arguments, become=become), 4, "root", "what to do")


def test_missing_tools_are_named_with_their_package(tare, tmp_path):
    """A PATH without mmdebstrap and with no cached image: the image cannot be built."""
    if os.geteuid() != 0:
        pytest.skip("needs root: without it the backend is refused before the image is looked for")
    empty = tmp_path / "bin"
    empty.mkdir()
    code = (
        "import shutil, sys; real = shutil.which;"
        "shutil.which = lambda name, *a, **k: None if name == 'mmdebstrap' else real(name, *a, **k);"
        "from tare.bench.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "run", write(tmp_path, SUITE)],
        env={**os.environ, "TARE_CACHE_DIR": str(tmp_path / "cache"), "TARE_STATE_DIR": str(tmp_path / "state")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    refused(result, 4, "mmdebstrap is not installed", "apt-get install")


def test_clean_with_nothing_to_do(tare):
    result = tare("clean")
    assert result.returncode == 0
    assert "nothing was left behind" in result.stdout


def test_list_names_everything_that_is_registered(tare):
    out = tare("list", "-v").stdout
    for name in ("bare-metal", "native", "vm", "fio", "sysbench-cpu", "boot", "steady", "html"):
        assert name in out


def test_list_shows_options_as_they_are_written(tare):
    out = " ".join(tare("list", "backends", "-v").stdout.split())
    assert "Upper" not in out
    assert "'disk'" in out
    assert "'tmpfs'" in out


def test_a_start_is_explained_before_there_is_an_image(tare, tmp_path):
    result = tare("exec", "native", "--explain", "--option", "user_namespace=true", "--option", "upper=tmpfs")
    assert result.returncode == 0
    numbered = [line for line in result.stdout.splitlines() if line.lstrip()[:1].isdigit()]
    for step in ("clone3 a process", "become root of the user namespace", "mount tmpfs on memory", "pivot_root"):
        assert [line for line in numbered if step in line], step
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vm", "--explain"], "vm does not explain how it starts instances"),
        (["native", "--option", "colour=red", "--", "true"], "known keys: seccomp, capabilities"),
        (["native", "--option", "profile=full", "--option", "user_namespace=true", "--", "true"], "for systemd"),
        (["native", "--option", "boot_offset_s=5", "--", "true"], "boot_offset_s needs time_namespace"),
    ],
)
def test_what_exec_cannot_do(tare, arguments, message):
    result = tare("exec", *arguments)
    assert result.returncode in {3, 4}
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
