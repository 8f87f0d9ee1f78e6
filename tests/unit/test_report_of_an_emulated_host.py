"""A quickstart that ran under KVM on a host whose own processor is emulated: what its report says first, and decides.

``tests/data/kvm/quickstart`` is that run without its raw outputs, with the JSON report of the version that made it.
"""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tare.bench.cli.gate import app as gate_app
from tare.bench.cli.history import app as history_app
from tare.bench.cli.main import app

STORED = Path(__file__).parents[1] / "data/kvm/quickstart"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kvm")
    shutil.copy(STORED / "manifest.json", folder)
    for file in STORED.glob("*.jsonl.gz"):
        (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    return folder


def reported(run, form):
    result = CliRunner().invoke(app, ["report", str(run), "-f", form, "-o", "-"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_its_first_screen_names_kvm_nested_on_an_emulated_host(run):
    text = " ".join(reported(run, "text").split())
    first, _, _ = text.partition("What this means for you")
    assert "vm (kvm)" in first
    assert "Not usable: the host's own processor is emulated" in first
    assert " - This host's own processor is emulated in software (QEMU without KVM (TCG)" in first
    assert "the guest is nested: it ran under KVM on a host that is itself a virtual machine" in first
    assert "nothing here was measured on hardware" in first


def test_it_decides_no_claim(run):
    now = json.loads(reported(run, "json"))
    then = json.loads(gzip.decompress((STORED / "report.json.gz").read_bytes()))
    for report in (now, then):
        assert {claim["verdict"] for claim in report["claims"]} == {"not measured here"}
    assert now["backends"]["vm"]["label"] == then["backends"]["vm"]["label"] == "vm (kvm)"


NOTHING = "decides no claim about virtualization"


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_a_report_says_so_first(run, form):
    written = " ".join(reported(run, form).split())
    assert NOTHING in written[: written.find("What this means for you") if form != "html" else written.find("<h2")]


def test_a_comparison_says_so_first(run, tmp_path):
    later = tmp_path / "later"
    shutil.copytree(run, later)
    manifest = json.loads((later / "manifest.json").read_text())
    (later / "manifest.json").write_text(json.dumps({**manifest, "run": "later"}))
    said = " ".join(tare(app, "compare", run, later).split())
    assert f"nothing was measured on hardware, and the run {NOTHING}" in said.partition("What was compared")[0]


def test_the_history_of_such_a_host_and_its_gate_say_so(run, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(run, runs / "night")
    tare(history_app, "update", runs)
    for form in ("text", "markdown"):
        assert NOTHING in " ".join(tare(gate_app, runs / "night", "-f", form, code=11).split())
    assert any(NOTHING in note for note in json.loads(tare(gate_app, runs / "night", "--json", code=11))["notes"])
    tare(history_app, "publish", runs, "-o", tmp_path / "site")
    assert NOTHING in (tmp_path / "site/index.html").read_text()


def tare(command, *arguments, code=0):
    """What a command printed."""
    result = CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout
