"""Whose folders tare trusts: never one that another user made, or may write to."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tare.bench.errors import CleanUpError, ExitCode, TareError
from tare.bench.ledger import Ledger
from tare.bench.locations import STATE_VARIABLE, WORK_VARIABLE, ledger_directory, require_own, work_directory
from tare.bench.trees import make_work_folder

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")


def another_users(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)


def writable_by_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def writable_by_a_group(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 0, NOBODY)
    folder.chmod(0o770)


def another_users_link(folder: Path) -> None:
    own = folder.with_name("own")
    own.mkdir()
    folder.symlink_to(own)
    os.chown(folder, NOBODY, NOBODY, follow_symlinks=False)


def another_users_sticky(folder: Path) -> None:
    another_users(folder)
    folder.chmod(0o1777)


@needs_root
@pytest.mark.parametrize(
    "prepare", [another_users, writable_by_all, writable_by_a_group, another_users_link, another_users_sticky]
)
def test_a_base_that_others_decide_about_is_refused(
    prepare: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    prepare(base)
    for variable, ask in ((WORK_VARIABLE, work_directory), (STATE_VARIABLE, ledger_directory)):
        monkeypatch.setenv(variable, str(base))
        with pytest.raises(TareError, match="is not safe to use") as raised:
            ask()
        assert variable in str(raised.value.remedy)
        assert raised.value.exit_code is ExitCode.ENVIRONMENT
    with pytest.raises(TareError, match="is not safe to use"):
        make_work_folder(base / "run")
    assert list(base.iterdir()) == []


def test_own_folders_below_sticky_ones_and_what_is_not_there_yet_are_fine(tmp_path: Path) -> None:
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    for folder in (sticky, sticky / "own", tmp_path / "not" / "there"):
        assert require_own(folder, WORK_VARIABLE) == folder
    (tmp_path / "link").symlink_to(sticky)
    make_work_folder(tmp_path / "link" / "run")
    assert (sticky / "run").is_dir()


def test_a_run_s_folder_is_its_owner_s_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_work_folder(tmp_path / "base" / "run")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o7777 for path in (tmp_path / "base", tmp_path / "base/run")} == {0o700}


def test_a_link_in_place_of_a_run_s_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        make_work_folder(tmp_path / "run")
    with pytest.raises(CleanUpError, match="Too many levels of symbolic links"):
        link_in_place_of_the_ledger(tmp_path)


def link_in_place_of_the_ledger(folder: Path) -> None:
    with Ledger(folder / "ledger") as ledger:
        name = ledger.path.name
        ledger.path.unlink()
    (folder / "ledger").mkdir(exist_ok=True)
    (folder / "ledger" / name).symlink_to(folder / "elsewhere" / "file")
    Ledger(folder / "ledger")
