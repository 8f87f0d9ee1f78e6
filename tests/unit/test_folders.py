"""A folder that cannot be used is one message that names the variable which helps, and exit code 6."""

import os
import platform
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tare.bench.cli.main import app
from tare.bench.locations import folder_failure, free_bytes
from tare.bench.session import RunRequest, start_run
from tests.unit import test_session
from tests.unit.session_fakes import Orders
from tests.unit.test_session import Display, manifest, suite_file

machine = test_session.place
"""The fixture of the session's tests, for those of this module."""


def refused(machine: Path, *arguments: str, names: str) -> None:
    """The command ends with 6 and one message, before anything is started."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 6, result.output
    assert "Traceback" not in result.output
    assert len(re.findall("^tare: ", result.stderr, re.MULTILINE)) == 1
    assert names in result.stderr
    assert Orders.starts == Orders.prepared == []


def file_of(machine: Path) -> str:
    (machine / "a-file").touch()
    return str(machine / "a-file")


@pytest.mark.parametrize("variable", ["TARE_STATE_DIR", "TARE_WORK_DIR", "TARE_CACHE_DIR"])
@pytest.mark.parametrize("kind", ["a file", "below a file", "in /proc", "no UTF-8"])
def test_a_folder_of_tare_s_that_cannot_be_used(variable, kind, machine, monkeypatch):
    folders = {
        "a file": file_of(machine),
        "below a file": f"{file_of(machine)}/folder",
        "in /proc": "/proc/none/folder",
        "no UTF-8": os.fsdecode(bytes(machine) + b"/\xff"),
    }
    monkeypatch.setenv(variable, folders[kind])
    refused(machine, "run", str(suite_file(machine)), "-o", str(machine / "run"), names=variable)
    assert not (machine / "run").exists()


def test_a_home_that_is_none(machine, monkeypatch):
    for name in ("TARE_STATE_DIR", "TARE_CACHE_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc")
    refused(machine, "run", str(suite_file(machine)), "-o", str(machine / "run"), names="TARE_STATE_DIR")


def test_doctor_looks_at_the_rest_and_ends_with_6(machine, monkeypatch):
    monkeypatch.setenv("TARE_STATE_DIR", file_of(machine))
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 6
    assert "set TARE_STATE_DIR to one" in result.stdout
    assert "backend fake-box" in result.stdout


@pytest.mark.parametrize("output", ["a-file", "a-file/run", "/proc/none/run"])
def test_the_folder_of_a_run_is_looked_at_first(output, machine):
    file_of(machine)
    refused(machine, "run", str(suite_file(machine)), "-o", str(machine / output), names="--output")


def test_a_deleted_working_directory(machine, monkeypatch):
    suite = str(suite_file(machine))
    gone = machine / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    refused(machine, "run", suite, names="--output")
    monkeypatch.setenv("TARE_WORK_DIR", "relative")
    refused(machine, "run", suite, "-o", str(machine / "run"), names="working directory")


def test_names_that_are_no_utf_8_do_not_end_a_run(machine, monkeypatch):
    strange = os.fsdecode(b"h\xffst")
    monkeypatch.setattr(platform, "node", lambda: strange)
    monkeypatch.setattr(sys, "argv", ["tare", "run", strange])
    start_run(RunRequest(suite_file(machine), machine / strange), Display())
    stored = manifest(machine / strange)
    assert stored["status"] == "complete"
    assert stored["run"] == "h\ufffdst"
    assert {fact["name"]: fact["text"] for fact in stored["host"]}["host name"] == "h\ufffdst"
    for form in ("json", "text", "junit"):
        done = CliRunner().invoke(app, ["report", str(machine / strange), "-f", form, "-o", str(machine / form)])
        assert done.exit_code == 0, done.output


def test_what_is_no_matter_of_folders_stays_a_bug(machine):
    for error in (OSError(9, "bad"), FileNotFoundError(2, "none", str(machine / "work" / "deep" / "file")), KeyError()):
        assert folder_failure(error) is None
    assert free_bytes(machine / "not" / "there") > 0
    assert not (machine / "not").exists()
