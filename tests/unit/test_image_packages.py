"""Which packages an image says that it holds: read in its tree, never through a link that leads out of it."""

import os
from pathlib import Path

import pytest

from tare.bench.image.rootfs import installed_packages

STATUS = """\
Package: bash
Status: install ok installed
Version: 5.2.15-2+b7
Description: GNU shell
 Version: 9

Package: gone
Status: deinstall ok config-files
Version: 1

Package: half
Status: install ok half-configured
Version: 2

Package: libc6
Architecture: amd64
Status: hold ok installed
Version: 2.36
"""


def write(tree: Path, text: str) -> Path:
    status = tree / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(text)
    return status


def test_packages_that_are_installed(tmp_path: Path) -> None:
    write(tmp_path, STATUS)
    assert installed_packages(tmp_path) == {"bash": "5.2.15-2+b7"}
    assert installed_packages(tmp_path / "var") == {}


@pytest.mark.parametrize("link", ["var", "var/lib", "var/lib/dpkg", "var/lib/dpkg/status"])
def test_a_link_is_not_followed(link: str, tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    write(tree, STATUS)
    write(outside, STATUS.replace("bash", "secret"))
    (tree / link).rename(tmp_path / "kept")
    (tree / link).symlink_to(outside / link)
    assert installed_packages(tree) == {}


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    status = write(tmp_path, "")
    status.unlink()
    os.mkfifo(status)
    assert installed_packages(tmp_path) == {}
    status.unlink()
    status.mkdir()
    assert installed_packages(tmp_path) == {}


def test_damage_is_no_package(tmp_path: Path) -> None:
    write(tmp_path, "Status: install ok installed\n\n: \n\nno colon\n\nStatus:\n")
    assert set(installed_packages(tmp_path)) <= {""}
