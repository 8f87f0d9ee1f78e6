"""``tare doctor --prove-kvm``, ``--forget-kvm`` and ``--report``: what is tried out, and what is written down of it."""

import platform

import pytest
from typer.testing import CliRunner

from tare.bench.cli import doctor as cli_doctor
from tare.bench.cli import host_report
from tare.bench.cli.main import app
from tare.bench.interfaces import Proved
from tare.bench.model import Availability
from tare.bench.registry import Plugins, find_backends
from tests.unit import test_session
from tests.unit.session_fakes import Box, Orders

machine = test_session.place


@pytest.fixture
def proves(machine, monkeypatch):
    """Has the fake backend prove with a given outcome, and counts what it was asked."""
    asked = []

    def ordered(available):
        outcome = Availability(available=available, reason="it was tried", remedy=None if available else "another host")

        def prove(self, image, *, verbose=False):
            asked.append(f"prove verbose={verbose} image={image}")
            return Proved(outcome, {"console of the guest": "line one\n\x1b[31mline two", "nothing said": ""})

        monkeypatch.setattr(Box, "prove", prove)
        monkeypatch.setattr(Box, "forget", lambda self: asked.append("forget"))
        found = find_backends()
        only = Plugins(found.kind, {Box.name: Box}, {})
        monkeypatch.setattr(cli_doctor, "find_backends", lambda: only)
        return asked

    return ordered


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments], catch_exceptions=False)


@pytest.mark.parametrize("available", [True, False])
def test_a_proof_is_tried_and_its_outcome_is_the_exit_code(proves, available):
    asked = proves(available)
    result = doctor("--prove-kvm")
    assert result.exit_code == (0 if available else 1)
    assert "it was tried" in result.stderr
    assert ("what to do: another host" in result.stderr) is not available
    assert asked == ["prove verbose=False image=None"]
    assert Orders.starts == Orders.prepared == []


def test_forgetting_comes_before_proving(proves):
    asked = proves(available=True)
    assert doctor("--forget-kvm").exit_code == 0
    assert doctor("--forget-kvm", "--prove-kvm").exit_code == 0
    assert [one.split()[0] for one in asked] == ["forget", "forget", "prove"]


def test_a_report_holds_what_was_seen_and_no_secret(proves, machine, monkeypatch):
    asked = proves(available=False)
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    monkeypatch.setenv("API_TOKEN", "hunter2")
    monkeypatch.setenv("HOME", str(machine))
    monkeypatch.setattr(host_report, "run", lambda *_, **__: "[1] kvm: Nested Paging enabled\n[2] audit: hunter2\n")
    result = doctor("--report", str(machine / "report.txt"))
    assert result.exit_code == 1
    assert asked == ["prove verbose=True image=None"]
    text = (machine / "report.txt").read_text()
    seen = ("outcome: it was tried", "line one", "kvm: Nested Paging enabled", "== /dev/kvm ==", "flags: ")
    for wanted in seen:
        assert wanted in text, wanted
    assert "== fake-box: nothing said ==\n(nothing)\n" in text
    assert "backend fake-box: works: " in text
    for secret in ("secret-host", "hunter2", str(machine), "\x1b"):
        assert secret not in text, secret


def test_a_report_that_cannot_be_written_is_one_message(proves, machine):
    asked = proves(available=True)
    result = doctor("--report", "/proc/none/report")
    assert result.exit_code == 6
    assert "choose another --report" in result.stderr
    assert asked == [], "nobody waits for a proof that cannot be written down"


def test_with_noise_they_make_no_sense(machine):
    for option in ("--prove-kvm", "--forget-kvm"):
        assert doctor("--noise", option).exit_code == 2
