"""Python packages of PyPI in an image, for what Debian does not package: named like ``pypi:pyperf==2.10.0``.

Only pure Python, because such a package is the same file everywhere, and only with the version, because that is what
makes a recipe name its content. Dependencies are not followed: whoever needs them names them too.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tare.bench.errors import ImageError
from tare.bench.image.failures import ImageBuildError
from tare.bench.image.tools import Runner
from tare.bench.process import ToolFailedError

PREFIX = "pypi:"
"""What the name of a Python package begins with where Debian's packages are named."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.+!]*")
_TIMEOUT_S = 300.0


def split_packages(packages: Iterable[str]) -> tuple[set[str], set[str]]:
    """Debian's packages, and the Python packages as pip names them. Raises ImageError for one without its version."""
    debian, python = set(), set()
    for package in packages:
        name = package.removeprefix(PREFIX)
        if name == package:
            debian.add(name)
        elif _NAME.fullmatch(name):
            python.add(name)
        else:
            raise ImageError(
                f"{package!r} does not name a Python package with its version",
                remedy=f"write it like {PREFIX}pyperf==2.10.0, in lower case",
            )
    return debian, python


def install_python_packages(packages: Iterable[str], tree: Path, runner: Runner) -> None:
    """Install ``packages`` with this Python's pip for the Python of ``tree``, and compile them. Raises ImageError.

    They go where Debian's Python looks for what was not packaged. Compiled files are valid by their place and not by
    their source's time, because times in an image are clamped.
    """
    wanted = sorted(packages)
    if not wanted:
        return
    version = _python_version(tree)
    inside = f"/usr/local/lib/python{version}/dist-packages"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    argv += ["--root-user-action=ignore", "--no-deps", "--no-compile", "--only-binary=:all:", "--platform=any"]
    argv += ["--implementation=py", "--abi=none", f"--python-version={version}", f"--target={tree}{inside}"]
    try:
        runner.run([*argv, *wanted], timeout_s=_TIMEOUT_S)
        compile_all = ("python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", inside)
        # The seed: sets of constants are written in the order of their hashes.
        runner.run(["chroot", str(tree), *compile_all], timeout_s=_TIMEOUT_S, env={"PYTHONHASHSEED": "0"})
    except ToolFailedError as error:
        raise ImageBuildError(
            f"the Python packages {', '.join(wanted)} cannot be installed into the image: {error.message}",
            remedy="tare's own Python needs pip (python3 -m ensurepip) and a package index that pip reaches; only "
            "packages of pure Python can be installed",
        ) from error


def _python_version(tree: Path) -> str:
    versions = [path.parent.name.removeprefix("python") for path in tree.glob("usr/lib/python3.*/os.py")]
    if len(versions) != 1:
        found = ", ".join(sorted(versions)) or "none"
        raise ImageError(f"an image with Python packages needs exactly one Python 3, and it has: {found}")
    return versions[0]
