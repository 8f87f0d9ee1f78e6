"""A fleet's folder on the user's side: written, read back, and refused where it is something else."""

import json

import msgspec
import pytest

from tare.bench.errors import RunDirectoryError
from tare.bench.fleet.collection import (
    FLEET_FILE,
    FLEET_SCHEMA_VERSION,
    FleetManifest,
    HostRow,
    HostState,
    find_fleets,
    load_collection,
    load_fleet_manifest,
    run_folder,
    save_fleet_manifest,
)

ROWS = (
    HostRow("a", state=HostState.COLLECTED, run="20260101-a", digest="0" * 64, done=4, planned=4),
    HostRow("b", state=HostState.SILENT, reason="never answered"),
)
MANIFEST = FleetManifest(FLEET_SCHEMA_VERSION, "f-1", "short", "0.2.0", "2026-01-01T00:00:00+00:00", ROWS)


def test_what_is_saved_is_read_back(tmp_path):
    save_fleet_manifest(tmp_path / "f", MANIFEST)
    assert load_fleet_manifest(tmp_path / "f") == MANIFEST
    assert list(find_fleets(tmp_path)) == [tmp_path / "f"]


def test_runs_are_those_that_are_here(tmp_path):
    save_fleet_manifest(tmp_path, MANIFEST)
    missing = load_collection(tmp_path)
    assert missing.runs == ()
    assert "the run of a is not in" in missing.warnings[0]
    folder = run_folder(tmp_path, ROWS[0])
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    found = load_collection(tmp_path)
    assert [one.path for one in found.runs] == [folder]
    assert not found.warnings


@pytest.mark.parametrize("name", ["../a", "", "/etc", "..", "a/b", ".hidden"])
def test_a_run_lies_in_the_folder(tmp_path, name):
    with pytest.raises(RunDirectoryError, match="is not the name"):
        run_folder(tmp_path, HostRow("a", run=name))
    with pytest.raises(RunDirectoryError, match="is not the name"):
        run_folder(tmp_path, HostRow(name, run="a"))


def test_what_is_no_fleet_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match="is not the folder of a fleet"):
        load_fleet_manifest(tmp_path)
    (tmp_path / FLEET_FILE).write_text("{")
    with pytest.raises(RunDirectoryError, match="is not the manifest of a fleet"):
        load_fleet_manifest(tmp_path)
    newer = {**msgspec.to_builtins(MANIFEST), "schema_version": FLEET_SCHEMA_VERSION + 1, "hosts": "something new"}
    (tmp_path / FLEET_FILE).write_text(json.dumps(newer))
    with pytest.raises(RunDirectoryError, match="is newer than this tare knows"):
        load_fleet_manifest(tmp_path)


def test_a_host_that_is_not_there():
    with pytest.raises(RunDirectoryError, match="it has: a, b"):
        MANIFEST.row("c")
