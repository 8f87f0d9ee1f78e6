"""A backend under test: found, prepared, started; and what can be seen on the host of an instance of it."""

import contextlib
import os
import pkgutil
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from tare.bench.errors import UnavailableError
from tare.bench.image import ImageStore
from tare.bench.interfaces import Backend, BackendContext, Instance
from tare.bench.ledger import Ledger
from tare.bench.linux.mounts import read_mounts
from tare.bench.linux.waiting import is_readable, readable_of
from tare.bench.locations import cache_directory
from tare.bench.model import BackendDescription, Command, Completed, Envelope, Image, InstanceSpec
from tare.bench.registry import find_backends

MEMORY_BYTES = 320 * 2**20
_SILENCE_S = 30.0
NOT_ISOLATED = "not-isolated"
"""Code of the confound by which a backend declares that commands see the host's own files and processes."""


class BackendUnderTest:
    """A backend that was prepared, and its instances."""

    def __init__(self, backend: Backend, description: BackendDescription, image: Image, envelope: Envelope) -> None:
        self.backend = backend
        self.name = backend.name
        self.description = description
        self.image = image
        self.envelope = envelope
        self.ledger = backend.context.ledger
        self.declared = {confound.code: confound.detail for confound in description.confounds}

    def start(self) -> tuple[str, AbstractContextManager[Instance]]:
        """A fresh instance, not yet entered, with its identifier."""
        identifier = f"tare-{secrets.token_hex(4)}-contract"
        return identifier, self.backend.start(self.spec(identifier))

    def spec(self, identifier: str) -> InstanceSpec:
        """An instance of the subject's image in its envelope."""
        return InstanceSpec(identifier, self.image, self.envelope)

    def not_limited(self, resource: str) -> str | None:
        """Why the backend does not enforce its limit on ``memory`` or ``pids``, as a confound of it says."""
        codes = ("no-limits", f"no-{resource}-controller", f"no-limit-{resource}")
        return next((self.declared[code] for code in codes if code in self.declared), None)

    @property
    def isolated(self) -> bool:
        """Whether instances have files and processes of their own."""
        return NOT_ISOLATED not in self.declared


class Live:
    """The live instance that most tests of a backend share."""

    def __init__(self, subject: BackendUnderTest, identifier: str, instance: Instance) -> None:
        self.subject = subject
        self.identifier = identifier
        self.instance = instance

    def execute(self, *argv: str, **more: object) -> Completed:
        """Run a program; ``more`` are fields of ``Command``."""
        return self.instance.execute(msgspec.convert({"argv": argv, **more}, Command))

    def shell(self, script: str, **more: object) -> Completed:
        """Run a script of ``sh``."""
        return self.execute("sh", "-c", script, **more)


class Typist:
    """A user who types one line once something asks for it."""

    def __init__(self) -> None:
        self.shown = b""

    def size(self) -> bytes:
        """40 lines of 100 columns."""
        return b"\x28\0\x64\0\0\0\0\0"

    def relay(self, pty: int, ended: int) -> None:
        """Answer the question ``name?``; ends with the program, or after 30 s without a word."""
        typed = False
        while ready := readable_of((pty, ended), _SILENCE_S):
            self._show(pty)
            if b"name?" in self.shown and not typed:
                os.write(pty, b"tare\n")
                typed = True
            if ended in ready:
                break
        while is_readable(pty) and self._show(pty):
            pass

    def _show(self, pty: int) -> bool:
        with contextlib.suppress(OSError):  # hung up
            printed = os.read(pty, 4096)
            self.shown += printed
            return bool(printed)
        return False


def load_backend(name: str) -> type[Backend]:
    """The backend registered as ``name``, or the class that ``module:class`` is. Raises TareError."""
    if ":" not in name:
        return find_backends().get(name)
    found: type[Backend] = pkgutil.resolve_name(name)
    return found


@contextlib.contextmanager
def start_subject(
    kind: type[Backend], ledger: Ledger, work: Path, image: Image, options: Sequence[str] = ()
) -> Iterator[BackendUnderTest]:
    """A prepared backend of the class ``kind``. Raises UnavailableError if it does not work here."""
    allowed = os.sched_getaffinity(0)
    envelope = Envelope((max(allowed),), max(MEMORY_BYTES, kind.minimum_memory_bytes), 256 * 2**20, 512)
    named = dict(text.partition("=")[::2] for text in options)
    context = BackendContext(
        ledger=ledger,
        work_directory=work,
        cache_directory=cache_directory(),
        options=msgspec.convert(named, kind.Options, strict=False),
        housekeeping_cpus=tuple(sorted(allowed - set(envelope.cpus))),
    )
    backend = kind(context)
    found = backend.probe()
    if not found.available:
        raise UnavailableError(f"{kind.name} is not available here: {found.reason}", remedy=found.remedy)
    try:
        yield BackendUnderTest(backend, backend.prepare(image, envelope), image, envelope)
    finally:
        backend.close()
        backend.close()


def find_image(images: ImageStore, reference: str) -> Image:
    """The image of that name or digest, or else the newest. Raises TareError if there is none."""
    newest = next((listed.digest for listed in images.list() if not listed.problem), "")
    if not (reference or newest):
        raise UnavailableError("there is no image yet", remedy="tare image build")
    return images.get(reference or newest)


def traces_of(identifier: str, work: Path) -> list[str]:
    """What an instance still has on this host: cgroups, mounts, files and processes that are named by it."""
    found = [f"cgroup {folder}" for folder in cgroups_of(identifier)]
    found += [f"mount {mount.point}" for mount in read_mounts() if identifier in f"{mount.point} {mount.source}"]
    found += [f"file {path}" for path in work.iterdir() if identifier in path.name]
    return found + [f"process {pid}" for pid in processes_of(identifier)]


def cgroups_of(identifier: str) -> list[Path]:
    """The cgroups named by an instance, and those below them, in every hierarchy."""
    roots = {mount.point for mount in read_mounts() if mount.kind in {"cgroup", "cgroup2"}}
    return sorted(
        Path(folder, name)
        for root in roots
        for folder, names, _ in os.walk(root)
        for name in names
        if identifier in f"{folder}/{name}"
    )


def processes_of(identifier: str) -> list[int]:
    """Processes on the host that have the identifier in their cgroup's name, environment or command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            said = b"".join((folder / name).read_bytes() for name in ("cgroup", "cmdline", "environ"))
            if identifier.encode() in said and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return sorted(found)


def _hold_instance(name: str, ledger_folder: str, work: str, image: str, *options: str) -> None:
    """Start an instance, print its identifier, and wait to be killed."""
    kind = load_backend(name)
    decoded = msgspec.json.decode(image, type=Image, dec_hook=lambda kind, text: kind(text))
    with (
        Ledger(Path(ledger_folder)) as ledger,
        start_subject(kind, ledger, Path(work), decoded, options) as subject,
    ):
        identifier, starting = subject.start()
        with starting:
            sys.stdout.write(identifier + "\n")
            sys.stdout.flush()
            sys.stdin.read()


if __name__ == "__main__":
    _hold_instance(*sys.argv[1:])


def host_as_image() -> Image:
    """What the fake, which uses the host's own files, is given for an image."""
    folder = Path("/nonexistent")
    return Image("0" * 64, "", folder, Path("/"), None, None, None, "", packages={}, size_bytes=0)


def require(value: object, reason: object = "the backend does not have it") -> None:
    """Skip the test with the reason where the backend does not have what it needs."""
    if value is None or value is False or value == ():
        pytest.skip(str(reason))
