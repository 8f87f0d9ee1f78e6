"""The user's configuration: folders and defaults, what wins over it, and what is wrong with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tare.bench.configuration import configured_folder
from tare.bench.errors import SuiteError
from tare.bench.locations import cache_directory, runs_directory, state_directory

STORED = Path(__file__).parents[1] / "data/runs/quickstart"


@pytest.fixture
def configure(tmp_path, monkeypatch):
    file = tmp_path / "config.toml"
    monkeypatch.setenv("TARE_CONFIG", str(file))
    for variable in ("TARE_CACHE_DIR", "TARE_STATE_DIR", "TARE_WORK_DIR", "TARE_RUNS_DIR"):
        monkeypatch.delenv(variable, raising=False)

    def write(text: str) -> Path:
        file.write_text(text)
        return file

    return write


def tare(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tare", *argv], capture_output=True, text=True, check=False)


def test_folders_are_the_file_s_and_the_environment_wins(configure, tmp_path, monkeypatch):
    configure(f'[folders]\ncache = "{tmp_path}/images"\nruns = "~/runs"\n')
    assert cache_directory() == tmp_path / "images"
    assert runs_directory() == Path.home() / "runs"
    assert "tare" in state_directory().parts
    monkeypatch.setenv("TARE_CACHE_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("TARE_RUNS_DIR", "here")
    assert cache_directory() == tmp_path / "other"
    assert runs_directory() == Path("here")


def test_without_a_file_nothing_is_configured(tmp_path, monkeypatch):
    monkeypatch.delenv("TARE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert configured_folder("cache") == ""
    (tmp_path / "tare").mkdir()
    (tmp_path / "tare/config.toml").write_text('[folders]\ncache = "/there"\n')
    assert configured_folder("cache") == "/there"


def test_defaults_are_those_of_the_command_and_the_command_line_wins(configure):
    configure("[defaults.list]\njson = true\n")
    assert tare("list", "suites").stdout.startswith("{")
    configure('[defaults.report]\nformat = "markdown"\n')
    assert tare("report", str(STORED)).stdout.startswith("#")
    assert tare("report", str(STORED), "--format", "json").stdout.startswith("{")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("folders.cahce = 'x'", ("cahce", "folders")),
        ("[defaults.lits]\njson = true", ("defaults.lits", "no such command", "list")),
        ("[defaults.list]\njsno = true", ("--jsno", "json")),
        ("folders = 3", ("folders", "must be a table")),
        ("folders.cache = 3", ("folders.cache", "must be a text")),
        ("[folder]", ("folder", "must be a table")),
        ("defaults.list = 3", ("defaults.list", "table of options")),
        ("= 3", ("is not TOML",)),
    ],
)
def test_a_wrong_file_is_one_message_with_its_key(configure, text, said):
    file = configure(text)
    done = tare("list", "suites")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    for word in (str(file), *said):
        assert word in done.stderr


def test_a_file_that_others_may_write_to_is_refused(configure):
    configure("").chmod(0o666)
    with pytest.raises(SuiteError, match="others may write"):
        configured_folder("cache")


def test_a_file_that_is_named_must_be_there(configure):
    with pytest.raises(SuiteError, match="TARE_CONFIG"):
        configured_folder("cache")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_a_file_of_another_user_is_refused(configure):
    os.chown(configure(""), 65534, 65534)
    with pytest.raises(SuiteError, match="another user"):
        configured_folder("cache")
