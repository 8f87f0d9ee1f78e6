"""What scripts and shells take from tare: JSON of its commands, and completion."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tare.bench.cli.image import app as image_app
from tare.bench.cli.main import app
from tare.bench.image import store

runner = CliRunner()


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TARE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TARE_STATE_DIR", str(tmp_path / "state"))


def test_image_commands_answer_in_json(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_NEEDED_BYTES", 0)
    (tmp_path / "hosts").write_text("x")
    with tarfile.open(tmp_path / "mine.tar", "w") as tar:
        tar.add(tmp_path / "hosts", "bin/hosts")
    made = json.loads(runner.invoke(image_app, ["import", str(tmp_path / "mine.tar"), "--json"]).stdout)
    assert made["name"] == "mine"
    assert (Path(made["directory"]) / "rootfs/bin/hosts").read_text() == "x"
    assert json.loads(runner.invoke(image_app, ["verify", "mine", "--json"]).stdout)["digest"] == made["digest"]
    assert json.loads(runner.invoke(image_app, ["remove", "mine", "--json"]).stdout) == {"removed": made["digest"]}
    assert not Path(made["directory"]).exists()


def test_clean_answers_in_json(tmp_path):
    assert json.loads(runner.invoke(app, ["clean", "--json"]).stdout) == {"removed": [], "failed": {}, "left_alone": []}
    folder = tmp_path / "left"
    folder.mkdir()
    dies = (
        "import os, sys; from tare.bench.ledger import Ledger; from tare.bench.locations import ledger_directory\n"
        "Ledger(ledger_directory()).__enter__().enter('directory', sys.argv[1]); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", dies, folder], check=False).returncode == 9
    cleaned = json.loads(runner.invoke(app, ["clean", "--json"]).stdout)
    assert len(cleaned["removed"]) == 1
    assert str(folder) in cleaned["removed"][0]
    assert not folder.exists()


def completed(line: str) -> list[str]:
    """What bash offers after ``line``, by the script that ``tare completion bash`` prints."""
    words = line.split(" ")
    script = (
        f'tare() {{ {sys.executable} -m tare "$@"; }}; export -f tare; eval "$(tare completion bash)"\n'
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; set -- tare\n"
        '_tare_completion tare; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    folder = Path(sys.executable).parent
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"), [("tare li", ["list"]), ("tare suite s", ["show", "schema"]), ("tare run --ba", ["--backend"])]
)
def test_bash_completes_commands_and_options(line, offered):
    assert completed(line) == offered


@pytest.mark.parametrize("options", [[], ["-OO"]])
@pytest.mark.parametrize("columns", ["0", "80"])
def test_tables_have_room_whatever_the_environment_says(columns, options):
    environment = {**os.environ, "COLUMNS": columns, "LINES": "0"}
    tare = [sys.executable, *options, "-m", "tare"]
    done = subprocess.run([*tare, "list", "suites"], capture_output=True, text=True, env=environment, check=True)
    assert "quickstart" in done.stdout
