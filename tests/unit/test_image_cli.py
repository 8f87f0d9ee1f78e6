import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tare.bench.cli.image import app
from tare.bench.errors import ExitCode

runner = CliRunner()


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TARE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TARE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "cache"


def test_an_empty_cache_is_listed_with_what_to_do() -> None:
    done = runner.invoke(app, ["list"])
    assert done.exit_code == 0
    assert "tare image build" in done.stdout
    assert json.loads(runner.invoke(app, ["list", "--json"]).stdout) == []


def test_a_half_made_image_is_listed_with_its_reason_and_can_be_removed(folders: Path) -> None:
    half = folders / "images" / ("ab" * 32)
    half.mkdir(parents=True)
    (listed,) = json.loads(runner.invoke(app, ["list", "--json"]).stdout)
    assert listed["digest"] == half.name
    assert listed["complete"] is False
    assert "not finished" in listed["problem"]
    assert runner.invoke(app, ["verify", "abab"]).exit_code == ExitCode.BAD_INPUT
    assert runner.invoke(app, ["remove", "abab"]).exit_code == ExitCode.OK
    assert not half.exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["remove", "nothing"], "there is no image 'nothing'"),
        (["verify", "nothing"], "there is no image 'nothing'"),
        (["import", "nothing.tar"], "nothing.tar does not exist"),
        (["build", "nothing.toml"], "nothing.toml"),
        (["build", "--package", "No Name"], "cannot be the name of a Debian package"),
    ],
)
def test_wrong_input_gives_one_message_and_its_exit_code(argv: list[str], words: str) -> None:
    done = runner.invoke(app, argv)
    assert done.exit_code == ExitCode.BAD_INPUT
    assert words in done.stderr
    assert "Traceback" not in done.output
