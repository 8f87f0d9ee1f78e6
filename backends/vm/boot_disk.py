"""The disk that a guest boots from through its firmware: a FAT file system with a boot loader, kernel and initramfs.

SeaBIOS runs the boot sector of a disk without a partition table just as well. What differs between guests is not on it
but in the machine's OEM strings (bench/image/guest/parameters.c), so that all guests of an image share one.
"""

import contextlib
import secrets
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from tare.bench.errors import BackendError, TareError
from tare.bench.model import Availability
from tare.bench.packages import load_packages, remedy_for
from tare.bench.process import run

_MIB = 1 << 20
_SPARE_MIB = 4
_SERIAL = "SERIAL 0 115200\n"
"""Before all else; the boot loader then says its name on the console, which is the mark that it runs."""
_CONFIGURATION = f"""\
{_SERIAL}DEFAULT tare
PROMPT 0
LABEL tare
  KERNEL /vmlinuz
  INITRD /initramfs
  APPEND {{arguments}}
"""


def probe_boot_disk() -> Availability:
    """Whether this host has what makes such a disk."""
    needed = [package for package in load_packages() if "firmware" in package.needed_by]
    missing = [package.name for package in needed if not package.is_present()]
    if missing:
        return Availability(available=False, reason=f"not installed: {', '.join(missing)}", remedy=remedy_for(missing))
    return Availability(available=True, reason="syslinux, mtools and mkfs.fat are there")


def find_or_make_boot_disk(kernel: Path, initramfs: Path, arguments: tuple[str, ...], cache: Path) -> Path:
    """The disk for this kernel, initramfs and command line, made once. Raises BackendError."""
    configuration = _CONFIGURATION.format(arguments=" ".join(arguments))
    digest = sha256(configuration.encode())
    for file in (kernel, initramfs):
        digest.update(sha256(file.read_bytes()).digest())
    disk = cache / f"boot-{digest.hexdigest()[:16]}.raw"
    if disk.exists():
        return disk
    cache.mkdir(parents=True, exist_ok=True)
    with _unfinished(cache) as new:
        _make(new, kernel, initramfs, configuration)
        new.rename(disk)
    return disk


def _make(target: Path, kernel: Path, initramfs: Path, configuration: str) -> None:
    settings = target.with_suffix(".cfg")
    size = kernel.stat().st_size + initramfs.stat().st_size
    try:
        with target.open("xb") as file:
            file.truncate((size // _MIB + 1 + _SPARE_MIB) * _MIB)
        settings.write_text(configuration)
        run(["mkfs.fat", "-F", "16", "-n", "TARE", str(target)], timeout_s=60)
        for source, name in ((kernel, "vmlinuz"), (initramfs, "initramfs"), (settings, "syslinux.cfg")):
            run(["mcopy", "-i", str(target), str(source), f"::/{name}"], timeout_s=60)
        run(["syslinux", "--install", str(target)], timeout_s=60)
    except (TareError, OSError) as error:
        raise BackendError(
            f"could not make the disk that the firmware boots from: {error}",
            remedy="see that the cache folder has space left",
        ) from error
    finally:
        settings.unlink(missing_ok=True)


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A name for a file that is not yet what it will be; gone afterwards if it was not renamed."""
    path = folder / f".boot-{secrets.token_hex(4)}.raw"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
