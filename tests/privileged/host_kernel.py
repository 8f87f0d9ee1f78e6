"""Preparing the backends whose instances are processes of the host's kernel."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tare.backends.bare_metal import BareMetal
from tare.backends.cgroups.layout import find_layout
from tare.backends.native.backend import Native
from tare.backends.native.runtime import HostKernelBackend
from tare.bench.interfaces import BackendContext
from tare.bench.ledger import Ledger
from tare.bench.locations import cache_directory
from tare.bench.model import Envelope, Image, InstanceSpec

BACKENDS = {"native": Native, "bare-metal": BareMetal}
ENVELOPE = Envelope((max(os.sched_getaffinity(0)),), 256 * 2**20, 2**28, 200)


@contextlib.contextmanager
def start_backend(
    name: str, image: Image, folder: Path, ledger: Ledger, options: msgspec.Struct | None = None
) -> Iterator[HostKernelBackend]:
    """A prepared backend, on all CPUs but the envelope's."""
    folder.mkdir(exist_ok=True)
    others = tuple(sorted(os.sched_getaffinity(0) - set(ENVELOPE.cpus)))
    kind = BACKENDS[name]
    backend = kind(BackendContext(ledger, folder, cache_directory(), options or kind.Options(), others))
    found = backend.probe()
    if not found.available:
        pytest.skip(f"{name} is not available here: {found.reason}")
    try:
        backend.prepare(image, ENVELOPE)
        yield backend
    finally:
        backend.close()


def spec(name: str, image: Image, envelope: Envelope = ENVELOPE) -> InstanceSpec:
    return InstanceSpec(f"{name}-{os.getpid()}", image, envelope)


def our_cgroups() -> list[Path]:
    """The cgroups of ours that belong to this test process's instances."""
    layout = find_layout()
    folders = dict.fromkeys(folder for folder in (layout.unified, *layout.controllers.values()) if folder is not None)
    return [found for folder in folders for found in folder.glob(f"tare-*-{os.getpid()}")]
