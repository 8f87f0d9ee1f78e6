import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tare.bench.cli.image import app
from tare.bench.errors import ExitCode
from tare.bench.image import store

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


def archive(path: Path, members: dict[str, bytes], **fields: object) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid, member.gid = len(content), 0, os.getuid(), os.getgid()
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_an_import_is_listed_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_NEEDED_BYTES", 0)
    file = archive(tmp_path / os.fsdecode(b"odd\xff.tar"), {"bin/sh": b"x", "deep" + "/d" * 100: b""})
    refused = runner.invoke(app, ["import", str(file), "--name", "mine"])
    assert refused.exit_code == ExitCode.BAD_INPUT
    assert "--max-depth" in refused.stderr
    done = runner.invoke(app, ["import", str(file), "--name", "mine", "--max-depth", "101"])
    assert done.exit_code == ExitCode.OK, done.output
    assert runner.invoke(app, ["verify", "mine"]).exit_code == ExitCode.OK
    (listed,) = json.loads(runner.invoke(app, ["list", "--json"]).stdout)
    assert listed["origin"] == "odd\ufffd.tar"


@pytest.mark.parametrize(
    ("members", "fields"),
    [
        ({"bin/sh": b"x"}, {"pax_headers": {"mtime": "1e300"}}),
        ({"bin/sh": b"x"}, {"uid": -3}),
        ({"bin/.wh..": b""}, {}),
        ({"manifest.json": b"[" * 100_000}, {}),
        ({"manifest.json": b'[{"Layers": [[]]}]'}, {}),
        ({"oci-layout": b"{}", "index.json": b"[1]"}, {}),
        ({"oci-layout": b"{}", "index.json": b'{"manifests": [1, [], {"platform": 3}]}'}, {}),
    ],
)
def test_an_odd_archive_is_one_message(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], fields: dict[str, object]
) -> None:
    monkeypatch.setattr(store, "_NEEDED_BYTES", 0)
    done = runner.invoke(app, ["import", str(archive(tmp_path / "odd.tar", members, **fields))])
    assert done.exit_code == ExitCode.BAD_INPUT, done.output
    assert done.stderr.count("tare: ") == 1
    assert "Traceback" not in done.output
    assert list((folders / "building").iterdir()) == []
    assert not list(folders.glob("images/*"))
