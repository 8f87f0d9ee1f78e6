"""``tare gate --confirm`` on real backends: what it measures again decides, not the night that looked changed."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tare.bench.cli.gate import app
from tare.bench.history.index import open_history
from tare.bench.model import Image
from tare.bench.progress import RunDisplay
from tare.bench.session import RunRequest, start_run
from tare.bench.store import load_manifest

pytestmark = [pytest.mark.root, pytest.mark.image]

SUITE = """
[suite]
name = "confirmed"
[image]
use = "{image}"
[sampling]
blocks = 3
iterations = 1
warmup = 0
[[backend]]
type = "bare-metal"
[[backend]]
type = "native"
[[experiment]]
kind = "steady"
workload = "perf-syscall"
params = {{ loops = 100000 }}
"""
RATE = "syscall.operations_per_second"


@pytest.fixture(scope="module")
def measured(catalogue_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run that stands for tonight."""
    folder = tmp_path_factory.mktemp("night")
    suite = folder / "confirmed.toml"
    suite.write_text(SUITE.format(image=catalogue_image.digest), "utf-8")
    with RunDisplay(Console(stderr=True)) as display:
        return start_run(RunRequest(suite, folder / "tonight"), display).path


def night(run: Path, to: Path, days_before: int, factor: float) -> None:
    """The run as if it had been measured earlier, the container so many times as fast as it was."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("raw"))
    manifest = json.loads((to / "manifest.json").read_text("utf-8"))
    started = datetime.fromisoformat(manifest["started_utc"]) - timedelta(days=days_before)
    manifest |= {"run": to.name, "started_utc": started.isoformat(timespec="seconds")}
    (to / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    lines = [json.loads(line) for line in (to / "samples.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        if line["backend"] == "native" and line["metric"].startswith("syscall."):
            line["value"] *= factor if line["metric"] == RATE else 1 / factor
    (to / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")


def history(run: Path, folder: Path, *, before: float, tonight: float) -> Path:
    for number in range(20):
        # Nights that follow one another have nothing in common: reruns of one night may decide.
        noise = (-1) ** number * 0.03 * (1 + number % 3 / 10)
        night(run, folder / f"night-{number:02d}", 20 - number, before * float(np.exp(noise)))
    night(run, folder / "tonight", 0, tonight)
    return folder


def confirmed(folder: Path) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(app, ["--runs", str(folder), "--confirm", "--json", "--output", "-"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, json.loads(done.stdout)


def reruns(folder: Path) -> list[str]:
    runs = [one for one in open_history(folder).entries if one.confirms]
    assert all(one.confirms == "tonight" for one in runs)
    for one in runs:
        manifest = load_manifest(folder / one.folder)
        assert set(manifest.backends) == {"bare-metal", "native"}
        assert not one.is_night
    return [one.run for one in runs]


def test_a_night_that_was_far_off_is_refuted_by_what_is_measured_again(measured: Path, tmp_path: Path) -> None:
    """Tonight's figures are a quarter of what this container does: measuring again shows the nights before."""
    folder = history(measured, tmp_path / "runs", before=1.0, tonight=0.25)
    code, said = confirmed(folder)
    assert len(reruns(folder)) >= 2
    assert code != 10, said
