"""The pip that a build runs, told from its command line; the real one is run where an image is built."""

from pathlib import Path

import pytest

from tare.bench.errors import ImageError
from tare.bench.image.rootfs import install_python_packages
from tare.bench.image.tools import ImageBuildError, ToolRunner
from tare.bench.process import ToolFailedError


class Recorded(ToolRunner):
    """Notes the command lines instead of running them; fails on one that contains ``failing``."""

    def __init__(self, failing: str = "") -> None:
        super().__init__("marker")
        self.seen: list[list[str]] = []
        self.failing = failing

    def run(self, argv, **_options) -> str:  # type: ignore[no-untyped-def,override]
        self.seen.append(list(argv))
        if self.failing and self.failing in argv:
            raise ToolFailedError(argv, 1, "ERROR: No matching distribution found for pyperf==99")
        return ""


def tree_with(folder: Path, *versions: str) -> Path:
    for version in versions:
        (folder / f"usr/lib/python{version}").mkdir(parents=True)
        (folder / f"usr/lib/python{version}/os.py").touch()
    return folder


def test_packages_are_for_the_python_of_the_image_and_without_their_dependencies(tmp_path: Path) -> None:
    runner = Recorded()
    install_python_packages(["tabulate==0.9.0", "pyperf==2.10.0"], tree_with(tmp_path, "3.13"), runner)
    pip, compileall = runner.seen
    assert {"--no-deps", "--only-binary=:all:", "--platform=any", "--python-version=3.13"} <= set(pip)
    assert f"--target={tmp_path}/usr/local/lib/python3.13/dist-packages" in pip
    assert pip[-2:] == ["pyperf==2.10.0", "tabulate==0.9.0"]
    assert compileall[:3] == ["chroot", str(tmp_path), "python3"]
    assert "unchecked-hash" in compileall


@pytest.mark.parametrize(("versions", "found"), [((), "none"), (("3.11", "3.13"), "3.11, 3.13")])
def test_an_image_with_no_python_or_two_is_refused(tmp_path: Path, versions: tuple[str, ...], found: str) -> None:
    with pytest.raises(ImageError, match=found):
        install_python_packages(["pyperf==2.10.0"], tree_with(tmp_path, *versions), Recorded())


def test_what_pip_said_is_told(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match="No matching distribution") as caught:
        install_python_packages(["pyperf==99"], tree_with(tmp_path, "3.11"), Recorded("pyperf==99"))
    assert "pip" in str(caught.value.remedy)
