"""What guests have for storage on the host: disks, how they are opened, the disk that firmware boots from, a folder.

The disk to boot from is a FAT file system with a boot loader, kernel and initramfs: SeaBIOS runs the boot sector of a
disk without a partition table just as well. What differs between guests is not on it but in the machine's OEM strings
(bench/image/guest/parameters.c), so that all guests of an image share one. A folder of the host's is served by
virtiofsd, started in the guest's cgroup, so that it is a cost of the guest.
"""

import contextlib
import mmap
import os
import secrets
import socket
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec

from tare.backends.vm.emulator import JOIN_VARIABLE
from tare.backends.vm.options import AUTO, PAST_THE_PAGE_CACHE, Cache, Io
from tare.bench.errors import BackendError, TareError, UnavailableError
from tare.bench.ledger import MARKER_VARIABLE, Ledger, ResourceKind
from tare.bench.model import Availability
from tare.bench.packages import load_packages, remedy_for
from tare.bench.process import DEVNULL, PLAIN_ENVIRONMENT, Popen, TimeoutExpired, find_tool, run


class DiskMode(msgspec.Struct, frozen=True):
    """How QEMU opens a disk: ``cache`` and ``io`` by libvirt's names."""

    cache: str
    io: str

    def __str__(self) -> str:
        return f"cache={self.cache},io={self.io}"


SHARED_MODE = DiskMode("writeback", "threads")
"""The image's disk, which is read only: through the host's page cache, so that all guests share what one has read."""


def choose_scratch_mode(folder: Path, cache: str = AUTO, io: str = AUTO) -> DiskMode:
    """How QEMU opens scratch disks in ``folder``; what is ``auto`` depends on whether its file system has direct I/O.

    Past the host's page cache where it has, with native asynchronous I/O: each guest then caches its disk once, and
    its writes are on the disk when they are acknowledged. Raises UnavailableError, with the key, for what needs direct
    I/O.
    """
    if cache == AUTO:
        direct = have_direct_io(folder)
        cache = Cache.NONE if direct else Cache.WRITEBACK
    elif cache in PAST_THE_PAGE_CACHE and not have_direct_io(folder):
        raise _no_direct_io(folder, "cache", cache)
    direct = cache in PAST_THE_PAGE_CACHE
    if io == AUTO:
        io = Io.NATIVE if direct else Io.THREADS
    elif io == Io.NATIVE and not direct:
        raise _no_direct_io(folder, "io", io)
    return DiskMode(str(cache), str(io))


def _no_direct_io(folder: Path, key: str, value: str) -> UnavailableError:
    return UnavailableError(
        f"options.{key}: {value} needs direct I/O, which the file system of {folder} does not have",
        remedy=f"state another envelope.storage, or leave {key} out",
    )


def have_direct_io(folder: Path) -> bool:
    """Whether files in ``folder`` can be written past the page cache."""
    file = folder / "direct-io"
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    except OSError:
        file.unlink(missing_ok=True)
        return False
    try:
        with mmap.mmap(-1, 4096) as aligned:
            os.write(descriptor, aligned)
    except OSError:
        return False
    finally:
        os.close(descriptor)
        file.unlink()
    return True


def make_qcow2(source: Path, target: Path) -> None:
    """The content of a raw disk as qcow2, its blocks of zeros left out. Raises BackendError."""
    _run_qemu_img(["convert", "-q", "-f", "raw", "-O", "qcow2", str(source), str(target)], target)


def make_clone(base: Path, target: Path) -> None:
    """A qcow2 that holds nothing yet and reads what it has not from the raw disk ``base``. Raises BackendError."""
    _run_qemu_img(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base.resolve()), str(target)], target)


def _run_qemu_img(arguments: list[str], target: Path) -> None:
    try:
        run(["qemu-img", *arguments], timeout_s=120)
    except TareError as error:
        raise BackendError(f"could not make the disk {target}: {error.message}", remedy=error.remedy) from error


def make_scratch_template(ledger: Ledger, target: Path, size_bytes: int) -> None:
    """A raw disk with an empty ext4, holding only the blocks that are not zero. Raises BackendError.

    Everything is initialised here, so that no kernel thread of the guest goes on with it during a measurement.
    """
    full = target.with_name(f"{target.name}.full")
    with full.open("wb") as file:
        file.truncate(size_bytes)
    # The tools may outlive a tare that is killed.
    marker = f"template-{secrets.token_hex(8)}"
    entry, env = ledger.enter(ResourceKind.PROCESS, marker), {MARKER_VARIABLE: marker}
    options = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"]
    try:
        run(["mkfs.ext4", *options, str(full)], timeout_s=120, env=env)
        run(["cp", "--sparse=always", str(full), str(target)], timeout_s=120, env=env)
    except (TareError, OSError) as error:
        raise BackendError(
            f"could not make a scratch disk of {size_bytes} bytes: {error}",
            remedy="an ext4 file system needs some 4 MiB; see also that the work directory has space left",
        ) from error
    finally:
        full.unlink(missing_ok=True)
        ledger.strike(entry)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file's data and leave its holes. Raises OSError."""
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        end = 0
        while end < size and (at := _next_data(reader.fileno(), end)) is not None:
            end = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += os.copy_file_range(reader.fileno(), writer.fileno(), end - at, at, at)


def allocated_bytes(path: Path) -> int:
    """The blocks a file has on disk."""
    return path.stat().st_blocks * 512


def _next_data(descriptor: int, at: int) -> int | None:
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError:  # ENXIO: only a hole is left
        return None


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
        return Availability.no(f"not installed: {', '.join(missing)}", remedy_for(missing))
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
        _make_boot_disk(new, kernel, initramfs, configuration)
        new.rename(disk)
    return disk


def _make_boot_disk(target: Path, kernel: Path, initramfs: Path, configuration: str) -> None:
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


_PLACES = (Path("/usr/libexec/virtiofsd"), Path("/usr/lib/qemu/virtiofsd"), Path("/usr/lib/virtiofsd"))
"""Where distributions put it; none of them has it in PATH."""
_END_DEADLINE_S = 10.0
OPTIONS = "cache=auto,allow_direct_io"
"""The guest caches what it read, for a second; what it reads and writes past its cache goes past the host's too."""

_JOIN = f'IFS="\n"; for file in ${JOIN_VARIABLE}; do echo 0 >"$file" || exit; done; exec "$@"'


def find_virtiofsd() -> Path | None:
    """The program, or None if it is not installed."""
    return find_tool("virtiofsd") or next((place for place in _PLACES if os.access(place, os.X_OK)), None)


def probe_virtiofsd() -> Availability:
    """Whether folders can be shared here."""
    program = find_virtiofsd()
    if program is None:
        return Availability.no(
            "virtiofsd is not installed",
            "install it (Debian package virtiofsd; before Debian 13 it is in qemu-system-common)",
        )
    return Availability(available=True, reason=str(program))


@contextlib.contextmanager
def start_virtiofsd(listening: Path, shared: Path, said: Path, marker: str, join: tuple[Path, ...]) -> Iterator[None]:
    """Virtiofsd for ``shared``, which answers at the socket ``listening``; on exit it is gone. Raises BackendError.

    ``said`` gets what it prints, ``join`` are files of the cgroup in which it is born, ``marker`` is in the ledger. The
    socket listens before the program runs, so that nobody has to wait for it.
    """
    program = find_virtiofsd()
    if program is None:
        found = probe_virtiofsd()
        raise BackendError(found.reason, remedy=found.remedy)
    environment = {
        **os.environ,
        **PLAIN_ENVIRONMENT,
        MARKER_VARIABLE: marker,
        JOIN_VARIABLE: "\n".join(map(str, join)),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, said.open("wb") as output:
        listener.bind(str(listening))
        listener.listen(1)
        descriptor = listener.fileno()
        # By default it asks for a million open files, for which not every root has the capability.
        arguments = [f"--fd={descriptor}", "-o", f"source={shared}", "-o", OPTIONS, "--rlimit-nofile=0"]
        process = Popen(
            ["/bin/sh", "-c", _JOIN, "sh", str(program), *arguments],
            env=environment,
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(descriptor,),
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.kill()
        try:
            process.wait(_END_DEADLINE_S)
        except TimeoutExpired:
            raise BackendError(f"virtiofsd (pid {process.pid}) did not end within {_END_DEADLINE_S:g} s") from None
