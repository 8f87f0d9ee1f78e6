"""What docs/nightly.md gives to copy: its CI files are run step by step, its systemd units are verified."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.nights import Night, write_nights

PAGE = (Path(__file__).parents[2] / "docs" / "nightly.md").read_text("utf-8")
SLOWER = {("work-2", "native"): -0.09}
# `tare run` measured the newest night already, and ends as the test wants; everything else is tare itself.
TARE = """
tare() { if [ "$1" = run ]; then return $RUN_ENDS; fi; %s -m tare "$@"; }
"""


def block(language: str, begin: str = "") -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if text.startswith(begin)]
    assert len(found) == 1
    return str(found[0])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a history in which a container became slower."""
    folder = tmp_path_factory.mktemp("bench")
    write_nights(folder / "runs", [Night()] * 20 + [Night(ratios=SLOWER)] * 5)
    return folder


def run(script: str, bench: Path, folder: Path, *, run_ends: int = 5) -> subprocess.CompletedProcess[str]:
    text = TARE % sys.executable + script.replace("/srv/bench", str(bench)).replace(" --confirm", "")
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(Path.cwd())}
    given = {"RUN_ENDS": str(run_ends), "CI_PIPELINE_ID": "20260125-nightly", "CI_COMMIT_SHA": "abc"}
    environment = {**os.environ, **path, **given, "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    shell = ["bash", "-eo", "pipefail", "-c", text]
    return subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_steps_for_github_judge_a_run_with_failed_cells_and_fail_for_its_regression(
    bench: Path, tmp_path: Path
) -> None:
    job: Any = yaml.safe_load(block("yaml", "on:"))["jobs"]["nightly"]
    steps = [re.sub(r"\$\{\{ github\.\w+ \}\}", "20260125-nightly", one["run"]) for one in job["steps"] if "run" in one]
    assert [run(step, bench, tmp_path).returncode for step in steps] == [0, 10, 0]
    assert "work-2" in (tmp_path / "summary.md").read_text("utf-8")
    assert "::error" in run(steps[2], bench, tmp_path).stdout
    assert run(steps[0], bench, tmp_path, run_ends=4).returncode != 0


def test_the_script_for_gitlab_writes_both_reports_and_ends_as_the_gate(bench: Path, tmp_path: Path) -> None:
    job: Any = yaml.safe_load(block("yaml", "nightly:"))["nightly"]
    ended = run("\n".join(job["script"]), bench, tmp_path)
    assert ended.returncode == 10, ended.stderr
    for name in job["artifacts"]["reports"].values():
        assert "work-2" in (tmp_path / name).read_text("utf-8")


def test_the_line_for_cron_has_something_to_mail(bench: Path, tmp_path: Path) -> None:
    (line,) = [one for one in PAGE.splitlines() if one.startswith("0 2 * * *")]
    ended = run(f"set +e; {line.removeprefix('0 2 * * * ')}", bench, tmp_path)
    assert "Regression" in ended.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_units_for_systemd_are_right(tmp_path: Path) -> None:
    parts = re.split(r"^# /etc/systemd/system/(\S+)\n", block("ini"), flags=re.MULTILINE)[1:]
    program = tmp_path / "tare"
    program.write_text("#!/bin/sh\n", "utf-8")
    program.chmod(0o755)
    units = []
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        units.append(tmp_path / name)
        units[-1].write_text(text.replace("/usr/local/bin/tare", str(program)), "utf-8")
    assert [unit.suffix for unit in units] == [".service", ".timer"]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
