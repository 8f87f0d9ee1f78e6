"""The one list of host packages, and the command that installs what is missing."""

import os
import re
from pathlib import Path

import msgspec
import pytest

from tare.bench.packages import LIST, HostPackage, load_packages, package_of, remedy_for

USES = {"image", "vm", "native", "small", "build", "benchmarks", "tests", "rootless", "firmware", "engines"}
packages = pytest.mark.parametrize("package", load_packages(), ids=lambda package: package.name)


@packages
def test_every_entry_is_complete(package: HostPackage) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package.name)
    assert bool(package.tool) != bool(package.file), "a package is recognised by one program or by one file"
    assert package.needed_by
    assert set(package.needed_by) <= USES
    assert package.why
    assert not package.why.endswith(".")
    assert not package.file or package.file.startswith("/")


def test_no_package_and_no_tool_is_listed_twice() -> None:
    names = [package.name for package in load_packages()]
    tools = [package.tool for package in load_packages() if package.tool]
    assert len(set(names)) == len(names)
    assert len(set(tools)) == len(tools)


def test_tools_are_looked_up_by_the_list() -> None:
    assert package_of("mkfs.erofs") == "erofs-utils"
    assert package_of("qemu-system-x86_64") == "qemu-system-x86"
    assert package_of("no-such-tool") is None
    assert package_of("") is None


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "a", "needed_by": ["vm"], "why": "x"},
        {"name": "a", "needed_by": ["vm"], "why": "x", "tool": "t", "file": "/f"},
        {"name": "a", "needed_by": ["vm"], "why": "x", "tool": "t", "colour": "red"},
        {"name": "a", "why": "x", "tool": "t"},
    ],
    ids=["neither", "both", "unknown key", "no use"],
)
def test_a_wrong_entry_is_refused(entry: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(entry, HostPackage)


def test_presence_is_seen_by_program_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_tool = HostPackage("a", ("vm",), "why", tool="tare-test-tool")
    by_file = HostPackage("b", ("vm",), "why", file=str(tmp_path / "file.so"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not by_tool.is_present()
    assert not by_file.is_present()
    (tmp_path / "tare-test-tool").write_text("")
    assert not by_tool.is_present(), "a file that cannot be executed is no program"
    (tmp_path / "tare-test-tool").chmod(0o755)
    (tmp_path / "file.so").write_text("")
    assert by_tool.is_present()
    assert by_file.is_present()


def test_programs_in_sbin_are_seen_without_it_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    sbin = next((path for path in (Path("/usr/sbin/ldconfig"), Path("/sbin/ldconfig")) if path.exists()), None)
    if sbin is None:
        pytest.skip("this system has no ldconfig in sbin to look for")
    monkeypatch.setenv("PATH", "/nowhere")
    assert HostPackage("libc-bin", ("vm",), "why", tool="ldconfig").is_present()


@pytest.mark.parametrize(
    ("apt", "uid", "expected"),
    [
        ("/usr/bin/apt-get", 0, "apt-get install --no-install-recommends one two"),
        ("/usr/bin/apt-get", 1000, "sudo apt-get install --no-install-recommends one two"),
        (None, 0, "this host has no apt; install what Debian calls: one two"),
    ],
)
def test_the_remedy_is_a_command_for_this_host(
    monkeypatch: pytest.MonkeyPatch, apt: str | None, uid: int, expected: str
) -> None:
    monkeypatch.setattr("tare.bench.packages.shutil.which", lambda _: apt)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert remedy_for(["one", "two"]) == expected


def test_the_list_lies_beside_the_code_so_that_it_is_installed_with_it() -> None:
    assert LIST.parent.name == "bench"
    assert LIST.is_file()
