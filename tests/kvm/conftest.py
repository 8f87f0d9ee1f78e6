"""Where the tests' guests run under KVM: in an emulated host, or with ``TARE_TEST_REAL_KVM=1`` on this machine."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.backends.vm.disks import find_virtiofsd
from tare.bench.errors import TareError
from tare.bench.locations import cache_directory
from tare.bench.model import Image
from tare.bench.process import find_tool
from tests.kvm.emulated_host import (
    MEMORY_BYTES,
    SMALL_MEMORY_BYTES,
    EmulatedHost,
    Ran,
    find_or_fetch_kernel,
    start_emulated_host,
)

CHECKOUT = Path(__file__).resolve().parents[2]
REAL = os.environ.get("TARE_TEST_REAL_KVM") == "1"
EVERYTHING = os.environ.get("TARE_TEST_KVM") == "all"


# A cache of the host's own, with this machine's images. Where others change it meanwhile, an overlay has stale files.
_CACHE = """
set -e
mkdir -p /data/cache/images
cp -a "$1/names" "$1/recipes" /data/cache
mount --bind "$1/images" /data/cache/images
"""


class KvmHost:
    """Runs commands in the checkout on a host with KVM, with folders of their own that are on no overlay."""

    def __init__(self, host: EmulatedHost | None, folder: Path) -> None:
        self.host = host
        self.folder = folder

    def run(self, command: str, *, timeout_s: float) -> Ran:
        """Run a shell command in the checkout."""
        cache = cache_directory() if self.host is None else self.folder / "cache"
        folders = {"WORK": self.folder / "work", "STATE": self.folder / "state", "CACHE": cache}
        settings = " ".join(f"TARE_{name}_DIR={folder}" for name, folder in folders.items())
        full = f"cd {CHECKOUT} && export {settings} TARE_TEST_ACCEL=kvm COLUMNS=200 && {command}"
        if self.host is not None:
            return self.host.run(full, timeout_s=timeout_s)
        done = subprocess.run(["sh", "-c", full], capture_output=True, text=True, timeout=timeout_s, check=False)
        return Ran(done.returncode, done.stdout, done.stderr)

    def tare(self, arguments: str, *, timeout_s: float, code: int = 0) -> str:
        """What a command of tare printed."""
        ran = self.run(f"{sys.executable} -m tare {arguments}", timeout_s=timeout_s)
        assert ran.code == code, f"{arguments}: {ran.code}\n{ran.out}\n{ran.err}"
        return ran.out

    def pytest(self, arguments: str, *, timeout_s: float) -> str:
        """Have tests pass there; what pytest said of them at the end.

        One that is skipped for want of an image was not tried, where this machine has seen to it that there is one.
        """
        options = f"-q -p no:cacheprovider -p tests.kvm.inside.patience -rs --basetemp={self.folder}/pytest"
        ran = self.run(f"{sys.executable} -m pytest {options} {arguments}", timeout_s=timeout_s)
        assert ran.code == 0, f"{ran.out}\n{ran.err}"
        assert " passed" in ran.out, ran.out
        assert "no image in the cache" not in ran.out, ran.out
        sys.stdout.write(ran.out)
        return ran.out


@contextlib.contextmanager
def start_kvm_host(cgroups: str = "v2") -> Iterator[KvmHost]:
    """An emulated host with KVM, or this one. Its folder is short, because sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="tare-k", dir="/var/tmp") as folder:
        if REAL:
            yield KvmHost(None, Path(folder))
            return
        memory = MEMORY_BYTES if EVERYTHING else SMALL_MEMORY_BYTES
        cache = cache_directory() / "tests"
        with start_emulated_host(Path(folder), cache, memory_bytes=memory, cgroups=cgroups) as host:
            host.check("sh", "-c", _CACHE, "sh", cache_directory())
            yield KvmHost(host, Path("/data"))


@pytest.fixture(scope="session")
def kvm_host(image: Image) -> Iterator[KvmHost]:
    """A host with KVM; ``image`` is in its cache, for it cannot build one."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not REAL and (find_tool("qemu-system-x86_64") is None or find_virtiofsd() is None):
        pytest.skip("qemu-system-x86_64 or virtiofsd is not installed")
    try:
        if not REAL:
            find_or_fetch_kernel(cache_directory() / "tests")
    except TareError as error:
        pytest.skip(f"the emulated host's kernel cannot be fetched: {error.message}")
    with start_kvm_host() as host:
        yield host
