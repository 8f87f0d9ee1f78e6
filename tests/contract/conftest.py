"""The backends that have to pass the contract, each prepared once, and one live instance of each for most tests."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tare.bench.interfaces import Backend, BackendContext, Instance
from tare.bench.ledger import Ledger
from tare.bench.model import Envelope, Image, InstanceSpec
from tests.contract.fake_backend import Fake

REAL = {
    "bare-metal": (pytest.mark.root, pytest.mark.image),
    "native": (pytest.mark.root, pytest.mark.image),
    "vm": (pytest.mark.root, pytest.mark.image, pytest.mark.guest, pytest.mark.tools),
}
MEMORY_BYTES = 320 * 2**20


class Subject:
    """A backend under test, prepared, with what it may be compared against."""

    def __init__(self, backend: Backend, image: Image, envelope: Envelope, ledger: Ledger) -> None:
        self.backend = backend
        self.name = backend.name
        self.envelope = envelope
        self.ledger = ledger
        self.image = image
        self._started = 0

    def start(self) -> tuple[str, AbstractContextManager[Instance]]:
        """A fresh instance, not yet entered, with its identifier."""
        self._started += 1
        identifier = f"contract-{self.name}-{os.getpid()}-{self._started}"
        return identifier, self.backend.start(self.spec(identifier))

    def spec(self, identifier: str) -> InstanceSpec:
        """An instance of the subject's image in its envelope."""
        return InstanceSpec(identifier, self.image, self.envelope)


class Live:
    """The shared live instance of a subject."""

    def __init__(self, subject: Subject, identifier: str, instance: Instance) -> None:
        self.subject = subject
        self.identifier = identifier
        self.instance = instance
        self.execute: Callable[..., object] = instance.execute


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test runs on every backend; those that ask for ``isolated`` leave out the fake."""
    if "subject" not in metafunc.fixturenames:
        return
    names = [pytest.param(name, marks=marks) for name, marks in REAL.items()]
    if "isolated" not in metafunc.fixturenames:
        names.insert(0, pytest.param("fake"))
    metafunc.parametrize("subject", names, indirect=True, scope="session")


@pytest.fixture
def isolated() -> None:
    """Asked for by tests of what only real backends have: the fake is not run on them."""


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    folder = tmp_path_factory.mktemp(request.param)
    kind = load_backend(request.param)
    allowed = os.sched_getaffinity(0)
    envelope = Envelope((max(allowed),), max(MEMORY_BYTES, kind.minimum_memory_bytes), 256 * 2**20, 512)
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger(folder / "ledger"))
        context = BackendContext(
            ledger=ledger,
            work_directory=folder,
            cache_directory=folder / "cache",
            options=kind.Options(),
            housekeeping_cpus=tuple(sorted(allowed - set(envelope.cpus))),
        )
        backend = kind(context)
        found = backend.probe()
        if not found.available:
            pytest.skip(f"{request.param} is not available here: {found.reason}")
        image = fake_image(folder) if request.param == "fake" else request.getfixturevalue("image")
        stack.callback(backend.close)
        backend.prepare(image, envelope)
        yield Subject(backend, image, envelope, ledger)
        backend.close()
        assert ledger.entries() == ()


@pytest.fixture(scope="session")
def live(subject: Subject) -> Iterator[Live]:
    identifier, starting = subject.start()
    with starting as instance:
        yield Live(subject, identifier, instance)


def load_backend(name: str) -> type[Backend]:
    """The class behind a name: the fake, or what is registered under it."""
    if name == "fake":
        return Fake
    (point,) = entry_points(group="tare.backends", name=name)
    try:
        return point.load()
    except ImportError as error:
        pytest.skip(f"the backend {name} cannot be loaded: {error}")


def fake_image(folder: Path) -> Image:
    """What the fake, which uses the host's own files, is given for an image."""
    return Image(
        digest="0" * 64,
        recipe="",
        directory=folder,
        rootfs=Path("/"),
        disk=None,
        kernel=None,
        initramfs=None,
        kernel_version="",
        packages={},
        size_bytes=0,
    )
