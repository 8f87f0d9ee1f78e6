"""`tare doctor --json` says what the table says; `--fix` installs what is missing, and only after asking."""

import json
import os

import pytest
from typer.testing import CliRunner

from tare.bench.cli import doctor
from tare.bench.cli.main import app
from tare.bench.errors import ExitCode
from tare.bench.packages import HostPackage

runner = CliRunner()
HERE = HostPackage("coreutils", ("image",), "lists files", tool="ls")
ABSENT = HostPackage("made-up", ("vm",), "is needed for guests", tool="a-tool-that-nobody-has")
UNUSED = HostPackage("other", ("benchmarks",), "compares", tool="another-tool-that-nobody-has")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    for variable in ("TARE_CACHE_DIR", "TARE_STATE_DIR", "TARE_WORK_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    calls = []
    monkeypatch.setattr(doctor, "load_packages", lambda: (HERE, ABSENT, UNUSED))
    monkeypatch.setattr(doctor, "run", lambda argv, **_: calls.append(argv) or "")
    monkeypatch.setattr(doctor, "find_tool", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return calls


def test_json_has_every_check(installed):
    done = runner.invoke(app, ["doctor", "--json"])
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["package coreutils"]["works"]
    assert not found["package made-up"]["works"]
    assert "made-up" in found["package made-up"]["remedy"]
    assert not found["package other"]["needed"]
    assert done.exit_code == ExitCode.NOT_READY


def test_with_yes_what_is_needed_is_installed_and_nothing_else(installed):
    done = runner.invoke(app, ["doctor", "--fix", "--yes"])
    assert installed[-1][-1] == "made-up"
    assert not any("other" in argv or "coreutils" in argv for argv in installed)
    assert "made-up: is needed for guests" in done.stdout


def test_without_a_terminal_nobody_is_asked_and_the_command_is_named(installed):
    done = runner.invoke(app, ["doctor", "--fix"])
    assert installed == []
    assert done.exit_code == ExitCode.MISSING
    assert "made-up" in done.stderr
    assert "--yes" in done.stderr


def test_without_root_the_command_is_named(installed, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = runner.invoke(app, ["doctor", "--fix", "--yes"])
    assert installed == []
    assert done.exit_code == ExitCode.MISSING
    assert "this is not root" in done.stderr
    assert "made-up" in done.stderr


def test_nothing_missing_is_said(installed, monkeypatch):
    monkeypatch.setattr(doctor, "load_packages", lambda: (HERE,))
    assert "no host package is missing" in runner.invoke(app, ["doctor", "--fix"]).stdout
    assert installed == []
