"""A quickstart that ran under KVM on a host whose own processor is emulated: what its report says first, and decides.

``tests/data/kvm/quickstart`` is that run without its raw outputs, with the JSON report of the version that made it.
"""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

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
