"""What an image is made of, and the hash under which a finished one is found again."""

import hashlib
import platform
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tare.bench import inside
from tare.bench.errors import ImageError
from tare.bench.model import Struct

BUILDER_VERSION = 1
"""Raised whenever this code makes a different image of the same recipe, so that older images are not found for it."""

BASE_PACKAGES = (
    *("python3", "qemu-guest-agent", "tini"),  # for the harness itself
    *("fio", "iperf3", "linux-perf", "redis", "stress-ng", "sysbench"),
)
"""In every image: what the harness needs, and the tools of the workloads that suites have most often."""
CATALOGUE_PACKAGES = (
    *("7zip", "hpcc", "libopenblas0-serial", "mariadb-server", "nginx-light", "openssl", "pixz", "postgresql"),
    *("qperf", "rt-tests", "sockperf", "wrk", "xz-utils"),
    *("pypi:pyperf==2.10.0", "pypi:pyperformance==1.14.0"),
    *("dbus", "systemd-sysv", "udev"),  # for instances that boot the whole distribution
)
"""Added, all of them, where one is needed: so that all suites of the built-in workloads share two images."""

DEFAULT_SUITE = "bookworm"

PYPI = "pypi:"
"""What the name of a Python package begins with where Debian's packages are named: ``pypi:pyperf==2.10.0``.

Only pure Python, because such a package is the same file everywhere, and only with the version, because that is what
makes a recipe name its content. Dependencies are not followed: whoever needs them names them too.
"""

_GUEST_FOLDER = Path(__file__).with_name("guest")
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]+")
_PYTHON_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.+!]*")


class Recipe(Struct, frozen=True):
    """All that decides what is in an image, apart from the archive's own versions.

    ``packages`` are Debian's, ``python_packages`` PyPI's with their versions. ``variant`` is mmdebstrap's.
    ``guest_version`` names the files in ``bench/image/guest``. Made by ``of``, which sorts, checks, and rounds up to
    the base or the catalogue.
    """

    suite: str
    packages: tuple[str, ...]
    architecture: str
    variant: str
    kernel_package: str
    guest_version: str
    builder_version: int = BUILDER_VERSION
    python_packages: tuple[str, ...] = ()

    @classmethod
    def of(cls, packages: Iterable[str], *, suite: str = DEFAULT_SUITE) -> "Recipe":
        """The recipe of an image with ``packages`` and the base. Raises ImageError for an impossible name."""
        asked = set(packages)
        catalogue = CATALOGUE_PACKAGES if asked & set(CATALOGUE_PACKAGES) else ()
        wanted, python = split_packages({*asked, *BASE_PACKAGES, *catalogue})
        for name in (suite, *sorted(wanted)):
            if not _NAME.fullmatch(name):
                raise ImageError(
                    f"{name!r} cannot be the name of a Debian package or suite",
                    remedy="write it as apt prints it: lower-case letters, digits, dots, plus and minus signs",
                )
        architecture = host_architecture()
        return cls(
            suite=suite,
            packages=tuple(sorted(wanted)),
            architecture=architecture,
            variant="minbase",
            kernel_package=f"linux-image-cloud-{architecture}",
            guest_version=guest_version(),
            python_packages=tuple(sorted(python)),
        )

    @property
    def hash(self) -> str:
        """64 hexadecimal digits that differ whenever anything in the recipe does."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def host_architecture() -> str:
    """Debian's name for this machine's architecture; the machine's own where Debian's is not known here."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def guest_version(folder: Path = _GUEST_FOLDER) -> str:
    """A hash over the names and contents of the guest's own files, and of those that it has in common with others."""
    digest = hashlib.sha256()
    for path in (*sorted(folder.iterdir()), *inside.SOURCES, inside.HEADER):
        # Only sources: caches that tools leave in a checkout must not make another image of it.
        if path.suffix in {".c", ".h", ".py"}:
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:16]


def split_packages(packages: Iterable[str]) -> tuple[set[str], set[str]]:
    """Debian's packages, and the Python packages as pip names them. Raises ImageError for one without its version."""
    debian, python = set(), set()
    for package in packages:
        name = package.removeprefix(PYPI)
        if name == package:
            debian.add(name)
        elif _PYTHON_NAME.fullmatch(name):
            python.add(name)
        else:
            raise ImageError(
                f"{package!r} does not name a Python package with its version",
                remedy=f"write it like {PYPI}pyperf==2.10.0, in lower case",
            )
    return debian, python
