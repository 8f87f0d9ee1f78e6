"""libvirt's QEMU driver in this process itself, without a daemon (``qemu:///embed``).

Its sharp corners, all of them met with libvirt 9.0:

- A process has one embedded driver, with one root folder, for as long as it lives; so they are shared here.
- As root it looks up the user and group ``libvirt-qemu`` even where qemu.conf names others, and refuses to start where
  there is none. Those come with a package that also installs daemons, so it is shown a private /etc/passwd instead.
- It gives huge pages to guests only if it saw a hugetlbfs when it was first opened; so it is shown a private one.
- It leaves QEMU to init, whose turn it then is to reap it, and takes QEMU for alive until that is done. Some inits take
  two seconds for it. So this process adopts orphans while QEMU is started, and reaps it (``watch.py``).
"""

import contextlib
import grp
import os
import pwd
import secrets
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tare.backends.native import syscalls
from tare.backends.vm.connection import Connection, entered, library, start_library
from tare.backends.vm.domain_xml import Accelerator
from tare.backends.vm.emulator import Emulator
from tare.backends.vm.options import EMBEDDED
from tare.bench.errors import UnavailableError
from tare.bench.ledger import Ledger, ResourceKind

_DRIVER_USER = "libvirt-qemu"
_HUGE_PAGES = "hugepages"
_CONFIGURATION = """\
stdio_handler = "file"
user = "root"
group = "root"
remember_owner = 0
dynamic_ownership = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
seccomp_sandbox = 0
"""


# The sandbox is a guest's own (``emulator.confinement``).


class EmbeddedConnection(Connection):
    """The driver in this process. QEMU is started through the wrapper, which has it born in its guest's cgroup.

    libvirt keeps what it found out about emulators in one file each, and checks by itself whether it still holds;
    ``cache`` shares these files between processes, whose root folders are their own.
    """

    def __init__(self, handle: Any, root: Path, cache: Path) -> None:
        super().__init__(handle, root)
        self._cache = cache

    def learn(self, emulator: Emulator, accelerator: Accelerator) -> str:
        found = super().learn(emulator, accelerator)
        _copy_new(_capabilities(self.root), self._cache)
        return found

    def emulator(self, found: Emulator) -> Path:
        return found.wrapper

    def log_file(self, name: str) -> Path:
        return self.root / f"log/qemu/{name}.log"

    def starting(self) -> AbstractContextManager[None]:
        return _adopted_orphans()


class _Embedded:
    """What this process has of the driver: its root folder for good, an open connection while somebody uses it.

    ``starts`` is how many are going on, for which this process adopts orphans.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.root: Path | None = None
        self.folders: list[Path] = []
        self.users = 0
        self.starts = 0
        self.connection: EmbeddedConnection | None = None
        self.closing = contextlib.ExitStack()


_embedded = _Embedded()


@contextlib.contextmanager
def start_embedded(ledger: Ledger, cache: Path) -> Iterator[Connection]:
    """The embedded driver, opened by its first user and closed by its last, which removes its root folder.

    ``cache`` holds what libvirt found out about emulators (see ``EmbeddedConnection``). Raises UnavailableError.
    """
    with _embedded.lock:
        if _embedded.connection is None:
            _embedded.connection = _open(ledger, cache)
        _embedded.users += 1
    try:
        yield _embedded.connection
    finally:
        with _embedded.lock:
            _embedded.users -= 1
            if not _embedded.users:
                _embedded.connection = None
                _embedded.closing.close()


def _open(ledger: Ledger, cache: Path) -> EmbeddedConnection:
    root = _embedded.root
    if root is None:
        # Short, because libvirt puts sockets deep below it and a socket's path has at most 107 bytes.
        root = _embedded.root = Path(f"/run/tare-libvirt-{os.getpid()}-{secrets.token_hex(3)}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(entered(ledger, ResourceKind.DIRECTORY, root))
        # Processes by which libvirt finds out what QEMU can do carry this mark (emulator.py).
        stack.enter_context(entered(ledger, ResourceKind.PROCESS, root))
        _make_root(root)
        stack.callback(_remove_root, root)
        _copy_new(cache, _capabilities(root))
        start_library(root)
        # In a thread of its own, which can have a mount namespace of its own.
        with ThreadPoolExecutor(1, thread_name_prefix="libvirt open") as pool:
            handle = pool.submit(_open_handle, root).result()
        connection = EmbeddedConnection(handle, root, cache)
        stack.callback(connection.close)
        _embedded.closing = stack.pop_all()
    return connection


def _make_root(root: Path) -> None:
    """The driver makes its folders once; when it is opened again they have to be there again."""
    for folder in (root, *_embedded.folders):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("etc", _HUGE_PAGES):
        (root / name).mkdir(exist_ok=True)


def _remove_root(root: Path) -> None:
    _embedded.folders = [Path(folder) for folder, _, _ in os.walk(root)]
    shutil.rmtree(root)


def _open_handle(root: Path) -> Any:
    try:
        with _private_files(root):
            return library().open(f"{EMBEDDED}?root={root}")
    except (library().libvirtError, OSError) as error:
        raise UnavailableError(
            f"libvirt's embedded QEMU driver does not open: {error}",
            remedy="see that tare runs as root and that libvirt's QEMU driver is installed (libvirt-daemon)",
        ) from error


@contextlib.contextmanager
def _private_files(root: Path) -> Iterator[None]:
    """What the driver looks for when it is opened, and its configuration, in mounts that only this thread sees.

    The driver's own threads are born here and stay in this namespace.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
    configuration = _CONFIGURATION
    pages = root / _HUGE_PAGES
    # A kernel without huge pages has no such file system; no guest can ask for them there.
    with contextlib.suppress(OSError):
        syscalls.mount("hugetlbfs", str(pages), "hugetlbfs", 0)
        configuration += f'hugetlbfs_mount = "{pages}"\n'
    (root / "etc/qemu.conf").write_text(configuration)
    with contextlib.ExitStack() as stack:
        if not _have_driver_user():
            stack.enter_context(_driver_user(root))
        yield


def _have_driver_user() -> bool:
    try:
        pwd.getpwnam(_DRIVER_USER)
        grp.getgrnam(_DRIVER_USER)
    except KeyError:
        return False
    return True


@contextlib.contextmanager
def _driver_user(root: Path) -> Iterator[None]:
    """The user and group that the driver looks up, in files over those of the host."""
    lines = {"/etc/passwd": f"{_DRIVER_USER}:x:0:0::/:/bin/false\n", "/etc/group": f"{_DRIVER_USER}:x:0:\n"}
    with contextlib.ExitStack() as stack:
        for file, line in lines.items():
            shown = root / Path(file).name
            shown.write_text(Path(file).read_text("utf-8", "surrogateescape") + line, "utf-8", "surrogateescape")
            syscalls.mount(str(shown), file, "", syscalls.MS_BIND)
            stack.callback(syscalls.umount2, file, syscalls.MNT_DETACH)
        yield


@contextlib.contextmanager
def _adopted_orphans() -> Iterator[None]:
    """Have QEMU, which libvirt starts as a daemon, become our child rather than init's."""
    with _embedded.lock:
        _embedded.starts += 1
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        with _embedded.lock:
            _embedded.starts -= 1
            if not _embedded.starts:
                syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)


def _capabilities(root: Path) -> Path:
    return root / "cache/qemu/capabilities"


def _copy_new(source: Path, target: Path) -> None:
    """Copy the files of a folder that differ in the other, each whole and at once."""
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.xml"):
        content = file.read_bytes()
        copy = target / file.name
        if not copy.exists() or copy.read_bytes() != content:
            unfinished = target / f".{secrets.token_hex(4)}"
            unfinished.write_bytes(content)
            unfinished.rename(copy)
